//! The two sides of a mirror, with damage on one of them or changes on both that look as if the engine
//! had made them: opened as a mirror, read, used, brought up to date and scrubbed.
//!
//! What has rotted on one side is no loss: the pool has the state of the other side, and so has each
//! side that is good afterwards, by itself.

use crate::images::{CHANGES_MAX, change, work};
use crate::parts::Parts;
use crate::plant::{MIRRORS, Plant, found, options};
use cowshed_check::{CheckOptions, check};
use cowshed_engine::{KeyAndValue, OpenOptions, Pool, RecordKind, Volume};
use cowshed_format::base::Error;
use cowshed_format::device::mirror::{SideReport, SideStanding};
use cowshed_format::device::{Device, DeviceImage, MemoryDevice, MirrorDevice};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// What the first byte of an input selects: the second pool, changes of the second side instead of the
/// first, changes of both, and checksums that are corrected.
const SECOND_POOL: u8 = 1;
const SECOND_SIDE: u8 = 2;
const BOTH_SIDES: u8 = 4;
const SEALED: u8 = 8;

/// The maximum number of bytes of a volume that are read.
const READ_BYTES_MAX: usize = 1 << 20;

/// The contents of a pool.
#[derive(PartialEq, Eq)]
struct State {
    /// The data of each volume, by its name.
    volumes: BTreeMap<String, Vec<(u64, Vec<u8>)>>,
    records: Vec<KeyAndValue>,
}

/// What the pools have if nothing is changed.
static STATES: LazyLock<[State; 2]> = LazyLock::new(|| {
    MIRRORS.each_ref().map(|sides| {
        let images = sides.each_ref().map(|side| side.image.clone());
        let pool = open(&devices(&images), true).unwrap();
        state(&pool).unwrap()
    })
});

/// Runs the input: the first byte selects the pool and the kind of changes; then come changes as of
/// `images`, those of both sides in turn.
pub fn run(data: &[u8]) {
    let mut parts = Parts(data);
    let choice = parts.byte();
    let is = |flag: u8| choice & flag != 0;
    let pool = usize::from(is(SECOND_POOL));
    let plants = &MIRRORS[pool];
    let mut images = plants.each_ref().map(|side| side.image.clone());
    for number in 0..CHANGES_MAX {
        if parts.is_empty() {
            break;
        }
        let side = match is(BOTH_SIDES) {
            true => number % 2,
            false => usize::from(is(SECOND_SIDE)),
        };
        let (plant, image): (&Plant, &mut DeviceImage) = (&plants[side], &mut images[side]);
        if let Some(block) = change(plant, image, &mut parts)
            && is(SEALED)
        {
            plant.seal(image, block);
        }
    }
    if is(BOTH_SIDES) || is(SEALED) {
        use_it(&images);
    } else {
        expect_healed(&images, &STATES[pool]);
    }
}

/// Returns, of both pools, no change, and changes of each kind to each block.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for choice in 0..16 {
        seeds.push(vec![choice]);
        let blocks = MIRRORS[usize::from(choice & SECOND_POOL)][0].blocks.len();
        for block in (0..u8::try_from(blocks.min(255)).unwrap()).step_by(7) {
            seeds.push(vec![choice, block, 0, 40 + block, 0, block, 3, 1]);
        }
    }
    seeds
}

fn devices(images: &[DeviceImage; 2]) -> [Arc<MemoryDevice>; 2] {
    images
        .each_ref()
        .map(|image| Arc::new(MemoryDevice::from_image(image.clone())))
}

fn open(devices: &[Arc<MemoryDevice>], read_only: bool) -> Result<Pool, Error> {
    let devices = devices.iter().map(|it| Arc::clone(it) as Arc<dyn Device>);
    let mirror = Arc::new(MirrorDevice::assemble(found(devices))?);
    let options = OpenOptions {
        read_only,
        ..options()
    };
    Pool::open(mirror, &options)
}

fn volumes(pool: &Pool) -> Vec<Volume> {
    let infos = pool.volumes().into_iter();
    infos
        .filter_map(|info| pool.volume_by_id(info.id).ok())
        .collect()
}

fn state(pool: &Pool) -> Result<State, Error> {
    let mut state = State {
        volumes: BTreeMap::new(),
        records: pool.records(RecordKind::IMAGE),
    };
    for volume in volumes(pool) {
        let (mut at, mut data) = (0, Vec::new());
        while let Some(extent) = volume.extent_at(at)? {
            let len = usize::try_from(extent.len_bytes).unwrap();
            if len <= READ_BYTES_MAX {
                let mut bytes = vec![0; len];
                volume.read_at(&mut bytes, at)?;
                data.push((at, bytes));
            }
            at += extent.len_bytes;
        }
        state.volumes.insert(volume.name().to_string(), data);
    }
    Ok(state)
}

/// Opens sides of which one is intact, for reading only and for use: the pool must have its state, and
/// so must each side that is good in the end.
fn expect_healed(images: &[DeviceImage; 2], expected: &State) {
    let pool = open(&devices(images), true).expect("open for reading only");
    assert!(state(&pool).expect("read only") == *expected, "read only");
    drop(pool);
    let devices = devices(images);
    let pool = open(&devices, false).expect("open");
    assert!(state(&pool).expect("read") == *expected, "before a scrub");
    pool.resync(&mut |_, _| true).expect("resync");
    // What is only left of a removed volume is not scrubbed.
    pool.reclaim().expect("reclaim");
    let report = pool.scrub(&mut |_, _| true);
    let bad = report.expect("scrub").bad;
    assert!(bad.is_empty(), "{bad:?}");
    assert!(state(&pool).expect("read") == *expected, "after a scrub");
    let sides = pool.sides().expect("a mirror");
    pool.close().expect("close");
    drop(pool);
    let is_good = |side: &SideReport| side.standing == SideStanding::Good;
    let good: Vec<_> = sides.iter().map(is_good).collect();
    assert!(good.contains(&true), "no side is good");
    for (number, device) in devices
        .iter()
        .enumerate()
        .filter(|(number, _)| good[*number])
    {
        let options = CheckOptions {
            deep: true,
            ..CheckOptions::default()
        };
        let report = check(&**device, options, &mut |_| {}).expect("check");
        assert!(report.clean(), "side {number}: {:?}", report.findings);
        let alone = open(&[Arc::clone(device)], true).expect("open one side");
        assert!(
            state(&alone).expect("read one side") == *expected,
            "side {number}"
        );
    }
}

/// Opens sides that may both be wrong, and uses the pool. Errors are permitted.
fn use_it(images: &[DeviceImage; 2]) {
    if let Ok(pool) = open(&devices(images), true) {
        let _ = state(&pool);
    }
    let devices = devices(images);
    let Ok(pool) = open(&devices, false) else {
        return;
    };
    let _ = state(&pool);
    let _ = pool.resync(&mut |_, _| true);
    let _ = pool.scrub(&mut |_, _| true);
    let worked = work(&pool, &volumes(&pool));
    let closed = pool.close();
    drop(pool);
    let again = open(&devices, false);
    if worked.is_ok() && closed.is_ok() {
        let pool = again.expect("what was used and closed opens again");
        let _ = state(&pool);
    }
}
