//! cowshed: a block-level copy-on-write storage engine for container image layers and roots.
//!
//! The rooms, from the ground up; imports point downwards only:
//!
//! | level | room | what lives there |
//! |---|---|---|
//! | 0 | [`base`] | units, errors, codec, checksums |
//! | 0 | `sys` | the only `unsafe`: mappings, loop devices, mounts, hole punching |
//! | 1 | [`device`] | where the pool's bytes lie |
//! | 1 | [`mod@format`] | what lies on disk |
//! | 2 | [`space`] | which blocks are free |
//! | 2 | [`log`] | the ring of intent records |
//! | 3 | [`map`] | where each block of a volume lies |
//! | 4 | [`pool`] | volumes, checkpoints, recovery: the engine's outside |
//! | 4 | [`check`] | finding and mending damage, without trust in the engine's state |
//! | 5 | [`export`] | volumes as files and loop devices |
//! | 5 | [`oci`] | images: archives, layers, digests |
//! | 6 | [`container`] | images and containers on this host: layers, roots, diff, commit |
//! | 7 | [`docker`] | the volume plugin of Docker Engine |
//! | 7 | [`snapshotter`] | what containerd asks of a snapshotter, over gRPC |
//! | 8 | [`daemon`] | the socket through which commands reach an open pool |
//! | 8 | [`cli`] | the commands |

pub mod base;
pub mod check;
pub mod cli;
pub mod container;
pub mod daemon;
pub mod device;
pub mod docker;
pub mod export;
pub mod format;
pub mod log;
pub mod map;
pub mod oci;
pub mod pool;
pub mod snapshotter;
pub mod space;
mod sys;
