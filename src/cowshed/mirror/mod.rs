//! `cowshed pool mirror`: which sides a pool has, and changing them, on an open pool; choosing one of
//! sides that were written apart, on one that no process has open (`keep`).

mod begin;
mod keep;
mod new_side;

pub(crate) use keep::Keep;
pub(super) use keep::keep;
pub(super) use new_side::in_use;

use super::console::Console;
use super::failure::Exit;
use super::open::Place;
use super::output::{Column, table};
use super::remote;
use anyhow::Context;
use cowshed_daemon::request::Command as Request;
use cowshed_daemon::request::HostPath;
use cowshed_daemon::request::pool::{Command as PoolRequest, Mirror};
use cowshed_daemon::{OpenPool, SideFiles};
use cowshed_engine::Pool;
use cowshed_format::base::size::human;
use cowshed_format::base::{Error, MirrorError, Result as PoolResult};
use cowshed_format::device::mirror::{SideReport, SideStanding, is_same_file};
use new_side::{Made, Wanted, new_side};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Runs a command on the sides of a pool, in the daemon that has it open, or here.
///
/// # Errors
/// The reason why it cannot be done; nothing is changed then.
pub(super) fn on_open_pool(
    request: &Mirror,
    place: &Place,
    console: &Console,
) -> anyhow::Result<Exit> {
    begin::begin_mirror(request, place, console)?;
    let command = Request::Pool(PoolRequest::Mirror(request.clone()));
    remote::run_anywhere(command, place, console)
}

/// Runs a command on the sides of an open pool.
///
/// # Errors
/// The reason why it cannot be done; nothing is changed then.
pub(super) fn run(request: &Mirror, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let (pool, is_daemon) = (open_pool.pool(), open_pool.serving().is_some());
    let own = open_pool.path().as_path();
    let progress = console.progress("copy", Some(0));
    let cancel = console.cancel().clone();
    let mut tell = |done, total| {
        progress.set(done, total);
        !cancel.is_cancelled()
    };
    let mut once_more = String::new();
    let files = SideFiles::of(open_pool);
    match request {
        Mirror::Status => {}
        Mirror::Begin { path, force } => {
            let begun = begin::begin(pool, own, path.as_path(), *force, is_daemon);
            let begun = begun.with_context(|| format!("add {path}"))?;
            return console.print(&begun.to_string());
        }
        Mirror::Add { path, force } => {
            let wanted = Wanted::by(pool, *force, is_daemon);
            let added = add(pool, &known(pool, path), wanted, &files, &mut tell);
            added.with_context(|| format!("add {path}"))?;
            once_more = format!(
                "{path} does not have everything yet; copying to it goes on when this command is \
                 repeated, and when the pool is opened the next time"
            );
        }
        Mirror::Rm { path } => {
            let removed = pool.remove_side(&known(pool, path));
            removed.with_context(|| format!("remove {path}"))?;
        }
        Mirror::Replace { old, new, force } => {
            let wanted = Wanted::by(pool, *force, is_daemon);
            let sides = [known(pool, old), known(pool, new)];
            let replaced = replace(pool, &sides, wanted, &files, &mut tell);
            replaced.with_context(|| format!("replace {old} by {new}"))?;
            once_more =
                format!("{new} does not have everything yet; repeat the command to take {old} out");
        }
    }
    drop((progress, files));
    show(pool, console)?;
    if is_daemon
        && matches!(request, Mirror::Rm { .. } | Mirror::Replace { .. })
        && let Some(line) = where_to_start(pool, own)
    {
        tracing::warn!("{line}");
        console.message(&line);
    }
    cancel.check().context(once_more)
}

/// Returns what to do before the next start of a daemon that was started with the path `own`, if what
/// is there is no side any more.
pub(super) fn where_to_start(pool: &Pool, own: &Path) -> Option<String> {
    let sides = pool.sides().unwrap_or_default();
    let is_own = |side: &SideReport| side.path == own || is_same_file(&side.path, own);
    if sides.iter().any(is_own) {
        return None;
    }
    let is_good = |side: &&SideReport| side.standing == SideStanding::Good;
    sides.iter().find(is_good).map(|other| {
        format!(
            "the daemon was started with {own}, which is no side any more: commands find it by that \
             path until it ends; start it with {other} the next time (--pool, or COWSHED_POOL in \
             its unit)",
            own = own.display(),
            other = other.path.display()
        )
    })
}

