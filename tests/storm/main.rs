//! Real file systems in a storm: ext4 and xfs on attached volumes under a heavy mixed load, while
//! the worker is killed every second; and the same on a pool in memory whose power is cut.
//!
//! `cargo test` runs the short form; `tools/storm --seconds 120` the long one. `storm` does the
//! killing, `loads` and `fsx` load the file systems, `cuts` has the power cuts, and `ledger`
//! records what must be there after one. A failure prints the seed; the kernel schedules the
//! concurrent loads, so a seed repeats each load, not the storm.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cuts;
mod file_system;
mod fsx;
use cowshed_testkit::harness;
mod kernel_log;
mod ledger;
mod loads;
mod probe;
mod server;
mod storm;

use clap::Parser;
use cowshed_testkit::test_program::{Harness, Outcomes};
use file_system::FileSystem;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The duration of a storm of the short form.
const SHORT: Duration = Duration::from_secs(12);

/// Kills the daemon beneath file systems, and cuts the power of pools beneath them.
#[derive(Parser)]
#[command(name = "storm")]
struct Options {
    /// How long each storm, and each series of power cuts, goes on.
    #[arg(long)]
    seconds: Option<u64>,
    /// What the loads, and the power cuts, are chosen by.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The file systems.
    #[arg(long, value_enum, default_value_t = Which::Both)]
    fs: Which,
    /// Set by this program for a process of its own that loads one file.
    #[arg(long, hide = true)]
    fsx: Option<PathBuf>,
    #[arg(long, hide = true, value_enum, default_value_t = fsx::Style::Buffered)]
    style: fsx::Style,
    #[command(flatten)]
    harness: Harness,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    Ext4,
    Xfs,
    Both,
}

type Test = (&'static str, FileSystem, fn(FileSystem, &Options) -> String);

const TESTS: [Test; 6] = [
    (
        "what_the_kernel_says_about_a_device_is_noticed",
        FileSystem::Ext4,
        complained_about,
    ),
    (
        "a_load_notices_a_byte_that_it_did_not_write",
        FileSystem::Ext4,
        meddled_with,
    ),
    (
        "ext4_sees_no_more_than_pauses_while_workers_are_killed",
        FileSystem::Ext4,
        killed_workers,
    ),
    (
        "xfs_sees_no_more_than_pauses_while_workers_are_killed",
        FileSystem::Xfs,
        killed_workers,
    ),
    (
        "what_was_synced_to_ext4_survives_a_power_cut",
        FileSystem::Ext4,
        power_cuts,
    ),
    (
        "what_was_synced_to_xfs_survives_a_power_cut",
        FileSystem::Xfs,
        power_cuts,
    ),
];

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(path) = &options.fsx {
        return fsx::main(path, options.style, options.seed);
    }
    let of_file_system = |(_, file_system, _): &Test| match options.fs {
        Which::Both => true,
        Which::Ext4 => *file_system == FileSystem::Ext4,
        Which::Xfs => *file_system == FileSystem::Xfs,
    };
    let tests = TESTS.into_iter().filter(of_file_system);
    let Some(tests) = options.harness.choose(tests, |(name, ..)| name) else {
        return ExitCode::SUCCESS;
    };
    let mut outcomes = Outcomes::default();
    for (name, file_system, test) in tests {
        outcomes.run(name, options.seed, || test(file_system, &options));
    }
    outcomes.exit_code()
}

fn complained_about(_: FileSystem, _: &Options) -> String {
    kernel_log::expect_to_notice();
    "the kernel's log is read".to_owned()
}

fn meddled_with(_: FileSystem, options: &Options) -> String {
    loads::expect_to_notice(options.seed);
    "both styles of file noticed".to_owned()
}

fn killed_workers(file_system: FileSystem, options: &Options) -> String {
    let time = options.seconds.map_or(SHORT, Duration::from_secs);
    storm::storm(file_system, time, options.seed)
}

fn power_cuts(file_system: FileSystem, options: &Options) -> String {
    let time = options.seconds.map(Duration::from_secs);
    cuts::power_cuts(file_system, time.unwrap_or_default(), options.seed)
}
