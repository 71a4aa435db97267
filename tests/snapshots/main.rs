//! The snapshotter as containerd meets it: gRPC on the socket of a real `cowshed serve`.
//!
//! - `client` speaks the protocol, `place` mounts what it is handed.
//! - `life` follows keys through all calls and their codes, `input` sends what must be refused.
//! - `modes` has devices, files, sizes and several views of what runs; `elsewhere` what others
//!   keep, hide and take away.
//! - `garbage` asks what is kept and why. `restart` stops and kills the daemon beneath snapshots,
//!   `crowd` asks from many sides at once, `full` fills the pool.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cowshed_testkit::snapshots_client as client;
mod crowd;
mod elsewhere;
mod full;
mod garbage;
use cowshed_testkit::harness;
mod input;
mod life;
mod modes;
mod place;
mod restart;
use cowshed_daemon::snapshotter::wire;
