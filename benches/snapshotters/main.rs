//! cowshed compared with containerd's own snapshotters, on one disk in one run, as a table in
//! Markdown: unpacking, preparing, removing, the space of containers, first writes, and Docker's
//! diff and commit.
//!
//! `tools/runtimes && cargo bench --bench snapshotters -- [--rounds N] [--files N] [NAME...]`
//!
//! NAME is cowshed, overlayfs, native, blockfile (on XFS with reflinks) or btrfs; the last two use
//! loop-mounted files on the same disk. Everything lies below `$TMPDIR`. All of them use the same
//! containerd 2 and Docker 28; each number is the median of the rounds.

#![allow(clippy::unwrap_used, reason = "a measurement that goes wrong ends")]

mod calls;
use cowshed_testkit::containerd;
use cowshed_testkit::docker;
mod engine;
use cowshed_testkit::fixtures;
use cowshed_testkit::harness;
use cowshed_testkit::images;
mod measure;
use cowshed_testkit::packages;
use cowshed_testkit::sandbox;
use cowshed_testkit::service;
mod subjects;
mod table;
use cowshed_daemon::snapshotter::wire;
use cowshed_testkit::world;

use clap::Parser;
use measure::Measurement;
use packages::Release;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use subjects::Archives;
use table::Table;
use world::{Mounts, Setting, Snapshotter};

/// Measures snapshotters.
#[derive(Parser)]
#[command(name = "snapshotters")]
struct Options {
    /// How often everything is done; the table has medians.
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// How many small files the image of many has.
    #[arg(long, default_value_t = 50_000)]
    files: u64,
    /// The size of the large file.
    #[arg(long, default_value_t = 1024)]
    large_mib: u64,
    /// Which; all that this machine can have when none is named.
    #[arg(value_enum)]
    names: Vec<Snapshotter>,
    /// Cargo says so; run as a test, there is nothing to do.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if !options.bench {
        return ExitCode::SUCCESS;
    }
    if !sandbox::is_inside() {
        // It is downloaded once.
        fixtures::debian::root_tar();
    }
    let Some(sandbox) = sandbox::enter() else {
        return sandbox::exit_code();
    };
    if options.names.is_empty() {
        options.names = measure::measured();
    }
    let archives = Archives::make(&sandbox.folder_for("images"), &options);
    let mut table = Table::new(&options.names);
    let mut status = ExitCode::SUCCESS;
    for round in 0..options.rounds {
        for name in &options.names {
            let setting = Setting {
                release: Release::Sid,
                snapshotter: *name,
                mounts: Mounts::Dir,
                folder: sandbox.folder_for(name.word()),
                rounds: options.rounds,
                seed: round,
            };
            eprintln!("round {round}: {}", name.word());
            let all = AssertUnwindSafe(|| Measurement::all(&setting, &archives, &mut table));
            if catch_unwind(all).is_err() {
                eprintln!("{} did not get through round {round}", name.word());
                status = ExitCode::FAILURE;
            }
            drop(std::fs::remove_dir_all(&setting.folder));
        }
    }
    table.print();
    status
}
