//! The engine under a model checker: built with the feature `shuttle`, it uses the checker's locks
//! and atomics (`cowshed_format::base::sync`), and the checker decides at each of them which thread
//! continues.
//!
//! `tests/engine` has the models: the whole engine on a device in memory, or on a mirror of two, in
//! random orders. All threads see each step at once. `entries` is a separate package, for another
//! checker.
