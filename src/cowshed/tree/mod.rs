//! `cowshed tree`: draws the volumes of a pool as a forest.
//!
//! [`forest`] finds what each volume is and on which it stands; [`text`], [`dot`], [`svg`] and
//! [`json`] draw that. It reads the catalogue alone: no volume is opened.
//!
//! # Invariants
//! - Nothing here recurses, and no line grows with the depth without a limit: a pool may have a
//!   hundred thousand volumes in one chain.
//! - Names are escaped for the form that they are written in. Those of containerd's snapshots are
//!   any text.

mod dot;
mod forest;
mod json;
mod svg;
mod text;

use super::console::Console;
use super::failure::Usage;
use cowshed_daemon::request::tree::{Format, Tree};
use cowshed_engine::Pool;
use forest::Forest;

/// Draws the volumes of `pool`.
///
/// # Errors
/// `Usage` for two forms at a time, and that the output failed.
pub(super) fn run(tree: &Tree, pool: &Pool, console: &Console) -> anyhow::Result<()> {
    let is_json = console.style().json;
    if is_json && tree.format != Format::Text {
        return Err(Usage("--json and --format cannot be used together".to_owned()).into());
    }
    let (forest, fault) = Forest::of(pool, tree.all);
    if let Some(fault) = fault {
        console.message(&format!(
            "warning: some volumes are shown by their own names: {fault}"
        ));
    }
    let drawn = match tree.format {
        _ if is_json => json::draw(&forest)?,
        Format::Text => text::draw(&forest, tree.ascii, console.style().no_trunc),
        Format::Dot => dot::draw(&forest),
        Format::Svg => svg::draw(&forest),
    };
    console.print(&drawn)
}
