//! Pool images with changes that look as if the engine had made them: the check, its repair, and
//! the engine must withstand them, and agree.

use crate::parts::Parts;
use crate::plant::{PLANTS, Plant, block_of, options, put};
use cowshed_check::{CheckOptions, CheckReport, FindingKind, Note, check};
use cowshed_engine::{Pool, RecordKind, Volume};
use cowshed_format::base::{BLOCK_BYTES, Error, MirrorError, Name};
use cowshed_format::device::{Device, DeviceImage, MemoryDevice};
use std::sync::Arc;

/// The maximum number of changes to one image.
pub(crate) const CHANGES_MAX: usize = 8;
/// The maximum number of extents and bytes of a volume that are read.
const EXTENTS_MAX: usize = 64;
const READ_BYTES_MAX: u64 = 64 << 10;
/// Numbers that are likely to reveal errors.
const EDGES: [u64; 8] = [0, 1, 2, 0xffff, 1 << 40, 1 << 48, 1 << 63, u64::MAX];

/// Runs the input: the first byte selects the image; then come changes: a block, an offset in it,
/// and the kind of change.
pub fn run(data: &[u8]) {
    let mut parts = Parts(data);
    let plant = &PLANTS[usize::from(parts.byte() % 2)];
    let mut image = plant.image.clone();
    let mut changes = 0;
    while !parts.is_empty() && changes < CHANGES_MAX {
        if let Some(block) = change(plant, &mut image, &mut parts) {
            plant.seal(&mut image, block);
        }
        changes += 1;
    }
    let found = look(&image, false);
    let sound = found.as_ref().is_ok_and(sound);
    use_it(&image, sound, Mended::No);
    mend(&image, found.is_ok());
}

/// Returns both unchanged images, and one change of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![vec![0], vec![1]];
    for plant in 0..2 {
        let blocks = PLANTS[usize::from(plant)].blocks.len();
        for block in 0..u8::try_from(blocks.min(255)).unwrap() {
            seeds.push(vec![plant, block, 0, 40 + block, 0, block, 3, 1]);
        }
    }
    seeds
}

/// Changes a block; returns it if its checksums are to be corrected.
pub(crate) fn change(plant: &Plant, image: &mut DeviceImage, parts: &mut Parts<'_>) -> Option<u64> {
    let block = plant.blocks[parts.below(plant.blocks.len())];
    let mut bytes = block_of(image, block);
    let at = parts.below(BLOCK_BYTES);
    let aligned = at & !7;
    match parts.byte() % 7 {
        0 => bytes[at] ^= 1 << (parts.byte() % 8),
        1 => bytes[at] = parts.byte(),
        2 => {
            let edge = EDGES[parts.below(EDGES.len())];
            bytes[aligned..aligned + 8].copy_from_slice(&edge.to_le_bytes());
        }
        3 => {
            let word = u64::from(parts.byte());
            bytes[aligned..aligned + 8].copy_from_slice(&word.to_le_bytes());
        }
        4 => {
            // A pointer, or what looks like one, from another block.
            let other = plant.blocks[parts.below(plant.blocks.len())];
            let (from, to) = (parts.below(256) * 16, (at & !15).min(BLOCK_BYTES - 16));
            let piece = block_of(image, other);
            bytes[to..to + 16].copy_from_slice(&piece[from..from + 16]);
        }
        5 => bytes = block_of(image, plant.blocks[parts.below(plant.blocks.len())]),
        _ => bytes = [0; BLOCK_BYTES],
    }
    put(image, block, &bytes);
    // Occasionally the checksum is left wrong.
    (parts.byte() % 8 != 7).then_some(block)
}

fn look(image: &DeviceImage, repair: bool) -> Result<CheckReport, Error> {
    let device = MemoryDevice::from_image(image.clone());
    check(
        &device,
        CheckOptions {
            deep: true,
            repair,
            forget: false,
        },
        &mut |_| {},
    )
}

/// Returns true if the check guarantees what an open will find: nothing is left to replay, and no
/// range was given up, which is an error to read.
fn sound(report: &CheckReport) -> bool {
    let reserved = |note: &Note| {
        matches!(
            note,
            Note::LogToReplay { .. } | Note::UnfinishedWrite(_) | Note::Lost { .. }
        )
    };
    report.findings.is_empty() && !report.notes.iter().any(reserved)
}

