//! A file on a file system that can share blocks between files, with a loop device on it; a
//! snapshot is a reflink copy.

use super::{Peer, Place, Subject};
use crate::area::{Area, Kind};
use crate::fio::Target;
use crate::guards::LoopDevice;
use crate::host::{self, Ran, run, text};
use std::fs::File;
use std::path::PathBuf;

pub(crate) struct Reflink(Kind);

impl Reflink {
    pub(crate) fn xfs() -> Self {
        Self(Kind::Xfs)
    }

    pub(crate) fn btrfs() -> Self {
        Self(Kind::Btrfs)
    }
}

impl Peer for Reflink {
    fn name(&self) -> &str {
        match self.0 {
            Kind::Xfs => "XFS reflink",
            Kind::Btrfs => "btrfs",
        }
    }

    fn what(&self) -> String {
        let kind = match self.0 {
            Kind::Xfs => "XFS",
            Kind::Btrfs => "btrfs (every write copies, with checksums)",
        };
        format!(
            "a loop device on a file on {kind}, itself on a loop device on a file of the backing, \
            all past the host's page cache; snapshots are reflink copies of the file"
        )
    }

    fn missing(&self) -> Option<String> {
        host::missing_programs(&[("losetup", "mount"), ("fstrim", "util-linux")])
            .or_else(|| self.0.missing())
    }

    fn has_snapshots(&self) -> bool {
        true
    }

    fn prepare(&self, place: &Place) -> anyhow::Result<Box<dyn Subject>> {
        let area = Area::new(self.0, place.folder.join(place.name), place.size_bytes)?;
        let file = area.path().join("disk");
        File::create(&file)?.set_len(place.size_bytes)?;
        let device = LoopDevice::attach(&file, true)?;
        Ok(Box::new(Shared {
            target: Target::Device(device.path().to_owned()),
            _device: device,
            file,
            area,
        }))
    }
}

struct Shared {
    target: Target,
    _device: LoopDevice,
    file: PathBuf,
    area: Area,
}

impl Shared {
    fn copy(&self, name: &str) -> PathBuf {
        self.area.path().join(format!("snapshot-{name}"))
    }
}

impl Subject for Shared {
    fn target(&self) -> &Target {
        &self.target
    }

    fn snapshot(&mut self, name: &str) -> anyhow::Result<Ran> {
        let (from, to) = (text(&self.file)?, self.copy(name));
        run("cp", ["--reflink=always", from, text(&to)?])
    }

    fn remove_snapshot(&mut self, name: &str) -> anyhow::Result<Ran> {
        run("rm", [self.copy(name)])
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        self.area.settle()
    }

    fn host_bytes(&self) -> anyhow::Result<u64> {
        self.area.host_bytes()
    }
}
