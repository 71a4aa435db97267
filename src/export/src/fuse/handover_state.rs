//! The state that a serving process leaves to its successor: the open files and the attachments, in
//! shared memory that the keeper of the mount holds too.
//!
//! The memory holds only values. The successor takes the holds on the volumes again; the records
//! name the volumes.
//!
//! # Layout
//! The memory consists of 64-bit words: a head of 8 (magic, version, maximum number of open files,
//! maximum number of attachments, device failure, generation of the durable superblock, overflow of
//! the refused volumes), then 4 for each open file, then 8 for each attachment, then one for each
//! volume that had a write refused.
//!
//! # Invariants
//! - A slot's first word is its state. It is written last when the slot is taken, and first when
//!   the slot is freed, so a process that dies between any two instructions leaves no partly
//!   written slot.
//! - A slot's generation grows each time the slot is freed, so a handle never means another file.
//! - Only one process writes at a time.

use cowshed_format::base::{Generation, VolumeId};
use cowshed_sys::shared::SharedWords;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

/// "cowkeep" and a version that changes with the layout.
const MAGIC: u64 = u64::from_le_bytes(*b"cowkeep\0");
const VERSION: u64 = 2;
const HEAD: [u64; 4] = [MAGIC, VERSION, OPEN_MAX as u64, ATTACHED_MAX as u64];
const HEAD_WORDS: usize = 8;
/// The word of the head that is nonzero once the pool's device has failed.
const DEVICE_FAILED: usize = 4;
/// The word of the head with the generation of the newest superblock known to be durable, or zero.
const DURABLE: usize = 5;
/// The word of the head that is nonzero once more volumes had a write refused than can be recorded.
const REFUSED_ANY: usize = 6;
/// The maximum number of open files.
pub(crate) const OPEN_MAX: usize = 1 << 16;
const OPEN_WORDS: usize = 4;
/// The maximum number of attachments.
const ATTACHED_MAX: usize = 1 << 13;
const ATTACHED_WORDS: usize = 8;
/// The maximum number of volumes that can be recorded as having had a write refused.
const REFUSED_MAX: usize = 1 << 12;
const REFUSED_START: usize = HEAD_WORDS + OPEN_MAX * OPEN_WORDS + ATTACHED_MAX * ATTACHED_WORDS;
const WORDS: usize = REFUSED_START + REFUSED_MAX;

/// Flags of a slot's first word; an open file's generation is in its upper half.
const TAKEN: u64 = 1;
const HOLDS: u64 = 2;
const READ_ONLY: u64 = 4;
const LOOP: u64 = 8;
/// The loop device is being made: its number is not known yet.
const STARTED: u64 = 16;
/// An open file that was opened for writing.
const WRITES: u64 = 32;
/// An attachment that allows other writers beside it.
const SHARED: u64 = 64;
const GENERATION_SHIFT: u32 = 32;

/// The record of an open file for a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenRecord {
    /// The kernel's handle.
    pub(crate) handle: u64,
    pub(crate) volume: VolumeId,
    /// The number of the request that opened it.
    pub(crate) unique: u64,
    /// True if the file itself keeps its volume from being removed.
    pub(crate) holds: bool,
    /// True if it was opened for writing.
    pub(crate) writes: bool,
}

/// The record of an attachment for a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttachedRecord {
    pub(crate) volume: VolumeId,
    pub(crate) read_only: bool,
    /// True if there may be other writers beside it.
    pub(crate) shared: bool,
    /// Number of requests for it.
    pub(crate) count: u64,
    /// Number of these requests that came from a user, and not from the code that mounts volumes.
    pub(crate) by_hand: u64,
    pub(crate) device: DeviceRecord,
}

/// The loop device of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceRecord {
    /// None: the volume is attached as a file.
    None,
    /// A device was being made when the process died, and may exist.
    Started,
    /// `/dev/loop{number}` over the file with this identity.
    Made {
        number: u32,
        backing_device: u64,
        backing_inode: u64,
    },
}

/// The shared memory with the descriptor that passes it to another process.
pub struct HandoverState {
    records: Arc<Records>,
    descriptor: OwnedFd,
}

impl HandoverState {
    /// Creates new memory, in which nothing is open or attached.
    ///
    /// # Errors
    /// If the host gives no memory, or no memfd.
    pub fn create() -> io::Result<Self> {
        let (memory, descriptor) = SharedWords::create(c"cowshed-handover_state", WORDS)?;
        for (word, value) in memory.words().iter().zip(HEAD) {
            word.store(value, Ordering::Release);
        }
        let records = Arc::new(Records::over(memory));
        Ok(Self {
            records,
            descriptor,
        })
    }

