//! Scrubs of devices whose medium has rotted while the host still has the right bytes in memory.

use super::*;
use cowshed_format::Pointer;
use cowshed_format::base::{BLOCK_BYTES, Result};
use cowshed_format::device::MirrorDevice;
use cowshed_format::device::mirror::Found;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// A device and what its host has in memory, which reads get.
#[derive(Clone)]
struct Hosted {
    memory: Arc<MemoryDevice>,
    medium: Arc<MemoryDevice>,
    /// The error of reads of the medium; 0 if they succeed.
    errno: Arc<AtomicI32>,
    refuses_writes: Arc<AtomicBool>,
}

impl Hosted {
    fn new() -> Self {
        let device = || Arc::new(MemoryDevice::new(64 * MIB));
        Self {
            memory: device(),
            medium: device(),
            errno: Arc::default(),
            refuses_writes: Arc::default(),
        }
    }

    fn rot(&self, (addr, _): &(u64, Vec<u8>)) {
        self.medium.write_at(&[0; BLOCK_BYTES], *addr).unwrap();
    }

    fn both(&self, change: impl Fn(&MemoryDevice) -> Result<()>) -> Result<()> {
        change(&self.medium).and(change(&self.memory))
    }

    fn has_on_medium(&self, addr: u64, bytes: &[u8]) -> bool {
        let mut found = vec![0; bytes.len()];
        self.medium.read_at(&mut found, addr).unwrap();
        found == bytes
    }
}

impl Device for Hosted {
    fn len_bytes(&self) -> u64 {
        self.memory.len_bytes()
    }
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        self.memory.read_at(buf, offset_bytes)
    }
    fn read_cached(&self, buf: &mut [u8], offset_bytes: u64) -> bool {
        self.memory.read_at(buf, offset_bytes).is_ok()
    }
    fn medium(&self) -> Option<Box<dyn Device>> {
        Some(Box::new(Direct(self.clone())))
    }
    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        if self.refuses_writes.load(Ordering::Relaxed) {
            return Err(io_error("write", libc::EIO));
        }
        self.both(|device| device.write_at(buf, offset_bytes))
    }
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset_bytes: u64) -> Result<()> {
        self.both(|device| device.write_vectored_at(bufs, offset_bytes))
    }
    fn flush(&self) -> Result<()> {
        self.both(|device| device.flush())
    }
    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.both(|device| device.discard(offset_bytes, len_bytes))
    }
    fn grow(&self, len_bytes: u64) -> Result<()> {
        self.both(|device| device.grow(len_bytes))
    }
    fn map_log(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        self.both(|device| device.map_log(offset_bytes, len_bytes))
    }
    fn store_log(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        self.both(|device| device.store_log(offset_bytes, bytes))
    }
    fn host_bytes(&self) -> Result<u64> {
        self.memory.host_bytes()
    }
}

fn io_error(action: &'static str, errno: i32) -> Error {
    Error::io(action, io::Error::from_raw_os_error(errno))
}

/// Reads the medium.
struct Direct(Hosted);

