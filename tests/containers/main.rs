//! Images and containers on real mounts: FUSE, loop devices and ext4. Needs root and e2fsprogs.
//!
//! Everything is created in temporary folders and in pools in memory; each test unmounts and
//! detaches what it created, also when it fails.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails where something is missing"
)]

mod copies;
mod diffs;
mod failures;
mod images;
mod kills;
mod overlays;
mod recipes;
mod roots;
mod sizes;
mod stage;
mod superblocks;
mod trees;
