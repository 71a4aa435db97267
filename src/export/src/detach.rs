//! Giving volumes back: detaching them, and unmounting everything. Handing a mount over, which
//! leaves all of it in place, is in `succession`.
//!
//! # Invariants
//! - A record leaves the handover state after its device is detached, so a successor never finds a
//!   device without a record.

use super::attachments::{Entry, Slot};
use super::error::ExportError;
use super::holders::{Holder, Holders};
use super::target::BlockTarget;
use super::{AttachKind, Export};
use std::thread;
use std::time::{Duration, Instant};

/// The time for which a file that was just closed may still count as open.
pub(super) const CLOSE_WAIT: Duration = Duration::from_secs(1);
pub(super) const CLOSE_POLL: Duration = Duration::from_millis(5);

impl Export {
    /// Gives one attachment back; the last one of a loop device flushes and detaches it. If the
    /// volume is attached both as a file and as a loop device, the loop device goes first;
    /// `detach_as` selects one of them.
    ///
    /// # Errors
    /// `NotAttached`; `Busy` with the users of the device or open file, in which case the volume
    /// stays attached; `Io`.
    pub fn detach(&self, volume: &dyn BlockTarget) -> Result<(), ExportError> {
        self.detach_where(volume, None)
    }

    /// Gives back one attachment that a user requested; returns the number left. With
    /// `only_by_hand`, attachments that others requested stay.
    ///
    /// # Errors
    /// As `detach`; also `NotByHand`.
    pub fn detach_by_hand(
        &self,
        volume: &dyn BlockTarget,
        only_by_hand: bool,
    ) -> Result<u64, ExportError> {
        let _mounted = self.mounted.read();
        let slot = self.attached.slot(volume.id());
        let result = self.detach_one_by_hand(&slot, volume, only_by_hand);
        drop(slot);
        self.attached.tidy();
        result
    }

    fn detach_one_by_hand(
        &self,
        slot: &Slot,
        volume: &dyn BlockTarget,
        only_by_hand: bool,
    ) -> Result<u64, ExportError> {
        let mut entries = slot.lock();
        let is_by_hand = |entry: &Entry| !only_by_hand || entry.by_hand > 0;
        let is_loop = |entry: &Entry| entry.kind() == AttachKind::Loop;
        let found = entries
            .iter()
            .position(|entry| is_by_hand(entry) && is_loop(entry))
            .or_else(|| entries.iter().position(is_by_hand));
        let Some(index) = found else {
            let name = volume.name();
            return Err(if entries.is_empty() {
                ExportError::NotAttached(name)
            } else {
                ExportError::NotByHand(name)
            });
        };
        let left = self.give_back(&mut entries, index, volume)?;
        if let Some(entry) = entries.get_mut(index).filter(|_| left > 0) {
            entry.by_hand = entry.by_hand.saturating_sub(1);
            let records = self.handover_state.records();
            records.count(entry.slot, entry.count, entry.by_hand);
        }
        Ok(left)
    }

    /// Gives one attachment of a kind back.
    ///
    /// # Errors
    /// As `detach`.
    pub fn detach_as(&self, volume: &dyn BlockTarget, kind: AttachKind) -> Result<(), ExportError> {
        self.detach_where(volume, Some(kind))
    }

    fn detach_where(
        &self,
        volume: &dyn BlockTarget,
        kind: Option<AttachKind>,
    ) -> Result<(), ExportError> {
        let _mounted = self.mounted.read();
        let slot = self.attached.slot(volume.id());
        let result = self.detach_in(&slot, volume, kind).and_then(|found| {
            if found {
                Ok(())
            } else {
                Err(ExportError::NotAttached(volume.name()))
            }
        });
        drop(slot);
        self.attached.tidy();
        result
    }

