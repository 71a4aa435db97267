//! Bitmaps that are lost, made anew from the maps when a pool is opened.
//!
//! The bitmaps of a checkpoint say exactly what its maps lead to, and the superblock has a digest
//! of them all. So what the maps lead to is compared with the digest: if it agrees, the bitmaps are
//! as they were, and nothing is lost. Otherwise, or if a node cannot be read, every block of such a
//! group counts as in use until the pool is repaired.

use super::forest::Forest;
use crate::map::{NodeStore, Root, reach};
use crate::space::Committed;
use cowshed_format::base::Result;
use cowshed_format::{Pointer, Superblock};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Makes lost bitmaps anew, if there are any; returns how many it has made.
pub(super) fn rebuild(
    committed: &mut Committed,
    store: &NodeStore,
    superblock: &Superblock,
    catalogue: &Arc<Root>,
    forest: &Forest,
) -> u64 {
    let lost = committed.lost().count();
    if lost == 0 {
        return 0;
    }
    let restored = reached(committed, store, catalogue, forest)
        .map(|found| committed.restore(found, superblock.bitmaps_digest));
    match restored {
        Ok(true) => {
            tracing::warn!(
                "{lost} damaged bitmaps of allocation groups were made anew; a scrub finds what else \
                 is damaged"
            );
            return lost as u64;
        }
        Ok(false) => tracing::warn!(
            "{lost} bitmaps of allocation groups are unreadable, and their free space is unknown \
             until the pool is repaired"
        ),
        Err(error) => tracing::warn!(
            "{lost} bitmaps of allocation groups are unreadable and cannot be made anew: {error}; \
             their free space is unknown until the pool is repaired"
        ),
    }
    0
}

/// Returns the bitmaps of the lost groups that follow from the maps.
fn reached(
    committed: &Committed,
    store: &NodeStore,
    catalogue: &Arc<Root>,
    forest: &Forest,
) -> Result<crate::space::Reached> {
    let mut found = committed.nothing_reached();
    let groups_start = store.groups_start();
    let mut seen = HashSet::new();
    let mut visit = |pointer: Pointer| {
        for addr in pointer.places(groups_start) {
            found.mark(addr);
        }
    };
    reach(store, catalogue, 0, &mut seen, &mut visit)?;
    for volume in forest.volumes.values() {
        let settled = volume.core.settled.load(Ordering::Acquire);
        let root = volume.core.tree.root_to_keep();
        reach(store, &root, settled, &mut seen, &mut visit)?;
    }
    Ok(found)
}
