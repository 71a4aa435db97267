//! The table of attached volumes: the kind of each attachment and its count.
//!
//! # Invariants
//! - Each volume has its own lock, so that a slow flush of one does not hold up another; the
//!   table's lock is held only during a look-up.
//! - None of these locks is ever taken by a thread that serves the mount: attaching and
//!   detaching loop devices waits for those threads.
//! - Either all attachments of a volume are read-only, or all are shared, or there is exactly one.

use super::device::AttachedDevice;
use super::error::AttachMode;
use super::target::TargetHold;
use cowshed_format::base::{Name, VolumeId};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// The kind of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachKind {
    /// The volume's file in the mount.
    File,
    /// A block device over that file.
    Loop,
}

impl fmt::Display for AttachKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Loop => "loop",
        })
    }
}

/// One attachment of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The volume's id.
    pub volume: VolumeId,
    /// The volume's present name.
    pub name: Name,
    /// The file or device.
    pub path: PathBuf,
    /// The kind of the attachment.
    pub kind: AttachKind,
    /// True if it was requested read-only.
    pub read_only: bool,
    /// Number of requests for it that were not yet given back.
    pub count: u64,
}

/// The options for attaching a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// True if nothing is written through the attachment.
    pub read_only: bool,
    /// True if there may be other writers beside it.
    pub shared: bool,
    /// True if a user requests it, who gives it back with `detach_by_hand`.
    pub by_hand: bool,
    /// The logical block size of a loop device, 512 or 4096 bytes; the default is the export's.
    pub sector_bytes: Option<u32>,
    /// True if partitions on a loop device are shown.
    pub scan_partitions: bool,
}

/// The outcome of attaching a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The file or device.
    pub path: PathBuf,
    /// Number of times that the volume is attached this way.
    pub count: u64,
    /// The logical block size of a loop device.
    pub sector_bytes: Option<u32>,
}

/// An attachment as the table keeps it.
pub(super) struct Entry {
    pub(super) read_only: bool,
    /// Number of requests for it that were not yet given back.
    pub(super) count: u64,
    /// Number of these requests that came from a user.
    pub(super) by_hand: u64,
    /// True if there may be other writers beside it.
    pub(super) shared: bool,
    /// The loop device; `None` for a file.
    pub(super) device: Option<AttachedDevice>,
    /// The attachment's slot in the handover state.
    pub(super) slot: usize,
    /// Keeps the volume from being removed.
    pub(super) _hold: TargetHold,
}

impl Entry {
    pub(super) fn kind(&self) -> AttachKind {
        if self.device.is_some() {
            AttachKind::Loop
        } else {
            AttachKind::File
        }
    }

    pub(super) fn mode(&self) -> AttachMode {
        if self.read_only {
            AttachMode::ReadOnly
        } else {
            AttachMode::Writable
        }
    }
}

/// The attachments of one volume.
pub(super) type Slot = Arc<Mutex<Vec<Entry>>>;

/// The attachments of all volumes.
#[derive(Default)]
pub(super) struct Table {
    slots: Mutex<BTreeMap<VolumeId, Slot>>,
}

impl Table {
    /// Returns the volume's slot, and creates it if there is none.
    pub(super) fn slot(&self, id: VolumeId) -> Slot {
        self.slots.lock().entry(id).or_default().clone()
    }

    /// Returns all slots in the order of ids.
    pub(super) fn all(&self) -> Vec<(VolumeId, Slot)> {
        self.slots
            .lock()
            .iter()
            .map(|(&id, slot)| (id, slot.clone()))
            .collect()
    }

    /// Forgets the empty slots that no thread uses. A slot is reached only through the table, so
    /// while the table is locked, no thread can come to a slot that has one reference left.
    pub(super) fn tidy(&self) {
        self.slots
            .lock()
            .retain(|_, slot| Arc::strong_count(slot) > 1 || !slot.lock().is_empty());
    }
}
