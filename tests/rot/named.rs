//! Specific damages, each with its exact consequences.

use crate::golden::{BLOCK, open};
use crate::put;
use cowshed_check::{CheckOptions, Note, Refusal, Repair, check};
use cowshed_engine::{CreateOptions, MetadataCopies, Pool, ScrubFaultKind};
use cowshed_format::base::{CorruptKind, Error, Name};
use cowshed_format::device::{DeviceImage, MemoryDevice};
use cowshed_format::record::SALT_OFFSET;
use std::sync::Arc;

const VOLUME_BLOCKS: u64 = 1024;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn fill(number: u64) -> Vec<u8> {
    (number | 1 << 50).to_le_bytes().repeat(512)
}

/// Creates a volume with a block in each of its four leaves, checkpointed; then a write to the
/// second leaf and one to another volume are in the log, both flushed.
fn pool_with_a_log() -> DeviceImage {
    let device = Arc::new(MemoryDevice::new(8 << 20));
    let create = CreateOptions {
        log_bytes: Some(64 << 10),
        force: false,
        metadata_copies: Some(MetadataCopies::One),
    };
    Pool::create(&*device, &create).unwrap();
    let pool = open(&device).unwrap();
    let size = VOLUME_BLOCKS * BLOCK;
    let [a, b] = ["a", "b"].map(|each| pool.create_volume(&name(each), size).unwrap());
    for block in [0, 1, 256, 257, 512, 513, 768] {
        a.write_at(&fill(block), block * BLOCK).unwrap();
    }
    pool.checkpoint().unwrap();
    a.write_at(&fill(258), 258 * BLOCK).unwrap();
    pool.flush().unwrap();
    b.write_at(&fill(3), 3 * BLOCK).unwrap();
    pool.flush().unwrap();
    b.write_at(&fill(4), 4 * BLOCK).unwrap();
    drop((a, b, pool));
    device.snapshot_image()
}

/// Returns the address of the leaf that leads to data of these blocks; finds it by their checksums.
fn leaf_of(image: &DeviceImage, blocks: [u64; 2]) -> u64 {
    let [one, two] =
        blocks.map(|block| cowshed_format::base::checksum::crc32(&fill(block)).to_le_bytes());
    let holds = |bytes: &[u8], crc: [u8; 4]| bytes.chunks(16).any(|pointer| pointer[12..] == crc);
    (0..image.len_bytes() / BLOCK)
        .find(|block| {
            let bytes = crate::block_of(image, *block);
            holds(&bytes, one) && holds(&bytes, two)
        })
        .expect("the leaf is there")
}

/// Returns the addresses of the headers of the first group's two bitmaps.
fn group_slots(image: &DeviceImage) -> [u64; 2] {
    let layout = crate::golden::superblock_of(image).layout;
    [0, 1].map(|slot| layout.bitmap_slot(0, slot).0)
}

fn read(pool: &Pool, volume: &str, block: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; 4096];
    let volume = pool.volume(volume)?;
    volume.read_at(&mut bytes, block * BLOCK).map(|()| bytes)
}

