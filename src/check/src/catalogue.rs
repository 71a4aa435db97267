//! Reading the catalogue from its blocks: entries are joined from their parts and verified.
//!
//! If damage is to be forgotten, what cannot be read, and entries whose parts are not all there,
//! count as if they had never been; everything else is then known.

use super::copies;
use super::finding::{Detail, Finding, FindingKind, Place};
use super::walk::{Settled, Subject, Tree, Walker};
use cowshed_format::base::{
    BLOCK_BYTES, BlockIndex, CorruptKind, Error, Generation, Name, Result, VolumeId,
};
use cowshed_format::catalogue::{EntryId, Fragment, RecordEntry, VolumeEntry, fragments};
use cowshed_format::record::MAX_RECORD_BYTES;
use cowshed_format::{Pointer, Superblock};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Maximum number of an entry's parts: no operation that makes an entry is longer than a record.
const PARTS_MAX: u16 = 2048;
const _: () = assert!(PARTS_MAX as usize * (BLOCK_BYTES / 4) >= MAX_RECORD_BYTES);

/// The contents of the catalogue.
#[derive(Default)]
pub(super) struct Catalogue {
    /// The volumes, without their labels.
    pub(super) volumes: BTreeMap<VolumeId, VolumeEntry>,
    /// True if all of it could be read, or the rest is to be forgotten.
    pub(super) known: bool,
    /// The incomplete or contradictory entries that are to be forgotten.
    pub(super) forgotten: BTreeSet<EntryId>,
    /// The damaged blocks and nodes that are to be forgotten.
    pub(super) forgotten_blocks: HashSet<Pointer>,
}

/// The incomplete entries, and a record of the complete ones.
#[derive(Default)]
struct Joining {
    forget: bool,
    partial: BTreeMap<EntryId, Partial>,
    done: BTreeSet<EntryId>,
    names: HashSet<Name>,
    keys: HashSet<(u16, Vec<u8>)>,
    catalogue: Catalogue,
}

/// The parts of an entry found so far. Their claimed number alone takes no memory.
struct Partial {
    parts: u16,
    found: BTreeMap<u16, Vec<u8>>,
}

/// Walks and reads the catalogue of `superblock`. With `forget`, damage of it is reported and then
/// counts as if it had never been there.
pub(super) fn read(walker: &mut Walker<'_>, superblock: &Superblock, forget: bool) -> Catalogue {
    let (owners_known, findings) = (walker.ownership_known, walker.findings.list.len());
    let damaged_nodes = walker.damaged_nodes.len();
    walker.keep_blocks = true;
    let counts = walker.walk(Subject {
        volume: VolumeId(0),
        tree: Tree {
            root: superblock.catalogue_root,
            height: superblock.catalogue_height,
        },
        branch: Generation(0),
        parent: None,
        detached: false,
        settled: Settled::Nothing,
        cursor: 0,
    });
    walker.keep_blocks = false;
    let blocks = std::mem::take(&mut walker.blocks);
    let mut joining = Joining {
        forget,
        ..Joining::default()
    };
    joining.catalogue.known = counts.mapped.is_some();
    let damage = walker.findings.list.get(findings..).unwrap_or_default();
    let is_all = walker.findings.omitted == 0 && !damage.is_empty();
    let may_forget = is_all && damage.iter().all(|it| may_forget(it, superblock));
    if forget && !joining.catalogue.known && may_forget {
        let nodes = walker.damaged_nodes.drain(damaged_nodes..);
        joining.catalogue.forgotten_blocks.extend(nodes);
        joining.catalogue.known = true;
        walker.ownership_known = owners_known;
    }
    for (block, pointer) in blocks {
        joining.take_block(walker, superblock, block, pointer);
    }
    joining.finish(walker)
}

/// Returns true if the catalogue can be used without what was found damaged: a node below its root.
/// Without the root, nothing would be left of it. What the device fails to read may be readable
/// another time.
fn may_forget(finding: &Finding, superblock: &Superblock) -> bool {
    match (finding.kind, finding.place, finding.detail) {
        (FindingKind::CopyDamaged, ..) => true,
        (FindingKind::NodeUnreadable, Place::Node { level, .. }, Detail::Corrupt(_)) => {
            level < superblock.catalogue_height
        }
        _ => false,
    }
}

/// Reads and verifies every copy of a block of the catalogue.
fn read_block(walker: &mut Walker<'_>, pointer: Pointer, place: Place) -> Result<Vec<u8>> {
    let groups_start = walker.groups_start();
    let copies = copies::read_all(walker.device, pointer, groups_start, |bytes| {
        Ok(bytes.to_vec())
    });
    let copies = copies.map_err(|error| match error {
        Error::Corrupt(_) => CorruptKind::Catalogue("a block has a wrong checksum").into(),
        error => error,
    })?;
    walker.note_copies(&copies, place);
    Ok(copies.found)
}

