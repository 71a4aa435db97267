//! The entries of a map node under loom: in every order of their reads and writes, with the stale
//! values that a weak memory may show.
//!
//! It is a package of its own because the engine is built for one checker at a time: here with the
//! feature `loom`.
