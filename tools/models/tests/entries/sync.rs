//! The atomics as loom has them.

pub use loom::hint::spin_loop;
pub use loom::sync::atomic;
