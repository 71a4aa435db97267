//! Making a frozen volume of a root: what a snapshotter's commit stands on.
//!
//! A mounted root's file system is held still for the moment in which its volume is snapshotted:
//! everything is on the volume then and the journal is empty. One that is not mounted here is
//! frozen as it is, if whoever had its device has unmounted it cleanly; else a copy of it is
//! settled first.

use super::super::diff::FrozenMount;
use super::super::error::{Error, Result};
use super::super::ext4::{self, Superblock};
use super::super::filesystem::{self, Mode};
use super::super::host::{Host, WorkVolumes};
use super::{Root, RootUse};
use crate::export::ExportError;
use crate::pool::Volume;
use parking_lot::{ArcMutexGuard, RawMutex};
use std::path::PathBuf;

/// How the caller's transaction makes a frozen volume of a root.
pub enum Sealed {
    /// By a snapshot, while this lives; what is left can be written on.
    Still(StillRoot),
    /// By freezing the volume itself.
    Idle(StillRoot),
    /// By taking this frozen copy in its place; it has a name in work.
    Copy(Volume),
}

/// Keeps a root as it is: its file system held still if it is mounted, and else not mounted.
pub struct StillRoot {
    // The file system goes on before it flushes again, and that before others may show the root.
    _frozen: Option<FrozenMount>,
    unflushed: Option<Unflushed>,
    _root: ArcMutexGuard<RawMutex, Root>,
}

/// A file system that does not flush its device meanwhile: sealing one takes many flushes, and the
/// one of the caller makes durable what all of them would.
struct Unflushed {
    path: PathBuf,
    /// What is left is nobody's, and need not flush again.
    is_given_up: bool,
}

impl Drop for Unflushed {
    fn drop(&mut self) {
        if self.is_given_up {
            return;
        }
        if let Err(error) = filesystem::set_barriers(&self.path, true) {
            tracing::error!(%error, "it does not flush its device any more");
        }
    }
}

impl StillRoot {
    /// What is left of the root is nobody's, whatever becomes of it.
    pub const fn give_up_rest(&mut self) {
        if let Some(unflushed) = &mut self.unflushed {
            unflushed.is_given_up = true;
        }
    }
}

impl Host {
    /// Brings the root's file system to a clean state on its volume, for the caller to freeze.
    ///
    /// # Errors
    /// `NoSpace` when what was written to it had no room in the pool, and what the host answers.
    pub fn seal_root(&self, volume: &Volume) -> Result<Sealed> {
        let mut root = self.roots.of(volume.id()).lock_arc();
        if root.mounted.is_some() {
            return self
                .hold_still(volume, root)
                .map_err(|error| self.explain(error));
        }
        match self.hide(volume, &mut root) {
            Ok(()) => {}
            // Whoever has the device still uses it.
            Err(Error::Export(ExportError::Busy { .. })) => {
                drop(root);
                return self.settled_copy(volume).map(Sealed::Copy);
            }
            Err(error) => return Err(error),
        }
        if Superblock::read(volume)?.is_some_and(|found| found.is_clean()) {
            ext4::release_journal(volume)?;
            return Ok(Sealed::Idle(StillRoot {
                _frozen: None,
                unflushed: None,
                _root: root,
            }));
        }
        drop(root);
        self.settled_copy(volume).map(Sealed::Copy)
    }

    fn hold_still(&self, volume: &Volume, root: ArcMutexGuard<RawMutex, Root>) -> Result<Sealed> {
        let path = self.root_path(volume.id());
        let was_to_fill = root
            .mounted
            .as_ref()
            .is_some_and(|mounted| mounted.purpose == Some(RootUse::Fill));
        let unflushed = if was_to_fill {
            None
        } else {
            filesystem::set_barriers(&path, false)?;
            Some(Unflushed {
                path: path.clone(),
                is_given_up: false,
            })
        };
        // Writes that had no room are told here, and by nothing later.
        self.sync_locked(volume.id())?;
        let note = self.frozen_note(&format!("root-{}", volume.id()));
        let frozen = FrozenMount::freeze(path, note)?;
        // The journal is empty while the file system is held, and never read.
        ext4::release_journal(volume)?;
        Ok(Sealed::Still(StillRoot {
            _frozen: Some(frozen),
            unflushed,
            _root: root,
        }))
    }

    /// A frozen copy of the volume as it is now, with its journal replayed.
    fn settled_copy(&self, volume: &Volume) -> Result<Volume> {
        let mut work = WorkVolumes::new(self.pool());
        let snapshot = self.pool().snapshot(volume, &self.work_name()?)?;
        work.push(snapshot.clone());
        let copy = self.pool().clone_volume(&snapshot, &self.work_name()?)?;
        let mut copied = WorkVolumes::new(self.pool());
        copied.push(copy.clone());
        self.mount_for_work(&copy, Mode::Settle)?.unmount()?;
        self.pool().freeze(&copy)?;
        // The snapshot goes; the copy alone has what both had.
        copied.keep();
        Ok(copy)
    }
}
