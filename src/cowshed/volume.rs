//! `cowshed volume …`: thin volumes, snapshots and clones.

use super::console::Console;
use super::open_pool::OpenPool;
use super::output::{Column, exact, facts, time};
use super::place::FileOrPipe;
use super::resize::{self, Resize};
use super::size::{Size, human};
use super::{export_volume, import_volume, kept_names, removal, sectors};
use anyhow::Context;
use clap::{Args, Subcommand};
use cowshed_engine::{
    Extent, ExtentKind, Labels, Pool, RemovedVolume, Volume, VolumeInfo, VolumeKind,
};
use cowshed_format::base::{Name, VolumeId};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// `cowshed volume …`
#[derive(Debug, Subcommand, Serialize, Deserialize)]
pub(super) enum VolumeCommand {
    /// Create an empty thin volume
    Create(NameAndSize),
    /// Remove volumes or snapshots; clones of them stay
    Rm(Remove),
    /// Change the virtual size of a volume
    #[command(after_help = "Examples:\n  cowshed volume resize disk --size 20G\n  \
        cowshed volume resize disk --size 5G --shrink")]
    Resize(Resize),
    /// Rename a volume
    Rename(Rename),
    /// Take a read-only snapshot of a volume
    Snapshot(SnapshotOf),
    /// Create a writable volume from a snapshot
    #[command(
        after_help = "A clone has the identifiers of what is in it. To mount a cloned XFS \
        beside its source, use `mount -o nouuid`, or give it a UUID of its own first with \
        `xfs_admin -U generate DEVICE`. A cloned btrfs needs `btrfstune -u DEVICE`, a cloned \
        volume group `vgimportclone DEVICE`."
    )]
    Clone(CloneOf),
    /// Restore a volume to one of its snapshots
    Rollback(Rollback),
    /// List all volumes and snapshots
    Ls,
    /// Show one volume
    Show(One),
    /// List the ranges in which two volumes differ
    Diff(Pair),
    /// Create a volume from a file
    #[command(after_help = "Examples:\n  cowshed volume import disk ./disk.raw\n  \
        zstdcat disk.raw.zst | cowshed volume import disk -\n  \
        qemu-img convert -O raw disk.qcow2 disk.raw && cowshed volume import disk disk.raw")]
    Import(Import),
    /// Write a volume to a file
    #[command(after_help = "Examples:\n  cowshed volume export disk ./disk.raw\n  \
        cowshed volume export disk - | zstd > disk.raw.zst")]
    Export(Export),
}

/// A name and a size.
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct NameAndSize {
    /// The volume
    pub name: String,
    /// Its virtual size: 4096, 64K, 10G, 1T
    #[arg(long)]
    pub size: Size,
}

/// `cowshed volume rm`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Remove {
    /// The volumes, by name or id
    #[arg(required = true, value_name = "VOL")]
    pub names: Vec<String>,
}

/// `cowshed volume rename`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Rename {
    /// The volume
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// Its new name
    pub name: String,
}

/// `cowshed volume snapshot`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct SnapshotOf {
    /// The volume
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// The snapshot's name
    pub name: String,
}

/// `cowshed volume clone`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct CloneOf {
    /// The snapshot
    #[arg(value_name = "SNAP")]
    pub snapshot: String,
    /// The new volume's name
    pub name: String,
}

/// `cowshed volume rollback`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Rollback {
    /// The volume
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// The snapshot to go back to
    #[arg(value_name = "SNAP")]
    pub snapshot: String,
}

/// One volume.
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct One {
    /// The volume, by name or id
    #[arg(value_name = "VOL")]
    pub volume: String,
}

/// Two volumes.
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Pair {
    /// The one volume
    pub a: String,
    /// The other; the kinds listed are what this one holds
    pub b: String,
}

/// `cowshed volume import`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Import {
    /// The new volume's name
    pub name: String,
    /// The file, or - for the standard input
    #[arg(value_parser = FileOrPipe::parser())]
    pub file: FileOrPipe,
    /// Take the bytes as they are, also those of a qcow2 or compressed file
    #[arg(long)]
    #[serde(default)]
    pub raw: bool,
}

/// `cowshed volume export`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Export {
    /// The volume, by name or id
    #[arg(value_name = "VOL")]
    pub volume: String,
    /// The file, or - for the standard output
    #[arg(value_parser = FileOrPipe::parser())]
    pub file: FileOrPipe,
}

