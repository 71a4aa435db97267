//! Reading the ring after an unclean stop.

use crate::base::{BLOCK_BYTES, CorruptKind, Result, Sequence};
use crate::device::Device;
use crate::format::Layout;
use crate::format::record::{self, ALIGN_BYTES, HEADER_BYTES, MAX_RECORD_BYTES, Record};

/// Bytes read at a time; a record fits.
const WINDOW_BYTES: u64 = 8 << 20;
/// How many places that bear the salt are looked at behind the end.
const SEARCH_CANDIDATES: u32 = 4096;
const _: () = assert!(WINDOW_BYTES > 2 * MAX_RECORD_BYTES as u64);

/// A place in the log: which record stands there, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The record's number.
    pub sequence: Sequence,
    /// Bytes from the ring's start, counted on over its laps: the place is this modulo the ring.
    pub bytes: u64,
}

/// Where the valid records end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayEnd {
    /// Where the next record would stand.
    pub position: Position,
    /// All records up to this one are known to have been durable.
    pub durable: Sequence,
}

/// Goes through the valid records from a checkpoint's position on.
pub struct Replay<'a> {
    device: &'a dyn Device,
    ring_offset: u64,
    ring_bytes: u64,
    salt: u64,
    start: Position,
    next: Position,
    window: Vec<u8>,
    window_start: u64,
}

impl<'a> Replay<'a> {
    /// A replay from `start`, whose record bears `salt`.
    #[must_use]
    pub fn new(device: &'a dyn Device, layout: &Layout, start: Position, salt: u64) -> Self {
        Self {
            device,
            ring_offset: layout.log_offset_bytes(),
            ring_bytes: layout.log_bytes(),
            salt,
            start,
            next: start,
            window: Vec::new(),
            window_start: 0,
        }
    }

    /// Where the next record is looked for.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.next
    }

    /// The next record (a pad is one without operations), or `None` at the end of the log.
    ///
    /// # Errors
    /// `Io` when the ring cannot be read.
    pub fn next_record(&mut self) -> Result<Option<Record>> {
        let used = self.next.bytes - self.start.bytes;
        let mut at = self.next.bytes;
        let rest = self.ring_bytes - at % self.ring_bytes;
        if rest < HEADER_BYTES as u64 {
            at += rest;
        }
        let Some(room) = self.ring_bytes.checked_sub(used + (at - self.next.bytes)) else {
            return Ok(None);
        };
        let (salt, expected) = (self.salt, self.next.sequence);
        let Some(found) = self.decode_at(at)? else {
            return Ok(None);
        };
        let fits = found.len_bytes as u64 <= room;
        if !fits || found.header.salt != salt || found.header.sequence != expected {
            return Ok(None);
        }
        self.next = Position {
            sequence: expected.next(),
            bytes: at + found.len_bytes as u64,
        };
        Ok(Some(found))
    }

    /// Goes to the end of the valid records, and makes sure that it is the end and no damage.
    ///
    /// # Errors
    /// `LogRecord` when a later record says that the one missing had been durable; `Io`.
    pub fn find_end(&mut self) -> Result<ReplayEnd> {
        let mut durable = Sequence(self.start.sequence.0 - 1);
        while let Some(found) = self.next_record()? {
            durable = durable.max(found.header.durable);
        }
        let end = ReplayEnd {
            position: self.next,
            durable,
        };
        self.search_behind(&end)?;
        Ok(end)
    }

    /// A valid record behind the end that was written when the missing one was durable already
    /// proves that the log is damaged, and did not just end.
    fn search_behind(&mut self, end: &ReplayEnd) -> Result<()> {
        let mut at = end.position.bytes.next_multiple_of(ALIGN_BYTES as u64);
        let stop = self.start.bytes + self.ring_bytes;
        let mut budget = SEARCH_CANDIDATES;
        while at + (HEADER_BYTES as u64) <= stop {
            if self.ring_bytes - at % self.ring_bytes >= HEADER_BYTES as u64 && self.has_salt(at)? {
                // Data that imitates headers must not make this last for ever.
                budget -= 1;
                if budget == 0 {
                    return Ok(());
                }
                let found = self.decode_at(at)?;
                let proves = found.is_some_and(|found| {
                    found.header.salt == self.salt
                        && found.header.sequence > end.position.sequence
                        && found.header.durable >= end.position.sequence
                });
                if proves {
                    return Err(CorruptKind::LogRecord(end.position.sequence).into());
                }
            }
            at += ALIGN_BYTES as u64;
        }
        Ok(())
    }

    fn has_salt(&mut self, at: u64) -> Result<bool> {
        let salt = self.salt.to_le_bytes();
        Ok(self.bytes_at(at, HEADER_BYTES as u64)?.get(16..24) == Some(&salt))
    }

    fn decode_at(&mut self, at: u64) -> Result<Option<Record>> {
        Ok(record::decode(self.bytes_at(at, MAX_RECORD_BYTES as u64)?)
            .filter(|found| found.len_bytes as u64 <= self.ring_bytes - at % self.ring_bytes))
    }

    /// At least `len` bytes of the ring at `at`, or all up to the ring's end. A pad's body is not
    /// looked at, and may be longer than what is read.
    fn bytes_at(&mut self, at: u64, len: u64) -> Result<&[u8]> {
        let offset = at % self.ring_bytes;
        let wanted_end = (offset + len).min(self.ring_bytes);
        let window_end = self.window_start + self.window.len() as u64;
        if self.window.is_empty() || offset < self.window_start || wanted_end > window_end {
            self.window_start = offset & !(BLOCK_BYTES as u64 - 1);
            let len = WINDOW_BYTES.min(self.ring_bytes - self.window_start);
            let len = usize::try_from(len).expect("a window is 8 MiB");
            self.window.resize(len, 0);
            self.device
                .read_at(&mut self.window, self.ring_offset + self.window_start)?;
        }
        let from = usize::try_from(offset - self.window_start).expect("inside the window");
        Ok(&self.window[from..])
    }
}
