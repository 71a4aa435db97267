//! A pool whose file was truncated: it causes a clear error with the status of damage, never a
//! panic, and nothing is lost once the missing part is back.

use cowshed_check::{CheckOptions, check};
use cowshed_engine::{CreateOptions, OpenOptions, Pool};
use cowshed_format::base::{CorruptKind, Error, Name};
use cowshed_format::device::{Device, FileDevice, FileOptions, MemoryDevice};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

const POOL_BYTES: u64 = 4 << 20;
const BLOCK: u64 = 4096;

fn options() -> OpenOptions {
    OpenOptions {
        background: false,
        ..OpenOptions::default()
    }
}

/// Creates a pool in a file, with some data and a log that was not replayed.
fn pool_in(path: &Path) {
    let device = FileDevice::create(path, POOL_BYTES, Default::default()).unwrap();
    let create = CreateOptions {
        log_bytes: Some(64 << 10),
        force: false,
        ..CreateOptions::default()
    };
    Pool::create(&device, &create).unwrap();
    let pool = Pool::open(Arc::new(device), &options()).unwrap();
    let volume = pool
        .create_volume(&Name::new("v").unwrap(), 1 << 20)
        .unwrap();
    volume.write_at(&[3; 200_000], 5000).unwrap();
    pool.checkpoint().unwrap();
    volume.write_at(&[4; 90_000], 70_000).unwrap();
    pool.flush().unwrap();
}

/// Returns lengths that cut every part of the pool, also in the middle of blocks.
fn lengths() -> Vec<u64> {
    let mut lengths: Vec<u64> = (0..40).map(|number| number * 512).collect();
    lengths.extend(
        (1..POOL_BYTES / BLOCK)
            .step_by(7)
            .map(|block| block * BLOCK),
    );
    lengths.extend([1, 4095, 4097, 8191, 65_535, 1 << 20, (1 << 20) + 1]);
    let end = [1, 511, 4095, 4096, 4097, 8191, 8192, 8193];
    lengths.extend(end.map(|less| POOL_BYTES - less));
    lengths
}

#[test]
fn a_file_cut_at_any_length_is_a_clear_error_and_whole_again_loses_nothing() {
    let folder = tempfile::Builder::new()
        .prefix("cowshed-cut-")
        .tempdir()
        .unwrap();
    let (whole, path) = (folder.path().join("whole"), folder.path().join("pool"));
    pool_in(&whole);
    let bytes = fs::read(&whole).unwrap();
    for len in lengths() {
        fs::write(&path, &bytes[..usize::try_from(len).unwrap()]).unwrap();
        let opened = FileDevice::open(&path, FileOptions::default())
            .and_then(|device| Pool::open(Arc::new(device), &options()));
        let error = opened.err().unwrap_or_else(|| panic!("it opens at {len}"));
        let truncated = matches!(error, Error::Corrupt(CorruptKind::Truncated { .. }));
        // A file shorter than the first superblock cannot be recognized as a pool.
        assert!(
            truncated || (len < BLOCK && matches!(error, Error::NotAPool)),
            "{len}: {error}"
        );
        let device = FileDevice::open(&path, FileOptions::default()).unwrap();
        for repair in [false, true] {
            let deep = true;
            let checked = check(
                &device,
                CheckOptions {
                    deep,
                    repair,
                    forget: false,
                },
                &mut |_| {},
            );
            assert!(checked.is_err(), "the check passes at {len}");
        }
        drop(device);
        assert!(fs::read(&path).unwrap() == bytes[..usize::try_from(len).unwrap()]);
    }
    // The missing part comes back: for example, a block device had not appeared completely.
    fs::write(&path, &bytes).unwrap();
    let device = FileDevice::open(&path, FileOptions::default()).unwrap();
    let pool = Pool::open(Arc::new(device), &options()).unwrap();
    let mut found = vec![0; 90_000];
    pool.volume("v")
        .unwrap()
        .read_at(&mut found, 70_000)
        .unwrap();
    assert!(found == [4; 90_000]);
}

fn cowshed(path: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cowshed"))
        .env("COWSHED_POOL", path)
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn the_command_line_says_that_a_pool_was_cut_short_with_status_3() {
    let folder = tempfile::Builder::new()
        .prefix("cowshed-cut-")
        .tempdir()
        .unwrap();
    let path = folder.path().join("pool");
    for (len, status) in [
        (POOL_BYTES - 1, 3),
        (1 << 20, 3),
        (4097, 3),
        (4096, 3),
        (4095, 1),
        (0, 1),
    ] {
        let _ = fs::remove_file(&path);
        pool_in(&path);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(len).unwrap();
        drop(file);
        for arguments in [
            ["volume", "ls"].as_slice(),
            &["pool", "status"],
            &["pool", "scrub"],
            &["pool", "check", "--deep"],
            &["pool", "check", "--repair"],
        ] {
            let output = cowshed(&path, arguments);
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(status),
                "{len} {arguments:?}: {error}"
            );
            let says = ["truncated", "not a cowshed pool"][usize::from(status == 1)];
            assert!(
                error.contains(says) && error.lines().count() == 1,
                "{len}: {error}"
            );
        }
    }
}

#[test]
fn a_device_that_ends_within_the_superblocks_is_no_panic() {
    for len in [0, 1, 4095, 4096, 8191, 8192, 12_288] {
        let device = Arc::new(MemoryDevice::new(len));
        assert!(matches!(
            Pool::open(Arc::clone(&device) as Arc<dyn Device>, &options()),
            Err(Error::NotAPool)
        ));
        assert!(check(&*device, CheckOptions::default(), &mut |_| {}).is_err());
    }
}
