//! Pools in regular files and on block devices.

mod block_device;
mod host_memory;

use super::*;
use cowshed_sys::aligned::{ALIGN_BYTES, AlignedBuffer, BOUNCE_BYTES};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::thread;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A small file system of its own, unmounted when the test ends.
struct SmallHost(TempDir);

impl SmallHost {
    fn new(len_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={len_bytes}");
        run(
            "mount",
            &["-t", "tmpfs", "-o", &size, "none", text(folder.path())],
        );
        Self(folder)
    }
}

impl Drop for SmallHost {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

fn blocks(byte: u8, count: usize) -> Vec<u8> {
    vec![byte; count * BLOCK_BYTES]
}

/// Bytes that differ from block to block and within one.
fn pattern(len: usize) -> Vec<u8> {
    let words = (0..len.div_ceil(4)).map(|i| u32::try_from(i).unwrap().wrapping_mul(0x9E37_79B1));
    let mut bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    bytes.truncate(len);
    bytes
}

fn read(device: &FileDevice, offset_bytes: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xEE; len];
    device.read_at(&mut buf, offset_bytes).unwrap();
    buf
}

fn create(folder: &TempDir, len_bytes: u64, options: CreateFile) -> (FileDevice, PathBuf) {
    let path = folder.path().join("pool");
    (FileDevice::create(&path, len_bytes, options).unwrap(), path)
}

fn both_ways(test: impl Fn(&FileDevice)) {
    for direct in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let options = CreateFile {
            direct,
            ..CreateFile::default()
        };
        test(&create(&folder, 16 * MIB, options).0);
    }
}

#[test]
fn reads_see_writes_buffered_and_direct_at_any_memory_alignment() {
    both_ways(|device| {
        let len = BOUNCE_BYTES + 3 * BLOCK_BYTES;
        let expected = pattern(len);
        for shift in [0, 1, 512, 4095] {
            let offset_bytes = 8192;
            let mut memory = AlignedBuffer::zeroed(len + ALIGN_BYTES);
            memory[shift..shift + len].copy_from_slice(&expected);
            device
                .write_at(&memory[shift..shift + len], offset_bytes)
                .unwrap();
            memory.fill(0);
            device
                .read_at(&mut memory[shift..shift + len], offset_bytes)
                .unwrap();
            assert!(memory[shift..shift + len] == expected, "shifted by {shift}");
            assert!(
                memory[..shift]
                    .iter()
                    .chain(&memory[shift + len..])
                    .all(|b| *b == 0)
            );
            device.discard(offset_bytes, len as u64).unwrap();
        }
        assert_eq!(read(device, 4096, 4096), blocks(0, 1));
    });
}

#[test]
fn more_pieces_than_the_kernel_takes_at_once_land_in_order() {
    both_ways(|device| {
        let expected = pattern((2 * PIECES_MAX + 5) * BLOCK_BYTES);
        let mut pieces: Vec<IoSlice<'_>> = expected.chunks(BLOCK_BYTES).map(IoSlice::new).collect();
        pieces.insert(0, IoSlice::new(&[]));
        pieces.insert(700, IoSlice::new(&[]));
        device.write_vectored_at(&pieces, 4096).unwrap();
        assert!(read(device, 4096, expected.len()) == expected);
        assert_eq!(read(device, 0, 4096), blocks(0, 1));
    });
}

#[test]
fn aligned_pieces_go_out_directly_and_read_back() {
    both_ways(|device| {
        let mut memory = AlignedBuffer::zeroed(64 * BLOCK_BYTES);
        memory.copy_from_slice(&pattern(64 * BLOCK_BYTES));
        let pieces: Vec<IoSlice<'_>> = memory.chunks(3 * BLOCK_BYTES).map(IoSlice::new).collect();
        device.write_vectored_at(&pieces, 0).unwrap();
        assert!(read(device, 0, memory.len()) == memory[..]);
    });
}

#[test]
fn a_write_of_nothing_is_done() {
    both_ways(|device| {
        device.write_vectored_at(&[], 0).unwrap();
        device
            .write_vectored_at(&[IoSlice::new(&[])], 4096)
            .unwrap();
        device.write_at(&[], 16 * MIB).unwrap();
        device.discard(0, 0).unwrap();
    });
}

