//! `cowshed pool dump`: the structure of a pool that is not open, as lines of JSON.

use super::console::Console;
use super::offline::refuse_daemon;
use super::open::Place;
use anyhow::Context;
use clap::Args;
use cowshed_check::{Item, dump as each_item};
use cowshed_format::Superblock;
use cowshed_format::base::Error;
use cowshed_format::base::cancel::Cancelled;
use cowshed_format::catalogue::VolumeEntry;
use cowshed_format::device::{FileDevice, FileOptions};
use cowshed_format::operation::Operation;
use cowshed_format::record::Record;
use serde_json::{Value, json};
use std::io::{self, BufWriter, Write};

/// `cowshed pool dump`
#[derive(Debug, Args)]
pub(super) struct Dump {
    /// Also show the names and labels of volumes
    #[arg(long)]
    pub names: bool,
}

/// Writes the pool's structure to the standard output.
///
/// # Errors
/// When there is no superblock to begin from, or the output fails.
pub(super) fn dump(dump: &Dump, place: &Place, console: &Console) -> anyhow::Result<()> {
    refuse_daemon(place, "stop it first")?;
    let options = FileOptions {
        read_only: true,
        ..FileOptions::default()
    };
    let device =
        FileDevice::open(place.pool.as_path(), options).map_err(|error| place.explain(error))?;
    let cancel = console.cancel().clone();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut failed = None;
    let outcome = each_item(&device, &mut |item| {
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
