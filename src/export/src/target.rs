//! The exported objects: the traits between the presentations (files, loop devices) and the pool.
//!
//! The pool's volumes implement them; so does a fake in the tests. This module does not know FUSE.

use cowshed_engine::{Extent, Pool, Volume, VolumeInfo, VolumeKind, Waiter};
use cowshed_format::base::{Error, Name, Result, VolumeId};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::SystemTime;

/// A guard that keeps a target from being removed while it is alive.
pub type TargetHold = Box<dyn Send + Sync>;

/// Data about a target; as cheap to obtain as the target can make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetInfo {
    /// The target's id.
    pub id: VolumeId,
    /// The target's present name.
    pub name: Name,
    /// The target's virtual size.
    pub size_bytes: u64,
    /// Bytes that are allocated for it.
    pub allocated_bytes: u64,
    /// True if writes are refused.
    pub is_read_only: bool,
    /// The time when the target was created.
    pub created: SystemTime,
}

/// A range of bytes that can be shown as a file or a block device.
///
/// All methods may run concurrently on any threads. None of them may wait for the mount that shows
/// the target: the threads that serve the mount call them.
pub trait BlockTarget: Send + Sync {
    /// Returns data about the target.
    ///
    /// # Errors
    /// `NoSuchVolume` once it is removed.
    fn info(&self) -> Result<TargetInfo>;

    /// Returns the target's id, also after the target is removed.
    fn id(&self) -> VolumeId;

    /// Returns the target's present name, or its last one after it is removed.
    fn name(&self) -> Name;

    /// Returns the target's present virtual size.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from `offset_bytes`; the range lies inside the size.
    ///
    /// # Errors
    /// Any error of the engine; the content of `buf` is then undefined.
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()>;

    /// Writes all of `buf` at `offset_bytes`; the range lies inside the size.
    ///
    /// # Errors
    /// Any error of the engine: `Frozen`, `NoSpace`, …
    fn write_at(&self, buf: &[u8], offset_bytes: u64, waiter: &dyn Waiter) -> Result<()>;

    /// Makes all earlier writes durable.
    ///
    /// # Errors
    /// Any error of the engine.
    fn flush(&self) -> Result<()>;

    /// Discards the range, which lies inside the size: it then reads as zeros, and its space is
    /// freed.
    ///
    /// # Errors
    /// Any error of the engine.
    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()>;

    /// Returns the extent at `offset_bytes`; `None` at or past the end.
    ///
    /// # Errors
    /// Any error of the engine.
    fn extent_at(&self, offset_bytes: u64) -> Result<Option<Extent>>;

    /// Keeps the target from being removed.
    ///
    /// # Errors
    /// `NoSuchVolume` once it is removed.
    fn hold(&self) -> Result<TargetHold>;
}

/// The space of a directory, for statfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// The total size.
    pub size_bytes: u64,
    /// The bytes that can still be allocated.
    pub free_bytes: u64,
    /// Number of targets.
    pub targets: u64,
}

/// A set of targets with names. The rules of `BlockTarget` about threads and waiting hold here
/// too.
pub trait Directory: Send + Sync {
    /// Returns all named targets, sorted by name.
    fn list(&self) -> Vec<TargetInfo>;

    /// Returns the target that has exactly this name.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    fn by_name(&self, name: &Name) -> Result<Arc<dyn BlockTarget>>;

    /// Returns the target with this id.
    ///
    /// # Errors
    /// `NoSuchVolume` if there is none.
    fn by_id(&self, id: VolumeId) -> Result<Arc<dyn BlockTarget>>;

    /// Returns the total and the free space.
    ///
    /// # Errors
    /// Any error of the engine.
    fn space(&self) -> Result<Space>;

    /// Makes all earlier writes to all targets durable.
    ///
    /// # Errors
    /// Any error of the engine.
    fn flush(&self) -> Result<()>;

    /// Returns the descriptors that the targets use: the only ones that the threads that serve the
    /// mount keep open.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;

    /// Returns true if a write goes to the disk at once, past the host's page cache.
    fn writes_wait(&self) -> bool {
        false
    }
}

impl From<VolumeInfo> for TargetInfo {
    fn from(info: VolumeInfo) -> Self {
        Self {
            id: info.id,
            name: info.name,
            size_bytes: info.size_bytes,
            allocated_bytes: info.referenced_bytes,
            is_read_only: info.kind == VolumeKind::Snapshot,
            created: info.created,
        }
    }
}

impl BlockTarget for Volume {
    fn info(&self) -> Result<TargetInfo> {
        Self::info(self).map(TargetInfo::from)
    }

    fn id(&self) -> VolumeId {
        Self::id(self)
    }

    fn name(&self) -> Name {
        Self::name(self)
    }

    fn size_bytes(&self) -> u64 {
        Self::size_bytes(self)
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()> {
        Self::read_at(self, buf, offset_bytes)
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64, waiter: &dyn Waiter) -> Result<()> {
        self.write_at_with(buf, offset_bytes, waiter)
    }

    fn flush(&self) -> Result<()> {
        Self::flush(self)
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        Self::discard(self, offset_bytes, len_bytes)
    }

    fn extent_at(&self, offset_bytes: u64) -> Result<Option<Extent>> {
        Self::extent_at(self, offset_bytes)
    }

    fn hold(&self) -> Result<TargetHold> {
        Ok(Box::new(Self::hold(self)?))
    }
}

impl Directory for Pool {
    fn list(&self) -> Vec<TargetInfo> {
        self.volumes().into_iter().map(TargetInfo::from).collect()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.device_descriptors()
    }

    fn writes_wait(&self) -> bool {
        self.is_direct()
    }

    fn by_name(&self, name: &Name) -> Result<Arc<dyn BlockTarget>> {
        let volume = self.volume(name.as_str())?;
        // The pool also accepts an id as a name; a file of that name does not exist.
        if volume.name() != *name {
            return Err(Error::NotFound(name.clone()));
        }
        Ok(Arc::new(volume))
    }

    fn by_id(&self, id: VolumeId) -> Result<Arc<dyn BlockTarget>> {
        Ok(Arc::new(self.volume_by_id(id)?))
    }

    fn space(&self) -> Result<Space> {
        let status = self.status()?;
        Ok(Space {
            size_bytes: status.size_bytes,
            free_bytes: status.free_bytes,
            targets: status.volumes,
        })
    }

    fn flush(&self) -> Result<()> {
        Self::flush(self)
    }
}