#[test]
fn ranges_beyond_the_end_are_errors_and_do_not_lengthen_the_file() {
    both_ways(|device| {
        let mut buf = blocks(0, 2);
        assert!(matches!(
            device.read_at(&mut buf, 16 * MIB - 4096),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::UnexpectedEof
        ));
        assert!(device.write_at(&buf, 16 * MIB - 4096).is_err());
        assert!(device.write_at(&buf, u64::MAX - 4095).is_err());
        assert!(device.discard(16 * MIB, 4096).is_err());
        assert!(device.map_log(16 * MIB - 4096, 8192).is_err());
        assert_eq!(device.buffered.metadata().unwrap().len(), 16 * MIB);
    });
}

#[test]
fn a_file_cut_short_behind_our_back_reads_as_an_error() {
    both_ways(|device| {
        device.buffered.set_len(4096).unwrap();
        let error = device.read_at(&mut blocks(0, 2), 0).unwrap_err();
        assert!(matches!(
            error,
            Error::Io { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof
        ));
    });
}

#[test]
fn stored_log_bytes_are_read_back_and_survive_reopening() {
    for direct in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (device, path) = create(
            &folder,
            16 * MIB,
            CreateFile {
                direct,
                ..CreateFile::default()
            },
        );
        device.map_log(MIB, MIB).unwrap();
        assert!(
            device.host_bytes().unwrap() >= MIB,
            "the log is not allocated"
        );
        let record = pattern(10_001);
        device.store_log(4093, &record).unwrap();
        device.flush().unwrap();
        let log = read(&device, MIB, 16 * 1024);
        assert!(log[4093..4093 + record.len()] == record);
        drop(device);

        let device = FileDevice::open(
            &path,
            FileOptions {
                direct,
                read_only: false,
            },
        )
        .unwrap();
        device.map_log(MIB, MIB).unwrap();
        assert!(
            read(&device, MIB, 16 * 1024) == log,
            "mapping again harmed the log"
        );
        assert!(device.map_log(2 * MIB, MIB).is_err(), "a pool has one log");
    }
}

#[test]
#[should_panic(expected = "outside the mapped region")]
fn a_store_outside_the_log_panics() {
    let folder = tempfile::tempdir().unwrap();
    let (device, _) = create(&folder, MIB, CreateFile::default());
    device.map_log(0, 8192).unwrap();
    let _ = device.store_log(8190, &[1; 3]);
}

#[test]
fn a_log_on_a_full_host_is_an_error_and_not_a_signal() {
    let host = SmallHost::new(2 * MIB);
    let device =
        FileDevice::create(host.0.path().join("pool"), 8 * MIB, CreateFile::default()).unwrap();
    device.map_log(0, 4 * MIB).unwrap();
    let record = blocks(3, 1);
    let stored = (0..1024).find_map(|block| device.store_log(block * 4096, &record).err());
    assert_eq!(stored.unwrap().errno(), libc::ENOSPC);
    assert!(read(&device, 0, BLOCK_BYTES) == record);
}

#[test]
fn an_allocated_log_is_taken_on_a_full_host() {
    let host = SmallHost::new(2 * MIB);
    let path = host.0.path().join("pool");
    let device = FileDevice::create(&path, 8 * MIB, CreateFile::default()).unwrap();
    device.map_log(0, MIB).unwrap();
    let full = (1..).find_map(|at| device.write_at(&blocks(1, 16), at * MIB / 16 + MIB).err());
    assert_eq!(full.unwrap().errno(), libc::ENOSPC);
    drop(device);
    let device = FileDevice::open(&path, FileOptions::default()).unwrap();
    device.map_log(0, MIB).unwrap();
    for block in 0..MIB / 4096 {
        device.store_log(block * 4096, &blocks(4, 1)).unwrap();
    }
    device.flush().unwrap();
}

#[test]
fn a_data_write_on_a_full_host_says_so() {
    let host = SmallHost::new(MIB);
    let device =
        FileDevice::create(host.0.path().join("pool"), 8 * MIB, CreateFile::default()).unwrap();
    let error = device.write_at(&blocks(1, 1024), 0).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
}

#[test]
fn a_preallocated_file_takes_its_room_and_a_sparse_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let preallocate = CreateFile {
        preallocate: true,
        ..CreateFile::default()
    };
    let (device, path) = create(&folder, 4 * MIB, preallocate);
    assert!(device.host_bytes().unwrap() >= 4 * MIB);
    device.discard(0, 2 * MIB).unwrap();
    assert!(device.host_bytes().unwrap() <= 2 * MIB + 65_536);
    assert_eq!(device.len_bytes(), 4 * MIB);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );

    let folder = tempfile::tempdir().unwrap();
    let (device, _) = create(&folder, 4 * MIB, CreateFile::default());
    assert!(device.host_bytes().unwrap() < 65_536);
}

