//! Making a frozen volume of a root, for a snapshotter's commit.
//!
//! A mounted root is unmounted, and its volume frozen as it is. If others have it mounted, or the
//! next layer will continue with it, its file system is quiesced for the moment in which its volume
//! is snapshotted: everything is on the volume then and the journal is empty. If a user got the
//! device and has not unmounted it, the file system is quiesced where it is mounted; if this
//! process cannot see that mount, all file systems of this host are written out, and a copy of the
//! volume is settled.
//!
//! # Invariants
//! - If the pool refused data while it was written out, no frozen volume is made, however often
//!   that is tried.

use super::{Root, RootUse, Roots, is_alone};
use crate::error::{Error, Result};
use crate::mounts::{FrozenMount, WorkVolumes, ext4};
use cowshed_engine::Volume;
use cowshed_export::ExportError;
use parking_lot::{ArcMutexGuard, RawMutex};

/// The way in which the caller's transaction makes a frozen volume of a root.
pub enum Sealed {
    /// By a snapshot, while this value is alive; the root can be written on after that.
    Quiesced(QuiescedRoot),
    /// By freezing the volume itself.
    Idle(QuiescedRoot),
    /// By replacing it with this frozen copy, which has a temporary name.
    Copy(Volume),
}

/// A guard that keeps a root unchanged: its file system quiesced if it is mounted, and else not
/// mounted.
pub struct QuiescedRoot {
    // The file system is thawed before others may show the root.
    _frozen: Option<FrozenMount>,
    is_alone: bool,
    _root: ArcMutexGuard<RawMutex, Root>,
}

impl QuiescedRoot {
    /// Returns true if it is not mounted elsewhere, so that nobody could write to it once it is
    /// thawed.
    #[must_use]
    pub const fn is_alone(&self) -> bool {
        self.is_alone
    }
}

impl Roots {
    /// Brings the root's file system to a clean state on its volume. The caller must then freeze
    /// the volume, and flush the pool before it reports success.
    ///
    /// # Errors
    /// `Incomplete`, permanently, if written data found no space in the pool; and any error of the
    /// host.
    pub fn seal(&self, volume: &Volume) -> Result<Sealed> {
        self.mounts.check_complete(volume)?;
        let sealed = self.make_clean(volume);
        // All dirty data has been written, or refused, by now.
        let complete = self.mounts.check_complete(volume);
        if let (Err(_), Ok(Sealed::Copy(copy))) = (&complete, &sealed) {
            // If it remains, the next start removes it.
            let _ = self.pool().remove(copy);
        }
        complete.and(sealed)
    }

    fn make_clean(&self, volume: &Volume) -> Result<Sealed> {
        let mut root = self.of(volume.id()).lock_arc();
        if self.show_again(volume, &mut root)? && !self.unmount_alone(volume, &mut root)? {
            return self
                .quiesce(volume, root)
                .map_err(|error| self.mounts.explain(error));
        }
        match self.hide(volume, &mut root) {
            Ok(()) => {}
            // The holder of the device still uses it.
            Err(Error::Export(error @ ExportError::Busy { .. })) => {
                tracing::debug!(
                    %error, volume = %volume.name(),
                    "the device of a root is in use: sealing a copy"
                );
                drop(root);
                return self.settled_copy(volume).map(Sealed::Copy);
            }
            Err(error) => return Err(error),
        }
        if ext4::superblock(volume)?.is_some_and(|found| found.is_clean()) {
            tracing::debug!(volume = %volume.name(), "sealing a root itself");
            ext4::release_journal(volume)?;
            return Ok(Sealed::Idle(QuiescedRoot {
                _frozen: None,
                is_alone: true,
                _root: root,
            }));
        }
        tracing::debug!(
            volume = %volume.name(),
            "a root was not cleanly unmounted: sealing a copy"
        );
        drop(root);
        self.settled_copy(volume).map(Sealed::Copy)
    }

    /// Returns true if the root's file system is unused and was not unmounted: its host went down
    /// with data that was not written out.
    ///
    /// # Errors
    /// Any error of the pool.
    pub fn was_interrupted(&self, volume: &Volume) -> Result<bool> {
        let root = self.of(volume.id()).lock_arc();
        Ok(!root.is_shown() && ext4::superblock(volume)?.is_some_and(|found| !found.is_clean()))
    }

    /// Unmounts a root that nobody else has mounted, which is faster than freezing it; one that was
    /// mounted to be filled stays mounted, for the next layer. Returns true if it is unmounted.
    fn unmount_alone(&self, volume: &Volume, root: &mut Root) -> Result<bool> {
        let purpose = root.mounted.as_ref().and_then(|mounted| mounted.purpose);
        if purpose == Some(RootUse::Fill) || !is_alone(root)? {
            return Ok(false);
        }
        // Writes that found no space are reported here, and not again later.
        drop(self.sync_locked(volume, root)?);
        match self.hide(volume, root) {
            Ok(()) => Ok(true),
            // Somebody has it mounted in another mount namespace.
            Err(Error::Export(ExportError::Busy { .. })) => Ok(!self.show_again(volume, root)?),
            Err(error) => Err(error),
        }
    }

    fn quiesce(&self, volume: &Volume, root: ArcMutexGuard<RawMutex, Root>) -> Result<Sealed> {
        let at = self.sync_locked(volume, &root)?;
        let note = self.mounts.frozen_note(&format!("root-{}", volume.id()));
        let frozen = FrozenMount::freeze(at, self.path(volume.id()), note)?;
        let is_alone = is_alone(&root)?;
        if frozen.is_ours() {
            // The journal is empty while the file system is frozen, and is never read.
            ext4::release_journal(volume)?;
        }
        Ok(Sealed::Quiesced(QuiescedRoot {
            _frozen: Some(frozen),
            is_alone,
            _root: root,
        }))
    }

    /// Returns a frozen copy of the volume as it is now, with its journal replayed. It contains all
    /// data written to the file system, which somebody may still have mounted, as far as this host
    /// knows.
    fn settled_copy(&self, volume: &Volume) -> Result<Volume> {
        let mut work = WorkVolumes::new(self.pool());
        let snapshot = self
            .mounts
            .snapshot_in_use(volume, &self.mounts.work_name()?)?;
        work.push(snapshot.clone());
        if ext4::superblock(&snapshot)?.is_some_and(|found| found.is_clean()) {
            work.keep();
            return Ok(snapshot);
        }
        let mut copied = WorkVolumes::new(self.pool());
        let copy = self.mounts.settled_clone(&snapshot, &mut copied)?;
        // The snapshot is removed; the copy alone keeps the data of both.
        copied.keep();
        Ok(copy)
    }
}
