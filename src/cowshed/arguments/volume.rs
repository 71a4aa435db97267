//! The arguments of `cowshed volume`.

use super::place;
use super::size::{NewSize, Size};
use super::stream::{ReceiveStep, SendOptions};
use clap::{Args, Subcommand};
use cowshed_daemon::request::FileOrPipe;
use cowshed_daemon::request::volume as request;

/// `cowshed volume …`
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Create an empty thin volume
    Create(NameAndSize),
    /// Remove volumes or snapshots; clones of them stay
    Rm(Remove),
    /// Change the virtual size of a volume
    #[command(after_help = "Examples:\n  cowshed volume resize disk --size 20G\n  \
        cowshed volume resize disk --size 5G --shrink")]
    Resize(Resize),
    /// Rename a volume
    Rename(Rename),
    /// Take a read-only snapshot of a volume
    Snapshot(SnapshotOf),
    /// Create a writable volume from a snapshot
    #[command(
        after_help = "A clone has the identifiers of what is in it. To mount a cloned XFS \
        beside its source, use `mount -o nouuid`, or give it a UUID of its own first with \
        `xfs_admin -U generate DEVICE`. A cloned btrfs needs `btrfstune -u DEVICE`, a cloned \
        volume group `vgimportclone DEVICE`."
    )]
    Clone(CloneOf),
    /// Restore a volume to one of its snapshots
    Rollback(Rollback),
    /// List all volumes and snapshots
    Ls(List),
    /// Show one volume
    Show(One),
    /// List the ranges in which two volumes differ
    Diff(Pair),
    /// Create a volume from a file
    #[command(after_help = "Examples:\n  cowshed volume import disk ./disk.raw\n  \
        zstdcat disk.raw.zst | cowshed volume import disk -\n  \
        qemu-img convert -O raw disk.qcow2 disk.raw && cowshed volume import disk disk.raw")]
    Import(Import),
    /// Write a volume to a file
    #[command(after_help = "Examples:\n  cowshed volume export disk ./disk.raw\n  \
        cowshed volume export disk - | zstd > disk.raw.zst")]
    Export(Export),
    /// Write a snapshot, or what changed since another one, as a stream to the standard output
    #[command(after_help = "Examples:\n  \
        cowshed volume send disk@1 | ssh host cowshed volume receive disk@1\n  \
        cowshed volume send disk@2 --from disk@1 | ssh host cowshed volume receive disk@2\n  \
        cowshed volume send -R disk | ssh host cowshed volume receive backup/\n  \
        cowshed volume send -R | ssh host cowshed volume receive -\n\n\
        docs/stream.md specifies the stream.")]
    Send(Send),
    /// Make a snapshot, or a set, of a stream on the standard input
    #[command(
        after_help = "What is received appears under its name once all of the stream was \
        verified. What an interrupted receive has is kept:\n  \
        token=$(ssh host cowshed volume receive disk@1 --token)\n  \
        cowshed volume send --resume $token | ssh host cowshed volume receive disk@1"
    )]
    Receive(Receive),
    /// Keep the place of a snapshot as a base for sending, without its blocks
    Bookmark(Bookmark),
    /// Keep a volume from being removed
    Hold(HoldOf),
    /// End a hold
    Release(HoldOf),
}

/// The option to look at one side of a mirror alone.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OneSide {
    /// Show what the side at --pool has, for reading, whatever the other sides of the mirror have
    #[arg(long)]
    pub this_side: bool,
}

/// `cowshed volume ls`
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub side: OneSide,
}

impl VolumeCommand {
    /// Returns true if it is about one side of a mirror alone.
    pub(crate) const fn is_of_one_side(&self) -> bool {
        match self {
            Self::Ls(List { side }) | Self::Export(Export { side, .. }) => side.this_side,
            _ => false,
        }
    }
}

/// A name and a size.
#[derive(Debug, Args)]
pub(crate) struct NameAndSize {
    /// The volume
    pub name: String,
    /// Its virtual size: 4096, 64K, 10G, 1T
    #[arg(long)]
    pub size: Size,
}

/// `cowshed volume rm`
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The volumes, by name or id
    #[arg(required = true, value_name = "VOL")]
    pub names: Vec<String>,
}

/// `cowshed volume resize`
#[derive(Debug, Args)]
pub(crate) struct Resize {
    /// The volume
    pub name: String,
    /// Its new virtual size: 64K, 10G, 1T, or at least 1048576 without a unit
    #[arg(long)]
    pub size: NewSize,
    /// Make it smaller, and give up what lies beyond the new end
    #[arg(long)]
    pub shrink: bool,
}

/// `cowshed volume rename`
#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// The volume
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// Its new name
    pub name: String,
}

/// `cowshed volume snapshot`
#[derive(Debug, Args)]
pub(crate) struct SnapshotOf {
    /// The volume
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// The snapshot's name
    pub name: String,
}

