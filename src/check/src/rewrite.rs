//! Writing corrected volume entries into the catalogue: changed blocks and the nodes above them
//! go to new places.

use super::catalogue::read_block;
use super::repair::{Draft, Repair};
use cowshed_format::Pointer;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, Result};
use cowshed_format::catalogue::{EntryId, VolumeEntry, fragments};
use cowshed_format::node::{self, Bounds};
use std::collections::BTreeMap;
use std::ops::Range;

/// The corrected heads of the entries that change.
struct Patches {
    heads: BTreeMap<u64, (Vec<u8>, Repair)>,
    applied: Vec<Repair>,
}

/// Rewrites the wrong entries, as far as the layout of their parts allows.
pub(super) fn rewrite_entries(
    draft: &mut Draft<'_>,
    entries: &[(VolumeEntry, VolumeEntry)],
    repaired: &mut Vec<Repair>,
) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let heads = entries.iter().map(|(recorded, correct)| {
        let repair = if recorded.root != correct.root {
            Repair::Map(recorded.id)
        } else if recorded.parent != correct.parent {
            Repair::Orphan(recorded.id)
        } else {
            Repair::Counts(recorded.id)
        };
        (recorded.id.0, (head(correct), repair))
    });
    let mut patches = Patches {
        heads: heads.collect(),
        applied: Vec::new(),
    };
    let (root, height) = (
        draft.superblock.catalogue_root,
        draft.superblock.catalogue_height,
    );
    let new_root = rewrite_below(draft, &mut patches, root, height)?;
    draft.superblock.catalogue_root = new_root.unwrap_or(root);
    repaired.append(&mut patches.applied);
    Ok(())
}

/// Returns the part of an entry's encoding before its name: all that a repair changes, of fixed
/// length.
fn head(entry: &VolumeEntry) -> Vec<u8> {
    let mut nameless = entry.clone();
    nameless.name = None;
    nameless.labels = BTreeMap::new();
    // An empty name and no labels are two lengths of two bytes.
    let len = nameless.encode().len() - 4;
    let mut bytes = entry.encode();
    bytes.truncate(len);
    bytes
}

/// Rewrites the changes below a pointer; `None` if there are none.
fn rewrite_below(
    draft: &mut Draft<'_>,
    patches: &mut Patches,
    pointer: Pointer,
    level: u8,
) -> Result<Option<Pointer>> {
    if pointer.is_hole() {
        return Ok(None);
    }
    let mut bytes = read_block(draft.device, pointer)?;
    if level == 0 {
        if !patch(&mut bytes, patches)? {
            return Ok(None);
        }
        let (addr, crc) = write(draft, pointer, &bytes)?;
        return Ok(Some(Pointer::data(addr, draft.generation(), crc)));
    }
    let block: &[u8; BLOCK_BYTES] = bytes.as_slice().try_into().expect("one block was read");
    let mut entries = Box::new(node::decode(block));
    let bounds = Bounds {
        layout: draft.superblock.layout,
        now: draft.generation(),
    };
    node::verify(&entries, pointer.addr(), level, &bounds)?;
    let mut changed = false;
    for entry in entries.iter_mut() {
        if let Some(new) = rewrite_below(draft, patches, *entry, level - 1)? {
            (*entry, changed) = (new, true);
        }
    }
    if !changed {
        return Ok(None);
    }
    let (addr, crc) = write(draft, pointer, &node::encode(&entries)[..])?;
    Ok(Some(Pointer::node(addr, draft.generation(), crc)))
}

/// Puts the corrected heads over the first parts in a block; returns false if the block has none.
fn patch(block: &mut [u8], patches: &mut Patches) -> Result<bool> {
    let mut places: Vec<(u64, Range<usize>)> = Vec::new();
    let mut end = 0;
    for fragment in fragments(block)? {
        end += fragment.len_bytes();
        if let (EntryId::Volume(id), 0) = (fragment.entry, fragment.part) {
            places.push((id, end - fragment.payload.len()..end));
        }
    }
    let mut changed = false;
    for (id, payload) in places {
        let Some((head, _)) = patches.heads.get(&id) else {
            continue;
        };
        // An entry whose head itself is cut stays as it is, and is found again.
        if let Some(old) = block[payload].get_mut(..head.len()) {
            old.copy_from_slice(head);
            patches
                .applied
                .extend(patches.heads.remove(&id).map(|(_, repair)| repair));
            changed = true;
        }
    }
    Ok(changed)
}

/// Writes a block of the catalogue to a new place, and frees the old one.
fn write(draft: &mut Draft<'_>, old: Pointer, bytes: &[u8]) -> Result<(BlockAddr, u32)> {
    let addr = draft.allocate()?;
    draft.device.write_at(bytes, addr.offset_bytes())?;
    draft.free(old.addr());
    Ok((addr, crc32(bytes)))
}