impl Joining {
    fn take_block(
        &mut self,
        walker: &mut Walker<'_>,
        superblock: &Superblock,
        block: BlockIndex,
        pointer: Pointer,
    ) {
        let place = Place::Data {
            volume: VolumeId(0),
            block,
            addr: pointer.addr(),
        };
        let bytes = match read_block(walker, pointer, place) {
            Ok(bytes) => bytes,
            Err(error) => {
                let (kind, detail) = (FindingKind::CatalogueBlock, Detail::of(&error));
                walker.findings.add(kind, place, detail);
                if self.forget && matches!(detail, Detail::Corrupt(_)) {
                    self.catalogue.forgotten_blocks.insert(pointer);
                } else {
                    self.catalogue.known = false;
                }
                return;
            }
        };
        let mut take = || -> Result<()> {
            if block.0 >= superblock.catalogue_blocks {
                let what = "a block lies beyond the catalogue's end";
                return Err(CorruptKind::Catalogue(what).into());
            }
            for fragment in fragments(&bytes)? {
                self.take(walker, &fragment);
            }
            Ok(())
        };
        if let Err(error) = take() {
            let detail = Detail::of(&error);
            walker
                .findings
                .add(FindingKind::CatalogueBlock, place, detail);
            self.catalogue.known = false;
        }
    }

    fn take(&mut self, walker: &mut Walker<'_>, fragment: &Fragment<'_>) {
        let id = fragment.entry;
        if fragment.parts > PARTS_MAX {
            let detail = Detail::Fact("it has too many parts");
            return self.damage(walker, FindingKind::CatalogueEntry, id, detail);
        }
        if self.done.contains(&id) {
            return self.damage(walker, FindingKind::CataloguePartTwice, id, Detail::None);
        }
        let partial = self.partial.entry(id).or_insert_with(|| Partial {
            parts: fragment.parts,
            found: BTreeMap::new(),
        });
        if partial.parts != fragment.parts || partial.found.contains_key(&fragment.part) {
            return self.damage(walker, FindingKind::CataloguePartTwice, id, Detail::None);
        }
        let payload = fragment.payload.to_vec();
        partial.found.insert(fragment.part, payload);
        if partial.found.len() == usize::from(partial.parts) {
            let whole = self.partial.remove(&id);
            let found = whole
                .into_iter()
                .flat_map(|whole| whole.found.into_values());
            let bytes: Vec<u8> = found.flatten().collect();
            self.done.insert(id);
            self.take_entry(walker, id, &bytes);
        }
    }

    fn take_entry(&mut self, walker: &mut Walker<'_>, id: EntryId, bytes: &[u8]) {
        let place = entry_place(id);
        let outcome = match id {
            EntryId::Volume(number) => self.take_volume(walker, number, bytes),
            EntryId::Record(_) => RecordEntry::decode(bytes).map(|record| {
                if !self.keys.insert((record.kind, record.key)) {
                    walker
                        .findings
                        .add(FindingKind::NameTwice, place, Detail::None);
                }
            }),
        };
        if let Err(kind) = outcome {
            let detail = Detail::Corrupt(kind);
            self.damage(walker, FindingKind::CatalogueEntry, id, detail);
        }
    }

    fn take_volume(
        &mut self,
        walker: &mut Walker<'_>,
        number: u64,
        bytes: &[u8],
    ) -> Result<(), CorruptKind> {
        let mut volume = VolumeEntry::decode(bytes)?;
        if volume.id.0 != number {
            return Err(CorruptKind::Catalogue("a volume's entry has another id"));
        }
        if let Some(name) = &volume.name
            && !self.names.insert(name.clone())
        {
            let place = Place::Volume(volume.id);
            walker
                .findings
                .add(FindingKind::NameTwice, place, Detail::None);
        }
        volume.labels = BTreeMap::new();
        self.catalogue.volumes.insert(volume.id, volume);
        Ok(())
    }

    fn damage(&mut self, walker: &mut Walker<'_>, kind: FindingKind, id: EntryId, detail: Detail) {
        walker.findings.add(kind, entry_place(id), detail);
        if self.forget {
            self.catalogue.forgotten.insert(id);
        } else {
            self.catalogue.known = false;
        }
    }

    fn finish(mut self, walker: &mut Walker<'_>) -> Catalogue {
        for (id, partial) in std::mem::take(&mut self.partial) {
            let detail = Detail::Count {
                recorded: u64::from(partial.parts),
                counted: partial.found.len() as u64,
            };
            let kind = FindingKind::CataloguePartMissing;
            self.damage(walker, kind, id, detail);
        }
        let forgotten = &self.catalogue.forgotten;
        let stays = |id: &VolumeId| !forgotten.contains(&EntryId::Volume(id.0));
        self.catalogue.volumes.retain(|id, _| stays(id));
        self.catalogue
    }
}

const fn entry_place(id: EntryId) -> Place {
    match id {
        EntryId::Volume(id) => Place::Volume(VolumeId(id)),
        EntryId::Record(id) => Place::Record(id),
    }
}
