//! Appending to the ring.

use super::commit::Commit;
use super::replay::{Position, ReplayEnd};
use cowshed_format::Layout;
use cowshed_format::base::sync::Mutex;
use cowshed_format::base::sync::atomic::{AtomicU64, Ordering};
use cowshed_format::base::{Generation, Result, Sequence};
use cowshed_format::device::Device;
use cowshed_format::record::{self, HEADER_BYTES, Header};
use std::ops::Range;
use std::sync::Arc;

/// The log of an open pool.
pub(crate) struct Log {
    device: Arc<dyn Device>,
    ring_bytes: u64,
    tail: Mutex<Tail>,
    /// The last record appended; changed only under the `tail` lock.
    appended: AtomicU64,
    used_bytes: AtomicU64,
    commit: Commit,
}

struct Tail {
    next: Position,
    /// The start of the oldest record that a recovery would need, as `Position::bytes`.
    head_bytes: u64,
    salt: u64,
    /// True until a superblock with the salt is durable: a record appended now would never be
    /// replayed.
    sealed: bool,
}

impl Log {
    /// Returns the log of a pool whose records run from `head` to `end`, all of them durable. The
    /// ring must have been mapped (`Device::map_log`).
    #[must_use]
    pub(crate) fn new(
        device: Arc<dyn Device>,
        layout: &Layout,
        head: Position,
        end: Position,
        salt: u64,
    ) -> Self {
        assert!(head.bytes <= end.bytes && end.bytes - head.bytes <= layout.log_bytes());
        let last = end.sequence.0 - 1;
        Self {
            device,
            ring_bytes: layout.log_bytes(),
            tail: Mutex::new(Tail {
                next: end,
                head_bytes: head.bytes,
                salt,
                sealed: false,
            }),
            appended: AtomicU64::new(last),
            used_bytes: AtomicU64::new(end.bytes - head.bytes),
            commit: Commit::new(Sequence(last)),
        }
    }

    /// Appends a record: `record` holds `HEADER_BYTES` of anything, the operations, and zeros up to
    /// the length that `record::record_bytes` gives. Returns its sequence, or `None` if the ring
    /// has no space until a checkpoint has moved the head, or if the salt is not durable yet.
    ///
    /// # Errors
    /// As `Device::store_log`.
    pub(crate) fn append(
        &self,
        record: &mut [u8],
        generation: Generation,
    ) -> Result<Option<Sequence>> {
        let mut tail = self.tail.lock();
        if tail.sealed {
            return Ok(None);
        }
        let len = record.len() as u64;
        let offset = tail.next.bytes % self.ring_bytes;
        let rest = self.ring_bytes - offset;
        let skip = if rest < len { rest } else { 0 };
        if tail.next.bytes + skip + len - tail.head_bytes > self.ring_bytes {
            return Ok(None);
        }
        if skip > 0 {
            self.skip_to_start(&mut tail, skip, offset, generation)?;
        }
        let header = self.header(&tail, generation);
        record::seal(record, &header);
        self.device
            .store_log(tail.next.bytes % self.ring_bytes, record)?;
        self.advance(&mut tail, len);
        Ok(Some(header.sequence))
    }

    /// Skips the rest of the ring: with a pad record if a header fits, otherwise without.
    fn skip_to_start(
        &self,
        tail: &mut Tail,
        skip: u64,
        offset: u64,
        generation: Generation,
    ) -> Result<()> {
        if skip < HEADER_BYTES as u64 {
            tail.next.bytes += skip;
            return Ok(());
        }
        let len = u32::try_from(skip).expect("a record is at most 2 MiB, and the pad is shorter");
        let pad = record::pad(&self.header(tail, generation), len);
        self.device.store_log(offset, &pad)?;
        self.advance(tail, skip);
        Ok(())
    }

    fn header(&self, tail: &Tail, generation: Generation) -> Header {
        Header {
            sequence: tail.next.sequence,
            salt: tail.salt,
            durable: self.commit.durable(),
            generation,
        }
    }

