//! Discarding: the map first, then the log record.

use super::handle::Volume;
use super::publish::{Refusal, edit, settle_account};
use super::shared::{ENTRY_PROMISE, Shared};
use super::volume::VolumeCore;
use crate::map::{Sought, find};
use crate::space::Demand;
use cowshed_format::base::codec;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, BlockIndex, Result};
use cowshed_format::operation::Operation;
use cowshed_format::record::{self, HEADER_BYTES};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Maximum number of blocks (256 MiB) that one discard record covers, so that no lock is held for
/// long.
const MAX_DISCARD_BLOCKS: u64 = 1 << 16;

impl Volume {
    /// Returns true if the holes that were seen before this call are permanent.
    pub(super) fn holes_are_logged(&self) -> bool {
        self.core.unlogged.load(Ordering::Acquire) == 0
    }

    /// Returns the first block at or after `at` that a discard has to include.
    fn next_to_discard(&self, at: u64) -> Result<u64> {
        let store = &self.shared.store;
        let tree = &self.core.tree;
        let found = self.look(|| tree.walk(|root| find(store, root, at, Sought::Data)))?;
        Ok(if self.holes_are_logged() {
            found.unwrap_or(u64::MAX)
        } else {
            at
        })
    }

    /// Makes a range read as zeros; whole blocks give their space back. A full pool uses the blocks
    /// reserved for this, and the call never waits for space.
    ///
    /// # Errors
    /// As `write_at`. `NoSpace` only after discards of blocks that snapshots keep, which change the
    /// map and give nothing back, have used up that reserve.
    pub fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.shared.check_open()?;
        self.check_range(offset_bytes, len_bytes)?;
        self.check_unfrozen()?;
        let (block, end) = (BLOCK_BYTES as u64, offset_bytes + len_bytes);
        let size = self.core.size_bytes();
        // The volume's last block ends at the volume's end.
        let last = if end == size {
            end.div_ceil(block)
        } else {
            end / block
        };
        let first = offset_bytes.div_ceil(block);
        if first > last
            || (first == last && !offset_bytes.is_multiple_of(block) && end < first * block)
        {
            return self.zero_part(offset_bytes, end);
        }
        self.zero_part(offset_bytes, first * block)?;
        self.discard_blocks(first, last)?;
        if last * block < end {
            self.zero_part(last * block, end)
        } else {
            Ok(())
        }
    }

    pub(super) fn zero_part(&self, from: u64, to: u64) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        let block = from / BLOCK_BYTES as u64;
        let within = usize::try_from(from % BLOCK_BYTES as u64).expect("under 4096");
        let len = usize::try_from(to - from).expect("inside a block");
        if self.is_hole(block, 1)? {
            return Ok(());
        }
        let zeros = vec![0; len];
        self.shared
            .with_host_reserve(|| self.write_part(block, within, &zeros, Demand::Change))
    }

    pub(super) fn discard_blocks(&self, first: u64, last: u64) -> Result<()> {
        let last = last.min(self.core.tree.root().capacity());
        let mut at = first;
        while at < last {
            at = self.next_to_discard(at)?;
            if at >= last {
                break;
            }
            let end = last.min((at / MAX_DISCARD_BLOCKS + 1) * MAX_DISCARD_BLOCKS);
            let mut made = 1;
            let mut using = self.shared.host_reserve_use();
            loop {
                let seen = self.shared.checkpoints.load(Ordering::Acquire);
                match publish_discard(&self.shared, &self.core, at, end) {
                    Ok(()) => {
                        self.core.unlogged.fetch_sub(made, Ordering::AcqRel);
                        self.shared.space_wait.tell();
                        break;
                    }
                    Err(Refusal::LogFull) => {
                        made += 1;
                        self.shared.make_log_room(seen)?;
                    }
                    Err(Refusal::Higher) => {}
                    Err(Refusal::LogRefused(error)) if error.is_host_full() => {
                        made += 1;
                        if !using.release_slice() {
                            return Err(error);
                        }
                    }
                    Err(refusal) => {
                        let range = (
                            BlockAddr(at).offset_bytes(),
                            BlockAddr(end - at).offset_bytes(),
                        );
                        return Err(self.explain(refusal, range.0, range.1));
                    }
                }
            }
            at = end;
        }
        Ok(())
    }
}

/// Makes blocks `first..last` holes, and logs it. The map changes first: until the record is
/// logged, a crash brings the blocks back, but the caller has not been told that they are gone.
/// From the change on, the discard counts among the volume's `unlogged`; the caller subtracts it
/// once it is logged.
fn publish_discard(
    shared: &Shared,
    core: &Arc<VolumeCore>,
    first: u64,
    last: u64,
) -> Result<(), Refusal> {
    let mut out = codec::Writer::new();
    out.bytes(&[0; HEADER_BYTES]);
    let (volume, count) = (core.id, last - first);
    Operation::Discard {
        volume,
        first: BlockIndex(first),
        count,
    }
    .encode(&mut out);
    let mut bytes = out.into_bytes();
    bytes.resize(record::record_bytes(bytes.len() - HEADER_BYTES), 0);
    let nodes = discard_nodes(core);
    shared.throttle()?;
    shared.promise(nodes + ENTRY_PROMISE, Demand::Change)?;
    let _cut = shared.cut.read();
    let mut writer = core.writer.lock();
    let outcome = (|| {
        shared.check_open()?;
        if core.removed.load(Ordering::Acquire) {
            return Err(Refusal::Removed);
        }
        if core.frozen.load(Ordering::Acquire) {
            return Err(Refusal::Frozen);
        }
        if discard_nodes(core) > nodes {
            return Err(Refusal::Higher);
        }
        let generation = shared.generation();
        core.unlogged.fetch_add(1, Ordering::AcqRel);
        edit(shared, core, &mut writer, generation).discard(first..last)?;
        match shared.log.append(&mut bytes, generation) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(Refusal::LogFull),
            Err(error) => Err(Refusal::LogRefused(error)),
        }
    })();
    settle_account(shared, core, &mut writer, nodes);
    outcome
}

/// Returns the maximum number of new memory nodes that a discard makes: two paths, one for each end
/// of its range.
fn discard_nodes(core: &VolumeCore) -> u64 {
    3 * u64::from(core.tree.root().height)
}
