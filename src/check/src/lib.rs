//! Checking a pool as if an enemy had written it, and repairing what can be derived.
//!
//! It reads the device through the crate `cowshed-format` alone and trusts no state of the engine.
//! It is not a scrub: no other process may have the pool open. `docs/FORMAT.md` says what must
//! hold.
//!
//! # Invariants
//! - No bytes make it panic, recurse deeper than a tree's height, or run without end.
//! - It holds two bits for each block in use, the volumes without their labels, and one node for
//!   each level: memory grows with the stored data, never with what a field claims.
//! - Without `repair`, nothing is written. With it, a block is freed only if the owner of every
//!   block is known.

mod bitmaps;
mod catalogue;
mod copies;
mod dump;
mod finding;
mod forest;
mod give_up;
mod marks;
mod ownerless;
mod parent_view;
mod repair;
mod rewrite;
mod ring;
mod slots;
mod upgrade;
mod walk;
mod write;

pub use dump::{Item, dump};
pub use finding::{Detail, FINDINGS_MAX, Finding, FindingKind, NamedFinding, Note, Place};
pub use repair::{Refusal, Repair};
pub use upgrade::{UpgradeRefusal, Upgraded, upgrade};

use self::copies::DamagedCopy;
use self::finding::Findings;
use self::marks::Marks;
use self::walk::{LostRange, Walker};
use cowshed_format::base::{BLOCK_BYTES, CorruptKind, Name, Result, VolumeId};
use cowshed_format::catalogue::{EntryId, VolumeEntry};
use cowshed_format::device::Device;
use cowshed_format::node::Bounds;
use cowshed_format::{Pointer, Superblock};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Options of a check beyond the structure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// True to read every block of data and verify its checksum.
    pub deep: bool,
    /// True to repair what can be derived.
    pub repair: bool,
    /// True if a repair gives up what of the catalogue is damaged in all its copies: the volumes
    /// and records there are lost for good, and their blocks are freed.
    pub forget: bool,
}

/// The progress of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Number of blocks reached so far.
    pub blocks: u64,
    /// Number of blocks in use, according to the pool.
    pub blocks_expected: u64,
}

/// The findings and the repairs of a check.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// The findings, up to `FINDINGS_MAX`.
    pub findings: Vec<Finding>,
    /// The number of further findings.
    pub findings_omitted: u64,
    /// Other information.
    pub notes: Vec<Note>,
    /// The repairs made.
    pub repaired: Vec<Repair>,
    /// The reason for which nothing, or not everything, could be repaired.
    pub refused: Option<Refusal>,
    /// The findings of a second check after the repair, if anything was written.
    pub remaining: Option<Vec<Finding>>,
    /// Number of blocks that something refers to.
    pub blocks_used: u64,
    /// Number of volumes, removed ones that wait for reclaim included.
    pub volumes: u64,
    /// The names of the volumes in which something was found.
    pub names: BTreeMap<VolumeId, Name>,
}

impl CheckReport {
    /// Returns true if the pool is sound now: nothing was found, or all of it was repaired.
    #[must_use]
    pub fn clean(&self) -> bool {
        let findings = self.remaining.as_ref().unwrap_or(&self.findings);
        findings.is_empty()
    }

    /// Returns a finding of this report with the name of its volume.
    #[must_use]
    pub fn named(&self, finding: Finding) -> NamedFinding<'_> {
        let volume = finding.place.volume();
        let name = volume.and_then(|volume| self.names.get(&volume));
        NamedFinding { finding, name }
    }
}

/// Maximum number of repair passes, each of which uses what the last one made possible: bitmaps
/// first, then maps, then whatever depends on ownership, then what could be reached only by that.
const PASSES_MAX: u32 = 4;

