//! The log ring: the number of records that a recovery would replay, and whether any is damaged.
//!
//! It applies nothing. If the log is not empty, the findings describe the state before it.

use super::finding::{Detail, FindingKind, Findings, Note, Place};
use super::write::write_at;
use cowshed_format::Superblock;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, Result, Sequence};
use cowshed_format::device::Device;
use cowshed_format::operation::Operation;
use cowshed_format::record::{
    self, ALIGN_BYTES, Frame, HEADER_BYTES, MAX_RECORD_BYTES, Record, SALT_OFFSET,
};

/// Number of bytes read at a time; two records fit.
const WINDOW_BYTES: u64 = 8 << 20;
const _: () = assert!(WINDOW_BYTES > 2 * MAX_RECORD_BYTES as u64);
/// Maximum number of places behind the end that are examined because they hold the salt, though
/// they are no records: data that imitates headers must not make the search endless.
const SEARCH_CANDIDATES: u32 = 4096;

/// The state of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogState {
    /// Number of records that a recovery replays.
    pub(super) records: u64,
    /// The damage.
    pub(super) damage: Damage,
}

/// The damage of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// Nothing.
    None,
    /// A record that had been flushed is missing here, and later ones exist.
    Behind(Cursor),
    /// The ring cannot be read.
    Unreadable,
}

struct Ring<'a> {
    device: &'a dyn Device,
    superblock: &'a Superblock,
    window: Vec<u8>,
    window_start: u64,
}

/// The place of a record, the ring's laps not counted, and how far the log may still reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) sequence: Sequence,
    offset: u64,
    room: u64,
}

/// Voids everything behind `end`, so that the log ends there.
///
/// # Errors
/// `Io`; it may then be repeated.
pub(super) fn cut(device: &dyn Device, superblock: &Superblock, end: Cursor) -> Result<()> {
    let (ring, log) = (
        superblock.layout.log_bytes(),
        superblock.layout.log_offset_bytes(),
    );
    let block = BLOCK_BYTES as u64;
    let (mut offset, mut left) = (end.offset, end.room);
    while left > 0 {
        let within = offset % block;
        let len = left.min(block - within).min(ring - offset);
        let mut bytes = vec![0; BLOCK_BYTES];
        let at = log + offset - within;
        if len < block {
            device.read_at(&mut bytes, at)?;
        }
        let [from, to] = [within, within + len].map(|at| usize::try_from(at).expect("in a block"));
        bytes[from..to].fill(0);
        write_at(device, &bytes, at)?;
        (offset, left) = ((offset + len) % ring, left - len);
    }
    device.flush()
}

/// Follows the log from the superblock's position.
pub(super) fn check(
    device: &dyn Device,
    superblock: &Superblock,
    deep: bool,
    findings: &mut Findings,
    notes: &mut Vec<Note>,
) -> LogState {
    if superblock.clean {
        // No record was ever appended with its salt: everything in the ring is older.
        return LogState {
            records: 0,
            damage: Damage::None,
        };
    }
    let mut ring = Ring {
        device,
        superblock,
        window: Vec::new(),
        window_start: 0,
    };
    ring.follow(deep, findings, notes).unwrap_or_else(|error| {
        let kind = FindingKind::LogUnreadable;
        findings.add(kind, Place::Pool, Detail::of(&error));
        LogState {
            records: 0,
            damage: Damage::Unreadable,
        }
    })
}

/// Gives the records from the superblock's position to the log's end.
///
/// # Errors
/// `Io`; the first error of `each`.
pub(super) fn records(
    device: &dyn Device,
    superblock: &Superblock,
    each: &mut dyn FnMut(Record) -> Result<()>,
) -> Result<()> {
    let mut ring = Ring {
        device,
        superblock,
        window: Vec::new(),
        window_start: 0,
    };
    let mut at = ring.start();
    while let Some((record, next)) = ring.next(at)? {
        each(record)?;
        at = next;
    }
    Ok(())
}

