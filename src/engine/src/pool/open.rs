//! Opening a pool: superblock, bitmaps, catalogue, and then the log.

use super::background;
use super::catalogue::Catalogue;
use super::checkpoint::Checkpointer;
use super::forest::{Forest, VolumeNode};
use super::handle::Pool;
use super::host::HostReserve;
use super::info::{Notes, OpenOptions};
use super::lock_order::{OrderedMutex, OrderedRwLock, Rank};
use super::missing::MissingEntries;
use super::rebuild::rebuild;
use super::shared::{Changes, Shared, Signal};
use super::sides::prepare_sides;
use super::space_wait::SpaceWait;
use super::superblocks;
use super::volume::VolumeCore;
use super::watermark::Watch;
use crate::log::{Log, Position};
use crate::map::{Inheritance, NodeStore};
use crate::space::{Committed, Space};
use cowshed_format::base::sync::Mutex;
use cowshed_format::base::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use cowshed_format::base::{
    BLOCK_BYTES, BlockAddr, CorruptKind, Error, Generation, MirrorError, Name, Result,
};
use cowshed_format::catalogue::{EntryId, RecordEntry, VolumeEntry};
use cowshed_format::device::{Device, FailStopDevice, MirrorDevice, ReadOnlyDevice};
use cowshed_format::pointer::PointerKind;
use cowshed_format::superblock::INCOMPAT_MIRROR;
use cowshed_format::{Layout, Pointer, Superblock, layout::TAIL_BLOCKS};
use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Minimum number of memory nodes allowed, whatever the cache's limit.
const FEWEST_MEMORY_NODES: u64 = 512;
/// Cost of a memory node with its children's table, in bytes.
const MEMORY_NODE_BYTES: u64 = 6400;

impl Pool {
    /// Opens a pool, and recovers it if it was not closed.
    ///
    /// # Errors
    /// `NotAPool`, `Incompatible`, `Corrupt` when something that must be read is damaged, `Io`.
    pub fn open(device: Arc<dyn Device>, options: &OpenOptions) -> Result<Self> {
        let device = if options.read_only {
            Arc::new(ReadOnlyDevice::new(device))
        } else {
            device
        };
        let device = Arc::new(FailStopDevice::new(device));
        if let Some(alarm) = options.notes.device_failed.clone() {
            device.on_failure(Box::new(move || alarm()));
        }
        let (superblock, slot) = superblock_to_use(&*device, options.read_only)?;
        let layout = superblock.layout;
        device.map_log(layout.log_offset_bytes(), layout.log_bytes())?;
        let started = Instant::now();
        let shared = Arc::new(load(device, superblock, slot, options)?);
        tracing::debug!(took = ?started.elapsed(), "read the bitmaps and the catalogue");
        if options.read_only {
            shared.replay(options.resumes, true)?;
            shared.read_only.store(true, Ordering::Release);
            return Ok(Self { shared });
        }
        // Before the first write, which may need it. On a full host it is what an earlier life of
        // the pool has left.
        shared.keep_host_reserve();
        shared.replay(options.resumes, false)?;
        shared.heal();
        let size_bytes = layout.block_count() * BLOCK_BYTES as u64;
        if let Some(max_size_bytes) = options.full.max_size_bytes.filter(|max| *max < size_bytes) {
            tracing::warn!(
                size_bytes,
                max_size_bytes,
                "the pool is larger than the size up to which it may grow by itself, and does not \
                 grow"
            );
        }
        if options.background {
            background::start(&shared);
        }
        Ok(Self { shared })
    }

    /// Writes a last checkpoint and stops the background threads. Later calls return `Closed`.
    ///
    /// # Errors
    /// `Io`; nothing is lost then, and the next open recovers.
    pub fn close(&self) -> Result<()> {
        if self.shared.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        if self.shared.is_read_only() {
            return Ok(());
        }
        self.shared.space_wait.tell();
        background::stop(&self.shared);
        let mut checkpointer = self.shared.checkpointer.lock();
        // Clean already: either a checkpoint that was about to begin when the pool was closed was
        // the last one, or the host had no space for the first one of this life, so that nothing
        // can have changed.
        if checkpointer.superblock.clean {
            return Ok(());
        }
        self.shared.run(&mut checkpointer)
    }
}

