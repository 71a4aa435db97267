//! cowshed: a volume, attached as a loop device by its daemon.

use super::{Peer, Place, Subject};
use crate::fio::Target;
use crate::host::Ran;
use crate::service::{Build, Service};
use std::path::PathBuf;
use std::process::Command;

const VOLUME: &str = "disk";
/// Makes the daemon bypass the host's page cache.
pub(super) const DIRECT: &str = "--direct";

pub(crate) struct Cowshed {
    name: String,
    build: Build,
}

impl Cowshed {
    pub(crate) fn new(name: &str, build: Build) -> Self {
        Self {
            name: name.to_owned(),
            build,
        }
    }
}

impl Peer for Cowshed {
    fn name(&self) -> &str {
        &self.name
    }

    fn what(&self) -> String {
        let is_direct = self.build.options.iter().any(|option| option == DIRECT);
        let how = if is_direct { "past" } else { "through" };
        self.build.described(&format!(
            "a volume of a pool in a file, {how} the host's page cache, attached as a loop device"
        ))
    }

    fn missing(&self) -> Option<String> {
        self.build.missing()
    }

    fn has_snapshots(&self) -> bool {
        true
    }

    fn prepare(&self, place: &Place) -> anyhow::Result<Box<dyn Subject>> {
        let folder = place.folder.join(place.name);
        let service = Service::open(&self.build, folder, place.size_bytes)?;
        let size = place.size_bytes.to_string();
        service.run(["volume", "create", VOLUME, "--size", &size])?;
        let device = service.run(["attach", VOLUME, "--as", "loop"])?.output;
        Ok(Box::new(Volume {
            target: Target::Device(PathBuf::from(device.trim())),
            service,
        }))
    }
}

struct Volume {
    target: Target,
    service: Service,
}

impl Subject for Volume {
    fn target(&self) -> &Target {
        &self.target
    }

    fn snapshot(&mut self, name: &str) -> anyhow::Result<Ran> {
        self.service.run(["volume", "snapshot", VOLUME, name])
    }

    fn remove_snapshot(&mut self, name: &str) -> anyhow::Result<Ran> {
        self.service.run(["volume", "rm", name])
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        self.service.settle()
    }

    fn host_bytes(&self) -> anyhow::Result<u64> {
        self.service.host_bytes()
    }

    fn checkpoint(&self) -> Option<Command> {
        Some(self.service.command(["pool", "checkpoint"]))
    }
}
