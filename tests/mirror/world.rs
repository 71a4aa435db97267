//! Devices in memory whose changes are recorded in one order, so that a power cut hits all of them
//! at one moment, and each keeps what its own flushes made durable and any part of the rest.

use cowshed_format::base::Result;
use cowshed_format::device::mirror::Found;
use cowshed_format::device::{Device, DeviceImage, MemoryDevice, MirrorDevice, RecordedOp};
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeSet;
use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// One event of a device.
enum Event {
    Changed(RecordedOp),
    /// A flush that began when this many events had happened.
    Flushed(usize),
}

/// Number of devices that power cuts have left, for all tests of this process.
static IMAGES: AtomicU64 = AtomicU64::new(0);

/// Prints how many devices power cuts have left so far.
pub(crate) fn tell_images() {
    let images = IMAGES.load(Ordering::Relaxed);
    println!("{images} images of sides so far, in all tests");
}

type Events = Arc<Mutex<Vec<(usize, Event)>>>;

/// The recorded life of several devices.
pub(crate) struct World {
    bases: Vec<DeviceImage>,
    devices: Vec<Arc<Recorder>>,
    events: Events,
}

/// One device of a world.
pub(crate) struct Recorder {
    number: usize,
    inner: MemoryDevice,
    log_start: Mutex<u64>,
    events: Events,
}

impl World {
    pub(crate) fn new(bases: Vec<DeviceImage>) -> Self {
        let events = Events::default();
        let device = |(number, base): (usize, &DeviceImage)| {
            Arc::new(Recorder {
                number,
                inner: MemoryDevice::from_image(base.clone()),
                log_start: Mutex::new(0),
                events: Arc::clone(&events),
            })
        };
        let devices = bases.iter().enumerate().map(device).collect();
        Self {
            bases,
            devices,
            events,
        }
    }

    pub(crate) fn zeroed(sides: usize, len_bytes: u64) -> Self {
        Self::new(vec![DeviceImage::zeroed(len_bytes); sides])
    }

    pub(crate) fn device(&self, number: usize) -> Arc<dyn Device> {
        Arc::clone(&self.devices[number]) as Arc<dyn Device>
    }

    /// Returns the number of events until now.
    pub(crate) fn moment(&self) -> usize {
        self.events.lock().unwrap().len()
    }

    /// Returns what a power cut after the first `moment` events leaves of each device.
    pub(crate) fn cut(&self, moment: usize, rng: &mut StdRng) -> Vec<DeviceImage> {
        let events = self.events.lock().unwrap();
        let mut images = self.bases.clone();
        for (number, image) in images.iter_mut().enumerate() {
            let own = |(_, (side, _)): &(usize, &(usize, Event))| *side == number;
            let own: Vec<_> = events[..moment].iter().enumerate().filter(own).collect();
            let durable = own.iter().filter_map(|(_, (_, event))| match event {
                Event::Flushed(begun) => Some(*begun),
                Event::Changed(_) => None,
            });
            let durable = durable.max().unwrap_or(0);
            // Some cuts lose nothing or everything of one side.
            let keeps = [0, 50, 50, 90, 100][rng.random_range(0..5)];
            for (index, (_, event)) in own {
                let Event::Changed(op) = event else { continue };
                if index < durable || rng.random_range(0..100) < keeps {
                    image.apply(op);
                } else if rng.random_ratio(1, 4) {
                    apply_torn(image, op, rng);
                }
            }
        }
        IMAGES.fetch_add(images.len() as u64, Ordering::Relaxed);
        images
    }

    /// Returns what the devices held after the first `moment` events.
    pub(crate) fn at(&self, moment: usize) -> Vec<DeviceImage> {
        let mut images = self.bases.clone();
        for (number, event) in &self.events.lock().unwrap()[..moment] {
            if let Event::Changed(op) = event {
                images[*number].apply(op);
            }
        }
        images
    }

    /// Returns the blocks of the last `count` writes to a device, without stores into its log.
    pub(crate) fn last_written(&self, number: usize, count: usize) -> BTreeSet<u64> {
        let events = self.events.lock().unwrap();
        let written = events.iter().rev().filter_map(|(side, event)| match event {
            Event::Changed(RecordedOp::Write {
                offset_bytes,
                bytes,
                mapped: false,
            }) if *side == number => Some((offset_bytes / 4096, bytes.len() as u64 / 4096)),
            _ => None,
        });
        let written = written.take(count);
        written
            .flat_map(|(first, blocks)| first..first + blocks)
            .collect()
    }

