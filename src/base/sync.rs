//! The locks and atomics of the engine, in one place, so that a model checker can put its own in
//! theirs: `tools/models` compiles the same sources with another `sync` and runs them in every
//! order that threads could take.
//!
//! Here it is nothing but names. What is not taken from here is invisible to the models: a plain
//! `Arc` or `OnceLock` is one step there.

pub use arc_swap::{ArcSwap, ArcSwapOption, Guard};
pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
pub use std::hint::spin_loop;
pub use std::sync::atomic;
pub use std::thread_local;
