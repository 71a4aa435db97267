//! Making an empty pool.

use super::handle::Pool;
use super::info::CreateOptions;
use super::transaction::now_ns;
use cowshed_format::base::{BLOCK_BYTES, Error, Generation, MirrorError, Result, Sequence};
use cowshed_format::device::{Device, MirrorDevice};
use cowshed_format::side::{SLOTS, label_places};
use cowshed_format::{Layout, Pointer, Superblock, superblock};
use rand::RngCore;

/// Number of bytes of a device that are examined to see whether it holds data.
const LOOK_BYTES: u64 = 1 << 20;

impl Pool {
    /// Makes an empty pool of the device's length. Writes only the superblocks, so that a sparse
    /// file stays sparse.
    ///
    /// # Errors
    /// `DeviceNotEmpty` when the device holds data, unless `options.force`; `InvalidSize`; `Io`.
    pub fn create(device: &dyn Device, options: &CreateOptions) -> Result<()> {
        let len_bytes = device.len_bytes();
        let log_bytes = options
            .log_bytes
            .unwrap_or_else(|| Layout::default_log_bytes(len_bytes));
        let block = BLOCK_BYTES as u64;
        let layout = Layout::new(len_bytes / block, log_bytes.div_ceil(block))?;
        if !options.force {
            match device.mirror() {
                None => refuse_unless_empty(device, len_bytes)?,
                Some(mirror) => mirror
                    .open_sides()
                    .iter()
                    .try_for_each(|side| refuse_unless_empty(side.device(), len_bytes))?,
            }
        }
        let mut superblock = first_superblock(layout, options.copies_for(len_bytes));
        for slot in [0, 1] {
            for addr in layout.superblock_slots(slot) {
                device.write_at(&[0; BLOCK_BYTES], addr.offset_bytes())?;
            }
        }
        device.map_log(layout.log_offset_bytes(), layout.log_bytes())?;
        wipe_labels(device)?;
        device.flush()?;
        if let Some(mirror) = device.mirror() {
            superblock.features[2] |= superblock::INCOMPAT_MIRROR;
            mirror.name_pool(superblock.uuid)?;
        }
        for addr in layout.superblock_slots(0) {
            device.write_at(&superblock.encode(), addr.offset_bytes())?;
        }
        device.flush()?;
        match device.mirror().and_then(MirrorDevice::first_not_good) {
            // A pool is made with all its sides.
            Some(path) => Err(MirrorError::Failed { path }.into()),
            None => Ok(()),
        }
    }
}

fn first_superblock(layout: Layout, metadata_copies: u8) -> Superblock {
    let mut random = [0; 24];
    rand::rng().fill_bytes(&mut random);
    let (uuid, salt) = random.split_at(16);
    Superblock {
        version: superblock::VERSION,
        clean: true,
        features: [0; 3],
        uuid: uuid.try_into().expect("16 of 24 bytes"),
        layout,
        groups_initialized: 0,
        generation: Generation(1),
        log_sequence: Sequence(1),
        log_offset: 0,
        log_salt: u64::from_le_bytes(salt.try_into().expect("8 of 24 bytes")),
        catalogue_root: Pointer::HOLE,
        catalogue_height: 1,
        catalogue_blocks: 0,
        used_blocks: 0,
        volume_count: 0,
        next_volume_id: 1,
        created_ns: now_ns(),
        bitmaps_digest: 0,
        metadata_copies,
    }
}

/// Writes zeros over the labels of a mirror that the device was a side of before.
fn wipe_labels(device: &dyn Device) -> Result<()> {
    for addr in (0..SLOTS).flat_map(label_places) {
        let mut bytes = [0; BLOCK_BYTES];
        device.read_at(&mut bytes, addr.offset_bytes())?;
        // A sparse file stays sparse. Another side may have what this one does not.
        if device.mirror().is_some() || bytes != [0; BLOCK_BYTES] {
            device.write_at(&[0; BLOCK_BYTES], addr.offset_bytes())?;
        }
    }
    Ok(())
}

/// Refuses a device whose beginning, or its first `len_bytes`, holds something.
///
/// # Errors
/// `DeviceNotEmpty`; `Io`.
pub fn refuse_unless_empty(device: &dyn Device, len_bytes: u64) -> Result<()> {
    let block = BLOCK_BYTES as u64;
    let len = usize::try_from(LOOK_BYTES.min(len_bytes / block * block)).expect("at most 1 MiB");
    let mut bytes = vec![0; len];
    device.read_at(&mut bytes, 0)?;
    if bytes.starts_with(&superblock::MAGIC) {
        return Err(Error::DeviceNotEmpty {
            found: "a cowshed pool",
        });
    }
    if bytes.iter().any(|byte| *byte != 0) {
        return Err(Error::DeviceNotEmpty { found: "data" });
    }
    Ok(())
}