    /// Returns what the devices hold after a power cut now that loses all that was not flushed.
    pub(crate) fn durable(&self) -> Vec<DeviceImage> {
        let events = self.events.lock().unwrap();
        let mut images = self.bases.clone();
        for (number, image) in images.iter_mut().enumerate() {
            let own = || {
                (0..)
                    .zip(events.iter())
                    .filter(|(_, (side, _))| *side == number)
            };
            let flushed = own().filter_map(|(_, (_, event))| match event {
                Event::Flushed(begun) => Some(*begun),
                Event::Changed(_) => None,
            });
            let flushed = flushed.max().unwrap_or(0);
            for (index, (_, event)) in own() {
                if let Event::Changed(op) = event
                    && index < flushed
                {
                    image.apply(op);
                }
            }
        }
        images
    }

    /// Returns the devices as they are, as after the death of the process.
    pub(crate) fn now(&self) -> Vec<DeviceImage> {
        let images = self.devices.iter();
        images.map(|device| device.inner.snapshot_image()).collect()
    }
}

/// Applies the first part of a write: whole blocks, or any number of bytes of a store.
fn apply_torn(image: &mut DeviceImage, op: &RecordedOp, rng: &mut StdRng) {
    if let RecordedOp::Write {
        offset_bytes,
        bytes,
        mapped,
    } = op
    {
        let unit = if *mapped { 1 } else { 4096 };
        let kept = rng.random_range(0..=bytes.len() / unit) * unit;
        image.apply(&RecordedOp::Write {
            offset_bytes: *offset_bytes,
            bytes: bytes[..kept].into(),
            mapped: *mapped,
        });
    }
}

impl Recorder {
    fn record(&self, op: RecordedOp, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut events = self.events.lock().unwrap();
        change()?;
        events.push((self.number, Event::Changed(op)));
        Ok(())
    }
}

impl Device for Recorder {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.inner.read_at(buf, offset_bytes)
    }

    fn fill_gaps(&self, offset_bytes: u64, len_bytes: u64) {
        let bytes = vec![0xf1; usize::try_from(len_bytes).unwrap()];
        self.write_at(&bytes, offset_bytes).unwrap();
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        let op = RecordedOp::Write {
            offset_bytes,
            bytes: buf.into(),
            mapped: false,
        };
        self.record(op, || self.inner.write_at(buf, offset_bytes))
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.write_at(&bytes, offset_bytes)
    }

    fn flush(&self) -> Result<()> {
        let begun = self.events.lock().unwrap().len();
        let mut events = self.events.lock().unwrap();
        events.push((self.number, Event::Flushed(begun)));
        Ok(())
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        let op = RecordedOp::Discard {
            offset_bytes,
            len_bytes,
        };
        self.record(op, || self.inner.discard(offset_bytes, len_bytes))
    }

    fn grow(&self, len_bytes: u64) -> Result<()> {
        let op = RecordedOp::Grow { len_bytes };
        self.record(op, || self.inner.grow(len_bytes))
    }

    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        *self.log_start.lock().unwrap() = offset_bytes;
        self.inner.map_log(offset_bytes, len_bytes)
    }

    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        let op = RecordedOp::Write {
            offset_bytes: *self.log_start.lock().unwrap() + offset_bytes,
            bytes: bytes.into(),
            mapped: true,
        };
        self.record(op, || self.inner.store_log(offset_bytes, bytes))
    }

    fn host_bytes(&self) -> Result<u64> {
        self.inner.host_bytes()
    }
}

/// Returns the path at which a device stands in the labels.
pub(crate) fn path(number: usize) -> PathBuf {
    PathBuf::from(format!("/side/{number}"))
}

/// Returns the mirror of these devices, each with its number.
pub(crate) fn assembled(
    devices: impl IntoIterator<Item = (usize, Arc<dyn Device>)>,
) -> Result<Arc<MirrorDevice>> {
    let found = |(number, device)| Found {
        path: path(number),
        device,
    };
    MirrorDevice::assemble(devices.into_iter().map(found).collect()).map(Arc::new)
}

/// Returns devices that hold these images.
pub(crate) fn of_images(images: &[DeviceImage]) -> Vec<(usize, Arc<dyn Device>)> {
    let device =
        |image: &DeviceImage| Arc::new(MemoryDevice::from_image(image.clone())) as Arc<dyn Device>;
    images.iter().map(device).enumerate().collect()
}
