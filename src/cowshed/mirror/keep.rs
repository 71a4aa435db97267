//! `cowshed pool mirror keep`: choosing the side that counts where the labels do not tell.

use super::super::console::Console;
use super::super::offline::refuse_daemon;
use super::super::open::Place;
use clap::Args;
use cowshed_engine::{is_side_alone, prepare, uuid_of};
use cowshed_format::base::{Error, MirrorError, Result as PoolResult};
use cowshed_format::device::mirror::{
    Found, absolute, keep_side, label_anew, newest_label, open_sides,
};
use cowshed_format::device::{FileDevice, FileOptions, MirrorDevice};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

/// `cowshed pool mirror keep`
#[derive(Debug, Args)]
#[command(
    after_help = "Only where the pool does not open without it: its sides were written apart from \
    each other,\nor those that have everything are lost. `pool check --this-side` and\n\
    `volume ls --this-side` show what a side has."
)]
pub(crate) struct Keep {
    /// Keep it although it is behind, or its label is damaged: what it lacks is lost
    #[arg(long)]
    pub force: bool,
}

/// Keeps the side that the pool's path names, of sides that were written apart from each other or of
/// which the good ones are lost.
///
/// # Errors
/// When nothing is to be decided; when the side is behind, unless that is forced; when the file is no
/// side, or another process has it open. Nothing is changed then.
pub(in super::super) fn keep(keep: &Keep, place: &Place, console: &Console) -> anyhow::Result<()> {
    refuse_daemon(place, |stop| format!("{stop} first"))?;
    let behind = decide(place, keep.force).map_err(|error| place.explain(error))?;
    let behind: Vec<_> = behind
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let document = json!({
        "path": place.pool.as_path().display().to_string(),
        "behind": behind,
    });
    console.result(&document, || {
        let pool = &place.pool;
        let others = match behind.as_slice() {
            [] => String::new(),
            behind => format!(
                "\n{} will get what it has when the pool is opened",
                behind.join(", ")
            ),
        };
        format!(
            "{pool} is the side that counts now; run `cowshed --pool {pool} pool check --deep` \
             before you use it{others}"
        )
    })
}

/// Makes the side at the pool's path the one that counts; returns the paths of the others.
fn decide(place: &Place, force: bool) -> PoolResult<Vec<PathBuf>> {
    let options = FileOptions::default();
    let found = match open_sides(place.pool.as_path(), options) {
        Err(Error::Mirror(MirrorError::NotMirrored)) => {
            return relabel(place, force).map(|()| Vec::new());
        }
        found => found?,
    };
    let assembled = MirrorDevice::assemble(found.clone());
    match assembled.and_then(|mirror| prepare(&mirror, true).map(|()| mirror)) {
        Ok(mirror) => {
            let path = mirror.first_good().unwrap_or_default();
            return Err(MirrorError::NothingToDecide { path }.into());
        }
        Err(error @ Error::Incompatible { .. }) => return Err(error),
        Err(_) => {}
    }
    let device = &*found[0].device;
    let label = newest_label(device).map(|(label, _)| label.pool);
    if Some(uuid_of(device)?) != label {
        return Err(Error::NotAPool);
    }
    keep_side(found, force)
}

/// Gives a side whose label is damaged a new one, as the only side.
fn relabel(place: &Place, force: bool) -> PoolResult<()> {
    let path = absolute(place.pool.as_path())?;
    let device = FileDevice::open(&path, FileOptions::default())?;
    let uuid = uuid_of(&device)?;
    if !is_side_alone(&device) {
        return Err(MirrorError::NotMirrored.into());
    }
    if !force {
        return Err(MirrorError::NoLabel { path }.into());
    }
    let device = Arc::new(device);
    label_anew(Found { path, device }, uuid)
}