/// True if a pool was repaired before it is used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mended {
    No,
    /// Ranges that the repair gave up may appear as blocks that nothing uses, until the next
    /// repair.
    Yes,
}

/// Opens the pool, reads and changes all of it, and opens it again. Errors are permitted, unless
/// the check found nothing.
fn use_it(image: &DeviceImage, sound: bool, mended: Mended) {
    let device = Arc::new(MemoryDevice::from_image(image.clone()));
    let pool = match Pool::open(Arc::clone(&device) as Arc<dyn Device>, &options()) {
        Ok(pool) => pool,
        // A superblock may say that there are other sides, which the check cannot know.
        Err(Error::Mirror(MirrorError::Alone)) => return,
        Err(error) => {
            assert!(
                !sound,
                "the check found nothing, and the pool does not open: {error}"
            );
            return;
        }
    };
    let _ = pool.status();
    let _ = pool.records(RecordKind::IMAGE);
    let volumes: Vec<Volume> = pool
        .volumes()
        .iter()
        .filter_map(|info| pool.volume_by_id(info.id).ok())
        .collect();
    for volume in &volumes {
        let read = read(volume);
        assert!(read.is_ok() || !sound, "the check found nothing: {read:?}");
    }
    for (first, second) in volumes.iter().zip(volumes.iter().skip(1)) {
        let _ = pool.diff(first, second);
    }
    let worked = work(&pool, &volumes);
    assert!(
        worked.is_ok() || !sound,
        "the check found nothing: {worked:?}"
    );
    let after = device.snapshot_image();
    drop(pool);
    let device = Arc::new(MemoryDevice::from_image(after.clone()));
    let opened = Pool::open(device as Arc<dyn Device>, &options());
    if sound {
        let pool = opened.expect("what the check vouched for opens again");
        pool.close().expect("close");
        let report = look(&after, false).expect("check again");
        let mut findings = report.findings.iter();
        assert!(
            findings.all(|found| mended == Mended::Yes && found.kind == FindingKind::BlocksLeaked),
            "sound before, and used: {:?}",
            report.findings
        );
    }
}

fn read(volume: &Volume) -> Result<(), Error> {
    let mut at = 0;
    for _ in 0..EXTENTS_MAX {
        let Some(extent) = volume.extent_at(at)? else {
            break;
        };
        let len = usize::try_from(extent.len_bytes.min(READ_BYTES_MAX)).unwrap();
        volume.read_at(&mut vec![0; len], at)?;
        at += extent.len_bytes;
    }
    Ok(())
}

pub(crate) fn work(pool: &Pool, volumes: &[Volume]) -> Result<(), Error> {
    for (number, volume) in volumes.iter().enumerate() {
        if !volume.is_frozen() {
            let len = volume.size_bytes().min(3 * BLOCK_BYTES as u64);
            volume.write_at(&vec![9; usize::try_from(len).unwrap()], 0)?;
            volume.discard(0, len.min(BLOCK_BYTES as u64))?;
            let name = Name::new(&format!("taken-{number}")).unwrap();
            pool.snapshot(volume, &name)?;
        }
        pool.flush()?;
    }
    pool.checkpoint()?;
    for volume in volumes {
        pool.remove(volume)?;
    }
    pool.reclaim()?;
    pool.checkpoint()
}

/// Repairs the pool: the repair must not make it worse, and what it reports as repaired must be.
fn mend(image: &DeviceImage, readable: bool) {
    let device = MemoryDevice::from_image(image.clone());
    let options = CheckOptions {
        deep: true,
        repair: true,
        forget: false,
    };
    let Ok(report) = check(&device, options, &mut |_| {}) else {
        return;
    };
    let after = device.snapshot_image();
    let again = look(&after, false);
    assert!(
        again.is_ok() || !readable,
        "a repair made it worse: {again:?}"
    );
    let Ok(again) = again else { return };
    if report.clean() {
        assert!(
            again.findings.is_empty(),
            "said to be mended: {:?}",
            again.findings
        );
        use_it(&after, sound(&again), Mended::Yes);
    }
}