#[test]
fn a_file_that_cannot_be_preallocated_is_removed_again() {
    let host = SmallHost::new(MIB);
    let path = host.0.path().join("pool");
    let preallocate = CreateFile {
        preallocate: true,
        ..CreateFile::default()
    };
    let error = FileDevice::create(&path, 8 * MIB, preallocate)
        .err()
        .unwrap();
    assert_eq!(error.errno(), libc::ENOSPC);
    assert!(!path.exists());
}

#[test]
fn creating_over_a_file_with_bytes_needs_overwrite_and_then_forgets_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    fs::write(&path, blocks(9, 4)).unwrap();
    let refused = FileDevice::create(&path, MIB, CreateFile::default());
    assert!(matches!(refused, Err(Error::DeviceNotEmpty { .. })));
    assert_eq!(fs::read(&path).unwrap(), blocks(9, 4));

    let overwrite = CreateFile {
        overwrite: true,
        ..CreateFile::default()
    };
    let device = FileDevice::create(&path, MIB, overwrite).unwrap();
    assert_eq!(device.len_bytes(), MIB);
    assert_eq!(read(&device, 0, 4 * 4096), blocks(0, 4));
}

#[test]
fn an_empty_file_that_is_there_already_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    File::create(&path).unwrap();
    let device = FileDevice::create(&path, MIB, CreateFile::default()).unwrap();
    assert_eq!(device.len_bytes(), MIB);
}

#[test]
fn a_second_opener_is_refused_until_the_first_closes() {
    let folder = tempfile::tempdir().unwrap();
    let (device, path) = create(&folder, MIB, CreateFile::default());
    let read_only = FileOptions {
        read_only: true,
        ..FileOptions::default()
    };
    let overwrite = CreateFile {
        overwrite: true,
        ..CreateFile::default()
    };
    device.write_at(&blocks(5, 1), 0).unwrap();
    assert!(matches!(
        FileDevice::open(&path, FileOptions::default()),
        Err(Error::InUse)
    ));
    assert!(matches!(
        FileDevice::open(&path, read_only),
        Err(Error::InUse)
    ));
    assert!(matches!(
        FileDevice::create(&path, MIB, overwrite),
        Err(Error::InUse)
    ));
    assert_eq!(
        read(&device, 0, 4096),
        blocks(5, 1),
        "a refused opener changed the file"
    );
    drop(device);

    let first = FileDevice::open(&path, read_only).unwrap();
    let second = FileDevice::open(&path, read_only).unwrap();
    assert_eq!(read(&second, 0, 4096), blocks(5, 1));
    assert!(matches!(
        FileDevice::open(&path, FileOptions::default()),
        Err(Error::InUse)
    ));
    drop((first, second));
    FileDevice::open(&path, FileOptions::default()).unwrap();
}

#[test]
fn a_new_file_is_locked_before_it_has_its_name() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("pool");
    for _ in 0..200 {
        let (is_ready, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                is_ready.store(true, Ordering::Release);
                while !is_over.load(Ordering::Acquire) {
                    if let Ok(file) = File::open(&path) {
                        return file.try_lock().is_ok();
                    }
                }
                false
            });
            while !is_ready.load(Ordering::Acquire) {
                thread::yield_now();
            }
            let new = NewDevice::take(&path, 8192, CreateFile::default());
            is_over.store(new.is_err(), Ordering::Release);
            let got_lock = other.join().unwrap();
            assert!(!got_lock && new.is_ok(), "another one had it: {got_lock}");
        });
        assert!(!path.exists());
    }
}

#[test]
fn a_lock_goes_with_the_open_file_to_whoever_has_it() {
    let folder = TempDir::new().unwrap();
    let (device, path) = create(&folder, 8 * 4096, CreateFile::default());
    device.write_at(&blocks(1, 1), 4096).unwrap();
    drop(device);
    let locked = lock_pool(&path).unwrap();
    let is_in_use = || {
        matches!(
            FileDevice::open(&path, FileOptions::default()),
            Err(Error::InUse)
        )
    };
    for direct in [false, true] {
        let options = FileOptions {
            direct,
            read_only: false,
        };
        // As another process would inherit it.
        let inherited = locked.try_clone().unwrap();
        let device = FileDevice::on_locked(inherited, options).unwrap();
        assert_eq!(read(&device, 4096, 4096), blocks(1, 1));
        device.flush().unwrap();
        drop(device);
        assert!(is_in_use(), "the lock went with a device on it");
    }
    drop(locked);
    assert!(!is_in_use());
}

