//! Volumes as files.

use super::*;
use crate::{AttachKind, BlockTarget, ExportError, Holder};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::process::Stdio;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

fn code<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn a_volume_is_a_file_of_its_name_and_size() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("images/debian:12", 3 * MIB + 512);
    volume.write_at(&[7; 8192], MIB).unwrap();
    let path = fixture.export.mount_point().join("images%2Fdebian:12");
    assert_eq!(fixture.export.file_path(&*volume), path);

    let found = fs::metadata(&path).unwrap();
    assert_eq!(found.len(), 3 * MIB + 512);
    assert_eq!(found.blocks() * 512, 8192);
    assert_eq!(found.blksize(), 256 << 10);
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    assert_eq!(found.mtime(), 1_000_000);
    assert!(found.is_file());

    volume.freeze();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o400
    );
}

#[test]
fn the_directory_lists_every_volume_once() {
    let fixture = Fixture::new();
    // More than the kernel requests at once.
    let mut wanted: Vec<_> = (0..2000)
        .map(|number| format!("volume-{number:04}"))
        .collect();
    wanted.push("z%2Fz".to_owned());
    for name in &wanted {
        fixture.pool.create(&name.replace("%2F", "/"), MIB);
    }
    let entries = fs::read_dir(fixture.export.mount_point()).unwrap();
    let mut found: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, wanted);
}

#[test]
fn a_name_as_long_as_names_get_can_be_opened() {
    let fixture = Fixture::new();
    let name = format!("a{}", "/".repeat(254));
    let volume = fixture.pool.create(&name, MIB);
    assert_eq!(
        fs::metadata(fixture.export.file_path(&*volume))
            .unwrap()
            .len(),
        MIB
    );
    let entry = fs::read_dir(fixture.export.mount_point())
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    assert_eq!(entry.path(), fixture.export.file_path(&*volume));
}

#[test]
fn written_bytes_are_in_the_volume_when_the_write_returns() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", 8 * MIB);
    let file = open(&fixture.export.file_path(&*volume));
    let data = pattern(1, 3 * 4096 + 77);
    file.write_all_at(&data, 1001).unwrap();
    assert_eq!(volume.bytes(1001, data.len()), data);
    let mut back = vec![0; data.len()];
    file.read_exact_at(&mut back, 1001).unwrap();
    assert_eq!(back, data);
}

#[test]
fn requests_are_as_large_as_a_mebibyte() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", 8 * MIB);
    let path = fixture.export.file_path(&*volume);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path);
    let file = file.unwrap();
    let mut page = Page::new(4 << 20);
    page.copy_from_slice(&pattern(2, 4 << 20));
    file.write_all_at(&page, 0).unwrap();
    assert_eq!(volume.largest_write.load(SeqCst), MIB);
    let mut back = Page::new(4 << 20);
    file.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(volume.largest_read.load(SeqCst), MIB);
    assert!(*page == *back);
}

#[test]
fn a_file_ends_where_its_volume_ends() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", 4096 + 100);
    let mut file = open(&fixture.export.file_path(&*volume));
    let mut all = Vec::new();
    file.read_to_end(&mut all).unwrap();
    assert_eq!(all, vec![0; 4196]);
    assert_eq!(file.write_at(&[1; 200], 4096).unwrap(), 100);
    assert_eq!(code(file.write_at(&[1; 200], 4196)), Some(libc::ENOSPC));
    assert_eq!(file.read_at(&mut [0; 10], 5000).unwrap(), 0);
    assert_eq!(
        fs::metadata(fixture.export.file_path(&*volume))
            .unwrap()
            .len(),
        4196
    );
}

#[test]
fn fsync_and_synchronous_writes_flush_the_volume() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", MIB);
    let path = fixture.export.file_path(&*volume);
    let file = open(&path);
    file.write_all_at(&[1; 4096], 0).unwrap();
    assert_eq!(volume.flushes.load(SeqCst), 0);
    file.sync_all().unwrap();
    assert_eq!(volume.flushes.load(SeqCst), 1);
    file.sync_data().unwrap();
    assert_eq!(volume.flushes.load(SeqCst), 2);
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DSYNC)
        .open(&path)
        .unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    assert_eq!(volume.flushes.load(SeqCst), 3);
}