#[test]
fn a_damaged_node_in_the_way_of_replay_costs_its_own_range_and_nothing_else() {
    let mut image = pool_with_a_log();
    let leaf = leaf_of(&image, [256, 257]);
    put(&mut image, leaf, &[0xa5; 4096]);
    let mut device = Arc::new(MemoryDevice::from_image(image));
    let pool = open(&device).expect("one damaged node does not keep the pool from opening");
    for block in [0, 1, 258, 512, 513, 768] {
        assert!(
            read(&pool, "a", block).unwrap() == fill(block),
            "block {block}"
        );
    }
    for block in [3, 4] {
        assert!(
            read(&pool, "b", block).unwrap() == fill(block),
            "block {block}"
        );
    }
    for block in [256, 257, 300] {
        let error = read(&pool, "a", block).unwrap_err();
        assert!(
            matches!(error, Error::Corrupt(CorruptKind::Lost { .. })),
            "{error}"
        );
    }
    // The scrub names the range; the check notes it, and repairs the counts.
    let report = pool.scrub(&mut |_, _| true).unwrap();
    let lost: u64 = report.bad.iter().map(|fault| fault.len_bytes).sum();
    assert!(
        report
            .bad
            .iter()
            .all(|fault| fault.kind == ScrubFaultKind::Lost)
    );
    assert_eq!(lost, 255 * BLOCK);
    pool.close().unwrap();
    drop(pool);
    let options = CheckOptions {
        deep: true,
        repair: true,
        forget: false,
    };
    let report = check(&*device, options, &mut |_| {}).unwrap();
    assert!(report.clean(), "{:?}", report.remaining);
    let lost = |note: &Note| matches!(note, Note::Lost { .. });
    assert!(report.notes.iter().any(lost), "{:?}", report.notes);
    // Whole blocks can be written there again, a part of one cannot, and the volume can be removed.
    device = Arc::new(MemoryDevice::from_image(device.snapshot_image()));
    let pool = open(&device).unwrap();
    let volume = pool.volume("a").unwrap();
    volume.write_at(&fill(300), 300 * BLOCK).unwrap();
    assert!(read(&pool, "a", 300).unwrap() == fill(300));
    assert!(volume.write_at(&[1; 10], 256 * BLOCK).is_err());
    volume.discard(256 * BLOCK, BLOCK).unwrap();
    assert!(read(&pool, "a", 256).unwrap() == [0; 4096]);
    pool.remove(&volume).unwrap();
    pool.reclaim().unwrap();
    pool.close().unwrap();
    drop((volume, pool));
    let report = check(&*device, CheckOptions::default(), &mut |_| {}).unwrap();
    assert!(report.clean(), "{:?}", report.findings);
}

/// A pool of one group, whose bitmap is lost together with a map node: no block is known to be
/// free, but giving up the node's range needs some.
#[test]
fn a_repair_that_finds_no_free_block_says_so_and_goes_on_once_the_pool_is_larger() {
    let device = Arc::new(MemoryDevice::from_image(pool_with_a_log()));
    let pool = open(&device).unwrap();
    pool.close().unwrap();
    drop(pool);
    let mut image = device.snapshot_image();
    // In the state that closing the pool has written.
    let leaf = leaf_of(&image, [257, 258]);
    put(&mut image, leaf, &[0xa5; 4096]);
    let slots = group_slots(&image);
    for header in slots {
        put(&mut image, header, &[0x5a; 4096]);
    }
    let device = Arc::new(MemoryDevice::from_image(image));
    let repair = || {
        let options = CheckOptions {
            deep: true,
            repair: true,
            forget: false,
        };
        check(&*device, options, &mut |_| {}).expect("it is no error of the device")
    };
    let report = repair();
    assert_eq!(report.refused, Some(Refusal::NoFreeBlock));
    assert!(!report.clean());
    let pool = open(&device).expect("it opens, to be read and to be made larger");
    assert!(read(&pool, "a", 512).unwrap() == fill(512));
    pool.grow(16 << 20).unwrap();
    pool.close().unwrap();
    drop(pool);
    let report = repair();
    assert!(report.clean(), "{:?}", report.remaining);
    let pool = open(&device).unwrap();
    for block in [0, 1, 512, 513, 768] {
        assert!(
            read(&pool, "a", block).unwrap() == fill(block),
            "block {block}"
        );
    }
    read(&pool, "a", 256).unwrap_err();
    pool.volume("a").unwrap().write_at(&fill(9), 0).unwrap();
}

#[test]
fn a_damaged_record_that_was_flushed_is_refused_and_cut_off_by_a_repair() {
    refused_and_cut_off(|_, crc| crc);
}

#[test]
fn a_record_that_was_flushed_and_has_a_wrong_length_is_refused_and_cut_off_by_a_repair() {
    // The highest byte of the length, which precedes the salt and the sequence.
    let length = |bytes: &[u8], salt: [u8; 8], crc: usize| {
        let mut before = bytes[..crc].windows(8);
        let salt = before.rposition(|each| each == salt).unwrap();
        salt + 7 - SALT_OFFSET
    };
    refused_and_cut_off(|(bytes, salt), crc| length(bytes, salt, crc));
}

