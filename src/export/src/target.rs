//! What is exported: the traits between the presentations (files, loop devices) and the pool.
//!
//! The pool's volumes implement them; so does a fake in the tests. Nothing here knows FUSE.

use cowshed_engine::{Extent, Pool, Volume, VolumeInfo, VolumeKind};
use cowshed_format::base::{Error, Name, Result, VolumeId};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::SystemTime;

/// What keeps a target from being removed while it is alive.
pub type TargetHold = Box<dyn Send + Sync>;

/// What is known of a target; as cheap as the target can make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetInfo {
    /// Its id.
    pub id: VolumeId,
    /// Its present name.
    pub name: Name,
    /// Its virtual size.
    pub size_bytes: u64,
    /// Bytes that are allocated for it.
    pub allocated_bytes: u64,
    /// Writes are refused.
    pub is_read_only: bool,
    /// When it was made.
    pub created: SystemTime,
}

/// Something with bytes at offsets that can be shown as a file or a block device.
///
/// All calls may run at once on any threads. None of them may wait for the mount that shows the
/// target: they are called by the threads that serve it.
pub trait BlockTarget: Send + Sync {
    /// What is known of it.
    ///
    /// # Errors
    /// `NoSuchVolume` once it is removed.
    fn info(&self) -> Result<TargetInfo>;

    /// Its id, also after it is removed.
    fn id(&self) -> VolumeId;

    /// Its present name; its last one after it is removed.
    fn name(&self) -> Name;

    /// Its present virtual size.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from `offset_bytes`; the range lies inside the size.
    ///
    /// # Errors
    /// Whatever the engine answers; `buf` then holds anything.
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> Result<()>;

    /// Writes all of `buf` at `offset_bytes`; the range lies inside the size.
    ///
    /// # Errors
    /// Whatever the engine answers: `Frozen`, `NoSpace`, …
    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()>;

    /// Makes everything written before it durable.
    ///
    /// # Errors
    /// Whatever the engine answers.
    fn flush(&self) -> Result<()>;

    /// Makes the range, which lies inside the size, read as zeros and gives its space back.
    ///
    /// # Errors
    /// Whatever the engine answers.
    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<()>;

    /// What lies at `offset_bytes` and how far it goes; `None` at or past the end.
    ///
    /// # Errors
    /// Whatever the engine answers.
    fn extent_at(&self, offset_bytes: u64) -> Result<Option<Extent>>;

    /// Keeps it from being removed.
    ///
    /// # Errors
    /// `NoSuchVolume` once it is removed.
    fn hold(&self) -> Result<TargetHold>;
}

/// How much room there is, for statfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the whole.
    pub size_bytes: u64,
    /// What can still be allocated.
    pub free_bytes: u64,
    /// How many targets there are.
    pub targets: u64,
}

/// A set of targets with names. The rules of `BlockTarget` about threads and waiting hold here
/// too.
pub trait Directory: Send + Sync {
    /// All targets with a name, sorted by it.
    fn list(&self) -> Vec<TargetInfo>;

    /// The target that has exactly this name.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    fn by_name(&self, name: &Name) -> Result<Arc<dyn BlockTarget>>;

    /// The target with this id.
    ///
    /// # Errors
    /// `NoSuchVolume` when there is none.
    fn by_id(&self, id: VolumeId) -> Result<Arc<dyn BlockTarget>>;

    /// How much room there is.
    ///
    /// # Errors
    /// Whatever the engine answers.
    fn space(&self) -> Result<Space>;

    /// Makes everything written to any target durable.
    ///
    /// # Errors
    /// Whatever the engine answers.
    fn flush(&self) -> Result<()>;

    /// The descriptors through which all of it works: the only ones that the threads which serve
    /// the mount keep.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;

    /// Whether a write goes to the disk at once, past the host's page cache.
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

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> Result<()> {
        Self::write_at(self, buf, offset_bytes)
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
        // The pool takes an id for a name too; a file of that name does not exist.
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
