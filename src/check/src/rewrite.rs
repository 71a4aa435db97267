//! Writing corrected volume entries into the catalogue: changed blocks and the nodes above them
//! go to new places.

use super::copies;
use super::repair::{Draft, Repair};
use cowshed_format::Pointer;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::codec::Writer;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, CorruptKind, Error, Generation, Result};
use cowshed_format::catalogue::{EntryId, VolumeEntry, fragments};
use cowshed_format::node::{self, Bounds};
use cowshed_format::superblock::VERSION;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The corrected heads of the entries that change.
struct Patches {
    heads: BTreeMap<u64, (Vec<u8>, Repair)>,
    applied: Vec<Repair>,
    /// True if blocks with another number of copies than the pool's are written anew as well.
    copies: bool,
    /// Number of blocks written.
    written: u64,
    /// True if what is to be forgotten is left out. It stays as it is otherwise.
    forgets: bool,
}

/// Rewrites the wrong entries, as far as the layout of their parts allows.
pub(super) fn rewrite_entries(
    draft: &mut Draft<'_>,
    entries: &[(VolumeEntry, VolumeEntry)],
    repaired: &mut Vec<Repair>,
) -> Result<()> {
    let forgotten = &draft.survey.forgotten;
    // Volumes are detached and pinned in the same checkpoint, which needs their owners to be known.
    let forgets = !forgotten.is_nothing() && draft.survey.ownership_known;
    if entries.is_empty() && !forgets {
        return Ok(());
    }
    let mut patches = Patches::new(entries, false);
    patches.forgets = forgets;
    patches.apply(draft)?;
    if forgets && !patches.heads.is_empty() {
        return Err(head_is_cut());
    }
    let is_new = |entry: &VolumeEntry| {
        entry.pinned || (entry.parent.is_none() && entry.branch > Generation(0))
    };
    if entries.iter().any(|(_, correct)| is_new(correct)) {
        // Older versions know neither pinned nor detached volumes.
        draft.superblock.version = draft.superblock.version.max(VERSION);
    }
    repaired.append(&mut patches.applied);
    if forgets {
        repaired.push(Repair::Forgotten {
            blocks: forgotten.blocks.len() as u64,
            entries: forgotten.entries.len() as u64,
        });
    }
    Ok(())
}

/// Rewrites the changed entries, and every block and node of the catalogue that has not as many
/// copies as the pool keeps. Returns the number of blocks.
pub(super) fn rewrite_catalogue(
    draft: &mut Draft<'_>,
    entries: &[(VolumeEntry, VolumeEntry)],
) -> Result<u64> {
    let mut patches = Patches::new(entries, true);
    patches.apply(draft)?;
    if !patches.heads.is_empty() {
        // The old maps, to which they still lead, are free in the next state.
        return Err(head_is_cut());
    }
    Ok(patches.written)
}

fn head_is_cut() -> Error {
    CorruptKind::Catalogue("the head of a volume's entry is cut, so that it cannot be changed")
        .into()
}

impl Patches {
    fn new(entries: &[(VolumeEntry, VolumeEntry)], copies: bool) -> Self {
        let heads = entries.iter().map(|(recorded, correct)| {
            let repair = if recorded.root != correct.root {
                Repair::Map(recorded.id)
            } else if recorded.parent != correct.parent && correct.branch > Generation(0) {
                Repair::Detached(recorded.id)
            } else if recorded.parent != correct.parent {
                Repair::Orphan(recorded.id)
            } else if recorded.pinned != correct.pinned {
                Repair::Pin(recorded.id)
            } else {
                Repair::Counts(recorded.id)
            };
            (recorded.id.0, (head(correct), repair))
        });
        Self {
            heads: heads.collect(),
            applied: Vec::new(),
            copies,
            written: 0,
            forgets: false,
        }
    }

    fn apply(&mut self, draft: &mut Draft<'_>) -> Result<()> {
        let (root, height) = (
            draft.superblock.catalogue_root,
            draft.superblock.catalogue_height,
        );
        let new_root = rewrite_below(draft, self, root, height)?;
        draft.superblock.catalogue_root = new_root.unwrap_or(root);
        Ok(())
    }
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
    let is_forgotten = draft.survey.forgotten.blocks.contains(&pointer);
    if is_forgotten && patches.forgets {
        draft.free(pointer);
        return Ok(Some(Pointer::HOLE));
    }
    if is_forgotten {
        return Ok(None);
    }
    let groups_start = draft.superblock.layout.groups_start();
    let read = copies::read(draft.device, pointer, groups_start, |bytes| {
        Ok(bytes.to_vec())
    });
    let mut bytes = read?;
    let is_wanted = pointer.has_copy() == (draft.superblock.metadata_copies == 2);
    let mut changed = patches.copies && !is_wanted;
    if level == 0 {
        changed |= patch(&mut bytes, patches)?;
        if patches.forgets {
            changed |= leave_out(&mut bytes, &draft.survey.forgotten.entries)?;
        }
        if !changed {
            return Ok(None);
        }
        if fragments(&bytes)?.is_empty() {
            draft.free(pointer);
            return Ok(Some(Pointer::HOLE));
        }
        let place = |addr, birth, crc| Pointer::data(addr, birth, crc);
        patches.written += 1;
        return write(draft, pointer, &bytes, place).map(Some);
    }
    let block: &[u8; BLOCK_BYTES] = bytes.as_slice().try_into().expect("one block was read");
    let mut entries = Box::new(node::decode(block));
    let bounds = Bounds {
        layout: draft.superblock.layout,
        now: draft.generation(),
    };
    node::verify(&entries, pointer.addr(), level, &bounds)?;
    for entry in entries.iter_mut() {
        if let Some(new) = rewrite_below(draft, patches, *entry, level - 1)? {
            (*entry, changed) = (new, true);
        }
    }
    if !changed {
        return Ok(None);
    }
    let place = |addr, birth, crc| Pointer::node(addr, birth, crc);
    patches.written += 1;
    write(draft, pointer, &node::encode(&entries)[..], place).map(Some)
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

/// Takes the parts of some entries out of a block; returns false if it has none of them.
fn leave_out(block: &mut [u8], entries: &BTreeSet<EntryId>) -> Result<bool> {
    let parts = fragments(block)?;
    let all = parts.len();
    let kept = parts
        .iter()
        .filter(|part| !entries.contains(&part.entry))
        .collect::<Vec<_>>();
    if kept.len() == all {
        return Ok(false);
    }
    let mut out = Writer::new();
    kept.iter().for_each(|part| part.encode(&mut out));
    let bytes = out.into_bytes();
    block.fill(0);
    block[..bytes.len()].copy_from_slice(&bytes);
    Ok(true)
}

/// Writes a block of the catalogue to a new place, and frees the old one. Returns its pointer, made
/// by `pointer` from address, birth and checksum.
fn write(
    draft: &mut Draft<'_>,
    old: Pointer,
    bytes: &[u8],
    pointer: impl FnOnce(BlockAddr, Generation, u32) -> Pointer,
) -> Result<Pointer> {
    let birth = draft.generation();
    let new = draft.write(bytes, |addr| pointer(addr, birth, crc32(bytes)))?;
    draft.free(old);
    Ok(new)
}
