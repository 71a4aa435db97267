//! Reading stored nodes: from the cache, or from the device with every check.

use super::cache::NodeCache;
use super::copies::Damage;
use cowshed_format::base::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use cowshed_format::base::sync::{Mutex, RwLock};
use cowshed_format::base::{BlockAddr, CorruptKind, Generation, Result};
use cowshed_format::device::Device;
use cowshed_format::node::{self, Bounds, Entries};
use cowshed_format::{Layout, Pointer};
use std::sync::Arc;

/// The nodes of a pool: stored ones by their pointer, and a count of those in memory.
pub(crate) struct NodeStore {
    pub(super) device: Arc<dyn Device>,
    cache: NodeCache,
    layout: RwLock<Layout>,
    groups_start: u64,
    now: AtomicU64,
    pub(super) live: Arc<AtomicUsize>,
    /// True if every copy of a node is read and verified, as a scrub does.
    pub(super) reads_all: bool,
    /// Counts the times at which blocks of metadata became free.
    pub(super) frees: AtomicU64,
    pub(super) damage: Mutex<Vec<Damage>>,
    /// Damaged copies that could not be written.
    pub(super) given_up: Mutex<Vec<BlockAddr>>,
    /// True if `damage` is not empty.
    pub(super) is_damaged: AtomicBool,
}

impl NodeStore {
    /// Returns a store whose cache of stored nodes takes at most `cache_bytes`.
    #[must_use]
    pub(crate) fn new(device: Arc<dyn Device>, layout: Layout, cache_bytes: u64) -> Self {
        Self {
            device,
            cache: NodeCache::new(cache_bytes),
            layout: RwLock::new(layout),
            groups_start: layout.groups_start(),
            now: AtomicU64::new(0),
            live: Arc::new(AtomicUsize::new(0)),
            reads_all: false,
            frees: AtomicU64::new(0),
            damage: Mutex::default(),
            given_up: Mutex::default(),
            is_damaged: AtomicBool::new(false),
        }
    }

    /// Returns the store, which from now on reads and verifies every copy of a node.
    #[must_use]
    pub(crate) fn reading_all(mut self) -> Self {
        self.reads_all = true;
        self
    }

    /// Notes that the pool has grown to `layout`.
    pub(crate) fn set_layout(&self, layout: Layout) {
        *self.layout.write() = layout;
    }

    /// Returns the first block of the first group, which never changes.
    #[must_use]
    pub(crate) const fn groups_start(&self) -> u64 {
        self.groups_start
    }

    /// Notes that no stored node holds a birth later than `generation`.
    pub(crate) fn set_now(&self, generation: Generation) {
        self.now.fetch_max(generation.0, Ordering::Relaxed);
    }

    /// Returns the number of nodes in memory, which a checkpoint would store.
    #[must_use]
    pub(crate) fn memory_nodes(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Reads entries from `first` on of a stored node at `level`.
    pub(super) fn read(
        &self,
        pointer: Pointer,
        level: u8,
        first: usize,
        out: &mut [Pointer],
    ) -> Result<()> {
        if self.cache.read(pointer, first, out).is_none() {
            let entries = self.load_uncached(pointer, level)?;
            out.copy_from_slice(&entries[first..first + out.len()]);
        }
        Ok(())
    }

    /// Returns a copy of a stored node.
    pub(super) fn load(&self, pointer: Pointer, level: u8) -> Result<Box<Entries>> {
        match self.cache.copy(pointer) {
            Some(entries) => Ok(entries),
            None => self.load_uncached(pointer, level),
        }
    }

    #[cold]
    fn load_uncached(&self, pointer: Pointer, level: u8) -> Result<Box<Entries>> {
        let bounds = Bounds {
            layout: *self.layout.read(),
            now: Generation(self.now.load(Ordering::Relaxed)),
        };
        let corrupt = CorruptKind::NodeChecksum(pointer.addr());
        let (entries, is_whole) = self.read_copies(pointer, corrupt, |block| {
            let entries = Box::new(node::decode(block));
            node::verify(&entries, pointer.addr(), level, &bounds)?;
            Ok(entries)
        })?;
        // A node with a damaged copy is read again until that is healed.
        if is_whole {
            self.cache.insert(pointer, &entries);
        }
        Ok(entries)
    }

    /// Caches a node that was just stored.
    pub(super) fn remember(&self, pointer: Pointer, entries: &Entries) {
        self.cache.insert(pointer, entries);
    }
}
