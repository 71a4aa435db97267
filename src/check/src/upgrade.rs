//! Bringing a closed pool to the newest version of the format, and its metadata to another number
//! of copies: every map node and every block of the catalogue that does not have that number is
//! written anew, in one checkpoint.
//!
//! A stop anywhere leaves the old state or the new one. Volumes, data blocks, births and owners
//! stay as they are.
//!
//! # Invariants
//! - Only a sound, closed pool is changed.
//! - Maps that share a node share its replacement.

use super::repair::Draft;
use super::{Progress, Survey, copies, rewrite, survey};
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::{Error, Result};
use cowshed_format::catalogue::VolumeEntry;
use cowshed_format::device::Device;
use cowshed_format::node::{self, Bounds, Entries};
use cowshed_format::superblock::VERSION;
use cowshed_format::{Pointer, PointerKind};
use std::collections::HashMap;
use std::fmt;

/// The reason why a pool was not upgraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpgradeRefusal {
    /// It is damaged: it must be repaired first.
    Damaged,
    /// It was not closed.
    NotClosed,
    /// A removed volume is half reclaimed.
    Reclaiming,
    /// There is not enough free space to write its metadata beside the old.
    NoSpace,
}

impl fmt::Display for UpgradeRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Damaged => "it is damaged; `pool check` says where, repair it first",
            Self::NotClosed => {
                "it was not closed; open it once so that it is recovered, then upgrade it"
            }
            Self::Reclaiming => {
                "the space of a removed volume is half reclaimed; open it until that is done \
                 (`pool status` shows what is freed soon), then upgrade it"
            }
            Self::NoSpace => {
                "its metadata is written beside the old, and there is not enough free space for \
                 that; remove something, or make the pool larger"
            }
        })
    }
}

/// The outcome of an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upgraded {
    /// The version before.
    pub from_version: u32,
    /// The version now.
    pub to_version: u32,
    /// Number of copies of the metadata before, for what is written newly.
    pub from_copies: u8,
    /// Number of copies now.
    pub to_copies: u8,
    /// Number of blocks of metadata that were written anew.
    pub rewritten: u64,
}

/// Upgrades the pool on `device`, which no other process may have open, to the newest version, with
/// its metadata in `metadata_copies` copies (1 or 2).
///
/// # Errors
/// As `check`; a refusal changes nothing.
pub fn upgrade(
    device: &dyn Device,
    metadata_copies: u8,
    progress: &mut dyn FnMut(Progress),
) -> Result<std::result::Result<Upgraded, UpgradeRefusal>> {
    let survey = survey(device, false, false, progress)?;
    if !survey.findings.list.is_empty() || !survey.ownership_known {
        return Ok(Err(UpgradeRefusal::Damaged));
    }
    if !survey.superblock().clean {
        return Ok(Err(UpgradeRefusal::NotClosed));
    }
    if survey.volumes.values().any(|volume| volume.reclaimed > 0) {
        return Ok(Err(UpgradeRefusal::Reclaiming));
    }
    device.flush()?;
    match rewrite_all(device, &survey, metadata_copies) {
        Err(Error::NoSpace) => Ok(Err(UpgradeRefusal::NoSpace)),
        outcome => outcome.map(Ok),
    }
}

fn rewrite_all(device: &dyn Device, survey: &Survey, metadata_copies: u8) -> Result<Upgraded> {
    let now = survey.superblock();
    let (from_version, from_copies) = (now.version, now.metadata_copies);
    let mut draft = Draft::new(device, survey);
    draft.superblock.version = VERSION;
    draft.superblock.metadata_copies = metadata_copies;
    let mut copying = Copying {
        draft,
        replaced: HashMap::new(),
        rewritten: 0,
    };
    let mut changed = Vec::new();
    let mut order: Vec<&VolumeEntry> = survey.volumes.values().collect();
    // A parent left its own parent before its child left it.
    order.sort_by_key(|volume| volume.branch);
    for volume in order {
        let root = copying.map(volume.root, volume.height)?;
        if root != volume.root {
            let new = VolumeEntry {
                root,
                ..volume.clone()
            };
            changed.push((volume.clone(), new));
        }
    }
    let Copying {
        mut draft,
        mut rewritten,
        ..
    } = copying;
    rewritten += rewrite::rewrite_catalogue(&mut draft, &changed)?;
    // Otherwise nothing could be removed any more.
    if draft.free_blocks() < draft.superblock.layout.slop_blocks(metadata_copies) {
        return Err(Error::NoSpace);
    }
    if rewritten > 0 || draft.superblock.version != from_version || metadata_copies != from_copies {
        draft.commit(&mut Vec::new())?;
    }
    Ok(Upgraded {
        from_version,
        to_version: VERSION,
        from_copies,
        to_copies: metadata_copies,
        rewritten,
    })
}

struct Copying<'a> {
    draft: Draft<'a>,
    /// The replacement of each node that was examined.
    replaced: HashMap<Pointer, Pointer>,
    rewritten: u64,
}

impl Copying<'_> {
    /// Returns the pointer that takes the place of one at `level`.
    fn map(&mut self, pointer: Pointer, level: u8) -> Result<Pointer> {
        if pointer.kind() != Some(PointerKind::Node) {
            return Ok(pointer);
        }
        if let Some(new) = self.replaced.get(&pointer) {
            return Ok(*new);
        }
        let mut entries = self.read(pointer, level)?;
        let mut changed = pointer.has_copy() != (self.draft.superblock.metadata_copies == 2);
        if level > 1 {
            for entry in entries.iter_mut() {
                let new = self.map(*entry, level - 1)?;
                (changed, *entry) = (changed || new != *entry, new);
            }
        }
        let mut new = pointer;
        if changed {
            let bytes = node::encode(&entries);
            new = self.draft.write(&bytes[..], |addr| {
                Pointer::node(addr, pointer.birth(), crc32(&bytes[..]))
            })?;
            self.draft.free(pointer);
            self.rewritten += 1;
        }
        self.replaced.insert(pointer, new);
        Ok(new)
    }

    fn read(&self, pointer: Pointer, level: u8) -> Result<Box<Entries>> {
        let layout = self.draft.superblock.layout;
        let bounds = Bounds {
            layout,
            now: self.draft.generation(),
        };
        copies::read(self.draft.device, pointer, layout.groups_start(), |bytes| {
            let entries = Box::new(node::decode(bytes));
            node::verify(&entries, pointer.addr(), level, &bounds)?;
            Ok(entries)
        })
    }
}
