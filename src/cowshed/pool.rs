//! `cowshed pool …` on an open pool; `pool create` and `pool check` are in `offline`.

use super::console::Console;
use super::failure::Warning;
use super::mirror;
use super::output::{counted, exact, facts, time};
use super::scrub;
use anyhow::Context;
use cowshed_daemon::OpenPool;
use cowshed_daemon::keeper::Serving;
use cowshed_daemon::request::pool::Command;
use cowshed_engine::{LastScrub, Missing, PoolState, Status, Watermark};
use cowshed_format::base::size::human;
use serde::Serialize;
use serde_json::json;

/// Runs a command on the open `pool`.
///
/// # Errors
/// The engine's error, or that the output failed.
pub(super) fn run(
    command: &Command,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    let pool = open_pool.pool();
    match command {
        Command::Status { check } => {
            let document = show_status(open_pool, console)?;
            if *check {
                judge(&document)?;
            }
            Ok(())
        }
        Command::Grow { size_bytes } => {
            pool.grow(*size_bytes)
                .with_context(|| format!("grow the pool to {}", human(*size_bytes)))?;
            show_status(open_pool, console).map(drop)
        }
        Command::Trim => {
            // The space of removed volumes counts as free only once it is reclaimed.
            let trimmed = pool.reclaim().and_then(|()| pool.trim());
            let trimmed_bytes = trimmed.context("trim the pool")?;
            let host_bytes = pool.status().context("trim the pool")?.host_bytes;
            let document = json!({ "trimmed_bytes": trimmed_bytes, "host_bytes": host_bytes });
            console.result(&document, || {
                let (free, taken) = (human(trimmed_bytes), human(host_bytes));
                format!("gave up {free} of free space; the pool takes {taken} on the host now")
            })
        }
        Command::Checkpoint => {
            pool.checkpoint().context("checkpoint")?;
            show_status(open_pool, console).map(drop)
        }
        Command::Scrub { bytes_per_second } => scrub::scrub(pool, *bytes_per_second, console),
        Command::Mirror(request) => mirror::run(request, open_pool, console),
    }
}

/// The status in its JSON form.
#[derive(Serialize)]
struct StatusDocument {
    size_bytes: u64,
    used_bytes: u64,
    free_bytes: u64,
    pending_free_bytes: u64,
    reserved_bytes: u64,
    removed_shared_bytes: u64,
    metadata_bytes: u64,
    host_bytes: u64,
    host_free_bytes: Option<u64>,
    /// True while the host's file system is full and writes are refused for that.
    host_full: bool,
    limit_bytes: u64,
    volumes: u64,
    generation: u64,
    log_used_bytes: u64,
    log_bytes: u64,
    state: &'static str,
    holds_writes: bool,
    low_water: &'static str,
    metadata_copies: u8,
    /// Damaged blocks that were written anew since the pool was opened.
    healed: u64,
    /// True if a side of the mirror is missing or behind.
    degraded: bool,
    /// The last scrub that read everything.
    last_scrub: Option<ScrubDocument>,
    /// What is missing since the catalogue was damaged.
    missing: MissingDocument,
    /// The damaged log record before whose changes a pool that is only read stands.
    log_damaged_at: Option<u64>,
    warnings: Vec<String>,
    /// The daemon that has the pool open, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon: Option<DaemonDocument>,
}

/// The end of a scrub, in its JSON form.
#[derive(Serialize)]
struct ScrubDocument {
    finished: String,
    bad: u64,
}

impl From<LastScrub> for ScrubDocument {
    fn from(last: LastScrub) -> Self {
        Self {
            finished: time(last.finished),
            bad: last.bad,
        }
    }
}

/// What is missing in a pool, in its JSON form.
#[derive(Serialize)]
struct MissingDocument {
    catalogue_blocks: u64,
    volumes: u64,
    volume_ids: Vec<u64>,
}

impl From<&Missing> for MissingDocument {
    fn from(missing: &Missing) -> Self {
        Self {
            catalogue_blocks: missing.catalogue_blocks,
            volumes: missing.volumes,
            volume_ids: missing.volume_ids.iter().map(|id| id.0).collect(),
        }
    }
}

