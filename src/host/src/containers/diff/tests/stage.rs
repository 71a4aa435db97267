//! A host with a pool in memory; images and containers created as needed.

use crate::mounts::ext4::{self, InVolume};
use crate::record::RootKind;
use crate::{Comparison, CreateContainer, Host, ImportOptions, record};
use cowshed_engine::{CreateOptions, OpenOptions, Pool, Volume};
use cowshed_ext4diff::{ChangedInodes, FileSystem, Inode, ROOT_INODE, Sides, TreeChanges};
use cowshed_format::base::Name;
use cowshed_format::device::MemoryDevice;
use cowshed_oci::SourceInput;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

pub(super) struct Stage {
    pub(super) host: Host,
    pub(super) pool: Pool,
    folder: tempfile::TempDir,
}

impl Stage {
    pub(super) fn new() -> Self {
        let device = Arc::new(MemoryDevice::new(16 << 30));
        Pool::create(device.as_ref(), &CreateOptions::default()).unwrap();
        let pool = Pool::open(device, &OpenOptions::default()).unwrap();
        let folder = tempfile::Builder::new()
            .prefix("cowshed-")
            .tempdir()
            .unwrap();
        let host = Host::new(pool.clone(), &folder.path().join("state")).unwrap();
        Self { host, pool, folder }
    }

    /// Makes an image from the files that `fill` puts into an empty folder.
    pub(super) fn image(&self, name: &str, fill: impl FnOnce(&Path)) {
        let content = self.folder.path().join("content");
        std::fs::create_dir(&content).unwrap();
        fill(&content);
        let tar = self.folder.path().join("content.tar");
        let options = "--format=pax --xattrs --xattrs-include=* --sparse --numeric-owner";
        shell(&content, &format!("tar {options} -cf ../content.tar ."));
        let image = self
            .host
            .images()
            .open(SourceInput::Path(tar), None)
            .unwrap();
        let options = ImportOptions {
            name: Some(Name::new(name).unwrap()),
            file_system_bytes: Some(1 << 30),
            ..ImportOptions::default()
        };
        self.host
            .images()
            .import(&image, &options, &mut |_| true)
            .unwrap();
        std::fs::remove_dir_all(&content).unwrap();
    }

    pub(super) fn container(&self, image: &str, name: &str) -> PathBuf {
        self.container_of_size(image, name, None)
    }

    /// Returns a mounted container with this kind of root.
    pub(super) fn container_with(&self, image: &str, name: &str, root: RootKind) -> PathBuf {
        let options = CreateContainer {
            name: Some(Name::new(name).unwrap()),
            root,
            ..Default::default()
        };
        self.host.containers().create(image, &options).unwrap();
        self.host.containers().mount(name, None).unwrap().path
    }

    /// Returns a mounted container; a size below its image's becomes the image's.
    pub(super) fn container_of_size(
        &self,
        image: &str,
        name: &str,
        size_bytes: Option<u64>,
    ) -> PathBuf {
        let mut options = CreateContainer {
            name: Some(Name::new(name).unwrap()),
            size_bytes,
            ..Default::default()
        };
        if self.host.containers().create(image, &options).is_err() {
            options.size_bytes = None;
            self.host.containers().create(image, &options).unwrap();
        }
        self.host.containers().mount(name, None).unwrap().path
    }

    /// Returns the container's changes, on which both ways of comparing must agree.
    pub(super) fn compare(&self, name: &str, what: &str) -> TreeChanges {
        let record = record::find_container(&self.pool, name).unwrap();
        let lock = self.host.containers().locks.of(&record.id);
        let _held = lock.lock();
        let mut instant = self.host.containers().instant(&record).unwrap();
        let found = {
            let (base, now) = instant.volumes();
            let inodes = self.with_sides(base, now, |sides| ChangedInodes::between(sides).unwrap());
            assert_eq!(inodes.found_by_content, 0, "{what}: found by content");
            let indexes = self.host.layers().indexes();
            ext4::changes(&self.pool, base, now, indexes).unwrap_or_else(|e| panic!("{what}: {e}"))
        };
        let expected = instant.changes_by_trees().unwrap();
        for (path, change) in &expected {
            assert_eq!(found.get(path), Some(change), "{what}: {path:?}");
        }
        for (path, change) in &found {
            assert_eq!(expected.get(path), Some(change), "{what}: {path:?}");
        }
        found
    }

    /// Commits the container by blocks and by trees: the layers must be the same byte for byte.
    pub(super) fn commit_both_ways(&self, container: &str, image: &str) {
        let commit = |name: &str| {
            let name = Name::new(name).unwrap();
            self.host
                .containers()
                .commit(container, &name, None)
                .unwrap()
        };
        let by_blocks = commit(image);
        self.host.layers().set_comparison(Comparison::Trees);
        let by_trees = commit("again:1");
        self.host.layers().set_comparison(Comparison::Blocks);
        let diff_id = |image: &crate::ImportedImage| image.layers.last().map(|layer| layer.diff_id);
        assert_eq!(diff_id(&by_blocks), diff_id(&by_trees));
    }

    /// Returns the volumes of a container's image and of the container itself.
    pub(super) fn volumes_of(&self, container: &str) -> (Volume, Volume) {
        let record = record::find_container(&self.pool, container).unwrap();
        let image = self.host.containers().image_of(&record).unwrap();
        let base = self
            .host
            .images()
            .layer(image.layers.last().unwrap().chain_id)
            .unwrap();
        (base, record.volume(&self.pool).unwrap())
    }

    /// Runs `work` with both file systems.
    pub(super) fn with_sides<T>(
        &self,
        base: &Volume,
        now: &Volume,
        work: impl FnOnce(&Sides<'_>) -> T,
    ) -> T {
        let differing = ext4::differing(&self.pool, base, now).unwrap();
        work(&Sides::open(&InVolume(base), &InVolume(now), &differing).unwrap())
    }

    /// Returns the inode at a path.
    pub(super) fn inode_of(&self, reader: &FileSystem<'_>, path: &[&str]) -> Inode {
        let mut inode = reader.inode(ROOT_INODE).unwrap();
        for name in path {
            let found = reader.listing(&inode).unwrap()[name.as_bytes()];
            inode = reader.live_inode(found).unwrap();
        }
        inode
    }
}

/// Runs a shell command, which must succeed.
pub(super) fn shell(folder: &Path, script: &str) {
    let done = Command::new("bash")
        .args(["-euc", script])
        .current_dir(folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{script}: {said}");
}
