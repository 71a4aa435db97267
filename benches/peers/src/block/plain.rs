//! A loop device on a plain file, with nothing in between: the limit.

use super::{Peer, Place, Subject};
use crate::fio::Target;
use crate::guards::{Folder, LoopDevice};
use crate::host;
use std::fs::File;
use std::path::PathBuf;

pub(crate) struct Plain {
    direct: bool,
}

impl Plain {
    pub(crate) fn direct() -> Self {
        Self { direct: true }
    }

    pub(crate) fn buffered() -> Self {
        Self { direct: false }
    }
}

impl Peer for Plain {
    fn name(&self) -> &str {
        if self.direct {
            "plain file"
        } else {
            "plain file (cached)"
        }
    }

    fn what(&self) -> String {
        let how = if self.direct {
            "past the host's page cache"
        } else {
            "through the host's page cache"
        };
        format!("a loop device on a plain file, {how}; no snapshots: the limit")
    }

    fn missing(&self) -> Option<String> {
        host::missing_programs(&[("losetup", "mount")])
    }

    fn prepare(&self, place: &Place) -> anyhow::Result<Box<dyn Subject>> {
        let folder = Folder::at(place.folder.join(place.name))?;
        let file = folder.join("disk");
        File::create(&file)?.set_len(place.size_bytes)?;
        let device = LoopDevice::attach(&file, self.direct)?;
        Ok(Box::new(Disk {
            target: Target::Device(device.path().to_owned()),
            _device: device,
            file,
            _folder: folder,
        }))
    }
}

struct Disk {
    target: Target,
    _device: LoopDevice,
    file: PathBuf,
    _folder: Folder,
}

impl Subject for Disk {
    fn target(&self) -> &Target {
        &self.target
    }

    fn host_bytes(&self) -> anyhow::Result<u64> {
        host::allocated_bytes(&self.file)
    }
}