impl Device for Direct {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        match self.0.errno.load(Ordering::Relaxed) {
            0 => self.0.medium.read_at(buf, offset_bytes),
            errno => Err(io_error("read", errno)),
        }
    }
    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        Err(Error::ReadOnly)
    }
    fn write_vectored_at(&self, _: &[IoSlice<'_>], _: u64) -> Result<()> {
        Err(Error::ReadOnly)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> Result<()> {
        Err(Error::ReadOnly)
    }
    fn grow(&self, _: u64) -> Result<()> {
        Err(Error::ReadOnly)
    }
    fn map_log(&self, _: u64, _: u64) -> Result<()> {
        Err(Error::ReadOnly)
    }
    fn store_log(&self, _: u64, _: &[u8]) -> Result<()> {
        Err(Error::ReadOnly)
    }
    fn host_bytes(&self) -> Result<u64> {
        self.0.host_bytes()
    }
}

/// Writes a volume, some of it in sequence and some in single blocks that lie apart.
fn filled(pool: &Pool) -> Volume {
    let volume = pool.create_volume(&name("v"), 8 * MIB).unwrap();
    volume.write_at(&pattern(1, 700 * BLOCK_BYTES), 0).unwrap();
    for block in (0..100).rev() {
        let at = (1000 + 3 * block) * BLOCK_BYTES as u64;
        let bytes = pattern(block as u8, BLOCK_BYTES);
        volume.write_at(&bytes, at).unwrap();
    }
    pool.checkpoint().unwrap();
    volume
}

/// Returns where a block lies and what it holds.
fn block_of(pool: &Pool, volume: &Volume, block: u64) -> (u64, Vec<u8>) {
    let mut pointer = [Pointer::HOLE];
    let tree = &volume.core.tree;
    tree.read(&pool.shared.store, block, &mut pointer).unwrap();
    let mut bytes = vec![0; BLOCK_BYTES];
    volume
        .read_at(&mut bytes, block * BLOCK_BYTES as u64)
        .unwrap();
    (pointer[0].addr().offset_bytes(), bytes)
}

const ROTTEN: [u64; 4] = [0, 300, 699, 1000 + 3 * 50];

#[test]
fn a_block_that_the_host_has_in_memory_is_written_anew_on_the_medium() {
    let device = Hosted::new();
    Pool::create(&device, &CreateOptions::default()).unwrap();
    let pool = Pool::open(Arc::new(device.clone()), &options()).unwrap();
    let volume = filled(&pool);
    let blocks = ROTTEN.map(|block| block_of(&pool, &volume, block));
    blocks.iter().for_each(|block| device.rot(block));
    let report = pool.scrub(&mut |_, _| true).unwrap();
    assert!(report.finished && report.bad.is_empty(), "{report:?}");
    assert_eq!(report.healed, ROTTEN.len() as u64);
    assert!(
        blocks
            .iter()
            .all(|(at, bytes)| device.has_on_medium(*at, bytes))
    );
    assert_eq!(pool.scrub(&mut |_, _| true).unwrap().healed, 0);

    // What is not right anywhere is reported, and stays.
    let (addr, _) = blocks[1];
    device.write_at(&[1; BLOCK_BYTES], addr).unwrap();
    let report = pool.scrub(&mut |_, _| true).unwrap();
    let offsets: Vec<_> = report.bad.iter().map(|fault| fault.offset_bytes).collect();
    assert_eq!(offsets, [ROTTEN[1] * BLOCK_BYTES as u64]);
    assert_eq!(report.healed, 0);
    assert!(device.has_on_medium(addr, &[1; BLOCK_BYTES]));
}

#[test]
fn a_block_that_was_written_meanwhile_is_not_written_over() {
    let device = Hosted::new();
    Pool::create(&device, &CreateOptions::default()).unwrap();
    let pool = Pool::open(Arc::new(device.clone()), &options()).unwrap();
    let volume = filled(&pool);
    // The last checkpoint does not have them: their places may be given to others at any moment.
    let fresh = pattern(9, BLOCK_BYTES);
    volume.write_at(&fresh, 0).unwrap();
    let (addr, _) = block_of(&pool, &volume, 0);
    device.medium.write_at(&[0; BLOCK_BYTES], addr).unwrap();
    let report = pool.scrub(&mut |_, _| true).unwrap();
    assert!(report.bad.is_empty(), "{report:?}");
    assert_eq!(report.healed, 0);
    pool.checkpoint().unwrap();
    assert_eq!(pool.scrub(&mut |_, _| true).unwrap().healed, 1);
    assert!(device.has_on_medium(addr, &fresh));
}

/// Opens a new pool on several devices.
fn mirrored(devices: &[Hosted]) -> Pool {
    let found = || {
        let found = |(number, device): (usize, &Hosted)| Found {
            path: PathBuf::from(format!("/side/{number}")),
            device: Arc::new(device.clone()),
        };
        devices.iter().enumerate().map(found).collect::<Vec<_>>()
    };
    let mirror = MirrorDevice::new(found()).unwrap();
    Pool::create(&mirror, &CreateOptions::default()).unwrap();
    let mirror = MirrorDevice::assemble(found()).unwrap();
    Pool::open(Arc::new(mirror), &options()).unwrap()
}

#[test]
fn a_side_gets_back_what_its_host_has_in_memory_or_another_side_has() {
    let devices = [Hosted::new(), Hosted::new()];
    let pool = mirrored(&devices);
    let volume = filled(&pool);
    let blocks = ROTTEN.map(|block| block_of(&pool, &volume, block));
    for (number, block) in blocks.iter().enumerate() {
        let device = &devices[number % 2];
        if number < 2 {
            device.rot(block);
        } else {
            device.write_at(&[0; BLOCK_BYTES], block.0).unwrap();
        }
    }
    let report = pool.scrub(&mut |_, _| true).unwrap();
    assert!(report.bad.is_empty(), "{report:?}");
    assert_eq!(report.healed, ROTTEN.len() as u64);
    for device in &devices {
        assert!(
            blocks
                .iter()
                .all(|(at, bytes)| device.has_on_medium(*at, bytes))
        );
    }
}

#[test]
fn a_host_without_direct_reads_has_nothing_written_anew() {
    for sides in 1..=2 {
        let devices: Vec<_> = (0..sides).map(|_| Hosted::new()).collect();
        let pool = mirrored(&devices);
        let volume = filled(&pool);
        let block = block_of(&pool, &volume, ROTTEN[0]);
        devices[0].rot(&block);
        for errno in [libc::EINVAL, libc::EOPNOTSUPP, libc::ENOMEM] {
            devices[0].errno.store(errno, Ordering::Relaxed);
            let report = pool.scrub(&mut |_, _| true).unwrap();
            assert!(report.finished && report.bad.is_empty(), "{report:?}");
            assert_eq!(report.healed, 0);
            assert!(devices[0].has_on_medium(block.0, &[0; BLOCK_BYTES]));
        }
    }
}

#[test]
fn a_block_that_cannot_be_written_anew_is_reported() {
    let device = Hosted::new();
    Pool::create(&device, &CreateOptions::default()).unwrap();
    let single = Pool::open(Arc::new(device.clone()), &options()).unwrap();
    let sides = [Hosted::new(), Hosted::new()];
    let mirror = mirrored(&sides);
    for (pool, device, kind) in [
        (single, &device, ScrubFaultKind::Data),
        (mirror, &sides[0], ScrubFaultKind::Copy),
    ] {
        let volume = filled(&pool);
        let block = block_of(&pool, &volume, ROTTEN[1]);
        device.rot(&block);
        device.refuses_writes.store(true, Ordering::Relaxed);
        let mut scrub = |_, _| true;
        let report = pool.scrub(&mut scrub);
        device.refuses_writes.store(false, Ordering::Relaxed);
        let report = report.unwrap();
        let bad: Vec<_> = report
            .bad
            .iter()
            .map(|it| (it.kind, it.offset_bytes))
            .collect();
        assert_eq!(bad, [(kind, ROTTEN[1] * BLOCK_BYTES as u64)]);
        assert_eq!(report.healed, 0);
    }
}
