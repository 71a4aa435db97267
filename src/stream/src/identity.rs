//! The identity of a snapshot: the same for a snapshot and for everything received from it.

use crate::error::Result;
use crate::record::{self, RECEIVED};
use cowshed_engine::{Pool, Volume, VolumeId, VolumeInfo, VolumeKind};
use cowshed_format::base::codec::{Reader, Writer};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Number of bytes of an encoded identity.
pub const IDENTITY_BYTES: usize = 32;

/// Which snapshot it is. The pool in which it was taken numbers its volumes, and never gives a
/// number twice; the time tells it from one that was taken in a copy of that pool's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The pool in which it was taken.
    pub pool: [u8; 16],
    /// Its id in that pool.
    pub volume: u64,
    /// When it was taken, in nanoseconds since 1970.
    pub created_ns: u64,
}

impl Identity {
    /// Appends the encoded identity.
    pub fn encode(&self, out: &mut Writer) {
        out.bytes(&self.pool).u64(self.volume).u64(self.created_ns);
    }

    /// Takes an identity off the front; `None` if the bytes run out.
    pub fn decode(input: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            pool: input.bytes(16)?.try_into().ok()?,
            volume: input.u64()?,
            created_ns: input.u64()?,
        })
    }

    /// Returns the identity of a snapshot of `pool`.
    ///
    /// # Errors
    /// `NoSuchVolume`; `Record` when the pool's record is of a newer version.
    pub fn of(pool: &Pool, snapshot: &Volume) -> Result<Self> {
        let info = snapshot.info()?;
        Ok(match record::received(pool, info.id)? {
            Some(received) => received.identity,
            None => Self::own(pool, &info),
        })
    }

    fn own(pool: &Pool, info: &VolumeInfo) -> Self {
        Self {
            pool: pool.uuid(),
            volume: info.id.0,
            created_ns: nanoseconds(info.created),
        }
    }

    /// Returns the time at which the snapshot was taken.
    #[must_use]
    pub fn created(&self) -> SystemTime {
        let since = Duration::from_nanos(self.created_ns);
        UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
    }

    /// Returns the snapshot of `pool` that has this identity, if there is one.
    ///
    /// # Errors
    /// `Record` when a record of the pool is of a newer version.
    pub fn find(&self, pool: &Pool) -> Result<Option<Volume>> {
        let is_this = |volume: &Volume| -> Result<bool> {
            let is_frozen = volume
                .info()
                .is_ok_and(|info| info.kind == VolumeKind::Snapshot);
            Ok(is_frozen && Self::of(pool, volume)? == *self)
        };
        if self.pool == pool.uuid()
            && let Ok(volume) = pool.volume_by_id(VolumeId(self.volume))
            && is_this(&volume)?
        {
            return Ok(Some(volume));
        }
        for (key, _) in pool.records(RECEIVED) {
            let volume = record::volume_of(&key).map(|id| pool.volume_by_id(id));
            if let Some(Ok(volume)) = volume
                && is_this(&volume)?
            {
                return Ok(Some(volume));
            }
        }
        Ok(None)
    }
}

/// Returns a time in nanoseconds since 1970.
fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
