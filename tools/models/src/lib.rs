//! The engine under a model checker: built with the feature `shuttle`, its locks and atomics are
//! the checker's (`cowshed_format::base::sync`), which decides at each of them which thread goes
//! on.
//!
//! `tests/engine.rs` has the scenes: the whole engine on a device in memory, in random orders. Each
//! step is seen by all threads at once. `entries` is a package of its own, for another checker.
