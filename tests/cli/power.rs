//! Power cuts beneath the whole stack: a container writes to its root, which is a loop device on a
//! volume of a running daemon, whose pool is a file on XFS. XFS is shut down without writing its log
//! (`xfs_io -c shutdown`), which loses what was not flushed, as a power cut does, and then mounted
//! again. All that was synced in the root must be there.
//!
//! Other than in the power cuts of `tests/storm`, every program is the real one, and nothing is
//! known of the order in which the host writes; what is cut off is chosen by the moment alone.

use crate::harness::{Bench, Daemon, clear_mounts, eventually, host, loops_below, noise};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

const BLOCK: usize = 4096;
/// Number of blocks of the file that is written in place.
const PLACES: usize = 16;
/// Bytes of a record.
const RECORD: usize = 300;
/// How long the load runs before each cut; the last ones come back from a pool that was cut before.
const CUTS_AFTER_MS: [u64; 4] = [150, 400, 900, 1600];

/// A file system whose power can be cut, and which is unmounted when dropped.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cowshed-power-")
            .tempdir_in("/var/tmp");
        let disk = Self {
            folder: folder.unwrap(),
        };
        let image = disk.folder.path().join("image");
        File::create(&image).unwrap().set_len(1 << 30).unwrap();
        host("mkfs.xfs", [Path::new("-q"), &image]);
        fs::create_dir(disk.root()).unwrap();
        disk.mount();
        disk
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    fn mount(&self) {
        let image = self.folder.path().join("image");
        host(
            "mount",
            [Path::new("-o"), Path::new("loop"), &image, &self.root()],
        );
    }

    /// Loses all that was not flushed; every access fails from then on.
    fn cut(&self) {
        host(
            "xfs_io",
            ["-x", "-c", "shutdown", self.root().to_str().unwrap()],
        );
    }

    /// Mounts it as it is after the cut. Nobody may use it.
    fn restore(&self) {
        host("umount", [self.root()]);
        eventually("the device's end", || {
            loops_below(self.folder.path()).is_empty()
        });
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        clear_mounts(self.folder.path());
    }
}

/// A daemon with the container `one`, whose root is mounted.
struct Running {
    daemon: Daemon,
    root: PathBuf,
}

impl Running {
    fn start(bench: &Bench) -> Self {
        let daemon = bench.serve();
        let mounted = bench.json(["container", "mount", "one"]);
        let root = mounted["path"].as_str().unwrap().into();
        Self { daemon, root }
    }

    /// Ends all of it after a cut.
    fn clear_away(self) {
        let state = self.daemon.mount.parent().unwrap().to_owned();
        self.daemon.kill();
        clear_mounts(&state);
        // The devices end once the file systems on them have given up.
        eventually("the devices' end", || loops_below(&state).is_empty());
    }
}

/// What was synced in a root so far.
#[derive(Default)]
struct Synced {
    /// Number of records of the file that grows.
    records: AtomicU64,
    /// The last version of each block of the file that is written in place.
    versions: [AtomicU64; PLACES],
    /// Number of files that were renamed and whose folder was synced.
    files: AtomicU64,
}

impl Synced {
    /// Copies it as it is now.
    fn now(&self) -> Self {
        let copy = |number: &AtomicU64| AtomicU64::new(number.load(SeqCst));
        Self {
            records: copy(&self.records),
            versions: std::array::from_fn(|place| copy(&self.versions[place])),
            files: copy(&self.files),
        }
    }
}

fn block_of(place: usize, version: u64) -> Vec<u8> {
    noise(BLOCK, (place as u64) << 32 | version)
}

fn record_of(number: u64) -> Vec<u8> {
    noise(RECORD, number)
}

fn file_of(number: u64) -> Vec<u8> {
    noise(7000, number)
}

/// Appends records and syncs each, until that fails.
fn append(path: &Path, synced: &Synced) -> io::Result<()> {
    let mut file = File::options().append(true).create(true).open(path)?;
    loop {
        file.write_all(&record_of(synced.records.load(SeqCst)))?;
        file.sync_data()?;
        synced.records.fetch_add(1, SeqCst);
    }
}

/// Writes blocks in place and syncs each, until that fails.
fn overwrite(path: &Path, synced: &Synced) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    loop {
        for (place, version) in synced.versions.iter().enumerate() {
            let next = version.load(SeqCst) + 1;
            file.write_all_at(&block_of(place, next), (place * BLOCK) as u64)?;
            file.sync_data()?;
            version.store(next, SeqCst);
        }
    }
}

/// Writes files under a passing name, syncs and renames them, and syncs their folder, until that
/// fails.
fn rename(folder: &Path, synced: &Synced) -> io::Result<()> {
    loop {
        let number = synced.files.load(SeqCst);
        let draft = folder.join("draft");
        let file = File::create(&draft)?;
        file.write_all_at(&file_of(number), 0)?;
        file.sync_all()?;
        fs::rename(&draft, folder.join(number.to_string()))?;
        File::open(folder)?.sync_all()?;
        synced.files.fetch_add(1, SeqCst);
    }
}

/// Loads the root until the power is cut. Returns what was synced before the cut began: XFS reports
/// some syncs as done that a shutdown interrupts, those of plain files too.
fn load_and_cut(disk: &Disk, root: &Path, after: Duration, synced: &Synced) -> Synced {
    let data = root.join("data");
    thread::scope(|scope| {
        let loads = [
            scope.spawn(|| append(&data.join("records"), synced)),
            scope.spawn(|| overwrite(&data.join("blocks"), synced)),
            scope.spawn(|| rename(&data, synced)),
        ];
        thread::sleep(after);
        let before = synced.now();
        disk.cut();
        for load in loads {
            load.join().unwrap().expect_err("syncs without power");
        }
        before
    })
}

