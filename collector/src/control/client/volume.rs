//! Calls about the life of a volume, its points, its agent, and the daemon's configuration.

use hyper::Method;
use hyper::body::Bytes;

use super::{Client, ClientError, escape};
use crate::control::api::{
    AgentInfo, Erased, Job, NewPoint, NewPolicy, NewResync, NewRetire, NewSeed, PointFilter,
    PointInfo, PointKind, PointList, PolicyInfo, Reloaded, VolumeStatus,
};

impl Client {
    /// The points of a volume.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn points(&self, volume: &str, filter: &PointFilter) -> Result<PointList, ClientError> {
        let kind = filter.kind.map(PointKind::name);
        let limit = filter.limit.map(|limit| limit.to_string());
        let query: Vec<String> = [
            ("kind", kind),
            ("since", filter.since.as_deref()),
            ("until", filter.until.as_deref()),
            ("limit", limit.as_deref()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", escape(value?))))
        .collect();
        self.get(&format!("/v1/volumes/{}/points?{}", escape(volume), query.join("&")))
    }

    /// Makes a point now and waits until it is durable.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn create_point(&self, volume: &str, new: &NewPoint) -> Result<PointInfo, ClientError> {
        self.post(&format!("/v1/volumes/{}/points", escape(volume)), new)
    }

    /// Begins to make an image the beginning of a volume.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn create_seed(&self, volume: &str, new: &NewSeed) -> Result<Job, ClientError> {
        self.post(&format!("/v1/volumes/{}/seed", escape(volume)), new)
    }

    /// Begins to make the copy of a volume equal to the disk.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn create_resync(&self, volume: &str, new: &NewResync) -> Result<Job, ClientError> {
        self.post(&format!("/v1/volumes/{}/resync", escape(volume)), new)
    }

    /// Begins to compare a volume with its copy.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn create_verify(&self, volume: &str) -> Result<Job, ClientError> {
        self.post(&format!("/v1/volumes/{}/verify", escape(volume)), &())
    }

    /// Changes the policy of a volume.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn set_policy(&self, volume: &str, new: &NewPolicy) -> Result<PolicyInfo, ClientError> {
        self.post(&format!("/v1/volumes/{}/policy", escape(volume)), new)
    }

    /// Pauses the protection of a volume; waits until its agent says so.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn pause(&self, volume: &str) -> Result<VolumeStatus, ClientError> {
        self.post(&format!("/v1/volumes/{}/pause", escape(volume)), &())
    }

    /// Takes the protection up again; waits until the volume's agent says so.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn resume(&self, volume: &str) -> Result<VolumeStatus, ClientError> {
        self.post(&format!("/v1/volumes/{}/resume", escape(volume)), &())
    }

    /// Ends the protection of a volume; its history stays for a while.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn retire(&self, volume: &str, new: &NewRetire) -> Result<VolumeStatus, ClientError> {
        self.post(&format!("/v1/volumes/{}/retire", escape(volume)), new)
    }

    /// Takes a retired volume back.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn unretire(&self, volume: &str) -> Result<VolumeStatus, ClientError> {
        self.post(&format!("/v1/volumes/{}/unretire", escape(volume)), &())
    }

    /// Erases everything that is kept of a retired volume.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn erase(&self, volume: &str) -> Result<Erased, ClientError> {
        self.call(Method::DELETE, &format!("/v1/volumes/{}", escape(volume)), Bytes::new())
    }

    /// Agents that were seen and not forgotten.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn agents(&self) -> Result<Vec<AgentInfo>, ClientError> {
        self.get("/v1/agents")
    }

    /// Forgets an agent.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn forget_agent(&self, agent: &str) -> Result<AgentInfo, ClientError> {
        self.call(Method::DELETE, &format!("/v1/agents/{}", escape(agent)), Bytes::new())
    }

    /// Has the daemon read its configuration anew.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub fn reload(&self) -> Result<Reloaded, ClientError> {
        self.post("/v1/reload", &())
    }
}