    /// Returns the memory that another process created.
    ///
    /// # Errors
    /// `InvalidData` if it is not a handover state of this version.
    pub fn adopt(descriptor: OwnedFd) -> io::Result<Self> {
        let memory = SharedWords::adopt(descriptor.as_fd(), WORDS)?;
        let found = memory
            .words()
            .iter()
            .map(|word| word.load(Ordering::Acquire));
        if !found.take(HEAD.len()).eq(HEAD) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let records = Arc::new(Records::over(memory));
        // Called to find the end of the used slots.
        records.attached();
        Ok(Self {
            records,
            descriptor,
        })
    }

    /// Returns a function that records, for successors, that the pool's device has failed. The
    /// function has no descriptor.
    pub fn failure_note(&self) -> impl Fn() + Send + Sync + 'static {
        let records = Arc::clone(&self.records);
        move || records.memory.words()[DEVICE_FAILED].store(1, Ordering::SeqCst)
    }

    /// Returns true if the pool's device has failed in this process or a predecessor.
    #[must_use]
    pub fn has_device_failed(&self) -> bool {
        self.records.memory.words()[DEVICE_FAILED].load(Ordering::SeqCst) != 0
    }

    /// Returns a function that records, for successors, which superblock is durable. The function
    /// has no descriptor.
    pub fn durable_note(&self) -> impl Fn(Generation) + Send + Sync + 'static {
        let records = Arc::clone(&self.records);
        move |generation| records.memory.words()[DURABLE].store(generation.0, Ordering::SeqCst)
    }

    /// Returns the newest superblock that was recorded as durable, in this process or a
    /// predecessor.
    #[must_use]
    pub fn durable(&self) -> Option<Generation> {
        let noted = self.records.memory.words()[DURABLE].load(Ordering::SeqCst);
        (noted != 0).then_some(Generation(noted))
    }

    /// Returns the memory's descriptor, for a process that is to adopt it.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Returns the records. They have no descriptor, so that the serving threads may drop them,
    /// whose descriptor table is a separate one.
    pub(crate) fn records(&self) -> &Arc<Records> {
        &self.records
    }
}

/// The open files and the attachments.
pub(crate) struct Records {
    memory: SharedWords,
    /// No slot from here on holds an open file, as far as this process has seen.
    open_end: AtomicUsize,
    /// No slot from here on holds an attachment, as far as this process has seen.
    attached_end: AtomicUsize,
}

/// The opens of a volume's file, without those for this process's own devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Users {
    /// True if somebody has it open.
    pub(crate) any: bool,
    /// True if somebody has it open for writing.
    pub(crate) writers: bool,
}

impl Records {
    fn over(memory: SharedWords) -> Self {
        Self {
            memory,
            open_end: AtomicUsize::new(0),
            attached_end: AtomicUsize::new(0),
        }
    }

    /// Returns the users that have the volume's file open. If a thread records an attachment, then
    /// calls this and sees no writer, every writer that opens the file later sees the attachment in
    /// `is_exclusive`; and vice versa.
    pub(crate) fn users_of(&self, volume: VolumeId) -> Users {
        fence(Ordering::SeqCst);
        let end = self.open_end.load(Ordering::SeqCst);
        let opened = (0..end).filter_map(|slot| self.opened(slot));
        let of_others = opened.filter(|record| record.volume == volume && record.holds);
        of_others.fold(Users::default(), |users, record| Users {
            any: true,
            writers: users.writers || record.writes,
        })
    }

    /// Returns true if the volume is attached as a device beside which nobody else may write.
    pub(crate) fn is_exclusive(&self, volume: VolumeId) -> bool {
        fence(Ordering::SeqCst);
        let end = self.attached_end.load(Ordering::SeqCst);
        let mut attached = (0..end).filter_map(|slot| self.attached_in(slot));
        attached.any(|record| {
            record.volume == volume && record.device != DeviceRecord::None && !record.shared
        })
    }

    /// Returns a word for each volume that had a write refused: its id, or zero.
    pub(super) fn refused_words(&self) -> &[AtomicU64] {
        &self.memory.words()[REFUSED_START..][..REFUSED_MAX]
    }

    /// Returns the word that is nonzero once more volumes had a write refused than there are words.
    pub(super) fn refused_any(&self) -> &AtomicU64 {
        &self.memory.words()[REFUSED_ANY]
    }

