//! Checkpoints: the state of one moment is written beside the old one, and then replaces it.
//!
//! 1. The cut: all appends and publications are held up while the changed volumes' roots and counts
//!    and the log's position are noted. The generation rises.
//! 2. Memory nodes below those roots, the catalogue, and the bitmaps of the groups that changed
//!    are written to blocks and slots that the last checkpoint does not use.
//! 3. A barrier, the superblock, a barrier.
//! 4. The log's head moves to the cut, and blocks freed before the cut can be reused.
//!
//! Writers go on during 2 to 4. If the host has no space for a write, the space reserved there is
//! used (`host`). If that is not enough, or something cannot be read, the checkpoint is postponed:
//! the next call continues where it stopped, and until then the pool behaves as during a running
//! checkpoint. If a change fails in any other way, or a barrier fails, the pool stops: the last
//! checkpoint and the log still have everything, and the next open finds it.

use super::catalogue::{Catalogue, Change, Pen};
use super::forest::{Counts, VolumeNode};
use super::shared::{Changes, Shared};
use super::volume::VolumeCore;
use crate::log::Position;
use crate::map::{Ledger, Node, Outlet, Persist, Root};
use crate::space::{BlockList, Committed};
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, Error, Generation, Result};
use cowshed_format::catalogue::{EntryId, VolumeEntry};
use cowshed_format::device::Device;
use cowshed_format::{Pointer, Superblock};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// State that only the checkpoint uses.
pub(super) struct Checkpointer {
    pub(super) catalogue: Catalogue,
    pub(super) committed: Committed,
    /// The last superblock written.
    pub(super) superblock: Superblock,
    /// The slot that holds it.
    pub(super) slot: u8,
    /// A postponed checkpoint.
    unfinished: Option<Box<Unfinished>>,
}

impl Checkpointer {
    pub(super) const fn new(
        catalogue: Catalogue,
        committed: Committed,
        superblock: Superblock,
        slot: u8,
    ) -> Self {
        Self {
            catalogue,
            committed,
            superblock,
            slot,
            unfinished: None,
        }
    }
}

impl Checkpointer {
    /// Returns true if a checkpoint has begun and waits to be continued.
    pub(super) const fn is_postponed(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Returns the places of the last superblock that do not hold it.
    pub(super) fn damaged_superblocks(&self, device: &dyn Device) -> Vec<BlockAddr> {
        let expected = self.superblock.encode();
        let places = self.superblock.layout.superblock_slots(self.slot);
        let is_damaged = |addr: &BlockAddr| {
            let mut bytes = vec![0; BLOCK_BYTES];
            let is_right = |bytes: &[u8]| bytes == expected;
            let read = device.read_accepted(&mut bytes, addr.offset_bytes(), true, &is_right);
            !read.is_ok_and(|is_right| is_right)
        };
        places.into_iter().filter(is_damaged).collect()
    }

    /// Returns the places of damaged current bitmaps; the next checkpoint writes them anew.
    pub(super) fn damaged_bitmaps(&mut self, device: &dyn Device) -> Vec<BlockAddr> {
        // A postponed checkpoint may have written half of the next bitmaps.
        match self.unfinished {
            Some(_) => Vec::new(),
            None => self.committed.find_damaged(device),
        }
    }
}

/// A checkpoint between its cut and its end, with its progress.
struct Unfinished {
    cut: Cut,
    persist: Persist,
    /// The account of the catalogue's own map during the catalogue's change.
    ledger: Ledger,
    step: Step,
}

/// The next step of a checkpoint. Each step may be repeated, except the one that marks blocks.
enum Step {
    /// Storing the volumes' maps.
    Maps,
    /// Changing the catalogue.
    Catalogue {
        change: Change,
        /// The volumes' root pointers.
        roots: Vec<Pointer>,
        /// Number of blocks placed before.
        before: u64,
        /// Number of second copies of nodes for which no place was found: they were promised.
        copies_missing: u64,
    },
    /// Marking blocks in the bitmaps.
    Mark(Written),
    /// Writing bitmaps and superblock.
    Commit(Written),
}

/// The result of the catalogue's change.
#[derive(Clone, Copy)]
struct Written {
    catalogue_root: Pointer,
    /// Number of blocks that it took.
    used: u64,
    /// Number of blocks promised to maps that were not needed.
    unused: u64,
}

/// The state of one moment, as far as it has changed since the last cut.
struct Cut {
    generation: Generation,
    position: Position,
    volumes: Vec<VolumeCut>,
    changes: Changes,
    born: BlockList,
    freed: BlockList,
    next_volume_id: u64,
    volume_count: u64,
    /// True if the pool was closed before the cut: nothing is appended behind it.
    closed: bool,
}

struct VolumeCut {
    core: Arc<VolumeCore>,
    root: Arc<Root>,
    settled: u64,
    /// The entry, complete except for the root's pointer.
    entry: VolumeEntry,
}

impl Shared {
    /// Runs a checkpoint.
    pub(super) fn checkpoint(&self) -> Result<()> {
        let mut checkpointer = self.checkpointer.lock();
        self.run(&mut checkpointer)
    }

