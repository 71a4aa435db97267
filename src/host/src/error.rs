//! The errors of operations on images and containers, kept distinct up to the command line.

use cowshed_export as export;
use cowshed_ext4diff::TreeError;
use cowshed_format::base;
use cowshed_oci as oci;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why an operation on images or containers was refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The pool refused an operation or failed.
    #[error(transparent)]
    Pool(#[from] base::Error),
    /// The image input is wrong, or a layer could not be applied or written.
    #[error(transparent)]
    Oci(#[from] oci::Error),
    /// A text cannot be the name of an image.
    #[error(transparent)]
    Name(#[from] oci::InvalidReference),
    /// A volume could not be shown as a file or a loop device.
    #[error(transparent)]
    Export(#[from] export::ExportError),
    /// The host failed.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The object of the action.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// A program of the host is missing.
    #[error("{program} is not installed; install the package {package}")]
    NoProgram {
        /// The program.
        program: &'static str,
        /// The package that usually holds it.
        package: &'static str,
    },
    /// A program of the host failed.
    #[error("{program} failed ({status}): {message}")]
    Program {
        /// The program.
        program: &'static str,
        /// The program's exit status.
        status: std::process::ExitStatus,
        /// The last line that it wrote to its error output.
        message: Box<str>,
    },
    /// No object has this name or id.
    #[error("there is no {kind} {name}")]
    NotFound {
        /// The kind of object that was looked for.
        kind: Kind,
        /// The name or id that was given.
        name: Box<str>,
    },
    /// A short id matches several objects.
    #[error("the id {prefix} matches more than one {kind}; give more of its digits")]
    Ambiguous {
        /// The kind of object that was looked for.
        kind: Kind,
        /// The short id that was given.
        prefix: Box<str>,
    },
    /// The name belongs to another container.
    #[error("the container {0} already exists; choose another name or remove it")]
    ContainerExists(base::Name),
    /// Containers still use the image.
    #[error("the image {image} is in use by {containers}; remove them first")]
    ImageInUse {
        /// The image's name as the caller gave it.
        image: Box<str>,
        /// The names of the containers.
        containers: Names,
    },
    /// The image has no layer to make a container of.
    #[error("the image {0} has no layers, and so no root for a container")]
    EmptyImage(Box<str>),
    /// The container is mounted at another path.
    #[error("the container {container} is already mounted at {path}; unmount it first", path = path.display())]
    MountedElsewhere {
        /// The container's name.
        container: Box<str>,
        /// The present mount point.
        path: PathBuf,
    },
    /// The container is not mounted.
    #[error("the container {0} is not mounted")]
    NotMounted(Box<str>),
    /// This kind of file system cannot be quiesced.
    #[error(
        "the file system at {path} cannot be frozen while it is mounted; unmount it, then take the snapshot", path = path.display()
    )]
    CannotHold {
        /// The mount point.
        path: PathBuf,
    },
    /// The file system also uses other devices.
    #[error(
        "the file system at {path} uses {others} in addition to this volume, and a snapshot of one of them alone is inconsistent; freeze it (fsfreeze --freeze {path}), take a snapshot of each, and thaw it, or unmount it first", path = path.display()
    )]
    OnOthersToo {
        /// The mount point.
        path: PathBuf,
        /// The other devices.
        others: Names,
    },
    /// Another process thaws the file system whenever it is quiesced.
    #[error(
        "another process thawed the file system on the volume {0} during each attempt to take a snapshot; stop that process, then try again"
    )]
    ThawedMeanwhile(base::Name),
    /// A file in the mounted file system is open.
    #[error("{path} is in use by a process; end it, then try again", path = path.display())]
    MountBusy {
        /// The mount point.
        path: PathBuf,
    },
    /// The requested size is smaller than the image's file system.
    #[error("the size must be at least {min_bytes} bytes, the size of the image's file system")]
    TooSmall {
        /// The minimum size.
        min_bytes: u64,
    },
    /// A record in the pool cannot be understood.
    #[error("the record of the {kind} {key} in the pool is unreadable: {fault}")]
    Record {
        /// The kind of the record's object.
        kind: Kind,
        /// Its key.
        key: Box<str>,
        /// The fault of the record.
        fault: RecordFault,
    },
    /// The file's name cannot be stored in a layer.
    #[error("{path} cannot be stored in an image layer, whose names must not start with .wh.; rename it", path = path.display())]
    ReservedName {
        /// The file, relative to the container's root.
        path: PathBuf,
    },
    /// The text is not a valid name of a data volume.
    #[error(
        "{0:?} is not a valid name of a data volume; use 1 to 250 letters, digits and . _ -, the first one a letter or digit"
    )]
    DataVolumeName(Box<str>),
    /// Another data volume has this name, or this one was made with other options.
    #[error("the data volume {0} already exists; choose another name or remove it")]
    DataVolumeExists(Box<str>),
    /// Somebody has the data volume mounted.
    #[error("the data volume {name} has {users} users; stop them first")]
    DataVolumeInUse {
        /// The data volume.
        name: Box<str>,
        /// Number of its users.
        users: usize,
    },
    /// The text cannot name a user of a data volume.
    #[error("cannot mount the data volume {name}: {why}")]
    DataVolumeUser {
        /// The data volume.
        name: Box<str>,
        /// The reason.
        why: &'static str,
    },
    /// The volume cannot be mounted.
    #[error("{0} holds no ext4 file system with blocks of 4096 bytes; create one in it first")]
    NoFileSystem(base::Name),
    /// A write to the volume was refused.
    #[error(
        "{0} does not hold all that was written to it, because a write failed or found no space in the pool; free some space, remove {0}, and create it again"
    )]
    Incomplete(base::Name),
    /// The file system in a volume is full, though the pool is not.
    #[error("the volume's file system of {size_bytes} bytes has no {what} left; {why}")]
    FileSystemFull {
        /// The resource that it lacks.
        what: Shortage,
        /// The size of the file system.
        size_bytes: u64,
        /// The reason why it cannot grow, and the remedy.
        why: Box<str>,
    },
    /// The pool is not at its limit, but its host has no space.
    #[error("the host's file system that holds the pool is full; free some space there")]
    HostFull,
    /// Copying needs exactly one container.
    #[error("exactly one side of a copy must be CONTAINER:PATH")]
    CopySides,
    /// A folder cannot replace a file.
    #[error("{path} is not a directory", path = path.display())]
    NotADirectory {
        /// The copy's target.
        path: PathBuf,
    },
    /// The target of a copy is neither a directory nor a file.
    #[error(
        "{path} is {what} and is not replaced; the target of a copy must be a directory or a regular file",
        path = path.display()
    )]
    CopyTarget {
        /// The target.
        path: PathBuf,
        /// The kind of the target.
        what: &'static str,
    },
    /// The source of a copy cannot be copied.
    #[error("{path} is a socket, which cannot be copied", path = path.display())]
    CopySocket {
        /// The copy's source.
        path: PathBuf,
    },
    /// The image's configuration cannot be extended.
    #[error("the image's configuration is not valid: {0}")]
    Config(&'static str),
    /// A stream was not sent or not received.
    #[error(transparent)]
    Stream(#[from] cowshed_stream::Error),
    /// Only this host, or a command that runs, has a use for the volume.
    #[error("{0} is not sent, because it is of no use in another pool")]
    NotSent(base::Name),
    /// Nothing that is to be sent stands on what the receiver is said to have.
    #[error("nothing that is to be sent is based on {0}; send it whole")]
    NothingInCommon(Box<str>),
    /// The records or members of a stream break a rule.
    #[error("the stream was not made by a sound pool: {0}")]
    SetFault(&'static str),
    /// The name would be one that is reserved.
    #[error("the name {0} is reserved; receive with another prefix")]
    ReservedVolume(base::Name),
    /// The operation was undone completely because the caller asked to stop.
    #[error("interrupted")]
    Cancelled,
}

/// A resource that a file system lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// Space for content.
    #[error("free blocks")]
    Blocks,
    /// Inodes for further files, however small.
    #[error("free inodes (it holds too many files)")]
    Inodes,
}

impl From<TreeError> for Error {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Io {
                action,
                path,
                source,
            } => Self::Io {
                action,
                path,
                source,
            },
            TreeError::Cancelled(cancelled) => cancelled.into(),
        }
    }
}