/// Runs a command on the open `pool`.
///
/// # Errors
/// The error of the engine or the host.
pub(super) fn run(
    command: &VolumeCommand,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    let pool = open_pool.pool();
    match command {
        VolumeCommand::Create(new) => make(
            open_pool,
            &format!("create volume {}", new.name),
            console,
            &new.name,
            |name| Ok(pool.create_volume(name, new.size.0)?),
        ),
        VolumeCommand::Snapshot(new) => {
            let what = format!("snapshot volume {} as {}", new.volume, new.name);
            make(open_pool, &what, console, &new.name, |name| {
                let volume = pool.volume(&new.volume)?;
                kept_names::refuse(&volume.name())?;
                let snapshot = match open_pool.export() {
                    // The snapshot must contain data that is still cached by a file system mounted
                    // on the volume.
                    Some(_) => open_pool.containers()?.mounts().snapshot(&volume, name)?,
                    None => pool.snapshot(&volume, name)?,
                };
                inherit_sectors(&volume, &snapshot, pool)?;
                Ok(snapshot)
            })
        }
        VolumeCommand::Clone(new) => {
            let what = format!("clone {} as {}", new.snapshot, new.name);
            make(open_pool, &what, console, &new.name, |name| {
                let snapshot = pool.volume(&new.snapshot)?;
                let clone = pool.clone_volume(&snapshot, name)?;
                inherit_sectors(&snapshot, &clone, pool)?;
                Ok(clone)
            })
        }
        VolumeCommand::Rm(volumes) => remove(volumes, pool, console),
        VolumeCommand::Resize(resize) => change(pool, &resize.name, "resize", console, |volume| {
            resize::resize(resize, volume, open_pool)
        }),
        VolumeCommand::Rename(rename) => {
            change(pool, &rename.volume, "rename", console, |volume| {
                kept_names::refuse(&volume.name())?;
                let name = Name::new(&rename.name)?;
                kept_names::refuse(&name)?;
                Ok(pool.rename(volume, &name)?)
            })
        }
        VolumeCommand::Rollback(back) => {
            change(pool, &back.volume, "roll back", console, |volume| {
                kept_names::refuse(&volume.name())?;
                Ok(pool.rollback(volume, &pool.volume(&back.snapshot)?)?)
            })
        }
        VolumeCommand::Ls => list(pool, console),
        VolumeCommand::Show(one) => {
            let what = || format!("show volume {}", one.volume);
            let info = pool.volume(&one.volume).and_then(|volume| volume.info());
            show(pool, &info.with_context(what)?, console)
        }
        VolumeCommand::Diff(pair) => diff(pair, pool, console),
        VolumeCommand::Import(import) => {
            let volume = import_volume::import(import, pool, console)?;
            show_changed(pool, &volume.info()?, console)
        }
        VolumeCommand::Export(export) => {
            export_volume::export(&export.volume, &export.file, pool, console)
        }
    }
}

/// Makes a snapshot or clone inherit the sector size of its source.
fn inherit_sectors(source: &Volume, new: &Volume, pool: &Pool) -> anyhow::Result<()> {
    if let Some(size) = sectors::kept(&source.info()?.labels) {
        sectors::keep_with(new, pool, size)?;
    }
    Ok(())
}

/// Creates a volume called `name`, makes it durable, and shows it.
fn make(
    open_pool: &OpenPool,
    what: &str,
    console: &Console,
    name: &str,
    act: impl FnOnce(&Name) -> anyhow::Result<Volume>,
) -> anyhow::Result<()> {
    let made = || -> anyhow::Result<VolumeInfo> {
        let name = Name::new(name)?;
        kept_names::refuse(&name)?;
        let volume = act(&name)?;
        open_pool.pool().flush()?;
        Ok(volume.info()?)
    };
    let info = made().with_context(|| what.to_owned())?;
    show_changed(open_pool.pool(), &info, console)
}

/// Changes the volume `name`, makes the change durable, and shows the volume's new state.
fn change(
    pool: &Pool,
    name: &str,
    verb: &str,
    console: &Console,
    act: impl FnOnce(&Volume) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let changed = || -> anyhow::Result<VolumeInfo> {
        let volume = pool.volume(name)?;
        act(&volume)?;
        pool.flush()?;
        Ok(volume.info()?)
    };
    let info = changed().with_context(|| format!("{verb} volume {name}"))?;
    show_changed(pool, &info, console)
}

/// Removes all volumes that can be removed; the first failure is the command's failure.
fn remove(volumes: &Remove, pool: &Pool, console: &Console) -> anyhow::Result<()> {
    let removal = removal::each(&volumes.names, "volume", |name| {
        let volume = pool.volume(name)?;
        kept_names::refuse(&volume.name())?;
        Ok(pool.remove(&volume)?)
    });
    pool.flush().context("remove volumes")?;
    removal.show(console)
}

/// A volume in its JSON form.
#[derive(Serialize)]
struct VolumeDocument<'a> {
    id: u64,
    name: &'a str,
    parent: Option<u64>,
    parent_name: Option<String>,
    kind: &'static str,
    size_bytes: u64,
    own_bytes: u64,
    referenced_bytes: u64,
    created: String,
    labels: &'a Labels,
    children: u32,
}

