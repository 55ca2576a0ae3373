//! What was hit by what: kinds of faults by kinds of steps, over many runs.

use std::fmt::Write;

macro_rules! kinds {
    ($(#[$doc:meta])* $name:ident { $($(#[$kind_doc:meta])* $kind:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name {
            $($(#[$kind_doc])* $kind,)*
        }

        impl $name {
            pub(crate) const ALL: &[Self] = &[$(Self::$kind,)*];

            pub(crate) const fn text(self) -> &'static str {
                match self {
                    $(Self::$kind => $text,)*
                }
            }
        }
    };
}

kinds! {
    /// What is done when a fault strikes.
    Step {
        /// The agent opens the volume and looks after what a predecessor left.
        Open = "open",
        Write = "write",
        Zero = "zero",
        Flush = "flush",
        Copy = "copy",
        /// The agent dials and opens a session.
        Greet = "greet",
        Ship = "ship",
        /// The write-intent log is swept.
        Sweep = "sweep",
        /// The agent stops in order.
        Stop = "stop",
        /// The collector opens the volume's journal.
        Recover = "recover",
        Session = "session",
        Append = "append",
        Sync = "sync",
        Compare = "compare",
        Merge = "merge",
    }
}

kinds! {
    /// What goes wrong, or is wanted.
    Fault {
        AgentKill = "agent killed",
        AgentPower = "agent's power",
        AgentStop = "agent stopped",
        CollectorKill = "collector killed",
        CollectorPower = "collector's power",
        CollectorStop = "collector stopped",
        AgentPutBack = "machine put back",
        CollectorPutBack = "journal put back",
        CollectorAway = "collector away",
        NetworkCut = "connection cut",
        NetworkDown = "network down",
        NetworkSilent = "half-open",
        NetworkFlip = "bit on the wire",
        BackingWrite = "backing write",
        BackingRead = "backing read",
        BackingSync = "backing flush",
        BackingSpoilt = "backing unreadable",
        BackingPutBack = "backing put back",
        BackingResized = "backing resized",
        LogFails = "log of intents",
        JournalCall = "journal's disk",
        JournalFull = "journal full",
        ClockJump = "clock jumps",
        Pause = "pause",
        Compare = "comparison",
        Verify = "verification",
        Bookmark = "bookmark",
    }
}

impl Fault {
    /// It is a wish that goes through a session.
    pub(crate) fn needs_session(self) -> bool {
        matches!(self, Self::Pause | Self::Compare | Self::Verify | Self::Bookmark)
    }

    /// False for what can never meet.
    fn can_hit(self, step: Step) -> bool {
        match step {
            // A process that stops is not told to stop.
            Step::Stop => self != Self::AgentStop,
            // There is no session before the journal is open.
            Step::Recover => !self.needs_session(),
            _ => true,
        }
    }

    /// Everything that can meet.
    pub(crate) fn pairs() -> impl Iterator<Item = (Self, Step)> {
        let all = Self::ALL.iter().flat_map(|fault| Step::ALL.iter().map(|step| (*fault, *step)));
        all.filter(|(fault, step)| fault.can_hit(*step))
    }
}

/// Counts over many runs.
#[derive(Clone)]
pub(crate) struct Figures {
    hits: Vec<u64>,
    pub(crate) seeds: u64,
    pub(crate) operations: u64,
    pub(crate) faults: u64,
    pub(crate) states: u64,
    pub(crate) points: u64,
    pub(crate) merges: u64,
    pub(crate) sessions: u64,
    pub(crate) polls: u64,
    /// What the runs did, as a number that does not depend on their order.
    pub(crate) traces: u64,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            hits: vec![0; Step::ALL.len() * Fault::ALL.len()],
            seeds: 0,
            operations: 0,
            faults: 0,
            states: 0,
            points: 0,
            merges: 0,
            sessions: 0,
            polls: 0,
            traces: 0,
        }
    }
}

impl Figures {
    pub(crate) fn hit(&mut self, fault: Fault, step: Step) {
        self.faults += 1;
        self.hits[place(fault, step)] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.hits.iter_mut().zip(&other.hits).for_each(|(ours, theirs)| *ours += theirs);
        self.seeds += other.seeds;
        self.operations += other.operations;
        self.faults += other.faults;
        self.states += other.states;
        self.points += other.points;
        self.merges += other.merges;
        self.sessions += other.sessions;
        self.polls += other.polls;
        self.traces ^= other.traces;
    }

    /// Pairs that can meet and never did.
    pub(crate) fn missing(&self) -> Vec<(Fault, Step)> {
        Fault::pairs().filter(|(fault, step)| self.hits[place(*fault, *step)] == 0).collect()
    }

    pub(crate) fn table(&self) -> String {
        let mut text = format!("{:18}", "");
        for step in Step::ALL {
            let _ = write!(text, "{:>8}", step.text());
        }
        for (fault, row) in Fault::ALL.iter().zip(self.hits.chunks(Step::ALL.len())) {
            let _ = write!(text, "\n{:18}", fault.text());
            for (step, hits) in Step::ALL.iter().zip(row) {
                let _ = match fault.can_hit(*step) {
                    true => write!(text, "{hits:>8}"),
                    false => write!(text, "{:>8}", "-"),
                };
            }
        }
        text
    }
}

fn place(fault: Fault, step: Step) -> usize {
    fault as usize * Step::ALL.len() + step as usize
}
