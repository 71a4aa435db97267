//! The storage of a pool under test, and the ways in which it can be closed and reopened.

use cowshed_check::{CheckOptions, check};
use cowshed_engine::{CreateOptions, OpenOptions, Pool};
use cowshed_format::device::{Device, FileDevice, FileOptions, MemoryDevice};
use std::path::PathBuf;
use std::sync::Arc;

/// The size of the pools for random operations: so small that allocation wraps around.
pub(crate) const POOL_BYTES: u64 = 192 << 20;
/// So small that the log fills up, and a writer has to checkpoint, many times in a run.
const LOG_BYTES: u64 = 512 << 10;
/// So small that nodes are evicted and read back.
const CACHE_BYTES: u64 = 2 << 20;

/// The way in which a pool is stopped before it is opened again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    /// Closed in order.
    Clean,
    /// Dropped, as when the process ends without closing.
    Dropped,
    /// Killed: only what the device holds at that moment is left.
    Killed,
}

/// A pool's device.
pub(crate) enum Storage {
    Memory(Arc<MemoryDevice>),
    File(PathBuf),
}

impl Storage {
    /// Creates a pool in memory; the device records its epochs for power cuts.
    pub(crate) fn memory() -> Self {
        let device = MemoryDevice::recording(POOL_BYTES);
        make(&device);
        Self::Memory(Arc::new(device))
    }

    /// Creates a pool in a file.
    pub(crate) fn file(path: PathBuf) -> Self {
        make(&FileDevice::create(&path, POOL_BYTES, Default::default()).expect("create the file"));
        Self::File(path)
    }

    /// Runs the offline check on what a stopped pool has left.
    pub(crate) fn check(&self) {
        let options = CheckOptions {
            deep: true,
            repair: false,
            forget: false,
        };
        let report = check(&*self.device(), options, &mut |_| {}).expect("check the pool");
        assert!(report.clean(), "the check found {:#?}", report.findings);
    }

    fn device(&self) -> Arc<dyn Device> {
        match self {
            Self::Memory(device) => device.clone(),
            Self::File(path) => {
                let options = FileOptions::default();
                Arc::new(FileDevice::open(path, options).expect("open the pool's file"))
            }
        }
    }

    pub(crate) fn open(&self, background: bool) -> Pool {
        let cache_bytes = CACHE_BYTES;
        let options = OpenOptions {
            cache_bytes,
            background,
            ..OpenOptions::default()
        };
        Pool::open(self.device(), &options).expect("open the pool")
    }

    /// Stops `pool`, which must be the only handle.
    pub(crate) fn stop(&mut self, pool: Pool, stop: Stop) {
        match (stop, &*self) {
            (Stop::Clean, _) => pool.close().expect("close the pool"),
            (Stop::Killed, Self::Memory(device)) => {
                let image = device.snapshot_image();
                drop(pool);
                *self = Self::Memory(Arc::new(MemoryDevice::recording_from(image)));
                return;
            }
            _ => {}
        }
        drop(pool);
        // The log of a device is mapped once, so the next pool gets a new device with the same
        // bytes.
        if let Self::Memory(device) = self {
            let image = device.snapshot_image();
            *self = Self::Memory(Arc::new(MemoryDevice::recording_from(image)));
        }
    }

    /// Returns the number of flushes that the device has seen, if it counts them.
    pub(crate) fn flushes(&self) -> Option<u64> {
        match self {
            Self::Memory(device) => Some(device.flushes()),
            Self::File(_) => None,
        }
    }

    /// Cuts the power: everything that no flush has made durable is lost.
    ///
    /// # Panics
    /// With a file, because its host cannot be made to lose data.
    pub(crate) fn cut_power(&mut self, pool: Pool) {
        let Self::Memory(device) = self else {
            panic!("only a device in memory can lose its power");
        };
        let recording = device.recorded().expect("the device records");
        drop(pool);
        let image = recording.crash_image(recording.epochs.len(), []);
        *self = Self::Memory(Arc::new(MemoryDevice::recording_from(image)));
    }
}

fn make(device: &dyn Device) {
    let options = CreateOptions {
        log_bytes: Some(LOG_BYTES),
        force: false,
        ..CreateOptions::default()
    };
    Pool::create(device, &options).expect("create the pool");
}
