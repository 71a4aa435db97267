//! Compares everything that a pool returns with the model.

use crate::oracle::{BLOCK, LEAF_BLOCKS, Oracle, Volume as Model};
use cowshed_engine::{ExtentKind, Pool, RecordKind, Volume, VolumeInfo, VolumeKind};
use cowshed_format::base::VolumeId;
use std::collections::BTreeSet;

/// The kinds of records that the runs use.
pub const RECORD_KINDS: [RecordKind; 3] = [
    RecordKind::IMAGE,
    RecordKind::CONTAINER,
    RecordKind::REFERENCE,
];

/// The maximum height of a map.
const HEIGHT_MAX: u64 = 5;

/// The longest read of one comparison.
const READ_BLOCKS_MAX: u64 = 64;

/// Compares everything: names, records, the information about each volume, and every byte.
pub fn everything(pool: &Pool, oracle: &Oracle) {
    names(pool, oracle);
    records(pool, oracle);
    for id in oracle.all_named() {
        let volume = pool
            .volume_by_id(VolumeId(id))
            .expect("find a volume by its id");
        info(&volume.info().expect("info"), id, oracle);
        content(&volume, &oracle.volumes[&id]);
    }
}

fn names(pool: &Pool, oracle: &Oracle) {
    let mut wanted: Vec<(String, u64)> = oracle
        .volumes
        .iter()
        .filter_map(|(id, volume)| Some((volume.name.clone()?, *id)))
        .collect();
    wanted.sort();
    let list = pool.volumes();
    let found: Vec<(String, u64)> = list
        .iter()
        .map(|info| (info.name.to_string(), info.id.0))
        .collect();
    assert_eq!(found, wanted, "the list of volumes");
    for each in &list {
        info(each, each.id.0, oracle);
        let by_name = pool
            .volume(each.name.as_str())
            .expect("find a volume by its name");
        assert_eq!(by_name.id(), each.id);
    }
    let volumes = pool.status().expect("status").volumes;
    assert_eq!(volumes, wanted.len() as u64, "the count of volumes");
}

fn records(pool: &Pool, oracle: &Oracle) {
    for kind in RECORD_KINDS {
        let found = pool.records(kind);
        let found: Vec<(&[u8], &[u8])> = found.iter().map(|(k, v)| (&**k, &**v)).collect();
        let wanted = oracle
            .records
            .range((kind.0, Vec::new())..(kind.0 + 1, Vec::new()));
        let wanted: Vec<(&[u8], &[u8])> = wanted.map(|((_, k), v)| (&**k, &**v)).collect();
        assert_eq!(found, wanted, "the records of {kind:?}");
        for (key, value) in wanted {
            assert_eq!(pool.record(kind, key).as_deref(), Some(value));
        }
    }
}

/// Compares the information about one volume.
pub fn info(info: &VolumeInfo, id: u64, oracle: &Oracle) {
    let model = &oracle.volumes[&id];
    let what = format!("volume {id} ({})", info.name);
    assert_eq!(info.id.0, id, "{what}");
    assert_eq!(
        Some(info.name.as_str()),
        model.name.as_deref(),
        "{what}: name"
    );
    assert_eq!(
        info.kind == VolumeKind::Snapshot,
        model.frozen,
        "{what}: kind"
    );
    assert_eq!(info.size_bytes, model.size_bytes, "{what}: size");
    assert_eq!(info.labels, model.labels, "{what}: labels");
    let mapped = model.blocks.len() as u64 * BLOCK;
    assert_eq!(info.referenced_bytes, mapped, "{what}: referenced bytes");
    if !oracle.unsettled {
        family(info, oracle, &what);
        own_bytes(info, model, &what);
    }
}

fn family(info: &VolumeInfo, oracle: &Oracle, what: &str) {
    let id = info.id.0;
    let children = oracle.children(id).len();
    assert_eq!(info.children as usize, children, "{what}: children");
    // A parent that has lost its name is not visible.
    let parent = oracle.volumes[&id].parent;
    let parent = parent.filter(|parent| oracle.volumes[parent].name.is_some());
    if parent.is_some() {
        assert_eq!(info.parent.map(|parent| parent.0), parent, "{what}: parent");
    }
}

/// Checks a volume's own bytes: the data blocks that it owns, and the map nodes that it does not
/// share: at least those above its own blocks, and at most those above all blocks that it ever
/// changed. (The offline check counts them exactly.)
fn own_bytes(info: &VolumeInfo, model: &Model, what: &str) {
    let own_leaves = model
        .blocks
        .iter()
        .filter(|(_, block)| model.own.contains(&block.id));
    let own_leaves: BTreeSet<u64> = own_leaves.map(|(index, _)| index / LEAF_BLOCKS).collect();
    let data = model.own.len() as u64;
    let least = (data + nodes_above(&own_leaves)) * BLOCK;
    // A map that grew in height has one more node at each height, above its first block.
    let most = (data + nodes_above(&model.touched) + 2 * HEIGHT_MAX) * BLOCK;
    let own = info.own_bytes;
    assert!(
        own.is_multiple_of(BLOCK),
        "{what}: {own} own bytes are not whole blocks"
    );
    assert!(
        (least..=most).contains(&own),
        "{what}: {own} own bytes are not in {least}..={most}"
    );
}

