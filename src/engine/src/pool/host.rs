//! The room that a pool keeps on its host, so that a full host can be emptied through the pool.
//!
//! It is space behind the end of the pool's file: allocated, never read or written, and not shared
//! with a copy of the file that shares the rest (`Device::reserve_host_bytes`). When the host
//! refuses something that gives room back, or that is needed for it (removing, discarding,
//! trimming, a checkpoint, opening, closing), the pool releases all of it and tries again. Until
//! the host has room for the reserve again, nothing else is written: data and new volumes are
//! refused as the host itself would.
//!
//! # Invariants
//! - What a checkpoint writes fits: no more map nodes are in memory than the reserve has room for.
//! - It is taken back before anything else is written, and not while somebody works with it.

use super::shared::Shared;
use cowshed_format::base::sync::Mutex;
use cowshed_format::base::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use cowshed_format::base::{BLOCK_BYTES, Error, Result};
use cowshed_format::device::Device;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// The reserve is a 128th of the pool, but at least and at most this, beside the room for bitmaps.
const SHARE: u64 = 128;
const MIN_BYTES: u64 = 4 << 20;
const MAX_BYTES: u64 = 16 << 20;
/// Of each group's space (128 MiB), what its bitmaps take where they cannot be overwritten.
const BITMAPS_SHARE: u64 = 16 << 10;
/// The shortest time between two tries to have the reserve grow.
const RETRY_EVERY: Duration = Duration::from_millis(50);
/// How long a write waits for those who work with the reserve.
const USERS_TIME: Duration = Duration::from_secs(1);
/// How often it looks meanwhile.
const USERS_POLL: Duration = Duration::from_millis(5);

/// What is known of the pool's room on its host.
#[derive(Default)]
pub(super) struct HostReserve {
    /// What is set aside; 0 where the device needs or knows no reserve.
    held_bytes: AtomicU64,
    /// It was released and has not been taken back.
    is_spent: AtomicBool,
    /// The host has refused something since the background thread looked.
    was_refused: AtomicBool,
    /// Who works with what was released: meanwhile it is not taken back.
    users: AtomicUsize,
    /// When the host was last asked for more. Held while it is taken or released.
    tried: Mutex<Option<Instant>>,
}

/// The reserve of a pool of `pool_bytes`, without the room for map nodes.
fn base_bytes(pool_bytes: u64) -> u64 {
    let bitmaps = pool_bytes / cowshed_format::layout::GROUP_BLOCKS / BLOCK_BYTES as u64;
    let share = (pool_bytes / SHARE).clamp(MIN_BYTES, MAX_BYTES);
    (share + bitmaps * BITMAPS_SHARE).min(pool_bytes / 4)
}

/// The map nodes that a checkpoint can store out of a reserve of `held_bytes`.
const fn nodes_within(held_bytes: u64) -> u64 {
    held_bytes / 4 * 3 / BLOCK_BYTES as u64
}

impl HostReserve {
    /// The most map nodes that may be in memory.
    pub(super) fn nodes_max(&self) -> usize {
        match self.held_bytes.load(Ordering::Relaxed) {
            0 => usize::MAX,
            held => usize::try_from(nodes_within(held)).unwrap_or(usize::MAX),
        }
    }

    /// Forgets what is set aside: the device has grown over it.
    pub(super) fn forget(&self) {
        let mut tried = self.tried.lock();
        self.held_bytes.store(0, Ordering::Release);
        *tried = None;
    }

    /// Returns whether the host has refused something since the last call.
    pub(super) fn take_refusal(&self) -> bool {
        self.was_refused.load(Ordering::Relaxed) && self.was_refused.swap(false, Ordering::AcqRel)
    }

    /// Notes that the host has refused something.
    pub(super) fn note_refusal(&self, error: &Error) {
        if error.is_host_full() {
            self.was_refused.store(true, Ordering::Release);
        }
    }
}

/// Somebody works with what was released, until this is dropped.
pub(super) struct Using<'a>(&'a HostReserve);