impl Ring<'_> {
    const fn start(&self) -> Cursor {
        Cursor {
            sequence: self.superblock.log_sequence,
            offset: self.superblock.log_offset,
            room: self.superblock.layout.log_bytes(),
        }
    }

    fn follow(
        &mut self,
        deep: bool,
        findings: &mut Findings,
        notes: &mut Vec<Note>,
    ) -> Result<LogState> {
        let start = self.start();
        let mut end = start;
        let mut durable = Sequence(start.sequence.0.saturating_sub(1));
        while let Some((found, next)) = self.next(end)? {
            durable = durable.max(found.header.durable);
            end = next;
        }
        let mut damage = Damage::None;
        if self.is_damaged(end)? {
            let kind = FindingKind::LogDamaged;
            findings.add(kind, Place::Log(end.sequence), Detail::None);
            damage = Damage::Behind(end);
        }
        // The second pass examines the records' contents, now that it is known which are flushed.
        let mut at = start;
        while let Some((found, next)) = self.next(at)? {
            let place = Place::Log(at.sequence);
            let Some(operations) = found.operations else {
                findings.add(FindingKind::LogRecord, place, Detail::None);
                break;
            };
            let flushed = at.sequence <= durable;
            if (deep || !flushed) && !operations.iter().all(|each| self.data_is_there(each)) {
                if !flushed {
                    notes.push(Note::UnfinishedWrite(at.sequence));
                    break;
                }
                findings.add(FindingKind::DataChecksum, place, Detail::None);
            }
            at = next;
        }
        let records = at.sequence.0 - start.sequence.0;
        if records > 0 {
            notes.push(Note::LogToReplay { records });
        }
        Ok(LogState { records, damage })
    }

    /// Returns the record that is expected at `at`, and the place of the next one.
    fn next(&mut self, at: Cursor) -> Result<Option<(Record, Cursor)>> {
        let ring = self.superblock.layout.log_bytes();
        let rest = ring - at.offset;
        let (offset, skipped) = if rest < HEADER_BYTES as u64 {
            (0, rest)
        } else {
            (at.offset, 0)
        };
        let Some(found) = self.decode(offset)? else {
            return Ok(None);
        };
        let len = found.len_bytes as u64 + skipped;
        let expected =
            found.header.salt == self.superblock.log_salt && found.header.sequence == at.sequence;
        if !expected || len > at.room {
            return Ok(None);
        }
        let next = Cursor {
            sequence: at.sequence.next(),
            offset: (offset + found.len_bytes as u64) % ring,
            room: at.room - len,
        };
        Ok(Some((found, next)))
    }

    /// Returns true if a record behind the end was written when the missing one had already been
    /// flushed.
    fn is_damaged(&mut self, end: Cursor) -> Result<bool> {
        let ring = self.superblock.layout.log_bytes();
        let salt = self.superblock.log_salt.to_le_bytes();
        let (mut budget, mut passed) = (SEARCH_CANDIDATES, 0);
        while passed + HEADER_BYTES as u64 <= end.room && budget > 0 {
            let offset = (end.offset + passed) % ring;
            passed += ALIGN_BYTES as u64;
            if ring - offset < HEADER_BYTES as u64 {
                continue;
            }
            let header = self.bytes_at(offset, HEADER_BYTES as u64)?;
            if header[SALT_OFFSET..][..size_of_val(&salt)] != salt {
                continue;
            }
            let Some(frame) = self.frame_at(offset)? else {
                budget -= 1;
                continue;
            };
            let header = frame.header;
            if header.sequence > end.sequence && header.durable >= end.sequence {
                return Ok(true);
            }
            passed += (frame.own_bytes() - ALIGN_BYTES) as u64;
        }
        Ok(false)
    }

    fn frame_at(&mut self, offset: u64) -> Result<Option<Frame>> {
        Ok(record::decode_frame(
            self.bytes_at(offset, MAX_RECORD_BYTES as u64)?,
        ))
    }

    fn decode(&mut self, offset: u64) -> Result<Option<Record>> {
        Ok(record::decode(
            self.bytes_at(offset, MAX_RECORD_BYTES as u64)?,
        ))
    }

    /// Returns at least `len` bytes of the ring from `offset`, or all up to its end.
    fn bytes_at(&mut self, offset: u64, len: u64) -> Result<&[u8]> {
        let ring = self.superblock.layout.log_bytes();
        let wanted_end = (offset + len).min(ring);
        let window_end = self.window_start + self.window.len() as u64;
        if offset < self.window_start || wanted_end > window_end {
            let start = offset & !(BLOCK_BYTES as u64 - 1);
            let len = WINDOW_BYTES.min(ring - start);
            self.window.clear();
            self.window
                .resize(usize::try_from(len).expect("a window is 8 MiB"), 0);
            self.window_start = start;
            let log = self.superblock.layout.log_offset_bytes();
            self.device.read_at(&mut self.window, log + start)?;
        }
        let from = usize::try_from(offset - self.window_start).expect("inside the window");
        Ok(&self.window[from..])
    }

    /// Returns true if the blocks that an operation maps hold the data that was written.
    fn data_is_there(&self, operation: &Operation) -> bool {
        let Operation::Write { runs, crcs, .. } = operation else {
            return true;
        };
        let data = runs.iter().filter_map(|run| Some((run.addr?, run.count)));
        let addrs = data.flat_map(|(addr, count)| {
            (0..u64::from(count)).map(move |index| BlockAddr(addr.0.saturating_add(index)))
        });
        let mut bytes = vec![0; BLOCK_BYTES];
        addrs.zip(crcs).all(|(addr, crc)| {
            let is_right = |bytes: &[u8]| crc32(bytes) == *crc;
            let at = addr.offset_bytes();
            self.superblock.layout.locate(addr).is_some()
                && self
                    .device
                    .read_accepted(&mut bytes, at, false, &is_right)
                    .unwrap_or(false)
        })
    }
}
