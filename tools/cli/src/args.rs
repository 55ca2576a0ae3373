//! The command line, as it is typed.
//!
//! Nothing here calls the collector: it only gives names to what stands on the line and refuses
//! what can't mean anything. An error of this stage is one of usage (exit status 2).

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tidemark_collector::control::api::{CONTROL_SOCKET_DEFAULT, DayWindow};

const AT_HELP: &str = "Which state: `latest`, `seq:N`, a point's name or id, an RFC 3339 time, \
    or an age such as `5m`";

/// See, open and restore any state of a protected disk.
#[derive(Debug, Parser)]
#[command(name = "tidemark", version, max_term_width = 100)]
pub(crate) struct Arguments {
    /// Control socket of the collector.
    #[arg(long, global = true, env = "TIDEMARK_SOCKET", default_value = CONTROL_SOCKET_DEFAULT,
          value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// Answer in JSON, for programs.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The collector and how well each volume is protected.
    Status,
    /// Protected disks.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Recovery points.
    #[command(subcommand)]
    Point(PointCommand),
    /// Machines that protect disks.
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Have the collector read its configuration anew.
    Reload,
    /// Open a state as a disk, read-only or as a writable clone; nothing is copied.
    Export(ExportArguments),
    /// Write a state to a file or a block device of the collector's machine. One that has ended
    /// early goes on when it is given again.
    Restore(RestoreArguments),
    /// Make the copy of a volume equal to its disk, where the two may differ. A gap is closed so by
    /// itself; this waits for it.
    Resync(ResyncArguments),
    /// Compare a volume with its copy and change nothing. Exit status 1 when they differ.
    Verify(VerifyArguments),
    /// What the journal of a volume holds.
    #[command(subcommand)]
    Journal(JournalCommand),
    /// What happened.
    #[command(subcommand)]
    Event(EventCommand),
    /// Long work: restores, seedings, comparisons.
    #[command(subcommand)]
    Job(JobCommand),
}

/// `tidemark volume`.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// All volumes.
    List,
    /// Everything about one volume.
    Show {
        /// Name or id of the volume.
        volume: String,
    },
    /// Begin a volume with an image of the disk that was brought to the collector's machine: the
    /// agent then sends only what differs. For a volume that has no whole copy yet.
    Seed {
        /// Name or id of the volume.
        volume: String,
        /// A raw image of exactly the disk's size: a file or a block device.
        #[arg(long, value_name = "IMAGE")]
        from: PathBuf,
    },
    /// How far back its history reaches, how much it may take, how often points are made, when it is
    /// compared; without options shows what holds.
    Policy(PolicyArguments),
    /// Capture no changes for a while. The way back is a comparison of the whole disk.
    Pause {
        /// Name or id of the volume.
        volume: String,
    },
    /// Take the protection up again, after `pause`.
    Resume {
        /// Name or id of the volume.
        volume: String,
    },
    /// End the protection. Its history can be used until the grace is over, then it is erased.
    Retire {
        /// Name or id of the volume.
        volume: String,
        /// How long the history is kept, such as `7d`; without it as the collector is configured.
        #[arg(long, value_name = "TIME", value_parser = crate::units::seconds)]
        grace: Option<u64>,
    },
    /// Take a retired volume back.
    Unretire {
        /// Name or id of the volume.
        volume: String,
    },
    /// Erase everything that is kept of a retired volume, now.
    Erase {
        /// Name or id of the volume.
        volume: String,
        /// It is meant: nothing brings the history back.
        #[arg(long)]
        yes: bool,
    },
}

/// What holds for a volume.
#[derive(Debug, Args)]
pub(crate) struct PolicyArguments {
    /// Name or id of the volume.
    pub(crate) volume: String,
    /// Keep every state that is younger than this, such as `2h` or `7d`.
    #[arg(long, value_name = "TIME", value_parser = crate::units::seconds)]
    pub(crate) window: Option<u64>,
    /// Let older history go beyond this size of the journal, such as `10GiB`; `0`: no limit.
    #[arg(long, value_name = "SIZE", value_parser = crate::units::size)]
    pub(crate) journal_max: Option<u64>,
    /// Make a point that often when something was written, such as `30s`; `0`: never.
    #[arg(long, value_name = "TIME", value_parser = crate::units::seconds)]
    pub(crate) point_interval: Option<u64>,
    /// Begin scheduled comparisons between these local times of the collector's machine, such as
    /// `22:00-04:00`.
    #[arg(long, value_name = "FROM-UNTIL")]
    pub(crate) compare_window: Option<DayWindow>,
    /// Verify every so many days; `0`: never.
    #[arg(long, value_name = "DAYS")]
    pub(crate) verify_days: Option<u32>,
    /// Compare the whole disk and make the copy equal every so many days; `0`: never.
    #[arg(long, value_name = "DAYS")]
    pub(crate) resync_days: Option<u32>,
    /// Go back to the collector's defaults, but for what else is given.
    #[arg(long)]
    pub(crate) default: bool,
}

