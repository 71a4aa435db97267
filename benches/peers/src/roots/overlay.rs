//! overlayfs: an image is a folder, a root a mount of it with an upper folder.

use super::{Peer, Roots};
use crate::guards::{Folder, Mounted};
use crate::host::{self, run, text};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

pub(crate) struct Overlay;

impl Peer for Overlay {
    fn name(&self) -> &str {
        "overlayfs"
    }

    fn what(&self) -> String {
        "image folders on the backing, with upper folders for what roots change; a file is copied \
        whole at its first change"
            .into()
    }

    fn missing(&self) -> Option<String> {
        host::missing_file_system("overlay")
    }

    fn open(&self, folder: PathBuf, _bytes: u64) -> anyhow::Result<Box<dyn Roots>> {
        Ok(Box::new(Layers {
            mounted: HashMap::new(),
            committed: 0,
            folder: Folder::at(folder)?,
        }))
    }
}

/// The mounts are dropped before the folder.
struct Layers {
    mounted: HashMap<String, Mounted>,
    committed: u32,
    folder: Folder,
}

impl Layers {
    fn root(&self, root: &str, part: &str) -> PathBuf {
        self.folder.join(&format!("root-{root}")).join(part)
    }

    fn image(&self, image: &str) -> PathBuf {
        self.folder.join(&format!("image-{image}"))
    }
}

impl Roots for Layers {
    fn unpack(&mut self, image: &str, tar: &Path) -> anyhow::Result<()> {
        unpack(&self.image(image), tar)
    }

    fn create(&mut self, image: &str, root: &str) -> anyhow::Result<PathBuf> {
        let [upper, work, merged] = ["upper", "work", "merged"].map(|part| self.root(root, part));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.image(image).display(),
            upper.display(),
            work.display()
        );
        let options = ["-t", "overlay", "-o", &options];
        let mounted = Mounted::new(&options, Path::new("overlay"), &merged)?;
        self.mounted.insert(root.to_owned(), mounted);
        Ok(merged)
    }

    fn remove(&mut self, root: &str) -> anyhow::Result<()> {
        drop(self.mounted.remove(root));
        run(
            "rm",
            ["-r", "-f", "--one-file-system", text(&self.root(root, ""))?],
        )?;
        Ok(())
    }

    fn changes(&mut self, _image: &str, root: &str) -> anyhow::Result<Vec<PathBuf>> {
        let upper = self.root(root, "upper");
        let mut changed = Vec::new();
        let mut folders = vec![upper.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                let kind = entry.file_type()?;
                // A character device marks a removed entry.
                if kind.is_dir() && !kind.is_char_device() {
                    folders.push(entry.path());
                }
                changed.push(entry.path().strip_prefix(&upper)?.to_owned());
            }
        }
        Ok(changed)
    }

    fn commit(&mut self, root: &str, changed: &[PathBuf]) -> anyhow::Result<()> {
        self.committed += 1;
        let layer = self.folder.join(&format!("layer{}", self.committed));
        pack(&self.root(root, "upper"), changed, &layer)
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        run("sync", ["--file-system", text(self.folder.path())?])?;
        Ok(())
    }

    fn host_bytes(&self) -> anyhow::Result<u64> {
        // A mounted root is a separate file system, which is not counted.
        host::allocated_bytes(self.folder.path())
    }
}

/// Unpacks a tar durably into a folder, which may exist.
pub(super) fn unpack(folder: &Path, tar: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let folder = text(folder)?;
    run(
        "tar",
        ["--extract", "--file", text(tar)?, "--directory", folder],
    )?;
    run("sync", ["--file-system", folder])?;
    Ok(())
}

/// Packs the changes as a layer, durably. Removed paths are left out: their whiteouts would be
/// empty files.
pub(super) fn pack(folder: &Path, changed: &[PathBuf], layer: &Path) -> anyhow::Result<()> {
    let list = layer.with_extension("list");
    let mut names = Vec::new();
    for path in changed {
        if folder.join(path).symlink_metadata().is_ok() {
            names.extend_from_slice(path.as_os_str().as_encoded_bytes());
            names.push(0);
        }
    }
    fs::write(&list, names)?;
    let words = [
        "--create",
        "--null",
        "--no-recursion",
        "--directory",
        text(folder)?,
    ];
    let files = ["--file", text(layer)?, "--files-from", text(&list)?];
    run("tar", words.iter().chain(&files))?;
    fs::File::open(layer)?.sync_all()?;
    Ok(())
}