impl From<base::Cancelled> for Error {
    fn from(_: base::Cancelled) -> Self {
        Self::Cancelled
    }
}

/// The kind of object that a name or id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An image.
    Image,
    /// A container.
    Container,
    /// A layer of an image.
    Layer,
    /// A name of an image.
    Reference,
    /// A data volume.
    DataVolume,
}

/// The fault of a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordFault {
    /// It is not valid JSON of the expected form.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A newer cowshed wrote it.
    #[error("it has version {0}, which this cowshed does not know")]
    Version(u32),
    /// It contradicts itself or the pool.
    #[error("{0}")]
    Contradiction(&'static str),
}

/// A list of names, shown with commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Image => "image",
            Self::Container => "container",
            Self::Layer => "layer",
            Self::Reference => "image name",
            Self::DataVolume => "data volume",
        })
    }
}

impl fmt::Display for Names {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            write!(out, "{}{name}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Error {
    /// Returns a closure that makes an `Io` error about `action` on `path`, for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// Returns the error that no object has this name.
    pub(crate) fn not_found(kind: Kind, name: &str) -> Self {
        Self::NotFound {
            kind,
            name: name.into(),
        }
    }

    /// Returns true if a volume cannot be shown because it is shown in another way.
    #[must_use]
    pub const fn is_shown_otherwise(&self) -> bool {
        matches!(self, Self::Export(export::ExportError::Attached { .. }))
    }

    /// Returns true if the work was cancelled and did not fail.
    #[must_use]
    pub const fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Cancelled
                | Self::Oci(oci::Error::Cancelled(_))
                | Self::Pool(base::Error::Cancelled(_))
        )
    }

    /// Returns true if there is no space in the pool, on its host, or in a volume's file system.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Pool(base::Error::NoSpace) | Self::HostFull | Self::FileSystemFull { .. } => true,
            _ => self.raw_os_error() == Some(libc::ENOSPC),
        }
    }

    /// Returns the host's errno behind this error, if there is one.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            Self::Oci(error) => error.raw_os_error(),
            _ => None,
        }
    }
}
