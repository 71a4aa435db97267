//! Publishing a change: its log record, and then the volume's map, under the volume's write lock
//! and on one side of the cut.

use super::shared::{ENTRY_PROMISE, Shared};
use super::volume::{VolumeCore, Writer};
use super::write::Scratch;
use crate::map::Edit;
use crate::space::Demand;
use cowshed_format::Pointer;
use cowshed_format::base::codec;
use cowshed_format::base::{BlockAddr, BlockIndex, Error, Generation, Result};
use cowshed_format::node::{NODE_ENTRIES, height_for, slot};
use cowshed_format::operation::{Run, encode_write};
use cowshed_format::record::{self, HEADER_BYTES};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The reason for which a change was not published.
pub(super) enum Refusal {
    /// The block no longer has the pointer that the change started from.
    Overtaken,
    /// The log is full until a checkpoint frees a part of it.
    LogFull,
    /// The map became higher meanwhile, and needs more nodes than were promised.
    Higher,
    /// The volume was frozen meanwhile.
    Frozen,
    /// The volume was removed meanwhile.
    Removed,
    /// The volume became smaller meanwhile.
    OutOfRange,
    /// The log did not take the record of a change that the map already has.
    LogRefused(Error),
    /// A node could not be read, or the device failed.
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Logs that blocks were written, and makes the map lead to them.
pub(super) fn publish(
    shared: &Shared,
    core: &Arc<VolumeCore>,
    first: u64,
    scratch: &mut Scratch,
    expected: Option<Pointer>,
    demand: Demand,
) -> Result<(), Refusal> {
    encode_record(core, first, scratch);
    let blocks = scratch
        .runs
        .iter()
        .map(|run| u64::from(run.count))
        .sum::<u64>();
    loop {
        shared.throttle()?;
        let nodes = path_nodes(core, first, first + blocks);
        if !shared.space.promise(nodes + ENTRY_PROMISE, demand) {
            // The blocks that the stream has reserved for later are needed now.
            core.stream.lock().release(&shared.space);
            shared.promise(nodes + ENTRY_PROMISE, demand)?;
        }
        let seen = shared.checkpoints.load(Ordering::Acquire);
        let outcome = try_publish(shared, core, first, blocks, scratch, expected, nodes);
        match outcome {
            Err(Refusal::LogFull) => shared.make_log_room(seen)?,
            Err(Refusal::Higher) => {}
            outcome => return outcome,
        }
    }
}

fn encode_record(core: &VolumeCore, first: u64, scratch: &mut Scratch) {
    scratch.record.clear();
    scratch.record.resize(HEADER_BYTES, 0);
    let mut out = codec::Writer::from_bytes(std::mem::take(&mut scratch.record));
    encode_write(
        &mut out,
        core.id,
        BlockIndex(first),
        &scratch.runs,
        &scratch.crcs,
    );
    scratch.record = out.into_bytes();
    let len = record::record_bytes(scratch.record.len() - HEADER_BYTES);
    scratch.record.resize(len, 0);
}

/// Returns the maximum number of new memory nodes that a change of these blocks makes.
fn path_nodes(core: &VolumeCore, first: u64, end: u64) -> u64 {
    let height = core.tree.root().height.max(height_for(end));
    let leaves = (end - 1) / NODE_ENTRIES as u64 - first / NODE_ENTRIES as u64 + 1;
    (leaves + 1) * u64::from(height)
}

fn try_publish(
    shared: &Shared,
    core: &Arc<VolumeCore>,
    first: u64,
    blocks: u64,
    scratch: &mut Scratch,
    expected: Option<Pointer>,
    nodes: u64,
) -> Result<(), Refusal> {
    let _cut = shared.cut.read();
    let mut writer = core.writer.lock();
    let outcome = (|| {
        shared.check_open()?;
        check_writable(core, first + blocks)?;
        if path_nodes(core, first, first + blocks) > nodes {
            return Err(Refusal::Higher);
        }
        if let Some(expected) = expected {
            let mut now = [Pointer::HOLE];
            core.tree.read(&shared.store, first, &mut now)?;
            if now[0] != expected {
                return Err(Refusal::Overtaken);
            }
        }
        let generation = shared.generation();
        let mut edit = edit(shared, core, &mut writer, generation);
        // Everything that can fail comes before the record is logged.
        let first_leaf = edit.leaf(first)?;
        let in_first = (NODE_ENTRIES - slot(first, 1)).min(usize::try_from(blocks).unwrap_or(0));
        let more = first + in_first as u64;
        let second_leaf = if more < first + blocks {
            Some(edit.leaf(more)?)
        } else {
            None
        };
        if shared
            .log
            .append(&mut scratch.record, generation)?
            .is_none()
        {
            return Err(Refusal::LogFull);
        }
        collect_pointers(
            &scratch.runs,
            &scratch.crcs,
            generation,
            &mut scratch.pointers,
        );
        let (here, there) = scratch.pointers.split_at(in_first);
        edit.set(&first_leaf, first, here);
        if let Some(leaf) = second_leaf {
            edit.set(&leaf, more, there);
        }
        Ok(())
    })();
    settle_account(shared, core, &mut writer, nodes);
    outcome
}

pub(super) fn collect_pointers(
    runs: &[Run],
    crcs: &[u32],
    birth: Generation,
    pointers: &mut Vec<Pointer>,
) {
    pointers.clear();
    let mut crcs = crcs.iter();
    for run in runs {
        for block in 0..u64::from(run.count) {
            pointers.push(match run.addr {
                Some(start) => {
                    let crc = crcs.next().expect("a checksum for each block of data");
                    Pointer::data(BlockAddr(start.0 + block), birth, *crc)
                }
                None => Pointer::HOLE,
            });
        }
    }
}

fn check_writable(core: &VolumeCore, end_block: u64) -> Result<(), Refusal> {
    if core.removed.load(Ordering::Acquire) {
        return Err(Refusal::Removed);
    }
    if core.frozen.load(Ordering::Acquire) {
        return Err(Refusal::Frozen);
    }
    if end_block > cowshed_format::base::units::blocks_for(core.size_bytes()) {
        return Err(Refusal::OutOfRange);
    }
    Ok(())
}

pub(super) fn edit<'a>(
    shared: &'a Shared,
    core: &'a VolumeCore,
    writer: &'a mut Writer,
    generation: Generation,
) -> Edit<'a> {
    Edit {
        store: &shared.store,
        tree: &core.tree,
        generation,
        limit: shared.last_cut().max(writer.branch),
        ownership: writer.ownership(),
        ledger: &mut writer.ledger,
        gives_up: false,
    }
}

