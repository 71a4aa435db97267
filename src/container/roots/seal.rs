//! Making a frozen volume of a root: what a snapshotter's commit stands on.
//!
//! A mounted root is unmounted, and its volume frozen as it is. If others have it mounted, or the
//! next layer is to go on with it, its file system is held still for the moment in which its volume
//! is snapshotted: everything is on the volume then and the journal is empty. Where somebody had the
//! device and has not unmounted it cleanly, all of this host is written out, and a copy of the volume is
//! settled.

use super::super::diff::FrozenMount;
use super::super::error::{Error, Result};
use super::super::ext4::{self, Superblock};
use super::super::filesystem::{self, Mode};
use super::super::host::{Host, WorkVolumes};
use super::{Root, RootUse, is_alone};
use crate::export::ExportError;
use crate::pool::Volume;
use parking_lot::{ArcMutexGuard, RawMutex};

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
    // The file system goes on before others may show the root.
    _frozen: Option<FrozenMount>,
    _root: ArcMutexGuard<RawMutex, Root>,
}

impl Host {
    /// Brings the root's file system to a clean state on its volume, for the caller to freeze, and
    /// to flush the pool before it tells of that.
    ///
    /// # Errors
    /// `NoSpace` when what was written to it had no room in the pool, and what the host answers.
    pub fn seal_root(&self, volume: &Volume) -> Result<Sealed> {
        let mut root = self.roots.of(volume.id()).lock_arc();
        if root.mounted.is_some() && !self.unmount_alone(volume, &mut root)? {
            return self
                .hold_still(volume, root)
                .map_err(|error| self.explain(error));
        }
        match self.hide(volume, &mut root) {
            Ok(()) => {}
            // Whoever has the device still uses it.
            Err(Error::Export(error @ ExportError::Busy { .. })) => {
                tracing::debug!(%error, volume = %volume.name(), "sealing a copy");
                drop(root);
                return self.settled_copy(volume).map(Sealed::Copy);
            }
            Err(error) => return Err(error),
        }
        if Superblock::read(volume)?.is_some_and(|found| found.is_clean()) {
            tracing::debug!(volume = %volume.name(), "sealing it as it is");
            ext4::release_journal(volume)?;
            return Ok(Sealed::Idle(StillRoot {
                _frozen: None,
                _root: root,
            }));
        }
        tracing::debug!(volume = %volume.name(), "was not unmounted: sealing a copy");
        drop(root);
        self.settled_copy(volume).map(Sealed::Copy)
    }

    /// Whether the root's file system is in use by nobody, and was not unmounted: its host went down
    /// with what was not written out.
    ///
    /// # Errors
    /// What the pool answers.
    pub fn was_interrupted(&self, volume: &Volume) -> Result<bool> {
        let root = self.roots.of(volume.id()).lock_arc();
        Ok(!root.is_shown() && Superblock::read(volume)?.is_some_and(|found| !found.is_clean()))
    }

    /// Unmounts a root that nobody else has mounted, which is faster than holding it still; one
    /// that was mounted to be filled stays, for the next layer. Answers whether it is unmounted.
    fn unmount_alone(&self, volume: &Volume, root: &mut Root) -> Result<bool> {
        let purpose = root.mounted.as_ref().and_then(|mounted| mounted.purpose);
        if purpose == Some(RootUse::Fill) || !is_alone(root)? {
            return Ok(false);
        }
        // Writes that had no room are told here, and by nothing later.
        let hidden = self
            .sync_locked(volume.id())
            .and_then(|()| self.hide(volume, root));
        match hidden {
            Ok(()) => Ok(true),
            // Somebody has it in another mount namespace.
            Err(Error::Export(ExportError::Busy { .. })) => {
                let mode = purpose.unwrap_or(RootUse::Container).mode();
                let device = self.export()?.attach_loop(volume, false)?;
                self.detach_loop(volume)?;
                filesystem::mount(&device, &self.root_path(volume.id()), mode)?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn hold_still(&self, volume: &Volume, root: ArcMutexGuard<RawMutex, Root>) -> Result<Sealed> {
        // Writes that had no room are told here, and by nothing later.
        self.sync_locked(volume.id())?;
        let note = self.frozen_note(&format!("root-{}", volume.id()));
        let frozen = FrozenMount::freeze(self.root_path(volume.id()), note)?;
        // The journal is empty while the file system is held, and never read.
        ext4::release_journal(volume)?;
        Ok(Sealed::Still(StillRoot {
            _frozen: Some(frozen),
            _root: root,
        }))
    }

    /// A frozen copy of the volume as it is now, with its journal replayed. What was written to its
    /// file system, which somebody may still have mounted, is in it as far as this host knows.
    fn settled_copy(&self, volume: &Volume) -> Result<Volume> {
        // The device is mounted where this process cannot see it: in another mount namespace, or
        // over a loop device of somebody else's. Nothing less reaches every file system there is.
        nix::unistd::sync();
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
