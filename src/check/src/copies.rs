//! Reading blocks of which there may be two copies.

use super::write::write_at;
use cowshed_format::Pointer;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, CorruptKind, Error, Result};
use cowshed_format::device::Device;

/// A damaged copy of a block whose other copy is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DamagedCopy {
    pub(super) pointer: Pointer,
    pub(super) addr: BlockAddr,
}

/// The bytes of a block, and whether a copy of it is damaged.
pub(super) struct Copies<T> {
    pub(super) found: T,
    pub(super) damaged: Option<(DamagedCopy, Error)>,
}

/// Reads every copy of the block that `pointer` leads to, and returns what `parse` makes of the
/// first good one.
///
/// # Errors
/// If no copy is good: `Io` where a copy cannot be read, which may be readable another time;
/// otherwise the first one's.
pub(super) fn read_all<T>(
    device: &dyn Device,
    pointer: Pointer,
    groups_start: u64,
    parse: impl Fn(&[u8; BLOCK_BYTES]) -> Result<T>,
) -> Result<Copies<T>> {
    let (mut found, mut damaged) = (None, None);
    for addr in pointer.places(groups_start) {
        match read_one(device, pointer, addr).and_then(|bytes| parse(&bytes)) {
            Ok(parsed) => found = found.or(Some(parsed)),
            Err(error) => {
                if damaged.is_none() || matches!(error, Error::Io { .. }) {
                    damaged = Some((DamagedCopy { pointer, addr }, error));
                }
            }
        }
    }
    match (found, damaged) {
        (Some(found), damaged) => Ok(Copies { found, damaged }),
        (None, Some((_, error))) => Err(error),
        (None, None) => Err(CorruptKind::PointerRange(pointer.addr()).into()),
    }
}

/// Returns what `parse` makes of the first good copy.
///
/// # Errors
/// The first copy's, if no copy is good.
pub(super) fn read<T>(
    device: &dyn Device,
    pointer: Pointer,
    groups_start: u64,
    parse: impl Fn(&[u8; BLOCK_BYTES]) -> Result<T>,
) -> Result<T> {
    let mut first = None;
    for addr in pointer.places(groups_start) {
        match read_one(device, pointer, addr).and_then(|bytes| parse(&bytes)) {
            Ok(parsed) => return Ok(parsed),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| CorruptKind::PointerRange(pointer.addr()).into()))
}

/// Reads one copy, and verifies its checksum.
///
/// # Errors
/// `Io`; `NodeChecksum`.
pub(super) fn read_one(
    device: &dyn Device,
    pointer: Pointer,
    addr: BlockAddr,
) -> Result<Box<[u8; BLOCK_BYTES]>> {
    let mut bytes = Box::new([0; BLOCK_BYTES]);
    let is_right = |bytes: &[u8]| crc32(bytes) == pointer.crc();
    let offset_bytes = addr.offset_bytes();
    if device.read_accepted(&mut bytes[..], offset_bytes, false, &is_right)? {
        Ok(bytes)
    } else {
        Err(CorruptKind::NodeChecksum(addr).into())
    }
}

/// Writes a damaged copy anew from the good one.
///
/// # Errors
/// `Io`; `NodeChecksum` if the good copy is not good any longer.
pub(super) fn restore(device: &dyn Device, copy: DamagedCopy, groups_start: u64) -> Result<()> {
    let bytes = read(device, copy.pointer, groups_start, |bytes| {
        Ok(Box::new(*bytes))
    })?;
    write_at(device, &bytes[..], copy.addr.offset_bytes())
}