/// Applies a change's effect on counts and promises; `nodes` blocks and `ENTRY_PROMISE` were
/// promised for it.
pub(super) fn settle_account(
    shared: &Shared,
    core: &Arc<VolumeCore>,
    writer: &mut Writer,
    nodes: u64,
) {
    let ledger = &mut writer.ledger;
    let used = std::mem::take(&mut ledger.promised);
    assert!(used <= nodes, "a change made more nodes than were promised");
    shared
        .space
        .void_promise(nodes - used + std::mem::take(&mut ledger.void));
    core.own
        .fetch_add(std::mem::take(&mut ledger.own), Ordering::Relaxed);
    core.mapped
        .fetch_add(std::mem::take(&mut ledger.mapped), Ordering::Relaxed);
    core.let_go
        .fetch_add(std::mem::take(&mut ledger.let_go), Ordering::Relaxed);
    let inherited = std::mem::take(&mut ledger.inherited);
    let freed = ledger.freed.blocks();
    shared
        .freed_since_cut
        .fetch_add(freed - writer.freed_counted, Ordering::Relaxed);
    writer.freed_counted = freed;
    if inherited != 0
        && let Some((_, parent)) = &writer.inheritance
    {
        parent.own.fetch_add(inherited, Ordering::Relaxed);
        shared.space.promise_again(ENTRY_PROMISE);
        shared.note_changed(parent);
    }
    shared.note_changed(core);
}
