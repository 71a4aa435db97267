//! The only crate with `unsafe` code and with calls that the standard library does not offer:
//! mappings, aligned memory, a file's extents on its host, mounts, loop devices, the FUSE device
//! and its rings, memory that outlives a process, time slices, extended attributes, and paths
//! beneath a root.
//!
//! Its interface is safe to call: each file keeps its own invariants and states, at each `unsafe`
//! block, why they hold. It decides nothing about pools, volumes or durability.
#![allow(unsafe_code)]

pub mod aligned;
pub mod beneath;
pub mod cached;
pub mod descriptors;
pub mod extent;
pub mod file_table;
pub mod fuse_device;
pub mod fuse_ring;
pub mod geometry;
pub mod interrupt;
pub mod loop_device;
pub mod mapped;
pub mod mount;
pub mod process;
pub mod program;
pub mod shared;
pub mod time_slice;
pub mod write_back;
pub mod xattr;