/// Returns the identity of the pool on `device`, which need not be opened for that.
///
/// # Errors
/// As `Pool::open`, as far as the superblock goes.
pub fn uuid_of(device: &dyn Device) -> Result<[u8; 16]> {
    if let Some(uuid) = device.mirror().and_then(MirrorDevice::pool_uuid) {
        return Ok(uuid);
    }
    find_superblock(device).map(|(superblock, _)| superblock.uuid)
}

/// Chooses the state of a pool on the sides of a mirror, and makes the good sides equal unless it is
/// `read_only`: for who reads or repairs the pool without opening it. Any other device is left
/// alone.
///
/// # Errors
/// As `Pool::open`, as far as the sides go: `Alone` too for a side without a label, unless it is
/// `read_only`.
pub fn prepare(device: &dyn Device, read_only: bool) -> Result<()> {
    match device.mirror() {
        Some(mirror) => prepare_sides(mirror, read_only),
        None if !read_only && is_side_alone(device) => Err(MirrorError::Alone.into()),
        None => Ok(()),
    }
}

/// Returns true for the device of a side that was not opened as one, because it has no label.
#[must_use]
pub fn is_side_alone(device: &dyn Device) -> bool {
    // What else is wrong with it is for others to find.
    device.mirror().is_none()
        && find_superblock(device).is_ok_and(|(superblock, _)| superblock.is_mirrored())
}

/// Returns the superblock that counts, and its slot. The sides of a mirror are made equal before.
fn superblock_to_use(device: &dyn Device, read_only: bool) -> Result<(Superblock, u8)> {
    let Some(mirror) = device.mirror() else {
        let (superblock, slot) = find_superblock(device)?;
        if superblock.is_mirrored() {
            return Err(MirrorError::Alone.into());
        }
        return Ok((superblock, slot));
    };
    prepare_sides(mirror, read_only)?;
    let (mut superblock, slot) = find_superblock(device)?;
    // A pool that has just got a mirror says so in its next superblock.
    superblock.features[2] |= INCOMPAT_MIRROR;
    Ok((superblock, slot))
}

/// Returns the newest valid superblock and its slot, from the two slots and their copies: a copy
/// may be the only one left of the newest.
pub(super) fn find_superblock(device: &dyn Device) -> Result<(Superblock, u8)> {
    let device_blocks = device.len_bytes() / BLOCK_BYTES as u64;
    let mut found: Vec<(Superblock, u8)> = Vec::new();
    let mut refusal = Error::NotAPool;
    for slot in [0, 1] {
        match read_superblock(device, u64::from(slot)) {
            Ok(superblock) => found.push((superblock, slot)),
            // A state that a newer version wrote must not be taken back to an older one.
            Err(error @ Error::Incompatible { .. }) => return Err(error),
            Err(error) if matches!(refusal, Error::NotAPool) => refusal = error,
            Err(_) => {}
        }
    }
    // If one slot holds another pool's superblock, the newer one decides which pool this is; of
    // equals, the first one.
    let newest = found.iter().rev().max_by_key(|(found, _)| found.generation);
    let uuid = newest.map(|(newest, _)| newest.uuid);
    found.retain(|(found, _)| uuid == Some(found.uuid));
    // A pool that has just grown has its newest copies at the end of the device.
    let mut ends: Vec<u64> = found
        .iter()
        .map(|(found, _)| found.layout.block_count())
        .collect();
    ends.push(device_blocks);
    ends.sort_unstable();
    ends.dedup();
    for end in ends.into_iter().filter(|end| *end >= TAIL_BLOCKS) {
        for slot in [0, 1] {
            let copy = read_superblock(device, end - TAIL_BLOCKS + u64::from(slot));
            // A superblock at a place other than its own is data, or an earlier pool's.
            let ours = |copy: &Superblock| {
                copy.layout.block_count() == end && uuid.is_none_or(|uuid| copy.uuid == uuid)
            };
            found.extend(copy.ok().filter(ours).map(|copy| (copy, slot)));
        }
    }
    // Of equals the first one: a primary slot before its copy.
    let newest = found
        .into_iter()
        .rev()
        .max_by_key(|(found, _)| found.generation);
    let Some((newest, slot)) = newest else {
        return Err(refusal);
    };
    let pool_blocks = newest.layout.block_count();
    if pool_blocks > device_blocks {
        return Err(CorruptKind::Truncated {
            device_blocks,
            pool_blocks,
        }
        .into());
    }
    Ok((newest, slot))
}

