//! Models of a node's entries that run every order of their reads and writes, with every stale
//! value that the memory model allows: a reader never sees half of a write.

#![allow(clippy::unwrap_used, reason = "a model fails by panicking")]

use super::SharedEntries;
use cowshed_format::Pointer;
use cowshed_format::base::{BlockAddr, Generation};
use std::sync::Arc;

/// All models, by name.
pub const ALL: [(&str, fn()); 2] = [
    (
        "a_reader_beside_a_writer_sees_whole_writes_or_nothing",
        a_reader_beside_a_writer_sees_whole_writes_or_nothing,
    ),
    (
        "two_reads_never_go_back_in_time",
        two_reads_never_go_back_in_time,
    ),
];

fn pointer(n: u32) -> Pointer {
    Pointer::data(BlockAddr(u64::from(n)), Generation(u64::from(n)), n)
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 20_000;
    builder.check(model);
}

/// Asserts that both places hold the same two pointers or neither does: never one of each, nor a
/// mixture of halves.
fn assert_whole(seen: [Pointer; 2]) {
    assert_eq!(seen[0], seen[1], "two entries of different writes");
    if !seen[0].is_hole() {
        assert_eq!(seen[0], pointer(seen[0].crc()), "half a pointer");
    }
}

fn a_reader_beside_a_writer_sees_whole_writes_or_nothing() {
    explore(|| {
        let entries = Arc::new(SharedEntries::default());
        let writer = Arc::clone(&entries);
        let writing = loom::thread::spawn(move || {
            writer.write(0, &[pointer(1), pointer(1)]);
            writer.write(0, &[pointer(2), pointer(2)]);
        });
        let mut seen = [Pointer::HOLE; 2];
        if entries.try_read(0, &mut seen).is_some() {
            assert_whole(seen);
        }
        writing.join().unwrap();
        entries.read(0, &mut seen);
        assert_eq!(seen, [pointer(2); 2], "what was written before is seen");
    });
}

fn two_reads_never_go_back_in_time() {
    explore(|| {
        let entries = Arc::new(SharedEntries::default());
        let writer = Arc::clone(&entries);
        let writing = loom::thread::spawn(move || writer.write(0, &[pointer(1), pointer(1)]));
        let mut first = [Pointer::HOLE; 2];
        if entries.try_read(0, &mut first).is_some() && !first[0].is_hole() {
            let mut second = [Pointer::HOLE; 2];
            if entries.try_read(0, &mut second).is_some() {
                assert_eq!(second, first);
            }
        }
        writing.join().unwrap();
    });
}