/// Returns the number of nodes above these leaves, including the leaves, up to the level with a
/// single node.
fn nodes_above(leaves: &BTreeSet<u64>) -> u64 {
    let mut level = leaves.clone();
    let mut count = level.len() as u64;
    while level.len() > 1 || level.first().is_some_and(|first| *first > 0) {
        level = level.iter().map(|node| node / LEAF_BLOCKS).collect();
        count += level.len() as u64;
    }
    count
}

fn content(volume: &Volume, model: &Model) {
    let mut probes = BTreeSet::new();
    for index in model.blocks.keys() {
        probes.extend([index.saturating_sub(1), *index, index + 1]);
    }
    probes.extend([0, model.size_bytes.div_ceil(BLOCK) - 1]);
    probes.retain(|index| index * BLOCK < model.size_bytes);
    let mut probes = probes.into_iter().peekable();
    while let Some(first) = probes.next() {
        let mut after = first + 1;
        while probes
            .next_if(|next| *next == after && after - first < READ_BLOCKS_MAX)
            .is_some()
        {
            after += 1;
        }
        let offset = first * BLOCK;
        let len = (after * BLOCK).min(model.size_bytes) - offset;
        range(volume, model, offset, len);
    }
    extents(volume, model);
}

/// Reads one range of the volume and compares it.
pub fn range(volume: &Volume, model: &Model, offset_bytes: u64, len_bytes: u64) {
    let mut found = vec![0xee; usize::try_from(len_bytes).unwrap()];
    volume
        .read_at(&mut found, offset_bytes)
        .unwrap_or_else(|error| {
            panic!(
                "read {offset_bytes}+{len_bytes} of {}: {error}",
                volume.id()
            )
        });
    let wanted = model.read(offset_bytes, len_bytes);
    if found != wanted {
        let at = (0..found.len())
            .find(|at| found[*at] != wanted[*at])
            .unwrap();
        let byte = offset_bytes + at as u64;
        panic!(
            "volume {}: byte {byte} (block {}) is {:#04x} and ought to be {:#04x}; read {offset_bytes}+{len_bytes}",
            volume.id(),
            byte / BLOCK,
            found[at],
            wanted[at]
        );
    }
}

/// Asserts that the extents of the volume are contiguous, and that those with data are exactly the
/// mapped blocks.
fn extents(volume: &Volume, model: &Model) {
    let mut at = 0;
    let mut mapped = BTreeSet::new();
    let mut before = None;
    while let Some(extent) = volume.extent_at(at).expect("extent_at") {
        assert_eq!(extent.offset_bytes, at, "where the extent starts");
        assert!(extent.len_bytes > 0, "an empty extent at {at}");
        assert_ne!(
            before,
            Some(extent.kind),
            "extents at {at} that ought to be one"
        );
        before = Some(extent.kind);
        if extent.kind == ExtentKind::Data {
            mapped.extend(at / BLOCK..(at + extent.len_bytes).div_ceil(BLOCK));
        }
        at += extent.len_bytes;
    }
    assert_eq!(
        at, model.size_bytes,
        "the extents end where the volume does"
    );
    let wanted: BTreeSet<u64> = model.blocks.keys().copied().collect();
    let id = volume.id();
    assert!(
        mapped == wanted,
        "volume {id}: mapped but not written {:?}, written but not mapped {:?}",
        mapped.difference(&wanted).take(8).collect::<Vec<_>>(),
        wanted.difference(&mapped).take(8).collect::<Vec<_>>()
    );
}

/// Asserts that the difference of two volumes names every block whose content differs, and none
/// that they share, in order, each with the kind that `b` has there.
pub fn difference(pool: &Pool, oracle: &Oracle, a: u64, b: u64) {
    let of = |id| {
        pool.volume_by_id(VolumeId(id))
            .expect("find a volume by its id")
    };
    let found = pool.diff(&of(a), &of(b)).expect("diff");
    let (model_a, model_b) = (&oracle.volumes[&a], &oracle.volumes[&b]);
    let end = model_a.size_bytes.min(model_b.size_bytes).div_ceil(BLOCK);
    let mut reported = BTreeSet::new();
    let mut at = 0;
    for extent in found {
        assert!(
            extent.offset_bytes >= at,
            "the differences are not in order"
        );
        at = extent.offset_bytes + extent.len_bytes;
        for index in extent.offset_bytes / BLOCK..at.div_ceil(BLOCK).min(end) {
            let data = extent.kind == ExtentKind::Data;
            assert_eq!(
                data,
                model_b.blocks.contains_key(&index),
                "the kind of block {index}"
            );
            reported.insert(index);
        }
    }
    let both: BTreeSet<u64> = model_a
        .blocks
        .keys()
        .chain(model_b.blocks.keys())
        .copied()
        .filter(|i| *i < end)
        .collect();
    for index in &both {
        let (in_a, in_b) = (model_a.blocks.get(index), model_b.blocks.get(index));
        let same_block = in_a.map(|block| block.id) == in_b.map(|block| block.id);
        let same_bytes = in_a.map(|block| block.bytes) == in_b.map(|block| block.bytes);
        let says = reported.contains(index);
        assert!(
            says || same_bytes,
            "block {index} of {a} and {b} differs and is not reported"
        );
        assert!(
            !says || !same_block,
            "block {index} of {a} and {b} is shared but reported"
        );
    }
    let stray = reported.difference(&both).next();
    assert_eq!(
        stray, None,
        "holes of {a} and {b} are reported as different"
    );
}