#[test]
fn punching_and_zeroing_discard_and_allocating_does_nothing() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", MIB);
    volume.write_at(&pattern(3, 1 << 20), 0).unwrap();
    let mut model = pattern(3, 1 << 20);
    let file = open(&fixture.export.file_path(&*volume));
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep;
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;

    fallocate(&file, punch, 100, 10_000).unwrap();
    model[100..10_100].fill(0);
    fallocate(&file, zero, 65_536, 8192).unwrap();
    fallocate(&file, zero | keep, 131_072, 4096).unwrap();
    model[65_536..73_728].fill(0);
    model[131_072..135_168].fill(0);
    // The part past the end is not part of the volume.
    fallocate(&file, punch, 1_048_576 - 4096, 65_536).unwrap();
    model[1_048_576 - 4096..].fill(0);
    assert!(volume.bytes(0, 1 << 20) == model);
    assert_eq!(
        volume.discarded_bytes.load(SeqCst),
        10_000 + 8192 + 4096 + 4096
    );
    assert_eq!(volume.allocated_bytes(), MIB - 4096 - 8192 - 4096 - 4096);

    fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
    assert_eq!(
        fallocate(&file, FallocateFlags::empty(), 0, 2 << 20),
        Err(nix::Error::EFBIG)
    );
    assert_eq!(
        fallocate(&file, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 4096),
        Err(nix::Error::EOPNOTSUPP)
    );
    assert!(volume.bytes(0, 1 << 20) == model);
}

#[test]
fn seeking_finds_data_and_holes() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", MIB);
    volume.write_at(&[1; 8192], 65_536).unwrap();
    volume.write_at(&[1; 4096], 1_048_576 - 4096).unwrap();
    let file = open(&fixture.export.file_path(&*volume));
    let seek = |offset, whence| lseek64(&file, offset, whence);
    assert_eq!(seek(0, Whence::SeekData), Ok(65_536));
    assert_eq!(seek(70_000, Whence::SeekData), Ok(70_000));
    assert_eq!(seek(65_536, Whence::SeekHole), Ok(73_728));
    assert_eq!(seek(5, Whence::SeekHole), Ok(5));
    assert_eq!(seek(73_728, Whence::SeekData), Ok(1_048_576 - 4096));
    assert_eq!(seek(1_048_575, Whence::SeekHole), Ok(1_048_576));
    assert_eq!(seek(1_048_576, Whence::SeekData), Err(nix::Error::ENXIO));
    volume.discard(1_048_576 - 4096, 4096).unwrap();
    assert_eq!(seek(73_728, Whence::SeekData), Err(nix::Error::ENXIO));
    assert_eq!((&file).seek(SeekFrom::End(-1)).unwrap(), MIB - 1);
}

#[test]
fn a_snapshot_is_readable_only() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("s", MIB);
    volume.write_at(&[5; 4096], 0).unwrap();
    let early = open(&fixture.export.file_path(&*volume));
    volume.freeze();
    let path = fixture.export.file_path(&*volume);
    assert_eq!(
        code(OpenOptions::new().write(true).open(&path)),
        Some(libc::EROFS)
    );
    assert_eq!(fs::read(&path).unwrap()[..4096], [5; 4096]);
    // Opened before it was frozen.
    assert_eq!(code(early.write_at(&[6; 10], 0)), Some(libc::EROFS));
    assert!(matches!(
        fixture.export.attach_file(&*volume, false),
        Err(ExportError::Pool(cowshed_format::base::Error::Frozen(_)))
    ));
}

#[test]
fn files_are_not_made_removed_renamed_or_resized_here() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", MIB);
    let path = fixture.export.file_path(&*volume);
    let other = fixture.export.mount_point().join("other");
    assert_eq!(code(fs::remove_file(&path)), Some(libc::EPERM));
    assert_eq!(code(fs::rename(&path, &other)), Some(libc::EPERM));
    assert_eq!(code(File::create(&other)), Some(libc::EPERM));
    assert_eq!(code(fs::create_dir(&other)), Some(libc::EPERM));
    assert_eq!(code(fs::hard_link(&path, &other)), Some(libc::EPERM));
    assert_eq!(
        code(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o644)
        )),
        Some(libc::EPERM)
    );
    let file = open(&path);
    assert_eq!(code(file.set_len(MIB / 2)), Some(libc::EPERM));
    assert_eq!(code(file.set_len(MIB * 2)), Some(libc::EPERM));
    file.set_len(MIB).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), MIB);
}

#[test]
fn a_full_pool_answers_enospc_and_takes_overwrites() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", MIB);
    volume.blocks_max.store(2, SeqCst);
    let file = open(&fixture.export.file_path(&*volume));
    file.write_all_at(&[1; 8192], 0).unwrap();
    assert_eq!(code(file.write_at(&[1; 4096], 65_536)), Some(libc::ENOSPC));
    file.write_all_at(&[2; 8192], 0).unwrap();
    assert_eq!(volume.bytes(0, 8192), [2; 8192]);
}

