//! The entries of a node in memory, in every order of their reads and writes and with every stale
//! value that the memory model allows: a reader never sees half of a write.
//!
//! It has no test harness: with one, the sources' own tests would come along.

#![allow(
    dead_code,
    unused_imports,
    reason = "the sources answer to their own crate"
)]

mod base;
#[path = "../../../../src/format/mod.rs"]
mod format;
mod map;

fn main() {
    for (name, model) in map::models::ALL {
        model();
        println!("model {name} ... ok");
    }
}
