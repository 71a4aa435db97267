//! The space that a pool reserves on its host, so that a full host can be emptied through the pool.
//!
//! The reserve is space behind the end of the pool's file: allocated, never read or written, and
//! not shared with a copy of the file that shares the rest (`Device::reserve_host_bytes`). When the
//! host refuses an operation that frees space, or is needed to free space (removing, discarding,
//! trimming, a checkpoint, opening, closing), the pool releases a slice of the reserve and tries
//! again, as long as there are slices: another process that fills the host at that moment can take
//! the slice, but not the rest. Until the host has space for the whole reserve again, nothing else
//! is written: data and new volumes are refused as the host itself would refuse them.
//!
//! # Invariants
//! - A checkpoint's writes fit: no more map nodes are in memory than the reserve has room for.
//! - The reserve is taken back before anything else is written, and not while an operation uses it.

use super::shared::Shared;
use cowshed_format::base::sync::Mutex;
use cowshed_format::base::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use cowshed_format::base::{BLOCK_BYTES, Error, Result};
use cowshed_format::device::Device;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// The reserve is this fraction of the pool, within the limits below, plus the space for bitmaps.
const SHARE: u64 = 128;
const MIN_BYTES: u64 = 4 << 20;
const MAX_BYTES: u64 = 16 << 20;
/// Bytes of each group (128 MiB) that its bitmaps take where they cannot be overwritten in place.
const BITMAPS_SHARE: u64 = 16 << 10;
/// The reserve is released in this many slices, none smaller than `SLICE_BYTES`.
const SLICES: u64 = 8;
const SLICE_BYTES: u64 = 512 << 10;
/// Minimum time between two attempts to enlarge the reserve.
const RETRY_EVERY: Duration = Duration::from_millis(50);
/// Maximum time that a write waits for operations that use the reserve.
const USERS_TIME: Duration = Duration::from_secs(1);
/// Writes are taken to go on once the host has gained this much since it refused one: a few blocks that
/// come and go make no difference.
const RELIEF_BYTES: u64 = 1 << 20;
/// Or once it has refused none for this long, and taken one.
const RELIEF_TIME: Duration = Duration::from_secs(10);
/// Interval at which it polls meanwhile.
const USERS_POLL: Duration = Duration::from_millis(5);

/// A write that failed because the host is full.
#[derive(Clone, Copy)]
struct Refused {
    /// The free space on the host then.
    free_bytes: u64,
    at: Instant,
    /// True if another write has succeeded since.
    is_over: bool,
}

/// The state of the pool's reserve on its host.
#[derive(Default)]
pub(super) struct HostReserve {
    /// Number of bytes reserved; 0 where the device needs or supports no reserve.
    held_bytes: AtomicU64,
    /// True if a part of the reserve was released and has not been taken back.
    is_spent: AtomicBool,
    /// True if the host has refused something since the background thread last asked.
    was_refused: AtomicBool,
    /// Number of operations that use what was released: while there are any, it is not taken back.
    users: AtomicUsize,
    /// The last write that failed because the host is full; `None` once writes go on.
    refused: Mutex<Option<Refused>>,
    /// True while there is one.
    is_refusing: AtomicBool,
    /// The time of the last request to the host. Locked while the reserve is taken or released.
    tried: Mutex<Option<Instant>>,
}

/// Returns the reserve of a pool of `pool_bytes`, without the space for map nodes.
fn base_bytes(pool_bytes: u64) -> u64 {
    let bitmaps = pool_bytes / cowshed_format::layout::GROUP_BLOCKS / BLOCK_BYTES as u64;
    let share = (pool_bytes / SHARE).clamp(MIN_BYTES, MAX_BYTES);
    (share + bitmaps * BITMAPS_SHARE).min(pool_bytes / 4)
}

/// Returns the number of map nodes, each in all its copies, that a checkpoint can store from a
/// reserve of `held_bytes`.
const fn nodes_within(held_bytes: u64, copies: u64) -> u64 {
    held_bytes / 4 * 3 / (BLOCK_BYTES as u64 * copies)
}

/// Returns what is left of a reserve of `held_bytes` after the next slice.
const fn without_a_slice(held_bytes: u64) -> u64 {
    let share = held_bytes / SLICES;
    let slice = if share > SLICE_BYTES {
        share
    } else {
        SLICE_BYTES
    };
    held_bytes.saturating_sub(slice) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64
}

