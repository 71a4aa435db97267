//! Recovery: the log's changes since the last checkpoint are applied again, in memory.
//!
//! The log's records are taken in order, up to the last valid one: behind the last record known to
//! have been durable, a write whose data does not have its checksum was torn by a power cut, and
//! the log ends before it. So the pool comes back as it was at one moment, at or after the last
//! acknowledged flush. Then a checkpoint is written, with a new salt.
//!
//! If only the process died (`OpenOptions::resumes`), nothing was torn: every record's data was
//! written before the record was. All records are valid, the log continues with its salt, and the
//! checkpoint can wait: there is no barrier before the pool serves.
//!
//! A damaged map node on the path costs the rest of its own range: the blocks written there are
//! mapped anew, beside lost ranges. If entries of the catalogue are lost, what was done to those
//! volumes is left out. If the device fails to read a node, the pool is not opened, and
//! nothing is lost: the node may be readable another time.

use super::change::promises_for;
use super::forest::Forest;
use super::plan::Plan;
use super::publish::{collect_pointers, edit, settle_account};
use super::shared::{ENTRY_PROMISE, Shared};
use super::volume::{VolumeCore, Writer};
use crate::log::{Position, Replay};
use crate::map::{Edit, Link, Root};
use crate::space::BlockRun;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{
    BLOCK_BYTES, BlockAddr, BlockIndex, CorruptKind, Error, Generation, Result, Sequence, VolumeId,
};
use cowshed_format::device::{Device, MirrorDevice};
use cowshed_format::node::{NODE_ENTRIES, slot};
use cowshed_format::operation::{Operation, Run};
use cowshed_format::record::Record;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Number of new memory nodes allowed for one replayed operation; no promise is checked.
const UNBOUNDED: u64 = 1 << 32;

/// Maximum number of branches and checkpoints that fit between two records.
const MOST_GENERATIONS: u64 = 1 << 32;

impl Shared {
    /// Replays the log, if it is not empty, and writes a checkpoint, unless the log continues from
    /// the superblock of `resumes`.
    ///
    /// # Errors
    /// `LogRecord` when the log is damaged, unless `to_read`: then the pool, which is only to be
    /// read, is in its state before the damaged record.
    pub(super) fn replay(&self, resumes: Option<Generation>, to_read: bool) -> Result<()> {
        let (start, layout, salt, clean, resumes) = {
            let checkpointer = self.checkpointer.lock();
            let found = checkpointer.superblock.generation;
            if resumes.is_some_and(|durable| durable > found) {
                return Err(CorruptKind::SuperblockLost(found).into());
            }
            // A process that died may have changed one side of a mirror and not the others.
            let resumes = resumes == Some(found) && self.device.mirror().is_none();
            let superblock = &checkpointer.superblock;
            let bytes = superblock.log_offset;
            let start = Position {
                sequence: superblock.log_sequence,
                bytes,
            };
            (
                start,
                superblock.layout,
                superblock.log_salt,
                superblock.clean,
                resumes,
            )
        };
        if !resumes {
            // The superblock may come from a process that died right after writing it. The blocks
            // that the previous superblock needs must stay as they are until this one is durable.
            self.device.flush()?;
        }
        if clean {
            return self.begin_log(start);
        }
        let device: &dyn Device = &*self.device;
        let started = Instant::now();
        let mut replay = Replay::new(device, &layout, start, salt);
        if resumes {
            while let Some(record) = replay.next_record()? {
                self.replay_record(&record)?;
            }
            let end = replay.find_end()?;
            end.check()?;
            let bytes = end.position.bytes - start.bytes;
            if end.has_later {
                // A record was lost, and no record says that it was durable.
                return self.begin_anew(end.position);
            }
            self.log.resume(&end);
            tracing::debug!(bytes, took = ?started.elapsed(), "continued the log");
            self.ask(|wanted| &mut wanted.checkpoint);
            return Ok(());
        }
        let end = Replay::new(device, &layout, start, salt).find_end()?;
        if end.is_damaged && to_read {
            // The first damage counts; the pool is opened once.
            let _ = self.log_damage.set(end.position.sequence);
        } else {
            end.check()?;
        }
        if end.position == start {
            return self.begin_log(start);
        }
        let mut reached = start;
        while reached != end.position {
            let record = replay.next_record()?.ok_or(Error::NotAPool)?;
            if record.header.sequence > end.durable {
                if !self.data_is_whole(&record)? {
                    break;
                }
            } else if self.device.mirror().is_some() {
                // A side may be a copy from before this record. What no side has is lost: reading
                // it is an error.
                let _ = self.data_is_whole(&record);
            }
            self.replay_record(&record)?;
            reached = replay.position();
        }
        let bytes = reached.bytes - start.bytes;
        tracing::debug!(bytes, took = ?started.elapsed(), "replayed the log");
        self.begin_anew(reached)
    }

