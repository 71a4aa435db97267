//! `pool check` and `pool upgrade`, which need a pool that no process has open.

use super::check_sides::{Checked, check_pool};
use super::console::Console;
use super::daemon_process::how_to_stop;
use super::failure::{Damage, Warning};
use super::mirror;
use super::open::Place;
use super::output::counted;
use clap::Args;
use cowshed_check::{
    self as check, CheckOptions, CheckReport, Detail, Finding, FindingKind, Refusal,
};
use cowshed_daemon::{Client, Connection};
use cowshed_engine::prepare;
use cowshed_format::device::{FileOptions, MirrorDevice};
use serde_json::{Value, json};

/// `cowshed pool upgrade`
#[derive(Debug, Args)]
pub(crate) struct Upgrade {
    /// The number of copies of map nodes and of the catalogue, 1 or 2
    #[arg(long, value_name = "N", default_value_t = 2,
        value_parser = clap::value_parser!(u8).range(1..=2))]
    pub metadata_copies: u8,
}

/// `cowshed pool check`
#[derive(Debug, Args)]
pub(super) struct Check {
    /// Repair what can be derived from the rest: bitmaps, counts, lost blocks
    #[arg(long)]
    pub repair: bool,
    /// With --repair: remove the damaged part of the catalogue, with the volumes, images and
    /// containers in it, and free their blocks
    #[arg(long, requires = "repair")]
    pub forget: bool,
    /// Read and verify every block, not only the structure
    #[arg(long)]
    pub deep: bool,
    /// Check only the side at --pool, whatever the other sides of the mirror have
    #[arg(long, conflicts_with = "repair")]
    pub this_side: bool,
}

/// Checks a pool that no process has open.
///
/// # Errors
/// `Damage` when a fault was found and not repaired.
pub(super) fn check(check: &Check, place: &Place, console: &Console) -> anyhow::Result<()> {
    refuse_daemon(place, |stop| format!("{stop}, or use `cowshed pool scrub`"))?;
    let options = CheckOptions {
        deep: check.deep,
        repair: check.repair,
        forget: check.forget,
    };
    let checked = check_pool(place, options, check.this_side, console);
    let checked = checked.map_err(|error| place.explain(error))?;
    for note in &checked.report.notes {
        console.message(&note.to_string());
    }
    show_check(&checked, console)?;
    let sides = faults_of_sides(&checked);
    if checked.report.clean() && sides.is_empty() {
        return Ok(());
    }
    if checked.report.clean() {
        return Err(Warning(format!("pool {}: {}", place.pool, sides.join("; "))).into());
    }
    Err(judge(check, &checked.report, place))
}

/// Returns what is wrong with the sides of a mirror that together have everything.
fn faults_of_sides(checked: &Checked) -> Vec<String> {
    let mut faults = Vec::new();
    if checked.has_lost_label {
        faults.push(
            "it is a side of a mirror whose label is damaged, and no other side was looked at; \
             give the path of another side with --pool"
                .to_owned(),
        );
    }
    let damaged = checked.sides.iter().filter(|side| side.is_damaged());
    let damaged = damaged.count();
    if damaged > 0 {
        let sides = counted(damaged, "side is", "sides are");
        faults.push(format!(
            "{sides} damaged, nothing is lost; --repair writes the damaged blocks anew, and so \
             does `cowshed pool scrub`"
        ));
    }
    let bad = checked.sides.iter().filter(|side| !side.is_good());
    faults.extend(bad.map(|side| {
        let (path, state) = (side.path.display(), side.state);
        format!("the side at {path} is {state}, and was not checked")
    }));
    faults
}

