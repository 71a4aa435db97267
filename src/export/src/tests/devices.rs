//! Volumes as loop devices.

use super::*;
use crate::{AttachKind, ExportError, Holder};
use cowshed_sys::loop_device;
use nix::fcntl::{FallocateFlags, fallocate};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::Ordering::SeqCst;

/// Returns a number that the kernel publishes about a loop device.
fn published(device: &Path, file: &str) -> u64 {
    let name = device.file_name().unwrap();
    let path = Path::new("/sys/block").join(name).join(file);
    fs::read_to_string(&path).unwrap().trim().parse().unwrap()
}

/// Returns true if the device has a file in `dir`: other tests may have got its number by now.
fn is_attached(device: &Path, dir: &Path) -> bool {
    let attached = loop_device::attached().unwrap();
    attached
        .iter()
        .any(|(found, path)| found.path() == device && mount::lies_in(path, dir))
}

fn open_direct(device: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(device)
        .unwrap()
}

#[test]
fn a_loop_device_has_the_volumes_size_4k_blocks_and_direct_io() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("some/volume", 16 * MIB);
    let device = fixture.export.attach_loop(&*volume, false).unwrap();
    assert_eq!(published(&device, "size") * 512, 16 * MIB);
    assert_eq!(published(&device, "queue/logical_block_size"), 4096);
    assert_eq!(published(&device, "loop/dio"), 1);
    assert_eq!(published(&device, "ro"), 0);
    assert!(published(&device, "queue/discard_max_bytes") > 0);
    assert_eq!(fixture.export.attach_loop(&*volume, false).unwrap(), device);
    let listed = fixture.export.attachments();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].kind, &listed[0].path),
        (AttachKind::Loop, &device)
    );

    fixture.export.detach(&*volume).unwrap();
    assert!(is_attached(&device, fixture.export.mount_point()));
    fixture.export.detach(&*volume).unwrap();
    assert!(!is_attached(&device, fixture.export.mount_point()));
}

#[test]
fn a_volume_of_odd_size_or_an_option_gives_512_byte_blocks() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("odd", MIB + 512);
    let device = fixture.export.attach_loop(&*volume, false).unwrap();
    assert_eq!(published(&device, "queue/logical_block_size"), 512);
    assert_eq!(published(&device, "size") * 512, MIB + 512);

    let fixture = Fixture::with(ExportOptions {
        loop_block_bytes: 512,
        ..ExportOptions::default()
    });
    let volume = fixture.pool.create("even", MIB);
    let device = fixture.export.attach_loop(&*volume, false).unwrap();
    assert_eq!(published(&device, "queue/logical_block_size"), 512);
}

#[test]
fn a_snapshot_is_attached_read_only_and_as_often_as_wanted() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("s", MIB);
    volume.write_at(&[3; 4096], 0).unwrap();
    volume.freeze();
    assert!(fixture.export.attach_loop(&*volume, false).is_err());
    let device = fixture.export.attach_loop(&*volume, true).unwrap();
    let file = fixture.export.attach_file(&*volume, true).unwrap();
    assert_eq!(published(&device, "ro"), 1);
    assert_eq!(fs::read(&file).unwrap(), fs::read(&device).unwrap());
    fixture
        .export
        .detach_as(&*volume, AttachKind::File)
        .unwrap();
    assert!(is_attached(&device, fixture.export.mount_point()));
    let error = fixture
        .export
        .detach_as(&*volume, AttachKind::File)
        .unwrap_err();
    assert!(matches!(error, ExportError::NotAttached(_)), "{error}");
    fixture
        .export
        .detach_as(&*volume, AttachKind::Loop)
        .unwrap();
    assert!(!is_attached(&device, fixture.export.mount_point()));
    assert!(fixture.export.attachments().is_empty());
}

#[test]
fn a_resized_volume_gives_a_resized_device() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", 4 * MIB);
    let device = fixture.export.attach_loop(&*volume, false).unwrap();
    volume.resize(6 * MIB);
    fixture.export.resized(&*volume).unwrap();
    assert_eq!(published(&device, "size") * 512, 6 * MIB);
    open_direct(&device)
        .write_all_at(&Page::new(4096), 5 * MIB)
        .unwrap();
    volume.resize(2 * MIB);
    fixture.export.resized(&*volume).unwrap();
    assert_eq!(published(&device, "size") * 512, 2 * MIB);
}