    /// Runs a checkpoint, unless one has finished since `seen` was read from `checkpoints`.
    pub(super) fn checkpoint_after(&self, seen: u64) -> Result<()> {
        let mut checkpointer = self.checkpointer.lock();
        if self.checkpoints.load(Ordering::Acquire) > seen {
            return Ok(());
        }
        match checkpointer.unfinished.take() {
            Some(unfinished) => self.go_on(&mut checkpointer, unfinished),
            None => self.run(&mut checkpointer),
        }
    }

    /// Runs a checkpoint; `checkpointer` is its locked state.
    pub(super) fn run(&self, checkpointer: &mut Checkpointer) -> Result<()> {
        self.check_running()?;
        // The last checkpoint of a closed pool is final: another process may have the pool by now.
        if checkpointer.superblock.clean && self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        if let Some(unfinished) = checkpointer.unfinished.take() {
            self.go_on(checkpointer, unfinished)?;
        }
        self.heal_locked(checkpointer);
        let unfinished = Unfinished {
            cut: self.cut(),
            persist: Persist::default(),
            ledger: Ledger::default(),
            step: Step::Maps,
        };
        self.go_on(checkpointer, Box::new(unfinished))
    }

    /// Continues a checkpoint; postpones it, or stops the pool, if it fails.
    fn go_on(
        &self,
        checkpointer: &mut Checkpointer,
        mut unfinished: Box<Unfinished>,
    ) -> Result<()> {
        let outcome = self.with_host_reserve(|| self.write_cut(checkpointer, &mut unfinished));
        if let Err(error) = &outcome {
            if matches!(unfinished.step, Step::Mark(_)) {
                self.stop(error);
            } else {
                checkpointer.unfinished = Some(unfinished);
            }
        }
        self.space_wait.tell();
        outcome
    }

    fn cut(&self) -> Cut {
        let forest = self.forest.read();
        let _cut = self.cut.write();
        let mut changes = std::mem::take(&mut *self.changes.lock());
        let generation = Generation(self.generation.fetch_add(1, Ordering::AcqRel));
        self.last_cut.store(generation.0, Ordering::Release);
        self.store.set_now(generation);
        let (mut born, mut freed) = (BlockList::default(), BlockList::default());
        let mut replaced = Vec::new();
        let mut volumes = Vec::with_capacity(changes.volumes.len());
        for core in changes.volumes.drain(..) {
            core.changed.store(false, Ordering::Release);
            core.stream.lock().release(&self.space);
            let mut writer = core.writer.lock();
            born.append(&mut writer.ledger.born);
            freed.append(&mut writer.ledger.freed);
            replaced.append(&mut writer.ledger.replaced);
            writer.freed_counted = 0;
            let branch = writer.branch;
            drop(writer);
            let Some(volume_node) = forest.volumes.get(&core.id) else {
                continue;
            };
            volumes.push(volume_cut(volume_node, branch));
        }
        self.resolve(replaced, &mut freed);
        self.freed_since_cut.store(0, Ordering::Relaxed);
        self.pending_free.store(
            i64::try_from(freed.blocks()).unwrap_or(0),
            Ordering::Relaxed,
        );
        Cut {
            generation,
            position: self.log.position(),
            volumes,
            changes,
            born,
            freed,
            next_volume_id: self.next_volume_id.load(Ordering::Acquire),
            volume_count: forest.volumes.len() as u64 + self.missing.uncounted(),
            closed: self.closed.load(Ordering::Acquire),
        }
    }