/// Returns the failure of a pool in which something was found.
fn judge(check: &Check, report: &CheckReport, place: &Place) -> anyhow::Error {
    let findings = report.remaining.as_ref().unwrap_or(&report.findings);
    let found = findings.len();
    let is_copy = |kind| kind == FindingKind::CopyDamaged;
    if !check.repair && findings.iter().all(|finding| is_copy(finding.kind)) {
        let copies = counted(found, "copy is damaged", "copies are damaged");
        return Warning(format!(
            "pool {}: {copies}, nothing is lost; --repair writes them anew, and so does an open \
             pool when it reads them",
            place.pool
        ))
        .into();
    }
    let faults = counted(found, "fault", "faults");
    let is_catalogue = |kind| {
        use FindingKind as K;
        matches!(kind, K::CatalogueBlock | K::CataloguePartMissing)
    };
    let may_forget = !check.forget && findings.iter().any(|it| is_catalogue(it.kind));
    let data = findings.iter().filter(|it| it.kind.is_data()).count();
    let ranges = counted(data, "range", "ranges");
    let lost = if check.this_side {
        format!(
            "{ranges} of data damaged on this side; another side may have it: check without \
             --this-side"
        )
    } else {
        format!(
            "{ranges} of data damaged, which no repair gives back: write it anew from a backup, or \
             remove what has it (`cowshed pool scrub` says what that is)"
        )
    };
    if data == found && report.findings_omitted == 0 {
        return Damage(format!("pool {}: {lost}", place.pool)).into();
    }
    let mut advice = match (&report.refused, check.repair) {
        (Some(Refusal::OwnershipUnknown) | None, true) if may_forget => {
            "part of the catalogue is lost; --repair --forget gives it up, with the volumes and \
             records that it named"
                .to_owned()
        }
        (Some(refusal), _) => refusal.to_string(),
        (None, true) => {
            "the remaining damage cannot be repaired; copy out the data that can be read".to_owned()
        }
        (None, false) => "--repair repairs what can be derived from sound data".to_owned(),
    };
    if data > 0 {
        advice.push_str(&format!("; {lost}"));
    }
    Damage(format!("pool {}: {faults} found; {advice}", place.pool)).into()
}

/// Upgrades a pool that no process has open.
///
/// # Errors
/// The reason why it cannot be upgraded; nothing is changed then.
pub(super) fn upgrade(upgrade: &Upgrade, place: &Place, console: &Console) -> anyhow::Result<()> {
    refuse_daemon(place, |stop| format!("{stop} first"))?;
    let device = place
        .device(FileOptions::default())
        .and_then(|device| prepare(&*device, false).map(|()| device))
        .map_err(|error| place.explain(error))?;
    let sides = device.mirror().map(MirrorDevice::report);
    if let Some(line) = mirror::degraded_line(&sides.unwrap_or_default()) {
        console.message(&format!("pool {}: {line}", place.pool));
    }
    let progress = console.progress("read", Some(0));
    let block_bytes = cowshed_format::base::BLOCK_BYTES as u64;
    let outcome = check::upgrade(&*device, upgrade.metadata_copies, &mut |at| {
        let [done, all] = [at.blocks, at.blocks_expected];
        progress.set(
            done.saturating_mul(block_bytes),
            all.saturating_mul(block_bytes),
        );
    });
    drop(progress);
    let done = outcome
        .map_err(|error| place.explain(error))?
        .map_err(|refusal| anyhow::anyhow!("pool {}: {refusal}", place.pool))?;
    let document = json!({
        "path": place.pool,
        "from_version": done.from_version,
        "to_version": done.to_version,
        "from_copies": done.from_copies,
        "to_copies": done.to_copies,
        "rewritten_blocks": done.rewritten,
    });
    console.result(&document, || {
        let copies = counted(done.to_copies.into(), "copy", "copies");
        format!(
            "pool {}: format version {}, {copies} of its metadata; {} blocks written anew",
            place.pool, done.to_version, done.rewritten
        )
    })
}

fn document(report: &CheckReport, finding: &Finding) -> Value {
    let detail = match finding.detail {
        Detail::None => String::new(),
        detail => detail.to_string(),
    };
    json!({
        "kind": finding.kind.as_str(),
        "where": finding.place.to_string(),
        "volume": report.named(*finding).name.map(ToString::to_string),
        "detail": detail,
    })
}

