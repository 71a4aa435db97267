//! A mount that outlives the process that serves it: resuming it, and handing it over.
//!
//! The holder of the `Connection`'s descriptors and of the `HandoverState` keeps the mount alive. A
//! process that serves it may die at any moment; its successor resumes with copies of both, and
//! takes the holds on the volumes again. By then the dead process must be unable to write to the
//! pool.
//!
//! # What users see
//! Users' requests wait until the successor serves. Requests that the dead process took without
//! replying are repeated. This does no harm: reads, writes, discards and flushes give the same
//! result when they are repeated while their issuer still waits. Two requests for the same bytes
//! that were in progress at once have no order, before or after the repetition.
//!
//! On Linux before 6.9 those requests fail with an error instead; all others wait.
//!
//! A file stays open until the mount ends if its opener is killed after the open was served and
//! before the opener got the reply: nothing distinguishes it from a file that is in use.

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
    /// Serves an existing mount through copies of its descriptors that only this process has;
    /// `handover_state` records what is open and attached. `is_successor` is true if another
    /// process has served the mount, which can no longer write to the pool. The number of threads
    /// is the number of the connection's descriptors.
    ///
    /// # Errors
    /// `Io` if the descriptors are not those of a live mount.
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
        // Only after the threads have started: reading a device's state may request attributes of
        // its file from them.
        for (slot, record) in export.handover_state.records().attached() {
            export.restore(slot, &record);
        }
        Ok(export)
    }

    /// Stops serving without unmounting or detaching anything: each thread ends after its present
    /// request. Does nothing if the export is unmounted. From then on, this export behaves as an
    /// unmounted one, and the holder of the connection's descriptors and of the handover state can
    /// have another process resume the mount.
    ///
    /// # Errors
    /// `Io` if the host refuses a step of stopping; the export then goes on serving.
    pub fn hand_over(&self) -> std::result::Result<(), ExportError> {
        let mut mounted = self.mounted.write();
        if !*mounted {
            return Ok(());
        }
        self.session.hand_over()?;
        *mounted = false;
        // Removed from this table only: the handover state keeps the attachments.
        for (_, slot) in self.attached.all() {
            slot.lock().clear();
        }
        self.attached.tidy();
        Ok(())
    }

    /// Takes over a predecessor's attachment.
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
            // The predecessor may still be making the device; see `let_go_of_started`.
            DeviceRecord::Started => return,
        };
        if let Some(device) = device.filter(|device| device.is_lost()) {
            tracing::warn!(
                device = %device.path().display(),
                "a loop device was detached by another program"
            );
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
                tracing::error!(volume = %record.volume, %error, "cannot keep a volume attached");
                if let Some(device) = device {
                    device.leave_to_kernel();
                }
                self.handover_state.records().detach(slot);
            }
        }
    }

    /// Detaches the loop devices that predecessors were making when they died. Must be called after
    /// all their threads have ended, since one of them might finish a device, and before anything
    /// is attached here.
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

    /// Detaches the loop device that a predecessor may have made for the volume without recording
    /// it. The kernel detaches it when its last user is gone.
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
