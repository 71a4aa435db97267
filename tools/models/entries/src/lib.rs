//! The entries of a map node under loom: in every order of their reads and writes, with the stale
//! values that a weak memory model permits.
//!
//! It is a separate package because the engine is built for one checker at a time: here with the
//! feature `loom`.
