//! Writers that must never get an error, and check afterwards that every byte is right.

use crate::harness::Bench;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

const BLOCK: usize = 4096;
/// Number of places that a device's writer writes to.
const PLACES: u64 = 1024;

/// A thread that works until it is told to stop.
pub struct Load<T> {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Load<T> {
    fn start(work: impl FnOnce(&AtomicBool, &AtomicU64) -> T + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (its_stop, its_rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = Some(std::thread::spawn(move || work(&its_stop, &its_rounds)));
        Self {
            stop,
            rounds,
            thread,
        }
    }

    /// Returns the number of rounds done.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::SeqCst)
    }

    /// Ends it, and returns its result.
    pub fn end(mut self) -> T {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl<T> Drop for Load<T> {
    fn drop(&mut self) {
        // If the test fails elsewhere, the thread must not go on.
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn block_of(version: u64, place: u64, block: &mut [u8]) {
    for chunk in block.chunks_mut(16) {
        chunk[..8].copy_from_slice(&version.to_le_bytes());
        chunk[8..].copy_from_slice(&place.to_le_bytes());
    }
}

/// Returns a buffer in which `range` is aligned for direct I/O.
fn aligned() -> (Vec<u8>, std::ops::Range<usize>) {
    let buffer = vec![0_u8; 2 * BLOCK];
    let start = buffer.as_ptr().align_offset(BLOCK);
    (buffer, start..start + BLOCK)
}

/// Writes to a device past the cache, reads some of it back, and flushes now and then. Returns the
/// version of each place; the first error ends it.
pub fn on_device(device: &str) -> Load<Result<Vec<u64>, String>> {
    let device = device.to_owned();
    Load::start(move |stop, rounds| {
        let mut versions = vec![0; usize::try_from(PLACES).unwrap()];
        let file = open_direct(&device);
        let (mut buffer, range) = aligned();
        for version in 1.. {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let place = version * 7919 % PLACES;
            let block = &mut buffer[range.clone()];
            block_of(version, place, block);
            let said = |what: &str, error: std::io::Error| format!("{what} {version}: {error}");
            file.write_all_at(block, place * BLOCK as u64)
                .map_err(|error| said("write", error))?;
            versions[usize::try_from(place).unwrap()] = version;
            if version % 64 == 0 {
                file.sync_data().map_err(|error| said("flush", error))?;
            }
            if version % 5 == 0 {
                let old = version * 31 % PLACES;
                file.read_exact_at(block, old * BLOCK as u64)
                    .map_err(|error| said("read", error))?;
                check_block(block, versions[usize::try_from(old).unwrap()], old)?;
            }
            rounds.fetch_add(1, Ordering::SeqCst);
        }
        Ok(versions)
    })
}

fn open_direct(device: &str) -> File {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(device)
        .unwrap()
}

fn check_block(found: &[u8], version: u64, place: u64) -> Result<(), String> {
    let mut wanted = vec![0; BLOCK];
    if version > 0 {
        block_of(version, place, &mut wanted);
    }
    if found == wanted {
        return Ok(());
    }
    let stored = u64::from_le_bytes(found[..8].try_into().unwrap());
    Err(format!("place {place}: {stored} instead of {version}"))
}

/// Asserts that every place of the device has its version.
pub fn check_device(device: &str, versions: &[u64]) {
    let file = open_direct(device);
    let (mut buffer, range) = aligned();
    for (place, version) in (0..).zip(versions) {
        let block = &mut buffer[range.clone()];
        file.read_exact_at(block, place * BLOCK as u64).unwrap();
        check_block(block, *version, place).unwrap();
    }
}

/// Files with their contents.
pub type Files = Vec<(PathBuf, Vec<u8>)>;

/// Creates, renames, reads back and removes files in a folder, each written through to its device.
/// Returns the files' contents; the first error ends it.
pub fn in_folder(folder: &Path) -> Load<Result<Files, String>> {
    let folder = folder.join("load");
    fs::create_dir_all(&folder).unwrap();
    Load::start(move |stop, rounds| {
        let mut files = Files::new();
        for number in 0_u64.. {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let (path, content) =
                one_file(&folder, number).map_err(|error| format!("file {number}: {error}"))?;
            files.push((path, content));
            if files.len() > 40 {
                let (old, content) = files.remove(usize::try_from(number * 7 % 40).unwrap());
                let found =
                    fs::read(&old).map_err(|error| format!("{}: {error}", old.display()))?;
                if found != content {
                    return Err(format!("{} holds something else", old.display()));
                }
                fs::remove_file(&old).map_err(|error| format!("{}: {error}", old.display()))?;
            }
            rounds.fetch_add(1, Ordering::SeqCst);
        }
        Ok(files)
    })
}

fn one_file(folder: &Path, number: u64) -> std::io::Result<(PathBuf, Vec<u8>)> {
    let len = 1000 + usize::try_from(number * 7919 % 60_000).unwrap();
    let content = crate::harness::noise(len, number);
    let (draft, path) = (folder.join("draft"), folder.join(format!("f{number}")));
    let file = File::create(&draft)?;
    file.write_all_at(&content, 0)?;
    file.sync_all()?;
    fs::rename(&draft, &path)?;
    File::open(folder)?.sync_all()?;
    Ok((path, content))
}

/// Asserts that every file holds what was written to it.
pub fn check_files(files: &[(PathBuf, Vec<u8>)]) {
    for (path, content) in files {
        assert!(fs::read(path).unwrap() == *content, "{}", path.display());
    }
}

/// Waits until the load has done more rounds.
pub fn goes_on<T: Send + 'static>(load: &Load<T>, rounds: u64) {
    let before = load.rounds();
    let is_over = || load.thread.as_ref().unwrap().is_finished();
    crate::harness::eventually("more work", || {
        load.rounds() >= before + rounds || is_over()
    });
    assert!(!is_over(), "the load met an error");
}

/// Returns the processes that serve the pool of `bench`, as the daemon reports them.
pub fn serving(bench: &Bench) -> serde_json::Value {
    bench.json(["pool", "status"])["daemon"].clone()
}