/// Checks the pool on `device`, which no other process may have open, and repairs it on request.
///
/// # Errors
/// `NotAPool`, `Incompatible`, or `Corrupt` when there is no superblock to begin from or the device
/// is shorter than the pool; `Io` when a repair cannot write. Everything else that is wrong is a
/// finding.
pub fn check(
    device: &dyn Device,
    options: CheckOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<CheckReport> {
    let forget = options.repair && options.forget;
    let mut survey = survey(device, options.deep, forget, progress)?;
    let mut report = survey.report();
    if !options.repair {
        return Ok(report);
    }
    for _ in 0..PASSES_MAX {
        let mut outcome = repair::repair(device, &survey)?;
        report.refused = outcome.refused;
        if outcome.repaired.is_empty() {
            break;
        }
        report.repaired.append(&mut outcome.repaired);
        survey = self::survey(device, options.deep, forget, progress)?;
        if survey.findings.list.is_empty() {
            break;
        }
    }
    if !report.repaired.is_empty() {
        if forget {
            survey = self::survey(device, options.deep, false, progress)?;
        }
        report.notes.clone_from(&survey.notes);
        report.names.extend(survey.names());
        report.remaining = Some(survey.findings.list);
    }
    Ok(report)
}

/// The complete result of a check.
struct Survey {
    slots: slots::Slots,
    marks: Marks,
    bitmaps: bitmaps::Bitmaps,
    /// The wrong entries, each with the correct one.
    entries: Vec<(VolumeEntry, VolumeEntry)>,
    volumes: BTreeMap<VolumeId, VolumeEntry>,
    /// True if all of the catalogue could be read, or the rest is to be forgotten.
    catalogue_known: bool,
    /// The part of the catalogue that is to be forgotten.
    forgotten: Forgotten,
    next_volume_id: u64,
    log: ring::LogState,
    /// True if the owner of each block is known.
    ownership_known: bool,
    /// Damaged copies of blocks that have a good one.
    damaged_copies: Vec<DamagedCopy>,
    findings: Findings,
    notes: Vec<Note>,
}

/// The part of the catalogue that a repair gives up.
#[derive(Default)]
struct Forgotten {
    /// Damaged blocks and nodes.
    blocks: HashSet<Pointer>,
    /// Incomplete or contradictory entries.
    entries: BTreeSet<EntryId>,
}

impl Forgotten {
    fn is_nothing(&self) -> bool {
        self.blocks.is_empty() && self.entries.is_empty()
    }
}

impl Survey {
    fn report(&self) -> CheckReport {
        CheckReport {
            findings: self.findings.list.clone(),
            findings_omitted: self.findings.omitted,
            notes: self.notes.clone(),
            blocks_used: self.marks.count(),
            volumes: self.volumes.len() as u64,
            names: self.names(),
            ..CheckReport::default()
        }
    }

    /// Returns the names of the volumes in which something was found.
    fn names(&self) -> BTreeMap<VolumeId, Name> {
        let volumes = self.findings.list.iter();
        let volumes = volumes.filter_map(|finding| finding.place.volume());
        let name = |id| Some((id, self.volumes.get(&id)?.name.clone()?));
        volumes.filter_map(name).collect()
    }

    const fn superblock(&self) -> &Superblock {
        &self.slots.newest
    }
}

fn survey(
    device: &dyn Device,
    deep: bool,
    forget: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Survey> {
    let (mut findings, mut notes) = (Findings::default(), Vec::new());
    let slots = slots::read(device, &mut findings, &mut notes)?;
    let superblock = &slots.newest;
    let device_blocks = device.len_bytes() / BLOCK_BYTES as u64;
    let pool_blocks = superblock.layout.block_count();
    if device_blocks < pool_blocks {
        return Err(CorruptKind::Truncated {
            device_blocks,
            pool_blocks,
        }
        .into());
    }
    let log = ring::check(device, superblock, deep, &mut findings, &mut notes);
    let blocks_expected = superblock.used_blocks;
    let mut walker = Walker {
        device,
        bounds: Bounds {
            layout: superblock.layout,
            now: superblock.generation,
        },
        deep,
        marks: Marks::new(superblock.layout),
        findings,
        ownership_known: true,
        has_detached: false,
        damaged_nodes: Vec::new(),
        blocks: Vec::new(),
        keep_blocks: false,
        lost: Vec::new(),
        damaged_copies: Vec::new(),
        count_budget: 0,
        progress: &mut |blocks| {
            progress(Progress {
                blocks,
                blocks_expected,
            });
        },
    };
    let catalogue = catalogue::read(&mut walker, superblock, forget);
    let forest = forest::walk(&mut walker, &catalogue, &mut notes, forget);
    let pairs = forest.pairs();
    let entries = pairs
        .filter(|(recorded, correct)| **recorded != *correct)
        .map(|(recorded, correct)| (recorded.clone(), correct))
        .collect();
    let (marks, ownership_known) = (walker.marks, walker.ownership_known && catalogue.known);
    note_lost(&walker.lost, &mut notes);
    let (mut findings, damaged_copies) = (walker.findings, walker.damaged_copies);
    let volumes = catalogue.volumes.len() as u64;
    let last = catalogue.volumes.last_key_value().map(|(id, _)| *id);
    let next_volume_id = superblock.next_volume_id.max(last.map_or(0, |id| id.0) + 1);
    check_volume_fields(superblock, volumes, last, &mut findings);
    let bitmaps = bitmaps::compare(device, superblock, &marks, &mut findings);
    Ok(Survey {
        marks,
        bitmaps,
        entries,
        catalogue_known: catalogue.known,
        forgotten: Forgotten {
            blocks: catalogue.forgotten_blocks,
            entries: catalogue.forgotten,
        },
        volumes: catalogue.volumes,
        next_volume_id,
        log,
        ownership_known,
        damaged_copies,
        findings,
        notes,
        slots,
    })
}

/// Notes the ranges that were given up, joining neighbours.
fn note_lost(lost: &[LostRange], notes: &mut Vec<Note>) {
    let adjoin =
        |a: &LostRange, b: &LostRange| a.volume == b.volume && a.first.0 + a.blocks == b.first.0;
    for range in lost.chunk_by(adjoin).take(FINDINGS_MAX) {
        notes.push(Note::Lost {
            volume: range[0].volume,
            first: range[0].first,
            blocks: range.iter().map(|each| each.blocks).sum(),
        });
    }
}

fn check_volume_fields(
    superblock: &Superblock,
    volumes: u64,
    last: Option<VolumeId>,
    findings: &mut Findings,
) {
    if superblock.volume_count != volumes {
        let detail = Detail::Count {
            recorded: superblock.volume_count,
            counted: volumes,
        };
        findings.add(FindingKind::VolumeCount, Place::Pool, detail);
    }
    if last.is_some_and(|last| last.0 >= superblock.next_volume_id) {
        let detail = Detail::Fact("the id of the next volume is already in use");
        findings.add(FindingKind::SuperblockField, Place::Pool, detail);
    }
}

#[cfg(test)]
mod tests;