    fn open_slot(&self, slot: usize) -> &[AtomicU64] {
        assert!(slot < OPEN_MAX, "open file slot {slot}");
        &self.memory.words()[HEAD_WORDS + slot * OPEN_WORDS..][..OPEN_WORDS]
    }

    fn attached_slot(&self, slot: usize) -> &[AtomicU64] {
        assert!(slot < ATTACHED_MAX, "attachment slot {slot}");
        let start = HEAD_WORDS + OPEN_MAX * OPEN_WORDS + slot * ATTACHED_WORDS;
        &self.memory.words()[start..][..ATTACHED_WORDS]
    }

    /// Takes a free slot, and returns the handle that stands for the file.
    pub(crate) fn open(
        &self,
        slot: usize,
        volume: VolumeId,
        unique: u64,
        holds: bool,
        writes: bool,
    ) -> u64 {
        self.open_end.fetch_max(slot + 1, Ordering::SeqCst);
        let words = self.open_slot(slot);
        let generation = words[0].load(Ordering::Acquire) >> GENERATION_SHIFT;
        words[1].store(volume.0, Ordering::Relaxed);
        words[2].store(unique, Ordering::Relaxed);
        let flags = TAKEN | if holds { HOLDS } else { 0 } | if writes { WRITES } else { 0 };
        words[0].store(generation << GENERATION_SHIFT | flags, Ordering::Release);
        generation << GENERATION_SHIFT | slot as u64
    }

    /// Frees an open file's slot.
    pub(crate) fn close(&self, slot: usize) {
        let state = &self.open_slot(slot)[0];
        let generation = (state.load(Ordering::Acquire) >> GENERATION_SHIFT).wrapping_add(1);
        state.store(generation << GENERATION_SHIFT, Ordering::Release);
    }

    /// Returns the slot of a handle; `None` if the handle was never issued.
    pub(crate) fn slot_of(handle: u64) -> Option<usize> {
        let slot = usize::try_from(handle & ((1 << GENERATION_SHIFT) - 1)).ok()?;
        (slot < OPEN_MAX).then_some(slot)
    }

    /// Returns the open file in the slot.
    pub(crate) fn opened(&self, slot: usize) -> Option<OpenRecord> {
        let words = self.open_slot(slot);
        let state = words[0].load(Ordering::Acquire);
        if state & TAKEN != 0 {
            self.open_end.fetch_max(slot + 1, Ordering::SeqCst);
        }
        (state & TAKEN != 0).then(|| OpenRecord {
            handle: state >> GENERATION_SHIFT << GENERATION_SHIFT | slot as u64,
            volume: VolumeId(words[1].load(Ordering::Relaxed)),
            unique: words[2].load(Ordering::Relaxed),
            holds: state & HOLDS != 0,
            writes: state & WRITES != 0,
        })
    }

    /// Takes a slot for an attachment; `None` if all are taken. The caller must let only one thread
    /// at a time do so.
    pub(crate) fn attach(&self, record: &AttachedRecord) -> Option<usize> {
        let is_free = |slot: &usize| self.attached_slot(*slot)[0].load(Ordering::Acquire) == 0;
        let slot = (0..ATTACHED_MAX).find(is_free)?;
        self.attached_end.fetch_max(slot + 1, Ordering::SeqCst);
        self.write_attached(slot, record);
        Some(slot)
    }

    /// Records the device of an attachment that was started.
    pub(crate) fn made(&self, slot: usize, record: &AttachedRecord) {
        self.write_attached(slot, record);
    }

    fn write_attached(&self, slot: usize, record: &AttachedRecord) {
        let words = self.attached_slot(slot);
        let mut state = TAKEN | if record.read_only { READ_ONLY } else { 0 };
        state |= if record.shared { SHARED } else { 0 };
        words[1].store(record.volume.0, Ordering::Relaxed);
        words[2].store(record.count, Ordering::Relaxed);
        words[6].store(record.by_hand, Ordering::Relaxed);
        match record.device {
            DeviceRecord::None => {}
            DeviceRecord::Started => state |= LOOP | STARTED,
            DeviceRecord::Made {
                number,
                backing_device,
                backing_inode,
            } => {
                state |= LOOP;
                words[3].store(number.into(), Ordering::Relaxed);
                words[4].store(backing_device, Ordering::Relaxed);
                words[5].store(backing_inode, Ordering::Relaxed);
            }
        }
        words[0].store(state, Ordering::Release);
    }

    /// Sets the number of requests for an attachment.
    pub(crate) fn count(&self, slot: usize, count: u64, by_hand: u64) {
        self.attached_slot(slot)[6].store(by_hand, Ordering::Release);
        self.attached_slot(slot)[2].store(count, Ordering::Release);
    }