impl HostReserve {
    /// Returns the maximum number of map nodes in memory. A spent reserve sets none: only what
    /// frees space goes on then.
    pub(super) fn nodes_max(&self, copies: u64) -> usize {
        match self.held_bytes.load(Ordering::Relaxed) {
            _ if self.is_spent.load(Ordering::Relaxed) => usize::MAX,
            0 => usize::MAX,
            held => usize::try_from(nodes_within(held, copies)).unwrap_or(usize::MAX),
        }
    }

    /// Returns true if a part of the reserve was released and has not been taken back.
    pub(super) fn is_spent(&self) -> bool {
        self.is_spent.load(Ordering::Relaxed)
    }

    /// Forgets the reserve: the device has grown over it.
    pub(super) fn forget(&self) {
        let mut tried = self.tried.lock();
        self.held_bytes.store(0, Ordering::Release);
        *tried = None;
    }

    /// Returns true if the host has refused something since the last call.
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

/// One operation's use of the reserve. Once a slice was released for it, the reserve is not taken
/// back while this lives.
pub(super) struct ReserveUse<'a> {
    shared: &'a Shared,
    is_counted: bool,
    /// True once the operation has tried again with what others released.
    tried_spent: bool,
}

impl ReserveUse<'_> {
    /// Releases the next slice of the reserve to the host. Returns false if there is none, so that
    /// another attempt would fail as the last one did.
    pub(super) fn release_slice(&mut self) -> bool {
        let reserve = &self.shared.host_reserve;
        let _tried = reserve.tried.lock();
        reserve.was_refused.store(true, Ordering::Release);
        let held = reserve.held_bytes.load(Ordering::Acquire);
        let left = without_a_slice(held);
        let released = match self.shared.device.release_host_bytes(left, held) {
            Ok(released) => released,
            Err(error) => {
                tracing::warn!(%error, "cannot use the reserve on the host");
                0
            }
        };
        reserve.held_bytes.store(left, Ordering::Release);
        let was_spent = if released > 0 {
            reserve.is_spent.swap(true, Ordering::AcqRel)
        } else {
            reserve.is_spent.load(Ordering::Acquire)
        };
        if released > 0 && !was_spent {
            let bytes = held;
            tracing::warn!(
                bytes,
                "the host's file system is full: the pool uses its reserve there"
            );
        }
        if released == 0 && left == 0 {
            // Another thread may just have released the last slice.
            if !was_spent || std::mem::replace(&mut self.tried_spent, true) {
                return false;
            }
        }
        if !std::mem::replace(&mut self.is_counted, true) {
            reserve.users.fetch_add(1, Ordering::AcqRel);
        }
        true
    }
}

