//! The only room with `unsafe` and with calls that the standard library does not offer: mappings,
//! aligned memory, what a host is asked about a file's extents, mounts, loop devices, the
//! FUSE device and its rings, memory that outlives a process, time slices, attributes and paths
//! beneath a root.
//!
//! What it offers is safe to call: each file keeps its own invariants and says, at each `unsafe`
//! block, why they hold. It decides nothing about pools, volumes or durability.
#![allow(unsafe_code)]

pub(crate) mod aligned;
pub(crate) mod beneath;
pub(crate) mod descriptors;
pub(crate) mod extent;
pub(crate) mod file_table;
pub(crate) mod fuse_device;
pub(crate) mod fuse_ring;
pub(crate) mod geometry;
pub(crate) mod interrupt;
pub(crate) mod loop_device;
pub(crate) mod mapped;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod shared;
pub(crate) mod time_slice;
pub(crate) mod write_back;
pub(crate) mod xattr;