#[test]
fn a_read_only_device_refuses_every_change() {
    let folder = tempfile::tempdir().unwrap();
    let (device, path) = create(&folder, MIB, CreateFile::default());
    drop(device);
    for direct in [false, true] {
        let device = FileDevice::open(
            &path,
            FileOptions {
                direct,
                read_only: true,
            },
        )
        .unwrap();
        let block = blocks(1, 1);
        let refusals = [
            device.write_at(&block, 0),
            device.write_vectored_at(&[IoSlice::new(&block)], 0),
            device.discard(0, 4096),
            device.grow(2 * MIB),
            device.map_log(0, 4096),
        ];
        for refusal in refusals {
            assert!(matches!(refusal, Err(Error::ReadOnly)), "{refusal:?}");
        }
        assert_eq!(read(&device, 0, 4096), blocks(0, 1));
    }
}

#[test]
fn a_file_grows_keeps_its_bytes_and_never_shrinks() {
    both_ways(|device| {
        device.write_at(&blocks(3, 1), 16 * MIB - 4096).unwrap();
        device.grow(MIB).unwrap();
        assert_eq!(device.len_bytes(), 16 * MIB);
        device.grow(32 * MIB).unwrap();
        assert_eq!(device.len_bytes(), 32 * MIB);
        device.write_at(&blocks(4, 1), 32 * MIB - 4096).unwrap();
        assert_eq!(read(device, 16 * MIB - 4096, 4096), blocks(3, 1));
        assert_eq!(read(device, 32 * MIB - 4096, 4096), blocks(4, 1));
    });
}

#[test]
fn what_is_no_file_or_block_device_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path(), Path::new("/dev/null")] {
        let opened = FileDevice::open(path, FileOptions::default());
        assert!(matches!(opened, Err(Error::Io { .. })));
        let created = FileDevice::create(path, MIB, CreateFile::default());
        assert!(matches!(created, Err(Error::Io { .. })));
    }
    let missing = FileDevice::open(folder.path().join("missing"), FileOptions::default());
    assert_eq!(missing.err().unwrap().errno(), libc::ENOENT);
}

#[test]
fn alignments_that_blocks_cannot_meet_are_refused() {
    let asked = |memory_bytes, offset_bytes| geometry::DirectAlignment {
        memory_bytes,
        offset_bytes,
    };
    assert_eq!(open::usable_alignment(asked(4, 512)).unwrap(), 4);
    assert_eq!(open::usable_alignment(asked(4096, 4096)).unwrap(), 4096);
    for (memory_bytes, offset_bytes) in [(0, 0), (512, 16_384), (65_536, 4096), (512, 3000)] {
        assert!(open::usable_alignment(asked(memory_bytes, offset_bytes)).is_err());
    }
}

#[test]
fn many_threads_read_and_write_at_once() {
    both_ways(|device| {
        device.map_log(8 * MIB, MIB).unwrap();
        thread::scope(|scope| {
            for thread in 0..4_u8 {
                scope.spawn(move || {
                    let start = u64::from(thread) * MIB;
                    for round in 1..50_u8 {
                        let bytes = blocks(round ^ (thread << 6), 16);
                        device.write_at(&bytes, start).unwrap();
                        device
                            .store_log(u64::from(thread) * 100, &[round; 100])
                            .unwrap();
                        assert_eq!(read(device, start, bytes.len()), bytes);
                    }
                });
            }
            scope.spawn(|| (0..10).for_each(|_| device.flush().unwrap()));
        });
        assert_eq!(read(device, 8 * MIB, 4096)[..400], [49; 400]);
    });
}

#[test]
fn the_medium_is_read_past_what_the_host_has_in_memory() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let device = FileDevice::create(folder.path().join("pool"), MIB, Default::default()).unwrap();
    device.write_at(&blocks(7, 2), 8192).unwrap();
    // It has what is not written out yet, too.
    let medium = device.medium().expect("the host has direct I/O");
    assert!(medium.is_direct());
    let mut found = blocks(0, 2);
    medium.read_at(&mut found, 8192).unwrap();
    assert!(found == blocks(7, 2));
    assert!(medium.write_at(&found, 0).is_err(), "it only reads");
    drop(medium);
    let second = FileDevice::open(folder.path().join("pool"), Default::default());
    assert!(matches!(second, Err(Error::InUse)), "the lock stays");
}
