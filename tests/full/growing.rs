//! Pools that grow by themselves, and hosts without the space for it.

use crate::bench::{BLOCK, MIB, block, eventually, expect_sound, fill, name, options, verify};
use cowshed_engine::{CreateOptions, FullOptions, OpenOptions, Pool, Watermark};
use cowshed_format::base::Error;
use cowshed_format::device::{CreateFile, FileDevice, MemoryDevice};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

fn growing(max_size_bytes: u64) -> FullOptions {
    FullOptions {
        max_size_bytes: Some(max_size_bytes),
        ..FullOptions::default()
    }
}

#[test]
fn a_pool_grows_by_need_up_to_its_limit_and_no_further() {
    let device = Arc::new(MemoryDevice::new(4 * MIB));
    Pool::create(&*device, &CreateOptions::default()).unwrap();
    let limit = 24 * MIB + 100;
    let pool = Pool::open(device.clone(), &options(growing(limit))).unwrap();
    assert_eq!(pool.status().unwrap().limit_bytes, 24 * MIB);
    assert_eq!(pool.status().unwrap().low_water, Watermark::Ample);
    let volume = pool.create_volume(&name("v"), 1 << 40).unwrap();
    let took = fill(&volume, 0);
    let status = pool.status().unwrap();
    assert_eq!(status.size_bytes, 24 * MIB);
    assert!(took * BLOCK > 20 * MIB, "{took}");
    assert_eq!(status.low_water, Watermark::Full);
    verify(&volume, 0, took);
    drop((volume, pool));
    let device = Arc::new(MemoryDevice::from_image(device.snapshot_image()));
    let pool = Pool::open(device.clone(), &options(growing(limit))).unwrap();
    verify(&pool.volume("v").unwrap(), 0, took);
    pool.close().unwrap();
    expect_sound(&*device);
}

#[test]
fn a_pool_in_a_file_grows_before_writers_need_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cowshed-pool");
    let device = FileDevice::create(&path, 16 * MIB, CreateFile::default()).unwrap();
    Pool::create(&device, &CreateOptions::default()).unwrap();
    let open = OpenOptions {
        full: growing(32 * MIB),
        ..OpenOptions::default()
    };
    let pool = Pool::open(Arc::new(device), &open).unwrap();
    let volume = pool.create_volume(&name("v"), 1 << 30).unwrap();
    let mut index = 0;
    while pool.status().unwrap().free_bytes > MIB {
        volume.write_at(&block(index), index * BLOCK).unwrap();
        index += 1;
    }
    eventually("a larger pool", || {
        pool.status().unwrap().size_bytes == 32 * MIB
    });
    assert_eq!(fs::metadata(&path).unwrap().len(), 32 * MIB);
    verify(&volume, 0, index);
    pool.close().unwrap();
}

/// A small file system in memory; unmounted on drop.
struct Host(PathBuf);

impl Host {
    fn mount(at: &Path, bytes: u64) -> Self {
        fs::create_dir(at).unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "cowshed-host"])
            .arg(at)
            .status();
        assert!(mounted.unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_host_refuses_growth_and_the_pool_goes_on() {
    let folder = tempfile::Builder::new()
        .prefix("cowshed-full-")
        .tempdir()
        .unwrap();
    let host = Host::mount(&folder.path().join("host"), 16 * MIB);
    let path = host.0.join("pool");
    let file = CreateFile {
        preallocate: true,
        ..CreateFile::default()
    };
    let device = FileDevice::create(&path, 8 * MIB, file).unwrap();
    Pool::create(&device, &CreateOptions::default()).unwrap();
    let pool = Pool::open(Arc::new(device), &options(growing(64 * MIB))).unwrap();
    let status = pool.status().unwrap();
    // The pool has 8 of its 64 MiB; of the host's other 8 MiB, 2 are reserved for a full host and 6
    // are left.
    assert_eq!(status.host_free_bytes, Some(6 * MIB));
    assert_eq!(status.host_shortage_bytes(), Some(48 * MIB));
    let ballast = host.0.join("ballast");
    fs::write(&ballast, vec![1; 6 << 20]).unwrap();
    let refused = pool.grow(32 * MIB);
    assert!(
        matches!(&refused, Err(error) if error.errno() == libc::ENOSPC),
        "{refused:?}"
    );
    let volume = pool.create_volume(&name("v"), 1 << 30).unwrap();
    // By itself it neither grows nor stops.
    let took = fill(&volume, 0);
    assert!(took > 1000, "{took}");
    assert_eq!(pool.status().unwrap().size_bytes, 8 * MIB);
    volume.discard(0, MIB).unwrap();
    volume.write_at(&block(0), 0).unwrap();
    pool.checkpoint().unwrap();
    fs::remove_file(&ballast).unwrap();
    pool.grow(11 * MIB).unwrap();
    let more = fill(&pool.create_volume(&name("w"), 1 << 30).unwrap(), 9);
    assert!(more > 700, "{more}");
    pool.close().unwrap();
    drop((volume, pool));
    expect_sound(&FileDevice::open(&path, Default::default()).unwrap());
}

#[test]
fn growth_to_less_than_the_pool_has_is_refused() {
    let device = Arc::new(MemoryDevice::new(8 * MIB));
    Pool::create(&*device, &CreateOptions::default()).unwrap();
    let pool = Pool::open(device, &options(growing(4 * MIB))).unwrap();
    assert!(matches!(pool.grow(4 * MIB), Err(Error::InvalidSize { .. })));
    assert_eq!(pool.status().unwrap().limit_bytes, 8 * MIB);
}