/// Asserts that all that was synced `before` the cut is there, and nothing else than was written
/// until the end. What is there counts as synced from now on.
fn compare(root: &Path, before: &Synced, end: &Synced) -> Synced {
    let data = root.join("data");
    let content = fs::read(data.join("records")).unwrap_or_default();
    let (records, torn) = content.as_chunks::<RECORD>();
    let number = records.len() as u64;
    let expected = before.records.load(SeqCst)..=end.records.load(SeqCst) + 1;
    assert!(
        expected.contains(&number),
        "{number} records, not {expected:?}"
    );
    for (number, record) in (0..).zip(records) {
        assert_eq!(record[..], record_of(number), "record {number}");
    }
    if !torn.is_empty() {
        let file = File::options().write(true).open(data.join("records"));
        file.unwrap().set_len(number * RECORD as u64).unwrap();
    }
    let found = end.now();
    found.records.store(number, SeqCst);
    let blocks = fs::read(data.join("blocks")).unwrap();
    for (place, block) in blocks.chunks(BLOCK).enumerate() {
        let mut expected =
            before.versions[place].load(SeqCst)..=end.versions[place].load(SeqCst) + 1;
        let version = expected.find(|&version| block == block_of(place, version));
        let version =
            version.unwrap_or_else(|| panic!("block {place} has a lost or a wrong version"));
        found.versions[place].store(version, SeqCst);
    }
    let files = before.files.load(SeqCst);
    for number in 0..files {
        let content = fs::read(data.join(number.to_string())).unwrap();
        assert_eq!(content, file_of(number), "file {number}");
    }
    found.files.store(files, SeqCst);
    found
}

/// Writes past the cache without syncing, and cuts the power: the pool has it then, but not for good.
fn write_and_cut(disk: &Disk, root: &Path) {
    let path = root.join("data/blocks");
    let mut memory = vec![0; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    memory[start..start + BLOCK].copy_from_slice(&block_of(0, u64::from(u32::MAX)));
    let mut options = File::options();
    let file = options.write(true).custom_flags(libc::O_DIRECT).open(path);
    let written = file.unwrap().write_all_at(&memory[start..start + BLOCK], 0);
    written.unwrap();
    disk.cut();
}

/// Creates a pool with the container `one`.
fn container(bench: &Bench, options: &[&str]) {
    bench.ok(["pool", "create", "--size", "512M"]);
    let root = bench.path("root");
    fs::create_dir_all(root.join("data")).unwrap();
    let blocks: Vec<_> = (0..PLACES).flat_map(|place| block_of(place, 0)).collect();
    fs::write(root.join("data/blocks"), blocks).unwrap();
    bench.ok([
        "image",
        "import",
        root.to_str().unwrap(),
        "--name",
        "mine:1",
    ]);
    let create = ["container", "create", "mine:1", "--name", "one"];
    bench.ok(create.iter().chain(options));
}

fn what_was_synced_survives(options: &[&str]) {
    let disk = Disk::new();
    let bench = Bench::below(&disk.root());
    container(&bench, options);
    let mut synced = Synced::default();
    for after in CUTS_AFTER_MS {
        let running = Running::start(&bench);
        let after = Duration::from_millis(after);
        let before = load_and_cut(&disk, &running.root, after, &synced);
        running.clear_away();
        disk.restore();
        let running = Running::start(&bench);
        synced = compare(&running.root, &before, &synced);
        running.daemon.stop();
        bench.expect_sound();
    }
    let (records, files) = (synced.records.load(SeqCst), synced.files.load(SeqCst));
    println!("{records} records and {files} files were synced");
    assert!(records > 20 && files > 20 && synced.versions[0].load(SeqCst) > 2);
    // A cut that loses nothing would prove nothing.
    let running = Running::start(&bench);
    write_and_cut(&disk, &running.root);
    running.clear_away();
    disk.restore();
    let running = Running::start(&bench);
    compare(&running.root, &synced, &synced);
    running.daemon.stop();
}

#[test]
fn what_was_synced_in_a_root_survives_a_power_cut_of_the_whole_stack() {
    what_was_synced_survives(&[]);
}

#[test]
fn what_was_synced_in_an_overlay_survives_a_power_cut_of_the_whole_stack() {
    what_was_synced_survives(&["--root", "overlay"]);
}

/// A flush that fails stops the pool, and whoever asked for it is told.
fn a_failed_flush_is_reported(options: &[&str]) {
    let disk = Disk::new();
    let bench = Bench::below(&disk.root());
    container(&bench, options);
    let running = Running::start(&bench);
    let file = File::create(running.root.join("data/new")).unwrap();
    file.write_all_at(b"synced", 0).unwrap();
    file.sync_all().unwrap();
    disk.cut();
    // The cache takes it.
    file.write_all_at(b"synced no more", 0).unwrap();
    file.sync_all().expect_err("nothing can be durable");
    drop(file);
    running.clear_away();
}

#[test]
fn a_failed_flush_is_reported_to_who_syncs_in_a_root() {
    a_failed_flush_is_reported(&[]);
}

#[test]
fn a_failed_flush_is_reported_to_who_syncs_in_an_overlay() {
    a_failed_flush_is_reported(&["--root", "overlay"]);
}
