//! A file system in a sparse file of the backing, for peers that need a certain kind.

use crate::guards::{Folder, LoopDevice, Mounted};
use crate::host::{self, run, text};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Xfs,
    Btrfs,
}

const PAUSE: Duration = Duration::from_millis(200);
/// XFS has this minimum size, and all of them need space to copy.
const BYTES_MIN: u64 = 1 << 30;

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Xfs => "xfsprogs",
            Self::Btrfs => "btrfs-progs",
        }
    }

    /// Returns the reason why this kind is unavailable here.
    pub(crate) fn missing(self) -> Option<String> {
        let program = format!("mkfs.{}", self.name());
        host::missing_programs(&[(&program, self.package())])
            .or_else(|| host::missing_file_system(self.name()))
    }
}

/// The mounted file system. The mount is dropped first, then its device, then its file.
pub(crate) struct Area {
    mounted: Mounted,
    _device: LoopDevice,
    file: PathBuf,
    _folder: Folder,
}

impl Area {
    /// Creates one for `bytes` of data in a new folder.
    pub(crate) fn new(kind: Kind, folder: PathBuf, bytes: u64) -> anyhow::Result<Self> {
        let folder = Folder::at(folder)?;
        let file = folder.join(kind.name());
        File::create(&file)?.set_len(bytes * 3 + BYTES_MIN)?;
        let device = LoopDevice::attach(&file, true)?;
        let options: &[&str] = match kind {
            Kind::Xfs => &["-q", "-m", "reflink=1"],
            Kind::Btrfs => &["-q"],
        };
        let program = format!("mkfs.{}", kind.name());
        run(program, options.iter().chain(&[text(device.path())?]))?;
        let mounted = Mounted::new(&[], device.path(), &folder.join("mount"))?;
        Ok(Self {
            mounted,
            _device: device,
            file,
            _folder: folder,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.mounted.path()
    }

    /// Writes everything back, and returns free space to the host.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        let point = text(self.path())?;
        // Removed files are freed with a delay: the second pass handles what the first one started.
        for pause in [PAUSE, Duration::ZERO] {
            run("sync", ["--file-system", point])?;
            run("fstrim", [point])?;
            std::thread::sleep(pause);
        }
        Ok(())
    }

    /// Returns the space of the host that its file takes.
    pub(crate) fn host_bytes(&self) -> anyhow::Result<u64> {
        host::allocated_bytes(&self.file)
    }
}