/// Returns a line that says what is missing since the catalogue was damaged, if anything is.
pub(super) fn missing_line(missing: &Missing) -> Option<String> {
    if missing.catalogue_blocks == 0 {
        return None;
    }
    let count = |value| usize::try_from(value).unwrap_or(usize::MAX);
    let blocks = counted(count(missing.catalogue_blocks), "block", "blocks");
    let volumes = counted(count(missing.volumes), "volume is", "volumes are");
    let ids: Vec<String> = missing.volume_ids.iter().map(ToString::to_string).collect();
    let ids = match ids.as_slice() {
        [] => String::new(),
        ids => format!(" (id {})", ids.join(", ")),
    };
    Some(format!(
        "the catalogue has {blocks} damaged: {volumes} missing{ids}, and perhaps images, containers \
         and other records; what they own stays in use until `cowshed pool check --repair --forget`"
    ))
}

/// The processes that serve, in the form shown.
#[derive(Debug, Serialize)]
struct DaemonDocument {
    /// `None` when it is gone.
    keeper: Option<u32>,
    worker: u32,
    version: String,
    restarts: u64,
    upgrades: u64,
    upgrade_failure: Option<String>,
    /// When and why the last worker ended that failed.
    last_failure: Option<String>,
}

impl From<&Serving> for DaemonDocument {
    fn from(serving: &Serving) -> Self {
        Self {
            keeper: (serving.keeper != 0).then_some(serving.keeper),
            worker: serving.worker,
            version: serving.version.clone(),
            restarts: serving.restarts,
            upgrades: serving.upgrades,
            upgrade_failure: serving.upgrade_failure.clone(),
            last_failure: serving.last_failure.clone(),
        }
    }
}

/// Returns a warning about the daemon, if the user should act.
fn daemon_warning(serving: &Serving) -> Option<String> {
    (serving.keeper == 0).then(|| {
        let worker = serving.worker;
        format!(
            "the daemon's keeper is gone: if process {worker} ends too, users of the volumes get \
             errors; stop the daemon (kill -TERM {worker}) and start it again"
        )
    })
}

impl From<&Status> for StatusDocument {
    fn from(status: &Status) -> Self {
        Self {
            size_bytes: status.size_bytes,
            used_bytes: status.used_bytes,
            free_bytes: status.free_bytes,
            pending_free_bytes: status.pending_free_bytes,
            reserved_bytes: status.reserved_bytes,
            removed_shared_bytes: status.removed_shared_bytes,
            metadata_bytes: status.metadata_bytes,
            host_bytes: status.host_bytes,
            host_free_bytes: status.host_free_bytes,
            host_full: status.host_refuses_writes,
            limit_bytes: status.limit_bytes,
            volumes: status.volumes,
            generation: status.generation,
            log_used_bytes: status.log_used_bytes,
            log_bytes: status.log_bytes,
            state: match status.state {
                PoolState::Open => "open",
                PoolState::Full => "full",
                PoolState::Stopped => "stopped",
                PoolState::ReadOnly => "read-only",
            },
            holds_writes: status.holds_writes,
            low_water: match status.low_water {
                Watermark::Ample => "ample",
                Watermark::Low => "low",
                Watermark::VeryLow => "very-low",
                Watermark::Critical => "critical",
                Watermark::Full => "full",
            },
            metadata_copies: status.metadata_copies,
            healed: status.healed_blocks,
            degraded: status.degraded,
            last_scrub: None,
            missing: MissingDocument::from(&status.missing),
            log_damaged_at: status.log_damaged_at.map(|sequence| sequence.0),
            warnings: warnings(status),
            daemon: None,
        }
    }
}

/// Returns the status of a pool as `pool status --json` shows it.
pub(super) fn document(status: &Status) -> serde_json::Value {
    serde_json::to_value(StatusDocument::from(status)).unwrap_or_default()
}

/// Returns warnings, one line each, about which the user should act before it is too late.
fn warnings(status: &Status) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(missing_line(&status.missing));
    if let Some(sequence) = status.log_damaged_at {
        warnings.push(format!(
            "the log is damaged at record {sequence}, and the pool is in its state before that \
             record; `cowshed pool check --repair` ends the log there"
        ));
    }
    if status.degraded {
        warnings.push(
            "a side of the mirror is missing or behind; `cowshed pool mirror status` says which"
                .to_owned(),
        );
    }
    if status.holds_writes {
        warnings.push("writes wait for free space".to_owned());
    }
    if status.low_water > Watermark::Ample {
        let level = status.low_water;
        warnings.push(format!(
            "{level}: grow the pool (cowshed pool grow), or remove or trim something"
        ));
    }
    if status.host_refuses_writes {
        warnings.push(
            "the host's file system is full, and writes are refused: free some space there"
                .to_owned(),
        );
    } else if let Some(short) = status.host_shortage_bytes() {
        let short = human(short);
        warnings.push(format!(
            "the host's file system has {short} less free space than the pool may still allocate: \
             free some space there"
        ));
    }
    warnings
}

