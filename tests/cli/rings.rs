//! Volumes served over io_uring: a killed worker ends the mount with errors, and nothing that was
//! acknowledged is lost.

use crate::harness::{Bench, eventually, host, is_mounted};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const BLOCK: usize = 4096;
const WRITERS: u64 = 8;
const PLACES: u64 = 64;
/// `WRITERS` and `PLACES` as lengths.
const LENGTHS: [usize; 2] = [8, 64];
pub(crate) const OVER_RINGS: [&str; 2] = ["--fuse", "io-uring"];

/// Enables FUSE over io_uring, and leaves it enabled, because other tests may be using it. Returns
/// `false`, with a message, if the kernel does not support it.
pub(crate) fn enable_rings() -> bool {
    let enabled = fs::write("/sys/module/fuse/parameters/enable_uring", "Y").is_ok();
    if !enabled {
        println!("skipped: no FUSE over io_uring in this kernel");
    }
    enabled
}

fn open_direct(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(libc::O_DIRECT).open(path).unwrap()
}

/// Returns a block of memory aligned for direct I/O, filled with `version`.
fn block(version: u64) -> (Vec<u8>, std::ops::Range<usize>) {
    let mut buffer = vec![0_u8; 2 * BLOCK];
    let start = buffer.as_ptr().align_offset(BLOCK);
    for word in buffer.chunks_exact_mut(8) {
        word.copy_from_slice(&version.to_le_bytes());
    }
    (buffer, start..start + BLOCK)
}

/// A writer's knowledge at its end: for each of its places the version that was acknowledged last,
/// and the place and version of the failed write.
struct Known {
    acknowledged: Vec<u64>,
    failed: (u64, u64),
}

fn index(place: u64) -> usize {
    usize::try_from(place).unwrap()
}

/// Writes until a write fails.
fn write_until_error(file: Arc<File>, writer: u64, done: Arc<AtomicU64>) -> JoinHandle<Known> {
    thread::spawn(move || {
        let mut acknowledged = vec![0; LENGTHS[1]];
        let mut version = 0;
        loop {
            version += 1;
            let place = version * 31 % PLACES;
            let (buffer, range) = block(version);
            let at = (writer * PLACES + place) * BLOCK as u64;
            if file.write_all_at(&buffer[range], at).is_err() {
                return Known {
                    acknowledged,
                    failed: (place, version),
                };
            }
            acknowledged[index(place)] = version;
            done.fetch_add(1, Ordering::SeqCst);
        }
    })
}

fn check(path: &Path, writer: u64, known: &Known) {
    let file = open_direct(path);
    for place in 0..PLACES {
        let (mut buffer, range) = block(0);
        let at = (writer * PLACES + place) * BLOCK as u64;
        file.read_exact_at(&mut buffer[range.clone()], at).unwrap();
        let found = u64::from_le_bytes(buffer[range.start..][..8].try_into().unwrap());
        assert!(
            buffer[range]
                .chunks(8)
                .all(|word| word == found.to_le_bytes()),
            "a mixed block"
        );
        let acknowledged = known.acknowledged[index(place)];
        let may_be = known.failed == (place, found);
        assert!(
            found == acknowledged || may_be,
            "writer {writer}, place {place}: {found} instead of {acknowledged}"
        );
    }
}

#[test]
fn a_killed_worker_ends_the_mount_with_errors_and_loses_nothing_acknowledged() {
    if !enable_rings() {
        return;
    }
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve_with(OVER_RINGS);
    let volumes = daemon.mount.clone();
    for name in ["file", "disk"] {
        bench.ok(["volume", "create", name, "--size", "8M"]);
    }
    let path = bench.ok(["attach", "file", "--as", "file"]);
    let device = bench.ok(["attach", "disk"]);
    let done = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = [path.trim(), device.trim()]
        .into_iter()
        .flat_map(|path| {
            let file = Arc::new(open_direct(Path::new(path)));
            let start = |writer| write_until_error(Arc::clone(&file), writer, Arc::clone(&done));
            (0..WRITERS).map(start).collect::<Vec<_>>()
        })
        .collect();
    eventually("many writes", || done.load(Ordering::SeqCst) > 3000);
    daemon.kill_worker();
    eventually("errors for all writers", || {
        writers.iter().all(JoinHandle::is_finished)
    });
    let known: Vec<_> = writers
        .into_iter()
        .map(|writer| writer.join().unwrap())
        .collect();
    let (status, said) = daemon.wait();
    assert!(!status.success(), "{said}");
    assert!(said.contains("served over io_uring"), "{said}");
    assert!(!is_mounted(&volumes), "{said}");

    let daemon = bench.serve();
    for (name, known) in ["file", "disk"].into_iter().zip(known.chunks(LENGTHS[0])) {
        let path = bench.ok(["attach", name, "--as", "file"]);
        for (writer, known) in (0..).zip(known) {
            check(Path::new(path.trim()), writer, known);
        }
    }
    daemon.stop();
    bench.expect_sound();
}