/// `cowshed volume clone`
#[derive(Debug, Args)]
pub(crate) struct CloneOf {
    /// The snapshot
    #[arg(value_name = "SNAP")]
    pub snapshot: String,
    /// The new volume's name
    pub name: String,
}

/// `cowshed volume rollback`
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The volume
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// The snapshot to go back to
    #[arg(value_name = "SNAP")]
    pub snapshot: String,
}

/// One volume.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// The volume, by name or id
    #[arg(value_name = "VOL")]
    pub volume: String,
}

/// Two volumes.
#[derive(Debug, Args)]
pub(crate) struct Pair {
    /// The one volume
    pub a: String,
    /// The other; the kinds listed are what this one holds
    pub b: String,
}

/// `cowshed volume import`
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The new volume's name
    pub name: String,
    /// The file, or - for the standard input
    #[arg(value_parser = place::file())]
    pub file: FileOrPipe,
    /// Take the bytes as they are, also those of a qcow2 or compressed file
    #[arg(long)]
    pub raw: bool,
}

/// `cowshed volume export`
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The volume, by name or id
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// The file, or - for the standard output
    #[arg(value_parser = place::file())]
    pub file: FileOrPipe,
    /// Leave a hole for each range that cannot be read, list these ranges, and end with 3
    #[arg(long)]
    pub skip_damaged: bool,
    #[command(flatten)]
    pub side: OneSide,
}

/// `cowshed volume send`
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// The snapshot, by name or id; with -R several, also volumes [default with -R: all of the pool]
    #[arg(value_name = "SNAP", required_unless_present_any = ["resume", "forest"])]
    pub volumes: Vec<String>,
    /// Send a set: also what SNAP descends from, what descends from it, and their images and
    /// containers
    #[arg(short = 'R', long = "forest")]
    pub forest: bool,
    /// Send only what differs from this snapshot or bookmark, which the receiver has
    #[arg(long, value_name = "SNAP|BOOKMARK")]
    pub from: Option<String>,
    /// The options of the stream.
    #[command(flatten)]
    pub options: SendOptions,
}

/// `cowshed volume receive`
#[derive(Debug, Args)]
pub(crate) struct Receive {
    /// The new snapshot's name; for a set, a prefix for the names of what is received, or - for none
    pub name: String,
    /// The options that replace receiving.
    #[command(flatten)]
    pub step: ReceiveStep,
}

/// `cowshed volume bookmark`
#[derive(Debug, Args)]
pub(crate) struct Bookmark {
    /// The snapshot, by name or id
    #[arg(value_name = "SNAP")]
    pub snapshot: String,
    /// The bookmark's name
    pub name: String,
}

/// `cowshed volume hold` and `cowshed volume release`
#[derive(Debug, Args)]
pub(crate) struct HoldOf {
    /// The volume, by name or id
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// The name of whoever holds it
    pub tag: String,
}

impl From<VolumeCommand> for request::Command {
    fn from(arguments: VolumeCommand) -> Self {
        match arguments {
            VolumeCommand::Create(NameAndSize { name, size }) => Self::Create {
                name,
                size_bytes: size.0,
            },
            VolumeCommand::Rm(Remove { names }) => Self::Remove { volumes: names },
            VolumeCommand::Resize(Resize { name, size, shrink }) => Self::Resize(request::Resize {
                volume: name,
                size_bytes: size.0,
                shrink,
            }),
            VolumeCommand::Rename(Rename { volume, name }) => Self::Rename { volume, name },
            VolumeCommand::Snapshot(SnapshotOf { volume, name }) => Self::Snapshot { volume, name },
            VolumeCommand::Clone(CloneOf { snapshot, name }) => Self::Clone { snapshot, name },
            VolumeCommand::Rollback(Rollback { volume, snapshot }) => {
                Self::Rollback { volume, snapshot }
            }
            VolumeCommand::Ls(List { .. }) => Self::List,
            VolumeCommand::Show(One { volume }) => Self::Show { volume },
            VolumeCommand::Diff(Pair { a, b }) => Self::Diff { a, b },
            VolumeCommand::Import(Import { name, file, raw }) => Self::Import(request::Import {
                name,
                source: file,
                raw,
            }),
            VolumeCommand::Export(export) => Self::Export {
                volume: export.volume,
                target: export.file,
                skip_damaged: export.skip_damaged,
            },
            VolumeCommand::Send(send) => Self::Send(request::Send {
                volumes: send.volumes,
                forest: send.forest,
                options: send.options.with_base(send.from),
            }),
            VolumeCommand::Receive(Receive { name, step }) => Self::Receive(step.of(name)),
            VolumeCommand::Bookmark(Bookmark { snapshot, name }) => {
                Self::Bookmark { snapshot, name }
            }
            VolumeCommand::Hold(HoldOf { volume, tag }) => Self::Hold { volume, tag },
            VolumeCommand::Release(HoldOf { volume, tag }) => Self::Release { volume, tag },
        }
    }
}
