//! Which superblocks of a pool that is being opened are damaged: the next checkpoints write them anew.

use cowshed_format::Superblock;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr};
use cowshed_format::device::Device;

/// The contents of a superblock's place.
enum Content {
    Valid(Box<Superblock>),
    /// Zeros: never written.
    Blank,
    Damaged,
}

fn read(device: &dyn Device, addr: BlockAddr) -> Content {
    let mut bytes = vec![0; BLOCK_BYTES];
    if device.read_at(&mut bytes, addr.offset_bytes()).is_err() {
        return Content::Damaged;
    }
    match Superblock::decode(&bytes) {
        Ok(found) => Content::Valid(Box::new(found)),
        Err(_) if bytes.iter().all(|byte| *byte == 0) => Content::Blank,
        Err(_) => Content::Damaged,
    }
}

/// Returns how many of the four places are damaged in a pool whose newest superblock is `newest`, of
/// `slot`. The older slot may never have been written, and a copy not since the pool grew.
pub(super) fn damaged(device: &dyn Device, newest: &Superblock, slot: u8) -> u64 {
    let [primary, copy] = newest.layout.superblock_slots(slot);
    let mut count = u64::from(!matches!(read(device, primary), Content::Valid(_)));
    count += u64::from(matches!(read(device, copy), Content::Damaged));
    let [primary, copy] = newest.layout.superblock_slots(slot ^ 1);
    let has_copy = match read(device, primary) {
        Content::Valid(found) => found.layout == newest.layout,
        Content::Blank => false,
        Content::Damaged => {
            count += 1;
            true
        }
    };
    if has_copy && matches!(read(device, copy), Content::Damaged) {
        count += 1;
    }
    count
}
