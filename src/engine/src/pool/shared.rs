//! The state that all handles of an open pool share.

use super::checkpoint::Checkpointer;
use super::forest::Forest;
use super::host::HostReserve;
use super::info::{FullOptions, Notes};
use super::lock_order::{OrderedMutex, OrderedRwLock};
use super::missing::MissingEntries;
use super::space_wait::SpaceWait;
use super::volume::VolumeCore;
use super::watermark::Watch;
use crate::log::Log;
use crate::map::NodeStore;
use crate::space::Space;
use cowshed_format::base::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use cowshed_format::base::sync::{Condvar, Mutex};
use cowshed_format::base::{CorruptKind, Error, Generation, Result, Sequence, VolumeId};
use cowshed_format::device::FailStopDevice;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

/// Number of blocks promised for writing a changed catalogue entry: its old and its new block, and
/// the map nodes above them.
pub(super) const ENTRY_PROMISE: u64 = 12;

/// More freed blocks than this (64 MiB) request a checkpoint, so that overwriting reuses blocks
/// that the host has allocated already, and does not go through the whole pool.
const FREED_BLOCKS_MAX: u64 = 16 << 10;

/// An open pool.
pub(super) struct Shared {
    pub(super) device: Arc<FailStopDevice>,
    pub(super) space: Space,
    pub(super) log: Log,
    pub(super) store: NodeStore,
    pub(super) uuid: [u8; 16],
    /// The generation in which changes take effect.
    pub(super) generation: AtomicU64,
    /// The generation of the last checkpoint's cut.
    pub(super) last_cut: AtomicU64,
    pub(super) checkpointer: OrderedMutex<Checkpointer>,
    /// Locked by the one thread that settles removed volumes.
    pub(super) reclaiming: OrderedMutex<()>,
    pub(super) forest: OrderedRwLock<Forest>,
    pub(super) cut: OrderedRwLock<()>,
    pub(super) changes: OrderedMutex<Changes>,
    /// Number of blocks that a running checkpoint will free.
    pub(super) pending_free: AtomicI64,
    /// Number of blocks freed since the last cut, which the next checkpoint will free.
    pub(super) freed_since_cut: AtomicU64,
    pub(super) next_volume_id: AtomicU64,
    /// Number of checkpoints finished since the pool was opened.
    pub(super) checkpoints: AtomicU64,
    /// With more memory nodes than this, writers wait for a checkpoint.
    pub(super) memory_nodes_max: usize,
    pub(super) closed: AtomicBool,
    /// Set once recovery is done, if the pool is only read.
    pub(super) read_only: AtomicBool,
    /// The reason for which the pool stopped, if it was not the device: its own accounts disagreed.
    pub(super) stopped: OnceLock<CorruptKind>,
    pub(super) signal: Arc<Signal>,
    /// The behaviour when the pool is full.
    pub(super) full: FullOptions,
    pub(super) space_wait: SpaceWait,
    /// The space reserved on the host for operations that free space.
    pub(super) host_reserve: HostReserve,
    /// Number of damaged blocks that were written anew from their copies.
    pub(super) healed: AtomicU64,
    /// What the catalogue has lost.
    pub(super) missing: MissingEntries,
    /// Locked by the one thread that brings sides of a mirror up to date, or changes which there are.
    pub(super) resyncing: std::sync::Mutex<()>,
    /// Locked by the one scrub that runs, and the number of others that wait for its end.
    pub(super) scrubbing: std::sync::Mutex<()>,
    pub(super) scrubs_waiting: AtomicU64,
    /// The damaged record before which the log of a pool that is only read ends.
    pub(super) log_damage: OnceLock<Sequence>,
    /// Callbacks that learn what a successor must know.
    pub(super) notes: Notes,
    /// The time at which the host last refused to let the pool grow.
    pub(super) growth_refused: OrderedMutex<Option<Instant>>,
    pub(super) watermark: Watch,
    pub(super) threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Wakes the background threads.
#[derive(Default)]
pub(super) struct Signal {
    pub(super) wanted: Mutex<Wanted>,
    pub(super) changed: Condvar,
}

/// The requests to the background threads.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) checkpoint: bool,
    pub(super) reclaim: bool,
    pub(super) stop: bool,
}

