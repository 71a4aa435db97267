//! A mount outlives the process that serves it: the process dies under load, or hands over.
//!
//! The test keeps the connection and the handover state, as a keeper does; the serving processes
//! are this binary again. Needs root, FUSE, loop devices and mkfs.ext4.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod load;
mod server;
mod stalling;

use cowshed_export::Connection;
use load::{BlockLoad, FileLoad};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};
use server::{Kept, run};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Longer than any successful operation takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Number of times the serving process ends in each test.
const ROUNDS: u32 = 5;

/// The way in which a serving process ends.
#[derive(Clone, Copy)]
enum Going {
    Killed,
    HandsOver,
}

impl Going {
    fn go(self, kept: &mut Kept) {
        match self {
            Self::Killed => kept.kill(),
            Self::HandsOver => kept.hand_over(),
        }
        kept.serve(true, false);
    }
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).open(path).unwrap()
}

/// Waits until `holds` returns true.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Not a test by itself: the process that serves.
#[test]
#[ignore = "the other tests run it in a process of its own"]
fn serve_as_told() {
    server::serve_as_told();
}

#[test]
fn a_file_in_use_survives_the_death_of_its_server() {
    file_in_use_survives(Going::Killed);
}

#[test]
fn a_file_in_use_survives_handing_over() {
    file_in_use_survives(Going::HandsOver);
}

fn file_in_use_survives(going: Going) {
    let names: Vec<_> = (0..1500).map(|number| format!("other-{number}")).collect();
    let mut volumes = vec![("data", 16 * MIB), ("idle", 4 * MIB)];
    volumes.extend(names.iter().map(|name| (name.as_str(), MIB)));
    let mut kept = Kept::with(&volumes, 4);
    kept.serve(false, false);

    let idle = open(&kept.file("idle"));
    idle.write_all_at(&[7; 8192], MIB).unwrap();
    let mut listing = fs::read_dir(kept.dir()).unwrap();
    let mut listed = vec![listing.next().unwrap().unwrap().file_name()];
    let load = BlockLoad::start(&kept.file("data"), 4);
    for _ in 0..ROUNDS {
        load.goes_on();
        going.go(&mut kept);
    }
    load.goes_on();

    // A directory listing that was begun before continues: each name appears once.
    listed.extend(listing.map(|entry| entry.unwrap().file_name()));
    assert_eq!(listed.len(), volumes.len());
    listed.sort();
    listed.dedup();
    assert_eq!(listed.len(), volumes.len());

    // So does an open file.
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    idle.sync_all().unwrap();
    assert_eq!(lseek64(&idle, 0, Whence::SeekData), Ok(MIB.cast_signed()));
    fallocate(&idle, punch, MIB.cast_signed(), 4096).unwrap();
    let data = lseek64(&idle, 0, Whence::SeekData);
    assert_eq!(data, Ok(MIB.cast_signed() + 4096));
    let hole = lseek64(&idle, data.unwrap(), Whence::SeekHole);
    assert_eq!(hole, Ok(MIB.cast_signed() + 8192));
    assert_eq!(idle.metadata().unwrap().len(), 4 * MIB);

    // It keeps its volume, but only while it is open.
    assert_ne!(kept.ask("remove idle"), "done");
    drop(idle);
    until("the volume can be removed", || {
        kept.ask("remove idle") == "done"
    });
    load.stop_and_compare();
    kept.end();
}

#[test]
fn a_file_system_on_a_device_survives_the_death_of_its_server() {
    file_system_survives(Going::Killed);
}

#[test]
fn a_file_system_on_a_device_survives_handing_over() {
    file_system_survives(Going::HandsOver);
}

fn file_system_survives(going: Going) {
    let mut kept = Kept::with(&[("root", 256 * MIB)], 2);
    kept.serve(false, false);
    let device = kept.ask("attach root");
    let device = Path::new(&device);
    run("mkfs.ext4", &[Path::new("-q"), device]);
    let place = kept.mount_ext4(device);
    let load = FileLoad::start(&place, 2);
    for _ in 0..ROUNDS {
        load.goes_on();
        going.go(&mut kept);
        let attached = format!("root {}", device.display());
        assert_eq!(kept.ask("attachments"), attached);
    }
    load.goes_on();
    load.stop_and_compare();
    kept.unmount_ext4();
    run("e2fsck", &[Path::new("-fn"), device]);
    let place = kept.mount_ext4(device);
    load.compare_at(&place);
    kept.unmount_ext4();
    assert_eq!(kept.ask("detach root"), "done");
    kept.end();
}

/// The kernel has only one request at a time in flight for some kinds, so each has its own file.
const IN_FLIGHT: [&str; 5] = ["written", "read", "flushed", "punched", "opened"];

fn stage_in_flight() -> Kept {
    Kept::with(&IN_FLIGHT.map(|name| (name, 16 * MIB)), IN_FLIGHT.len())
}

/// Starts one request of each kind that a target sees, each in its own thread.
fn put_in_flight(kept: &mut Kept) -> Vec<JoinHandle<io::Result<()>>> {
    let [written, read, flushed, punched] =
        [0, 1, 2, 3].map(|index| open(&kept.file(IN_FLIGHT[index])));
    let opened = kept.file(IN_FLIGHT[4]);
    assert_eq!(kept.ask("stall"), "stalls");
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let requests = vec![
        thread::spawn(move || written.write_all_at(&[1; 4096], 0)),
        thread::spawn(move || read.read_exact_at(&mut [0; 4096], 0)),
        thread::spawn(move || flushed.sync_all()),
        thread::spawn(move || fallocate(&punched, mode, 0, 4096).map_err(io::Error::from)),
        thread::spawn(move || File::open(opened).map(drop)),
    ];
    kept.await_arrivals(requests.len());
    requests
}

/// Whatever kind of request is in flight when a process dies, its successor does it.
#[test]
fn requests_in_flight_are_done_by_the_successor() {
    let mut kept = stage_in_flight();
    kept.serve(false, true);
    let requests = put_in_flight(&mut kept);
    kept.kill();
    assert!(requests.iter().all(|request| !request.is_finished()));
    kept.serve(true, false);
    for request in requests {
        request.join().unwrap().unwrap();
    }
    let mut back = [0; 4096];
    let written = open(&kept.file("written"));
    written.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(back, [1; 4096]);
    // All are closed again, so nothing keeps the volumes.
    drop(written);
    for name in IN_FLIGHT {
        let order = format!("remove {name}");
        until("the volume can be removed", || kept.ask(&order) == "done");
    }
    kept.end();
}

/// If the kernel does not resend requests, those in flight fail, and all others wait.
#[test]
fn without_resending_requests_in_flight_fail_and_others_wait() {
    let mut kept = stage_in_flight();
    kept.forget_resending();
    kept.serve(false, true);
    let file = open(&kept.file("written"));
    let requests = put_in_flight(&mut kept);
    kept.kill();
    for request in requests {
        request.join().unwrap().unwrap_err();
    }
    let waiting = thread::spawn(move || file.write_all_at(&[2; 4096], 4096));
    kept.serve(true, false);
    waiting.join().unwrap().unwrap();
    kept.end();
}

#[test]
fn a_connection_of_nothing_is_refused() {
    let kept = Kept::with(&[("data", MIB)], 2);
    let mut parts = kept.parts();
    parts.descriptors.clear();
    assert!(Connection::adopt(parts).is_err());
}