/// `tidemark resync`.
#[derive(Debug, Args)]
pub(crate) struct ResyncArguments {
    /// Name or id of the volume.
    pub(crate) volume: String,
    /// Compare the whole disk, not only what is known to be in doubt. Until it is through, the
    /// newest state that can be opened is the one before it.
    #[arg(long)]
    pub(crate) full: bool,
    /// Return when the job is begun.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// `tidemark verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// Name or id of the volume.
    pub(crate) volume: String,
    /// Return when the job is begun.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// `tidemark agent`.
#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Agents that have connected, and their volumes.
    List,
    /// Forget an agent whose volumes are all retired or erased.
    Forget {
        /// Id of the agent.
        agent: String,
    },
}

/// Kinds of points, as they are typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Made by themselves: as after a power cut.
    Crash,
    /// The application made its files consistent first.
    App,
    /// A person's own.
    Bookmark,
}

/// `tidemark point`.
#[derive(Debug, Subcommand)]
pub(crate) enum PointCommand {
    /// The points of a volume, and from where to where any other state can be opened.
    List {
        /// Name or id of the volume.
        volume: String,
        /// Only those of one kind.
        #[arg(long, value_enum)]
        kind: Option<Kind>,
        /// Only those captured since: an RFC 3339 time, or an age such as `2h`.
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Only those captured until then.
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// Show at most so many, the newest.
        #[arg(long, value_name = "N", default_value_t = 100,
              value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Give the present state a name. Returns when the point is durable on the collector.
    Create {
        /// Name or id of the volume.
        volume: String,
        /// The name.
        #[arg(long, default_value = "", hide_default_value = true)]
        label: String,
    },
}

/// `tidemark export`: a volume at once, or one of the commands.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct ExportArguments {
    #[command(subcommand)]
    pub(crate) command: Option<ExportCommand>,
    #[command(flatten)]
    pub(crate) create: Option<ExportCreate>,
}

/// `tidemark export …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ExportCommand {
    /// The long form of `tidemark export VOLUME`; for a volume named like a command, too.
    Create(ExportCreate),
    /// What is being served.
    List,
    /// End an export; its clients lose their connection, and a clone's writes go.
    Stop(ExportStop),
}

/// Which export to end, and what may be lost with it.
#[derive(Debug, Args)]
pub(crate) struct ExportStop {
    /// Number of the export, from `tidemark export list`.
    pub(crate) id: u64,
    /// End a clone that was written to without asking; its writes are gone.
    #[arg(long)]
    pub(crate) yes: bool,
    /// Take a file away although somebody has it open; what they do from then on fails.
    #[arg(long)]
    pub(crate) force: bool,
}

/// What to serve, and where.
#[derive(Debug, Args)]
pub(crate) struct ExportCreate {
    /// Name or id of the volume.
    pub(crate) volume: String,
    #[arg(long, help = AT_HELP)]
    pub(crate) at: String,
    /// Where to serve it: `unix:/path` or `tcp:127.0.0.1:PORT` (port 0: any free one).
    /// Without it, a new socket beside the control socket.
    #[arg(long, value_name = "ADDRESS", value_parser = listen_address)]
    pub(crate) listen: Option<String>,
    /// Show it as a file of the collector's FUSE directory instead, for a loop device.
    #[arg(long, conflicts_with = "listen")]
    pub(crate) fuse: bool,
    /// Make it a clone that can be written. Its writes are its own: the volume and its history
    /// never see them.
    #[arg(long)]
    pub(crate) writable: bool,
    /// What the clone may hold of its own, such as `10GiB`. Without it, what the collector's
    /// configuration says.
    #[arg(long, value_name = "SIZE", requires = "writable", value_parser = crate::units::size)]
    pub(crate) space: Option<u64>,
}

/// `tidemark restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArguments {
    /// Name or id of the volume.
    pub(crate) volume: String,
    #[arg(long, help = AT_HELP)]
    pub(crate) at: String,
    /// The file to make, or the block device to overwrite.
    #[arg(long, value_name = "PATH")]
    pub(crate) to: PathBuf,
    /// How to lay out the file; by its name when this is left out (`.qcow2`).
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Replace the file when it exists.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Overwrite a block device without asking.
    #[arg(long)]
    pub(crate) yes: bool,
    /// Begin anew, whatever an unfinished restore to the same place has written.
    #[arg(long)]
    pub(crate) restart: bool,
}

