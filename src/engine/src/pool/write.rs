//! Writing: data first, then the log record, then the map.

use super::handle::Volume;
use super::publish::{Refusal, publish};
use super::read::read_block;
use super::shared::Shared;
use super::space_wait::Patience;
use super::volume::VolumeCore;
use super::waiter::Waiter;
use crate::space::{BlockRun, Demand};
use cowshed_format::Pointer;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::sync::thread_local;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, Error, Result};
use cowshed_format::device::Device;
use cowshed_format::operation::{MAX_WRITE_BLOCKS, Run};
use std::cell::RefCell;

/// Buffers of a write, kept between writes so that no write allocates memory.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) runs: Vec<Run>,
    pub(super) crcs: Vec<u32>,
    pub(super) pointers: Vec<Pointer>,
    pub(super) record: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

impl Volume {
    /// Writes `buf` at `offset_bytes`, any offset and length inside the volume's size. Once it
    /// returns, the data survives the death of the process; after the next `flush`, a power cut.
    /// Blocks of zeros become holes. Where writes overlap, each block has the bytes of one of them.
    /// When the pool is full, the call waits for space as long as the pool's policy says.
    ///
    /// # Errors
    /// `OutOfRange`, `Frozen`, `NoSpace`, `Io`; any part may then have been written.
    pub fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        self.write_patiently(buf, offset_bytes, None)
    }

    /// Writes like `write_at` for a client of a mounted or attached volume; `waiter` decides
    /// whether this thread may wait for space.
    ///
    /// # Errors
    /// As `write_at`; `NoSpace` also if the thread may not wait.
    pub fn write_at_with(&self, buf: &[u8], offset_bytes: u64, waiter: &dyn Waiter) -> Result<()> {
        self.write_patiently(buf, offset_bytes, Some(waiter))
    }

    fn write_patiently(
        &self,
        buf: &[u8],
        offset_bytes: u64,
        waiter: Option<&dyn Waiter>,
    ) -> Result<()> {
        let mut patience = Patience::of(&self.shared, waiter);
        self.shared.check_open()?;
        self.check_range(offset_bytes, buf.len() as u64)?;
        self.check_unfrozen()?;
        let block = BLOCK_BYTES as u64;
        let (mut rest, mut at) = (buf, offset_bytes);
        while !rest.is_empty() {
            let within = usize::try_from(at % block).expect("under 4096");
            let (len, outcome) = if let Err(error) = self.shared.check_host_room() {
                (0, Err(error))
            } else if within != 0 || rest.len() < BLOCK_BYTES {
                let len = rest.len().min(BLOCK_BYTES - within);
                let part = &rest[..len];
                (
                    len,
                    self.write_part(at / block, within, part, Demand::Write),
                )
            } else {
                let len = (rest.len() & !(BLOCK_BYTES - 1)).min(MAX_WRITE_BLOCKS * BLOCK_BYTES);
                let outcome = self.write_blocks(at / block, &rest[..len], None, Demand::Write);
                let explain = |refusal| self.explain(refusal, at, len as u64);
                (len, outcome.map_err(explain))
            };
            if let Err(error) = &outcome {
                self.shared.host_reserve.note_refusal(error);
            }
            match outcome {
                // Nothing is locked here, so space can be freed, here or on the host.
                Err(error)
                    if self.shared.may_hold(&error) && self.shared.await_room(&mut patience)? =>
                {
                    continue;
                }
                outcome => outcome.inspect_err(|error| self.shared.note_refused_write(error))?,
            }
            rest = &rest[len..];
            at += len as u64;
        }
        self.shared.note_write();
        Ok(())
    }

    /// Writes a part of one block: reads it, changes it, and writes the whole block; starts anew if
    /// another write came between.
    pub(super) fn write_part(
        &self,
        block: u64,
        within: usize,
        part: &[u8],
        demand: Demand,
    ) -> Result<()> {
        let mut bytes = [0; BLOCK_BYTES];
        loop {
            let old = self.look(|| read_block(&self.shared, &self.core, block, &mut bytes))?;
            bytes[within..within + part.len()].copy_from_slice(part);
            match self.write_blocks(block, &bytes, Some(old), demand) {
                Err(Refusal::Overtaken) => {}
                Err(refusal) => {
                    let offset = BlockAddr(block).offset_bytes() + within as u64;
                    return Err(self.explain(refusal, offset, part.len() as u64));
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Writes whole blocks, at most `MAX_WRITE_BLOCKS`; with `expected`, only if the one block
    /// still has that pointer.
    fn write_blocks(
        &self,
        first: u64,
        bytes: &[u8],
        expected: Option<Pointer>,
        demand: Demand,
    ) -> Result<(), Refusal> {
        SCRATCH.with(|scratch| {
            let scratch = &mut *scratch.borrow_mut();
            scratch.runs.clear();
            scratch.crcs.clear();
            let placed = place(&self.shared, &self.core, bytes, scratch, demand);
            let outcome = placed.map_err(Refusal::Failed).and_then(|()| {
                if scratch.crcs.is_empty() && self.is_hole(first, bytes.len() / BLOCK_BYTES)? {
                    return Ok(());
                }
                // Holes need no space for data.
                let holes = scratch.crcs.is_empty();
                let demand = if holes { Demand::Change } else { demand };
                publish(&self.shared, &self.core, first, scratch, expected, demand)
            });
            if outcome.is_err() {
                give_back(&self.shared, &scratch.runs);
                // No cut might ever do this: the volume need not be among the changed ones.
                self.core.stream.lock().release(&self.shared.space);
            }
            outcome
        })
    }

    /// Returns true if the blocks are holes, and stay so if the process dies.
    pub(super) fn is_hole(&self, first: u64, blocks: usize) -> Result<bool> {
        let mut pointers = [Pointer::HOLE; MAX_WRITE_BLOCKS];
        let pointers = &mut pointers[..blocks];
        let store = &self.shared.store;
        self.look(|| self.core.tree.read(store, first, pointers))?;
        Ok(pointers.iter().all(|pointer| pointer.is_hole()) && self.holes_are_logged())
    }

    pub(super) fn explain(&self, refusal: Refusal, offset_bytes: u64, len_bytes: u64) -> Error {
        match refusal {
            Refusal::Failed(error) | Refusal::LogRefused(error) => self.unless_removed(error),
            Refusal::Frozen => Error::Frozen(self.name()),
            Refusal::Removed => Error::NoSuchVolume(self.core.id),
            Refusal::OutOfRange => Error::OutOfRange {
                offset_bytes,
                len_bytes,
                size_bytes: self.core.size_bytes(),
            },
            Refusal::Overtaken | Refusal::LogFull | Refusal::Higher => {
                unreachable!("these are tried again")
            }
        }
    }
}

/// Allocates blocks and writes the data there; zeros become runs of holes.
pub(super) fn place(
    shared: &Shared,
    core: &VolumeCore,
    bytes: &[u8],
    scratch: &mut Scratch,
    demand: Demand,
) -> Result<()> {
    let blocks = bytes.as_chunks::<BLOCK_BYTES>().0;
    let mut next = 0;
    while next < blocks.len() {
        let zeros = blocks[next..]
            .iter()
            .take_while(|block| is_zero(block))
            .count();
        if zeros > 0 {
            push_hole(&mut scratch.runs, zeros);
            next += zeros;
            continue;
        }
        let data = blocks[next..]
            .iter()
            .take_while(|block| !is_zero(block))
            .count();
        let end = next + data;
        while next < end {
            let run = allocate(shared, core, end - next, demand)?;
            let count = run.count as usize;
            scratch.runs.push(Run {
                addr: Some(run.start),
                count: run.count,
            });
            let part = &blocks[next..next + count];
            scratch.crcs.extend(part.iter().map(|block| crc32(block)));
            shared
                .device
                .write_at(part.as_flattened(), run.start.offset_bytes())?;
            next += count;
        }
    }
    Ok(())
}

fn push_hole(runs: &mut Vec<Run>, blocks: usize) {
    let count = u32::try_from(blocks).expect("at most 256");
    runs.push(Run { addr: None, count });
}

/// Returns true if a block holds only zeros. Most other blocks show in their first words that they
/// do not.
fn is_zero(block: &[u8; BLOCK_BYTES]) -> bool {
    let (words, _) = block.as_chunks::<64>();
    words
        .iter()
        .all(|word| word.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Allocates up to `blocks` adjacent blocks: those of a volume's stream, or, for a change of one
/// block, those reserved for that.
fn allocate(shared: &Shared, core: &VolumeCore, blocks: usize, demand: Demand) -> Result<BlockRun> {
    let most = u32::try_from(blocks).expect("at most 256");
    if demand == Demand::Write {
        prepare(shared, core, most);
    }
    shared.with_room(|| {
        let run = core.stream.lock().take(&shared.space, most);
        match demand {
            Demand::Write => run,
            demand => run.or_else(|| shared.space.allocate(1, 1, demand)),
        }
    })
}

/// Has the host store the blocks of the volume's next small writes, if a flush follows each few of
/// them. What is left of the host's reserve is not for that.
fn prepare(shared: &Shared, core: &VolumeCore, most: u32) {
    if shared.host_reserve.is_spent() {
        return;
    }
    let run = core.stream.lock().take_to_prepare(&shared.space, most);
    if let Some(run) = run {
        // Only this thread knows of the run, and holds no lock.
        let len_bytes = u64::from(run.count) * BLOCK_BYTES as u64;
        shared.device.fill_gaps(run.start.offset_bytes(), len_bytes);
        core.stream.lock().put_prepared(&shared.space, run);
    }
}

fn give_back(shared: &Shared, runs: &[Run]) {
    for run in runs {
        if let Some(start) = run.addr {
            shared.space.give_back(BlockRun {
                start,
                count: run.count,
            });
        }
    }
}
