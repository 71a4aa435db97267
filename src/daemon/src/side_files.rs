//! The files of sides that a command opens, or that are no sides any more after it: what the keeper
//! has to know of them.

use crate::keeper::ToKeeper;
use crate::open_pool::OpenPool;
use cowshed_engine::Pool;
use cowshed_format::device::{Device, FileDevice, ThreadedDevice};
use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

/// Tells the daemon's keeper which files it is to hold, while a command changes the sides. When this
/// is dropped, the keeper closes the files of what is no side any more. Without a keeper, nobody is
/// told.
pub struct SideFiles<'a> {
    pool: &'a Pool,
    keeper: Option<&'a ToKeeper>,
    /// The paths of the sides before the command.
    before: Vec<PathBuf>,
    opened: Mutex<Vec<(PathBuf, Weak<dyn Device>)>>,
}

impl<'a> SideFiles<'a> {
    /// Returns the sides of an open pool that a command is about to change.
    #[must_use]
    pub fn of(open_pool: &'a OpenPool) -> Self {
        let pool = open_pool.pool();
        Self {
            pool,
            keeper: open_pool.keeper(),
            before: paths(pool),
            opened: Mutex::default(),
        }
    }

    /// Tells that all that the side at `path` lacks is about to be copied to it.
    pub fn joins(&self, path: &Path) {
        if let Some(keeper) = self.keeper {
            note(path, keeper.side_joins(path));
        }
    }

    /// Passes a device that is to become a side to the keeper, and returns it for the use in this
    /// process.
    pub fn open(&self, path: &Path, device: FileDevice) -> Arc<dyn Device> {
        let Some(keeper) = self.keeper else {
            return Arc::new(device);
        };
        // The one that is locked comes last.
        if let Some(file) = device.descriptors().pop() {
            note(path, keeper.side_added(path, file));
        }
        // The threads that serve volumes have only the descriptors of before.
        let device: Arc<dyn Device> = Arc::new(ThreadedDevice::new(Arc::new(device)));
        let opened = (path.to_owned(), Arc::downgrade(&device));
        self.opened.lock().push(opened);
        device
    }
}

impl Drop for SideFiles<'_> {
    fn drop(&mut self) {
        let Some(keeper) = self.keeper else { return };
        let now = paths(self.pool);
        let mut gone: Vec<_> = self.before.drain(..).collect();
        gone.retain(|path| !now.contains(path));
        for (path, device) in self.opened.get_mut().drain(..) {
            if device.strong_count() == 0 && !gone.contains(&path) {
                gone.push(path);
            }
        }
        for path in gone {
            note(&path, keeper.side_removed(&path));
        }
    }
}

fn paths(pool: &Pool) -> Vec<PathBuf> {
    let sides = pool.sides().unwrap_or_default().into_iter();
    sides.map(|side| side.path).collect()
}

fn note(path: &Path, told: io::Result<()>) {
    if let Err(error) = told {
        tracing::warn!(path = %path.display(), %error, "cannot tell the keeper of a side");
    }
}
