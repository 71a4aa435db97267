//! Other projects' container runtimes on cowshed: private containerd daemons of several versions,
//! runc, and Docker with the containerd image store, each started here, with its own state, in
//! namespaces that end with the test.
//!
//! - [`sandbox`]: the namespaces, and the cleanup when they end.
//! - [`packages`]: the folders where `tools/runtimes` has put the programs.
//! - [`service`]: a pool with its daemon. [`containerd`], [`docker`]: the other daemons.
//! - [`images`]: images built by the tests; nothing is pulled.
//! - [`suite`]: containerd's own tests of snapshotters.
//! - [`containers`]: containerd and runc: import, run, exec, commit, diff, remove.
//! - [`walk`]: Docker's walk-through of storage drivers, and other common uses.
//! - [`exchange`]: images to and from Docker and `ctr`, with their names.
//! - [`kubelet`]: a pod through containerd's CRI plugin.
//! - [`kills`]: either side is killed in the middle of import, commit and remove.
//!
//! `--snapshotter overlayfs` (or `native`) runs the same tests on containerd's own snapshotters:
//! that shows whether a failure is cowshed's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cowshed_testkit::containerd;
mod containers;
use cowshed_testkit::docker;
mod exchange;
use cowshed_testkit::fixtures;
use cowshed_testkit::harness;
use cowshed_testkit::images;
mod kills;
mod kubelet;
use cowshed_testkit::packages;
use cowshed_testkit::sandbox;
use cowshed_testkit::service;
mod suite;
mod walk;
use cowshed_testkit::world;

use clap::Parser;
use packages::Release;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;
use world::{Mounts, Setting, Snapshotter};

/// Runs containerd, runc and Docker on cowshed.
#[derive(Parser)]
#[command(name = "runtimes")]
pub(crate) struct Options {
    /// Whose snapshots the containers have.
    #[arg(long, value_enum, default_value_t = Snapshotter::Cowshed)]
    snapshotter: Snapshotter,
    /// How many rounds of kills each of those tests goes through.
    #[arg(long, default_value_t = 6)]
    rounds: u64,
    /// What the moments of the kills are chosen by.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only the tests whose names contain one of these.
    filter: Vec<String>,
    #[command(flatten)]
    harness: Harness,
}

/// What `cargo test` and its friends pass to every test binary.
#[derive(clap::Args)]
struct Harness {
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    no_capture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    skip: Vec<String>,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
    #[arg(long, hide = true)]
    format: Option<String>,
    #[arg(long, hide = true)]
    color: Option<String>,
}

type Test = (&'static str, Release, Mounts, fn(&Setting));

const TESTS: &[Test] = &[
    (
        "containerds_own_suite_passes_with_folders",
        Release::Bookworm,
        Mounts::Dir,
        suite::passes,
    ),
    (
        "containerds_own_suite_passes_with_devices",
        Release::Bookworm,
        Mounts::Loop,
        suite::passes,
    ),
    (
        "containers_of_containerd_1_6_live_in_folders",
        Release::Bookworm,
        Mounts::Dir,
        containers::live,
    ),
    (
        "containers_of_containerd_1_6_live_on_devices",
        Release::Bookworm,
        Mounts::Loop,
        containers::live,
    ),
    (
        "containers_of_containerd_1_6_live_in_files",
        Release::Bookworm,
        Mounts::File,
        containers::live,
    ),
    (
        "containers_of_containerd_1_7_live_on_devices",
        Release::Trixie,
        Mounts::Loop,
        containers::live,
    ),
    (
        "containers_of_containerd_1_7_live_in_folders",
        Release::Trixie,
        Mounts::Dir,
        containers::live,
    ),
    (
        "containers_of_containerd_2_live_in_folders",
        Release::Sid,
        Mounts::Dir,
        containers::live,
    ),
    (
        "containers_of_containerd_2_live_on_devices",
        Release::Sid,
        Mounts::Loop,
        containers::live,
    ),
    (
        "a_kubelet_gets_its_pod_and_sees_the_pool",
        Release::Sid,
        Mounts::Dir,
        kubelet::runs_pods,
    ),
    (
        "the_walk_through_of_docker_28_works",
        Release::Sid,
        Mounts::Dir,
        walk::through,
    ),
    (
        "the_walk_through_of_docker_26_works",
        Release::Trixie,
        Mounts::Dir,
        walk::through,
    ),
    (
        "images_go_to_docker_28_with_containerds_store_and_back",
        Release::Sid,
        Mounts::Dir,
        exchange::with_containerds_store,
    ),
    (
        "images_go_to_docker_28_with_its_own_store_and_back",
        Release::Sid,
        Mounts::Dir,
        exchange::with_dockers_own_store,
    ),
    (
        "images_go_to_docker_26_with_containerds_store_and_back",
        Release::Trixie,
        Mounts::Dir,
        exchange::with_containerds_store,
    ),
    (
        "images_go_to_docker_26_with_its_own_store_and_back",
        Release::Trixie,
        Mounts::Dir,
        exchange::with_dockers_own_store,
    ),
    (
        "images_go_to_ctr_of_containerd_1_6_and_back",
        Release::Bookworm,
        Mounts::Dir,
        exchange::with_ctr,
    ),
    (
        "a_kill_in_the_middle_of_an_import_is_got_over",
        Release::Sid,
        Mounts::Dir,
        kills::importing,
    ),
    (
        "a_kill_in_the_middle_of_a_commit_is_got_over",
        Release::Sid,
        Mounts::Dir,
        kills::committing,
    ),
    (
        "a_kill_in_the_middle_of_a_removal_is_got_over",
        Release::Bookworm,
        Mounts::Dir,
        kills::removing,
    ),
    (
        "running_containers_outlive_every_daemon",
        Release::Bookworm,
        Mounts::Dir,
        kills::running,
    ),
];

fn main() -> ExitCode {
    let options = Options::parse();
    let tests: Vec<&Test> = TESTS
        .iter()
        .filter(|(name, ..)| is_wanted(name, &options))
        .collect();
    if options.harness.list {
        tests.iter().for_each(|(name, ..)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if tests.is_empty() {
        return ExitCode::SUCCESS;
    }
    let Some(sandbox) = sandbox::enter() else {
        return sandbox::exit_code();
    };
    let mut status = ExitCode::SUCCESS;
    for (name, release, mounts, test) in tests {
        let started = Instant::now();
        let setting = Setting {
            release: *release,
            snapshotter: options.snapshotter,
            mounts: *mounts,
            folder: sandbox.folder_for(name),
            rounds: options.rounds,
            seed: options.seed,
        };
        // The processes that a test has started end when its panic unwinds.
        let outcome = catch_unwind(AssertUnwindSafe(|| test(&setting)));
        let took = started.elapsed().as_secs_f64();
        if outcome.is_ok() {
            println!("test {name} ... ok ({took:.1} s)");
        } else {
            println!("test {name} ... FAILED (seed {})", options.seed);
            status = ExitCode::FAILURE;
        }
    }
    status
}

fn is_wanted(name: &str, options: &Options) -> bool {
    let matches = |text: &String| {
        if options.harness.exact {
            name == text
        } else {
            name.contains(text.as_str())
        }
    };
    let chosen = options.filter.is_empty() || options.filter.iter().any(matches);
    let skipped = options.harness.skip.iter().any(matches) || options.harness.ignored;
    chosen && !skipped
}
