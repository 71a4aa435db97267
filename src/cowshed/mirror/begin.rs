//! Giving a pool its first mirror: it becomes one with a single side, once it is certain that the
//! other side can be added.
//!
//! Everything that can be refused is refused before the label is written.

use super::super::console::Console;
use super::super::open::Place;
use super::super::remote::{self, Reached};
use super::super::upgrade;
use super::new_side::{self, Wanted};
use anyhow::Context;
use cowshed_daemon::request::Command as Request;
use cowshed_daemon::request::HostPath;
use cowshed_daemon::request::pool::{Command as PoolRequest, Mirror};
use cowshed_engine::Pool;
use cowshed_format::base::{Error, MirrorError, Result as PoolResult};
use cowshed_format::device::mirror::{is_same_file, newest_label};
use cowshed_format::device::{FileDevice, FileOptions};
use cowshed_format::side::PATH_BYTES_MAX;
use std::path::Path;

/// Makes a pool that has no mirror one with a single side, if a side is to be added.
///
/// # Errors
/// The reason why the side cannot be added; nothing is changed then.
pub(super) fn begin_mirror(
    request: &Mirror,
    place: &Place,
    console: &Console,
) -> anyhow::Result<()> {
    let Mirror::Add { path, force } = request else {
        return Ok(());
    };
    if has_label(place) {
        return Ok(());
    }
    match remote::reach(place)? {
        Reached::Daemon(_) => begin_in_daemon(path, *force, place, console),
        Reached::Pool(pool) => {
            if pool.is_read_only() {
                anyhow::bail!("add {path}: {}", place.reason_to_read(&pool));
            }
            let own = place.pool.as_path();
            let begun = begin(&pool, own, path.as_path(), *force, false);
            let begun = begun.with_context(|| format!("add {path}"));
            let closed = pool.close().map_err(|error| place.explain(error));
            begun.map(drop).and(closed)
        }
    }
}

/// Returns true if nobody has the pool open, and it is a mirror already.
fn has_label(place: &Place) -> bool {
    let options = FileOptions {
        read_only: true,
        ..FileOptions::default()
    };
    let device = FileDevice::open(place.pool.as_path(), options);
    device.is_ok_and(|device| newest_label(&device).is_some())
}

/// As `begin_mirror`, for a pool that a daemon serves: its worker is replaced by one that uses the
/// mirror, without unmounting anything.
fn begin_in_daemon(
    path: &HostPath,
    force: bool,
    place: &Place,
    console: &Console,
) -> anyhow::Result<()> {
    let path = path.clone();
    let begin = Request::Pool(PoolRequest::Mirror(Mirror::Begin { path, force }));
    if upgrade::ask_daemon(begin, place, console)? {
        upgrade::replace_worker(place, console).context("use the pool as a mirror")?;
    }
    Ok(())
}

/// Makes the open pool at `own`, if it has no mirror, one with a single side; returns true if it must
/// be opened anew to be used as one.
///
/// # Errors
/// The reason why there cannot be a side at `path`; nothing is changed then.
pub(super) fn begin(
    pool: &Pool,
    own: &Path,
    path: &Path,
    force: bool,
    is_daemon: bool,
) -> PoolResult<bool> {
    if pool.sides().is_some() {
        return Ok(false);
    }
    if pool.is_read_only() {
        return Err(Error::ReadOnly);
    }
    for path in [own, path] {
        if path.as_os_str().len() > PATH_BYTES_MAX {
            let max = PATH_BYTES_MAX;
            return Err(MirrorError::PathTooLong { max }.into());
        }
    }
    if is_same_file(path, own) {
        let path = path.to_owned();
        return Err(MirrorError::AlreadySide { path }.into());
    }
    let pool_bytes = pool.status()?.size_bytes;
    new_side::refuse(path, pool_bytes, Wanted::by(pool, force, is_daemon))?;
    pool.begin_mirror(own)
}
