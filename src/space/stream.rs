//! A run of blocks set aside for one stream of writes, so that what is written in sequence lies
//! in sequence and streams do not meet.

use super::{BlockRun, Demand, Space};
use crate::base::BlockAddr;
use crate::device::Device;

/// The first run that a stream takes, in blocks; each next one is twice as long.
const FIRST_RUN_BLOCKS: u32 = 16;
/// The longest run that a stream takes, in blocks (1 MiB).
const LONGEST_RUN_BLOCKS: u32 = 256;

/// Writes of at least this many blocks (64 KiB) look for runs of at least this many.
const LONG_BLOCKS: u32 = 16;

/// What a stream has set aside.
#[derive(Debug)]
pub struct Stream {
    next: u64,
    left: u32,
    ahead: u32,
    /// The host may hold room for what is left.
    on_host: bool,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            next: 0,
            left: 0,
            ahead: FIRST_RUN_BLOCKS,
            on_host: false,
        }
    }
}

impl Stream {
    /// Up to `most` blocks in a row; `None` when the pool is full for writes.
    pub fn take(&mut self, space: &Space, device: &dyn Device, most: u32) -> Option<BlockRun> {
        if self.left == 0 {
            // A large write looks for room where it lies together; a small one takes what comes
            // first, as that is what the host is likeliest to have at hand.
            let least = if most >= LONG_BLOCKS { LONG_BLOCKS } else { 1 };
            let run = space.allocate(self.ahead.max(most), least, Demand::Write)?;
            (self.next, self.left) = (run.start.0, run.count);
            self.ahead = (self.ahead * 2).min(LONGEST_RUN_BLOCKS);
            let len_bytes = BlockAddr(u64::from(run.count)).offset_bytes();
            self.on_host = device.expect_writes(run.start.offset_bytes(), len_bytes);
        }
        let count = most.min(self.left);
        let run = BlockRun {
            start: BlockAddr(self.next),
            count,
        };
        self.next += u64::from(count);
        self.left -= count;
        Some(run)
    }

    /// Gives back what is set aside and was not used.
    pub fn release(&mut self, space: &Space) {
        if self.left > 0 {
            let run = BlockRun {
                start: BlockAddr(self.next),
                count: self.left,
            };
            if self.on_host {
                space.give_back_to_host(run);
            } else {
                space.give_back(run);
            }
        }
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{CreateFile, FileDevice, MemoryDevice};
    use crate::format::Layout;

    const DEVICE_BYTES: u64 = 64 << 20;

    fn space() -> Space {
        Space::new(Layout::new(DEVICE_BYTES / 4096, 16).unwrap(), |_| None)
    }

    #[test]
    fn runs_follow_one_another_and_grow() {
        let (space, device) = (space(), MemoryDevice::new(DEVICE_BYTES));
        let free = space.free_blocks();
        let mut stream = Stream::default();
        let mut end = None;
        for _ in 0..16 + 32 + 64 {
            let run = stream.take(&space, &device, 1).unwrap();
            assert!(run.count == 1 && end.is_none_or(|end| end == run.start.0));
            end = Some(run.start.0 + 1);
        }
        assert_eq!(space.free_blocks(), free - 112);
        stream.take(&space, &device, 1).unwrap();
        assert_eq!(space.free_blocks(), free - 112 - 128);
        stream.release(&space);
        assert_eq!(space.free_blocks(), free - 113);
    }

    #[test]
    fn room_that_the_host_holds_ahead_of_direct_writes_goes_back_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let options = CreateFile {
            direct: true,
            ..CreateFile::default()
        };
        let device = FileDevice::create(folder.path().join("pool"), DEVICE_BYTES, options);
        let device = device.unwrap();
        let space = space();
        let mut stream = Stream::default();
        let mut written = 0;
        // The last of them is the first of a run of its own.
        while written <= 16 + 32 + 64 + 128 {
            let run = stream.take(&space, &device, 1).unwrap();
            device
                .write_at(&[1; 4096], run.start.offset_bytes())
                .unwrap();
            written += 1;
        }
        device.flush().unwrap();
        let ahead = device.host_bytes().unwrap() - (written << 12);
        assert!(ahead >= 255 << 12, "{ahead} bytes ahead of the writes");
        stream.release(&space);
        assert_eq!(space.punch_stale(&device).unwrap(), 255 << 12);
        let left = device.host_bytes().unwrap() - (written << 12);
        assert!(
            left <= ahead - (255 << 12),
            "{left} of {ahead} bytes are left"
        );
    }
}