/// Damages the byte of a flushed record that `place` returns. `place` gets the record's block of
/// the log, the log's salt, and the offset of the checksum of the record's data in that block.
fn refused_and_cut_off(place: impl Fn((&[u8], [u8; 8]), usize) -> usize) {
    let mut image = pool_with_a_log();
    let crc = cowshed_format::base::checksum::crc32(&fill(258)).to_le_bytes();
    let log = (16..32).find(|block| {
        let bytes = crate::block_of(&image, *block);
        bytes.windows(4).any(|each| each == crc)
    });
    let log = log.expect("the record is in the log");
    let mut bytes = crate::block_of(&image, log);
    let at = bytes.windows(4).position(|each| each == crc).unwrap();
    let salt = crate::golden::superblock_of(&image).log_salt.to_le_bytes();
    let at = place((&bytes, salt), at);
    bytes[at] ^= 4;
    put(&mut image, log, &bytes);
    let mut device = Arc::new(MemoryDevice::from_image(image));
    let error = open(&device).err().expect("it had been flushed");
    assert!(
        matches!(error, Error::Corrupt(CorruptKind::LogRecord(_))),
        "{error}"
    );
    let options = CheckOptions {
        deep: true,
        repair: true,
        forget: false,
    };
    let report = check(&*device, options, &mut |_| {}).unwrap();
    let cut = |repair: &Repair| matches!(repair, Repair::Log(_));
    assert!(report.repaired.iter().any(cut), "{:?}", report.repaired);
    device = Arc::new(MemoryDevice::from_image(device.snapshot_image()));
    let pool = open(&device).unwrap();
    assert!(read(&pool, "a", 257).unwrap() == fill(257));
    assert!(
        read(&pool, "a", 258).unwrap() == [0; 4096],
        "it is as before that record"
    );
    pool.close().unwrap();
}

#[test]
fn a_scrub_names_every_rotten_block_and_goes_on_behind_a_node() {
    let device = Arc::new(MemoryDevice::from_image(pool_with_a_log()));
    let pool = open(&device).unwrap();
    pool.checkpoint().unwrap();
    // Read once, so that the nodes are cached.
    assert!(read(&pool, "a", 257).unwrap() == fill(257));
    let image = device.snapshot_image();
    let leaf = leaf_of(&image, [256, 258]);
    let data = |block: u64| {
        (32..image.len_bytes() / BLOCK).find(|at| crate::block_of(&image, *at) == fill(block))
    };
    for block in [leaf, data(1).unwrap(), data(768).unwrap()] {
        cowshed_format::device::Device::write_at(&*device, &[0x5a; 4096], block * BLOCK).unwrap();
    }
    let report = pool.scrub(&mut |_, _| true).unwrap();
    let id = pool.volume("a").unwrap().id();
    let found: Vec<_> = report
        .bad
        .iter()
        .map(|fault| {
            (
                fault.kind,
                fault.volume,
                fault.offset_bytes / BLOCK,
                fault.len_bytes / BLOCK,
            )
        })
        .collect();
    let expected = [
        (ScrubFaultKind::Data, id, 1, 1),
        (ScrubFaultKind::Map, id, 256, 256),
        (ScrubFaultKind::Data, id, 768, 1),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_scrub_finds_rot_in_catalogue_bitmaps_and_superblocks() {
    for kind in [
        ScrubFaultKind::Catalogue,
        ScrubFaultKind::Bitmap,
        ScrubFaultKind::Superblock,
    ] {
        let device = Arc::new(MemoryDevice::from_image(pool_with_a_log()));
        let pool = open(&device).unwrap();
        let damaged: Vec<u64> = match kind {
            ScrubFaultKind::Catalogue => {
                let holds = |block: &u64| {
                    let bytes = crate::block_of(&device.snapshot_image(), *block);
                    bytes[2] == 1 && bytes.windows(3).any(|each| each == b"\x01\x00a")
                };
                (36..2048).filter(holds).collect()
            }
            ScrubFaultKind::Bitmap => (32..36).collect(),
            _ => vec![0, 1],
        };
        assert!(!damaged.is_empty());
        for block in damaged {
            cowshed_format::device::Device::write_at(&*device, &[0x5a; 4096], block * BLOCK)
                .unwrap();
        }
        let report = pool.scrub(&mut |_, _| true).unwrap();
        assert!(
            !report.bad.is_empty() && report.bad.iter().all(|fault| fault.kind == kind),
            "{kind:?}: {:?}",
            report.bad
        );
    }
}