#[test]
fn detaching_flushes_what_the_device_had_cached() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", 4 * MIB);
    let device = fixture.export.attach_loop(&*volume, false).unwrap();
    // Only the attachment holds it: the file's release may come a moment after the detaching.
    assert_eq!(volume.holds(), 1);
    let data = pattern(4, 1 << 20);
    OpenOptions::new()
        .write(true)
        .open(&device)
        .unwrap()
        .write_all_at(&data, 4096)
        .unwrap();
    let flushes = volume.flushes.load(SeqCst);
    fixture.export.detach(&*volume).unwrap();
    assert!(volume.bytes(4096, data.len()) == data);
    assert!(volume.flushes.load(SeqCst) > flushes);
    assert_eq!(volume.holds(), 0);
}

#[test]
fn a_device_that_a_process_has_open_is_busy_and_stays() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", 4 * MIB);
    let device = fixture.export.attach_loop(&*volume, false).unwrap();
    let file = open_direct(&device);
    let error = fixture.export.detach(&*volume).unwrap_err();
    let ExportError::Busy { what, by } = &error else {
        panic!("{error}")
    };
    assert_eq!(what, &device);
    let pid = std::process::id();
    assert!(
        by.0.iter()
            .any(|holder| matches!(holder, Holder::Process { pid: p, .. } if *p == pid))
    );
    // The device still works, also after the last close.
    file.write_all_at(&Page::new(4096), 0).unwrap();
    drop(file);
    assert!(is_attached(&device, fixture.export.mount_point()));
    fixture.export.detach(&*volume).unwrap();
    assert!(!is_attached(&device, fixture.export.mount_point()));
}

/// Detaching frees a number that another attachment takes at once; the detaching must not wait for
/// that attachment.
#[test]
fn attaching_and_detaching_side_by_side_does_not_mix_devices_up() {
    const ROUNDS: u64 = 40;
    let fixture = Fixture::new();
    let start = std::time::Instant::now();
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let fixture = &fixture;
            scope.spawn(move || {
                let volume = fixture.pool.create(&format!("v{thread}"), MIB);
                for round in 0..ROUNDS {
                    let data = pattern(thread * ROUNDS + round, 4096);
                    let device = fixture.export.attach_loop(&*volume, false).unwrap();
                    let mut page = Page::new(4096);
                    page.copy_from_slice(&data);
                    open_direct(&device).write_all_at(&page, 0).unwrap();
                    fixture.export.detach(&*volume).unwrap();
                    assert_eq!(volume.bytes(0, 4096), data);
                    assert_eq!(volume.holds(), 0);
                }
            });
        }
    });
    assert!(fixture.export.attachments().is_empty());
    let each = start.elapsed() / u32::try_from(ROUNDS).unwrap();
    assert!(
        each < std::time::Duration::from_secs(1),
        "{each:?} for a round of four"
    );
}

#[test]
fn a_device_that_someone_else_detached_is_forgotten() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", 4 * MIB);
    let device = fixture.export.attach_loop(&*volume, false).unwrap();
    run("losetup", &[Path::new("-d"), &device]);
    fixture.export.detach(&*volume).unwrap();
    assert!(fixture.export.attachments().is_empty());
}

