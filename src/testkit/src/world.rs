//! The environment of a test: the snapshotter, the containerd, the kind of mounts.

use crate::containerd::Containerd;
use crate::harness::{PATIENCE, eventually};
use crate::packages::Release;
use crate::service::Service;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The snapshotter of the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Snapshotter {
    Cowshed,
    /// containerd's default.
    Overlayfs,
    /// containerd's own that copies everything.
    Native,
    /// containerd's own that has a file with a file system for each snapshot; measured on XFS with
    /// reflinks.
    Blockfile,
    /// containerd's own that uses subvolumes.
    Btrfs,
}

impl Snapshotter {
    /// Returns containerd's name for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cowshed => "cowshed",
            Self::Overlayfs => "overlayfs",
            Self::Native => "native",
            Self::Blockfile => "blockfile",
            Self::Btrfs => "btrfs",
        }
    }

    /// Returns the folder of the data of one of containerd's own.
    pub fn root(self, folder: &Path) -> PathBuf {
        let name = format!("c-root/io.containerd.snapshotter.v1.{}", self.word());
        folder.join(name)
    }
}

/// The form of the mounts that cowshed gives containerd.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mounts {
    /// A folder of a file system that cowshed has mounted.
    Dir,
    /// A loop device.
    Loop,
    /// A file, for which containerd makes a loop device.
    File,
    /// An overlay of the parent.
    Overlay,
}

impl Mounts {
    pub fn word(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Loop => "loop",
            Self::File => "file",
            Self::Overlay => "overlay",
        }
    }
}

/// The settings of a test.
pub struct Setting {
    pub release: Release,
    pub snapshotter: Snapshotter,
    pub mounts: Mounts,
    /// The test's own folder.
    pub folder: PathBuf,
    pub rounds: u64,
    pub seed: u64,
}

/// A containerd with its snapshotter.
pub struct World {
    // Dropped in this order: containerd ends before the snapshotter does.
    pub containerd: Containerd,
    /// The service, if the snapshots are cowshed's.
    pub service: Option<Service>,
}

impl World {
    pub fn open(setting: &Setting) -> Self {
        let service = (setting.snapshotter == Snapshotter::Cowshed)
            .then(|| Service::open(&setting.folder, setting.mounts));
        let containerd = Containerd::start(setting);
        Self {
            containerd,
            service,
        }
    }

    /// Returns the used space of the pool; `None` for other snapshotters.
    pub fn used_bytes(&self) -> Option<u64> {
        self.service.as_ref().map(Service::used_bytes)
    }

    /// Removes every image, lease and snapshot that a client knows, and waits until the snapshotter
    /// has nothing left, including what only one of the two sides knew.
    pub fn clear(&self) {
        let ctr = &self.containerd;
        for lease in ctr.ok(["leases", "ls", "-q"]).lines() {
            ctr.ok(["leases", "rm", "--sync", lease]);
        }
        for image in ctr.ok(["images", "ls", "-q"]).lines() {
            ctr.ok(["images", "rm", "--sync", image]);
        }
        eventually("an end of all snapshots", || {
            // Only a removal makes containerd look for unreferenced objects.
            ctr.ok(["content", "prune", "references"]);
            ctr.snapshots().is_empty()
        });
        self.wait_until_empty();
    }

    /// Waits until the snapshotter has nothing of containerd's left.
    pub fn wait_until_empty(&self) {
        let Some(service) = &self.service else {
            return;
        };
        let mut left = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            left = left_over(&service.json(["gc", "--explain"]));
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("nobody knows of these volumes, and they stay: {left:#?}");
    }

    /// Stops both; the pool must be sound.
    pub fn close(self) {
        self.containerd.stop();
        if let Some(service) = self.service {
            service.close();
        }
    }
}

/// Returns the explanations of `gc --explain` for volumes that are not permanent.
fn left_over(explained: &serde_json::Value) -> Vec<String> {
    let volumes = explained["volumes"].as_array().expect("a list").iter();
    let passing = volumes.filter(|volume| {
        let name = volume["name"].as_str().unwrap_or_default();
        !name.starts_with("template/")
    });
    passing.map(ToString::to_string).collect()
}