/// Returns an error if writes fail or are held, and a warning if that is to be expected.
fn judge(document: &StatusDocument) -> anyhow::Result<()> {
    let mut said = document.warnings.join("; ");
    if document.state == "stopped" {
        said = "the pool has stopped, because its device failed; see the daemon's log".to_owned();
    }
    if document.state == "read-only" && document.log_damaged_at.is_none() {
        said = "the pool is open for reading only: its file system is mounted read-only".to_owned();
    }
    if document.state != "open" || document.holds_writes || document.host_full {
        anyhow::bail!("{said}");
    }
    if !said.is_empty() {
        return Err(Warning(said).into());
    }
    Ok(())
}

fn show_status(open_pool: &OpenPool, console: &Console) -> anyhow::Result<StatusDocument> {
    let (pool, serving) = (open_pool.pool(), open_pool.serving());
    let serving = serving.as_ref();
    let status = pool.status().context("pool status")?;
    let mut document = StatusDocument {
        daemon: serving.map(DaemonDocument::from),
        last_scrub: pool.last_scrub().map(ScrubDocument::from),
        ..StatusDocument::from(&status)
    };
    document.warnings.extend(serving.and_then(daemon_warning));
    if serving.is_some() {
        let start = mirror::where_to_start(pool, open_pool.path().as_path());
        document.warnings.extend(start);
    }
    if let Some(last) = document.last_scrub.as_ref().filter(|last| last.bad > 0) {
        let bad = usize::try_from(last.bad).unwrap_or(usize::MAX);
        let bad = counted(bad, "damaged block", "damaged blocks");
        let finished = &last.finished;
        document.warnings.push(format!(
            "the scrub that ended at {finished} found {bad}; `cowshed pool scrub` says what they \
             belong to"
        ));
    }
    console.result(&document, || {
        let daemon = serving.map(|serving| ("daemon", shown(serving)));
        let mut rows = vec![
            ("size", exact(status.size_bytes)),
            ("used", exact(status.used_bytes)),
            ("free", exact(status.free_bytes)),
            ("freed soon", exact(status.pending_free_bytes)),
            ("reserved", exact(status.reserved_bytes)),
            ("metadata", exact(status.metadata_bytes)),
            ("on the host", exact(status.host_bytes)),
        ];
        if status.removed_shared_bytes > 0 {
            let shared = exact(status.removed_shared_bytes);
            rows.insert(2, ("of it removed, but shared", shared));
        }
        if status.limit_bytes > status.size_bytes {
            rows.push(("grows up to", exact(status.limit_bytes)));
        }
        let log = (human(status.log_used_bytes), human(status.log_bytes));
        rows.extend([
            ("volumes", status.volumes.to_string()),
            ("generation", status.generation.to_string()),
            ("log", format!("{} of {}", log.0, log.1)),
            ("metadata copies", status.metadata_copies.to_string()),
            ("state", document.state.to_owned()),
        ]);
        if status.healed_blocks > 0 {
            let healed = status.healed_blocks;
            rows.push(("healed", format!("{healed} damaged blocks")));
        }
        if let Some(last) = &document.last_scrub {
            rows.push(("last scrub", last.finished.clone()));
        }
        let warnings = document.warnings.iter();
        rows.extend(warnings.map(|warning| ("warning", warning.clone())));
        let failure = serving.and_then(|serving| serving.last_failure.as_ref());
        let failure = failure.map(|why| ("last failure", why.clone()));
        facts(rows.into_iter().chain(daemon).chain(failure))
    })?;
    Ok(document)
}

fn shown(serving: &Serving) -> String {
    let Serving {
        keeper,
        worker,
        restarts,
        ..
    } = serving;
    let restarts = match restarts {
        0 => String::new(),
        1 => ", restarted once".to_owned(),
        count => format!(", restarted {count} times"),
    };
    let keeper = match keeper {
        0 => "no keeper".to_owned(),
        keeper => format!("keeper {keeper}"),
    };
    format!("{keeper}, worker {worker}{restarts}")
}
