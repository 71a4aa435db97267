//! `cowshed empty-file MOUNTPOINT --size SIZE [--fuse threads|io-uring]`, hidden from the help:
//! mounts one file, `MOUNTPOINT/empty`, whose reads return whatever the buffer holds and whose
//! writes are discarded. It is served as volumes are, but without a pool. Its performance is the
//! limit of any measurement through the same path from the kernel to a volume and back.
//!
//! The command stays in the foreground, prints the file's path on the standard output once it is
//! served, and unmounts and ends on SIGTERM or SIGINT; a mount that is in use is cut off. The user
//! makes and detaches any loop device on the file.

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
/// The export's error.
pub(super) fn serve(empty: &EmptyFile, console: &Console) -> anyhow::Result<()> {
    let what = || format!("serve an empty file at {}", empty.mount_point);
    // Before any thread is started, so that none of them receives the signal.
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
