//! The block map, which gives the address of each block of a volume.
//!
//! A radix tree of 256-way nodes in which position is identity: nothing is ever balanced or split,
//! and comparing two maps is a walk that skips every equal pointer. It does not know names, the log
//! or when to checkpoint; its callers pass the generation that it works in.
//!
//! Nodes have two forms:
//!
//! - **stored** nodes are immutable and lie on the device; the cache holds copies of them in fixed
//!   frames, which readers read without locks, and may evict any of them;
//! - **memory** nodes ([`Node`]) have changed since they were stored. Their parents are memory
//!   nodes too, up to the root. The next checkpoint stores them.
//!
//! # Invariants
//! - A memory node may be changed in place only while its birth is above both the volume's branch
//!   generation and the last cut: then no other volume and no running checkpoint can reach it. All
//!   other nodes are copied first.
//! - Only the holder of a volume's write lock changes its tree; only the checkpoint stores nodes,
//!   and no thread changes those nodes any more. Readers take no lock.
//! - (address, birth) names a stored node for ever: an address is reused only after a checkpoint,
//!   and by then the generation has risen.

mod cache;
mod copies;
mod diff;
mod discard;
mod edit;
mod entries;
mod find;
mod ledger;
mod node;
mod own;
mod persist;
mod reach;
mod read;
mod settle;
mod since;
mod store;
mod tree;
mod unreached;
mod young;

pub(crate) use copies::Damage;
pub(crate) use diff::diff;
pub(crate) use edit::Edit;
#[cfg(feature = "loom")]
pub use entries::models as entries_models;
pub(crate) use find::{DAMAGED_MAX, Sought, find, find_beside_damage};
pub(crate) use ledger::{Inheritance, Ledger, Ownership};
pub(crate) use node::Node;
pub(crate) use own::{Own, next_own};
pub(crate) use persist::{Outlet, Persist};
pub(crate) use reach::reach;
pub(crate) use settle::Settling;
pub(crate) use since::since;
pub(crate) use store::NodeStore;
pub(crate) use tree::{Link, Root, Tree};
pub(crate) use unreached::{Found, Unreached};
pub(crate) use young::{Unread, young_leaf};
