//! Checkpoints: the state of one moment is written beside the old one, and then takes its place.
//!
//! 1. The cut: all appends and publications are held up for as long as it takes to note the
//!    changed volumes' roots and counts and the log's position. The generation rises.
//! 2. Memory nodes below those roots, the catalogue, and the bitmaps of the groups that changed
//!    are written to blocks and slots that the last checkpoint does not use.
//! 3. A barrier, the superblock, a barrier.
//! 4. The log's head moves to the cut, and what was freed before the cut can be used again.
//!
//! Writers go on during 2 to 4. If anything fails, the pool stops: the last checkpoint and the
//! log still have everything, and the next open finds it.

use super::catalogue::{Catalogue, Pen};
use super::forest::{Counts, Tended};
use super::shared::{Changes, Shared};
use super::volume::VolumeCore;
use crate::base::{Error, Generation, Result};
use crate::device::Device;
use crate::format::catalogue::{EntryId, VolumeEntry};
use crate::format::{Pointer, Superblock};
use crate::log::Position;
use crate::map::{Ledger, Node, Persist, Root};
use crate::space::{BlockList, Committed};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What only the checkpoint touches.
pub(super) struct Checkpointer {
    pub(super) catalogue: Catalogue,
    pub(super) committed: Committed,
    /// The last superblock written.
    pub(super) superblock: Superblock,
    /// The slot that it is in.
    pub(super) slot: u8,
}

/// The state of one moment, as far as it has changed since the last one.
struct Cut {
    generation: Generation,
    position: Position,
    volumes: Vec<VolumeCut>,
    changes: Changes,
    born: BlockList,
    freed: BlockList,
    next_volume_id: u64,
    volume_count: u64,
    /// The pool was closed before the cut: nothing is appended behind it.
    closed: bool,
}