/// The changes since the last cut.
#[derive(Default)]
pub(super) struct Changes {
    /// Volumes whose entries or maps changed, each once.
    pub(super) volumes: Vec<Arc<VolumeCore>>,
    /// Volumes that no longer exist.
    pub(super) gone: Vec<VolumeId>,
    /// Records of the crates above by number: their entry, or `None` if removed.
    pub(super) records: BTreeMap<u64, Option<Vec<u8>>>,
    /// Number of blocks promised for all of these.
    pub(super) promised: u64,
}

impl Changes {
    /// Returns true if the next checkpoint has nothing to write, and so nothing to free.
    pub(super) fn is_empty(&self) -> bool {
        self.volumes.is_empty() && self.gone.is_empty() && self.records.is_empty()
    }
}

impl Shared {
    pub(super) fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    pub(super) fn last_cut(&self) -> Generation {
        Generation(self.last_cut.load(Ordering::Acquire))
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// Returns an error if the pool is closed, stopped or only read, and so must not be changed.
    pub(super) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        if self.is_read_only() {
            return Err(Error::ReadOnly);
        }
        self.check_running()
    }

    /// Returns true if the pool is only read; refuses a pool that is closed or stopped.
    pub(super) fn has_nothing_to_flush(&self) -> Result<bool> {
        match self.check_open() {
            Err(Error::ReadOnly) => Ok(true),
            checked => checked.map(|()| false),
        }
    }

    /// Returns an error if the pool has stopped; the last checkpoint of a pool that is being closed
    /// may run.
    pub(super) fn check_running(&self) -> Result<()> {
        if let Some(error) = self.device.error() {
            return Err(error);
        }
        self.stopped
            .get()
            .map_or(Ok(()), |kind| Err((*kind).into()))
    }

    /// Stops the pool after a failure that must not be retried.
    pub(super) fn stop(&self, error: &Error) {
        if let Error::Corrupt(kind) = error {
            // The first reason counts.
            let _ = self.stopped.set(*kind);
        }
    }

    /// Notes that a volume's entry or map has changed. The caller has promised `ENTRY_PROMISE`
    /// blocks; they are returned if the volume was noted already.
    pub(super) fn note_changed(&self, volume: &Arc<VolumeCore>) {
        if volume.changed.swap(true, Ordering::AcqRel) {
            self.space.void_promise(ENTRY_PROMISE);
            return;
        }
        let mut changes = self.changes.lock();
        changes.promised += ENTRY_PROMISE;
        changes.volumes.push(Arc::clone(volume));
    }

    /// Runs a checkpoint so that the log has space again.
    pub(super) fn make_log_room(&self, seen: u64) -> Result<()> {
        self.checkpoint_after(seen)
    }

    /// Delays a writer while there are too many memory nodes.
    pub(super) fn throttle(&self) -> Result<()> {
        let nodes = self.store.memory_nodes();
        self.grow_host_reserve(nodes);
        let nodes_max = self
            .memory_nodes_max
            .min(self.host_reserve.nodes_max(self.space.in_copies(1)));
        if nodes > nodes_max {
            let seen = self.checkpoints.load(Ordering::Acquire);
            return self.checkpoint_after(seen);
        }
        let freed = self.freed_since_cut.load(Ordering::Relaxed);
        if nodes > nodes_max / 2
            || freed > FREED_BLOCKS_MAX
            || self.log.used_bytes() > self.log.ring_bytes() / 2
        {
            self.ask(|wanted| &mut wanted.checkpoint);
        }
        Ok(())
    }

    /// Sets a request to the background threads.
    pub(super) fn ask(&self, what: impl FnOnce(&mut Wanted) -> &mut bool) {
        let mut wanted = self.signal.wanted.lock();
        let flag = what(&mut wanted);
        if !*flag {
            *flag = true;
            self.signal.changed.notify_all();
        }
    }
}
