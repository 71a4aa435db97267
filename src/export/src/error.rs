//! The errors of showing volumes to the kernel.

use super::holders::Holders;
use cowshed_format::base::{Error, Name};
use std::io;
use std::path::{Path, PathBuf};

/// The reason why an export refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The kernel has no FUSE.
    #[error("the kernel offers no /dev/fuse; load the module `fuse` (modprobe fuse)")]
    NoFuse,
    /// The kernel has no FUSE over io_uring.
    #[error(
        "the kernel offers no FUSE over io_uring, which came with Linux 6.14 (CONFIG_FUSE_IO_URING)"
    )]
    NoRings,
    /// The kernel has FUSE over io_uring, and it is turned off.
    #[error(
        "FUSE over io_uring is turned off in the kernel; turn it on with `echo Y >/sys/module/fuse/parameters/enable_uring`"
    )]
    RingsDisabled,
    /// A mount whose requests come over rings ends with the process that serves it.
    #[error(
        "the mount at {} is served over io_uring, and cannot be handed over to another process; stop the daemon and start it again",
        dir.display()
    )]
    NoSuccessor {
        /// The mount point.
        dir: PathBuf,
    },
    /// The kernel has no loop devices.
    #[error("the kernel offers no /dev/loop-control; load the module `loop` (modprobe loop)")]
    NoLoop,
    /// Mounts and loop devices are for root.
    #[error("mounting volumes and attaching loop devices needs root; run it as root")]
    NotRoot,
    /// The kernel lets root neither mount nor attach here.
    #[error(
        "the kernel does not let root use FUSE here, as in a container without the privilege; run it on the host, or give the container CAP_SYS_ADMIN, /dev/fuse and the loop devices (--privileged)"
    )]
    Confined,
    /// The device or directory is in use.
    #[error("{} is in use by {by}; end that use first", what.display())]
    Busy {
        /// The device or directory.
        what: PathBuf,
        /// The known users.
        by: Holders,
    },
    /// A live cowshed serves the mount point.
    #[error("{} is already served by a running cowshed", dir.display())]
    Served {
        /// The mount point.
        dir: PathBuf,
    },
    /// The volume is attached in a mode that conflicts with the requested one.
    #[error(
        "{volume} is already attached {how} as {}; detach it first",
        path.display()
    )]
    Attached {
        /// The volume.
        volume: Name,
        /// The mode of the present attachment.
        how: AttachMode,
        /// The file or device.
        path: PathBuf,
    },
    /// The volume's device has a sector size other than the requested one.
    #[error(
        "{volume} is already attached with sectors of {present} bytes as {}; detach it first",
        path.display()
    )]
    OtherSectors {
        /// The volume.
        volume: Name,
        /// The device's sector size.
        present: u32,
        /// The device.
        path: PathBuf,
    },
    /// No further volume can be attached.
    #[error("{attached} volumes are attached, which is the maximum; detach or unmount some first")]
    TooMany {
        /// Number of attached volumes.
        attached: usize,
    },
    /// The volume is not attached.
    #[error("{0} is not attached")]
    NotAttached(Name),
    /// The volume was attached by the code that mounts volumes, not by a user.
    #[error("{0} is attached for a mount that cowshed made; unmount that instead")]
    NotByHand(Name),
    /// The export was unmounted.
    #[error("the volumes are no longer mounted at {}", dir.display())]
    Unmounted {
        /// The former mount point.
        dir: PathBuf,
    },
    /// The host refused an operation.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// The action that failed, e.g. `"unmount"`.
        action: &'static str,
        /// The object of the action.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The engine refused an operation.
    #[error(transparent)]
    Pool(#[from] Error),
}

impl ExportError {
    /// Returns a closure that makes an `Io` error, for `map_err`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// The mode of an attachment, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// Readable only.
    ReadOnly,
    /// Readable and writable.
    Writable,
}

impl std::fmt::Display for AttachMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ReadOnly => "read-only",
            Self::Writable => "writable",
        })
    }
}
