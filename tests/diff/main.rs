//! Tests of the diff service from containerd's side: layers are unpacked into snapshots and made
//! from them, with blobs in a content store that behaves like containerd's, or worse.
//!
//! - `store` is the content store, `stage` a pool in memory with the services on it, `differ` a
//!   client of the diff service.
//! - `apply` and `compare` test the two calls, `hostile` bad blobs and stores, `giving_up` clients
//!   that go away, `kills` a daemon that dies.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod apply;
use cowshed_testkit::snapshots_client as client;
mod compare;
use cowshed_daemon::snapshotter::content_wire;
use cowshed_daemon::snapshotter::diff_wire;
mod differ;
use cowshed_testkit::fixtures;
mod giving_up;
use cowshed_testkit::harness;
mod hostile;
mod kills;
mod services;
mod stage;
mod store;
use cowshed_daemon::snapshotter::wire;
mod writing;