/// Returns the superblock in one block; `NotAPool` beyond the device's end.
fn read_superblock(device: &dyn Device, block: u64) -> Result<Superblock> {
    if block >= device.len_bytes() / BLOCK_BYTES as u64 {
        return Err(Error::NotAPool);
    }
    let mut bytes = vec![0; BLOCK_BYTES];
    let is_superblock = |bytes: &[u8]| Superblock::decode(bytes).is_ok();
    let at = BlockAddr(block).offset_bytes();
    device.read_accepted(&mut bytes, at, false, &is_superblock)?;
    Superblock::decode(&bytes)
}

fn load(
    device: Arc<FailStopDevice>,
    superblock: Superblock,
    slot: u8,
    options: &OpenOptions,
) -> Result<Shared> {
    let layout = superblock.layout;
    let plain: Arc<dyn Device> = Arc::clone(&device) as Arc<dyn Device>;
    let store = NodeStore::new(Arc::clone(&plain), layout, options.cache_bytes / 2);
    store.set_now(superblock.generation);
    let mut committed = Committed::load(&*device, &superblock)?;
    let mut forest = Forest::default();
    let mut loading = Loading {
        superblock: &superblock,
        ids: HashSet::new(),
    };
    let (catalogue, loss) = Catalogue::load(&store, &superblock, |id, bytes| {
        loading.take(&mut forest, id, &bytes)
    })?;
    if loss.blocks > 0 {
        forest.skip_records();
    }
    let missing = MissingEntries::new(&loss, &forest, superblock.volume_count);
    link(&mut forest, &missing)?;
    let catalogue_root = catalogue.tree.root_to_keep();
    let mut healed = rebuild(
        &mut committed,
        &store,
        &superblock,
        &catalogue_root,
        &forest,
    );
    let damaged = superblocks::damaged(&*device, &superblock, slot);
    if damaged > 0 && !options.read_only {
        healed += damaged;
        tracing::warn!(
            "{damaged} damaged superblocks are written anew; a scrub finds what else is damaged"
        );
    }
    let start = Position {
        sequence: superblock.log_sequence,
        bytes: superblock.log_offset,
    };
    let space = Space::new(layout, superblock.metadata_copies, |group| {
        committed.bitmap(group)
    });
    committed.lost().for_each(|group| space.close_group(group));
    let nodes = (options.cache_bytes / 2 / MEMORY_NODE_BYTES).max(FEWEST_MEMORY_NODES);
    Ok(Shared {
        space,
        log: Log::new(plain, &layout, start, start, superblock.log_salt),
        store,
        uuid: superblock.uuid,
        generation: AtomicU64::new(superblock.generation.next().0),
        last_cut: AtomicU64::new(superblock.generation.0),
        next_volume_id: AtomicU64::new(superblock.next_volume_id),
        checkpointer: OrderedMutex::new(
            Rank::Checkpointer,
            Checkpointer::new(catalogue, committed, superblock, slot),
        ),
        device,
        reclaiming: OrderedMutex::new(Rank::Reclaiming, ()),
        forest: OrderedRwLock::new(Rank::Forest, forest),
        cut: OrderedRwLock::new(Rank::Cut, ()),
        changes: OrderedMutex::new(Rank::Changes, Changes::default()),
        pending_free: AtomicI64::new(0),
        freed_since_cut: AtomicU64::new(0),
        checkpoints: AtomicU64::new(0),
        memory_nodes_max: usize::try_from(nodes).unwrap_or(usize::MAX),
        closed: AtomicBool::new(false),
        read_only: AtomicBool::new(false),
        stopped: OnceLock::new(),
        signal: Arc::new(Signal::default()),
        full: options.full,
        space_wait: SpaceWait::default(),
        host_reserve: HostReserve::default(),
        healed: AtomicU64::new(healed),
        missing,
        resyncing: std::sync::Mutex::default(),
        scrubbing: std::sync::Mutex::default(),
        scrubs_waiting: AtomicU64::new(0),
        log_damage: OnceLock::new(),
        // A superblock of a recovery in memory is never durable.
        notes: if options.read_only {
            Notes::default()
        } else {
            options.notes.clone()
        },
        growth_refused: OrderedMutex::new(Rank::Growing, None),
        watermark: Watch::default(),
        threads: Mutex::default(),
    })
}