    /// Gives back one attachment of the kind, or of any kind; returns `false` if there is none.
    fn detach_in(
        &self,
        slot: &Slot,
        volume: &dyn BlockTarget,
        kind: Option<AttachKind>,
    ) -> Result<bool, ExportError> {
        let mut entries = slot.lock();
        let matching = |entry: &Entry| kind.is_none_or(|kind| entry.kind() == kind);
        let is_loop = |entry: &Entry| entry.kind() == AttachKind::Loop;
        let found = entries
            .iter()
            .position(|entry| matching(entry) && is_loop(entry))
            .or_else(|| entries.iter().position(matching));
        let Some(index) = found else { return Ok(false) };
        self.give_back(&mut entries, index, volume).map(|_| true)
    }

    /// Gives back one of the requests for an attachment; returns the number left.
    fn give_back(
        &self,
        entries: &mut Vec<Entry>,
        index: usize,
        volume: &dyn BlockTarget,
    ) -> Result<u64, ExportError> {
        let entry = &mut entries[index];
        if entry.count > 1 {
            entry.count -= 1;
            self.handover_state
                .records()
                .count(entry.slot, entry.count, entry.by_hand);
            return Ok(entry.count);
        }
        match entry.device {
            Some(attached) => attached.detach()?,
            None => self.await_unused_file(volume)?,
        }
        let entry = entries.remove(index);
        self.forget(&entry);
        Ok(0)
    }

    /// Waits until nobody has the volume's file open: the kernel announces the last close without
    /// waiting for this process to handle it.
    fn await_unused_file(&self, volume: &dyn BlockTarget) -> Result<(), ExportError> {
        let deadline = Instant::now() + CLOSE_WAIT;
        while self.handover_state.records().users_of(volume.id()).any {
            if Instant::now() >= deadline {
                return Err(self.file_busy(volume));
            }
            thread::sleep(CLOSE_POLL);
        }
        Ok(())
    }

    /// Detaches the loop devices, flushes everything and unmounts. If something is busy, the error
    /// names it and the files are still served; call again when it is free. After a success,
    /// further calls do nothing.
    ///
    /// # Errors
    /// `Busy`; `Pool` if the flush failed, in which case the export is unmounted all the same;
    /// `Io`.
    pub fn unmount(&self) -> Result<(), ExportError> {
        let mut mounted = self.mounted.write();
        if !*mounted {
            return Ok(());
        }
        self.detach_devices()?;
        let flushed = self.directory.flush();
        self.session.stop()?;
        *mounted = false;
        for (_, slot) in self.attached.all() {
            for entry in slot.lock().drain(..) {
                self.forget(&entry);
            }
        }
        self.attached.tidy();
        Ok(flushed?)
    }

    /// Detaches all loop devices; the error names the users of all that are busy.
    fn detach_devices(&self) -> Result<(), ExportError> {
        let mut by = Holders::default();
        for (_, slot) in self.attached.all() {
            let mut entries = slot.lock();
            let mut kept = Vec::new();
            for entry in entries.drain(..) {
                let Some(attached) = entry.device else {
                    kept.push(entry);
                    continue;
                };
                match attached.detach() {
                    Ok(()) => self.forget(&entry),
                    Err(ExportError::Busy { what, by: holders }) => {
                        by.0.extend(holders.0);
                        if by.0.is_empty() {
                            by.0.push(Holder::Device(what));
                        }
                        kept.push(entry);
                    }
                    Err(error) => {
                        tracing::error!(
                            device = %attached.path().display(), %error,
                            "cannot detach a loop device"
                        );
                        by.0.push(Holder::Device(attached.path()));
                        kept.push(entry);
                    }
                }
            }
            *entries = kept;
        }
        if by.0.is_empty() {
            return Ok(());
        }
        Err(ExportError::Busy {
            what: self.mount_point().to_owned(),
            by,
        })
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if !*self.mounted.get_mut() || self.unmount().is_ok() {
            return;
        }
        // No caller is left to receive an error. The kernel detaches a busy device when it is free.
        for (_, slot) in self.attached.all() {
            for attached in slot.lock().iter().filter_map(|entry| entry.device) {
                attached.leave_to_kernel();
            }
        }
        self.session.abandon();
    }
}