/// Returns the path by which the pool knows the side that `path` leads to: a side may have several
/// names.
fn known(pool: &Pool, path: &HostPath) -> PathBuf {
    let path = path.as_path();
    let sides = pool.sides().unwrap_or_default();
    let is_named = |side: &&SideReport| side.path == path;
    let is_same = |side: &&SideReport| is_same_file(&side.path, path);
    let side = sides
        .iter()
        .find(is_named)
        .or_else(|| sides.iter().find(is_same));
    side.map_or_else(|| path.to_owned(), |side| side.path.clone())
}

fn add(
    pool: &Pool,
    path: &Path,
    wanted: Wanted,
    files: &SideFiles<'_>,
    tell: &mut dyn FnMut(u64, u64) -> bool,
) -> PoolResult<()> {
    let made = Made::default();
    let added = pool.add_side(new_side(path, wanted, &made, files), tell);
    made.settle(pool, path);
    match added {
        // This command has brought it back just by opening the pool.
        Err(Error::Mirror(MirrorError::AlreadySide { .. }))
            if !wanted.is_daemon() && came_back(pool, path) =>
        {
            Ok(())
        }
        added => added,
    }
}

/// Returns true if the side at `path` has got what it lacked since the pool was opened.
fn came_back(pool: &Pool, path: &Path) -> bool {
    let sides = pool.sides().unwrap_or_default();
    let side = sides.iter().find(|side| side.path == path);
    side.is_some_and(|side| side.total_bytes > 0 && side.standing == SideStanding::Good)
}

fn replace(
    pool: &Pool,
    [old, new]: &[PathBuf; 2],
    wanted: Wanted,
    files: &SideFiles<'_>,
    tell: &mut dyn FnMut(u64, u64) -> bool,
) -> PoolResult<()> {
    if is_same_file(old, new) {
        let path = new.clone();
        return Err(Error::from(MirrorError::AlreadySide { path }));
    }
    let made = Made::default();
    let replaced = pool.replace_side(old, new_side(new, wanted, &made, files), tell);
    made.settle(pool, new);
    replaced
}

/// Returns the word for the state of a side.
pub(super) const fn state(standing: SideStanding) -> &'static str {
    match standing {
        SideStanding::Good => "good",
        SideStanding::Behind(_) => "behind",
        SideStanding::Missing(_) => "missing",
    }
}

/// Returns a line about the sides that the pool is used without, if there are any.
pub(super) fn degraded_line(sides: &[SideReport]) -> Option<String> {
    let faults: Vec<String> = sides.iter().filter_map(fault).collect();
    (!faults.is_empty()).then(|| format!("the mirror is degraded: {}", faults.join("; ")))
}

fn fault(side: &SideReport) -> Option<String> {
    let path = side.path.display();
    match side.standing {
        SideStanding::Good => None,
        SideStanding::Behind(_) => Some(format!(
            "the side at {path} is behind, and gets what it lacks while the pool is open"
        )),
        SideStanding::Missing(_) => Some(format!(
            "the side at {path} is missing; bring it back (`cowshed pool mirror add`) or take it \
             out (`cowshed pool mirror rm`)"
        )),
    }
}

fn show(pool: &Pool, console: &Console) -> anyhow::Result<()> {
    let sides = pool.sides().unwrap_or_default();
    // While nothing is copied, it is not known how much is to be.
    let behind_bytes = |side: &SideReport| {
        let left = side.total_bytes.saturating_sub(side.copied_bytes);
        match side.standing {
            SideStanding::Good => Some(0),
            _ => side.is_joining.then_some(left),
        }
    };
    let documents: Vec<_> = sides
        .iter()
        .map(|side| {
            json!({
                "path": side.path.display().to_string(),
                "state": state(side.standing),
                "behind_bytes": behind_bytes(side),
                "copied_bytes": side.copied_bytes,
            })
        })
        .collect();
    console.result(&documents, || {
        if sides.is_empty() {
            return "the pool has no mirror".to_owned();
        }
        let columns = [Column::Text("PATH"), Column::Text("STATE")];
        let rows = sides.iter().map(|side| {
            let state = match behind_bytes(side) {
                Some(left) if left > 0 => {
                    format!("{}, {} to copy", state(side.standing), human(left))
                }
                _ => state(side.standing).to_owned(),
            };
            vec![side.path.display().to_string(), state]
        });
        table(&columns, rows)
    })
}
