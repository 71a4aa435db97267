//! One side of a mirror: its device, its role, its labels, and the threads that flush and read it.

use super::super::threads::Threads;
use super::Device;
use crate::base::sync::Mutex;
use crate::base::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use crate::base::{BLOCK_BYTES, Error, Result};
use crate::side::{Lack, SLOTS, SideId, SideLabel, SideState, label_places};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Number of threads that read a side, and so of reads of it that go on at the same time.
const READERS: usize = 16;

/// The part that a side plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Role {
    /// It has everything: it is read and written.
    Good = 0,
    /// It is written, and not read yet: what it lacks is being copied to it.
    Joining = 1,
    /// It has failed, and the other sides' labels do not say so yet.
    Failing = 2,
    /// It is neither read nor written.
    Away = 3,
}

impl Role {
    const fn of(number: u8) -> Self {
        match number {
            0 => Self::Good,
            1 => Self::Joining,
            2 => Self::Failing,
            _ => Self::Away,
        }
    }
}

/// The progress of copying to a side.
#[derive(Default)]
pub(super) struct Progress {
    pub copied_bytes: AtomicU64,
    pub total_bytes: AtomicU64,
}

/// A side whose device is open.
pub struct Side {
    pub(super) id: SideId,
    pub(super) path: PathBuf,
    pub(super) device: Arc<dyn Device>,
    role: AtomicU8,
    /// The label slot that holds its newest label.
    slot: AtomicU8,
    /// Its newest label.
    label: Mutex<Option<SideLabel>>,
    pub(super) in_flight: AtomicUsize,
    pub(super) progress: Progress,
    /// True once its device has failed since it was opened.
    pub(super) has_failed: AtomicBool,
    is_doubted: AtomicBool,
    /// Held during a flush: a host reports a failed write-back to only one of several at once.
    flushing: Mutex<()>,
    flusher: Threads,
    readers: Threads,
    /// Number of reads that a caller waits for no longer and that have not ended.
    late: Arc<AtomicUsize>,
}

impl Side {
    /// Returns a side on `device` that is away.
    pub(super) fn new(id: SideId, path: PathBuf, device: Arc<dyn Device>) -> Self {
        let (label, slot) = newest_label(&*device).map_or((None, 1), |(label, slot)| {
            (Some(label).filter(|label| label.side == id), slot)
        });
        Self {
            id,
            path,
            flusher: Threads::start("cowshed-flush", 1),
            readers: Threads::start("cowshed-side", READERS),
            late: Arc::default(),
            device,
            role: AtomicU8::new(Role::Away as u8),
            slot: AtomicU8::new(slot),
            label: Mutex::new(label),
            in_flight: AtomicUsize::new(0),
            progress: Progress::default(),
            has_failed: AtomicBool::new(false),
            is_doubted: AtomicBool::new(false),
            flushing: Mutex::new(()),
        }
    }

    /// Returns its identity.
    #[must_use]
    pub const fn id(&self) -> SideId {
        self.id
    }

    /// Returns its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its device.
    #[must_use]
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// Returns its newest label.
    pub(super) fn label(&self) -> Option<SideLabel> {
        self.label.lock().clone()
    }

    /// Returns what it lacks, if its own label says that it lacks something.
    #[must_use]
    pub fn claims_behind(&self) -> Option<Lack> {
        let label = self.label()?;
        match label.set.entry(self.id)?.state {
            SideState::Behind(lack) => Some(lack),
            SideState::Good => None,
        }
    }

    /// Takes the side for one that lacks what was written last, because its host may have failed to
    /// write it.
    pub fn doubt(&self) {
        self.is_doubted.store(true, Ordering::Release);
    }

