//! Images and containers on real mounts: FUSE, loop devices and ext4. Needs root and e2fsprogs.
//!
//! Everything is made in temporary folders and in pools in memory; each test unmounts and
//! detaches what it made, also when it fails.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails where something is missing"
)]

#[path = "containers/copies.rs"]
mod copies;
#[path = "containers/diffs.rs"]
mod diffs;
#[path = "containers/failures.rs"]
mod failures;
#[path = "containers/images.rs"]
mod images;
#[path = "containers/kills.rs"]
mod kills;
#[path = "containers/roots.rs"]
mod roots;
#[path = "containers/sizes.rs"]
mod sizes;
#[path = "containers/stage.rs"]
mod stage;
#[path = "containers/superblocks.rs"]
mod superblocks;
#[path = "containers/trees.rs"]
mod trees;
