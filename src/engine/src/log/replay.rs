//! Reading the ring after an unclean stop.

use cowshed_format::Layout;
use cowshed_format::base::{BLOCK_BYTES, CorruptKind, Result, Sequence};
use cowshed_format::device::Device;
use cowshed_format::record::{
    self, ALIGN_BYTES, Frame, HEADER_BYTES, MAX_RECORD_BYTES, Record, SALT_OFFSET,
};

/// Bytes read at a time; a record fits.
const WINDOW_BYTES: u64 = 8 << 20;
/// How many places that bear the salt and are no records are looked at behind the end.
const SEARCH_CANDIDATES: u32 = 4096;
const _: () = assert!(WINDOW_BYTES > 2 * MAX_RECORD_BYTES as u64);
const _: () =
    assert!(SALT_OFFSET.is_multiple_of(ALIGN_BYTES) && HEADER_BYTES.is_multiple_of(ALIGN_BYTES));

/// A place in the log: which record stands there, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// The record's number.
    pub sequence: Sequence,
    /// Bytes from the ring's start, counted on over its laps: the place is this modulo the ring.
    pub bytes: u64,
}

/// Where the valid records end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplayEnd {
    /// Where the next record would stand.
    pub position: Position,
    /// All records up to this one are known to have been durable.
    pub durable: Sequence,
    /// Behind the end lie later records with the same salt: they must not be taken for what
    /// follows what is appended next, so the log cannot go on without a new salt.
    pub has_later: bool,
}

/// Goes through the valid records from a checkpoint's position on.
pub(crate) struct Replay<'a> {
    device: &'a dyn Device,
    ring_offset: u64,
    ring_bytes: u64,
    salt: u64,
    start: Position,
    next: Position,
    /// What the records until `next` say of themselves.
    durable: Sequence,
    window: Vec<u8>,
    window_start: u64,
}

impl<'a> Replay<'a> {
    /// A replay from `start`, whose record bears `salt`.
    #[must_use]
    pub(crate) fn new(device: &'a dyn Device, layout: &Layout, start: Position, salt: u64) -> Self {
        Self {
            device,
            ring_offset: layout.log_offset_bytes(),
            ring_bytes: layout.log_bytes(),
            salt,
            start,
            next: start,
            durable: Sequence(start.sequence.0 - 1),
            window: Vec::new(),
            window_start: 0,
        }
    }

    /// Where the next record is looked for.
    #[must_use]
    pub(crate) const fn position(&self) -> Position {
        self.next
    }

    /// The next record (a pad is one without operations), or `None` at the end of the log.
    ///
    /// # Errors
    /// `Io` when the ring cannot be read.
    pub(crate) fn next_record(&mut self) -> Result<Option<Record>> {
        let Some((at, frame)) = self.take_frame()? else {
            return Ok(None);
        };
        Ok(Some(record::complete(&frame, self.record_at(at)?)))
    }

    /// Goes on to the end of the valid records, and makes sure that it is the end and no damage.
    ///
    /// # Errors
    /// `LogRecord` when a later record says that the one missing had been durable; `Io`.
    pub(crate) fn find_end(&mut self) -> Result<ReplayEnd> {
        while self.take_frame()?.is_some() {}
        let mut end = ReplayEnd {
            position: self.next,
            durable: self.durable,
            has_later: false,
        };
        end.has_later = self.search_behind(&end)?;
        Ok(end)
    }

    /// Goes past the next record, and answers where it starts and its frame; `None` at the end of
    /// the log.
    fn take_frame(&mut self) -> Result<Option<(u64, Frame)>> {
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
        let Some(found) = self.frame_at(at)? else {
            return Ok(None);
        };
        let fits = found.len_bytes as u64 <= room;
        if !fits || found.header.salt != salt || found.header.sequence != expected {
            return Ok(None);
        }
        self.durable = self.durable.max(found.header.durable);
        self.next = Position {
            sequence: expected.next(),
            bytes: at + found.len_bytes as u64,
        };
        Ok(Some((at, found)))
    }

    /// A valid record behind the end that was written when the missing one was durable already
    /// proves that the log is damaged, and did not just end. Answers whether there is any later
    /// one.
    fn search_behind(&mut self, end: &ReplayEnd) -> Result<bool> {
        let mut at = end.position.bytes.next_multiple_of(ALIGN_BYTES as u64);
        let stop = self.start.bytes + self.ring_bytes;
        let (mut budget, mut later) = (SEARCH_CANDIDATES, false);
        while let Some(found) = self.find_salt(at, stop)? {
            let frame = self.frame_at(found)?;
            if let Some(frame) = frame.filter(|frame| frame.header.salt == self.salt) {
                let header = frame.header;
                later |= header.sequence >= end.position.sequence;
                if header.sequence > end.position.sequence
                    && header.durable >= end.position.sequence
                {
                    return Err(CorruptKind::LogRecord(end.position.sequence).into());
                }
                at = found + frame.own_bytes() as u64;
                continue;
            }
            // Data that imitates headers must not make this last for ever.
            budget -= 1;
            if budget == 0 {
                return Ok(later);
            }
            at = found + ALIGN_BYTES as u64;
        }
        Ok(later)
    }

    /// The first place from `at` on at which a header with the salt may stand, with all of the
    /// header before `stop`.
    fn find_salt(&mut self, mut at: u64, stop: u64) -> Result<Option<u64>> {
        let salt = self.salt.to_le_bytes();
        while at + HEADER_BYTES as u64 <= stop {
            let lap_rest = self.ring_bytes - at % self.ring_bytes;
            if lap_rest < HEADER_BYTES as u64 {
                at += lap_rest;
                continue;
            }
            let len = WINDOW_BYTES.min(lap_rest).min(stop - at);
            let bytes = self.bytes_at(at, HEADER_BYTES as u64)?;
            let bytes = &bytes[..bytes
                .len()
                .min(usize::try_from(len).expect("at most a window"))];
            let words = bytes.as_chunks::<ALIGN_BYTES>().0;
            let (first, last) = (SALT_OFFSET / ALIGN_BYTES, HEADER_BYTES / ALIGN_BYTES - 1);
            let places = words.len() - last;
            let candidates = &words[first..first + places];
            if let Some(index) = candidates.iter().position(|word| *word == salt) {
                return Ok(Some(at + (index * ALIGN_BYTES) as u64));
            }
            at += (places * ALIGN_BYTES) as u64;
        }
        Ok(None)
    }

    fn frame_at(&mut self, at: u64) -> Result<Option<Frame>> {
        let rest = self.ring_bytes - at % self.ring_bytes;
        let frame = record::decode_frame(self.record_at(at)?);
        Ok(frame.filter(|frame| frame.len_bytes as u64 <= rest))
    }

    /// Bytes that hold all of a record at `at`.
    fn record_at(&mut self, at: u64) -> Result<&[u8]> {
        self.bytes_at(at, MAX_RECORD_BYTES as u64)
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
