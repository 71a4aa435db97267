//! Reading: look up the pointers, read, verify. No lock is held at any point.

use super::handle::Volume;
use super::shared::Shared;
use super::volume::VolumeCore;
use cowshed_format::Pointer;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::sync::atomic::Ordering;
use cowshed_format::base::{BLOCK_BYTES, BlockIndex, CorruptKind, Error, Result};
use cowshed_format::device::Device;

/// Number of blocks that are looked up and read at a time (1 MiB).
pub(super) const BATCH_BLOCKS: usize = 256;

impl Volume {
    /// Fills `buf` from `offset_bytes`, any offset and length inside the volume's size. Parts that
    /// were never written or were discarded read as zeros.
    ///
    /// # Errors
    /// `OutOfRange`; `NoSuchVolume` when it was removed, even during the call; `Corrupt` when a
    /// block or a map node does not have its checksum; `Io`.
    pub fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        self.check_range(offset_bytes, buf.len() as u64)?;
        let block = BLOCK_BYTES as u64;
        let (mut rest, mut at) = (buf, offset_bytes);
        while !rest.is_empty() {
            let within = usize::try_from(at % block).expect("under 4096");
            let len = if within != 0 || rest.len() < BLOCK_BYTES {
                let len = rest.len().min(BLOCK_BYTES - within);
                let mut bytes = [0; BLOCK_BYTES];
                self.look(|| read_block(&self.shared, &self.core, at / block, &mut bytes))?;
                rest[..len].copy_from_slice(&bytes[within..within + len]);
                len
            } else {
                let len = (rest.len() & !(BLOCK_BYTES - 1)).min(BATCH_BLOCKS * BLOCK_BYTES);
                let part = &mut rest[..len];
                self.look(|| read_blocks(&self.shared, &self.core, at / block, part))?;
                len
            };
            rest = &mut rest[len..];
            at += len as u64;
        }
        Ok(())
    }
}

/// Reads whole blocks, at most `BATCH_BLOCKS`.
pub(super) fn read_blocks(
    shared: &Shared,
    core: &VolumeCore,
    first: u64,
    buf: &mut [u8],
) -> Result<()> {
    let (blocks, _) = buf.as_chunks_mut::<BLOCK_BYTES>();
    if let [block] = blocks {
        return read_block(shared, core, first, block).map(drop);
    }
    let mut pointers = [Pointer::HOLE; BATCH_BLOCKS];
    let pointers = &mut pointers[..blocks.len()];
    core.tree.read(&shared.store, first, pointers)?;
    let mut next = 0;
    while next < blocks.len() {
        let run = run_length(&pointers[next..]);
        let (part, found) = (&mut blocks[next..next + run], &pointers[next..next + run]);
        if found[0].is_hole() {
            part.as_flattened_mut().fill(0);
        } else if found[0].is_lost() {
            return Err(lost(core, first + next as u64));
        } else {
            shared
                .device
                .read_at(part.as_flattened_mut(), found[0].addr().offset_bytes())?;
            for (index, (block, pointer)) in part.iter_mut().zip(found).enumerate() {
                if crc32(block) != pointer.crc() {
                    let number = first + (next + index) as u64;
                    read_doubted(shared, core, number, block, *pointer)?;
                }
            }
            forget_kept(shared, core, found[0], run);
        }
        next += run;
    }
    Ok(())
}

/// Returns how many pointers from the first on are holes, or lead to adjacent blocks.
fn run_length(pointers: &[Pointer]) -> usize {
    let first = pointers[0];
    let continues = |(at, pointer): (u64, &Pointer)| {
        if first.is_hole() {
            pointer.is_hole()
        } else {
            !pointer.is_hole() && pointer.addr().0 == first.addr().0 + at
        }
    };
    (0..)
        .zip(pointers)
        .take_while(|pair| continues(*pair))
        .count()
}

/// Reads one block; returns the pointer that led to it.
pub(super) fn read_block(
    shared: &Shared,
    core: &VolumeCore,
    block: u64,
    buf: &mut [u8],
) -> Result<Pointer> {
    let mut pointer = [Pointer::HOLE];
    core.tree.read(&shared.store, block, &mut pointer)?;
    let pointer = pointer[0];
    if pointer.is_hole() {
        buf.fill(0);
        return Ok(pointer);
    }
    if pointer.is_lost() {
        return Err(lost(core, block));
    }
    shared.device.read_at(buf, pointer.addr().offset_bytes())?;
    if crc32(buf) == pointer.crc() {
        forget_kept(shared, core, pointer, 1);
        return Ok(pointer);
    }
    read_doubted(shared, core, block, buf, pointer)
}

/// Lets the host forget blocks that were just read, if the volume's readers keep them.
fn forget_kept(shared: &Shared, core: &VolumeCore, first: Pointer, blocks: usize) {
    if core.keepers.load(Ordering::Relaxed) > 0 {
        let len_bytes = (blocks * BLOCK_BYTES) as u64;
        shared
            .device
            .forget_read(first.addr().offset_bytes(), len_bytes);
    }
}

fn lost(core: &VolumeCore, block: u64) -> Error {
    let (volume, block) = (core.id, BlockIndex(block));
    CorruptKind::Lost { volume, block }.into()
}

/// Reads a block from the device, or from the sides of a mirror in turn; returns true if it has the
/// pointer's checksum.
fn read_certain(shared: &Shared, buf: &mut [u8], pointer: Pointer) -> Result<bool> {
    let offset_bytes = pointer.addr().offset_bytes();
    let is_right = |bytes: &[u8]| crc32(bytes) == pointer.crc();
    shared
        .device
        .read_accepted(buf, offset_bytes, false, &is_right)
}

/// Reads a block again whose bytes did not match. If it has moved meanwhile, its old place may hold
/// anything; if not, one more attempt decides whether it is damaged.
#[cold]
fn read_doubted(
    shared: &Shared,
    core: &VolumeCore,
    block: u64,
    buf: &mut [u8],
    doubted: Pointer,
) -> Result<Pointer> {
    let mut last = doubted;
    loop {
        let mut now = [Pointer::HOLE];
        core.tree.read(&shared.store, block, &mut now)?;
        let now = now[0];
        if now.is_hole() {
            buf.fill(0);
            return Ok(now);
        }
        if now.is_lost() {
            return Err(lost(core, block));
        }
        if read_certain(shared, buf, now)? {
            return Ok(now);
        }
        if now == last {
            let (volume, block, addr) = (core.id, BlockIndex(block), now.addr());
            return Err(CorruptKind::DataChecksum {
                volume,
                block,
                addr,
            }
            .into());
        }
        last = now;
    }
}