    fn advance(&self, tail: &mut Tail, len: u64) {
        self.appended.store(tail.next.sequence.0, Ordering::Release);
        tail.next = Position {
            sequence: tail.next.sequence.next(),
            bytes: tail.next.bytes + len,
        };
        self.used_bytes
            .store(tail.next.bytes - tail.head_bytes, Ordering::Relaxed);
    }

    /// Returns the position of the next record: the cut of a checkpoint that has stopped all
    /// appends.
    #[must_use]
    pub(crate) fn position(&self) -> Position {
        self.tail.lock().next
    }

    /// Ends the valid records at `position`, after a recovery. A new salt voids whatever lies
    /// behind. Nothing may have been appended yet, and nothing can be before `unseal`.
    pub(crate) fn restart(&self, position: Position) {
        let mut tail = self.tail.lock();
        assert!(
            tail.next.bytes == tail.head_bytes,
            "a recovery comes before all appends"
        );
        let last = Sequence(position.sequence.0 - 1);
        tail.next = position;
        tail.salt = rand::random();
        tail.sealed = true;
        self.appended.store(last.0, Ordering::Release);
        self.commit.covered(last);
        self.used_bytes
            .store(tail.next.bytes - tail.head_bytes, Ordering::Relaxed);
    }

    /// Continues the log at `end` with the salt of the records before it, after the death of a
    /// process on a kernel that has kept running. Records behind `end.durable` are in place, but a
    /// power cut may still take them. Nothing may have been appended yet.
    pub(crate) fn resume(&self, end: &ReplayEnd) {
        let mut tail = self.tail.lock();
        assert!(
            tail.next.bytes == tail.head_bytes,
            "the log goes on before all appends"
        );
        let last = Sequence(end.position.sequence.0 - 1);
        tail.next = end.position;
        self.appended.store(last.0, Ordering::Release);
        self.commit.covered(end.durable.min(last));
        self.used_bytes
            .store(tail.next.bytes - tail.head_bytes, Ordering::Relaxed);
    }

    /// Notes that a superblock with the log's salt is durable.
    pub(crate) fn unseal(&self) {
        self.tail.lock().sealed = false;
    }

    /// Moves the head to `position`: a durable checkpoint holds the effect of everything before it.
    ///
    /// # Panics
    /// When the position is not between head and tail.
    pub(crate) fn release(&self, position: Position) {
        let mut tail = self.tail.lock();
        assert!((tail.head_bytes..=tail.next.bytes).contains(&position.bytes));
        tail.head_bytes = position.bytes;
        self.used_bytes
            .store(tail.next.bytes - tail.head_bytes, Ordering::Relaxed);
    }

    /// Returns the number of bytes from the head to the tail.
    #[must_use]
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Returns the range from the head to the tail, as `Position::bytes`.
    #[must_use]
    pub(crate) fn used_range(&self) -> Range<u64> {
        let tail = self.tail.lock();
        tail.head_bytes..tail.next.bytes
    }

    /// Returns the number of bytes in the ring.
    #[must_use]
    pub(crate) const fn ring_bytes(&self) -> u64 {
        self.ring_bytes
    }

    /// Returns the maximum length of an appended record: an eighth of the ring, so that a record
    /// always fits after a checkpoint.
    #[must_use]
    pub(crate) fn max_record_bytes(&self) -> usize {
        let eighth = usize::try_from(self.ring_bytes / 8).unwrap_or(usize::MAX);
        eighth.min(record::MAX_RECORD_BYTES)
    }

    /// Returns the salt of the records that are appended.
    #[must_use]
    pub(crate) fn salt(&self) -> u64 {
        self.tail.lock().salt
    }

    /// Returns the sequence of the last record appended.
    #[must_use]
    pub(crate) fn appended(&self) -> Sequence {
        Sequence(self.appended.load(Ordering::Acquire))
    }

    /// Makes all records appended before the call durable, and the data written before them: one
    /// barrier, shared with every other caller that waits for one.
    ///
    /// # Errors
    /// As `Device::flush`.
    pub(crate) fn flush(&self) -> Result<()> {
        self.commit
            .flush(self.appended(), || self.appended(), &*self.device)
    }

