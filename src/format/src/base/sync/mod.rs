//! The locks and atomics of the engine, in one place, so that a model checker can replace them by
//! its own: with the feature `shuttle` (`tools/models`) these are the checker's, and the engine
//! runs in every order that threads could take.
//!
//! This module only re-exports names. The models do not see synchronization that is not taken from
//! here: to them, a plain `Arc` or `OnceLock` is one step.

#[cfg(feature = "shuttle")]
mod modelled;

#[cfg(not(feature = "shuttle"))]
pub use arc_swap::{ArcSwap, ArcSwapOption, Guard};
#[cfg(feature = "shuttle")]
pub use modelled::*;
#[cfg(not(feature = "shuttle"))]
pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
#[cfg(not(feature = "shuttle"))]
pub use std::hint::spin_loop;
#[cfg(not(feature = "shuttle"))]
pub use std::sync::atomic;
#[cfg(not(feature = "shuttle"))]
pub use std::thread_local;
