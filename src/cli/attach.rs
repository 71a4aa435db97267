//! `cowshed attach` and `detach`: a volume as a file or block device of this host.

use super::console::Console;
use super::output::{Column, table};
use super::shed::Shed;
use crate::export::{AttachKind, Attachment};
use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// `cowshed attach`
#[derive(Debug, Args, Serialize, Deserialize)]
#[command(after_help = "Examples:\n  mkfs.ext4 $(cowshed attach disk)\n  \
    cowshed attach disk --as file --read-only\n  cowshed attach --ls")]
pub(super) struct Attach {
    /// The volume, by name or id
    #[arg(
        value_name = "VOL",
        required_unless_present = "ls",
        conflicts_with = "ls"
    )]
    pub volume: Option<String>,
    /// As what: a file, or a loop device /dev/loopN
    #[arg(long = "as", value_enum, default_value_t = Kind::Loop)]
    pub kind: Kind,
    /// Nothing may be written through it
    #[arg(long)]
    pub read_only: bool,
    /// List what is attached
    #[arg(long)]
    pub ls: bool,
}

/// As what a volume is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(super) enum Kind {
    /// A file.
    File,
    /// A loop device.
    Loop,
}

/// `cowshed detach`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Detach {
    /// The volume, by name or id
    #[arg(value_name = "VOL")]
    pub volume: String,
}

/// Attaches a volume, or lists what is attached.
///
/// # Errors
/// When no daemon runs, and what the export says.
pub(super) fn attach(attach: &Attach, shed: &Shed, console: &Console) -> anyhow::Result<()> {
    let Some(name) = &attach.volume else {
        return list(shed, console);
    };
    let what = || format!("attach volume {name}");
    let export = shed.daemon_export().with_context(what)?;
    let volume = shed.pool().volume(name).with_context(what)?;
    let path = match attach.kind {
        Kind::File => export.attach_file(&volume, attach.read_only),
        Kind::Loop => export.attach_loop(&volume, attach.read_only),
    }
    .with_context(what)?;
    let kind = match attach.kind {
        Kind::File => AttachKind::File,
        Kind::Loop => AttachKind::Loop,
    };
    let read_only = attach.read_only;
    let (volume, name) = (volume.id(), volume.name());
    let attachment = Attachment {
        volume,
        name,
        path,
        kind,
        read_only,
    };
    console.result(&document(&attachment), || {
        attachment.path.display().to_string()
    })
}

/// Detaches a volume.
///
/// # Errors
/// When no daemon runs, the volume is not attached, or it is in use.
pub(super) fn detach(detach: &Detach, shed: &Shed, console: &Console) -> anyhow::Result<()> {
    let what = || format!("detach volume {}", detach.volume);
    let export = shed.daemon_export().with_context(what)?;
    let volume = shed.pool().volume(&detach.volume).with_context(what)?;
    export.detach(&volume).with_context(what)?;
    console.result(&json!({ "volume": volume.name().as_str() }), String::new)
}

fn list(shed: &Shed, console: &Console) -> anyhow::Result<()> {
    let attachments = shed.daemon_export().context("attach --ls")?.attachments();
    let documents: Vec<_> = attachments.iter().map(document).collect();
    console.result(&documents, || {
        let columns = [
            Column::Text("VOLUME"),
            Column::Text("AS"),
            Column::Text("PATH"),
        ];
        let row = |attachment: &Attachment| {
            vec![
                attachment.name.to_string(),
                shown_kind(attachment),
                attachment.path.display().to_string(),
            ]
        };
        table(&columns, attachments.iter().map(row))
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
    })
}