#[test]
fn more_writes_are_held_than_there_are_threads_while_discards_make_room() {
    const WRITERS: u64 = 8;
    let fixture = Fixture::with(ExportOptions {
        threads: Some(2),
        ..ExportOptions::default()
    });
    let volume = fixture.pool.create("v", MIB);
    let other = fixture.pool.create("other", MIB);
    volume.blocks_max.store(0, SeqCst);
    *volume.patience.lock() = Duration::from_secs(600);
    let file = open(&fixture.export.file_path(&*volume));
    let other_file = open(&fixture.export.file_path(&*other));
    write_while_others_make_room(&volume, &file, &other_file, WRITERS);
    // A write past the end is refused at once, and so is one that has waited for long enough.
    assert_eq!(code(file.write_at(&[1; 10], MIB)), Some(libc::ENOSPC));
    *volume.patience.lock() = Duration::from_millis(5);
    assert_eq!(code(file.write_at(&[1; 4096], MIB / 2)), Some(libc::ENOSPC));
}

#[test]
fn renames_removals_and_resizes_are_seen_at_once() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("old", MIB);
    let old = fixture.export.file_path(&*volume);
    let inode = fs::metadata(&old).unwrap().ino();
    let file = open(&old);
    volume.rename("new");
    let new = fixture.export.file_path(&*volume);
    assert_eq!(code(fs::metadata(&old)), Some(libc::ENOENT));
    assert_eq!(fs::metadata(&new).unwrap().ino(), inode);
    file.write_all_at(&[9; 10], 0).unwrap();

    volume.resize(2 * MIB);
    assert_eq!(fs::metadata(&new).unwrap().len(), 2 * MIB);
    file.write_all_at(&[9; 10], MIB).unwrap();

    // Another volume takes the old name: it has another inode number.
    let second = fixture.pool.create("old", MIB);
    assert_ne!(fs::metadata(&old).unwrap().ino(), inode);
    fixture.pool.remove(&second);
    assert_eq!(code(fs::metadata(&old)), Some(libc::ENOENT));
}

#[test]
fn an_open_file_holds_its_volume() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", MIB);
    let file = open(&fixture.export.file_path(&*volume));
    assert_eq!(volume.holds(), 1);
    drop(file);
    // The kernel announces the last close without waiting for the reply.
    for _ in 0..1000 {
        if volume.holds() == 0 {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("still held after the file was closed");
}

#[test]
fn writes_to_one_file_run_side_by_side() {
    if all_over_rings() {
        println!("skipped: the writes of one processor come to one thread there");
        return;
    }
    let fixture = Fixture::with(ExportOptions {
        threads: Some(2),
        ..ExportOptions::default()
    });
    let volume = fixture.pool.create("v", MIB);
    let file = open(&fixture.export.file_path(&*volume));
    // Neither write is replied to before both have arrived.
    volume.meeting.of(2);
    thread::scope(|scope| {
        let first = scope.spawn(|| file.write_all_at(&[1; 4096], 0));
        let second = scope.spawn(|| file.write_all_at(&[2; 4096], 65_536));
        first.join().unwrap().unwrap();
        second.join().unwrap().unwrap();
    });
}

/// Writes that wait, for example for space in a full pool, keep no thread from serving.
#[test]
fn more_writes_than_there_are_threads_may_wait() {
    const WRITERS: u32 = 9;
    let fixture = Fixture::with(ExportOptions {
        threads: Some(2),
        ..ExportOptions::default()
    });
    let volume = fixture.pool.create("v", MIB);
    let file = open(&fixture.export.file_path(&*volume));
    volume.waits.store(true, SeqCst);
    for round in 1..=3 {
        // No write is replied to before all have arrived; those of earlier rounds count.
        volume.meeting.of(WRITERS * round);
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let file = &file;
                scope.spawn(move || file.write_all_at(&[1; 4096], u64::from(writer) * 4096));
            }
        });
        assert_eq!(volume.bytes(0, 9 * 4096), [1; 9 * 4096]);
        volume.discard(0, 9 * 4096).unwrap();
    }
    drop(file);
    fixture.export.unmount().unwrap();
}

/// Like a disk that is read in parallel: more threads than usual, and the usual number afterwards.
#[test]
fn slow_requests_are_taken_side_by_side_and_fast_ones_by_few() {
    let fixture = Fixture::with(ExportOptions {
        threads: Some(2),
        ..ExportOptions::default()
    });
    let volume = fixture.pool.create("v", MIB);
    let file = open(&fixture.export.file_path(&*volume));
    let read_much = || {
        thread::scope(|scope| {
            for reader in 0..16_u64 {
                let file = &file;
                scope.spawn(move || {
                    let mut buf = [0; 4096];
                    for _ in 0..60 {
                        file.read_exact_at(&mut buf, reader * 4096).unwrap();
                    }
                });
            }
        });
    };
    volume.read_us.store(3000, SeqCst);
    read_much();
    assert!(volume.reading_max.load(SeqCst) >= 8);
    // Few threads are needed for fast requests; the number at once is unknown here, but all
    // complete.
    volume.read_us.store(0, SeqCst);
    (0..4).for_each(|_| read_much());
    drop(file);
    fixture.export.unmount().unwrap();
}

