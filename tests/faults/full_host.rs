//! A sparse pool whose host is full: writers are told so, nothing acknowledged is lost, and once
//! the host has room, the pool works again without a restart.

use cowshed::base::{Error, Name};
use cowshed::check::{CheckOptions, check};
use cowshed::device::{FileDevice, FileOptions};
use cowshed::pool::{OpenOptions, Pool, PoolState, Volume};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// Sparse, and much larger than its host.
const POOL_BYTES: u64 = 512 * MIB;
const HOST_BYTES: u64 = 40 * MIB;

fn host(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

/// A small file system for a pool, which goes away with this, also when the test fails.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new(kind: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cowshed-full-")
            .tempdir()
            .unwrap();
        let host_of = Self { folder };
        let at = host_of.path("mounted");
        fs::create_dir(&at).unwrap();
        let at = at.to_str().unwrap();
        if kind == "tmpfs" {
            host(
                "mount",
                &[
                    "-t",
                    "tmpfs",
                    "-o",
                    &format!("size={HOST_BYTES}"),
                    "tmpfs",
                    at,
                ],
            );
        } else {
            let image = host_of.path("image");
            File::create(&image).unwrap().set_len(HOST_BYTES).unwrap();
            let image = image.to_str().unwrap();
            host("mke2fs", &["-q", "-F", "-t", "ext4", "-m", "0", image]);
            host("mount", &["-o", "loop", image, at]);
        }
        host_of
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pool(&self) -> PathBuf {
        self.path("mounted").join("pool")
    }

    /// Takes room that `free` gives back.
    fn ballast(&self, len_bytes: usize) {
        fs::write(self.path("mounted").join("ballast"), vec![7; len_bytes]).unwrap();
    }

    /// Takes the room that is left, but for less than a block.
    fn fill(&self) {
        let mut file = File::create(self.path("mounted").join("filler")).unwrap();
        for len in [64 << 10, 4096] {
            while file
                .write_all(&vec![7; len])
                .and_then(|()| file.sync_data())
                .is_ok()
            {}
        }
    }

    fn free(&self) {
        for name in ["ballast", "filler"] {
            fs::remove_file(self.path("mounted").join(name)).unwrap();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let at = self.path("mounted");
        let unmounted = Command::new("umount").arg(&at).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            let _ = Command::new("umount").arg("--lazy").arg(&at).status();
        }
    }
}

fn open(path: &Path, background: bool) -> Pool {
    let device = FileDevice::open(path, FileOptions::default()).unwrap();
    let options = OpenOptions {
        cache_bytes: 8 * MIB,
        background,
        ..OpenOptions::default()
    };
    Pool::open(Arc::new(device), &options).unwrap()
}

fn block(seed: u64) -> Vec<u8> {
    (seed | 1 << 40).to_le_bytes().repeat(512)
}

/// Writes blocks from `first` on until the host is full; answers the first that was refused.
fn write_until_full(volume: &Volume, first: u64) -> u64 {
    for number in first.. {
        if let Err(error) = volume.write_at(&block(number), number * BLOCK) {
            assert_eq!(error.errno(), libc::ENOSPC, "{error}");
            return number;
        }
    }
    unreachable!("the host ends before the numbers do")
}

fn verify(volume: &Volume, blocks: u64) {
    let mut found = vec![0; 4096];
    for number in 0..blocks {
        volume.read_at(&mut found, number * BLOCK).unwrap();
        assert!(found == block(number), "block {number}");
    }
}

fn assert_clean(path: &Path) {
    let device = FileDevice::open(path, FileOptions::default()).unwrap();
    let options = CheckOptions {
        deep: true,
        repair: false,
    };
    let report = check(&device, options, &mut |_| {}).unwrap();
    assert!(report.clean(), "{:?}", report.findings);
}

fn full_host(kind: &str, background: bool) {
    let host = Host::new(kind);
    let device = FileDevice::create(host.pool(), POOL_BYTES, Default::default()).unwrap();
    let create = cowshed::pool::CreateOptions {
        log_bytes: Some(4 * MIB),
        force: false,
    };
    Pool::create(&device, &create).unwrap();
    drop(device);
    host.ballast(4 << 20);
    let mut pool = open(&host.pool(), background);
    let spare = pool
        .create_volume(&Name::new("spare").unwrap(), MIB)
        .unwrap();
    spare.write_at(&[5; 300_000], 0).unwrap();
    let volume = pool
        .create_volume(&Name::new("v").unwrap(), 1 << 30)
        .unwrap();
    let written = write_until_full(&volume, 0);
    assert!(written > 100, "{kind}: only {written} blocks fit");
    host.fill();
    pool.flush().unwrap();
    // A checkpoint has no room for its nodes, is put off, and harms nothing.
    for _ in 0..3 {
        let error = pool.checkpoint().unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC, "{error}");
        assert!(!matches!(error, Error::Latched { .. }));
        assert_eq!(pool.status().unwrap().state, PoolState::Open);
    }
    let error = volume.write_at(&block(1), 900 * MIB).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC, "{error}");
    verify(&volume, written);
    pool.remove(&spare).unwrap();
    pool.flush().unwrap();
    // Reopening on the full host, after a stop without closing.
    drop((spare, volume, pool));
    pool = open(&host.pool(), background);
    let volume = pool.volume("v").unwrap();
    verify(&volume, written);
    assert!(
        pool.volume("spare").is_err(),
        "its removal was acknowledged"
    );
    let refused = pool.create_volume(&Name::new("w").unwrap(), MIB);
    assert_eq!(refused.err().unwrap().errno(), libc::ENOSPC);
    // Room on the host is room in the pool, without a restart.
    host.free();
    for number in written..written + 40 {
        volume.write_at(&block(number), number * BLOCK).unwrap();
    }
    pool.checkpoint().unwrap();
    verify(&volume, written + 40);
    pool.close().unwrap();
    drop((volume, pool));
    assert_clean(&host.pool());
    verify(
        &open(&host.pool(), background).volume("v").unwrap(),
        written + 40,
    );
}

#[test]
fn a_pool_on_a_full_tmpfs_works_again_once_there_is_room() {
    full_host("tmpfs", false);
    full_host("tmpfs", true);
}

#[test]
fn a_pool_on_a_full_ext4_works_again_once_there_is_room() {
    full_host("ext4", false);
    full_host("ext4", true);
}
