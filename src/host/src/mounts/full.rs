//! The cause of a write that found no space: the pool, or its host.

use super::Mounts;
use crate::error::Error;
use cowshed_engine::PoolState;
use cowshed_format::base;

/// A pool or a host with less free space than this counts as full once a write has failed.
const FULL_BYTES: u64 = 8 << 20;

impl Mounts {
    /// Returns the actual cause of an error: a file system sees a full pool as a failing disk.
    #[must_use]
    pub fn explain(&self, error: Error) -> Error {
        let looks_full = match error.raw_os_error() {
            // A file system that could not write out is read-only from then on.
            Some(libc::ENOSPC | libc::EDQUOT | libc::EIO | libc::EROFS) => true,
            Some(_) => false,
            None => matches!(error, Error::Export(_)),
        };
        let full = looks_full.then(|| self.full_below()).flatten();
        full.unwrap_or(error)
    }

    /// Returns an error for a full pool or host, if a write was refused just now: the largest
    /// request and its metadata no longer fit.
    pub(crate) fn full_below(&self) -> Option<Error> {
        let now = self.pool().status().ok()?;
        if now.state == PoolState::Full || now.free_bytes < FULL_BYTES {
            return Some(Error::Pool(base::Error::NoSpace));
        }
        let is_host_full = now.host_free_bytes.is_some_and(|free| free < FULL_BYTES)
            && now.host_shortage_bytes().is_some();
        is_host_full.then_some(Error::HostFull)
    }
}
