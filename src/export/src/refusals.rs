//! Refused writes to an attached volume, and the block devices that were made of its file.

use super::Export;
use super::attachments::AttachKind;
use super::entry;
use super::target::BlockTarget;
use cowshed_format::base::VolumeId;
use cowshed_sys::loop_device;
use cowshed_sys::mount;
use std::path::PathBuf;

impl Export {
    /// Returns true if a write to the volume was, or may have been, refused in this process or a
    /// predecessor. A write that was delayed and then done does not count.
    #[must_use]
    pub fn was_refused(&self, volume: VolumeId) -> bool {
        self.handover_state.records().was_refused(volume)
    }

    /// Returns the volumes that are known to have had a write refused.
    #[must_use]
    pub fn refused(&self) -> Vec<VolumeId> {
        // Nothing is written to a frozen volume.
        let targets = self.directory.list().into_iter();
        let all = || {
            targets
                .filter(|info| !info.is_read_only)
                .map(|info| info.id)
        };
        self.handover_state
            .records()
            .refused_among(|| all().collect())
    }

    /// Records that data written to the volume is lost, for a caller that learnt of it in another
    /// way.
    pub fn note_refusal(&self, volume: VolumeId) {
        let is_there = |id| self.directory.by_id(id).is_ok();
        self.handover_state.records().refuse(volume, is_there);
    }

    /// Returns the volume's loop device, unless somebody else has detached it meanwhile.
    #[must_use]
    pub fn loop_device(&self, volume: VolumeId) -> Option<PathBuf> {
        let slot = self.attached.slot(volume);
        let entries = slot.lock();
        let mut devices = entries.iter().filter_map(|entry| entry.device);
        let found = devices.find(|device| !device.is_lost());
        drop(entries);
        drop(slot);
        self.attached.tidy();
        found.map(super::device::AttachedDevice::path)
    }

    /// Returns all loop devices over the volume's file: those of this process, and those that
    /// others made where this process can see them.
    #[must_use]
    pub fn devices_over(&self, volume: &dyn BlockTarget) -> Vec<PathBuf> {
        let mut devices: Vec<_> = self.loop_device(volume.id()).into_iter().collect();
        let is_file = |kind| kind == AttachKind::File;
        let slot = self.attached.slot(volume.id());
        let has_file = slot.lock().iter().any(|entry| is_file(entry.kind()));
        drop(slot);
        self.attached.tidy();
        if !devices.is_empty() && !has_file {
            return devices;
        }
        let inode = entry::inode(volume.id());
        for (device, file) in loop_device::attached().unwrap_or_default() {
            let is_it = mount::lies_in(&file, self.mount_point())
                && device.backing_id().is_ok_and(|id| id.inode == inode);
            if is_it && !devices.contains(&device.path()) {
                devices.push(device.path());
            }
        }
        devices
    }
}
