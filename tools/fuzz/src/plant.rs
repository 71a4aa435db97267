//! A small pool as the starting point, and the map of its metadata: the locations of each block's
//! checksum, so that a change can be made to look as if the engine had written it.

use cowshed_engine::{CreateOptions, OpenOptions, Pool, RecordKind};
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{BLOCK_BYTES, Name};
use cowshed_format::device::mirror::Found;
use cowshed_format::device::{Device, DeviceImage, MemoryDevice, MirrorDevice, RecordedOp};
use cowshed_format::node::slot;
use cowshed_format::side::{SLOTS, label_places};
use cowshed_format::{Layout, Pointer, PointerKind, Superblock, node, record};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

pub(crate) const POOL_BYTES: u64 = 3 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// An image and its metadata.
pub(crate) struct Plant {
    pub(crate) image: DeviceImage,
    pub(crate) layout: Layout,
    /// The blocks that are worth changing.
    pub(crate) blocks: Vec<u64>,
    /// The locations of the pointers to each block: block and offset.
    holders: BTreeMap<u64, Vec<(u64, usize)>>,
    /// The start of each log record, from the device's start, and its length.
    records: Vec<(u64, usize)>,
}

/// A pool that was closed, and one whose process died with a full log.
pub(crate) static PLANTS: LazyLock<[Plant; 2]> = LazyLock::new(|| {
    [true, false].map(|close| {
        let device = Arc::new(MemoryDevice::new(POOL_BYTES));
        grow(Arc::clone(&device) as Arc<dyn Device>, close);
        survey(device.snapshot_image())
    })
});

/// The two sides of such pools.
pub(crate) static MIRRORS: LazyLock<[[Plant; 2]; 2]> = LazyLock::new(|| {
    [true, false].map(|close| {
        let sides = [0, 1].map(|_| Arc::new(MemoryDevice::new(POOL_BYTES)));
        let devices = sides.iter().map(|side| Arc::clone(side) as Arc<dyn Device>);
        let mirror = MirrorDevice::new(found(devices)).unwrap();
        grow(Arc::new(mirror), close);
        sides.map(|side| survey(side.snapshot_image()))
    })
});

/// Returns the sides of a mirror at the paths that their labels have.
pub(crate) fn found(devices: impl Iterator<Item = Arc<dyn Device>>) -> Vec<Found> {
    let found = |(number, device)| Found {
        path: PathBuf::from(format!("/side/{number}")),
        device,
    };
    devices.enumerate().map(found).collect()
}

pub(crate) fn options() -> OpenOptions {
    OpenOptions {
        cache_bytes: 256 << 10,
        background: false,
        ..OpenOptions::default()
    }
}

fn grow(device: Arc<dyn Device>, close: bool) {
    let create = CreateOptions {
        log_bytes: Some(64 << 10),
        force: false,
        ..CreateOptions::default()
    };
    Pool::create(&*device, &create).unwrap();
    let pool = Pool::open(device, &options()).unwrap();
    let name = |text: &str| Name::new(text).unwrap();
    let base = pool.create_volume(&name("base"), 400 * BLOCK).unwrap();
    let fill = |volume: &cowshed_engine::Volume, first: u64, count: usize, with: u8| {
        let bytes = vec![with; count * BLOCK_BYTES];
        volume.write_at(&bytes, first * BLOCK).unwrap();
    };
    fill(&base, 0, 3, 1);
    fill(&base, 300, 2, 2);
    let snapshot = pool.snapshot(&base, &name("snapshot")).unwrap();
    let clone = pool.clone_volume(&snapshot, &name("clone")).unwrap();
    fill(&clone, 1, 1, 3);
    fill(&base, 300, 1, 4);
    let gone = pool.create_volume(&name("gone"), 70_000 * BLOCK).unwrap();
    fill(&gone, 69_000, 2, 5);
    let mut transaction = pool.transaction();
    transaction.put_record(RecordKind::IMAGE, b"key", &[6; 5000]);
    transaction.commit().unwrap();
    pool.checkpoint().unwrap();
    pool.remove(&snapshot).unwrap();
    pool.remove(&gone).unwrap();
    fill(&clone, 2, 2, 7);
    clone.discard(0, BLOCK).unwrap();
    if close {
        pool.close().unwrap();
    }
}

pub(crate) fn block_of(image: &DeviceImage, addr: u64) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    image.read(&mut bytes, addr * BLOCK);
    bytes
}

pub(crate) fn put(image: &mut DeviceImage, addr: u64, bytes: &[u8]) {
    image.apply(&RecordedOp::Write {
        offset_bytes: addr * BLOCK,
        bytes: bytes.into(),
        mapped: false,
    });
}

fn newest(image: &DeviceImage) -> Superblock {
    let slots = [0, 1].map(|addr| Superblock::decode(&block_of(image, addr)));
    let sound = slots.into_iter().filter_map(Result::ok);
    sound.max_by_key(|found| found.generation).unwrap()
}

