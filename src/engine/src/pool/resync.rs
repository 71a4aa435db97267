//! Bringing a side of a mirror up to date, while the pool is in use.
//!
//! From the start, all changes go to the side as well (`MirrorDevice::join`). Then what it lacks is
//! copied: everything that is in use, or, if it is known what it has, what was born since. Then its
//! labels call it good. The blocks are copied in the order of their places, and the labels say now
//! and then how far that has come: if it is stopped, the next time goes on there.
//!
//! # Invariants
//! - What was written before the side joined and is in use when it becomes good has been copied;
//!   what was written later went to it anyway.
//! - What one good side has right is copied right, even if another one has it wrong without knowing:
//!   a block that is not known to be the same on all of them is verified before it counts as copied.
//! - While maps are walked for what was born since, no removed volume is settled: nothing moves from
//!   a map that is still to be walked into one that was. A volume that is made meanwhile may have
//!   what others had: it is walked afterwards.

use super::handle::Pool;
use super::open::find_superblock;
use super::shared::Shared;
use super::sides::is_slot;
use crate::map::{Tree, Unread, young_leaf};
use crate::space::{BlockRun, Places};
use cowshed_format::base::background_yield::{self, Background};
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, Generation, Result, VolumeId};
use cowshed_format::device::mirror::{Side, SideStanding};
use cowshed_format::device::{Device, MirrorDevice};
use cowshed_format::group::SLOT_BYTES;
use cowshed_format::side::{Lack, SideState};
use cowshed_format::{Pointer, Superblock};
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, TryLockError};
use std::thread;
use std::time::Duration;

/// Maximum number of bytes copied while changes wait.
const PIECE_BYTES: u64 = 256 << 10;
/// The interval at which a caller that waits for another one is asked whether it still wants to.
const WAIT: Duration = Duration::from_millis(50);
/// Number of times that the labels say how far the copying has come.
const STEPS: u64 = 16;
/// Minimum number of bytes copied between two of them.
const STEP_BYTES_MIN: u64 = 1 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Gets the number of bytes copied and of all that are to be; stops the copying if it returns false.
pub type CopyProgress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

impl Pool {
    /// Brings every side up to date that is there and behind. `progress(done, total)` gets numbers
    /// of bytes, and stops it by returning `false`; it is continued another time then.
    ///
    /// # Errors
    /// `Mirror` when a side fails; `Io` when the pool has stopped.
    pub fn resync(&self, progress: CopyProgress<'_>) -> Result<()> {
        self.shared.check_open()?;
        self.shared.resync(progress)
    }
}

impl Shared {
    /// Brings every side up to date that is there and behind, one after the other; one that fails
    /// does not keep another one from it.
    pub(super) fn resync(&self, tell: CopyProgress<'_>) -> Result<()> {
        let Some(mirror) = self.device.mirror() else {
            return Ok(());
        };
        let Some(_one) = self.begin_resync(mirror, tell) else {
            return Ok(());
        };
        let mut outcome = Ok(());
        for report in mirror.report() {
            if !matches!(report.standing, SideStanding::Behind(_)) {
                continue;
            }
            if let Some(side) = mirror.side(report.id) {
                outcome = outcome.and(self.resync_side(mirror, &side, tell));
                self.check_open()?;
            }
        }
        outcome
    }

