//! Fields with excessive values: no field's value may cause allocation or work without bound.

use crate::golden::{open, options};
use cowshed_check::{CheckOptions, check};
use cowshed_engine::{CreateOptions, Pool};
use cowshed_format::Superblock;
use cowshed_format::base::{CorruptKind, Error};
use cowshed_format::device::{Device, MemoryDevice};
use std::sync::Arc;

/// Makes an empty pool and changes all its superblocks.
fn claiming(pool_bytes: u64, change: impl Fn(&mut Superblock)) -> Arc<MemoryDevice> {
    let device = Arc::new(MemoryDevice::new(pool_bytes));
    Pool::create(&*device, &CreateOptions::default()).unwrap();
    let blocks = pool_bytes / 4096;
    for block in [0, blocks - 2] {
        let mut bytes = vec![0; 4096];
        device.read_at(&mut bytes, block * 4096).unwrap();
        let mut superblock = Superblock::decode(&bytes).unwrap();
        change(&mut superblock);
        device.write_at(&superblock.encode(), block * 4096).unwrap();
    }
    device
}

#[test]
fn a_catalogue_of_holes_takes_no_memory_whatever_length_it_claims() {
    let device = claiming(16 << 40, |superblock| {
        superblock.catalogue_blocks = (1 << 32) - 1
    });
    let pool = open(&device).unwrap();
    assert!(pool.volumes().is_empty());
    drop(pool);
    let device = claiming(16 << 40, |superblock| superblock.catalogue_blocks = 1 << 32);
    let error = Pool::open(device, &options()).err().unwrap();
    assert!(
        matches!(error, Error::Corrupt(CorruptKind::Catalogue(_))),
        "{error}"
    );
}

#[test]
fn a_copy_of_a_superblock_counts_only_where_it_says_that_it_lies() {
    // A newer superblock of the same pool, at the end of a device but with another size: a guest's
    // copy of the pool's first blocks, for example.
    let device = claiming(16 << 20, |_| {});
    let mut bytes = vec![0; 4096];
    device.read_at(&mut bytes, 0).unwrap();
    let mut forged = Superblock::decode(&bytes).unwrap();
    forged.generation = forged.generation.next();
    forged.volume_count = 77;
    device.grow(24 << 20).unwrap();
    let end = (24 << 20) - 2 * 4096;
    device.write_at(&forged.encode(), end).unwrap();
    let report = check(&*device, CheckOptions::default(), &mut |_| {}).unwrap();
    assert!(report.clean(), "{:?}", report.findings);
    let pool = open(&device).unwrap();
    pool.close().unwrap();
    drop(pool);
    let report = check(&*device, CheckOptions::default(), &mut |_| {}).unwrap();
    assert!(report.clean(), "{:?}", report.findings);
}
