//! A mount that outlives the process that serves it: serving it on, and leaving it to be served.
//!
//! Whoever keeps the mount alive holds the `Connection`'s descriptors and the `HandoverState`. A
//! process that serves it may die at any moment; its successor resumes with copies of both, and
//! takes the holds on the volumes again. The dead process must be unable to write to the pool by
//! then.
//!
//! # What users see
//! Their requests wait until the successor serves. Those that the dead process took and did not
//! answer are done once more, which does no harm: reads, writes, discards and flushes give the
//! same when they are repeated while their issuer still waits. Two requests that were under way at
//! once for the same bytes have no order, and keep none.
//!
//! On Linux before 6.9 those requests fail with an error instead; all others wait.
//!
//! A file whose opener was killed in the same moment, between being opened here and hearing of it,
//! stays open until the mount ends: nothing tells it from one that is in use.

use super::attachments::Entry;
use super::device::AttachedDevice;
use super::entry;
use super::error::ExportError;
use super::fuse::{AttachedRecord, Connection, DeviceRecord, HandoverState, Origin};
use super::target::{Directory, TargetHold};
use super::{Export, ExportOptions};
use cowshed_format::base::{Result, VolumeId};
use cowshed_sys::loop_device::{self, BackingId};
use cowshed_sys::mount;
use std::sync::Arc;

impl Export {
    /// Serves a mount that is there, by copies of its descriptors that this process alone has;
    /// `handover_state` tells what is open and attached. `is_successor` says that another process
    /// has served it, which can no longer write to the pool. The number of threads is that of the
    /// connection's descriptors.
    ///
    /// # Errors
    /// `Io` when the descriptors are not those of a live mount.
    pub fn resume(
        directory: Arc<dyn Directory>,
        connection: Connection,
        handover_state: HandoverState,
        options: ExportOptions,
        is_successor: bool,
    ) -> std::result::Result<Self, ExportError> {
        let origin = Origin::Connection {
            connection,
            is_successor,
        };
        let export = Self::start(directory, origin, handover_state, options)?;
        // Looking at a device may ask for attributes of its file: so only now.
        for (slot, record) in export.handover_state.records().attached() {
            export.restore(slot, &record);
        }
        Ok(export)
    }

    /// Stops serving without unmounting or detaching anything: each thread ends after the request
    /// that it is at. Does nothing when it is unmounted. From then on this is as good as unmounted,
    /// and whoever has the connection's descriptors and the handover state can have it served on.
    ///
    /// # Errors
    /// `Io` when the host refuses what is needed to stop; it then goes on serving.
    pub fn hand_over(&self) -> std::result::Result<(), ExportError> {
        let mut mounted = self.mounted.write();
        if !*mounted {
            return Ok(());
        }
        self.session.hand_over()?;
        *mounted = false;
        // Here alone: the handover state keeps them.
        for (_, slot) in self.attached.all() {
            slot.lock().clear();
        }
        self.attached.tidy();
        Ok(())
    }

    /// Takes an attachment of a predecessor over.
    fn restore(&self, slot: usize, record: &AttachedRecord) {
        let device = match record.device {
            DeviceRecord::None => None,
            DeviceRecord::Made {
                number,
                backing_device,
                backing_inode,
            } => {
                let backing = BackingId {
                    device: backing_device,
                    inode: backing_inode,
                };
                Some(AttachedDevice::restore(number, backing))
            }
            // The predecessor may be at it still: `let_go_of_started`.
            DeviceRecord::Started => return,
        };
        if let Some(device) = device.filter(|device| device.is_lost()) {
            tracing::warn!(device = %device.path().display(), "was detached by someone else");
            return self.handover_state.records().detach(slot);
        }
        match self.hold(record.volume) {
            Ok(hold) => self.attached.slot(record.volume).lock().push(Entry {
                read_only: record.read_only,
                shared: record.shared,
                count: record.count,
                by_hand: record.by_hand,
                device,
                slot,
                _hold: hold,
            }),
            Err(error) => {
                tracing::error!(volume = %record.volume, %error, "cannot keep it attached");
                if let Some(device) = device {
                    device.leave_to_kernel();
                }
                self.handover_state.records().detach(slot);
            }
        }
    }

    /// Detaches the loop devices that predecessors were making when they died. To be called once
    /// none of their threads is left, which might finish one, and before anything is attached here.
    pub fn let_go_of_started(&self) {
        for (slot, record) in self.handover_state.records().attached() {
            if record.device == DeviceRecord::Started {
                self.let_go_of_unknown(record.volume);
                self.handover_state.records().detach(slot);
            }
        }
    }

    fn hold(&self, volume: VolumeId) -> Result<TargetHold> {
        self.directory.by_id(volume)?.hold()
    }

    /// Detaches the loop device that a predecessor may have made for the volume and told nobody of:
    /// one that no record has. The kernel does so when its last user is gone.
    fn let_go_of_unknown(&self, volume: VolumeId) {
        let known: Vec<_> = self
            .handover_state
            .records()
            .attached()
            .into_iter()
            .map(|(_, record)| record.device)
            .collect();
        let found = loop_device::attached().unwrap_or_default();
        for (device, path) in found {
            if !mount::lies_in(&path, self.mount_point()) {
                continue;
            }
            let Ok(backing) = device.backing_id() else {
                continue;
            };
            let attached = AttachedDevice::restore(device.number(), backing);
            if backing.inode == entry::inode(volume) && !known.contains(&attached.record()) {
                attached.leave_to_kernel();
            }
        }
    }
}