    /// Waits until nobody else copies to a side; `None` if the caller does not want to wait.
    pub(super) fn begin_resync(
        &self,
        mirror: &MirrorDevice,
        tell: CopyProgress<'_>,
    ) -> Option<MutexGuard<'_, ()>> {
        loop {
            match self.resyncing.try_lock() {
                Ok(one) => return Some(one),
                // A thread that panicked has left nothing half-done that matters.
                Err(TryLockError::Poisoned(one)) => return Some(one.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
            let side = mirror.report().into_iter().find(|side| side.is_joining);
            let (done, total) = side.map_or((0, 0), |it| (it.copied_bytes, it.total_bytes));
            if !tell(done, total) {
                return None;
            }
            thread::sleep(WAIT);
        }
    }

    /// Brings the side at `path` up to date, if it is behind.
    pub(super) fn resync_at(&self, path: &Path, tell: CopyProgress<'_>) -> Result<()> {
        let mirror = self.mirror()?;
        let Some(_one) = self.begin_resync(mirror, tell) else {
            return Ok(());
        };
        let side = mirror.report().into_iter().find(|side| side.path == path);
        let behind = side.filter(|side| matches!(side.standing, SideStanding::Behind(_)));
        match behind.and_then(|side| mirror.side(side.id)) {
            Some(side) => self.resync_side(mirror, &side, tell),
            None => Ok(()),
        }
    }

    fn resync_side(
        &self,
        mirror: &MirrorDevice,
        side: &Arc<Side>,
        tell: CopyProgress<'_>,
    ) -> Result<()> {
        let Some(SideState::Behind(known)) = mirror.state_of(side.id()) else {
            return Ok(());
        };
        let pool_bytes = self.space.layout().block_count() * BLOCK;
        let lack = known.and(self.lack_of(side, known));
        let lack = mirror.join(side, lack, pool_bytes)?;
        tracing::info!(path = %side.path().display(), since = lack.since.0, "copying to a side");
        let mut copying = Copying {
            shared: self,
            mirror,
            side,
            tell,
            done: 0,
            total: 0,
            differing: Places::default(),
        };
        let copied = copying.everything(lack);
        match copied {
            Ok(true) => {
                mirror.complete(side)?;
                tracing::info!(path = %side.path().display(), "a side is up to date");
                Ok(())
            }
            outcome => {
                mirror.give_up_joining(side);
                outcome.map(drop)
            }
        }
    }

    /// Returns what a side lacks, as far as it tells itself; its own label, if it calls it good, is
    /// older than `known`.
    fn lack_of(&self, side: &Side, known: Lack) -> Lack {
        match find_superblock(side.device()) {
            Ok((found, _)) if found.uuid == self.uuid => {
                let claimed = side.claims_behind();
                let lack = claimed.unwrap_or(Lack::since(known.since));
                lack.and_since(found.generation)
            }
            _ => Lack::ALL,
        }
    }
}

/// One side that is being copied to.
struct Copying<'a> {
    shared: &'a Shared,
    mirror: &'a MirrorDevice,
    side: &'a Arc<Side>,
    tell: CopyProgress<'a>,
    done: u64,
    total: u64,
    /// Blocks that were copied, and that are not known to be the same on all good sides.
    differing: Places,
}

