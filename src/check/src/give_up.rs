//! Giving up the map nodes that cannot be read: a lost range takes the place of each, in every map
//! that leads to it, so that the rest can be told apart, counted, reclaimed and written again.
//!
//! What read right before reads right afterwards, and what was an error stays one. Nothing is freed
//! here: what only a lost node led to is found, and freed, by the next survey.
//!
//! # Invariants
//! - A node that changes keeps its birth, and so does what takes a lost one's place: who owns what
//!   stays as it was. Maps that shared a node share what replaces it.

use super::repair::Draft;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{BLOCK_BYTES, Generation, Result, VolumeId};
use cowshed_format::catalogue::VolumeEntry;
use cowshed_format::node::{self, Bounds, Entries, NODE_BITS};
use cowshed_format::{Pointer, PointerKind};
use std::collections::{BTreeMap, HashMap};

/// The entries of the volumes whose maps changed, each with what it is to be.
pub(super) fn give_up(
    draft: &mut Draft<'_>,
    volumes: &BTreeMap<VolumeId, VolumeEntry>,
) -> Result<Vec<(VolumeEntry, VolumeEntry)>> {
    let mut order: Vec<&VolumeEntry> = volumes.values().collect();
    // A parent left its own parent before its child did.
    order.sort_by_key(|volume| volume.branch);
    let mut mending = Mending {
        draft,
        replaced: HashMap::new(),
    };
    let mut changed = Vec::new();
    for volume in order {
        let parent = volume.parent.and_then(|parent| volumes.get(&parent));
        // Below the cursor of a reclaim, the parent's blocks may be the child's already.
        let branch = match parent {
            None => Generation(0),
            Some(parent) if parent.reclaimed > 0 => parent.branch,
            Some(_) => volume.branch,
        };
        let scope = Scope {
            branch,
            settled: volume.reclaimed,
        };
        if let Some(root) = mending.mend(volume.root, volume.height, 0, scope)? {
            let mended = VolumeEntry {
                root,
                ..volume.clone()
            };
            changed.push((volume.clone(), mended));
        }
    }
    Ok(changed)
}

/// Which nodes of a map are looked at.
#[derive(Clone, Copy)]
struct Scope {
    /// Older ones are an ancestor's, and were looked at there.
    branch: Generation,
    /// What ends at or below this block may have been used again.
    settled: u64,
}

struct Mending<'a, 'b> {
    draft: &'a mut Draft<'b>,
    /// What took the place of each node that is lost or leads to a lost one.
    replaced: HashMap<Pointer, Pointer>,
}

impl Mending<'_, '_> {
    /// What takes the place of a pointer at `level` that covers blocks from `first` on; `None`
    /// when it stays.
    fn mend(
        &mut self,
        pointer: Pointer,
        level: u8,
        first: u64,
        scope: Scope,
    ) -> Result<Option<Pointer>> {
        let end = first + (1 << (NODE_BITS * u32::from(level)));
        if pointer.kind() != Some(PointerKind::Node) || end <= scope.settled {
            return Ok(None);
        }
        if let Some(new) = self.replaced.get(&pointer) {
            return Ok(Some(*new));
        }
        if pointer.birth() <= scope.branch {
            return Ok(None);
        }
        let Some(mut entries) = self.read(pointer, level) else {
            let lost = Pointer::lost(pointer.birth());
            self.replaced.insert(pointer, lost);
            return Ok(Some(lost));
        };
        if level == 1 {
            return Ok(None);
        }
        let span = 1 << (NODE_BITS * u32::from(level - 1));
        let mut changed = false;
        for (entry, first) in entries.iter_mut().zip((first..).step_by(span)) {
            if let Some(new) = self.mend(*entry, level - 1, first, scope)? {
                (*entry, changed) = (new, true);
            }
        }
        if !changed {
            return Ok(None);
        }
        let bytes = node::encode(&entries);
        let addr = self.draft.allocate()?;
        self.draft
            .device
            .write_at(&bytes[..], addr.offset_bytes())?;
        let new = Pointer::node(addr, pointer.birth(), crc32(&bytes[..]));
        self.replaced.insert(pointer, new);
        Ok(Some(new))
    }

    /// The node's entries, where it is whole.
    fn read(&self, pointer: Pointer, level: u8) -> Option<Box<Entries>> {
        let bounds = Bounds {
            layout: self.draft.superblock.layout,
            now: self.draft.generation(),
        };
        bounds.layout.locate(pointer.addr())?;
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        let read = self
            .draft
            .device
            .read_at(&mut bytes[..], pointer.addr().offset_bytes());
        read.ok()?;
        if crc32(&bytes[..]) != pointer.crc() {
            return None;
        }
        let entries = Box::new(node::decode(&bytes));
        node::verify(&entries, pointer.addr(), level, &bounds).ok()?;
        Some(entries)
    }
}
