//! Tests of the export against the real kernel: FUSE, loop devices, ext4. They need root.

mod caching;
mod devices;
pub(crate) mod fake;
mod files;
mod rings;
mod stale;

use super::{Export, ExportOptions, Transport};
use cowshed_sys::mount::{self, MountFlags};
use fake::{FakePool, FakeVolume};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// The variable that makes all tests use rings if it is `io-uring`.
const ALL_OVER: &str = "COWSHED_TEST_FUSE";

fn all_over_rings() -> bool {
    std::env::var_os(ALL_OVER).is_some_and(|how| how == "io-uring")
}

/// Turns FUSE over io_uring on and leaves it on, as other tests may be using it. Returns `false`,
/// with a message, if the kernel does not know it.
fn enable_rings() -> bool {
    let enabled = std::fs::write("/sys/module/fuse/parameters/enable_uring", "Y").is_ok();
    if !enabled {
        println!("skipped: no FUSE over io_uring in this kernel");
    }
    enabled
}

/// An export of a fake pool. Dropping it removes its mounts and attachments.
struct Fixture {
    // Dropped first: the directory cannot be removed under a mount.
    export: Export,
    pool: Arc<FakePool>,
    dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::with(ExportOptions::default())
    }

    fn with(mut options: ExportOptions) -> Self {
        if all_over_rings() {
            assert!(
                enable_rings(),
                "{ALL_OVER} asks for what the kernel has not"
            );
            options.transport = Transport::IoUring;
        }
        let dir = TempDir::with_prefix("cowshed-export-").unwrap();
        let pool = FakePool::new();
        let export = Export::over(pool.clone(), &dir.path().join("volumes"), options).unwrap();
        Self { export, pool, dir }
    }

    /// Returns a directory at which a test can mount something else.
    fn place(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }
}

/// An ext4 mounted by a test.
struct Ext4(PathBuf);

impl Ext4 {
    fn mount(device: &Path, target: PathBuf) -> Self {
        mount::mount(device.as_os_str(), &target, "ext4", MountFlags::empty(), "").unwrap();
        Self(target)
    }

    fn unmount(self) {
        mount::unmount(&self.0).unwrap();
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        if mount::mount_at(&self.0).is_ok_and(|entry| entry.is_some()) {
            let _ = mount::unmount_lazy(&self.0);
        }
    }
}

/// A process that a test started.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command, which must succeed, and returns its output.
fn run(program: &str, arguments: &[&Path]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Memory that is aligned to a page, as O_DIRECT requires.
struct Page {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Page {
    const ALIGN: usize = 4096;

    fn new(len: usize) -> Self {
        let memory = vec![0; len + Self::ALIGN];
        let start = memory.as_ptr().align_offset(Self::ALIGN);
        Self { memory, start, len }
    }
}

impl Deref for Page {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Page {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Returns bytes that differ at each offset and for each seed.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    use rand::{RngCore, SeedableRng};
    let mut bytes = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// As many writers write a block each to `file`, whose `volume` has no room; one write after the
/// other gets room while `other`, which the writers do not have open, is read and punched through
/// the same mount. (The kernel lets nobody punch a file that is being written to.)
fn write_while_others_make_room(volume: &FakeVolume, file: &File, other: &File, writers: u64) {
    let whole = pattern(3, usize::try_from(writers).unwrap() * 4096);
    other.write_all_at(&whole, 0).unwrap();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..writers)
            .map(|index| scope.spawn(move || file.write_all_at(&[2; 4096], index * 4096)))
            .collect();
        for (block, index) in whole.chunks(4096).zip(0..) {
            let mut found = [0; 4096];
            other.read_exact_at(&mut found, index * 4096).unwrap();
            assert_eq!(found, *block);
            let at = i64::try_from(index * 4096).unwrap();
            let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(other, mode, at, 4096).unwrap();
            volume.blocks_max.store(index + 1, SeqCst);
        }
        for writer in writers {
            writer.join().unwrap().unwrap();
        }
    });
    assert_eq!(volume.bytes(0, whole.len()), vec![2; whole.len()]);
}