impl Drop for Using<'_> {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    /// Does `work`, which gives room back or is needed for it; where the host has no room, once
    /// more with the reserve. What `work` has done by then must stand being done again.
    pub(super) fn with_host_reserve<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let error = match work() {
            Err(error) if error.is_host_full() => error,
            outcome => return outcome,
        };
        match self.use_host_reserve() {
            Some(_using) => work(),
            None => Err(error),
        }
    }

    /// Gives the reserve to the host, for what is tried next; `None` where there is none.
    pub(super) fn use_host_reserve(&self) -> Option<Using<'_>> {
        let reserve = &self.host_reserve;
        let _tried = reserve.tried.lock();
        reserve.was_refused.store(true, Ordering::Release);
        let bytes = match self.device.release_host_bytes() {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!("the room kept on the host cannot be used: {error}");
                0
            }
        };
        reserve.held_bytes.store(0, Ordering::Release);
        let was_spent = if bytes > 0 {
            reserve.is_spent.swap(true, Ordering::AcqRel)
        } else {
            reserve.is_spent.load(Ordering::Acquire)
        };
        if bytes > 0 && !was_spent {
            tracing::warn!(
                bytes,
                "the host is full: the pool uses the room that it kept there"
            );
        }
        // Another thread may just have released it.
        (bytes > 0 || was_spent).then(|| {
            reserve.users.fetch_add(1, Ordering::AcqRel);
            Using(reserve)
        })
    }

    /// Refuses what does not give room back while the reserve is spent; takes it back first, if
    /// the host has room again.
    ///
    /// # Errors
    /// `Io` with `ENOSPC`, as the host itself would say.
    pub(super) fn check_host_room(&self) -> Result<()> {
        if !self.host_reserve.is_spent.load(Ordering::Relaxed) || self.keep_host_reserve() {
            return Ok(());
        }
        // Whoever gives room back works with the reserve for a moment.
        let deadline = Instant::now() + USERS_TIME;
        while self.host_reserve.users.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            thread::sleep(USERS_POLL);
            if self.keep_host_reserve() {
                return Ok(());
            }
        }
        self.host_reserve.was_refused.store(true, Ordering::Release);
        let source = io::Error::from_raw_os_error(libc::ENOSPC);
        Err(Error::io("write the pool", source))
    }

    /// Sets the reserve aside, where it is not and the host has room; returns whether it is there,
    /// or none is needed.
    pub(super) fn keep_host_reserve(&self) -> bool {
        let pool_bytes = self.space.layout().block_count() * BLOCK_BYTES as u64;
        self.reserve_on_host(base_bytes(pool_bytes), Duration::ZERO)
    }

    /// Has the reserve grow before the map nodes in memory need it.
    pub(super) fn grow_host_reserve(&self, nodes: usize) {
        let reserve = &self.host_reserve;
        let held = reserve.held_bytes.load(Ordering::Relaxed);
        if nodes > reserve.nodes_max() / 2 && reserve.nodes_max() < self.memory_nodes_max {
            self.reserve_on_host(held.saturating_mul(2), RETRY_EVERY);
        }
    }

    /// Asks the host for a reserve of `bytes`, unless it was asked less than `pause` ago.
    fn reserve_on_host(&self, bytes: u64, pause: Duration) -> bool {
        let reserve = &self.host_reserve;
        if reserve.held_bytes.load(Ordering::Acquire) >= bytes {
            return true;
        }
        let mut tried = reserve.tried.lock();
        if reserve.held_bytes.load(Ordering::Acquire) >= bytes {
            return true;
        }
        let in_use = reserve.users.load(Ordering::Acquire) > 0;
        if in_use || tried.is_some_and(|tried| tried.elapsed() < pause) {
            return false;
        }
        *tried = Some(Instant::now());
        match self.device.reserve_host_bytes(bytes) {
            Ok(None) => true,
            Ok(Some(held)) => {
                reserve.held_bytes.store(held, Ordering::Release);
                let done = held >= bytes;
                if done && reserve.is_spent.swap(false, Ordering::AcqRel) {
                    tracing::info!(bytes, "the host has room again");
                }
                done
            }
            Err(error) => {
                tracing::debug!("the host gives no room to keep: {error}");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_bounded_and_leaves_room_for_data() {
        const MIB: u64 = 1 << 20;
        assert_eq!(base_bytes(8 * MIB), 2 * MIB);
        assert_eq!(base_bytes(64 * MIB), 4 * MIB);
        assert_eq!(base_bytes(1024 * MIB), 8 * MIB + 8 * BITMAPS_SHARE);
        assert_eq!(base_bytes(MIB << 20), MAX_BYTES + 128 * MIB);
    }

    #[test]
    fn nodes_take_three_quarters_of_the_reserve() {
        assert_eq!(nodes_within(4 << 20), 768);
        assert_eq!(nodes_within(0), 0);
    }
}
