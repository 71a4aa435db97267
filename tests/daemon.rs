//! The daemon dies in the middle of its work, and no acknowledged write is lost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cowshed_testkit::fixtures;

use fixtures::service::Service;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const BLOCKS: u64 = 4096;

/// The content of a block's version, which no other version has.
fn content(index: u64, version: u64) -> Vec<u8> {
    [index.to_le_bytes(), version.to_le_bytes()]
        .concat()
        .repeat(256)
}

/// Returns the block that a version is written to.
fn place(version: u64) -> u64 {
    version * 2_654_435_761 % BLOCKS
}

/// Writes versions from `first` on, each to one block, until the daemon is gone; counts the
/// acknowledged ones.
fn write_until_it_dies(file: &File, first: u64, acknowledged: &AtomicU64) {
    for version in first.. {
        let index = place(version);
        if file
            .write_all_at(&content(index, version), index * 4096)
            .is_err()
        {
            return;
        }
        acknowledged.store(version, Ordering::SeqCst);
    }
}

#[test]
fn what_was_acknowledged_is_there_after_the_daemon_is_killed() {
    let mut service = Service::open("1G");
    service.cowshed(["volume", "create", "disk", "--size", "16M"]);
    let mut last = vec![0; usize::try_from(BLOCKS).unwrap()];
    for round in 0..3 {
        let answer = service.json(["attach", "disk", "--as", "file"]);
        let file = File::options()
            .write(true)
            .open(answer["path"].as_str().unwrap())
            .unwrap();
        let first = 1 + round * 1_000_000;
        let acknowledged = AtomicU64::new(first - 1);
        thread::scope(|scope| {
            scope.spawn(|| write_until_it_dies(&file, first, &acknowledged));
            while acknowledged.load(Ordering::SeqCst) < first + 500 {
                thread::sleep(Duration::from_millis(5));
            }
            thread::sleep(Duration::from_millis(100 * round));
            service.kill();
        });
        drop(file);
        let acknowledged = acknowledged.into_inner();
        for version in first..=acknowledged {
            last[usize::try_from(place(version)).unwrap()] = version;
        }
        service.start();
        // One more may have been written without an acknowledgement.
        verify(&service, &mut last, acknowledged + 1);
    }
    service.check_pool();
}

/// Reads the volume back; accepts the one version that may be newer.
fn verify(service: &Service, last: &mut [u64], unanswered: u64) {
    let copy = tempfile::NamedTempFile::new().unwrap();
    let path = copy.path().to_str().unwrap().to_owned();
    service.cowshed(["volume", "export", "disk", &path]);
    let copy = File::open(path).unwrap();
    for (index, version) in (0..).zip(last) {
        let mut found = vec![0; 4096];
        copy.read_exact_at(&mut found, index * 4096).unwrap();
        let newer = found == content(index, unanswered);
        let wanted = if *version == 0 {
            vec![0; 4096]
        } else {
            content(index, *version)
        };
        assert!(
            found == wanted || newer,
            "block {index}: version {version} was lost"
        );
        if newer {
            *version = unanswered;
        }
    }
}
