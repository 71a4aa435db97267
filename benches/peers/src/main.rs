//! `tools/bench`: compares cowshed with its alternatives, on one machine in one run.
//!
//! `block` makes block devices from the same backing and runs fio and PostgreSQL on them; `roots`
//! makes roots of containers; `results` is the written document, `statistics` its evaluation,
//! `report` its display. `guards` holds every resource, and removes it on drop.

mod against;
mod area;
mod backing;
mod block;
mod fio;
mod guards;
mod host;
mod machine;
mod neighbours;
mod options;
mod postgres;
mod progress;
mod report;
mod results;
mod roots;
mod run;
mod service;
mod signals;
mod statistics;

use against::Base;
use anyhow::{Context, bail, ensure};
use backing::Backing;
use clap::Parser;
use machine::Machine;
use options::{Options, Scale, WrongUsage};
use progress::{Progress, clock};
use results::{PeerRecord, Results, Settings};
use run::Run;
use signals::Interrupted;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const WRONG_USAGE: u8 = 2;
const INTERRUPTED: u8 = 130;
const CUT_SHORT: &str = "the run was cut short: only what was measured before that is here";
/// The folder of all builds, of subjects on disk, and of results.
const TARGET: &str = "target";

fn main() -> ExitCode {
    let options = Options::parse();
    match bench(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.is::<Interrupted>() => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("tools/bench: {error:#}");
            if error.is::<WrongUsage>() {
                return ExitCode::from(WRONG_USAGE);
            }
            ExitCode::FAILURE
        }
    }
}

/// Runs everything; returns true if all of it succeeded.
fn bench(options: Options) -> anyhow::Result<bool> {
    if let Some(beginner) = options.be_busy {
        return neighbours::be_busy(beginner).map(|()| true);
    }
    options.check_works(&works().map(|(name, _)| name).collect::<Vec<_>>())?;
    if options.list {
        list(&options);
        return Ok(true);
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "it mounts file systems and attaches loop devices, which needs root; run it as root"
    );
    if let Some(missing) = host::missing_programs(&[("fio", "fio"), ("losetup", "mount")]) {
        bail!("{missing}: install it");
    }
    signals::listen()?;
    let scale = options.scale();
    let started = machine::now();
    let cowshed = fs::canonicalize(&options.cowshed)
        .with_context(|| format!("find the program {}", options.cowshed.display()))?;
    let target = fs::canonicalize(TARGET).context("find the folder target")?;
    let base = match &options.against {
        Some(word) => Some(Base::find(word, &target)?),
        None => None,
    };
    let backings = Backing::all(&options.backing, &target)?;
    let results = Results::new(Machine::this(&cowshed), settings(&options, &scale), started);
    let mut run = Run {
        progress: Progress::new(Duration::ZERO),
        options,
        scale,
        results,
    };
    let plans = plan(&mut run, &backings, &cowshed, base.as_ref())?;
    let output = output_folder(&run.options, &run.results.started)?;
    announce(&mut run, &plans, &output);
    let outcome = plans.iter().try_for_each(|plan| carry_out(&mut run, plan));
    drop(plans);
    drop(backings);
    run.results.seconds = run.progress.elapsed().as_secs_f64();
    if outcome.is_err() {
        // Hours of measurements must not be lost.
        run.results.note(CUT_SHORT.into());
    }
    if let Some(base) = &base {
        run.results.comparison = Some(against::compare(&run.results, &base.what, "this build"));
    }
    let written = write(&run, &output);
    outcome?;
    written?;
    Ok(run.results.failures.is_empty())
}

/// The work on a backing, and its participants.
struct Plan<'a> {
    backing: &'a Backing,
    blocks: Vec<Box<dyn block::Peer>>,
    roots: Vec<Box<dyn roots::Peer>>,
}

fn plan<'a>(
    run: &mut Run,
    backings: &'a [Backing],
    cowshed: &Path,
    base: Option<&Base>,
) -> anyhow::Result<Vec<Plan<'a>>> {
    let mut plans = Vec::new();
    let mut names = Vec::new();
    for backing in backings {
        ensure!(
            fio::can_name(backing.path()),
            "{} has a colon or a backslash in its path, which fio cannot name",
            backing.path().display()
        );
        let (needed, free) = (run.scale.space_bytes(), backing.free_bytes()?);
        ensure!(
            free >= needed,
            "{} has {} free, and up to {} may be needed: name another --backing, or use --quick",
            backing.record.path,
            report::bytes(free as f64),
            report::bytes(needed as f64)
        );
        let (mut blocks, mut roots) = match base {
            None => (block::peers(cowshed, backing), roots::peers(cowshed)),
            Some(base) => (
                block::builds(&base.program, cowshed),
                roots::builds(&base.program, cowshed),
            ),
        };
        names.extend(blocks.iter().map(|peer| peer.name().to_owned()));
        names.extend(roots.iter().map(|peer| peer.name().to_owned()));
        let there = |run: &mut Run, name: &str, what: String, missing: Option<String>| {
            let wanted = run.options.wants_peer(name);
            let is_there = missing.is_none();
            if wanted {
                run.results.peer(PeerRecord {
                    name: name.to_owned(),
                    what,
                    missing,
                });
            }
            wanted && is_there
        };
        blocks.retain(|peer| there(run, peer.name(), peer.what(), peer.missing()));
        roots.retain(|peer| there(run, peer.name(), peer.what(), peer.missing()));
        signals::go_on()?;
        run.results.backings.push(backing.record.clone());
        plans.push(Plan {
            backing,
            blocks,
            roots,
        });
    }
    names.sort_unstable();
    names.dedup();
    run.options.check_peers(&names)?;
    Ok(plans)
}

