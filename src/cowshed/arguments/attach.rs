//! The arguments of `cowshed attach` and `cowshed detach`.

use clap::{Args, ValueEnum};
use cowshed_daemon::request::attach as request;

/// `cowshed attach`
#[derive(Debug, Args)]
#[command(
    after_help = "Attaching a volume again in the same way gives the same path, and is \
    counted: it takes as many detaches.\n\n\
    Examples:\n  mkfs.ext4 $(cowshed attach disk)\n  \
    cowshed attach disk --as file --read-only\n  cowshed attach --ls"
)]
pub(crate) struct Attach {
    /// The volume, by name or id
    #[arg(
        value_name = "VOL",
        required_unless_present = "ls",
        conflicts_with = "ls"
    )]
    pub volume: Option<String>,
    /// As what: a file, or a loop device /dev/loopN
    #[arg(long = "as", value_enum, default_value_t = Kind::Loop)]
    pub kind: Kind,
    /// Nothing may be written through it
    #[arg(long)]
    pub read_only: bool,
    /// Let others write beside it, who know of each other (a cluster file system, say)
    #[arg(long)]
    pub shared: bool,
    /// The sectors of the loop device, kept with the volume [default: what was kept, or 4096]
    #[arg(long, value_enum)]
    pub sector_size: Option<SectorSize>,
    /// List what is attached
    #[arg(long)]
    pub ls: bool,
}

/// As what a volume is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A file.
    File,
    /// A loop device.
    Loop,
}

/// The size of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SectorSize {
    /// As most disks show, and most disk images are made for
    #[value(name = "512")]
    Small,
    /// As large as a volume's blocks: the fastest
    #[value(name = "4096")]
    Large,
}

/// `cowshed detach`
#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// The volume, by name or id
    #[arg(value_name = "VOL")]
    pub volume: String,
}

impl From<Attach> for request::Command {
    fn from(arguments: Attach) -> Self {
        let Some(volume) = arguments.volume else {
            return Self::List;
        };
        Self::Attach(request::Attach {
            volume,
            kind: arguments.kind.into(),
            read_only: arguments.read_only,
            shared: arguments.shared,
            sector_size: arguments.sector_size.map(Into::into),
        })
    }
}

impl From<Detach> for request::Command {
    fn from(Detach { volume }: Detach) -> Self {
        Self::Detach { volume }
    }
}

impl From<Kind> for request::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::File => Self::File,
            Kind::Loop => Self::Loop,
        }
    }
}

impl From<SectorSize> for request::SectorSize {
    fn from(size: SectorSize) -> Self {
        match size {
            SectorSize::Small => Self::Small,
            SectorSize::Large => Self::Large,
        }
    }
}