    /// Frees the places of replaced nodes: the checkpoint that could store them has finished.
    fn resolve(&self, replaced: Vec<Arc<Node>>, freed: &mut BlockList) {
        for node in replaced {
            match node.stored() {
                Some(pointer) => freed.push_copies(pointer, self.store.groups_start()),
                // Its subtree was settled before that checkpoint reached it.
                None => self.space.void_promise(1),
            }
        }
    }

    fn write_cut(&self, checkpointer: &mut Checkpointer, work: &mut Unfinished) -> Result<()> {
        loop {
            let next = match &work.step {
                Step::Maps => self.store_maps(work)?,
                Step::Catalogue { .. } => Step::Mark(self.write_catalogue(checkpointer, work)?),
                Step::Mark(written) => {
                    let written = *written;
                    // From the catalogue's ledger, only the freed blocks count: the born ones have
                    // been placed, and are in that list.
                    work.cut.freed.append(&mut work.ledger.freed);
                    let committed = &mut checkpointer.committed;
                    committed.mark(&work.cut.born)?;
                    committed.mark(&work.persist.born)?;
                    committed.clear(&work.cut.freed)?;
                    Step::Commit(written)
                }
                Step::Commit(written) => {
                    return self.commit(checkpointer, &work.cut, *written);
                }
            };
            work.step = next;
        }
    }

    fn outlet(&self) -> Outlet<'_> {
        Outlet {
            store: &self.store,
            space: &self.space,
            device: &*self.device,
        }
    }

    fn store_maps(&self, work: &mut Unfinished) -> Result<Step> {
        let mut roots = Vec::with_capacity(work.cut.volumes.len());
        for volume in &work.cut.volumes {
            let root = work
                .persist
                .root(self.outlet(), &volume.root, volume.settled)?;
            roots.push(root);
        }
        let mut entries = Vec::with_capacity(work.cut.volumes.len());
        for (volume, root) in work.cut.volumes.iter_mut().zip(&roots) {
            volume.entry.root = *root;
            let id = EntryId::Volume(volume.core.id.0);
            entries.push((id, Some(volume.entry.encode())));
        }
        let gone = std::mem::take(&mut work.cut.changes.gone).into_iter();
        entries.extend(gone.map(|id| (EntryId::Volume(id.0), None)));
        let records = std::mem::take(&mut work.cut.changes.records).into_iter();
        entries.extend(records.map(|(id, entry)| (EntryId::Record(id), entry)));
        Ok(Step::Catalogue {
            change: Change::new(&entries),
            roots,
            before: work.persist.born.blocks(),
            copies_missing: work.persist.copies_missing,
        })
    }

    /// Writes the changed entries, and drops the nodes that are stored now.
    fn write_catalogue(
        &self,
        checkpointer: &mut Checkpointer,
        work: &mut Unfinished,
    ) -> Result<Written> {
        let Step::Catalogue {
            change,
            roots,
            before,
            copies_missing,
        } = &mut work.step
        else {
            unreachable!("the caller has looked")
        };
        let outlet = self.outlet();
        let mut pen = Pen {
            outlet,
            persist: &mut work.persist,
            ledger: &mut work.ledger,
            generation: work.cut.generation,
            limit: checkpointer.superblock.generation,
        };
        let catalogue = &mut checkpointer.catalogue;
        catalogue.change(change, &mut pen)?;
        let root = catalogue.tree.root_to_keep();
        let catalogue_root = work.persist.root(outlet, &root, 0)?;
        work.persist.finish(outlet)?;
        catalogue.tree.let_go(&root, catalogue_root);
        for (volume, pointer) in work.cut.volumes.iter().zip(roots) {
            volume.core.tree.let_go(&volume.root, *pointer);
        }
        Ok(Written {
            catalogue_root,
            used: work.persist.born.blocks() - *before,
            unused: *copies_missing,
        })
    }

