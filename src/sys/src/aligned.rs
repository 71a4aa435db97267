//! Memory whose address suits direct I/O, and one such buffer per thread to copy through.
//!
//! # Invariants
//! - A buffer starts at a multiple of [`ALIGN_BYTES`] and is always initialised.

use std::alloc::{self, Layout};
use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

/// Alignment of a buffer's start, in bytes: enough for every host that can do direct I/O of single
/// blocks.
pub const ALIGN_BYTES: usize = 4096;
/// Size of one thread's bounce buffer. The host allocates only the part that is used.
pub const BOUNCE_BYTES: usize = 1 << 20;

/// Initialised heap memory at a multiple of [`ALIGN_BYTES`].
pub struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer alone owns its memory, which is not tied to the thread that allocated it.
unsafe impl Send for AlignedBuffer {}

impl AlignedBuffer {
    /// Returns a buffer of `len_bytes` zeros.
    ///
    /// # Panics
    /// If `len_bytes` is zero or exceeds the address space.
    pub fn zeroed(len_bytes: usize) -> Self {
        assert!(len_bytes > 0, "an aligned buffer of no bytes");
        let layout = Layout::from_size_align(len_bytes, ALIGN_BYTES)
            .expect("the length is a small constant or a request that was bounded");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            alloc::handle_alloc_error(layout)
        };
        Self { start, layout }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is an allocation of `layout.size()` bytes that was zeroed when it was
        // made and lives until `drop`; `&self` excludes writers.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` excludes all other access.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this layout and is freed only here.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

thread_local! {
    static BOUNCE: Cell<Option<AlignedBuffer>> = const { Cell::new(None) };
}

/// Lends this thread's buffer of [`BOUNCE_BYTES`] to `work`. It holds the last user's bytes.
pub fn with_bounce<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    // The buffer is taken out during the call, so a nested call allocates one of its own.
    let mut buffer = BOUNCE
        .take()
        .unwrap_or_else(|| AlignedBuffer::zeroed(BOUNCE_BYTES));
    let result = work(&mut buffer);
    BOUNCE.set(Some(buffer));
    result
}

/// Returns true if memory at `start` suits direct I/O that requires `align_bytes`.
pub fn is_aligned(start: *const u8, align_bytes: usize) -> bool {
    start.addr().is_multiple_of(align_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_writable_to_their_end() {
        for len_bytes in [1, 4096, 12_288, BOUNCE_BYTES] {
            let mut buffer = AlignedBuffer::zeroed(len_bytes);
            assert!(is_aligned(buffer.as_ptr(), ALIGN_BYTES));
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer[len_bytes - 1] = 9;
            assert_eq!(buffer.len(), len_bytes);
        }
    }

    #[test]
    fn a_thread_reuses_its_bounce_buffer_and_nested_use_gets_another() {
        let first = with_bounce(|buffer| buffer.as_ptr().addr());
        let (outer, inner) = with_bounce(|outer| {
            let inner = with_bounce(|inner| inner.as_ptr().addr());
            (outer.as_ptr().addr(), inner)
        });
        assert_eq!(outer, first);
        assert_ne!(inner, outer);
    }

    #[test]
    fn alignment_is_judged_by_address() {
        let buffer = AlignedBuffer::zeroed(8192);
        assert!(is_aligned(buffer.as_ptr(), 4096));
        assert!(!is_aligned(buffer[1..].as_ptr(), 512));
        assert!(is_aligned(buffer[512..].as_ptr(), 512));
    }
}
