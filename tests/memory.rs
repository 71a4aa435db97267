//! The memory use of an open pool. Each measurement runs in its own process: the test starts this
//! binary again with one of the ignored tests, which measures.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cowshed_engine::{CreateOptions, OpenOptions, Pool};
use cowshed_format::base::{BLOCK_BYTES, Name};
use cowshed_format::device::FileDevice;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;
/// The variable that names the folder of the measuring process.
const FOLDER: &str = "COWSHED_TEST_FOLDER";

/// Returns the resident bytes of this process, including pages that are shared with the page cache
/// (the mapped log and the binary).
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * BLOCK
}

/// Runs one ignored test of this binary in its own process.
fn measure(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{text}");
}

fn pool(file: &Path, pool_bytes: u64, cache_bytes: u64) -> Pool {
    let device = FileDevice::create(file, pool_bytes, Default::default()).unwrap();
    let create = CreateOptions {
        log_bytes: Some(16 * MIB),
        force: false,
        ..CreateOptions::default()
    };
    Pool::create(&device, &create).unwrap();
    let options = OpenOptions {
        cache_bytes,
        background: true,
        ..OpenOptions::default()
    };
    Pool::open(Arc::new(device), &options).unwrap()
}

fn folder() -> std::path::PathBuf {
    std::env::var_os(FOLDER)
        .expect("the test that measures is started by the one that asks")
        .into()
}

#[test]
fn the_node_cache_keeps_to_its_limit() {
    measure("measure_node_cache");
}

#[test]
#[ignore = "started by the_node_cache_keeps_to_its_limit"]
fn measure_node_cache() {
    const CACHE: u64 = 16 * MIB;
    const WRITES: u64 = 40_000;
    let pool = pool(&folder().join("pool"), 2 << 30, CACHE);
    let volume = pool
        .create_volume(&Name::new("sparse").unwrap(), 1 << 40)
        .unwrap();
    let before = resident_bytes();
    // Blocks far apart: each has its own leaf, so the map has far more nodes than fit.
    let mut rng = StdRng::seed_from_u64(3);
    let offsets: Vec<u64> = (0..WRITES)
        .map(|_| rng.random_range(0..1 << 28) * BLOCK)
        .collect();
    let mut most = 0;
    for (number, offset) in offsets.iter().enumerate() {
        volume
            .write_at(&(number as u64 + 1).to_le_bytes(), *offset)
            .unwrap();
        if number % 1000 == 0 {
            most = most.max(resident_bytes());
        }
    }
    pool.checkpoint().unwrap();
    for round in 0..2 {
        for offset in offsets.iter().skip(round * 7) {
            volume.read_at(&mut [0; 8], *offset).unwrap();
        }
        most = most.max(resident_bytes());
    }
    let grown = most.saturating_sub(before);
    println!(
        "{} MiB more than before, the cache has {}",
        grown / MIB,
        CACHE / MIB
    );
    const { assert!(WRITES * BLOCK > 8 * CACHE, "the nodes would fit") };
    // The log, allocator slack and the batch of a checkpoint are added.
    let limit = CACHE + 16 * MIB + 48 * MIB;
    assert!(grown < limit, "{grown} bytes more, {limit} at most");
}

#[test]
fn a_hundred_thousand_volumes_fit_in_200_mib() {
    measure("measure_volumes");
}

#[test]
#[ignore = "started by a_hundred_thousand_volumes_fit_in_200_mib"]
fn measure_volumes() {
    const VOLUMES: u64 = 100_000;
    let file = folder().join("pool");
    let made = pool(&file, 4 << 30, 64 * MIB);
    let base = made
        .create_volume(&Name::new("base").unwrap(), 10 << 30)
        .unwrap();
    base.write_at(&[7; BLOCK_BYTES], 0).unwrap();
    made.freeze(&base).unwrap();
    for number in 1..VOLUMES {
        let name = Name::new(&format!("container/{number:064x}")).unwrap();
        let clone = made.clone_volume(&base, &name).unwrap();
        if number % 10 == 0 {
            clone.write_at(&number.to_le_bytes(), BLOCK).unwrap();
        }
    }
    let making = resident_bytes();
    made.close().unwrap();
    drop((base, made));
    let device = FileDevice::open(&file, Default::default()).unwrap();
    let options = OpenOptions {
        cache_bytes: 64 * MIB,
        background: true,
        ..OpenOptions::default()
    };
    let opened = Pool::open(Arc::new(device), &options).unwrap();
    let resident = resident_bytes();
    println!(
        "{} MiB resident after making them, {} after opening",
        making / MIB,
        resident / MIB
    );
    assert_eq!(opened.status().unwrap().volumes, VOLUMES);
    let last = opened
        .volume(&format!("container/{:064x}", VOLUMES / 2))
        .unwrap();
    let mut found = [0; 8];
    last.read_at(&mut found, BLOCK).unwrap();
    assert_eq!(u64::from_le_bytes(found), VOLUMES / 2);
    assert!(
        making.max(resident) < 200 * MIB,
        "{making} and {resident} bytes resident"
    );
    opened.close().unwrap();
}
