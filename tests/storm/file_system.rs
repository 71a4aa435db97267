//! The file systems: creating, mounting and checking one.

use crate::harness::{clear_mounts, host};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// Creates it on a device.
    pub(crate) fn make(self, device: &Path) {
        let device = device.to_str().unwrap();
        match self {
            Self::Ext4 => {
                let eager = "lazy_itable_init=0,lazy_journal_init=0";
                host("mkfs.ext4", ["-q", "-E", eager, device])
            }
            Self::Xfs => host("mkfs.xfs", ["-q", "-f", device]),
        };
    }

    /// Mounts it, which replays its journal; with discard, so that removed data is trimmed.
    pub(crate) fn mount(self, device: &Path, at: &Path) -> Mounted {
        fs::create_dir_all(at).unwrap();
        let paths = [device.to_str().unwrap(), at.to_str().unwrap()];
        host(
            "mount",
            ["-t", self.name(), "-o", "discard", paths[0], paths[1]],
        );
        Mounted {
            at: Some(at.to_owned()),
        }
    }

    /// Asserts that the checker of this file system finds nothing, and writes nothing.
    pub(crate) fn expect_clean(self, device: &Path) {
        let mut check = match self {
            Self::Ext4 => Command::new("e2fsck"),
            Self::Xfs => Command::new("xfs_repair"),
        };
        if self == Self::Ext4 {
            check.arg("-f");
        }
        let output = check.arg("-n").arg(device).output().unwrap();
        assert!(
            output.status.success(),
            "{check:?} found faults: {output:?}"
        );
    }
}

/// A mounted file system, unmounted when dropped.
pub(crate) struct Mounted {
    at: Option<PathBuf>,
}

impl Mounted {
    pub(crate) fn unmount(mut self) {
        let at = self.at.take().unwrap();
        let output = Command::new("umount").arg(&at).output().unwrap();
        if !output.status.success() {
            self.at = Some(at);
            panic!("umount: {output:?}");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Some(at) = &self.at else {
            return;
        };
        // In order if possible, so that its device is free at once.
        let _ = Command::new("umount").arg(at).output();
        clear_mounts(at);
    }
}
