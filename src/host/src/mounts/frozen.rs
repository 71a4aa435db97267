//! A mounted file system that is quiesced for a moment.
//!
//! Another program may have frozen it: a backup's hook, with fsfreeze(8). Then that freeze is used,
//! and remains. The kernel keeps one freeze per file system and does not report its owner, so:
//!
//! - A folder tells a successor of this process which file system to thaw. It exists while this
//!   process owns the freeze, and for the moment in which the kernel shows who owns it.
//! - A thaw by any process ends the freeze for all. This is noticed when the hold ends, and the
//!   caller starts over.

use crate::error::{Error, Result};
use cowshed_sys::mount::{self, FileSystem};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A frozen file system. Dropping it thaws the file system if the freeze is its own.
pub(crate) struct FrozenMount {
    file_system: FileSystem,
    path: PathBuf,
    /// The folder that informs a successor if this process dies.
    note: PathBuf,
    is_ours: bool,
}

impl FrozenMount {
    /// Freezes `file_system`, which was found at `path`, unless it is frozen already.
    pub(crate) fn freeze(file_system: FileSystem, path: PathBuf, note: PathBuf) -> Result<Self> {
        let is_ours = try_freeze(&file_system, &path, &note)?;
        Ok(Self {
            file_system,
            path,
            note,
            is_ours,
        })
    }

    /// Returns true if nobody else had frozen it.
    pub(crate) const fn is_ours(&self) -> bool {
        self.is_ours
    }

    /// Ends the hold; returns true if the file system was frozen all the time, as far as can be
    /// known, and `false` if another process has thawed it meanwhile.
    pub(crate) fn end(mut self) -> bool {
        if self.is_ours {
            return self.let_go();
        }
        match try_freeze(&self.file_system, &self.path, &self.note) {
            Ok(was_thawed) => {
                self.is_ours = was_thawed;
                !was_thawed
            }
            Err(error) => {
                tracing::warn!(%error, "cannot determine whether a file system is still frozen");
                false
            }
        }
    }

    /// Thaws the file system if the freeze is its own; returns `false` if it was thawed already.
    fn let_go(&mut self) -> bool {
        self.is_ours = false;
        let thawed = self.file_system.thaw();
        // An empty folder that remains does no harm.
        let _ = fs::remove_dir(&self.note);
        match thawed {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
            Err(error) => {
                tracing::error!(%error, path = %self.path.display(), "cannot thaw a file system");
                false
            }
        }
    }
}

impl Drop for FrozenMount {
    fn drop(&mut self) {
        if self.is_ours {
            self.let_go();
        }
    }
}

/// Freezes a file system, and leaves the note if it did; returns `false` if it is frozen already.
fn try_freeze(file_system: &FileSystem, path: &Path, note: &Path) -> Result<bool> {
    fs::create_dir_all(note).map_err(Error::io("create the directory", note))?;
    let frozen = file_system.freeze();
    if frozen.is_err() {
        // The note is not valid in this case.
        let _ = fs::remove_dir(note);
    }
    match frozen {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(Error::CannotHold {
            path: path.to_owned(),
        }),
        Err(source) => Err(Error::io("freeze the file system at", path)(source)),
    }
}

/// Thaws the file system at `path` if it is frozen.
pub(crate) fn thaw_at(path: &Path) {
    match mount::thaw(path) {
        Ok(()) => tracing::info!(path = %path.display(), "thawed a file system"),
        // It was not frozen yet, or no longer.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        Err(error) => tracing::error!(%error, path = %path.display(), "cannot thaw a file system"),
    }
}
