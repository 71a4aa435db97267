//! `cowshed pool dump`: the structure of a pool that is not open, as lines of JSON.

use super::console::Console;
use super::offline::refuse_daemon;
use super::open::Place;
use anyhow::Context;
use clap::Args;
use cowshed_check::{Item, dump as each_item};
use cowshed_engine::prepare;
use cowshed_format::Superblock;
use cowshed_format::base::cancel::Cancelled;
use cowshed_format::base::{BLOCK_BYTES, Error};
use cowshed_format::catalogue::VolumeEntry;
use cowshed_format::device::mirror::newest_label;
use cowshed_format::device::{FileOptions, MirrorDevice};
use cowshed_format::operation::Operation;
use cowshed_format::record::Record;
use cowshed_format::side::{Lack, SLOTS, SideId, SideLabel, SideState, label_places};
use serde_json::{Value, json};
use std::io::{self, BufWriter, Write};

/// `cowshed pool dump`
#[derive(Debug, Args)]
pub(super) struct Dump {
    /// Also show the names and labels of volumes, and the paths of the sides of a mirror
    #[arg(long)]
    pub names: bool,
    /// Show only the side at --pool, whatever the other sides of the mirror have
    #[arg(long)]
    pub this_side: bool,
}

/// Writes the pool's structure to the standard output.
///
/// # Errors
/// When there is no superblock to begin from, or the output fails.
pub(super) fn dump(dump: &Dump, place: &Place, console: &Console) -> anyhow::Result<()> {
    refuse_daemon(place, |stop| format!("{stop} first"))?;
    let options = FileOptions {
        read_only: true,
        ..FileOptions::default()
    };
    let device = if dump.this_side {
        place.one_side()
    } else {
        place.device(options)
    };
    let device = device
        .and_then(|device| prepare(&*device, true).map(|()| device))
        .map_err(|error| place.explain(error))?;
    let cancel = console.cancel().clone();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut failed = None;
    let labels = device.mirror().map(|mirror| labels(mirror, dump.names));
    for label in labels.into_iter().flatten() {
        writeln!(out, "{label}").context("write the dump")?;
    }
    let outcome = each_item(&*device, &mut |item| {
        cancel.check()?;
        writeln!(out, "{}", line(item, dump.names)).map_err(|error| {
            failed = Some(error);
            Error::from(Cancelled)
        })
    });
    if let Some(error) = failed {
        return Err(error).context("write the dump");
    }
    outcome.map_err(|error| place.explain(error))?;
    out.flush().context("write the dump")
}

fn line(item: &Item, names: bool) -> Value {
    match item {
        Item::Superblock {
            slot,
            copy,
            found,
            counts,
        } => json!({
            "type": "superblock",
            "slot": slot,
            "copy": copy,
            "counts": counts,
            "found": found.as_deref().map(superblock),
        }),
        Item::LogRecord(record) => log_record(record),
        Item::Group {
            group,
            slot,
            used_blocks,
        } => json!({
            "type": "group",
            "group": group,
            "slot": slot.map(|(slot, _)| slot),
            "generation": slot.map(|(_, generation)| generation.0),
            "used_blocks": used_blocks,
        }),
        Item::Volume(entry) => volume(entry, names),
        Item::Record {
            number,
            kind,
            key_bytes,
            value_bytes,
        } => json!({
            "type": "record",
            "number": number,
            "kind": kind,
            "key_bytes": key_bytes,
            "value_bytes": value_bytes,
        }),
        Item::Node {
            volume,
            level,
            first,
            pointer,
        } => json!({
            "type": "node",
            "volume": volume.0,
            "level": level,
            "first": first.0,
            "addr": pointer.addr().0,
            "copies": if pointer.has_copy() { 2 } else { 1 },
            "birth": pointer.birth().0,
            "crc": pointer.crc(),
        }),
        Item::Data {
            volume,
            first,
            addr,
            blocks,
            birth,
        } => json!({
            "type": "data",
            "volume": volume.0,
            "first": first.0,
            "addr": addr.0,
            "blocks": blocks,
            "birth": birth.0,
        }),
        Item::Lost {
            volume,
            first,
            blocks,
        } => json!({
            "type": "lost",
            "volume": volume.0,
            "first": first.0,
            "blocks": blocks,
        }),
        Item::Damaged { place, detail } => json!({
            "type": "damaged",
            "where": place.to_string(),
            "detail": detail.to_string(),
        }),
        // An item that a later version adds.
        other => json!({ "type": "other", "detail": format!("{other:?}") }),
    }
}

/// Returns a line for each place of each label slot of the sides that are open.
fn labels(mirror: &MirrorDevice, names: bool) -> Vec<Value> {
    let mut lines = Vec::new();
    for side in mirror.open_sides() {
        let newest = newest_label(side.device()).map(|(label, _)| label);
        for slot in 0..SLOTS {
            for (place, copy) in label_places(slot).into_iter().zip([false, true]) {
                let mut bytes = vec![0; BLOCK_BYTES];
                let read = side.device().read_at(&mut bytes, place.offset_bytes());
                let found = read.ok().and_then(|()| SideLabel::decode(&bytes));
                let mut line = json!({
                    "type": "label",
                    "slot": slot,
                    "copy": copy,
                    "counts": found.is_some() && found == newest,
                    "found": found.as_ref().map(|found| label(found, names)),
                });
                if names {
                    line["path"] = json!(side.path().display().to_string());
                }
                lines.push(line);
            }
        }
    }
    lines
}

