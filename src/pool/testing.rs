//! What the tests of the rooms above need: a pool that leaves nothing behind.

use super::{CreateOptions, OpenOptions, Pool};
use crate::device::MemoryDevice;
use std::sync::Arc;

/// A new pool in memory.
pub(crate) fn in_memory(size_bytes: u64) -> Pool {
    let device = Arc::new(MemoryDevice::new(size_bytes));
    Pool::create(device.as_ref(), &CreateOptions::default()).unwrap();
    Pool::open(device, &OpenOptions::default()).unwrap()
}