impl Copying<'_> {
    /// Copies what the side lacks; false if the caller wants to stop.
    fn everything(&mut self, lack: Lack) -> Result<bool> {
        let _background = Background::begin();
        // What a checkpoint that ran meanwhile had stored before is part of the maps now.
        self.shared.checkpoint()?;
        if !self.structures()? {
            return Ok(false);
        }
        let wanted = self.wanted(lack)?;
        self.total = self.done + wanted.count() * BLOCK;
        let step = (wanted.count() / STEPS * BLOCK).max(STEP_BYTES_MIN);
        let mut noted = self.done;
        for run in wanted.runs() {
            let (mut at, end) = (run.start.offset_bytes(), run.end().offset_bytes());
            while at < end {
                let len_bytes = step.min(end - at);
                if !self.range(at, len_bytes)? {
                    return Ok(false);
                }
                at += len_bytes;
                let below = BlockAddr(at / BLOCK);
                if self.done - noted >= step && below > lack.below {
                    self.verify()?;
                    self.mirror.note_copied(self.side, below)?;
                    noted = self.done;
                }
            }
        }
        self.verify()?;
        Ok(true)
    }

    /// Copies the blocks of `differing` again, from a side that has the checksum of the pointer to the
    /// block. Sides with other bytes get them, too.
    fn verify(&mut self) -> Result<()> {
        let mut differing = std::mem::take(&mut self.differing);
        if differing.count() == 0 {
            return Ok(());
        }
        let (mirror, side) = (self.mirror, self.side);
        let groups_start = self.shared.store.groups_start();
        let mut outcome = Ok(());
        let mut visit = |pointer: Pointer| {
            let is_right = |bytes: &[u8]| crc32(bytes) == pointer.crc();
            for place in pointer.places(groups_start) {
                if outcome.is_err() || !differing.has(place) {
                    continue;
                }
                // What no side has right is lost, unless the block is another's by now.
                match copy_right(mirror, side, place, BLOCK_BYTES, &is_right) {
                    Ok(true) => differing.remove(place),
                    Ok(false) => {}
                    Err(error) => outcome = Err(error),
                }
            }
        };
        let no_reclaim = self.shared.reclaiming.lock();
        let is_complete = self.walk_catalogue(Generation(0), &mut visit)?
            & self.walk_volumes(Generation(0), &mut visit)?;
        drop(no_reclaim);
        if !is_complete && differing.count() > 0 {
            tracing::warn!(
                blocks = differing.count(),
                "blocks that differ between sides were copied, and no checksum tells which are right"
            );
        }
        outcome
    }

    /// Copies a structure again, if it has blocks of `differing`, from a side that has it sound.
    fn verify_structure(
        &mut self,
        start: BlockAddr,
        len_bytes: usize,
        is_sound: &dyn Fn(&[u8]) -> bool,
    ) -> Result<()> {
        let places = (start.0..start.0 + (len_bytes / BLOCK_BYTES) as u64).map(BlockAddr);
        if !places.clone().any(|place| self.differing.has(place)) {
            return Ok(());
        }
        if copy_right(self.mirror, self.side, start, len_bytes, is_sound)? {
            places.for_each(|place| self.differing.remove(place));
        }
        Ok(())
    }

    /// Returns the blocks that the side may lack.
    fn wanted(&mut self, lack: Lack) -> Result<Places> {
        let mut wanted = Places::default();
        self.add_unsettled(&mut wanted);
        let since = if lack.since > Generation(0) {
            lack.since
        } else {
            // All that is in use, whenever it was born.
            let has_some = lack.until > lack.since;
            let from = if has_some { lack.below } else { BlockAddr(0) };
            self.add_taken(from, &mut wanted);
            lack.until
        };
        if since == Generation(0) {
            return Ok(wanted);
        }
        let groups_start = self.shared.store.groups_start();
        let mut add = |pointer: Pointer| {
            let lacked = |place: &BlockAddr| lack.has(*place, pointer.birth());
            for start in pointer.places(groups_start).filter(lacked) {
                wanted.add(BlockRun { start, count: 1 });
            }
        };
        let no_reclaim = self.shared.reclaiming.lock();
        let is_complete = self.walk_catalogue(since, &mut add)?
            & self.walk_volumes(since, &mut add)?
            & !self.shared.missing.is_some();
        drop(no_reclaim);
        // What the last checkpoint leads to may have been replaced before the walk came there. What
        // this one leads to, and was born before the side joined, was there.
        self.shared.checkpoint()?;
        if !is_complete {
            // What unreadable nodes lead to is in use.
            self.add_taken(BlockAddr(0), &mut wanted);
        }
        Ok(wanted)
    }

    /// Adds the blocks at and behind `from` that are in use.
    fn add_taken(&self, from: BlockAddr, wanted: &mut Places) {
        let space = &self.shared.space;
        for run in (0..space.group_count()).flat_map(|number| space.taken_runs(number, None)) {
            wanted.add(run.behind(from));
        }
    }

    /// Adds the blocks that are taken and not part of the last checkpoint: a writer may have written
    /// one before the side joined, and make it part of its volume after the maps have been walked.
    fn add_unsettled(&self, wanted: &mut Places) {
        let checkpointer = self.shared.checkpointer.lock();
        let space = &self.shared.space;
        for number in 0..space.group_count() {
            let settled = checkpointer.committed.bitmap(number as u64);
            for run in space.taken_runs(number, settled) {
                wanted.add(run);
            }
        }
    }

    /// Copies superblocks, the log and the bitmaps.
    fn structures(&mut self) -> Result<bool> {
        let superblock = self.superblock();
        let layout = superblock.layout;
        for slot in [0, 1] {
            for addr in layout.superblock_slots(slot) {
                if !self.range(addr.offset_bytes(), BLOCK)? {
                    return Ok(false);
                }
                let is_sound = |bytes: &[u8]| Superblock::decode(bytes).is_ok();
                self.verify_structure(addr, BLOCK_BYTES, &is_sound)?;
            }
        }
        let used = self.shared.log.used_range();
        let ring = layout.log_bytes();
        let mut at = used.start / BLOCK * BLOCK;
        while at < used.end {
            let len = (used.end.next_multiple_of(BLOCK) - at).min(ring - at % ring);
            if !self.range(layout.log_offset_bytes() + at % ring, len)? {
                return Ok(false);
            }
            at += len;
        }
        for number in 0..superblock.groups_initialized {
            for slot in [0, 1] {
                let addr = layout.bitmap_slot(number, slot);
                if !self.range(addr.offset_bytes(), SLOT_BYTES as u64)? {
                    return Ok(false);
                }
                let is_sound = |bytes: &[u8]| is_slot(bytes, &superblock, number);
                self.verify_structure(addr, SLOT_BYTES, &is_sound)?;
            }
        }
        Ok(true)
    }

    fn superblock(&self) -> Superblock {
        self.shared.checkpointer.lock().superblock.clone()
    }

    /// Visits what of the catalogue was born after `since`; false if a part could not be read.
    fn walk_catalogue(&self, since: Generation, visit: &mut dyn FnMut(Pointer)) -> Result<bool> {
        let mut walk = Walk::from(0, since);
        while walk.next.is_some() {
            let checkpointer = self.shared.checkpointer.lock();
            walk.step(self.shared, &checkpointer.catalogue.tree, visit)?;
        }
        Ok(walk.is_complete)
    }

    /// Visits what of all volumes was born after `since`; false if a part could not be read.
    fn walk_volumes(&self, since: Generation, visit: &mut dyn FnMut(Pointer)) -> Result<bool> {
        let mut walked: HashSet<VolumeId> = HashSet::new();
        let mut is_complete = true;
        loop {
            let forest = self.shared.forest.read();
            let new = forest.volumes.iter();
            let new: Vec<_> = new
                .filter(|(id, _)| !walked.contains(id))
                .map(|(id, volume)| (*id, Arc::clone(&volume.core)))
                .collect();
            drop(forest);
            if new.is_empty() {
                return Ok(is_complete);
            }
            for (id, core) in new {
                walked.insert(id);
                // What a removed volume's reclaim has settled is others'.
                let mut walk = Walk::from(core.settled.load(Ordering::Acquire), since);
                while walk.next.is_some() {
                    walk.step(self.shared, &core.tree, visit)?;
                }
                is_complete &= walk.is_complete;
            }
        }
    }

    /// Copies a range in pieces; false if the caller wants to stop.
    fn range(&mut self, offset_bytes: u64, len_bytes: u64) -> Result<bool> {
        let mut at = 0;
        while at < len_bytes {
            let piece = PIECE_BYTES.min(len_bytes - at);
            let len = usize::try_from(piece).expect("a small piece");
            let differing = self.mirror.copy(self.side, offset_bytes + at, len)?;
            for start in differing {
                self.differing.add(BlockRun { start, count: 1 });
            }
            at += piece;
            self.done += piece;
            background_yield::offer();
            self.shared.check_open()?;
            let total = self.total.max(self.done);
            self.mirror.expect_bytes(self.side, total);
            if !(self.tell)(self.done, total) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Copies what one good side has right, and writes it anew on those that do not; false if none has.
fn copy_right(
    mirror: &MirrorDevice,
    side: &Side,
    addr: BlockAddr,
    len_bytes: usize,
    is_right: &dyn Fn(&[u8]) -> bool,
) -> Result<bool> {
    let (mut bytes, at) = (vec![0; len_bytes], addr.offset_bytes());
    let found = mirror.read_verified(&mut bytes, at, true, is_right);
    Ok(found.is_ok_and(|found| found) && mirror.copy_right(side, at, len_bytes, is_right)?)
}

/// A walk through one map for what was born after a generation.
struct Walk {
    since: Generation,
    /// The block behind what has been visited; `None` at the end.
    next: Option<u64>,
    /// The place of the last node that could not be read.
    failed: Option<u64>,
    /// False once a node was left out.
    is_complete: bool,
}

impl Walk {
    const fn from(block: u64, since: Generation) -> Self {
        Self {
            since,
            next: Some(block),
            failed: None,
            is_complete: true,
        }
    }

    /// Visits what leads to the next leaf that has something, and what that has. A node that cannot be
    /// read is looked for once more, since it may have been replaced; then it is left out with all
    /// below it.
    ///
    /// # Errors
    /// When the pool is closed or has stopped.
    fn step(&mut self, shared: &Shared, tree: &Tree, visit: &mut dyn FnMut(Pointer)) -> Result<()> {
        let Some(from) = self.next else { return Ok(()) };
        shared.check_open()?;
        background_yield::offer();
        match young_leaf(&shared.store, &tree.root_to_keep(), from, self.since, visit) {
            Ok(next) => self.next = next,
            Err(Unread { error, end }) if self.failed == Some(from) => {
                tracing::warn!(%error, "a part of a map cannot be read: all that is in use is copied");
                self.is_complete = false;
                self.next = Some(end);
            }
            Err(_) => self.failed = Some(from),
        }
        Ok(())
    }
}