/// If no process is left to end the mount, the kernel does.
#[test]
fn the_death_of_keeper_and_worker_gives_errors_too() {
    if !enable_rings() {
        return;
    }
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve_with(OVER_RINGS);
    let volumes = daemon.mount.clone();
    bench.ok(["volume", "create", "file", "--size", "8M"]);
    let path = bench.ok(["attach", "file", "--as", "file"]);
    let done = Arc::new(AtomicU64::new(0));
    let file = Arc::new(open_direct(Path::new(path.trim())));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| write_until_error(Arc::clone(&file), writer, Arc::clone(&done)))
        .collect();
    eventually("many writes", || done.load(Ordering::SeqCst) > 1000);
    daemon.kill();
    eventually("errors for all writers", || {
        writers.iter().all(JoinHandle::is_finished)
    });
    drop(file);
    let known: Vec<_> = writers
        .into_iter()
        .map(|writer| writer.join().unwrap())
        .collect();
    let daemon = bench.serve();
    assert_eq!(daemon.mount, volumes);
    let path = bench.ok(["attach", "file", "--as", "file"]);
    for (writer, known) in (0..).zip(&known) {
        check(Path::new(path.trim()), writer, known);
    }
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn an_upgrade_is_refused_and_harms_nobody() {
    if !enable_rings() {
        return;
    }
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve_with(OVER_RINGS);
    bench.ok(["volume", "create", "disk", "--size", "8M"]);
    let device = bench.ok(["attach", "disk"]);
    let file = open_direct(Path::new(device.trim()));
    let (buffer, range) = block(7);
    file.write_all_at(&buffer[range.clone()], 4096).unwrap();
    let refused = bench.run(["serve", "--upgrade"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("is served over io_uring"), "{said}");
    let (mut back, _) = block(0);
    let start = back.as_ptr().align_offset(BLOCK);
    file.read_exact_at(&mut back[start..start + BLOCK], 4096)
        .unwrap();
    assert_eq!(back[start..start + BLOCK], buffer[range]);
    drop(file);
    bench.ok(["detach", "disk"]);
    daemon.stop();
    bench.expect_sound();
}

/// fio writes with 8 jobs at depth 32 and reads everything back, on a volume without snapshots and
/// on one that was just snapshotted; the snapshot keeps its contents.
fn verify_path(options: &[&str]) {
    let bench = Bench::with_pool("512M");
    let daemon = bench.serve_with(options);
    bench.ok(["volume", "create", "disk", "--size", "64M"]);
    let device = bench.ok(["attach", "disk"]);
    let device = device.trim();
    for (round, pattern) in ["randwrite", "write", "randwrite"].into_iter().enumerate() {
        fio_verified(device, pattern, round);
        let before = fs::read(device).unwrap();
        let name = format!("after-{round}");
        bench.ok(["volume", "snapshot", "disk", &name]);
        fio_verified(device, pattern, round + 10);
        let path = bench.ok(["attach", &name, "--as", "file", "--read-only"]);
        assert!(
            fs::read(path.trim()).unwrap() == before,
            "{options:?}: {name} has changed"
        );
        bench.ok(["detach", &name]);
    }
    bench.ok(["detach", "disk"]);
    daemon.stop();
    bench.expect_sound();
}

fn fio_verified(device: &str, pattern: &str, seed: usize) {
    let size = if pattern == "write" {
        "--bs=128k"
    } else {
        "--bs=4k"
    };
    let (pattern, seed) = (
        format!("--rw={pattern}"),
        format!("--randseed={}", seed + 1),
    );
    host(
        "fio",
        [
            "--name=verified",
            "--filename",
            device,
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=32",
            "--numjobs=8",
            "--size=3M",
            "--offset_increment=8M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--group_reporting",
            // The option would leave files in the working directory.
            "--verify_state_save=0",
            &pattern,
            size,
            &seed,
        ],
    );
}

#[test]
fn fio_finds_what_it_wrote_over_threads() {
    verify_path(&["--fuse", "threads"]);
}

#[test]
fn fio_finds_what_it_wrote_over_threads_past_the_page_cache() {
    verify_path(&["--fuse", "threads", "--direct"]);
}

#[test]
fn fio_finds_what_it_wrote_over_rings() {
    if enable_rings() {
        verify_path(&OVER_RINGS);
    }
}

#[test]
fn fio_finds_what_it_wrote_over_rings_past_the_page_cache() {
    if enable_rings() {
        verify_path(&["--fuse", "io-uring", "--direct"]);
    }
}

/// Files and block devices are used beside held writes, as in a full pool.
#[test]
fn writes_held_by_a_full_pool_block_no_other_over_rings() {
    if !enable_rings() {
        return;
    }
    let bench = Bench::with_pool("64M");
    let daemon = bench.serve_with(["--fuse", "io-uring", "--full-policy", "wait=120"]);
    bench.ok(["volume", "create", "large", "--size", "256M"]);
    let path = bench.ok(["attach", "large", "--as", "file"]);
    let file = Arc::new(open_direct(Path::new(path.trim())));
    let written = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..4_u64)
        .map(|writer| {
            let (file, written) = (Arc::clone(&file), Arc::clone(&written));
            thread::spawn(move || {
                for number in 0..4096_u64 {
                    let (buffer, range) = block(number + 1);
                    let at = (writer * 4096 + number) * BLOCK as u64;
                    file.write_all_at(&buffer[range], at).unwrap();
                    written.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let held = || bench.json(["pool", "status"])["state"].clone();
    let mut last = u64::MAX;
    eventually("held writes", || {
        let now = written.load(Ordering::SeqCst);
        let stands = now == last && now > 0;
        last = now;
        thread::sleep(Duration::from_millis(300));
        stands
    });
    println!("state of the pool: {}", held());
    assert!(writers.iter().any(|writer| !writer.is_finished()));
    // Reads continue meanwhile, also those of the same file.
    let (mut back, range) = block(0);
    file.read_exact_at(&mut back[range.clone()], 0).unwrap();
    assert_eq!(back[range.start..][..8], 1_u64.to_le_bytes());
    bench.ok(["pool", "grow", "--size", "256M"]);
    for writer in writers {
        writer.join().unwrap();
    }
    drop(file);
    bench.ok(["detach", "large"]);
    daemon.stop();
    bench.expect_sound();
}
