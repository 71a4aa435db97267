//! A volume in memory: its map, its counts, and what its writers share.

use super::lock_order::{OrderedMutex, Rank};
use super::prune::Pruned;
use crate::map::{Inheritance, Ledger, Link, Ownership, Root, Tree};
use crate::space::Stream;
use cowshed_format::base::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use cowshed_format::base::{Generation, VolumeId};
use cowshed_format::catalogue::VolumeEntry;
use std::sync::Arc;

/// A volume. Its name, parent and labels are the forest's.
pub(super) struct VolumeCore {
    pub(super) id: VolumeId,
    pub(super) tree: Tree,
    pub(super) size_bytes: AtomicU64,
    /// Nobody writes it any more.
    pub(super) frozen: AtomicBool,
    /// It has lost its name and waits to be reclaimed.
    pub(super) removed: AtomicBool,
    /// How often it was rolled back.
    pub(super) rollbacks: AtomicU64,
    /// Blocks of data and map that it owns.
    pub(super) own: AtomicI64,
    /// Blocks of data that it maps.
    pub(super) mapped: AtomicI64,
    /// Once removed: all of its map below this block is settled.
    pub(super) settled: AtomicU64,
    /// Blocks and nodes of ancestors that it no longer leads to, counted since the pool was opened.
    pub(super) let_go: AtomicU64,
    /// Once removed: when its children were last asked what they still need of it.
    pub(super) pruned: OrderedMutex<Pruned>,
    /// How many holds keep it from being removed.
    pub(super) holds: AtomicU32,
    /// How many put its flushes off.
    pub(super) pauses: AtomicU32,
    /// It is among the changes of the next checkpoint.
    pub(super) changed: AtomicBool,
    /// Discards that may have made holes and are not logged: such a hole does not outlive the
    /// process.
    pub(super) unlogged: AtomicU32,
    /// Where its next data goes.
    pub(super) stream: OrderedMutex<Stream>,
    pub(super) writer: OrderedMutex<Writer>,
}

/// What only the holder of a volume's write lock touches.
pub(super) struct Writer {
    pub(super) branch: Generation,
    /// What passes to the volume from its removed parent.
    pub(super) inheritance: Option<(Inheritance, Arc<VolumeCore>)>,
    pub(super) ledger: Ledger,
    /// How much of what the ledger freed is in the pool's count.
    pub(super) freed_counted: u64,
}

impl VolumeCore {
    /// A volume with this map, at `branch`.
    pub(super) fn new(id: VolumeId, root: Root, size_bytes: u64, branch: Generation) -> Self {
        Self {
            id,
            tree: Tree::new(root),
            size_bytes: AtomicU64::new(size_bytes),
            frozen: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            rollbacks: AtomicU64::new(0),
            own: AtomicI64::new(0),
            mapped: AtomicI64::new(0),
            settled: AtomicU64::new(0),
            let_go: AtomicU64::new(0),
            pruned: OrderedMutex::new(Rank::Pruned, Pruned::default()),
            holds: AtomicU32::new(0),
            pauses: AtomicU32::new(0),
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

    /// The volume that the catalogue describes.
    pub(super) fn from_entry(entry: &VolumeEntry) -> Self {
        let root = Root {
            height: entry.height,
            link: Link::of(entry.root),
        };
        let core = Self::new(entry.id, root, entry.size_bytes, entry.branch);
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

    /// Blocks that it owns.
    pub(super) fn own_blocks(&self) -> u64 {
        u64::try_from(self.own.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Blocks of data that it maps.
    pub(super) fn mapped_blocks(&self) -> u64 {
        u64::try_from(self.mapped.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

impl Writer {
    /// Which blocks the volume owns.
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
