//! Tests the `cowshed` command from the user's side: arguments, results, exit statuses, the daemon.
//!
//! Every test runs the real binary on real pools; tests that mount need root, FUSE and loop
//! devices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod advice;
mod copying;
mod corpus;
mod daemon;
mod damage;
mod devices;
mod doctor;
use cowshed_testkit::faulty_host;
mod fence;
mod full;
mod full_host;
use cowshed_testkit::harness;
mod images;
mod in_use;
mod interrupting;
mod keeper;
use cowshed_testkit::load;
mod logging;
mod migrate;
mod mirror;
mod mirror_daemon;
mod missing;
mod mounted;
mod overlays;
mod power;
mod quickstart;
mod rings;
mod send;
mod send_sets;
mod setup;
use cowshed_testkit::small_host;
mod stopping;
mod takeover;
mod terminal;
mod tree;
mod usage;
mod volumes;
