//! Which volumes are attached, how, and how often.
//!
//! # Invariants
//! - Each volume has its own lock, so that a slow flush of one does not hold up another; the
//!   table's lock is held for a look-up only.
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

/// As what a volume is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachKind {
    /// Its file in the mount.
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

/// One way in which a volume is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The volume's id.
    pub volume: VolumeId,
    /// The volume's present name.
    pub name: Name,
    /// The file or device.
    pub path: PathBuf,
    /// Which of the two it is.
    pub kind: AttachKind,
    /// Whether it was asked for to be read only.
    pub read_only: bool,
    /// The number of times that it was asked for and not yet given back.
    pub count: u64,
}

/// The wishes of whoever attaches a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// Nothing is written through it.
    pub read_only: bool,
    /// There may be other writers beside it.
    pub shared: bool,
    /// A user asks for it, who gives it back with `detach_by_hand`.
    pub by_hand: bool,
    /// The logical block of a loop device, 512 or 4096 bytes; the export's unless given.
    pub sector_bytes: Option<u32>,
    /// Partitions on a loop device are shown.
    pub scan_partitions: bool,
}

/// The outcome of attaching a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The file or device.
    pub path: PathBuf,
    /// The number of times that it is attached so.
    pub count: u64,
    /// The logical block of a loop device.
    pub sector_bytes: Option<u32>,
}

/// An attachment as the table keeps it.
pub(super) struct Entry {
    pub(super) read_only: bool,
    /// How many times it was asked for and not yet given back.
    pub(super) count: u64,
    /// The number of these that a user asked for.
    pub(super) by_hand: u64,
    /// There may be other writers beside it.
    pub(super) shared: bool,
    /// The loop device; `None` for a file.
    pub(super) device: Option<AttachedDevice>,
    /// Where the handover state has it.
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
    /// The volume's slot, made when it has none.
    pub(super) fn slot(&self, id: VolumeId) -> Slot {
        self.slots.lock().entry(id).or_default().clone()
    }

    /// All slots, in the order of ids.
    pub(super) fn all(&self) -> Vec<(VolumeId, Slot)> {
        self.slots
            .lock()
            .iter()
            .map(|(&id, slot)| (id, slot.clone()))
            .collect()
    }

    /// Forgets the empty slots that nobody works on. A slot is only ever reached through the
    /// table, so with one reference left nobody can come to it while the table is locked.
    pub(super) fn tidy(&self) {
        self.slots
            .lock()
            .retain(|_, slot| Arc::strong_count(slot) > 1 || !slot.lock().is_empty());
    }
}
