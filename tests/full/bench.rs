//! Small pools in memory, and helpers that fill them.

use cowshed_check::{CheckOptions, check};
use cowshed_engine::{CreateOptions, FullOptions, FullPolicy, OpenOptions, Pool, Volume, Waiter};
use cowshed_format::base::{BLOCK_BYTES, Error, Name, Result};
use cowshed_format::device::{Device, MemoryDevice};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const BLOCK: u64 = BLOCK_BYTES as u64;
pub(crate) const MIB: u64 = 1 << 20;

/// The time after which a test gives up on any operation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn name(text: impl AsRef<str>) -> Name {
    Name::new(text.as_ref()).unwrap()
}

/// Returns a block that no other seed produces.
pub(crate) fn block(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    while bytes.len() < BLOCK_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Options without background threads.
pub(crate) fn options(full: FullOptions) -> OpenOptions {
    OpenOptions {
        cache_bytes: 16 << 20,
        background: false,
        full,
        ..OpenOptions::default()
    }
}

/// Options that hold writers for `time`.
pub(crate) fn waiting(time: Duration) -> FullOptions {
    FullOptions {
        policy: FullPolicy::Wait(time),
        max_size_bytes: None,
    }
}

/// A new pool in memory.
pub(crate) fn pool(pool_bytes: u64, full: FullOptions) -> (Arc<MemoryDevice>, Pool) {
    let device = Arc::new(MemoryDevice::new(pool_bytes));
    Pool::create(&*device, &CreateOptions::default()).unwrap();
    let pool = Pool::open(device.clone(), &options(full)).unwrap();
    (device, pool)
}

/// Writes blocks of `volume` without waiting, from the first one on, until one is refused; returns
/// the number written. Block `index` has the seed `seed + index`.
pub(crate) fn fill(volume: &Volume, seed: u64) -> u64 {
    for index in 0.. {
        match write_now(volume, &block(seed + index), index * BLOCK) {
            Ok(()) => {}
            Err(Error::NoSpace) => return index,
            Err(error) => panic!("block {index}: {error}"),
        }
    }
    unreachable!("the pool ends before the numbers do")
}

/// Writes without waiting, regardless of the policy.
pub(crate) fn write_now(volume: &Volume, bytes: &[u8], offset_bytes: u64) -> Result<()> {
    struct Never;
    impl Waiter for Never {
        fn may_begin(&self) -> bool {
            false
        }

        fn ended(&self) {}
    }
    volume.write_at_with(bytes, offset_bytes, &Never)
}

/// Asserts that `count` blocks hold what `fill` wrote.
pub(crate) fn verify(volume: &Volume, seed: u64, count: u64) {
    let mut found = vec![0; BLOCK_BYTES];
    for index in 0..count {
        volume.read_at(&mut found, index * BLOCK).unwrap();
        let name = volume.name();
        assert!(found == block(seed + index), "block {index} of {name}");
    }
}

/// Runs the offline check on what a pool has left on its device; returns the number of blocks in
/// use.
pub(crate) fn expect_sound(device: &dyn Device) -> u64 {
    let options = CheckOptions {
        deep: true,
        repair: false,
        forget: false,
    };
    let report = check(device, options, &mut |_| {}).unwrap();
    assert!(report.clean(), "the check found {:#?}", report.findings);
    report.blocks_used
}

/// Waits until `holds` returns true.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        thread::sleep(Duration::from_millis(5));
    }
}
