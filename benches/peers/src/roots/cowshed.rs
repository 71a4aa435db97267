//! cowshed: images and containers of a pool.

use super::{Peer, Roots};
use crate::service::{Build, Service};
use anyhow::Context;
use std::path::{Path, PathBuf};

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
        self.build
            .described("containers of a pool in a file, by the command line")
    }

    fn missing(&self) -> Option<String> {
        self.build.missing()
    }

    fn open(&self, folder: PathBuf, bytes: u64) -> anyhow::Result<Box<dyn Roots>> {
        let service = Service::open(&self.build, folder, bytes)?;
        Ok(Box::new(Containers {
            service,
            committed: 0,
        }))
    }
}

struct Containers {
    service: Service,
    committed: u32,
}

impl Roots for Containers {
    fn unpack(&mut self, image: &str, tar: &Path) -> anyhow::Result<()> {
        let tar = crate::host::text(tar)?;
        self.service
            .run(["image", "import", tar, "--name", image])?;
        Ok(())
    }

    fn create(&mut self, image: &str, root: &str) -> anyhow::Result<PathBuf> {
        let path = self
            .service
            .run(["container", "create", image, "--name", root, "--mount"])?
            .output;
        Ok(PathBuf::from(path.trim()))
    }

    fn remove(&mut self, root: &str) -> anyhow::Result<()> {
        self.service.run(["container", "rm", root])?;
        Ok(())
    }

    fn changes(&mut self, _image: &str, root: &str) -> anyhow::Result<Vec<PathBuf>> {
        let output = self.service.run(["container", "diff", root])?.output;
        output
            .lines()
            .map(|line| {
                let path = line.get(2..).context("read a line of the diff")?;
                Ok(PathBuf::from(path.trim_start_matches('/')))
            })
            .collect()
    }

    fn commit(&mut self, root: &str, _changed: &[PathBuf]) -> anyhow::Result<()> {
        self.committed += 1;
        let image = format!("committed{}", self.committed);
        self.service.run(["container", "commit", root, &image])?;
        Ok(())
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        self.service.settle()
    }

    fn host_bytes(&self) -> anyhow::Result<u64> {
        self.service.host_bytes()
    }
}
