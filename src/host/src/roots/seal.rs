//! Making a frozen volume of a root: what a snapshotter's commit stands on.
//!
//! A mounted root is unmounted, and its volume frozen as it is. If others have it mounted, or the
//! next layer is to go on with it, its file system is quiesced for the moment in which its volume
//! is snapshotted: everything is on the volume then and the journal is empty. Where somebody had
//! the device and has not unmounted it, it is quiesced where it is mounted, and if that is out of
//! sight, all of this host is written out, and a copy of the volume is settled.
//!
//! # Invariants
//! - What was refused by the pool while it was written out makes no frozen volume, however often
//!   that is tried.

use super::super::error::{Error, Result};
use super::super::ext4::{self, Superblock};
use super::super::filesystem::Mode;
use super::super::frozen::FrozenMount;
use super::super::host::{Host, WorkVolumes};
use super::{Root, RootUse, is_alone};
use cowshed_engine::Volume;
use cowshed_export::ExportError;
use parking_lot::{ArcMutexGuard, RawMutex};

/// How the caller's transaction makes a frozen volume of a root.
pub enum Sealed {
    /// By a snapshot, while this lives; what is left can be written on.
    Quiesced(QuiescedRoot),
    /// By freezing the volume itself.
    Idle(QuiescedRoot),
    /// By taking this frozen copy in its place; it has a name in work.
    Copy(Volume),
}

/// Keeps a root as it is: its file system quiesced if it is mounted, and else not mounted.
pub struct QuiescedRoot {
    // The file system goes on before others may show the root.
    _frozen: Option<FrozenMount>,
    is_alone: bool,
    _root: ArcMutexGuard<RawMutex, Root>,
}

impl QuiescedRoot {
    /// Whether nobody else has it mounted, who could write to it once it goes on.
    #[must_use]
    pub const fn is_alone(&self) -> bool {
        self.is_alone
    }
}

impl Host {
    /// Brings the root's file system to a clean state on its volume, for the caller to freeze, and
    /// to flush the pool before it tells of that.
    ///
    /// # Errors
    /// `Incomplete` when something that was written to it had no room in the pool, for good; and
    /// what the host answers.
    pub fn seal_root(&self, volume: &Volume) -> Result<Sealed> {
        self.check_complete(volume)?;
        let sealed = self.seal(volume);
        // All that was in memory has been written, or refused, by now.
        let complete = self.check_complete(volume);
        if let (Err(_), Ok(Sealed::Copy(copy))) = (&complete, &sealed) {
            // If it stays, the next start removes it.
            let _ = self.pool().remove(copy);
        }
        complete.and(sealed)
    }

    fn seal(&self, volume: &Volume) -> Result<Sealed> {
        let mut root = self.roots.of(volume.id()).lock_arc();
        if self.show_again(volume, &mut root)? && !self.unmount_alone(volume, &mut root)? {
            return self
                .quiesce(volume, root)
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
            return Ok(Sealed::Idle(QuiescedRoot {
                _frozen: None,
                is_alone: true,
                _root: root,
            }));
        }
        tracing::debug!(volume = %volume.name(), "was not unmounted: sealing a copy");
        drop(root);
        self.settled_copy(volume).map(Sealed::Copy)
    }

    /// Whether the root's file system is in use by nobody, and was not unmounted: its host went
    /// down with what was not written out.
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
        drop(self.sync_locked(volume, root)?);
        match self.hide(volume, root) {
            Ok(()) => Ok(true),
            // Somebody has it in another mount namespace.
            Err(Error::Export(ExportError::Busy { .. })) => Ok(!self.show_again(volume, root)?),
            Err(error) => Err(error),
        }
    }

    fn quiesce(&self, volume: &Volume, root: ArcMutexGuard<RawMutex, Root>) -> Result<Sealed> {
        let at = self.sync_locked(volume, &root)?;
        let note = self.frozen_note(&format!("root-{}", volume.id()));
        let frozen = FrozenMount::freeze(at, self.root_path(volume.id()), note)?;
        let is_alone = is_alone(&root)?;
        if frozen.is_ours() {
            // The journal is empty while the file system is held, and never read.
            ext4::release_journal(volume)?;
        }
        Ok(Sealed::Quiesced(QuiescedRoot {
            _frozen: Some(frozen),
            is_alone,
            _root: root,
        }))
    }

    /// A frozen copy of the volume as it is now, with its journal replayed. What was written to its
    /// file system, which somebody may still have mounted, is in it as far as this host knows.
    fn settled_copy(&self, volume: &Volume) -> Result<Volume> {
        let mut work = WorkVolumes::new(self.pool());
        let snapshot = self.snapshot_in_use(volume, &self.work_name()?)?;
        work.push(snapshot.clone());
        if Superblock::read(&snapshot)?.is_some_and(|found| found.is_clean()) {
            work.keep();
            return Ok(snapshot);
        }
        let copy = self.pool().clone_volume(&snapshot, &self.work_name()?)?;
        let mut copied = WorkVolumes::new(self.pool());
        copied.push(copy.clone());
        self.mount_for_work(&copy, Mode::Settle)?.unmount()?;
        self.check_complete(&copy)?;
        self.pool().freeze(&copy)?;
        // The snapshot goes; the copy alone has what both had.
        copied.keep();
        Ok(copy)
    }
}
