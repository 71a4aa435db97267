//! The usage of a root: files and folders, and bytes. No tree is walked.

use super::Roots;
use crate::error::Result;
use crate::mounts::ext4;
use cowshed_engine::Volume;
use cowshed_format::base::VolumeId;
use cowshed_sys::mount::FileSystem;

impl Roots {
    /// Returns the number of files and folders in the volume's file system.
    ///
    /// # Errors
    /// Any error of the pool and the host.
    pub fn inodes(&self, volume: &Volume) -> Result<u64> {
        if let Some(found) = self.room_of_mounted(volume.id()) {
            return Ok(found.files().saturating_sub(found.files_free()));
        }
        Ok(ext4::superblock(volume)?.map_or(0, |found| found.used_inodes()))
    }

    /// Returns the bytes that only this root holds, including dirty data as far as the file system
    /// has reserved blocks for it.
    ///
    /// # Errors
    /// `NoSuchVolume`, and any error of the pool.
    pub fn bytes(&self, volume: &Volume) -> Result<u64> {
        let info = volume.info()?;
        let taken = self.taken_since_clone(volume, info.parent);
        Ok(info.own_bytes.max(taken?.unwrap_or(0)))
    }

    /// Returns the difference in free space between the volume that a mounted root was cloned from
    /// and the root.
    fn taken_since_clone(&self, volume: &Volume, below: Option<VolumeId>) -> Result<Option<u64>> {
        let below = below.and_then(|id| self.pool().volume_by_id(id).ok());
        let Some(below) = below.filter(|below| {
            // A larger file system has additional metadata.
            below.is_frozen() && below.size_bytes() == volume.size_bytes()
        }) else {
            return Ok(None);
        };
        let Some(now) = self.room_of_mounted(volume.id()) else {
            return Ok(None);
        };
        let before = ext4::superblock(&below)?.map_or(0, |found| found.free_blocks());
        let taken = before.saturating_sub(now.blocks_free());
        Ok(Some(taken.saturating_mul(now.fragment_size())))
    }

    /// Returns the statistics of a root's file system, if it is mounted here.
    fn room_of_mounted(&self, id: VolumeId) -> Option<nix::sys::statvfs::Statvfs> {
        let root = self.table.lock().get(&id).cloned()?;
        let number = root.lock().mounted.as_ref()?.number;
        let at = FileSystem::numbered(&self.path(id), number).ok()?;
        at.room().ok()
    }
}