#[test]
fn a_panic_answers_eio_and_the_mount_goes_on() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", MIB);
    let file = open(&fixture.export.file_path(&*volume));
    volume.panics.store(true, SeqCst);
    for _ in 0..8 {
        assert_eq!(code(file.write_at(&[1; 4096], 0)), Some(libc::EIO));
    }
    volume.panics.store(false, SeqCst);
    file.write_all_at(&[2; 4096], 0).unwrap();
    assert_eq!(volume.bytes(0, 4096), [2; 4096]);
    drop(file);
    fixture.export.unmount().unwrap();
}

#[test]
fn statfs_tells_the_room_of_the_pool() {
    let fixture = Fixture::new();
    let found = nix::sys::statvfs::statvfs(fixture.export.mount_point()).unwrap();
    assert_eq!(found.fragment_size() * found.blocks(), 64 * MIB);
    assert_eq!(found.fragment_size() * found.blocks_available(), 48 * MIB);
}

#[test]
fn attaching_as_a_file_holds_the_volume_and_counts() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", MIB);
    let path = fixture.export.attach_file(&*volume, false).unwrap();
    assert_eq!(path, fixture.export.file_path(&*volume));
    assert_eq!(fixture.export.attach_file(&*volume, false).unwrap(), path);
    let error = fixture.export.attach_file(&*volume, true).unwrap_err();
    assert!(matches!(error, ExportError::Attached { .. }), "{error}");
    let error = fixture.export.attach_loop(&*volume, false).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("v is already attached writable as "),
        "{error}"
    );
    let listed = fixture.export.attachments();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].kind, listed[0].read_only),
        (AttachKind::File, false)
    );

    fixture.export.detach(&*volume).unwrap();
    assert_eq!(volume.holds(), 1);
    fixture.export.detach(&*volume).unwrap();
    assert_eq!(volume.holds(), 0);
    assert!(fixture.export.attachments().is_empty());
    let error = fixture.export.detach(&*volume).unwrap_err();
    assert!(matches!(error, ExportError::NotAttached(_)), "{error}");
}

#[test]
fn unmounting_names_the_process_that_has_a_file_open() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", MIB);
    let path = fixture.export.file_path(&*volume);
    let sleeper = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::from(File::open(&path).unwrap()))
        .spawn()
        .unwrap();
    let sleeper = Process(sleeper);
    let error = fixture.export.unmount().unwrap_err();
    let ExportError::Busy { what, by } = &error else {
        panic!("{error}")
    };
    assert_eq!(what, fixture.export.mount_point());
    let pid = sleeper.0.id();
    assert_eq!(
        by.0,
        [Holder::Process {
            pid,
            name: "sleep".to_owned()
        }]
    );
    // The mount is still served.
    fs::metadata(&path).unwrap();
    drop(sleeper);
    fixture.export.unmount().unwrap();
    assert_eq!(fixture.pool.flushes.load(SeqCst), 2);
    assert!(
        mount::mount_at(fixture.export.mount_point())
            .unwrap()
            .is_none()
    );
    fixture.export.unmount().unwrap();
    let error = fixture.export.attach_file(&*volume, false).unwrap_err();
    assert!(matches!(error, ExportError::Unmounted { .. }), "{error}");
}

#[test]
fn a_second_export_at_the_same_place_is_refused() {
    let fixture = Fixture::new();
    fixture.pool.create("v", MIB);
    let dir = fixture.export.mount_point();
    let second = Export::over(FakePool::new(), dir, ExportOptions::default());
    assert!(matches!(second, Err(ExportError::Served { .. })));
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
}

#[test]
fn a_mount_that_someone_else_took_away_does_not_cost_another_one_its_place() {
    let fixture = Fixture::new();
    let dir = fixture.export.mount_point().to_owned();
    mount::unmount(&dir).unwrap();
    let other = Export::over(FakePool::new(), &dir, ExportOptions::default()).unwrap();
    fixture.export.unmount().unwrap();
    assert!(mount::mount_at(&dir).unwrap().is_some());
    other.unmount().unwrap();
}

#[test]
fn dropping_an_export_in_use_takes_its_mount_away() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", MIB);
    let mut file = open(&fixture.export.file_path(&*volume));
    let dir = fixture.export.mount_point().to_owned();
    let Fixture {
        export,
        dir: _place,
        ..
    } = fixture;
    drop(export);
    assert!(mount::mount_at(&dir).unwrap().is_none());
    // An open file works as long as this process lives.
    file.write_all(&[1; 4096]).unwrap();
    assert_eq!(volume.bytes(0, 4096), [1; 4096]);
}