    /// Voids everything behind `end` in the log from here on; nothing was appended yet.
    fn begin_anew(&self, end: Position) -> Result<()> {
        self.log.restart(end);
        let outcome = self.checkpoint();
        self.tolerate_no_room(outcome)
    }

    fn data_is_whole(&self, record: &Record) -> Result<bool> {
        for operation in record.operations.iter().flatten() {
            if let Operation::Write { runs, crcs, .. } = operation
                && !self.blocks_match(runs, crcs)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn blocks_match(&self, runs: &[Run], crcs: &[u32]) -> Result<bool> {
        let mut crcs = crcs.iter();
        let mut bytes = Vec::new();
        if let Some(mirror) = self.device.mirror() {
            return self.sides_match(mirror, runs, crcs);
        }
        for run in runs {
            let Some(start) = run.addr else { continue };
            if self.space.layout().locate(start).is_none() {
                return Ok(false);
            }
            bytes.resize(run.count as usize * BLOCK_BYTES, 0);
            self.device.read_at(&mut bytes, start.offset_bytes())?;
            let blocks = bytes.as_chunks::<BLOCK_BYTES>().0;
            if !blocks
                .iter()
                .all(|block| crcs.next() == Some(&crc32(block)))
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns true if each block is whole on a side; the sides where one is not get it from there.
    fn sides_match<'a>(
        &self,
        mirror: &MirrorDevice,
        runs: &[Run],
        mut crcs: impl Iterator<Item = &'a u32>,
    ) -> Result<bool> {
        let (mut all, mut failure) = (true, None);
        for run in runs {
            let Some(start) = run.addr else { continue };
            if self.space.layout().locate(start).is_none() {
                return Ok(false);
            }
            let count = run.count as usize;
            let expected: Vec<u32> = crcs.by_ref().take(count).copied().collect();
            let right = |bytes: &[u8], expected: &[u32]| {
                let blocks = bytes.as_chunks::<BLOCK_BYTES>().0;
                blocks.len() == expected.len()
                    && (blocks.iter().zip(expected)).all(|(block, crc)| crc32(block) == *crc)
            };
            let offset_bytes = start.offset_bytes();
            let is_right = |bytes: &[u8]| right(bytes, &expected);
            let whole = mirror.make_right(offset_bytes, count * BLOCK_BYTES, &is_right);
            if whole.is_ok_and(|is_right| is_right) {
                continue;
            }
            // Each side may have another part of it.
            for (crc, addr) in expected.iter().zip(start.0..) {
                let is_right = |bytes: &[u8]| right(bytes, &[*crc]);
                let at = BlockAddr(addr).offset_bytes();
                match mirror.make_right(at, BLOCK_BYTES, &is_right) {
                    Ok(is_right) => all &= is_right,
                    // The others are made right all the same.
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
        }
        failure.map_or(Ok(all), Err)
    }

    fn replay_record(&self, record: &Record) -> Result<()> {
        let sequence = record.header.sequence;
        let impossible = |what| CorruptKind::LogReplay { sequence, what };
        let operations = record
            .operations
            .as_ref()
            .ok_or(impossible("its kind is unknown"))?;
        if record.header.generation < self.generation() {
            return Err(impossible("its generation is older than the last checkpoint's").into());
        }
        if record.header.generation.0 - self.generation().0 > MOST_GENERATIONS {
            return Err(
                impossible("its generation is too far ahead of the last checkpoint's").into(),
            );
        }
        self.generation
            .store(record.header.generation.0, Ordering::Release);
        for operation in operations {
            match operation {
                Operation::Write {
                    volume,
                    first,
                    runs,
                    crcs,
                } => {
                    if !self.is_missing(*volume) {
                        self.replay_write(sequence, *volume, *first, runs, crcs)?;
                    }
                }
                Operation::Discard {
                    volume,
                    first,
                    count,
                } => {
                    if self.is_missing(*volume) {
                        continue;
                    }
                    let core = self.replayed(sequence, *volume)?;
                    let end = first.0.checked_add(*count);
                    let end = end.ok_or(impossible("its range is too large"))?;
                    let mut writer = core.writer.lock();
                    self.space.promise_again(UNBOUNDED + ENTRY_PROMISE);
                    let generation = self.generation();
                    let done =
                        replaying(self, &core, &mut writer, generation).discard(first.0..end);
                    settle_account(self, &core, &mut writer, UNBOUNDED);
                    done?;
                }
                change => {
                    let mut forest = self.forest.write();
                    let planned = Plan::new(&forest).add(change);
                    let planned = match planned {
                        Err(Error::NoSuchVolume(id)) if self.missing.is_some() => {
                            self.leave_out(&forest, change, id);
                            continue;
                        }
                        Err(Error::NotAncestor { .. })
                            if self.missing.is_some() && forest.may_roll_back(change) =>
                        {
                            Ok(())
                        }
                        planned => planned,
                    };
                    planned
                        .map_err(|_| impossible("it contradicts the volumes in the catalogue"))?;
                    self.space.promise_again(promises_for(change));
                    self.apply(&mut forest, change);
                }
            }
        }
        Ok(())
    }

    /// Returns true if the entry of `volume` is lost, and notes that.
    fn is_missing(&self, volume: VolumeId) -> bool {
        let is_missing =
            self.missing.is_some() && !self.forest.read().volumes.contains_key(&volume);
        if is_missing {
            self.missing.note(volume);
        }
        is_missing
    }

    /// Leaves out a change of the missing volume `id`.
    fn leave_out(&self, forest: &Forest, change: &Operation, id: VolumeId) {
        self.missing.note(id);
        let new = match change {
            Operation::Snapshot { snapshot: new, .. } | Operation::Clone { volume: new, .. } => {
                self.missing.note(*new);
                new
            }
            Operation::Rollback {
                volume, discarded, ..
            } => {
                if let Some(volume) = forest.volumes.get(volume) {
                    self.lose_contents(&volume.core);
                }
                discarded
            }
            _ => return,
        };
        self.next_volume_id.fetch_max(new.0 + 1, Ordering::AcqRel);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Gives up the contents of a volume that was rolled back to a missing snapshot. What its map
    /// led to stays in use until a repair.
    fn lose_contents(&self, core: &Arc<VolumeCore>) {
        let height = core.tree.root_to_keep().height;
        core.tree.set_root(Root {
            height,
            link: Link::Lost(self.generation()),
        });
        core.own.store(0, Ordering::Relaxed);
        core.mapped.store(0, Ordering::Relaxed);
        self.space.promise_again(ENTRY_PROMISE);
        self.note_changed(core);
        let volume = core.id;
        tracing::error!(%volume, "the volume was rolled back to one that is missing: it is lost");
    }

    fn replayed(&self, sequence: Sequence, volume: VolumeId) -> Result<Arc<VolumeCore>> {
        let forest = self.forest.read();
        let found = forest
            .volumes
            .get(&volume)
            .map(|volume| Arc::clone(&volume.core));
        let what = "its volume does not exist or is a snapshot";
        let writable = found.filter(|core| !core.frozen.load(Ordering::Relaxed));
        writable.ok_or_else(|| CorruptKind::LogReplay { sequence, what }.into())
    }

    fn replay_write(
        &self,
        sequence: Sequence,
        volume: VolumeId,
        first: BlockIndex,
        runs: &[Run],
        crcs: &[u32],
    ) -> Result<()> {
        let core = self.replayed(sequence, volume)?;
        for run in runs {
            let Some(start) = run.addr else { continue };
            if !self.space.claim(BlockRun {
                start,
                count: run.count,
            }) {
                return Err(CorruptKind::UsedTwice(start).into());
            }
        }
        let blocks = runs.iter().map(|run| u64::from(run.count)).sum::<u64>();
        if first.0.checked_add(blocks).is_none_or(|end| end > 1 << 40) {
            return Err(CorruptKind::LogReplay {
                sequence,
                what: "its range is too large",
            }
            .into());
        }
        let generation = self.generation();
        let mut pointers = Vec::new();
        collect_pointers(runs, crcs, generation, &mut pointers);
        let mut writer = core.writer.lock();
        self.space.promise_again(UNBOUNDED + ENTRY_PROMISE);
        let outcome = (|| {
            let mut edit = replaying(self, &core, &mut writer, generation);
            let (mut at, mut rest) = (first.0, pointers.as_slice());
            while !rest.is_empty() {
                let (here, more) = rest.split_at((NODE_ENTRIES - slot(at, 1)).min(rest.len()));
                let leaf = edit.leaf(at)?;
                edit.set(&leaf, at, here);
                at += here.len() as u64;
                rest = more;
            }
            Ok(())
        })();
        settle_account(self, &core, &mut writer, UNBOUNDED);
        outcome
    }
}

/// Returns an edit that gives up everything below a damaged node. The change was acknowledged, and
/// so were the log's changes of the rest of the pool: one node must not cost all of them.
fn replaying<'a>(
    shared: &'a Shared,
    core: &'a VolumeCore,
    writer: &'a mut Writer,
    generation: Generation,
) -> Edit<'a> {
    Edit {
        gives_up: true,
        ..edit(shared, core, writer, generation)
    }
}

const _: () = assert!(BlockAddr(1).offset_bytes() == BLOCK_BYTES as u64);