    /// Makes the new state the pool's durable one.
    fn commit(&self, checkpointer: &mut Checkpointer, cut: &Cut, written: Written) -> Result<()> {
        let committed = &mut checkpointer.committed;
        committed.write(&*self.device, cut.generation)?;
        self.log.barrier()?;
        // On closing, a salt that no record will ever have.
        let clean = cut.closed;
        let superblock = Superblock {
            clean,
            groups_initialized: committed.initialized(),
            generation: cut.generation,
            log_sequence: cut.position.sequence,
            log_offset: cut.position.bytes % self.log.ring_bytes(),
            log_salt: if clean {
                rand::random()
            } else {
                self.log.salt()
            },
            catalogue_root: written.catalogue_root,
            catalogue_height: checkpointer.catalogue.tree.root().height,
            catalogue_blocks: checkpointer.catalogue.blocks(),
            used_blocks: committed.used_blocks(),
            bitmaps_digest: committed.digest(),
            volume_count: cut.volume_count,
            next_volume_id: cut.next_volume_id,
            ..checkpointer.superblock.clone()
        };
        self.write_superblock(checkpointer, superblock)?;
        checkpointer.committed.settle();
        self.log.release(cut.position);
        self.store.note_frees();
        self.space.free(&cut.freed);
        // Nothing is allocated in a new part of the pool before a superblock that includes it is
        // durable.
        let layout = checkpointer.superblock.layout;
        if layout != self.space.layout() {
            self.space.grow(layout);
        }
        // Blocks beyond the promised ones come out of the reserve that is kept for this.
        let (used, promised) = (written.used, self.space.in_copies(cut.changes.promised));
        self.space.reserve_again(used.saturating_sub(promised));
        self.space
            .unreserve(promised.saturating_sub(used) + written.unused);
        self.pending_free.store(0, Ordering::Relaxed);
        self.checkpoints.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Begins a life of the pool with its own salt, so that records that an earlier life may have
    /// left behind the log's end are void. If an unfinished checkpoint has left bitmaps, this is a
    /// whole checkpoint: a superblock alone, with its higher generation, would make those bitmaps
    /// count.
    pub(super) fn begin_log(&self, position: Position) -> Result<()> {
        self.log.restart(position);
        let mut checkpointer = self.checkpointer.lock();
        if checkpointer.committed.is_dirty() {
            let outcome = self.run(&mut checkpointer);
            return self.tolerate_no_room(outcome);
        }
        let generation = Generation(self.generation.fetch_add(1, Ordering::AcqRel));
        self.last_cut.store(generation.0, Ordering::Release);
        let log_salt = self.log.salt();
        let superblock = Superblock {
            clean: false,
            generation,
            log_salt,
            ..checkpointer.superblock.clone()
        };
        let outcome =
            self.with_host_reserve(|| self.write_superblock(&mut checkpointer, superblock.clone()));
        self.tolerate_no_room(outcome)
    }

    /// Accepts that a pool has no space for its first checkpoint, on its host or in itself: it can
    /// still be read. The log stays sealed until a checkpoint has succeeded; the next change tries
    /// again.
    pub(super) fn tolerate_no_room(&self, outcome: Result<()>) -> Result<()> {
        match outcome {
            // A failed barrier has stopped the device, whatever its reason.
            Err(error) if error.is_no_room() && self.check_running().is_ok() => {
                tracing::warn!(%error, "no space for a checkpoint: the pool can only be read");
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Writes a superblock into the slot that does not hold the last one.
    pub(super) fn write_superblock(
        &self,
        checkpointer: &mut Checkpointer,
        superblock: Superblock,
    ) -> Result<()> {
        let slot = checkpointer.slot ^ 1;
        let bytes = superblock.encode();
        for addr in superblock.layout.superblock_slots(slot) {
            self.device.write_at(&bytes, addr.offset_bytes())?;
        }
        self.device.flush()?;
        checkpointer.slot = slot;
        checkpointer.superblock = superblock;
        if let Some(mirror) = self.device.mirror() {
            mirror.note_durable(checkpointer.superblock.generation);
        }
        if let Some(note) = &self.notes.durable {
            note(checkpointer.superblock.generation);
        }
        self.log.unseal();
        Ok(())
    }
}

fn volume_cut(volume_node: &VolumeNode, branch: Generation) -> VolumeCut {
    let core = Arc::clone(&volume_node.core);
    let root = core.tree.root_to_keep();
    let settled = core.settled.load(Ordering::Acquire);
    let counts = Counts {
        branch,
        size_bytes: core.size_bytes(),
        own_blocks: core.own_blocks(),
        mapped_blocks: core.mapped_blocks(),
        settled,
    };
    let entry = volume_node.entry(Pointer::HOLE, root.height, &counts);
    VolumeCut {
        core,
        root,
        settled,
        entry,
    }
}