fn id(side: SideId) -> String {
    format!("{:032x}", u128::from_be_bytes(side.0))
}

fn label(found: &SideLabel, names: bool) -> Value {
    let sides = found.set.sides.iter().map(|entry| {
        let lack = match entry.state {
            SideState::Good => Lack::ALL,
            SideState::Behind(lack) => lack,
        };
        let mut side = json!({
            "side": id(entry.id),
            "good": entry.state == SideState::Good,
            "since": lack.since.0,
            "until": lack.until.0,
            "below": lack.below.0,
        });
        if names {
            side["path"] = json!(String::from_utf8_lossy(&entry.path));
        }
        side
    });
    json!({
        "side": id(found.side),
        "epoch": found.set.epoch.number,
        "tag": found.set.epoch.tag,
        "earlier_epochs": found.set.history.len(),
        "sides": sides.collect::<Vec<_>>(),
    })
}

fn superblock(found: &Superblock) -> Value {
    json!({
        "version": found.version,
        "clean": found.clean,
        "blocks": found.layout.block_count(),
        "log_bytes": found.layout.log_bytes(),
        "groups_initialized": found.groups_initialized,
        "generation": found.generation.0,
        "log_sequence": found.log_sequence.0,
        "log_offset": found.log_offset,
        "catalogue_height": found.catalogue_height,
        "catalogue_blocks": found.catalogue_blocks,
        "used_blocks": found.used_blocks,
        "volumes": found.volume_count,
        "next_volume_id": found.next_volume_id,
        "bitmaps_digest": found.bitmaps_digest,
        "metadata_copies": found.metadata_copies,
    })
}

fn volume(entry: &VolumeEntry, names: bool) -> Value {
    let mut line = json!({
        "type": "volume",
        "id": entry.id.0,
        "named": entry.name.is_some(),
        "parent": entry.parent.map(|id| id.0),
        "frozen": entry.frozen,
        "pinned": entry.pinned,
        "branch": entry.branch.0,
        "size_bytes": entry.size_bytes,
        "height": entry.height,
        "own_blocks": entry.own_blocks,
        "mapped_blocks": entry.mapped_blocks,
        "reclaimed": entry.reclaimed,
        "created_ns": entry.created_ns,
        "labels": entry.labels.len(),
    });
    if names {
        line["name"] = json!(entry.name.as_ref().map(ToString::to_string));
        line["labels"] = json!(entry.labels);
    }
    line
}

fn log_record(record: &Record) -> Value {
    let operations = record.operations.as_ref();
    let named = operations.map(|all| all.iter().map(operation).collect::<Vec<_>>());
    json!({
        "type": "log",
        "sequence": record.header.sequence.0,
        "durable": record.header.durable.0,
        "generation": record.header.generation.0,
        "bytes": record.len_bytes,
        "operations": named,
    })
}

fn operation(operation: &Operation) -> Value {
    match operation {
        Operation::Write {
            volume,
            first,
            runs,
            ..
        } => {
            let runs = runs
                .iter()
                .map(|run| json!({ "addr": run.addr.map(|addr| addr.0), "blocks": run.count }));
            json!({
                "write": volume.0,
                "first": first.0,
                "runs": runs.collect::<Vec<_>>(),
            })
        }
        Operation::Discard {
            volume,
            first,
            count,
        } => json!({ "discard": volume.0, "first": first.0, "blocks": count }),
        Operation::Create { volume, .. } => json!({ "create": volume.0 }),
        Operation::Snapshot {
            volume, snapshot, ..
        } => json!({ "snapshot": volume.0, "as": snapshot.0 }),
        Operation::Clone {
            snapshot, volume, ..
        } => json!({ "clone": snapshot.0, "as": volume.0 }),
        Operation::Freeze { volume } => json!({ "freeze": volume.0 }),
        Operation::Resize { volume, size_bytes } => {
            json!({ "resize": volume.0, "size_bytes": size_bytes })
        }
        Operation::Rename { volume, .. } => json!({ "rename": volume.0 }),
        Operation::Label { volume, .. } => json!({ "label": volume.0 }),
        Operation::Remove { volume } => json!({ "remove": volume.0 }),
        Operation::Rollback {
            volume,
            snapshot,
            discarded,
        } => json!({ "rollback": volume.0, "to": snapshot.0, "discarded": discarded.0 }),
        Operation::PutRecord { kind, value, .. } => {
            json!({ "put_record": kind, "value_bytes": value.len() })
        }
        Operation::RemoveRecord { kind, .. } => json!({ "remove_record": kind }),
    }
}
