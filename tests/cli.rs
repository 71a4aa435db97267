//! The `cowshed` command as its users meet it: arguments, results, exit statuses, the daemon.
//!
//! Everything runs the real binary on real pools; what mounts needs root, FUSE and loop devices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "cli/advice.rs"]
mod advice;
#[path = "cli/copying.rs"]
mod copying;
#[path = "cli/corpus.rs"]
mod corpus;
#[path = "cli/daemon.rs"]
mod daemon;
#[path = "cli/damage.rs"]
mod damage;
#[path = "cli/devices.rs"]
mod devices;
#[path = "cli/fence.rs"]
mod fence;
#[path = "cli/full.rs"]
mod full;
#[path = "cli/full_host.rs"]
mod full_host;
#[path = "cli/harness.rs"]
mod harness;
#[path = "cli/images.rs"]
mod images;
#[path = "cli/in_use.rs"]
mod in_use;
#[path = "cli/interrupting.rs"]
mod interrupting;
#[path = "cli/keeper.rs"]
mod keeper;
#[path = "cli/load.rs"]
mod load;
#[path = "cli/logging.rs"]
mod logging;
#[path = "cli/mounted.rs"]
mod mounted;
#[path = "cli/quickstart.rs"]
mod quickstart;
#[path = "cli/rings.rs"]
mod rings;
#[path = "fixtures/small_host.rs"]
mod small_host;
#[path = "cli/stopping.rs"]
mod stopping;
#[path = "cli/takeover.rs"]
mod takeover;
#[path = "cli/terminal.rs"]
mod terminal;
#[path = "cli/usage.rs"]
mod usage;
#[path = "cli/volumes.rs"]
mod volumes;