/// How a restored disk is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Byte for byte, with holes.
    Raw,
    /// An image for QEMU.
    Qcow2,
}

/// `tidemark journal`.
#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// The files of a volume's journal, or the records of one of them. Every checksum is
    /// compared; exit status 1 when something is damaged.
    Inspect {
        /// Name or id of the volume.
        volume: String,
        /// One of the files: its records are shown.
        segment: Option<String>,
        /// Begin behind this sequence number.
        #[arg(long, value_name = "SEQ", default_value_t = 0, requires = "segment")]
        after: u64,
        /// Show at most so many records.
        #[arg(long, value_name = "N", default_value_t = 1000, requires = "segment",
              value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
}

/// `tidemark event`.
#[derive(Debug, Subcommand)]
pub(crate) enum EventCommand {
    /// Events, oldest first.
    List {
        /// Only events behind this number.
        #[arg(long, value_name = "ID", default_value_t = 0)]
        after: u64,
    },
}

/// `tidemark job`.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Jobs, oldest first.
    List,
    /// End a job that runs; the job says how to go on with it.
    Cancel {
        /// Number of the job, from `tidemark job list`.
        id: u64,
    },
}

fn listen_address(text: &str) -> Result<String, String> {
    let good = match text.split_once(':') {
        Some(("unix", path)) => path.starts_with('/'),
        Some(("tcp", address)) => address.parse::<std::net::SocketAddr>().is_ok(),
        _ => false,
    };
    if good {
        Ok(text.to_owned())
    } else {
        Err("write unix:/absolute/path or tcp:127.0.0.1:PORT".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn export_takes_a_volume_or_a_command() {
        let parsed = parse("tidemark export disk --at 5m --json").expect("the short form");
        let Command::Export(export) = parsed.command else { panic!("{parsed:?}") };
        assert!(parsed.json && export.command.is_none());
        assert_eq!(export.create.expect("what to serve").volume, "disk");

        let parsed = parse("tidemark export create list --at latest").expect("the long form");
        let Command::Export(export) = parsed.command else { panic!("{parsed:?}") };
        let Some(ExportCommand::Create(create)) = export.command else { panic!("{export:?}") };
        assert_eq!(create.volume, "list");

        let parsed = parse("tidemark export stop 7").expect("a command");
        let Command::Export(export) = parsed.command else { panic!("{parsed:?}") };
        assert!(matches!(export.command, Some(ExportCommand::Stop(ExportStop { id: 7, .. }))));
    }

    #[test]
    fn usage_errors_have_status_2() {
        for (line, kind) in [
            ("tidemark export disk", ErrorKind::MissingRequiredArgument),
            ("tidemark export disk --at now --listen unix:relative", ErrorKind::ValueValidation),
            ("tidemark export disk --at now --listen tcp:localhost", ErrorKind::ValueValidation),
            ("tidemark export disk --at now --fuse --listen unix:/x", ErrorKind::ArgumentConflict),
            ("tidemark export disk --at now --writable --space 5XB", ErrorKind::ValueValidation),
            ("tidemark export disk --at now --space 5GiB", ErrorKind::MissingRequiredArgument),
            ("tidemark restore disk --at now", ErrorKind::MissingRequiredArgument),
            ("tidemark journal inspect disk --limit 5", ErrorKind::MissingRequiredArgument),
            ("tidemark journal inspect disk 1.seg --limit 0", ErrorKind::ValueValidation),
            ("tidemark volume shwo disk", ErrorKind::InvalidSubcommand),
            ("tidemark volume policy disk --window soon", ErrorKind::ValueValidation),
            ("tidemark point list disk --kind crsh", ErrorKind::InvalidValue),
            ("tidemark point list disk --limit 0", ErrorKind::ValueValidation),
            ("tidemark volume policy disk --compare-window night", ErrorKind::ValueValidation),
            ("tidemark resync", ErrorKind::MissingRequiredArgument),
            ("tidemark verify disk --full", ErrorKind::UnknownArgument),
            ("tidemark agent forget", ErrorKind::MissingRequiredArgument),
            ("tidemark status --jsno", ErrorKind::UnknownArgument),
            ("tidemark job list extra", ErrorKind::UnknownArgument),
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.kind(), kind, "{line}: {error}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