    /// Makes everything written so far durable, with or without a log record: the barrier of a
    /// checkpoint.
    ///
    /// # Errors
    /// As `Device::flush`.
    pub(crate) fn barrier(&self) -> Result<()> {
        let covered = self.appended();
        self.device.flush()?;
        self.commit.covered(covered);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Replay;
    use super::*;
    use cowshed_format::base::codec::Writer;
    use cowshed_format::base::{CorruptKind, Error, VolumeId};
    use cowshed_format::device::MemoryDevice;
    use cowshed_format::operation::Operation;

    fn log(device: &Arc<MemoryDevice>) -> (Log, Layout, Position) {
        let layout = Layout::new(4096, 16).unwrap();
        device
            .map_log(layout.log_offset_bytes(), layout.log_bytes())
            .unwrap();
        let start = Position {
            sequence: Sequence(1),
            bytes: 0,
        };
        let device = Arc::clone(device) as Arc<dyn Device>;
        (Log::new(device, &layout, start, start, 42), layout, start)
    }

    fn record(volume: u64, extra: usize) -> Vec<u8> {
        let mut out = Writer::new();
        out.bytes(&[0; HEADER_BYTES]);
        Operation::PutRecord {
            kind: 1,
            key: volume.to_le_bytes().into(),
            value: vec![9; extra],
        }
        .encode(&mut out);
        Operation::Freeze {
            volume: VolumeId(volume),
        }
        .encode(&mut out);
        let mut bytes = out.into_bytes();
        bytes.resize(record::record_bytes(bytes.len() - HEADER_BYTES), 0);
        bytes
    }

    #[test]
    fn records_come_back_in_order_over_many_laps() {
        let device = Arc::new(MemoryDevice::new(16 << 20));
        let (log, layout, mut head) = log(&device);
        let mut pending = 0u64;
        for round in 0..2000u64 {
            let mut bytes = record(round, usize::try_from(round * 37 % 3000).unwrap());
            while log.append(&mut bytes, Generation(round)).unwrap().is_none() {
                let mut replay = Replay::new(&*device, &layout, head, 42);
                let mut found = 0;
                while let Some(record) = replay.next_record().unwrap() {
                    found += u64::from(!record.operations.unwrap().is_empty());
                }
                assert_eq!(found, pending);
                head = log.position();
                assert_eq!(replay.position(), head);
                log.release(head);
                pending = 0;
            }
            pending += 1;
        }
    }

    #[test]
    fn a_flush_without_new_records_needs_no_barrier() {
        let device = Arc::new(MemoryDevice::new(16 << 20));
        let (log, ..) = log(&device);
        log.flush().unwrap();
        assert_eq!(device.flushes(), 0);
        log.append(&mut record(1, 0), Generation(1))
            .unwrap()
            .unwrap();
        assert_eq!(device.flushes(), 0);
        log.flush().unwrap();
        log.flush().unwrap();
        assert_eq!(device.flushes(), 1);
    }

    /// The first record was lost, and at its place the ring shows the end of an earlier lap: a pad
    /// to the ring's end. The bytes behind the pad's header were written since.
    #[test]
    fn a_pad_of_an_earlier_lap_does_not_hide_that_a_flushed_record_is_missing() {
        let device = Arc::new(MemoryDevice::new(16 << 20));
        let (_, layout, _) = log(&device);
        let header = |sequence, durable| Header {
            sequence: Sequence(sequence),
            salt: 42,
            durable: Sequence(durable),
            generation: Generation(1),
        };
        let len = u32::try_from(layout.log_bytes() - 8).unwrap();
        device
            .store_log(8, &record::pad(&header(4, 3), len))
            .unwrap();
        let start = Position {
            sequence: Sequence(5),
            bytes: 0,
        };
        let mut replay = Replay::new(&*device, &layout, start, 42);
        assert_eq!(replay.find_end().unwrap().position, start);
        let mut next = record(1, 0);
        record::seal(&mut next, &header(6, 5));
        device.store_log(64, &next).unwrap();
        let found = Replay::new(&*device, &layout, start, 42).find_end();
        let found = found.and_then(|end| end.check());
        let error = found.expect_err("the record behind says that it had been flushed");
        let missing = CorruptKind::LogRecord(Sequence(5));
        assert!(
            matches!(error, Error::Corrupt(kind) if kind == missing),
            "{error}"
        );
    }
}