/// Many threads, each with its own stripes of the device, so that requests of different threads
/// touch adjacent blocks.
#[test]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of our own")]
fn concurrent_random_io_matches_a_model() {
    const THREADS: u64 = 4;
    const STRIPE: u64 = 16 * 4096;
    const STRIPES: u64 = 64;
    const STEPS: u32 = 600;
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", THREADS * STRIPES * STRIPE);
    let device = fixture.export.attach_loop(&*volume, false).unwrap();

    let exercise = |thread: u64| {
        let mut random = StdRng::seed_from_u64(seed ^ thread);
        let file = open_direct(&device);
        let mut model = vec![0; (STRIPES * STRIPE) as usize];
        for _ in 0..STEPS {
            let stripe = random.random_range(0..STRIPES);
            let first = random.random_range(0..16_u64);
            let blocks = random.random_range(1..=16 - first);
            let len = (blocks * 4096) as usize;
            let inside = (stripe * STRIPE + first * 4096) as usize;
            let offset = (stripe * THREADS + thread) * STRIPE + first * 4096;
            let part = &mut model[inside..inside + len];
            let mut page = Page::new(len);
            match random.random_range(0..10) {
                0..5 => {
                    random.fill(&mut *page);
                    file.write_all_at(&page, offset).unwrap();
                    part.copy_from_slice(&page);
                }
                5 => {
                    let punch =
                        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                    let (offset, len) = (offset.cast_signed(), len.cast_signed() as i64);
                    fallocate(&file, punch, offset, len).unwrap();
                    part.fill(0);
                }
                6 => file.sync_data().unwrap(),
                _ => {
                    file.read_exact_at(&mut page, offset).unwrap();
                    assert!(
                        *page == *part,
                        "seed {seed}: {len} bytes at {offset} differ"
                    );
                }
            }
        }
        model
    };
    let models: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|id| scope.spawn(move || exercise(id)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    for (thread, model) in (0..THREADS).zip(models) {
        for stripe in 0..STRIPES {
            let wanted = &model[(stripe * STRIPE) as usize..][..STRIPE as usize];
            let found = volume.bytes((stripe * THREADS + thread) * STRIPE, STRIPE as usize);
            assert!(
                found == wanted,
                "seed {seed}: stripe {stripe} of thread {thread} differs"
            );
        }
    }
}

#[test]
fn an_ext4_on_the_device_keeps_its_files_and_trims() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("root", 64 * MIB);
    let device = fixture.export.attach_loop(&*volume, false).unwrap();
    run("mkfs.ext4", &[Path::new("-q"), &device]);
    let place = fixture.place("root");
    let mounted = Ext4::mount(&device, place.clone());
    for number in 0..40_u64 {
        let folder = place.join(format!("{}/{}", number % 4, number % 3));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(number.to_string()), pattern(number, 500_000)).unwrap();
    }
    mount::sync_file_system(&place).unwrap();
    let full = volume.allocated_bytes();
    assert!(full > 20_000_000, "{full}");

    // A mount uses the device, so it is neither detached nor unmounted, and the error names the
    // mount.
    for result in [fixture.export.detach(&*volume), fixture.export.unmount()] {
        let error = result.unwrap_err();
        let ExportError::Busy { by, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(by.0, [Holder::Mount(place.clone())]);
    }

    fs::remove_dir_all(place.join("0")).unwrap();
    mount::sync_file_system(&place).unwrap();
    run("fstrim", &[&place]);
    assert!(volume.allocated_bytes() < full - 4_000_000);
    mounted.unmount();
    run("e2fsck", &[Path::new("-fn"), &device]);

    // Once more through a new device, as another process would see it.
    fixture.export.detach(&*volume).unwrap();
    let device = fixture.export.attach_loop(&*volume, false).unwrap();
    let mounted = Ext4::mount(&device, place.clone());
    for number in (0..40_u64).filter(|number| number % 4 != 0) {
        let path = place.join(format!("{}/{}/{number}", number % 4, number % 3));
        assert!(fs::read(path).unwrap() == pattern(number, 500_000));
    }
    assert!(!place.join("0").exists());
    mounted.unmount();

    run("blkdiscard", &[&device]);
    assert_eq!(volume.allocated_bytes(), 0);
    fixture.export.unmount().unwrap();
    assert!(!is_attached(&device, fixture.export.mount_point()));
}

#[test]
fn a_frozen_file_system_is_whole_on_its_device() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("root", 64 * MIB);
    let device = fixture.export.attach_loop(&*volume, false).unwrap();
    run("mkfs.ext4", &[Path::new("-q"), &device]);
    let place = fixture.place("root");
    let mounted = Ext4::mount(&device, place.clone());
    fs::write(place.join("file"), pattern(1, 100_000)).unwrap();
    let frozen = mount::FileSystem::at(&place).unwrap();
    frozen.freeze().unwrap();
    let copy = fixture.pool.create("copy", 64 * MIB);
    let bytes = volume.bytes(0, 64 << 20);
    frozen.thaw().unwrap();
    drop(frozen);
    copy.write_at(&bytes, 0).unwrap();
    mounted.unmount();
    let device = fixture.export.attach_loop(&*copy, true).unwrap();
    run("e2fsck", &[Path::new("-fn"), &device]);
}

#[test]
fn a_thread_that_fails_leaves_no_device_behind() {
    let mut seen = None;
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let fixture = Fixture::new();
        let volume = fixture.pool.create("v", MIB);
        let device = fixture.export.attach_loop(&*volume, false).unwrap();
        seen = Some((device, fixture.export.mount_point().to_owned()));
        panic!("as a failing test does");
    }));
    assert!(outcome.is_err());
    let (device, dir) = seen.unwrap();
    assert!(!is_attached(&device, &dir));
    assert!(!dir.exists());
}
