//! Reading everything that is in use, online, to find what has rotted.

use super::handle::Pool;
use super::info::{RecordKind, ScrubFault, ScrubReport};
use super::read::read_block;
use super::shared::Shared;
use super::volume::VolumeCore;
use crate::base::codec::{Reader, Writer};
use crate::base::{BLOCK_BYTES, CorruptKind, Error, Result, VolumeId};
use crate::map::{Sought, find};
use std::sync::Arc;

/// The most faults that are listed.
const MOST_FAULTS: usize = 10_000;

impl Pool {
    /// Reads and verifies every block of every volume, with those that volumes share read once
    /// for the volume that owns them. `progress(done, total)` is told how many bytes were read of
    /// about how many there are, and stops the scrub by answering `false`.
    ///
    /// A scrub that was stopped, or that a crash ended, is gone on with by the next call: how far
    /// it got is kept in the pool, every 256 MiB and when it is stopped.
    ///
    /// # Errors
    /// `Closed`. Blocks that cannot be read are part of the report.
    pub fn scrub(&self, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<ScrubReport> {
        let shared = &self.shared;
        shared.check_open()?;
        let mut cores: Vec<_> = {
            let forest = shared.forest.read();
            forest
                .names
                .values()
                .map(|id| Arc::clone(&forest.volumes[id].core))
                .collect()
        };
        cores.sort_by_key(|core| core.id);
        let start = self.scrub_position();
        cores.retain(|core| core.id >= start.volume);
        let total = cores.iter().map(|core| core.own_blocks()).sum::<u64>() * BLOCK_BYTES as u64;
        let report = ScrubReport {
            resumed: start != ScrubPosition::START,
            ..ScrubReport::default()
        };
        let mut scrub = Scrub {
            pool: self,
            shared,
            report,
            progress,
            total,
        };
        for core in cores {
            let from = if core.id == start.volume {
                start.block
            } else {
                0
            };
            if !scrub.volume(&core, from)? {
                return Ok(scrub.report);
            }
        }
        scrub.report.finished = true;
        self.keep_scrub_position(ScrubPosition::START)?;
        Ok(scrub.report)
    }

    fn scrub_position(&self) -> ScrubPosition {
        let kept = self.record(POSITION, POSITION_KEY);
        kept.and_then(|bytes| ScrubPosition::decode(&bytes))
            .unwrap_or(ScrubPosition::START)
    }

    fn keep_scrub_position(&self, position: ScrubPosition) -> Result<()> {
        let mut transaction = self.transaction();
        if position == ScrubPosition::START {
            transaction.remove_record(POSITION, POSITION_KEY);
        } else {
            transaction.put_record(POSITION, POSITION_KEY, &position.encode());
        }
        transaction.commit()
    }
}

/// The engine's own kind of record, with the position of a scrub under the one key.
const POSITION: RecordKind = RecordKind(0);
const POSITION_KEY: &[u8] = b"scrub";
/// Blocks read between two notes of the position.
const KEEP_EVERY_BLOCKS: u64 = 1 << 16;

/// Where a scrub goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
struct ScrubPosition {
    volume: VolumeId,
    block: u64,
}

impl ScrubPosition {
    const START: Self = Self {
        volume: VolumeId(0),
        block: 0,
    };

    fn encode(self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u64(self.volume.0).u64(self.block);
        out.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader::new(bytes);
        Some(Self {
            volume: VolumeId(input.u64()?),
            block: input.u64()?,
        })
    }
}

struct Scrub<'a> {
    pool: &'a Pool,
    shared: &'a Shared,
    report: ScrubReport,
    progress: &'a mut dyn FnMut(u64, u64) -> bool,
    total: u64,
}

impl Scrub<'_> {
    /// Reads what a volume owns from block `from` on; `false` when the caller wants to stop.
    fn volume(&mut self, core: &VolumeCore, from: u64) -> Result<bool> {
        let mut next = from;
        let mut buf = [0; BLOCK_BYTES];
        loop {
            let store = &self.shared.store;
            let found = match core.tree.walk(|root| find(store, root, next, Sought::Data)) {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(true),
                Err(error) => {
                    // The rest of this volume cannot be found; the next ones can.
                    self.fault(core, next, &error);
                    return Ok(true);
                }
            };
            next = found + 1;
            if !self.owns(core, found) {
                continue;
            }
            if let Err(error) = read_block(self.shared, core, found, &mut buf) {
                if matches!(error, Error::Closed) {
                    return Err(error);
                }
                self.fault(core, found, &error);
            }
            self.report.blocks += 1;
            if !self.goes_on(ScrubPosition {
                volume: core.id,
                block: next,
            })? {
                return Ok(false);
            }
        }
    }

    /// Tells how far it got, and keeps it; `false` when the caller wants to stop.
    fn goes_on(&mut self, position: ScrubPosition) -> Result<bool> {
        let done = self.report.blocks * BLOCK_BYTES as u64;
        let goes_on =
            !self.report.blocks.is_multiple_of(256) || (self.progress)(done, self.total.max(done));
        if !goes_on || self.report.blocks.is_multiple_of(KEEP_EVERY_BLOCKS) {
            self.pool.keep_scrub_position(position)?;
        }
        Ok(goes_on)
    }

    /// Whether the block is the volume's own, or has no other owner that is read.
    fn owns(&self, core: &VolumeCore, block: u64) -> bool {
        let mut pointer = [crate::format::Pointer::HOLE];
        match core.tree.read(&self.shared.store, block, &mut pointer) {
            Ok(()) => {
                let writer = core.writer.lock();
                let lowest = writer.inheritance.as_ref().map(|(parent, _)| parent.branch);
                let parent_is_read = self.shared.parent_is_named(core);
                pointer[0].birth() > lowest.unwrap_or(writer.branch) || !parent_is_read
            }
            Err(_) => true,
        }
    }

    fn fault(&mut self, core: &VolumeCore, block: u64, error: &Error) {
        if self.report.bad.len() >= MOST_FAULTS {
            return;
        }
        let addr = match error {
            Error::Corrupt(
                CorruptKind::DataChecksum { addr, .. } | CorruptKind::NodeChecksum(addr),
            ) => addr.offset_bytes(),
            _ => 0,
        };
        self.report.bad.push(ScrubFault {
            volume: core.id,
            offset_bytes: block * BLOCK_BYTES as u64,
            pool_offset_bytes: addr,
        });
    }
}

impl Shared {
    /// Whether the volume's parent has a name, so that a scrub reads what it owns.
    fn parent_is_named(&self, core: &VolumeCore) -> bool {
        let Some(forest) = self.forest.try_read() else {
            return false;
        };
        let parent = forest
            .volumes
            .get(&core.id)
            .and_then(|volume| volume.parent);
        parent
            .and_then(|parent| forest.volumes.get(&parent))
            .is_some_and(|parent| parent.name.is_some())
    }
}