/// Reports what will be done, and the expected duration.
fn announce(run: &mut Run, plans: &[Plan], output: &Path) {
    let mut expected = Duration::ZERO;
    let mut left_out = Vec::new();
    for work in block::works() {
        if run.options.wants(work.name()) {
            left_out.extend(work.missing().map(|why| (work.name(), why)));
        }
    }
    for plan in plans {
        println!("on {} ({}):", plan.backing.name(), plan.backing.record.path);
        let mut say = |name: &str, what: &str, time: Duration| {
            if run.options.wants(name) && time > Duration::ZERO {
                println!("  {name:18} about {:>7}  {what}", clock(time));
                expected += time;
            }
        };
        for work in block::works() {
            if left_out.iter().any(|(name, _)| *name == work.name()) {
                continue;
            }
            say(
                work.name(),
                work.what(),
                work.expected(&run.scale, &plan.blocks),
            );
        }
        for work in roots::works() {
            say(
                work.name(),
                work.what(),
                work.expected(&run.scale, &plan.roots),
            );
        }
    }
    let lines = |missing: bool| {
        let mut lines: Vec<String> = Vec::new();
        for peer in &run.results.peers {
            let line = match &peer.missing {
                Some(why) => format!("left out: {}: {why}", peer.name),
                None => peer.name.clone(),
            };
            if peer.missing.is_some() == missing && !lines.contains(&line) {
                lines.push(line);
            }
        }
        lines
    };
    println!("peers: {}", lines(false).join(", "));
    for line in lines(true) {
        println!("{line}");
    }
    for (name, why) in left_out {
        println!("left out: {name}: {why}");
    }
    println!(
        "{} rounds, about {} minutes in all; results go to {}\n",
        run.scale.rounds,
        clock(expected),
        output.display()
    );
    run.progress = Progress::new(expected);
}

fn carry_out(run: &mut Run, plan: &Plan) -> anyhow::Result<()> {
    for work in block::works() {
        if run.options.wants(work.name()) {
            work.run(run, plan.backing, &plan.blocks)?;
        }
    }
    roots::run(run, plan.backing, &plan.roots)?;
    Ok(())
}

/// Returns all work, as names with descriptions.
fn works() -> impl Iterator<Item = (&'static str, &'static str)> {
    let blocks = block::works()
        .into_iter()
        .map(|work| (work.name(), work.what()));
    let roots = roots::works()
        .into_iter()
        .map(|work| (work.name(), work.what()));
    blocks.chain(roots)
}

fn list(options: &Options) {
    for (name, what) in works().filter(|(name, _)| options.wants(name)) {
        println!("{name:18} {what}");
    }
}

fn settings(options: &Options, scale: &Scale) -> Settings {
    Settings {
        arguments: std::env::args().skip(1).collect(),
        quick: options.quick || options.tiny,
        rounds: scale.rounds,
        job_seconds: scale.seconds.as_secs_f64(),
        subject_bytes: scale.subject_bytes,
        pass_bytes: scale.pass_bytes,
        mapped_bytes: scale.mapped_bytes,
        database_scale: scale.database_scale,
        tree_files: scale.tree_files,
        large_file_bytes: scale.large_file_bytes,
    }
}

/// Creates the folder for the results at the start, so that a long run does not fail at its end.
fn output_folder(options: &Options, started: &str) -> anyhow::Result<PathBuf> {
    let folder = options.output.clone().unwrap_or_else(|| {
        let name = started.replace(':', "-");
        Path::new(TARGET).join("bench").join(name)
    });
    fs::create_dir_all(&folder).with_context(|| format!("make the folder {}", folder.display()))?;
    Ok(folder)
}

fn write(run: &Run, output: &Path) -> anyhow::Result<()> {
    let results = &run.results;
    let json = serde_json::to_string_pretty(results)?;
    fs::write(output.join("results.json"), json)?;
    let page = report::page(results)?;
    fs::write(output.join("report.md"), page.markdown)?;
    for (file, chart) in page.charts {
        fs::write(output.join(file), chart)?;
    }
    if let Some(chart) = report::summary(results)? {
        fs::write(output.join("summary.svg"), chart)?;
    }
    run.progress.say("");
    if run.options.markdown {
        println!("{}", report::markdown(results));
    } else if let Some(comparison) = &results.comparison {
        println!("{}", report::changes(comparison));
    } else {
        println!("{}", report::terminal(results));
    }
    for unsound in &results.unsound {
        println!("{} on {}: {}", unsound.peer, unsound.backing, unsound.why);
    }
    for note in &results.notes {
        println!("note: {note}");
    }
    println!(
        "{} of {} measurements failed; the report is {}",
        results.failures.len(),
        results.failures.len() + results.series.len(),
        output.join("report.md").display()
    );
    Ok(())
}
