//! `cowshed volume …`: thin volumes, snapshots and clones.

use super::console::Console;
use super::failure::or_image;
use super::output::{Column, exact, facts, time};
use super::pool::missing_line;
use super::{export_volume, import_volume, kept_names, removal, resize, sectors, transfer};
use anyhow::Context;
use cowshed_daemon::open_pool::OpenPool;
use cowshed_daemon::request::volume::Command;
use cowshed_engine::{
    Extent, ExtentKind, Labels, Pool, RemovedVolume, Volume, VolumeInfo, VolumeKind,
};
use cowshed_format::base::size::human;
use cowshed_format::base::{Name, VolumeId, printable};
use cowshed_stream::bookmark;
use cowshed_stream::receive::origin;
use serde::Serialize;
use serde_json::json;

/// Runs a command on the open `pool`.
///
/// # Errors
/// The error of the engine or the host.
pub(super) fn run(
    command: &Command,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    run_by_name(command, open_pool, console)
        .map_err(|error| or_image(error, open_pool.pool(), "inspect"))
}

fn run_by_name(command: &Command, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let pool = open_pool.pool();
    match command {
        Command::Create { name, size_bytes } => make(
            open_pool,
            &format!("create volume {name}"),
            console,
            name,
            |name| Ok(pool.create_volume(name, *size_bytes)?),
        ),
        Command::Snapshot { volume, name } => {
            let what = format!("snapshot volume {volume} as {name}");
            make(open_pool, &what, console, name, |name| {
                let volume = pool.volume(volume)?;
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
        Command::Clone { snapshot, name } => {
            let what = format!("clone {snapshot} as {name}");
            make(open_pool, &what, console, name, |name| {
                let snapshot = pool.volume(snapshot)?;
                bookmark::refuse(pool, &snapshot)?;
                let clone = pool.clone_volume(&snapshot, name)?;
                inherit_sectors(&snapshot, &clone, pool)?;
                Ok(clone)
            })
        }
        Command::Remove { volumes } => remove(volumes, pool, console),
        Command::Resize(resize) => change(pool, &resize.volume, "resize", console, |volume| {
            resize::resize(resize, volume, open_pool)
        }),
        Command::Rename { volume, name } => change(pool, volume, "rename", console, |volume| {
            kept_names::refuse(&volume.name())?;
            let name = Name::new(name)?;
            kept_names::refuse(&name)?;
            Ok(pool.rename(volume, &name)?)
        }),
        Command::Rollback { volume, snapshot } => {
            change(pool, volume, "roll back", console, |volume| {
                kept_names::refuse(&volume.name())?;
                let snapshot = pool.volume(snapshot)?;
                bookmark::refuse(pool, &snapshot)?;
                Ok(pool.rollback(volume, &snapshot)?)
            })
        }
        Command::List => list(pool, console),
        Command::Show { volume } => {
            let what = || format!("show volume {volume}");
            let info = pool.volume(volume).and_then(|volume| volume.info());
            show(pool, &info.with_context(what)?, console)
        }
        Command::Diff { a, b } => diff(a, b, pool, console),
        Command::Import(import) => {
            let volume = import_volume::import(import, pool, console)?;
            show_changed(pool, &volume.info()?, console)
        }
        Command::Export {
            volume,
            target,
            skip_damaged,
        } => export_volume::export(volume, target, *skip_damaged, pool, console),
        Command::Send(send) => transfer::send_volumes(send, open_pool, console),
        Command::Receive(receive) => transfer::receive(receive, open_pool, console),
        Command::Bookmark { snapshot, name } => {
            let what = format!("bookmark {snapshot} as {name}");
            make(open_pool, &what, console, name, |name| {
                let snapshot = pool.volume(snapshot)?;
                Ok(bookmark::create(pool, &snapshot, name)?)
            })
        }
        Command::Hold { volume, tag } => change(pool, volume, "hold", console, |volume| {
            kept_names::refuse(&volume.name())?;
            let mut transaction = pool.transaction();
            transaction.hold(volume.id(), &Name::new(tag)?);
            Ok(transaction.commit()?)
        }),
        Command::Release { volume, tag } => change(pool, volume, "release", console, |volume| {
            let tag = Name::new(tag)?;
            let holds = pool.holds(volume);
            if !holds.contains(&tag) {
                let by: Vec<_> = holds.iter().map(ToString::to_string).collect();
                let by = if by.is_empty() {
                    "nobody".to_owned()
                } else {
                    by.join(", ")
                };
                anyhow::bail!("it is not held by {tag}; it is held by {by}");
            }
            let mut transaction = pool.transaction();
            transaction.release(volume.id(), &tag);
            Ok(transaction.commit()?)
        }),
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
fn remove(volumes: &[String], pool: &Pool, console: &Console) -> anyhow::Result<()> {
    let removal = removal::each(volumes, "volume", |name| {
        let volume = pool.volume(name);
        let volume = volume.map_err(|error| or_image(error.into(), pool, "rm"))?;
        kept_names::refuse(&volume.name())?;
        let mut transaction = pool.transaction();
        transaction.remove(volume.id());
        cowshed_stream::forget(pool, &mut transaction, volume.id());
        Ok(transaction.commit()?)
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
    /// The tags of those who hold it.
    holds: Vec<String>,
    /// Where it was received from.
    received: Option<Received>,
    /// The snapshot that a bookmark marks.
    marks: Option<String>,
}

/// The source of a received snapshot in its JSON form.
#[derive(Serialize)]
struct Received {
    name: String,
    /// When it was received.
    at: String,
}

impl<'a> VolumeDocument<'a> {
    fn new(pool: &Pool, info: &'a VolumeInfo) -> Self {
        let volume = pool.volume_by_id(info.id).ok();
        // A record of a newer version says nothing here.
        let origin = origin(pool, info.id).ok().flatten();
        let marked = volume.as_ref().map(|volume| bookmark::marked(pool, volume));
        let marked = marked.and_then(Result::ok).flatten();
        let holds = volume.map_or_else(Vec::new, |volume| pool.holds(&volume));
        Self {
            id: info.id.0,
            name: info.name.as_str(),
            parent: info.parent.map(|id| id.0),
            parent_name: parent_name(pool, info.parent),
            kind: match info.kind {
                _ if marked.is_some() => "bookmark",
                VolumeKind::Volume => "volume",
                VolumeKind::Snapshot => "snapshot",
            },
            size_bytes: info.size_bytes,
            own_bytes: info.own_bytes,
            referenced_bytes: info.referenced_bytes,
            // A received snapshot is as old as the one that was sent.
            created: time(
                origin
                    .as_ref()
                    .map_or(info.created, |origin| origin.created),
            ),
            labels: &info.labels,
            children: info.children,
            holds: holds.iter().map(Name::to_string).collect(),
            received: origin.map(|origin| Received {
                name: origin.name.to_string(),
                at: time(info.created),
            }),
            marks: marked.map(|marked| marked.name.to_string()),
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
            holds: Vec::new(),
            received: None,
            marks: None,
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
            .map(|(key, value)| printable(&format!("{key}={value}")).into_owned())
            .collect();
        let received = document
            .received
            .as_ref()
            .map_or_else(String::new, |received| {
                format!("{} at {}", received.name, received.at)
            });
        let further = [
            ("marks", document.marks.clone().unwrap_or_default()),
            ("received", received),
            ("held by", document.holds.join(" ")),
        ];
        let further = further.into_iter().filter(|(_, text)| !text.is_empty());
        let known = [
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
        ];
        facts(known.into_iter().chain(further))
    })
}

fn list(pool: &Pool, console: &Console) -> anyhow::Result<()> {
    if let Some(missing) = missing_line(&pool.status()?.missing) {
        console.message(&missing);
    }
    // A recipe is a part of its layer.
    let is_shown = |info: &VolumeInfo| !info.name.as_str().starts_with(kept_names::RECIPE);
    let volumes: Vec<VolumeInfo> = pool.volumes().into_iter().filter(is_shown).collect();
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

fn diff(a: &str, b: &str, pool: &Pool, console: &Console) -> anyhow::Result<()> {
    let what = || format!("compare {a} and {b}");
    let a = pool.volume(a).with_context(what)?;
    let b = pool.volume(b).with_context(what)?;
    for volume in [&a, &b] {
        bookmark::refuse(pool, volume).with_context(what)?;
    }
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
