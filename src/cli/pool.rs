//! `cowshed pool …` on an open pool; `pool create` and `pool check` are in `offline`.

use super::console::Console;
use super::failure::Damage;
use super::offline::{Check, Create};
use super::output::{counted, exact, facts};
use super::size::{Size, human};
use crate::pool::{Pool, PoolState, Status};
use anyhow::Context;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// `cowshed pool …`
#[derive(Debug, Subcommand)]
pub(super) enum PoolCommand {
    /// What needs the pool to be closed.
    #[command(flatten)]
    Offline(Offline),
    /// What works on an open pool.
    #[command(flatten)]
    Online(Online),
}

/// The commands that work on a pool that nobody has open.
#[derive(Debug, Subcommand)]
pub(super) enum Offline {
    /// Make a pool in a file, or on a block device
    Create(Create),
    /// Read the whole structure of a pool that is not open, and say what is wrong with it
    Check(Check),
}

/// The commands that work on an open pool.
#[derive(Debug, Subcommand, Serialize, Deserialize)]
pub(super) enum Online {
    /// Show how full the pool is
    Status,
    /// Make the pool larger
    Grow(Grow),
    /// Reclaim what was removed, and give all free space back to the host
    Trim,
    /// Write everything that is only in the log to its place
    Checkpoint,
    /// Read and verify every block in use
    Scrub,
}

/// `cowshed pool grow`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Grow {
    /// The new size
    #[arg(long)]
    pub size: Size,
}

/// Runs a command on the open `pool`.
///
/// # Errors
/// What the engine says, or that the output failed.
pub(super) fn run(command: &Online, pool: &Pool, console: &Console) -> anyhow::Result<()> {
    match command {
        Online::Status => show_status(pool, console),
        Online::Grow(grow) => {
            let size = grow.size;
            pool.grow(size.0)
                .with_context(|| format!("grow the pool to {size}"))?;
            show_status(pool, console)
        }
        Online::Trim => {
            // What removed volumes held counts as free only once it is reclaimed.
            let trimmed = pool.reclaim().and_then(|()| pool.trim());
            let trimmed_bytes = trimmed.context("trim the pool")?;
            console.result(&json!({ "trimmed_bytes": trimmed_bytes }), || {
                format!("gave {} back to the host", human(trimmed_bytes))
            })
        }
        Online::Checkpoint => {
            pool.checkpoint().context("checkpoint")?;
            show_status(pool, console)
        }
        Online::Scrub => scrub(pool, console),
    }
}

/// The status as JSON has it.
#[derive(Serialize)]
struct StatusDocument {
    size_bytes: u64,
    used_bytes: u64,
    free_bytes: u64,
    pending_free_bytes: u64,
    metadata_bytes: u64,
    host_bytes: u64,
    volumes: u64,
    generation: u64,
    log_used_bytes: u64,
    log_bytes: u64,
    state: &'static str,
}

impl From<&Status> for StatusDocument {
    fn from(status: &Status) -> Self {
        Self {
            size_bytes: status.size_bytes,
            used_bytes: status.used_bytes,
            free_bytes: status.free_bytes,
            pending_free_bytes: status.pending_free_bytes,
            metadata_bytes: status.metadata_bytes,
            host_bytes: status.host_bytes,
            volumes: status.volumes,
            generation: status.generation,
            log_used_bytes: status.log_used_bytes,
            log_bytes: status.log_bytes,
            state: match status.state {
                PoolState::Open => "open",
                PoolState::Full => "full",
                PoolState::Stopped => "stopped",
            },
        }
    }
}

fn show_status(pool: &Pool, console: &Console) -> anyhow::Result<()> {
    let status = pool.status().context("pool status")?;
    let document = StatusDocument::from(&status);
    console.result(&document, || {
        facts([
            ("size", exact(status.size_bytes)),
            ("used", exact(status.used_bytes)),
            ("free", exact(status.free_bytes)),
            ("freed soon", exact(status.pending_free_bytes)),
            ("metadata", exact(status.metadata_bytes)),
            ("on the host", exact(status.host_bytes)),
            ("volumes", status.volumes.to_string()),
            ("generation", status.generation.to_string()),
            (
                "log",
                format!(
                    "{} of {}",
                    human(status.log_used_bytes),
                    human(status.log_bytes)
                ),
            ),
            ("state", document.state.to_owned()),
        ])
    })
}

fn scrub(pool: &Pool, console: &Console) -> anyhow::Result<()> {
    let progress = console.progress("scrub", Some(0));
    let cancel = console.cancel().clone();
    let report = pool
        .scrub(&mut |done, total| {
            progress.set(done, total);
            !cancel.is_cancelled()
        })
        .context("scrub the pool")?;
    drop(progress);
    cancel.check().context("scrub the pool")?;
    let bad: Vec<_> = report
        .bad
        .iter()
        .map(|fault| {
            json!({
                "volume": fault.volume.0,
                "offset": fault.offset_bytes,
                "pool_offset": fault.pool_offset_bytes,
            })
        })
        .collect();
    let document = json!({ "blocks": report.blocks, "bad": bad, "resumed": report.resumed });
    console.result(&document, || {
        let from = if report.resumed {
            ", from where the last one stopped"
        } else {
            ""
        };
        let mut text = format!(
            "{} blocks read{from}, {} bad",
            report.blocks,
            report.bad.len()
        );
        for fault in &report.bad {
            let name = pool
                .volume_by_id(fault.volume)
                .map(|volume| volume.name().to_string());
            text.push_str(&format!(
                "\nvolume {}: byte {} (byte {} of the pool)",
                name.unwrap_or_else(|_| fault.volume.to_string()),
                fault.offset_bytes,
                fault.pool_offset_bytes
            ));
        }
        text
    })?;
    if report.bad.is_empty() {
        return Ok(());
    }
    let bad = counted(report.bad.len(), "block is bad", "blocks are bad");
    Err(Damage(format!(
        "{bad}; what they held is lost, the rest can be read"
    ))
    .into())
}
