//! The storage of a pool under test, and the ways in which it can be closed and reopened.

use cowshed_check::{CheckOptions, check};
use cowshed_engine::{CreateOptions, NewSide, OpenOptions, Pool};
use cowshed_format::device::mirror::Found;
use cowshed_format::device::{
    Device, DeviceImage, FileDevice, FileOptions, MemoryDevice, MirrorDevice,
};
use std::cell::Cell;
use std::ops::Range;
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
    Mirror(Sides),
    File(PathBuf),
}

/// The sides of a mirror.
pub(crate) struct Sides {
    devices: [Arc<MemoryDevice>; 2],
    /// Number of times that the pool was opened.
    lives: Cell<usize>,
}

impl Sides {
    fn found(&self, number: usize) -> Found {
        Found {
            path: format!("/side/{number}").into(),
            device: Arc::clone(&self.devices[number]) as Arc<dyn Device>,
        }
    }

    fn of(&self, numbers: Range<usize>) -> Arc<dyn Device> {
        let found = numbers.map(|number| self.found(number)).collect();
        Arc::new(MirrorDevice::assemble(found).expect("assemble the sides"))
    }

    /// Returns the sides with other contents, in the same life.
    fn with(&self, images: [DeviceImage; 2]) -> Self {
        Self {
            devices: images.map(|image| Arc::new(MemoryDevice::recording_from(image))),
            lives: self.lives.clone(),
        }
    }

    /// Opens the pool, in every other life first without the second side, which then comes back.
    fn open(&self, options: &OpenOptions) -> Pool {
        let life = self.lives.replace(self.lives.get() + 1);
        let alone = life % 2 == 1;
        let pool = Pool::open(self.of(0..if alone { 1 } else { 2 }), options);
        let pool = pool.expect("open the pool");
        if alone {
            let device = Arc::clone(&self.devices[1]) as Arc<dyn Device>;
            let back = NewSide {
                path: "/side/1".into(),
                open: Box::new(move |_| Ok(device)),
                force: false,
            };
            let added = pool.add_side(back, &mut |_, _| true);
            added.expect("bring the side back");
        }
        pool
    }
}

impl Storage {
    /// Creates a pool in memory; the device records its epochs for power cuts.
    pub(crate) fn memory() -> Self {
        let device = MemoryDevice::recording(POOL_BYTES);
        make(&device);
        Self::Memory(Arc::new(device))
    }

    /// Creates a pool on two sides in memory, which record as well.
    pub(crate) fn mirror() -> Self {
        let sides = Sides {
            devices: [0, 1].map(|_| Arc::new(MemoryDevice::recording(POOL_BYTES))),
            lives: Cell::new(0),
        };
        let found = vec![sides.found(0), sides.found(1)];
        make(&MirrorDevice::new(found).expect("make a mirror"));
        let images = sides.devices.each_ref().map(|side| side.snapshot_image());
        Self::Mirror(sides.with(images))
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
        let checked: Vec<Arc<dyn Device>> = match self {
            Self::Mirror(sides) => sides.devices.iter().map(|it| it.clone() as _).collect(),
            _ => vec![self.device()],
        };
        for device in checked {
            let report = check(&*device, options, &mut |_| {}).expect("check the pool");
            assert!(report.clean(), "the check found {:#?}", report.findings);
        }
    }

    fn device(&self) -> Arc<dyn Device> {
        match self {
            Self::Memory(device) => device.clone(),
            Self::Mirror(sides) => sides.of(0..2),
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
        if let Self::Mirror(sides) = self {
            return sides.open(&options);
        }
        Pool::open(self.device(), &options).expect("open the pool")
    }

    /// Stops `pool`, which must be the only handle.
    pub(crate) fn stop(&mut self, pool: Pool, stop: Stop) {
        match (stop, &*self) {
            (Stop::Clean, _) => pool.close().expect("close the pool"),
            (Stop::Killed, Self::Mirror(sides)) => {
                let images = sides.devices.each_ref().map(|it| it.snapshot_image());
                drop(pool);
                *self = Self::Mirror(sides.with(images));
                return;
            }
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
        if let Self::Mirror(sides) = self {
            let images = sides.devices.each_ref().map(|it| it.snapshot_image());
            *self = Self::Mirror(sides.with(images));
        }
    }

    /// Returns the number of flushes that the device has seen, if it counts them.
    pub(crate) fn flushes(&self) -> Option<u64> {
        match self {
            Self::Memory(device) => Some(device.flushes()),
            Self::Mirror(sides) => Some(sides.devices[0].flushes()),
            Self::File(_) => None,
        }
    }

    /// Cuts the power: everything that no flush has made durable is lost.
    ///
    /// # Panics
    /// With a file, because its host cannot be made to lose data.
    pub(crate) fn cut_power(&mut self, pool: Pool) {
        let lost = |device: &Arc<MemoryDevice>| {
            let recording = device.recorded().expect("the device records");
            recording.crash_image(recording.epochs.len(), [])
        };
        *self = match self {
            Self::Memory(device) => {
                let image = lost(device);
                drop(pool);
                Self::Memory(Arc::new(MemoryDevice::recording_from(image)))
            }
            Self::Mirror(sides) => {
                let images = sides.devices.each_ref().map(lost);
                drop(pool);
                Self::Mirror(sides.with(images))
            }
            Self::File(_) => panic!("only a device in memory can lose its power"),
        };
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
