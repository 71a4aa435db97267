//! Tests the snapshotter from containerd's side: gRPC on the socket of a real `cowshed serve`.
//!
//! - `client` speaks the protocol, `place` mounts what it is given.
//! - `life` follows keys through all calls and their codes, `input` sends requests that must be
//!   refused.
//! - `modes` tests devices, files, sizes and several views of a running snapshot; `elsewhere` what
//!   other processes keep, hide and remove.
//! - `overlays` are snapshots that share their parent in memory.
//! - `garbage` tests what is kept and why. `restart` stops and kills the daemon while snapshots are
//!   in use, `crowd` calls from many clients at once, `full` fills the pool.

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
mod overlays;
mod place;
mod restart;
use cowshed_daemon::snapshotter::wire;