    /// Returns true if the host may have failed to write it.
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        self.is_doubted.load(Ordering::Acquire)
    }

    /// Uses the device again although it has failed.
    pub fn try_again(&self) {
        self.has_failed.store(false, Ordering::Release);
    }

    pub(super) fn role(&self) -> Role {
        Role::of(self.role.load(Ordering::Acquire))
    }

    pub(super) fn set_role(&self, role: Role) {
        self.role.store(role as u8, Ordering::Release);
    }

    /// Returns true if it is neither read nor written.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.role() == Role::Away
    }

    pub(super) fn is_good(&self) -> bool {
        self.role() == Role::Good
    }

    /// Returns true if changes of the pool go to it.
    pub(super) fn is_written(&self) -> bool {
        matches!(self.role(), Role::Good | Role::Joining)
    }

    /// Makes a side good that was joining; returns false if it has failed meanwhile.
    pub(super) fn become_good(&self) -> bool {
        let (from, to) = (Role::Joining as u8, Role::Good as u8);
        let outcome = (Ordering::AcqRel, Ordering::Acquire);
        let changed = self.role.compare_exchange(from, to, outcome.0, outcome.1);
        changed.is_ok()
    }

    /// Notes that its device has failed. A good side is failing until the others' labels say that
    /// it is behind; the label of a side that is joining says so already.
    pub(super) fn fail(&self, error: &Error) {
        let path = self.path.display();
        self.has_failed.store(true, Ordering::Release);
        let (set, get) = (Ordering::AcqRel, Ordering::Acquire);
        // In one step: it may become good at this moment.
        let failed = self
            .role
            .fetch_update(set, get, |role| match Role::of(role) {
                Role::Good => Some(Role::Failing as u8),
                Role::Joining => Some(Role::Away as u8),
                Role::Failing | Role::Away => None,
            });
        if failed.is_ok() {
            tracing::error!(%path, %error, "a side of the mirror has failed, and is left out");
        }
    }

    /// Flushes the device. If that fails, so has the side, before anybody else can flush it: a host
    /// reports it once.
    pub(super) fn flush(&self) -> Result<()> {
        let _flushing = self.flushing.lock();
        self.check_written()?;
        self.device.flush().inspect_err(|error| self.fail(error))
    }

    /// Begins to flush the device in the side's own thread.
    pub(super) fn begin_flush(self: &Arc<Self>) -> Flushing {
        let (tell, told) = mpsc::sync_channel(1);
        let side = Arc::clone(self);
        let is_begun = self.flusher.begin(move || {
            // A caller that has gone needs no answer.
            let _ = tell.send(side.flush());
        });
        Flushing {
            told: is_begun.then_some(told),
        }
    }

    /// Has one of the side's threads read a range, and returns false if it has not within `limit`.
    ///
    /// # Errors
    /// As `Device::read_at`.
    pub(super) fn read_within(
        self: &Arc<Self>,
        buf: &mut [u8],
        offset_bytes: u64,
        limit: Duration,
    ) -> Result<bool> {
        let (tell, told) = mpsc::sync_channel(1);
        let (device, len) = (Arc::clone(&self.device), buf.len());
        let waiting = Waiting::new(&self.late);
        let end = waiting.clone();
        let is_begun = self.readers.begin(move || {
            let mut bytes = vec![0; len];
            let outcome = device.read_at(&mut bytes, offset_bytes);
            // Whoever gets the answer may close the device.
            drop(device);
            end.answer();
            // A caller that has gone needs no answer.
            let _ = tell.send(outcome.map(|()| bytes));
        });
        if !is_begun {
            return self.device.read_at(buf, offset_bytes).map(|()| true);
        }
        let outcome = match told.recv_timeout(limit) {
            Ok(outcome) => outcome,
            Err(_) if waiting.give_up() => return Ok(false),
            Err(_) => told.recv().unwrap_or_else(|_| {
                let source = io::Error::other("the thread that read has ended");
                Err(Error::io("read the pool", source))
            }),
        };
        buf.copy_from_slice(&outcome?);
        Ok(true)
    }

    /// Returns true if a read has taken too long and has not ended yet.
    pub(super) fn owes_answers(&self) -> bool {
        self.late.load(Ordering::Acquire) > 0
    }

    fn check_written(&self) -> Result<()> {
        if self.is_written() {
            return Ok(());
        }
        let source = io::Error::other("this side of the mirror has failed before");
        Err(Error::io("flush the pool", source))
    }

    /// Writes zeros over all labels, durably.
    pub(super) fn forget_labels(&self) -> Result<()> {
        for place in (0..SLOTS).flat_map(label_places) {
            self.device
                .write_at(&[0; BLOCK_BYTES], place.offset_bytes())?;
        }
        let _flushing = self.flushing.lock();
        self.device.flush()
    }

    /// Writes the label to the slot that does not hold the newest one, durably.
    pub(super) fn write_label(&self, label: &SideLabel) -> Result<()> {
        let slot = self.slot.load(Ordering::Acquire) ^ 1;
        let bytes = label.encode();
        for place in label_places(slot) {
            self.device.write_at(&bytes, place.offset_bytes())?;
        }
        let _flushing = self.flushing.lock();
        self.device.flush().inspect_err(|error| self.fail(error))?;
        self.slot.store(slot, Ordering::Release);
        *self.label.lock() = Some(label.clone());
        Ok(())
    }
}

/// A flush in another thread.
pub(super) struct Flushing {
    told: Option<mpsc::Receiver<Result<()>>>,
}

impl Flushing {
    /// Waits for its end; without a thread, `side` is flushed now.
    pub(super) fn wait(self, side: &Side) -> Result<()> {
        let told = self.told.and_then(|told| told.recv().ok());
        told.unwrap_or_else(|| side.flush())
    }
}

/// Whether somebody waits for a read, as its reader and its caller see it.
#[derive(Clone)]
struct Waiting {
    /// True once either of both has ended.
    ended: Arc<AtomicBool>,
    late: Arc<AtomicUsize>,
}

impl Waiting {
    fn new(late: &Arc<AtomicUsize>) -> Self {
        Self {
            ended: Arc::default(),
            late: Arc::clone(late),
        }
    }

    /// Stops waiting; returns false if the answer is there.
    fn give_up(&self) -> bool {
        self.late.fetch_add(1, Ordering::AcqRel);
        let is_answered = self.ended.swap(true, Ordering::AcqRel);
        if is_answered {
            self.late.fetch_sub(1, Ordering::AcqRel);
        }
        !is_answered
    }

    fn answer(&self) {
        if self.ended.swap(true, Ordering::AcqRel) {
            self.late.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // The device is closed once a flush has ended. A read that has not ended keeps it open.
        self.flusher.join();
    }
}

/// Returns the newest label on a device, and its slot.
#[must_use]
pub fn newest_label(device: &dyn Device) -> Option<(SideLabel, u8)> {
    let mut newest: Option<(SideLabel, u8)> = None;
    for slot in 0..SLOTS {
        for place in label_places(slot) {
            let mut bytes = vec![0; BLOCK_BYTES];
            if device.read_at(&mut bytes, place.offset_bytes()).is_err() {
                continue;
            }
            let Some(label) = SideLabel::decode(&bytes) else {
                continue;
            };
            let is_newer = newest
                .as_ref()
                .is_none_or(|(newest, _)| newest.set.epoch.number < label.set.epoch.number);
            if is_newer {
                newest = Some((label, slot));
            }
        }
    }
    newest
}
