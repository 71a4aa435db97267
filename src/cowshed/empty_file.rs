//! `cowshed empty-file MOUNTPOINT --size SIZE [--fuse threads|io-uring]`, left out of the help: a
//! mount of one file, `MOUNTPOINT/empty`, whose reads answer whatever the buffer holds and whose
//! writes are forgotten, served as volumes are but without a pool. It shows what the way from the
//! kernel to a volume and back costs by itself: the limit of any measurement on that way.
//!
//! It stays in the foreground, prints the file's path on the standard output once it is served, and
//! ends by SIGTERM or SIGINT, when it unmounts; a mount that is in use is cut off. A loop device on
//! the file is its user's to make and to detach.

use super::console::Console;
use super::fuse::Fuse;
use super::place::HostPath;
use super::size::Size;
use anyhow::Context;
use clap::Args;
use cowshed_export::{EMPTY_FILE, Empty, Export, ExportOptions};
use nix::sys::signal::{SigSet, Signal};
use serde_json::json;
use std::sync::Arc;

/// `cowshed empty-file`
#[derive(Debug, Args)]
pub(super) struct EmptyFile {
    /// Where the file appears
    #[arg(value_name = "MOUNTPOINT", value_parser = HostPath::parser())]
    pub mount_point: HostPath,
    /// The file's size
    #[arg(long)]
    pub size: Size,
    /// How requests come
    #[arg(long, value_enum, default_value_t = Fuse::Threads)]
    pub fuse: Fuse,
}

/// Serves the file until a signal.
///
/// # Errors
/// What the export says.
pub(super) fn serve(empty: &EmptyFile, console: &Console) -> anyhow::Result<()> {
    let what = || format!("serve an empty file at {}", empty.mount_point);
    // Before any thread is started, so that none of them is sent the signal.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().with_context(what)?;
    let directory = Arc::new(Empty::new(empty.size.0).with_context(what)?);
    let options = ExportOptions {
        transport: empty.fuse.transport(),
        ..ExportOptions::default()
    };
    let export = Export::over(directory, empty.mount_point.as_path(), options);
    let export = export.with_context(what)?;
    let path = export.mount_point().join(EMPTY_FILE);
    console.result(&json!({ "path": path.to_string_lossy() }), || {
        path.display().to_string()
    })?;
    signals.wait().with_context(what)?;
    export.unmount().with_context(what)
}
