//! A volume in memory: its map, its counts, and the state that its writers share.

use super::lock_order::{OrderedMutex, Rank};
use super::prune::Pruned;
use crate::map::{Inheritance, Ledger, Link, Ownership, Root, Tree};
use crate::space::Stream;
use cowshed_format::base::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use cowshed_format::base::{Generation, VolumeId};
use cowshed_format::catalogue::VolumeEntry;
use std::sync::Arc;

/// A volume. The forest holds its name, parent and labels.
pub(super) struct VolumeCore {
    pub(super) id: VolumeId,
    pub(super) tree: Tree,
    pub(super) size_bytes: AtomicU64,
    /// True if it cannot be written any more.
    pub(super) frozen: AtomicBool,
    /// True if it has lost its name and waits to be reclaimed.
    pub(super) removed: AtomicBool,
    /// True if nothing that it owns may be freed.
    pub(super) pinned: bool,
    /// Number of times that it was rolled back.
    pub(super) rollbacks: AtomicU64,
    /// Number of blocks of data and map that it owns.
    pub(super) own: AtomicI64,
    /// Number of blocks of data that it maps.
    pub(super) mapped: AtomicI64,
    /// Once removed: everything in its map below this block is settled.
    pub(super) settled: AtomicU64,
    /// Number of blocks and nodes of ancestors that it has dropped since the pool was opened.
    pub(super) let_go: AtomicU64,
    /// Once removed: the last search for blocks that its children no longer need.
    pub(super) pruned: OrderedMutex<Pruned>,
    /// Number of holds that keep it from being removed.
    pub(super) holds: AtomicU32,
    /// Number of pauses of its flushes.
    pub(super) pauses: AtomicU32,
    /// Number of readers that keep what they read.
    pub(super) keepers: AtomicU32,
    /// True if it is among the changes of the next checkpoint.
    pub(super) changed: AtomicBool,
    /// Number of discards that may have made holes and are not logged: such a hole does not outlive
    /// the process.
    pub(super) unlogged: AtomicU32,
    /// The blocks that its next data goes to.
    pub(super) stream: OrderedMutex<Stream>,
    pub(super) writer: OrderedMutex<Writer>,
}

/// State that only the holder of a volume's write lock uses.
pub(super) struct Writer {
    pub(super) branch: Generation,
    /// The blocks that pass to the volume from its removed parent.
    pub(super) inheritance: Option<(Inheritance, Arc<VolumeCore>)>,
    pub(super) ledger: Ledger,
    /// The part of the ledger's freed blocks that is in the pool's count already.
    pub(super) freed_counted: u64,
}

/// One more in a count of the volume, for as long as it lives.
pub(super) struct Counted {
    core: Arc<VolumeCore>,
    count: fn(&VolumeCore) -> &AtomicU32,
}

impl Counted {
    pub(super) fn new(core: &Arc<VolumeCore>, count: fn(&VolumeCore) -> &AtomicU32) -> Self {
        count(core).fetch_add(1, Ordering::AcqRel);
        Self {
            core: Arc::clone(core),
            count,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.count)(&self.core).fetch_sub(1, Ordering::AcqRel);
    }
}

impl VolumeCore {
    /// Returns a volume with this map, at `branch`.
    pub(super) fn new(id: VolumeId, root: Root, size_bytes: u64, branch: Generation) -> Self {
        Self {
            id,
            tree: Tree::new(root),
            size_bytes: AtomicU64::new(size_bytes),
            frozen: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            pinned: false,
            rollbacks: AtomicU64::new(0),
            own: AtomicI64::new(0),
            mapped: AtomicI64::new(0),
            settled: AtomicU64::new(0),
            let_go: AtomicU64::new(0),
            pruned: OrderedMutex::new(Rank::Pruned, Pruned::default()),
            holds: AtomicU32::new(0),
            pauses: AtomicU32::new(0),
            keepers: AtomicU32::new(0),
            changed: AtomicBool::new(false),
            unlogged: AtomicU32::new(0),
            stream: OrderedMutex::new(Rank::Stream, Stream::default()),
            writer: OrderedMutex::new(
                Rank::Writer,
                Writer {
                    branch,
                    inheritance: None,
                    ledger: Ledger::default(),
                    freed_counted: 0,
                },
            ),
        }
    }

    /// Returns the volume that the catalogue describes.
    pub(super) fn from_entry(entry: &VolumeEntry) -> Self {
        let root = Root {
            height: entry.height,
            link: Link::of(entry.root),
        };
        let mut core = Self::new(entry.id, root, entry.size_bytes, entry.branch);
        core.pinned = entry.pinned;
        core.frozen.store(entry.frozen, Ordering::Relaxed);
        core.removed.store(entry.name.is_none(), Ordering::Relaxed);
        core.own.store(
            i64::try_from(entry.own_blocks).unwrap_or(i64::MAX),
            Ordering::Relaxed,
        );
        core.mapped.store(
            i64::try_from(entry.mapped_blocks).unwrap_or(i64::MAX),
            Ordering::Relaxed,
        );
        core.settled.store(entry.reclaimed, Ordering::Relaxed);
        core
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// Returns the number of blocks that it owns.
    pub(super) fn own_blocks(&self) -> u64 {
        u64::try_from(self.own.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Returns the number of blocks of data that it maps.
    pub(super) fn mapped_blocks(&self) -> u64 {
        u64::try_from(self.mapped.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

impl Writer {
    /// Returns the rule that tells which blocks the volume owns.
    pub(super) fn ownership(&self) -> Ownership {
        Ownership {
            branch: self.branch,
            inheritance: self
                .inheritance
                .as_ref()
                .map(|(inheritance, _)| *inheritance),
        }
    }
}
