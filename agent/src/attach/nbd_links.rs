//! What the kernel says when its NBD client gives up a connection.
//!
//! In: the kernel's notices over generic netlink. Out: the device that has lost a connection. The
//! kernel gives one up when its peer closes it, and when a request takes longer than it waits; it
//! does not make another. A notice that finds no room is lost, and the loss is told.
//!
//! Source: `nbd_mcast_index` in `drivers/block/nbd.c` of the kernel.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::genetlink::{Family, Notice};
use super::nbd_kernel::{FAMILY, FAMILY_VERSION, INDEX};

const GROUP: &str = "nbd_mc_group";
const LINK_DEAD: u8 = 4;

/// Hears of connections that the kernel gave up.
#[derive(Debug)]
pub struct LinkWatch {
    family: Family,
}

/// What it heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkLoss {
    /// This device has lost a connection.
    Of(PathBuf),
    /// There was more to hear than was heard: any device may have lost one.
    OfAny,
}

impl LinkWatch {
    /// Begins to listen; `None` when the kernel's NBD client is not there, or says nothing.
    ///
    /// # Errors
    /// The system's.
    pub fn open() -> io::Result<Option<Self>> {
        let Some(mut family) = Family::open(FAMILY, FAMILY_VERSION)? else { return Ok(None) };
        Ok(family.join(GROUP)?.then_some(Self { family }))
    }

    /// What is heard next; `None` when it was nothing for as long as `patience`.
    ///
    /// # Errors
    /// The system's.
    pub fn next(&mut self, patience: Duration) -> io::Result<Option<LinkLoss>> {
        Ok(match self.family.next_notice(LINK_DEAD, patience)? {
            Notice::Silence => None,
            Notice::Lost => Some(LinkLoss::OfAny),
            Notice::Here(attributes) => Some(match attributes.u32(INDEX) {
                Some(index) => LinkLoss::Of(PathBuf::from(format!("/dev/nbd{index}"))),
                None => LinkLoss::OfAny,
            }),
        })
    }
}
