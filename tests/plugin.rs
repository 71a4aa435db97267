//! The volume plugin as Docker Engine meets it: a real `cowshed serve`, spoken to over its socket.
//! Needs root, FUSE and loop devices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "plugin/caller.rs"]
mod caller;
#[path = "plugin/calls.rs"]
mod calls;
#[path = "plugin/data.rs"]
mod data;
#[allow(dead_code, reason = "the command line's tests use all of it")]
#[path = "cli/harness.rs"]
mod harness;
#[path = "plugin/kills.rs"]
mod kills;
#[allow(dead_code, reason = "the command line's tests use all of it")]
#[path = "cli/load.rs"]
mod load;