    /// Frees an attachment's slot.
    pub(crate) fn detach(&self, slot: usize) {
        self.attached_slot(slot)[0].store(0, Ordering::Release);
    }

    /// Returns all attachments with their slots.
    pub(crate) fn attached(&self) -> Vec<(usize, AttachedRecord)> {
        let read = |slot| {
            let record = self.attached_in(slot)?;
            self.attached_end.fetch_max(slot + 1, Ordering::SeqCst);
            Some((slot, record))
        };
        (0..ATTACHED_MAX).filter_map(read).collect()
    }

    fn attached_in(&self, slot: usize) -> Option<AttachedRecord> {
        let words = self.attached_slot(slot);
        let state = words[0].load(Ordering::Acquire);
        let word = |index: usize| words[index].load(Ordering::Relaxed);
        let device = if state & STARTED != 0 {
            DeviceRecord::Started
        } else if state & LOOP != 0 {
            DeviceRecord::Made {
                number: u32::try_from(word(3)).ok()?,
                backing_device: word(4),
                backing_inode: word(5),
            }
        } else {
            DeviceRecord::None
        };
        let record = AttachedRecord {
            volume: VolumeId(word(1)),
            read_only: state & READ_ONLY != 0,
            shared: state & SHARED != 0,
            count: word(2),
            by_hand: word(6),
            device,
        };
        (state & TAKEN != 0).then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn successor(of: &HandoverState) -> HandoverState {
        HandoverState::adopt(of.descriptor().try_clone_to_owned().unwrap()).unwrap()
    }

    #[test]
    fn a_successor_finds_what_is_open_and_no_handle_is_used_twice() {
        let kept = HandoverState::create().unwrap();
        let handover_state = kept.records();
        let first = handover_state.open(5, VolumeId(77), 1234, true, true);
        assert_eq!(Records::slot_of(first), Some(5));
        let found = successor(&kept).records().opened(5).unwrap();
        let wanted = OpenRecord {
            handle: first,
            volume: VolumeId(77),
            unique: 1234,
            holds: true,
            writes: true,
        };
        assert_eq!(found, wanted);
        handover_state.close(5);
        assert_eq!(successor(&kept).records().opened(5), None);
        let second = handover_state.open(5, VolumeId(77), 1236, false, false);
        assert_ne!(first, second);
        assert_eq!(Records::slot_of(u64::MAX), None);
    }

    #[test]
    fn a_successor_finds_attachments_as_they_were_left() {
        let kept = HandoverState::create().unwrap();
        let handover_state = kept.records();
        let mut record = AttachedRecord {
            volume: VolumeId(3),
            read_only: true,
            shared: true,
            count: 1,
            by_hand: 1,
            device: DeviceRecord::Started,
        };
        let slot = handover_state.attach(&record).unwrap();
        assert_eq!(successor(&kept).records().attached(), [(slot, record)]);
        record.device = DeviceRecord::Made {
            number: 12,
            backing_device: 40,
            backing_inode: 19,
        };
        handover_state.made(slot, &record);
        (record.count, record.by_hand) = (9, 4);
        handover_state.count(slot, 9, 4);
        assert_eq!(successor(&kept).records().attached(), [(slot, record)]);
        let file = AttachedRecord {
            device: DeviceRecord::None,
            ..record
        };
        let other = handover_state.attach(&file).unwrap();
        handover_state.detach(slot);
        assert_eq!(successor(&kept).records().attached(), [(other, file)]);
        assert_eq!(handover_state.attach(&file), Some(slot));
    }

    #[test]
    fn a_successor_knows_that_the_device_has_failed() {
        let first = HandoverState::create().unwrap();
        let note = first.failure_note();
        let second = successor(&first);
        assert!(!first.has_device_failed() && !second.has_device_failed());
        note();
        assert!(first.has_device_failed() && second.has_device_failed());
        assert!(successor(&second).has_device_failed());
    }

    #[test]
    fn a_successor_knows_which_superblock_is_durable() {
        let first = HandoverState::create().unwrap();
        assert_eq!(first.durable(), None);
        let note = first.durable_note();
        let second = successor(&first);
        note(Generation(7));
        note(Generation(9));
        assert_eq!(second.durable(), Some(Generation(9)));
    }

    #[test]
    fn other_memory_is_refused() {
        let (_words, memfd) = SharedWords::create(c"cowshed-test", WORDS).unwrap();
        assert!(HandoverState::adopt(memfd).is_err());
    }
}
