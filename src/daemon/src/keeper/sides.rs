//! The files of the pool's sides as the keeper holds them: they change when a worker says so, and
//! tell of writes that the host has failed to do.
//!
//! # Invariants
//! - `watches` has one entry for each of `inherited_fds.sides`, in their order.
//! - The keeper has at least one file of the pool.

use super::fence::PoolFile;
use super::inherited_fds::SideFile;
use super::{Keeper, Owner};
use cowshed_sys::write_back;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What the keeper knows of an open file, apart from its descriptor.
pub(super) struct Watch {
    pub(super) identity: PoolFile,
    /// The file, opened separately from the workers' descriptors: it reports a failed write even if
    /// the worker that got the report died of something else at that moment. `None` if the device
    /// is gone.
    witness: Option<File>,
}

impl Watch {
    /// # Errors
    /// When `/proc` cannot be read.
    fn of(file: &File) -> io::Result<Self> {
        let identity = PoolFile::of(file)?;
        let witness = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let witness = witness.inspect_err(|error| {
            tracing::warn!(%error, "cannot open a file of the pool again to learn of failed writes");
        });
        Ok(Self {
            identity,
            witness: witness.ok(),
        })
    }

    /// Returns true if the host has failed to write the file since this was asked last.
    fn has_failed(&self) -> bool {
        let witness = self.witness.as_ref();
        witness.is_some_and(|witness| write_back::has_failed(witness.as_fd()))
    }
}

/// Watches the files of the pool.
///
/// # Errors
/// When `/proc` cannot be read, or none of the files can be opened again.
pub(super) fn watch(sides: &[SideFile]) -> io::Result<Vec<Watch>> {
    let watches = sides.iter().map(|side| Watch::of(&side.file));
    let watches = watches.collect::<io::Result<Vec<_>>>()?;
    if watches.iter().all(|watch| watch.witness.is_none()) {
        return Err(io::Error::other("the pool's file cannot be opened again"));
    }
    Ok(watches)
}

impl<O: Owner> Keeper<O> {
    /// Notes which sides the host failed to write, and that the device has failed if those are all.
    pub(super) fn ask_witnesses(&mut self) {
        let sides = &mut self.inherited_fds.sides;
        for (side, watch) in sides.iter_mut().zip(&self.watches) {
            side.is_doubted |= watch.has_failed();
        }
        if sides.iter().all(|side| side.is_doubted) {
            self.inherited_fds.handover_state.failure_note()();
        }
    }

    /// Forgets the doubts: the labels of the sides say by now which of them lack something.
    pub(super) fn forget_doubts(&mut self) {
        for side in &mut self.inherited_fds.sides {
            side.is_doubted = false;
        }
    }

    /// Holds a side's file, which the worker has opened at `path`, from now on. A file that was at
    /// that path before is no side any more.
    pub(super) fn add_side(&mut self, path: PathBuf, file: OwnedFd) {
        let file = File::from(file);
        let watch = match Watch::of(&file) {
            Ok(watch) => watch,
            Err(error) => {
                // The next worker looks for it at its path.
                tracing::error!(path = %path.display(), %error, "cannot hold a new side");
                return;
            }
        };
        // Failures of before do not concern what is copied to it from now on.
        let _ = watch.has_failed();
        let before = self.side_at(&path);
        self.inherited_fds.sides.push(SideFile::new(path, file));
        self.watches.push(watch);
        if let Some(before) = before {
            self.let_go_of(before);
        }
        self.side_changes += 1;
    }

    /// Forgets what the host failed to write to the side at `path`, to which all of that is about to
    /// be copied.
    pub(super) fn trust_side(&mut self, path: &Path) {
        if let Some(index) = self.side_at(path) {
            let _ = self.watches[index].has_failed();
            self.inherited_fds.sides[index].is_doubted = false;
        }
    }

    /// Unlocks and closes the file of a side that was taken out.
    pub(super) fn remove_side(&mut self, path: &Path) {
        let Some(index) = self.side_at(path) else {
            return;
        };
        if self.inherited_fds.sides.len() == 1 {
            tracing::error!(path = %path.display(), "the pool's last file is kept");
            return;
        }
        self.let_go_of(index);
        self.side_changes += 1;
    }

    fn side_at(&self, path: &Path) -> Option<usize> {
        let sides = &self.inherited_fds.sides;
        sides.iter().position(|side| side.path == path)
    }

    fn let_go_of(&mut self, index: usize) {
        let side = self.inherited_fds.sides.remove(index);
        self.watches.remove(index);
        // The lock belongs to the open file, of which threads of a dead worker may have descriptors.
        if let Err(error) = side.file.unlock() {
            tracing::warn!(path = %side.path.display(), %error, "cannot unlock a side");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_device_that_is_gone_is_watched_without_a_witness_beside_others() {
        let file = || tempfile::tempfile().unwrap();
        // As for a device that was taken away, the kernel does not open it again (ENXIO).
        let gone = || File::from(OwnedFd::from(UnixStream::pair().unwrap().0));
        let side = |file| SideFile::new(PathBuf::from("side"), file);
        let watches = watch(&[side(gone()), side(file())]).unwrap();
        let has_witness: Vec<_> = watches.iter().map(|it| it.witness.is_some()).collect();
        assert_eq!(has_witness, [false, true]);
        assert!(watches.iter().all(|watch| !watch.has_failed()));
        assert!(watch(&[side(gone())]).is_err());
    }
}
