//! The one way in which a repair or an upgrade writes.

use cowshed_format::base::Result;
use cowshed_format::device::Device;

/// Writes blocks. On a mirror, the labels say before the first one that the sides that are behind
/// lack everything: what is written anew keeps its birth, which would not tell that they lack it.
///
/// # Errors
/// `Io`; nothing is written if the labels cannot be.
pub(super) fn write_at(device: &dyn Device, bytes: &[u8], offset_bytes: u64) -> Result<()> {
    if let Some(mirror) = device.mirror() {
        mirror.outdate()?;
    }
    device.write_at(bytes, offset_bytes)
}
