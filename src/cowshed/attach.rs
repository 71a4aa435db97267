//! `cowshed attach` and `detach`: a volume as a file or block device of this host.

use super::console::Console;
use super::failure::{Usage, or_image};
use super::kept_names;
use super::output::{Column, counted};
use super::sectors;
use anyhow::Context;
use cowshed_daemon::open_pool::OpenPool;
use cowshed_daemon::request::attach::{Attach, Command, Kind, SectorSize};
use cowshed_engine::{Pool, Volume};
use cowshed_export::{AttachKind, AttachOptions, Attachment};
use cowshed_stream::bookmark;
use serde_json::{Value, json};

/// Runs a command on `open_pool`.
///
/// # Errors
/// Like those of `attach` and `detach`.
pub(super) fn run(
    command: &Command,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    let ran = match command {
        Command::Attach(wanted) => attach(wanted, open_pool, console),
        Command::List => list(open_pool, console),
        Command::Detach { volume } => detach(volume, open_pool, console),
    };
    ran.map_err(|error| or_image(error, open_pool.pool(), "inspect"))
}

/// Attaches a volume.
///
/// # Errors
/// When no daemon runs, or the name is kept for containers or images and writing is asked for; else
/// the export's error.
fn attach(attach: &Attach, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let name = &attach.volume;
    let what = || format!("attach volume {name}");
    if attach.kind == Kind::File && attach.sector_size.is_some() {
        return Err(Usage("--sector-size is for --as loop: a file has no sectors".into()).into());
    }
    let export = open_pool.daemon_export().with_context(what)?;
    let volume = open_pool.pool().volume(name).with_context(what)?;
    bookmark::refuse(open_pool.pool(), &volume).with_context(what)?;
    if !attach.read_only {
        kept_names::refuse(&volume.name()).with_context(what)?;
    }
    let kind = match attach.kind {
        Kind::File => AttachKind::File,
        Kind::Loop => AttachKind::Loop,
    };
    let kept = sectors::kept(&volume.info().with_context(what)?.labels);
    let sector_size = attach.sector_size.or(kept);
    let options = AttachOptions {
        read_only: attach.read_only,
        shared: attach.shared,
        by_hand: true,
        sector_bytes: sector_size.map(SectorSize::bytes),
        scan_partitions: true,
    };
    let attached = export.attach(&volume, kind, options).with_context(what)?;
    keep_sectors(attach, &volume, open_pool.pool()).with_context(what)?;
    let count = attached.count;
    let attachment = Attachment {
        volume: volume.id(),
        name: volume.name(),
        path: attached.path,
        kind,
        read_only: attach.read_only,
        count,
    };
    if count > 1 {
        console.message(&format!(
            "{} is attached {count} times now; detach it as many times",
            attachment.name
        ));
    }
    let mut document = document(&attachment);
    if let Some(bytes) = attached.sector_bytes {
        document["sector_bytes"] = bytes.into();
    }
    console.result(&document, || attachment.path.display().to_string())
}

/// Stores the sector size that was asked for, once a device has it.
fn keep_sectors(attach: &Attach, volume: &Volume, pool: &Pool) -> anyhow::Result<()> {
    if let Some(size) = attach.sector_size {
        sectors::keep_with(volume, pool, size)?;
        pool.flush()?;
    }
    Ok(())
}

/// Detaches a volume.
///
/// # Errors
/// When no daemon runs, the volume is not attached, or it is in use.
fn detach(name: &str, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let what = || format!("detach volume {name}");
    let export = open_pool.daemon_export().with_context(what)?;
    let volume = open_pool.pool().volume(name).with_context(what)?;
    // Attachments of containers and images are not detached by hand.
    let is_kept = kept_names::refuse(&volume.name()).is_err();
    let left = export.detach_by_hand(&volume, is_kept).with_context(what)?;
    let name = volume.name();
    if left > 0 {
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        console.message(&format!(
            "{name} is still attached {}",
            counted(left, "time", "times")
        ));
    }
    console.result(
        &json!({ "volume": name.as_str(), "still_attached": left }),
        String::new,
    )
}

fn list(open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let attachments = open_pool
        .daemon_export()
        .context("attach --ls")?
        .attachments();
    let documents: Vec<_> = attachments.iter().map(document).collect();
    console.result(&documents, || {
        let columns = [
            Column::Text("VOLUME"),
            Column::Text("AS"),
            Column::Number("TIMES"),
            Column::Text("PATH"),
        ];
        let row = |attachment: &Attachment| {
            vec![
                attachment.name.to_string(),
                shown_kind(attachment),
                attachment.count.to_string(),
                attachment.path.display().to_string(),
            ]
        };
        console.table(&columns, attachments.iter().map(row))
    })
}

fn shown_kind(attachment: &Attachment) -> String {
    let mode = if attachment.read_only {
        " read-only"
    } else {
        ""
    };
    format!("{}{mode}", attachment.kind)
}

fn document(attachment: &Attachment) -> Value {
    json!({
        "volume": attachment.name.as_str(),
        "id": attachment.volume.0,
        "path": attachment.path.to_string_lossy(),
        "as": attachment.kind.to_string(),
        "read_only": attachment.read_only,
        "count": attachment.count,
    })
}
