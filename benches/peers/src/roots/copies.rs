//! Roots that are copies of their image: plain ones, reflinks on XFS, and subvolumes of btrfs.

use super::overlay::{pack, unpack};
use super::{Peer, Roots, compare};
use crate::area::{Area, Kind};
use crate::guards::Folder;
use crate::host::{self, run, text};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Plain,
    Reflink,
    Subvolume,
}

pub(crate) struct Copies(How);

impl Copies {
    pub(crate) fn plain() -> Self {
        Self(How::Plain)
    }

    pub(crate) fn reflink() -> Self {
        Self(How::Reflink)
    }

    pub(crate) fn btrfs() -> Self {
        Self(How::Subvolume)
    }

    fn area(&self) -> Option<Kind> {
        match self.0 {
            How::Plain => None,
            How::Reflink => Some(Kind::Xfs),
            How::Subvolume => Some(Kind::Btrfs),
        }
    }
}

impl Peer for Copies {
    fn name(&self) -> &str {
        match self.0 {
            How::Plain => "plain copy",
            How::Reflink => "reflink copy",
            How::Subvolume => "btrfs subvolume",
        }
    }

    fn what(&self) -> String {
        match self.0 {
            How::Plain => "cp --archive of the image's folder".into(),
            How::Reflink => {
                "cp --archive --reflink of the image's folder, on XFS on a loop device \
                on a file of the backing"
                    .into()
            }
            How::Subvolume => "snapshots of the image's subvolume, on btrfs on a loop device on a \
                file of the backing"
                .into(),
        }
    }

    fn missing(&self) -> Option<String> {
        let tools = (self.0 == How::Subvolume)
            .then(|| host::missing_programs(&[("btrfs", "btrfs-progs")]))
            .flatten();
        tools.or_else(|| self.area().and_then(Kind::missing))
    }

    fn open(&self, folder: PathBuf, bytes: u64) -> anyhow::Result<Box<dyn Roots>> {
        let place = match self.area() {
            None => Place::Folder(Folder::at(folder)?),
            Some(kind) => Place::Area(Area::new(kind, folder, bytes)?),
        };
        Ok(Box::new(Trees {
            how: self.0,
            committed: 0,
            place,
        }))
    }
}

enum Place {
    Folder(Folder),
    Area(Area),
}

struct Trees {
    how: How,
    committed: u32,
    place: Place,
}

impl Trees {
    fn join(&self, name: &str) -> PathBuf {
        match &self.place {
            Place::Folder(folder) => folder.path().join(name),
            Place::Area(area) => area.path().join(name),
        }
    }

    fn image(&self, image: &str) -> PathBuf {
        self.join(&format!("image-{image}"))
    }

    fn root(&self, root: &str) -> PathBuf {
        self.join(&format!("root-{root}"))
    }
}

impl Roots for Trees {
    fn unpack(&mut self, image: &str, tar: &Path) -> anyhow::Result<()> {
        let folder = self.image(image);
        if self.how == How::Subvolume {
            run("btrfs", ["--quiet", "subvolume", "create", text(&folder)?])?;
        }
        unpack(&folder, tar)
    }

    fn create(&mut self, image: &str, root: &str) -> anyhow::Result<PathBuf> {
        let (image, root) = (self.image(image), self.root(root));
        let (from, to) = (text(&image)?, text(&root)?);
        match self.how {
            How::Plain => run("cp", ["--archive", "--reflink=never", from, to])?,
            How::Reflink => run("cp", ["--archive", "--reflink=always", from, to])?,
            How::Subvolume => run("btrfs", ["--quiet", "subvolume", "snapshot", from, to])?,
        };
        Ok(root)
    }

    fn remove(&mut self, root: &str) -> anyhow::Result<()> {
        let root = self.root(root);
        match self.how {
            How::Plain | How::Reflink => run("rm", ["-r", "-f", text(&root)?])?,
            How::Subvolume => run("btrfs", ["--quiet", "subvolume", "delete", text(&root)?])?,
        };
        Ok(())
    }

    fn changes(&mut self, image: &str, root: &str) -> anyhow::Result<Vec<PathBuf>> {
        compare::differences(&self.image(image), &self.root(root))
    }

    fn commit(&mut self, root: &str, changed: &[PathBuf]) -> anyhow::Result<()> {
        self.committed += 1;
        let layer = self.join(&format!("layer{}", self.committed));
        pack(&self.root(root), changed, &layer)
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        match &self.place {
            Place::Folder(folder) => {
                run("sync", ["--file-system", text(folder.path())?])?;
            }
            Place::Area(area) => {
                if self.how == How::Subvolume {
                    run("btrfs", ["subvolume", "sync", text(area.path())?])?;
                }
                area.settle()?;
            }
        }
        Ok(())
    }

    fn host_bytes(&self) -> anyhow::Result<u64> {
        match &self.place {
            Place::Folder(folder) => host::allocated_bytes(folder.path()),
            Place::Area(area) => area.host_bytes(),
        }
    }
}
