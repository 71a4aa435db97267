//! Reading the ring after an unclean stop.

use cowshed_format::Layout;
use cowshed_format::base::{BLOCK_BYTES, CorruptKind, Result, Sequence};
use cowshed_format::device::Device;
use cowshed_format::record::{
    self, ALIGN_BYTES, Frame, HEADER_BYTES, MAX_RECORD_BYTES, Record, SALT_OFFSET,
};

/// Number of bytes read at a time; any record fits.
const WINDOW_BYTES: u64 = 8 << 20;
/// Maximum number of places behind the end that are examined because they hold the salt, though
/// they are no records.
const SEARCH_CANDIDATES: u32 = 4096;
const _: () = assert!(WINDOW_BYTES > 2 * MAX_RECORD_BYTES as u64);
const _: () =
    assert!(SALT_OFFSET.is_multiple_of(ALIGN_BYTES) && HEADER_BYTES.is_multiple_of(ALIGN_BYTES));

/// A position in the log: a record's sequence, and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// The record's number.
    pub sequence: Sequence,
    /// Number of bytes from the ring's start, counted on over its laps: the place is this modulo
    /// the ring's length.
    pub bytes: u64,
}

/// The end of the valid records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplayEnd {
    /// The position of the next record.
    pub position: Position,
    /// All records up to this one are known to have been durable.
    pub durable: Sequence,
    /// True if later records with the same salt lie behind the end. They must not be mistaken for
    /// successors of the next appended record, so the log cannot go on without a new salt.
    pub has_later: bool,
    /// True if a later record says that the one at the end was durable: the log is damaged there,
    /// and did not just end.
    pub is_damaged: bool,
}

impl ReplayEnd {
    /// Returns an error if the log is damaged.
    ///
    /// # Errors
    /// `LogRecord`.
    pub(crate) fn check(&self) -> Result<()> {
        match self.is_damaged {
            true => Err(CorruptKind::LogRecord(self.position.sequence).into()),
            false => Ok(()),
        }
    }
}

/// Reads the valid records from a checkpoint's position on.
pub(crate) struct Replay<'a> {
    device: &'a dyn Device,
    ring_offset: u64,
    ring_bytes: u64,
    salt: u64,
    start: Position,
    next: Position,
    /// The highest `durable` of the records before `next`.
    durable: Sequence,
    window: Vec<u8>,
    window_start: u64,
}

impl<'a> Replay<'a> {
    /// Returns a replay from `start`, whose record holds `salt`.
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

    /// Returns the position at which the next record is expected.
    #[must_use]
    pub(crate) const fn position(&self) -> Position {
        self.next
    }

    /// Returns the next record (a pad is one without operations), or `None` at the end of the log.
    ///
    /// # Errors
    /// `Io` when the ring cannot be read.
    pub(crate) fn next_record(&mut self) -> Result<Option<Record>> {
        let Some((at, frame)) = self.take_frame()? else {
            return Ok(None);
        };
        Ok(Some(record::complete(&frame, self.record_at(at)?)))
    }

    /// Reads to the end of the valid records, and finds out whether it is the log's end or damage.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn find_end(&mut self) -> Result<ReplayEnd> {
        while self.take_frame()?.is_some() {}
        let mut end = ReplayEnd {
            position: self.next,
            durable: self.durable,
            has_later: false,
            is_damaged: false,
        };
        self.search_behind(&mut end)?;
        Ok(end)
    }

    /// Moves past the next record, and returns its start and its frame; `None` at the end of the
    /// log.
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

    /// Searches for valid records behind the end, until one of them says that the missing record
    /// was durable.
    fn search_behind(&mut self, end: &mut ReplayEnd) -> Result<()> {
        let mut at = end.position.bytes.next_multiple_of(ALIGN_BYTES as u64);
        let stop = self.start.bytes + self.ring_bytes;
        let mut budget = SEARCH_CANDIDATES;
        while let Some(found) = self.find_salt(at, stop)? {
            let frame = self.frame_at(found)?;
            if let Some(frame) = frame.filter(|frame| frame.header.salt == self.salt) {
                let header = frame.header;
                end.has_later |= header.sequence >= end.position.sequence;
                if header.sequence > end.position.sequence
                    && header.durable >= end.position.sequence
                {
                    end.is_damaged = true;
                    // It was the first record that is not there; all before it were durable, too.
                    let before = Sequence(end.position.sequence.0 - 1);
                    end.durable = end.durable.max(before);
                    return Ok(());
                }
                at = found + frame.own_bytes() as u64;
                continue;
            }
            // Data that imitates headers must not make this search endless.
            budget -= 1;
            if budget == 0 {
                return Ok(());
            }
            at = found + ALIGN_BYTES as u64;
        }
        Ok(())
    }

    /// Returns the first place from `at` on at which a header with the salt may be, with the whole
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

    /// Returns bytes that hold all of a record at `at`.
    fn record_at(&mut self, at: u64) -> Result<&[u8]> {
        self.bytes_at(at, MAX_RECORD_BYTES as u64)
    }

    /// Returns at least `len` bytes of the ring at `at`, or all up to the ring's end. A pad's body
    /// is not examined, and may be longer than the bytes read.
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