/// Returns the sides in their JSON form.
fn side_documents(checked: &Checked) -> Vec<Value> {
    let sides = checked.sides.iter().map(|side| {
        let (errors, omitted) = match &side.report {
            None => (Vec::new(), 0),
            Some(Ok(report)) => (
                {
                    let findings = report.findings.iter();
                    findings.map(|it| document(report, it)).collect()
                },
                report.findings_omitted,
            ),
            Some(Err(error)) => (
                vec![json!({
                    "kind": "unreadable",
                    "where": "side",
                    "detail": error.to_string(),
                })],
                0,
            ),
        };
        json!({
            "path": side.path.display().to_string(),
            "state": side.state,
            "errors": errors,
            "omitted": omitted,
        })
    });
    sides.collect()
}

/// Returns a line for each fault of each side.
fn side_lines(checked: &Checked) -> Vec<String> {
    let mut lines = Vec::new();
    for side in &checked.sides {
        let path = side.path.display();
        match &side.report {
            None => {}
            Some(Err(error)) => lines.push(format!("side {path}: {error}")),
            Some(Ok(report)) => {
                let findings = report.findings.iter();
                lines.extend(findings.map(|it| format!("side {path}: {}", report.named(*it))));
                if report.findings_omitted > 0 {
                    lines.push(format!("side {path}: and {} more", report.findings_omitted));
                }
            }
        }
    }
    lines
}

fn show_check(checked: &Checked, console: &Console) -> anyhow::Result<()> {
    let report = &checked.report;
    let shown = report.remaining.as_ref().unwrap_or(&report.findings);
    let errors: Vec<_> = shown.iter().map(|it| document(report, it)).collect();
    let healed = checked.scrubbed.as_ref().map_or(0, |it| it.healed);
    let repaired: Vec<_> = report.repaired.iter().map(ToString::to_string).collect();
    let notes: Vec<_> = report.notes.iter().map(ToString::to_string).collect();
    let document = json!({
        "errors": errors,
        "omitted": report.findings_omitted,
        "clean": report.clean() && faults_of_sides(checked).is_empty(),
        "data_read": checked.has_read_data,
        "sides": side_documents(checked),
        "healed": healed,
        "repaired": repaired,
        "notes": notes,
        "blocks": report.blocks_used,
        "volumes": report.volumes,
    });
    console.result(&document, || {
        let shown = shown.iter().map(|it| report.named(*it).to_string());
        let mut lines: Vec<_> = shown.collect();
        if report.findings_omitted > 0 {
            lines.push(format!("and {} more", report.findings_omitted));
        }
        lines.extend(side_lines(checked));
        if let Some(scrubbed) = &checked.scrubbed {
            let blocks = scrubbed.blocks;
            lines.push(format!(
                "scrubbed: {blocks} blocks read, {healed} written anew on a side that had them \
                 wrong"
            ));
        }
        lines.extend(repaired.iter().map(|what| format!("repaired: {what}")));
        if report.clean() {
            let volumes = usize::try_from(report.volumes).unwrap_or(usize::MAX);
            let volumes = counted(volumes, "volume", "volumes");
            let what = if checked.has_read_data {
                "clean"
            } else {
                "clean, but data was not read (--deep reads it)"
            };
            lines.push(format!(
                "{what}: {} blocks in use, {volumes}",
                report.blocks_used
            ));
        }
        lines.join("\n")
    })
}

/// Returns an error if a daemon has the pool open. `advice` makes the advice of how to stop it.
pub(super) fn refuse_daemon(
    place: &Place,
    advice: impl FnOnce(&str) -> String,
) -> anyhow::Result<()> {
    match Client::connect(place.socket.as_path()) {
        Ok(Connection::Daemon(client)) => anyhow::bail!(
            "pool {}: a daemon has it open (it answers on {}); {}",
            place.pool,
            place.socket,
            advice(&format!("stop it ({})", how_to_stop(client)))
        ),
        // A caller that cannot reach the socket cannot open the pool either, and gets an error
        // then.
        _ => Ok(()),
    }
}