/// Adds entries of the catalogue to the forest, and refuses impossible ones.
struct Loading<'a> {
    superblock: &'a Superblock,
    ids: HashSet<Name>,
}

impl Loading<'_> {
    fn take(&mut self, forest: &mut Forest, id: EntryId, bytes: &[u8]) -> Result<()> {
        match id {
            EntryId::Volume(number) => {
                let entry = VolumeEntry::decode(bytes)?;
                let sound = entry.id.0 == number
                    && number < self.superblock.next_volume_id
                    && entry.branch <= self.superblock.generation
                    && entry
                        .parent
                        .is_none_or(|parent| parent.0 < self.superblock.next_volume_id)
                    && counts_are_possible(&entry)
                    && root_is_possible(&entry, &self.superblock.layout)
                    && entry
                        .name
                        .as_ref()
                        .is_none_or(|name| self.ids.insert(name.clone()));
                if !sound {
                    return Err(CorruptKind::Catalogue("a volume's entry is invalid").into());
                }
                forest.insert(VolumeNode {
                    core: Arc::new(VolumeCore::from_entry(&entry)),
                    name: entry.name,
                    parent: entry.parent,
                    children: BTreeSet::new(),
                    created_ns: entry.created_ns,
                    labels: entry.labels,
                });
                Ok(())
            }
            EntryId::Record(number) => {
                if forest.load_record(number, RecordEntry::decode(bytes)?) {
                    return Ok(());
                }
                Err(CorruptKind::Catalogue("a record occurs twice").into())
            }
        }
    }
}

fn counts_are_possible(entry: &VolumeEntry) -> bool {
    let most = Pointer::MAX_ADDR.0;
    entry.own_blocks <= most && entry.mapped_blocks <= most
}

fn root_is_possible(entry: &VolumeEntry, layout: &Layout) -> bool {
    match entry.root.kind() {
        Some(PointerKind::Hole | PointerKind::Lost) => true,
        Some(PointerKind::Node) => layout.holds(entry.root),
        _ => false,
    }
}

/// Registers children with their parents, and lets the settled part of a removed parent pass to its
/// child.
fn link(forest: &mut Forest, missing: &MissingEntries) -> Result<()> {
    let pairs: Vec<_> = forest
        .volumes
        .iter()
        .filter_map(|(id, volume)| Some((*id, volume.parent?)))
        .collect();
    for (id, parent) in &pairs {
        let height = forest.volumes[id].core.tree.root().height;
        let Some(parent) = forest.volumes.get_mut(parent) else {
            if missing.is_some() {
                continue;
            }
            return Err(CorruptKind::Catalogue("a volume's parent is missing").into());
        };
        if height < parent.core.tree.root().height {
            return Err(CorruptKind::Catalogue("a volume's map is lower than its parent's").into());
        }
        parent.children.insert(*id);
    }
    // Every volume must descend from a root: a cycle would be endless.
    let mut reached = 0;
    let mut next: Vec<_> = forest
        .volumes
        .iter()
        .filter(|(_, volume)| {
            let parent = volume.parent.as_ref();
            parent.is_none_or(|parent| !forest.volumes.contains_key(parent))
        })
        .map(|(id, _)| *id)
        .collect();
    while let Some(id) = next.pop() {
        reached += 1;
        next.extend(forest.volumes[&id].children.iter().copied());
    }
    if reached != forest.volumes.len() {
        return Err(CorruptKind::Catalogue("volumes are each other's parents").into());
    }
    for id in &forest.removed {
        pass_on(forest, *id);
    }
    Ok(())
}

/// Sets the inheritance of the only child of a removed volume that is being settled.
fn pass_on(forest: &Forest, removed: cowshed_format::base::VolumeId) {
    let parent = &forest.volumes[&removed];
    let settled = parent.core.settled.load(Ordering::Acquire);
    let mut children = parent.children.iter();
    if let (Some(child), None) = (children.next(), children.next())
        && settled > 0
    {
        let branch: Generation = parent.core.writer.lock().branch;
        let mut writer = forest.volumes[child].core.writer.lock();
        writer.inheritance = Some((Inheritance { branch, settled }, Arc::clone(&parent.core)));
    }
}
