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
//! - [`migrate`]: a host's images are taken over from the store of Docker or containerd.
//! - [`kubelet`]: a pod through containerd's CRI plugin.
//! - [`setup`]: a host with Docker goes to cowshed and back.
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
mod migrate;
use cowshed_testkit::packages;
use cowshed_testkit::sandbox;
use cowshed_testkit::service;
mod setup;
mod suite;
mod walk;
use cowshed_testkit::world;

use clap::Parser;
use cowshed_testkit::test_program::{Harness, Outcomes};
use packages::Release;
use std::process::ExitCode;
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
    #[command(flatten)]
    harness: Harness,
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
        "containerds_own_suite_passes_with_overlays",
        Release::Bookworm,
        Mounts::Overlay,
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
        "containers_of_containerd_1_6_live_in_overlays",
        Release::Bookworm,
        Mounts::Overlay,
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
        "containers_of_containerd_2_live_in_overlays",
        Release::Sid,
        Mounts::Overlay,
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
        "the_walk_through_of_docker_28_works_with_overlays",
        Release::Sid,
        Mounts::Overlay,
        walk::through,
    ),
    (
        "the_walk_through_of_docker_26_works",
        Release::Trixie,
        Mounts::Dir,
        walk::through,
    ),
    (
        "a_host_with_docker_28_goes_to_cowshed_and_back",
        Release::Sid,
        Mounts::Dir,
        setup::there_and_back,
    ),
    (
        "a_host_with_docker_26_goes_to_cowshed_and_back",
        Release::Trixie,
        Mounts::Dir,
        setup::there_and_back,
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
        "what_docker_20_has_in_overlay2_is_taken_over",
        Release::Bookworm,
        Mounts::Dir,
        migrate::from_docker_with_overlay2,
    ),
    (
        "what_docker_20_has_in_vfs_is_taken_over",
        Release::Bookworm,
        Mounts::Dir,
        migrate::from_docker_with_vfs,
    ),
    (
        "what_docker_26_has_in_overlay2_is_taken_over",
        Release::Trixie,
        Mounts::Dir,
        migrate::from_docker_with_overlay2,
    ),
    (
        "what_docker_26_has_in_vfs_is_taken_over",
        Release::Trixie,
        Mounts::Dir,
        migrate::from_docker_with_vfs,
    ),
    (
        "what_docker_28_has_in_overlay2_is_taken_over",
        Release::Sid,
        Mounts::Dir,
        migrate::from_docker_with_overlay2,
    ),
    (
        "what_containerd_1_6_has_is_taken_over",
        Release::Bookworm,
        Mounts::Dir,
        migrate::from_containerd,
    ),
    (
        "what_containerd_2_has_is_taken_over",
        Release::Sid,
        Mounts::Dir,
        migrate::from_containerd,
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
    (
        "running_containers_in_overlays_outlive_every_daemon",
        Release::Bookworm,
        Mounts::Overlay,
        kills::running,
    ),
];

fn main() -> ExitCode {
    let options = Options::parse();
    let Some(tests) = options.harness.choose(TESTS, |(name, ..)| name) else {
        return ExitCode::SUCCESS;
    };
    if tests.is_empty() {
        return ExitCode::SUCCESS;
    }
    let Some(sandbox) = sandbox::enter() else {
        return sandbox::exit_code();
    };
    let mut outcomes = Outcomes::default();
    for (name, release, mounts, test) in tests {
        let setting = Setting {
            release: *release,
            snapshotter: options.snapshotter,
            mounts: *mounts,
            folder: sandbox.folder_for(name),
            rounds: options.rounds,
            seed: options.seed,
        };
        outcomes.run(name, options.seed, || {
            test(&setting);
            String::new()
        });
    }
    outcomes.exit_code()
}
