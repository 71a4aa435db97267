//! Tests that are specific to FUSE over io_uring. All other tests with threads also run with rings
//! when `COWSHED_TEST_FUSE` is `io-uring`; tools/test does that.

use super::*;
use crate::{BlockTarget, ExportError, Transport};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

fn rings() -> ExportOptions {
    ExportOptions {
        transport: Transport::IoUring,
        ..ExportOptions::default()
    }
}

fn open(path: &Path, flags: i32) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    options.open(path).unwrap()
}

#[test]
fn requests_of_any_size_come_over_rings_and_are_answered_whole() {
    if !enable_rings() {
        return;
    }
    let fixture = Fixture::with(rings());
    assert_eq!(fixture.export.transport(), Transport::IoUring);
    let volume = fixture.pool.create("some/name", 8 * MIB + 512);
    let path = fixture.export.file_path(&*volume);
    assert_eq!(fs::metadata(&path).unwrap().len(), 8 * MIB + 512);
    assert!(fs::metadata(path.with_file_name("no-such")).is_err());
    let file = open(&path, 0);
    for (offset, len) in [(0, 1), (1001, 3 * 4096 + 77), (8 * MIB, 512)] {
        let data = pattern(offset, len);
        file.write_all_at(&data, offset).unwrap();
        assert_eq!(volume.bytes(offset, len), data);
        let mut back = vec![0; len];
        file.read_exact_at(&mut back, offset).unwrap();
        assert_eq!(back, data);
    }
    let direct = open(&path, libc::O_DIRECT);
    let mut page = Page::new(4 << 20);
    page.copy_from_slice(&pattern(2, 4 << 20));
    direct.write_all_at(&page, 0).unwrap();
    assert_eq!(volume.largest_write.load(SeqCst), MIB);
    let mut back = Page::new(4 << 20);
    direct.read_exact_at(&mut back, 0).unwrap();
    assert!(*page == *back);
    file.sync_data().unwrap();
    assert!(volume.flushes.load(SeqCst) > 0);
}

/// More writes than a queue has places: other places are added for them.
#[test]
fn held_writes_block_no_queue() {
    if !enable_rings() {
        return;
    }
    const WRITERS: u64 = 50;
    let fixture = Fixture::with(rings());
    let volume = fixture.pool.create("v", MIB);
    let other = fixture.pool.create("other", MIB);
    volume.blocks_max.store(0, SeqCst);
    *volume.patience.lock() = Duration::from_secs(600);
    let file = open(&fixture.export.file_path(&*volume), 0);
    let other_file = open(&fixture.export.file_path(&*other), 0);
    write_while_others_make_room(&volume, &file, &other_file, WRITERS);
    // A write that was delayed and then done was never refused.
    assert!(!fixture.export.was_refused(volume.id()));
    *volume.patience.lock() = Duration::from_millis(5);
    let refused = file.write_at(&[1; 4096], MIB / 2).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    assert!(fixture.export.was_refused(volume.id()));
}

#[test]
fn a_mount_over_rings_cannot_be_handed_over_and_goes_on() {
    if !enable_rings() {
        return;
    }
    let fixture = Fixture::with(rings());
    let volume = fixture.pool.create("v", MIB);
    let refused = fixture.export.hand_over().unwrap_err();
    assert!(matches!(refused, ExportError::NoSuccessor { .. }));
    let file = open(&fixture.export.file_path(&*volume), 0);
    file.write_all_at(&[5; 4096], 4096).unwrap();
    assert_eq!(volume.bytes(4096, 4096), [5; 4096]);
    drop(file);
    fixture.export.unmount().unwrap();
}

/// A mount with more queues than threads is served all the same.
#[test]
fn one_thread_serves_all_queues() {
    if !enable_rings() {
        return;
    }
    let fixture = Fixture::with(ExportOptions {
        threads: Some(1),
        ..rings()
    });
    let volume = fixture.pool.create("v", 4 * MIB);
    let file = open(&fixture.export.file_path(&*volume), 0);
    thread::scope(|scope| {
        for part in 0..8_u64 {
            let file = &file;
            scope.spawn(move || {
                for block in 0..64 {
                    let offset = (part * 64 + block) * 4096;
                    let data = pattern(offset, 4096);
                    file.write_all_at(&data, offset).unwrap();
                    let mut back = vec![0; 4096];
                    file.read_exact_at(&mut back, offset).unwrap();
                    assert_eq!(back, data);
                }
            });
        }
    });
}

/// Nothing hangs when the mount is ended under requests, delayed ones among them.
#[test]
fn ending_the_mount_ends_what_is_under_way() {
    if !enable_rings() {
        return;
    }
    let fixture = Fixture::with(rings());
    let volume = fixture.pool.create("v", MIB);
    volume.blocks_max.store(0, SeqCst);
    *volume.patience.lock() = Duration::from_secs(2);
    let file = open(&fixture.export.file_path(&*volume), 0);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..30_u64)
            .map(|index| {
                let file = &file;
                scope.spawn(move || file.write_all_at(&[2; 4096], index * 4096))
            })
            .collect();
        thread::sleep(Duration::from_millis(300));
        // The mount is in use, so it stays; but its connection is ended.
        let _ = mount::abort(fixture.export.mount_point());
        for writer in writers {
            writer.join().unwrap().unwrap_err();
        }
    });
}
