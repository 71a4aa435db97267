//! The trees of frozen volumes, each mounted once for all its readers.

use super::Mounts;
use super::filesystem::{Access, Mode};
use crate::error::{Error, Result};
use cowshed_engine::Volume;
use cowshed_format::base::VolumeId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The prefix of the name of a view's folder; the volume's id follows.
pub(super) const VIEW_PREFIX: &str = "view-";

/// The views that are mounted.
pub(super) type Views = Mutex<HashMap<VolumeId, Arc<View>>>;

impl Mounts {
    /// Returns the tree of a frozen volume, shared by all its readers.
    pub(crate) fn view(&self, volume: &Volume) -> Result<ViewGuard<'_>> {
        let id = volume.id();
        let view = Arc::clone(self.views.lock().entry(id).or_default());
        let mut mounted = view.mount.lock();
        if mounted.users == 0 {
            let path = self.work_dir().join(format!("{VIEW_PREFIX}{id}"));
            fs::create_dir_all(&path).map_err(Error::io("create the directory", &path))?;
            let mounting = self.attach_and_mount(volume, &path, Mode::Frozen, Access::FilesOnly);
            if let Err(error) = mounting {
                // Nothing is mounted there; at worst an empty folder remains.
                let _ = fs::remove_dir(&path);
                return Err(error);
            }
            mounted.path = path;
        }
        mounted.users += 1;
        let path = mounted.path.clone();
        drop(mounted);
        Ok(ViewGuard {
            mounts: self,
            volume: volume.clone(),
            view,
            path,
        })
    }
}

/// A frozen volume's mount with its number of users.
#[derive(Default)]
pub(super) struct View {
    mount: Mutex<ViewMount>,
}

#[derive(Default)]
struct ViewMount {
    users: usize,
    path: PathBuf,
}

/// A guard that keeps a view mounted.
pub(crate) struct ViewGuard<'m> {
    mounts: &'m Mounts,
    volume: Volume,
    view: Arc<View>,
    path: PathBuf,
}

impl ViewGuard<'_> {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ViewGuard<'_> {
    fn drop(&mut self) {
        let mut mounted = self.view.mount.lock();
        mounted.users -= 1;
        if mounted.users > 0 {
            return;
        }
        self.mounts.abandon(&self.volume, &self.path);
        let mut views = self.mounts.views.lock();
        // The two owners are the list and this guard: no other thread is about to use the view.
        if Arc::strong_count(&self.view) == 2 {
            views.remove(&self.volume.id());
        }
    }
}
