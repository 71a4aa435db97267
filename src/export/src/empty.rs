//! A directory with one file that holds nothing: a read returns whatever the buffer held, and a
//! write is discarded. It measures the limit of any volume on the same path.
//!
//! Not for users: its reads show what other requests of the same mount left in memory.

use super::target::{BlockTarget, Directory, Space, TargetHold, TargetInfo};
use cowshed_engine::pool::{Extent, ExtentKind};
use cowshed_format::base::{Error, Name, Result, VolumeId};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::SystemTime;

/// The file's name.
pub const EMPTY_FILE: &str = "empty";
/// The file's id.
const ID: VolumeId = VolumeId(1);

/// The file, and the directory that it is in.
#[derive(Clone)]
pub struct Empty {
    name: Name,
    size_bytes: u64,
    made: SystemTime,
}

impl Empty {
    /// Creates a file of `size_bytes`.
    ///
    /// # Errors
    /// `InvalidName` if the constant were not a valid name.
    pub fn new(size_bytes: u64) -> Result<Self> {
        Ok(Self {
            name: Name::new(EMPTY_FILE)?,
            size_bytes,
            made: SystemTime::now(),
        })
    }
}

impl BlockTarget for Empty {
    fn info(&self) -> Result<TargetInfo> {
        Ok(TargetInfo {
            id: ID,
            name: self.name.clone(),
            size_bytes: self.size_bytes,
            allocated_bytes: self.size_bytes,
            is_read_only: false,
            created: self.made,
        })
    }

    fn id(&self) -> VolumeId {
        ID
    }

    fn name(&self) -> Name {
        self.name.clone()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, _buf: &mut [u8], _offset_bytes: u64) -> Result<()> {
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], _offset_bytes: u64) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _offset_bytes: u64, _len_bytes: u64) -> Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset_bytes: u64) -> Result<Option<Extent>> {
        Ok((offset_bytes < self.size_bytes).then_some(Extent {
            offset_bytes: 0,
            len_bytes: self.size_bytes,
            kind: ExtentKind::Data,
        }))
    }

    fn hold(&self) -> Result<TargetHold> {
        Ok(Box::new(()))
    }
}

impl Directory for Empty {
    fn list(&self) -> Vec<TargetInfo> {
        self.info().into_iter().collect()
    }

    fn by_name(&self, name: &Name) -> Result<Arc<dyn BlockTarget>> {
        if *name == self.name {
            Ok(Arc::new(self.clone()))
        } else {
            Err(Error::NotFound(name.clone()))
        }
    }

    fn by_id(&self, id: VolumeId) -> Result<Arc<dyn BlockTarget>> {
        if id == ID {
            Ok(Arc::new(self.clone()))
        } else {
            Err(Error::NoSuchVolume(id))
        }
    }

    fn space(&self) -> Result<Space> {
        Ok(Space {
            size_bytes: self.size_bytes,
            free_bytes: 0,
            targets: 1,
        })
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}