struct VolumeCut {
    core: Arc<VolumeCore>,
    root: Arc<Root>,
    settled: u64,
    /// The entry, but for the root's pointer.
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
        self.run(&mut checkpointer)
    }

    /// Runs a checkpoint, with `checkpointer` as its present holder.
    pub(super) fn run(&self, checkpointer: &mut Checkpointer) -> Result<()> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(self.check_open().err().unwrap_or(Error::Closed));
        }
        // A closed pool's last checkpoint is the last word: another process may have it by now.
        if checkpointer.superblock.clean && self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let cut = self.cut();
        let outcome = self.write_cut(checkpointer, cut);
        if outcome.is_err() {
            self.stopped.store(true, Ordering::Release);
        }
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
            let Some(tended) = forest.volumes.get(&core.id) else {
                continue;
            };
            volumes.push(volume_cut(tended, branch));
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
            volume_count: forest.volumes.len() as u64,
            closed: self.closed.load(Ordering::Acquire),
        }
    }

    /// Finds out where replaced nodes lie: the checkpoint that could reach them has finished.
    fn resolve(&self, replaced: Vec<Arc<Node>>, freed: &mut BlockList) {
        for node in replaced {
            match node.stored() {
                Some(pointer) => freed.push(pointer.addr(), 1),
                // Its subtree was settled before that checkpoint came by.
                None => self.space.unreserve(1),
            }
        }
    }

    fn write_cut(&self, checkpointer: &mut Checkpointer, mut cut: Cut) -> Result<()> {
        let device: &dyn Device = &*self.device;
        let mut persist = Persist::new(&self.store, &self.space, device);
        let mut roots = Vec::with_capacity(cut.volumes.len());
        let mut entries = Vec::with_capacity(cut.volumes.len());
        for volume in &mut cut.volumes {
            volume.entry.root = persist.root(&volume.root, volume.settled)?;
            roots.push(volume.entry.root);
            entries.push((
                EntryId::Volume(volume.core.id.0),
                Some(volume.entry.encode()),
            ));
        }
        let promised = cut.changes.promised;
        let mut ledger = Ledger::default();
        let (catalogue_root, used) =
            self.write_catalogue(checkpointer, &mut persist, &mut ledger, &mut cut, entries)?;
        for (volume, pointer) in cut.volumes.iter().zip(roots) {
            volume.core.tree.let_go(&volume.root, pointer);
        }
        let mut freed = cut.freed;
        freed.append(&mut ledger.freed);
        let committed = &mut checkpointer.committed;
        // Of the catalogue's ledger only what was freed counts: what was born has been written,
        // and is in that list.
        committed.mark(&cut.born)?;
        committed.mark(&persist.born)?;
        committed.clear(&freed)?;
        committed.write(device, cut.generation)?;
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
            catalogue_root,
            catalogue_height: checkpointer.catalogue.tree.root().height,
            catalogue_blocks: checkpointer.catalogue.blocks(),
            used_blocks: committed.used_blocks(),
            volume_count: cut.volume_count,
            next_volume_id: cut.next_volume_id,
            ..checkpointer.superblock.clone()
        };
        self.write_superblock(checkpointer, superblock)?;
        checkpointer.committed.settle();
        self.log.release(cut.position);
        self.space.free(&freed);
        // More than was promised comes out of what is kept back for this.
        self.space.reserve_again(used.saturating_sub(promised));
        self.space.unreserve(promised.saturating_sub(used));
        self.pending_free.store(0, Ordering::Relaxed);
        self.checkpoints.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Writes the changed entries; answers the catalogue's root and the blocks that it took.
    fn write_catalogue(
        &self,
        checkpointer: &mut Checkpointer,
        persist: &mut Persist<'_>,
        ledger: &mut Ledger,
        cut: &mut Cut,
        mut entries: Vec<(EntryId, Option<Vec<u8>>)>,
    ) -> Result<(Pointer, u64)> {
        let gone = std::mem::take(&mut cut.changes.gone);
        entries.extend(gone.into_iter().map(|id| (EntryId::Volume(id.0), None)));
        let records = std::mem::take(&mut cut.changes.records);
        entries.extend(
            records
                .into_iter()
                .map(|(id, entry)| (EntryId::Record(id), entry)),
        );
        let before = persist.born.blocks();
        let mut pen = Pen {
            store: &self.store,
            space: &self.space,
            device: &*self.device,
            persist,
            ledger,
            generation: cut.generation,
            limit: checkpointer.superblock.generation,
        };
        let catalogue = &mut checkpointer.catalogue;
        catalogue.change(entries, &mut pen)?;
        let root = catalogue.tree.root_to_keep();
        let pointer = persist.root(&root, 0)?;
        persist.finish()?;
        catalogue.tree.let_go(&root, pointer);
        Ok((pointer, persist.born.blocks() - before))
    }

    /// Begins a life of the pool with a salt of its own, so that records that an earlier life may
    /// have left behind the log's end are void. Where an unfinished checkpoint has left bitmaps, a
    /// whole checkpoint: with the generation alone, they would begin to count.
    pub(super) fn begin_log(&self, position: Position) -> Result<()> {
        self.log.restart(position);
        let mut checkpointer = self.checkpointer.lock();
        if checkpointer.committed.is_dirty() {
            return self.run(&mut checkpointer);
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
        self.write_superblock(&mut checkpointer, superblock)
    }

    /// Writes a superblock into the slot that the last one is not in.
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
        Ok(())
    }
}

fn volume_cut(tended: &Tended, branch: Generation) -> VolumeCut {
    let core = Arc::clone(&tended.core);
    let root = core.tree.root_to_keep();
    let settled = core.settled.load(Ordering::Acquire);
    let counts = Counts {
        branch,
        size_bytes: core.size_bytes(),
        own_blocks: core.own_blocks(),
        mapped_blocks: core.mapped_blocks(),
        settled,
    };
    let entry = tended.entry(Pointer::HOLE, root.height, &counts);
    VolumeCut {
        core,
        root,
        settled,
        entry,
    }
}