impl Drop for ReserveUse<'_> {
    fn drop(&mut self) {
        if self.is_counted {
            let users = &self.shared.host_reserve.users;
            users.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Shared {
    /// Runs `work`, which frees space or is needed to free space; while the host has no space,
    /// again with one slice of the reserve after the other. `work` must allow for repeating what it
    /// has already done.
    pub(super) fn with_host_reserve<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let mut using = self.host_reserve_use();
        loop {
            match work() {
                Err(error) if error.is_host_full() && using.release_slice() => {}
                outcome => return outcome,
            }
        }
    }

    /// Returns the use of the reserve by one operation, which has used nothing yet.
    pub(super) const fn host_reserve_use(&self) -> ReserveUse<'_> {
        ReserveUse {
            shared: self,
            is_counted: false,
            tried_spent: false,
        }
    }

    /// Notes that a write has failed for good; logs it, once until writes go on, if that was because
    /// the host is full.
    pub(super) fn note_refused_write(&self, error: &Error) {
        if !error.is_host_full() {
            return;
        }
        let refused = Refused {
            free_bytes: self.host_free_bytes().unwrap_or(0),
            at: Instant::now(),
            is_over: false,
        };
        let before = {
            let mut now = self.host_reserve.refused.lock();
            self.host_reserve.is_refusing.store(true, Ordering::Release);
            now.replace(refused)
        };
        if before.is_none() {
            tracing::error!(
                "the host's file system is full, and writes are refused: free some space there"
            );
        }
    }

    /// Notes that a write has succeeded.
    pub(super) fn note_write(&self) {
        if self.host_reserve.is_refusing.load(Ordering::Relaxed)
            && let Some(refused) = self.host_reserve.refused.lock().as_mut()
        {
            refused.is_over = true;
        }
    }

    /// Returns true if the host is full, so that writes are refused: some may still succeed, where the
    /// host has stored the pool's free blocks.
    pub(super) fn host_refuses_writes(&self) -> bool {
        if !self.host_reserve.is_refusing.load(Ordering::Acquire) {
            return false;
        }
        let free_bytes = self.host_free_bytes();
        let refused = *self.host_reserve.refused.lock();
        refused.is_some_and(|refused| self.still_refuses(refused, free_bytes))
    }

    fn still_refuses(&self, refused: Refused, free_bytes: Option<u64>) -> bool {
        let has = |bytes| free_bytes.is_none_or(|now| now >= bytes);
        let has_gained = has(refused.free_bytes.saturating_add(RELIEF_BYTES));
        // A quota is not seen in the free space. A host without any takes writes where it has stored
        // the pool's free blocks.
        let is_past = refused.is_over && refused.at.elapsed() >= RELIEF_TIME && has(RELIEF_BYTES);
        let is_spent = self.host_reserve.is_spent.load(Ordering::Acquire);
        is_spent || !(has_gained || is_past)
    }

    /// Logs, once the host has space again, that writes go on.
    pub(super) fn watch_host(&self) {
        if !self.host_reserve.is_refusing.load(Ordering::Acquire) {
            return;
        }
        let free_bytes = self.host_free_bytes();
        let mut refused = self.host_reserve.refused.lock();
        if refused.is_none_or(|refused| self.still_refuses(refused, free_bytes)) {
            return;
        }
        *refused = None;
        self.host_reserve
            .is_refusing
            .store(false, Ordering::Release);
        drop(refused);
        tracing::info!("the host's file system has free space again, and writes go on");
    }

    /// Refuses operations that do not free space while the reserve is spent; first takes the
    /// reserve back if the host has space again.
    ///
    /// # Errors
    /// `Io` with `ENOSPC`, as from the host itself.
    pub(super) fn check_host_room(&self) -> Result<()> {
        if !self.host_reserve.is_spent.load(Ordering::Relaxed) || self.keep_host_reserve() {
            return Ok(());
        }
        // An operation that frees space uses the reserve for a moment.
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

    /// Takes the reserve, if it is not held and the host has space; returns true if it is held or
    /// none is needed.
    pub(super) fn keep_host_reserve(&self) -> bool {
        let pool_bytes = self.space.layout().block_count() * BLOCK_BYTES as u64;
        self.reserve_on_host(base_bytes(pool_bytes), Duration::ZERO)
    }

    /// Enlarges the reserve before the map nodes in memory need it.
    pub(super) fn grow_host_reserve(&self, nodes: usize) {
        let reserve = &self.host_reserve;
        let held = reserve.held_bytes.load(Ordering::Relaxed);
        let nodes_max = reserve.nodes_max(self.space.in_copies(1));
        if nodes > nodes_max / 2 && nodes_max < self.memory_nodes_max {
            self.reserve_on_host(held.saturating_mul(2), RETRY_EVERY);
        }
    }

    /// Asks the host for a reserve of `bytes`, unless it was asked less than `pause` ago.
    fn reserve_on_host(&self, bytes: u64, pause: Duration) -> bool {
        let reserve = &self.host_reserve;
        let is_held = || {
            let held = reserve.held_bytes.load(Ordering::Acquire);
            held >= bytes && !reserve.is_spent.load(Ordering::Acquire)
        };
        if is_held() {
            return true;
        }
        let mut tried = reserve.tried.lock();
        if is_held() {
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
                    tracing::info!(
                        bytes,
                        "the host's file system has free space again: the pool's reserve is \
                         complete"
                    );
                }
                done
            }
            Err(error) => {
                tracing::debug!(%error, "cannot reserve space on the host");
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
        assert_eq!(nodes_within(4 << 20, 1), 768);
        assert_eq!(nodes_within(4 << 20, 2), 384);
        assert_eq!(nodes_within(0, 2), 0);
    }

    #[test]
    fn slices_use_up_every_reserve() {
        for bytes in [2 << 20, 4 << 20, MAX_BYTES + 12345, 1 << 30] {
            let mut left = bytes;
            let mut slices = 0;
            while left > 0 {
                let before = left;
                left = without_a_slice(before);
                assert!(before - left <= (bytes / SLICES).max(SLICE_BYTES) + BLOCK_BYTES as u64);
                slices += 1;
            }
            assert!((4..60).contains(&slices), "{bytes}: {slices}");
        }
        assert_eq!(without_a_slice(0), 0);
    }
}