impl<'a> VolumeDocument<'a> {
    fn new(pool: &Pool, info: &'a VolumeInfo) -> Self {
        Self {
            id: info.id.0,
            name: info.name.as_str(),
            parent: info.parent.map(|id| id.0),
            parent_name: parent_name(pool, info.parent),
            kind: match info.kind {
                VolumeKind::Volume => "volume",
                VolumeKind::Snapshot => "snapshot",
            },
            size_bytes: info.size_bytes,
            own_bytes: info.own_bytes,
            referenced_bytes: info.referenced_bytes,
            created: time(info.created),
            labels: &info.labels,
            children: info.children,
        }
    }

    /// Returns a removed volume on which others still depend. No volume could have such a `name`.
    fn of_removed(pool: &Pool, name: &'a str, it: &RemovedVolume, labels: &'a Labels) -> Self {
        Self {
            id: it.id.0,
            name,
            parent: it.parent.map(|id| id.0),
            parent_name: parent_name(pool, it.parent),
            kind: "removed",
            size_bytes: it.size_bytes,
            own_bytes: it.own_bytes,
            referenced_bytes: it.referenced_bytes,
            created: time(it.created),
            labels,
            children: u32::try_from(it.children.len()).unwrap_or(u32::MAX),
        }
    }
}

fn parent_name(pool: &Pool, parent: Option<VolumeId>) -> Option<String> {
    let parent = pool.volume_by_id(parent?).ok()?;
    Some(parent.name().to_string())
}

/// Shows a volume that a command created or changed: all fields as JSON, the name for people.
fn show_changed(pool: &Pool, info: &VolumeInfo, console: &Console) -> anyhow::Result<()> {
    console.result(&VolumeDocument::new(pool, info), || info.name.to_string())
}

fn show(pool: &Pool, info: &VolumeInfo, console: &Console) -> anyhow::Result<()> {
    let document = VolumeDocument::new(pool, info);
    console.result(&document, || {
        let parent = match (&document.parent_name, document.parent) {
            (Some(name), _) => name.clone(),
            (None, Some(id)) => format!("{id} (removed)"),
            (None, None) => "none".to_owned(),
        };
        let labels: Vec<_> = info
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        facts([
            ("name", info.name.to_string()),
            ("id", info.id.to_string()),
            ("kind", document.kind.to_owned()),
            ("parent", parent),
            ("children", info.children.to_string()),
            ("size", exact(info.size_bytes)),
            ("own", exact(info.own_bytes)),
            ("referenced", exact(info.referenced_bytes)),
            ("created", document.created.clone()),
            ("labels", labels.join(" ")),
        ])
    })
}

fn list(pool: &Pool, console: &Console) -> anyhow::Result<()> {
    let volumes = pool.volumes();
    let removed = pool.removed_volumes();
    let removed: Vec<_> = removed
        .iter()
        .filter(|it| it.is_needed)
        .map(|it| (format!("(removed {})", it.id), it))
        .collect();
    let no_labels = Labels::new();
    let named = volumes.iter().map(|info| VolumeDocument::new(pool, info));
    let removed = removed
        .iter()
        .map(|(name, it)| VolumeDocument::of_removed(pool, name, it, &no_labels));
    let documents: Vec<_> = named.chain(removed).collect();
    console.result(&documents, || {
        let columns = [
            Column::Text("NAME"),
            Column::Number("ID"),
            Column::Text("KIND"),
            Column::Text("PARENT"),
            Column::Number("SIZE"),
            Column::Number("OWN"),
            Column::Text("CREATED"),
        ];
        let row = |volume: &VolumeDocument<'_>| {
            vec![
                volume.name.to_owned(),
                volume.id.to_string(),
                volume.kind.to_owned(),
                volume.parent_name.clone().unwrap_or_default(),
                human(volume.size_bytes),
                human(volume.own_bytes),
                volume.created.clone(),
            ]
        };
        console.table(&columns, documents.iter().map(row))
    })
}

fn diff(pair: &Pair, pool: &Pool, console: &Console) -> anyhow::Result<()> {
    let what = || format!("compare {} and {}", pair.a, pair.b);
    let a = pool.volume(&pair.a).with_context(what)?;
    let b = pool.volume(&pair.b).with_context(what)?;
    let ranges = pool.diff(&a, &b).with_context(what)?;
    let kind = |kind| match kind {
        ExtentKind::Data => "data",
        ExtentKind::Zero => "zero",
    };
    let documents: Vec<_> = ranges
        .iter()
        .map(|range| {
            json!({
                "offset": range.offset_bytes,
                "length": range.len_bytes,
                "kind": kind(range.kind),
            })
        })
        .collect();
    console.result(&documents, || {
        let columns = [
            Column::Number("OFFSET"),
            Column::Number("LENGTH"),
            Column::Text("KIND"),
        ];
        let row = |range: &Extent| {
            vec![
                range.offset_bytes.to_string(),
                range.len_bytes.to_string(),
                kind(range.kind).to_owned(),
            ]
        };
        if ranges.is_empty() {
            return "no difference".to_owned();
        }
        console.table(&columns, ranges.iter().map(row))
    })
}
