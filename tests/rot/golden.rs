//! The pools that are damaged, with their contents and the kind of each of their blocks.

use cowshed_engine::{CreateOptions, MetadataCopies, OpenOptions, Pool, RecordKind, Volume};
use cowshed_format::Superblock;
use cowshed_format::base::{BlockAddr, Name};
use cowshed_format::device::{Device, DeviceImage, MemoryDevice};
use cowshed_format::layout::GROUP_HEADER_BLOCKS;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) const BLOCK: u64 = 4096;
const LOG_BYTES: u64 = 64 << 10;
const VOLUME_BLOCKS: u64 = 560;

/// Each volume's bytes by its name.
pub(crate) type State = BTreeMap<String, Vec<u8>>;

/// The kind of a block of a pool, as far as the tests distinguish them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Superblock,
    Log,
    BitmapHeader,
    Bitmap,
    /// Data, map nodes and catalogue.
    Body,
}

/// A pool with its expected contents.
pub(crate) struct Golden {
    pub(crate) image: DeviceImage,
    /// The same pool a few checkpoints earlier.
    pub(crate) older: DeviceImage,
    /// Its contents: the last element. The others are its contents after each record since the
    /// checkpoint.
    pub(crate) states: Vec<State>,
    /// The blocks in use.
    pub(crate) blocks: Vec<(u64, Part)>,
}

pub(crate) fn options() -> OpenOptions {
    OpenOptions {
        cache_bytes: 256 << 10,
        background: false,
        ..OpenOptions::default()
    }
}

pub(crate) fn open(device: &Arc<MemoryDevice>) -> cowshed_format::base::Result<Pool> {
    Pool::open(Arc::clone(device) as Arc<dyn Device>, &options())
}

pub(crate) fn state_of(pool: &Pool) -> State {
    let read = |name: &Name| {
        let volume = pool.volume(name.as_str()).unwrap();
        let mut bytes = vec![0; usize::try_from(volume.size_bytes()).unwrap()];
        volume.read_at(&mut bytes, 0).unwrap();
        (name.to_string(), bytes)
    };
    pool.volumes().iter().map(|info| read(&info.name)).collect()
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn scribble(volume: &Volume, random: &mut StdRng, writes: usize) {
    for _ in 0..writes {
        let blocks = random.random_range(1..5);
        let at = random.random_range(0..VOLUME_BLOCKS - 5);
        let mut bytes = vec![0; usize::try_from(blocks * BLOCK).unwrap()];
        random.fill(&mut bytes[..]);
        volume.write_at(&bytes, at * BLOCK).unwrap();
    }
}

/// Creates a pool with shared maps, a removed parent, records of several parts, and old bitmaps;
/// closed, or with a log of flushed records. It keeps one copy of its metadata.
pub(crate) fn golden(seed: u64, pool_bytes: u64, closed: bool) -> Golden {
    golden_in(seed, pool_bytes, closed, MetadataCopies::One)
}

/// As `golden`, with so many copies of its metadata.
pub(crate) fn golden_in(
    seed: u64,
    pool_bytes: u64,
    closed: bool,
    copies: MetadataCopies,
) -> Golden {
    let mut random = StdRng::seed_from_u64(seed);
    let device = Arc::new(MemoryDevice::new(pool_bytes));
    let create = CreateOptions {
        log_bytes: Some(LOG_BYTES),
        force: false,
        metadata_copies: Some(copies),
    };
    Pool::create(&*device, &create).unwrap();
    let pool = open(&device).unwrap();
    let writes = usize::try_from(pool_bytes >> 20).unwrap().min(40);
    let base = pool
        .create_volume(&name("base"), VOLUME_BLOCKS * BLOCK)
        .unwrap();
    scribble(&base, &mut random, writes);
    let layer = pool.snapshot(&base, &name("layer")).unwrap();
    scribble(&base, &mut random, writes / 2);
    pool.checkpoint().unwrap();
    let gone = pool.snapshot(&base, &name("gone")).unwrap();
    let clone = pool.clone_volume(&layer, &name("clone")).unwrap();
    let other = pool.clone_volume(&gone, &name("other")).unwrap();
    for volume in [&base, &clone, &other] {
        scribble(volume, &mut random, writes / 4);
    }
    pool.remove(&gone).unwrap();
    let mut transaction = pool.transaction();
    transaction.put_record(RecordKind::IMAGE, b"image", &[7; 7000]);
    transaction.commit().unwrap();
    pool.reclaim().unwrap();
    let older = device.snapshot_image();
    // As many blocks are freed as allocated, so that counts alone do not distinguish the bitmaps.
    scribble(&base, &mut random, 2);
    pool.checkpoint().unwrap();
    let mut states = vec![state_of(&pool)];
    if closed {
        pool.close().unwrap();
    } else {
        for round in 0..6u64 {
            match round {
                3 => drop(pool.snapshot(&clone, &name("late")).unwrap()),
                4 => base.discard(0, 100 * BLOCK).unwrap(),
                _ => scribble(&base, &mut random, 1),
            }
            pool.flush().unwrap();
            states.push(state_of(&pool));
        }
    }
    drop((base, layer, gone, clone, other, pool));
    let image = device.snapshot_image();
    Golden {
        blocks: blocks(&image),
        image,
        older,
        states,
    }
}

/// Returns the newest of the primary superblocks.
pub(crate) fn superblock_of(image: &DeviceImage) -> Superblock {
    let of = |slot: u64| {
        let mut bytes = vec![0; 4096];
        image.read(&mut bytes, slot * BLOCK);
        Superblock::decode(&bytes).ok()
    };
    let found = [of(0), of(1)].into_iter().flatten();
    found.max_by_key(|found| found.generation).unwrap()
}

pub(crate) fn blocks(image: &DeviceImage) -> Vec<(u64, Part)> {
    let layout = superblock_of(image).layout;
    let count = image.len_bytes() / BLOCK;
    let part = |block: u64| {
        if block < 2 || block >= count - 2 {
            return Part::Superblock;
        }
        if block < layout.groups_start() {
            return Part::Log;
        }
        let within = (block - layout.groups_start()) % 32_768;
        match layout.locate(BlockAddr(block)) {
            None if within < GROUP_HEADER_BLOCKS && within.is_multiple_of(2) => Part::BitmapHeader,
            None => Part::Bitmap,
            Some(_) => Part::Body,
        }
    };
    let holds = |block: &u64| block_of(image, *block).iter().any(|byte| *byte != 0);
    let all = (0..count).filter(holds);
    all.map(|block| (block, part(block))).collect()
}

pub(crate) fn block_of(image: &DeviceImage, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    image.read(&mut bytes, block * BLOCK);
    bytes
}
