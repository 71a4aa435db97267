//! Giving up unreadable map nodes: a lost range replaces each of them, in every map that leads to
//! it, so that the rest can be told apart, counted, reclaimed and written again.
//!
//! Blocks that read correctly before still do afterwards, and errors stay errors. Nothing is freed
//! here: the next survey finds and frees the blocks to which only a lost node led.
//!
//! # Invariants
//! - A changed node keeps its birth, and a lost range has the birth of the node that it replaces:
//!   ownership stays as it was. Maps that shared a node share its replacement.

use super::copies;
use super::repair::Draft;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{Generation, Result, VolumeId};
use cowshed_format::catalogue::VolumeEntry;
use cowshed_format::node::{self, Bounds, Entries, NODE_BITS};
use cowshed_format::{Pointer, PointerKind};
use std::collections::{BTreeMap, HashMap};

/// Returns the entries of the volumes whose maps changed, each with its new entry.
pub(super) fn give_up(
    draft: &mut Draft<'_>,
    volumes: &BTreeMap<VolumeId, VolumeEntry>,
) -> Result<Vec<(VolumeEntry, VolumeEntry)>> {
    let mut order: Vec<&VolumeEntry> = volumes.values().collect();
    // A parent left its own parent before its child left it.
    order.sort_by_key(|volume| volume.branch);
    let mut mending = Mending {
        draft,
        replaced: HashMap::new(),
    };
    let mut changed = Vec::new();
    for volume in order {
        let parent = volume.parent.and_then(|parent| volumes.get(&parent));
        // Below the cursor of a reclaim, the parent's blocks may already be the child's.
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

/// The nodes of a map to examine.
#[derive(Clone, Copy)]
struct Scope {
    /// Older nodes are an ancestor's, and were examined there.
    branch: Generation,
    /// Nodes that end at or below this block may have been reused.
    settled: u64,
}

struct Mending<'a, 'b> {
    draft: &'a mut Draft<'b>,
    /// The replacement of each node that is lost or leads to a lost one.
    replaced: HashMap<Pointer, Pointer>,
}

impl Mending<'_, '_> {
    /// Returns the replacement of a pointer at `level` that covers blocks from `first` on; `None`
    /// if it stays.
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
        let new = self.draft.write(&bytes[..], |addr| {
            Pointer::node(addr, pointer.birth(), crc32(&bytes[..]))
        })?;
        self.replaced.insert(pointer, new);
        Ok(Some(new))
    }

    /// Returns the node's entries, if it is whole.
    fn read(&self, pointer: Pointer, level: u8) -> Option<Box<Entries>> {
        let bounds = Bounds {
            layout: self.draft.superblock.layout,
            now: self.draft.generation(),
        };
        bounds.layout.locate(pointer.addr())?;
        let groups_start = bounds.layout.groups_start();
        let read = copies::read(self.draft.device, pointer, groups_start, |bytes| {
            let entries = Box::new(node::decode(bytes));
            node::verify(&entries, pointer.addr(), level, &bounds)?;
            Ok(entries)
        });
        read.ok()
    }
}
