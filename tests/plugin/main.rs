//! Tests the volume plugin from Docker Engine's side: a real `cowshed serve`, called over its
//! socket. Needs root, FUSE and loop devices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod caller;
mod calls;
mod data;
#[allow(dead_code, reason = "the command line's tests use all of it")]
use cowshed_testkit::harness;
mod kills;
#[allow(dead_code, reason = "the command line's tests use all of it")]
use cowshed_testkit::load;