fn survey(image: DeviceImage) -> Plant {
    let superblock = newest(&image);
    let layout = superblock.layout;
    let mut plant = Plant {
        image,
        layout,
        blocks: Vec::new(),
        holders: BTreeMap::new(),
        records: Vec::new(),
    };
    let mut blocks = BTreeSet::new();
    for place in (0..SLOTS).flat_map(label_places) {
        if plant.has_label(place.0) {
            blocks.insert(place.0);
        }
    }
    for slot in [0, 1] {
        for place in layout.superblock_slots(slot) {
            blocks.insert(place.0);
            plant.hold(superblock.catalogue_root, place.0, 112);
        }
        let start = layout.bitmap_slot(0, slot).0;
        blocks.extend([start, start + 1]);
    }
    let mut data = Vec::new();
    plant.walk(
        superblock.catalogue_root,
        superblock.catalogue_height,
        &mut blocks,
        &mut data,
    );
    // The catalogue's data contains the roots of the volumes, at unknown offsets.
    for addr in data {
        let bytes = block_of(&plant.image, addr);
        for at in 0..BLOCK_BYTES - 16 {
            let pointer = Pointer::decode(bytes[at..at + 16].try_into().unwrap());
            let node = pointer.kind() == Some(PointerKind::Node);
            let inside = layout.locate(pointer.addr()).is_some();
            if node && inside && crc32(&block_of(&plant.image, pointer.addr().0)) == pointer.crc() {
                plant.hold(pointer, addr, at);
                let height = bytes[at - 38];
                plant.walk(pointer, height.clamp(1, 3), &mut blocks, &mut Vec::new());
            }
        }
    }
    plant.log(&superblock, &mut blocks);
    plant.blocks = blocks.into_iter().collect();
    debug_assert_eq!(slot(0, 1), 0);
    plant
}

impl Plant {
    /// Returns true if a block is the label of a mirror's side; without a mirror it is zero.
    fn has_label(&self, block: u64) -> bool {
        let is_place = (0..SLOTS)
            .flat_map(label_places)
            .any(|place| place.0 == block);
        is_place && block_of(&self.image, block) != [0; BLOCK_BYTES]
    }

    fn hold(&mut self, pointer: Pointer, block: u64, at: usize) {
        if !pointer.is_hole() {
            let holders = self.holders.entry(pointer.addr().0).or_default();
            if !holders.contains(&(block, at)) {
                holders.push((block, at));
            }
        }
    }

    fn walk(&mut self, top: Pointer, level: u8, blocks: &mut BTreeSet<u64>, data: &mut Vec<u64>) {
        if top.is_hole() {
            return;
        }
        let addr = top.addr().0;
        blocks.insert(addr);
        for (at, entry) in node::decode(&block_of(&self.image, addr))
            .iter()
            .enumerate()
        {
            self.hold(*entry, addr, at * 16);
            match entry.kind() {
                Some(PointerKind::Data) => {
                    blocks.insert(entry.addr().0);
                    data.push(entry.addr().0);
                }
                Some(PointerKind::Node) if level > 1 => {
                    self.walk(*entry, level - 1, blocks, data);
                }
                _ => {}
            }
        }
    }

    fn log(&mut self, superblock: &Superblock, blocks: &mut BTreeSet<u64>) {
        let mut ring = vec![0; usize::try_from(self.layout.log_bytes()).unwrap()];
        let start = self.layout.log_offset_bytes();
        self.image.read(&mut ring, start);
        let mut at = usize::try_from(superblock.log_offset).unwrap();
        while let Some(found) = record::decode(&ring[at..]) {
            if found.header.salt != superblock.log_salt {
                break;
            }
            self.records.push((start + at as u64, found.len_bytes));
            blocks.insert((start + at as u64) / BLOCK);
            at += found.len_bytes;
        }
    }

    /// Corrects every checksum above the current contents of `block` in `image`.
    pub(crate) fn seal(&self, image: &mut DeviceImage, block: u64) {
        let last = self.layout.block_count() - 2;
        if block < 2 || block >= last || self.has_label(block) {
            let mut bytes = block_of(image, block);
            let crc = crc32(&bytes[..BLOCK_BYTES - 4]);
            bytes[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
            return put(image, block, &bytes);
        }
        for slot in [0, 1] {
            let start = self.layout.bitmap_slot(0, slot).0;
            if block == start || block == start + 1 {
                let body = crc32(&block_of(image, start + 1));
                let mut header = block_of(image, start);
                header[4..8].copy_from_slice(&body.to_le_bytes());
                let crc = crc32(&header[..44]);
                header[44..48].copy_from_slice(&crc.to_le_bytes());
                put(image, start, &header);
            }
        }
        for (start, len) in &self.records {
            if (start / BLOCK..=(start + *len as u64) / BLOCK).contains(&block) {
                let mut bytes = vec![0; *len];
                image.read(&mut bytes, *start);
                let crc = crc32(&bytes[4..]);
                image.apply(&RecordedOp::Write {
                    offset_bytes: *start,
                    bytes: crc.to_le_bytes().into(),
                    mapped: true,
                });
            }
        }
        let crc = crc32(&block_of(image, block));
        for (holder, at) in self.holders.get(&block).into_iter().flatten() {
            let mut bytes = block_of(image, *holder);
            bytes[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
            put(image, *holder, &bytes);
            self.seal(image, *holder);
        }
    }
}
