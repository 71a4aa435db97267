//! Free space in the file system that a layer is unpacked into.
//!
//! The file system grows with the layer, before an entry that would not fit: a volume is thin, so a
//! larger file system costs only the metadata of its new groups. It is unmounted for that, since
//! the kernel grows a mounted one only for a process with CAP_SYS_RESOURCE, which a daemon in a
//! container does not have. When the layer is complete, there is also space for the data that
//! containers write.
//!
//! # Invariants
//! - A file system whose size a user has chosen never grows.
//! - The causes of a write that found no space are distinguished: the pool, its host, the file
//!   system's blocks, its inodes.

use super::Layers;
use crate::error::{Error, Result, Shortage};
use crate::mounts::filesystem::{self, Access, MAX_SIZE_BYTES, MIN_SIZE_BYTES, Mode};
use crate::mounts::{Mounts, ext4};
use cowshed_engine::Volume;
use cowshed_format::base::{self, BLOCK_BYTES};
use cowshed_oci::{self as oci, Room};
use cowshed_sys::mount::{self, FileSystem};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The bytes of an object beside its content: an inode's blocks, a directory's, an attribute's.
const OBJECT_BYTES: u64 = 3 * BLOCK_BYTES as u64;
/// The bytes that stay free while a layer is unpacked, since the estimate for an entry may be too
/// low.
const SPARE_BYTES: u64 = 16 << 20;
/// The inodes that stay free: an entry may need a directory for every component of its path.
const SPARE_INODES: u64 = 4096;
/// File systems grow by whole block groups.
const GROUP_BYTES: u64 = 128 << 20;
/// The metadata of new groups is at most this part of them.
const OVERHEAD_PART: u64 = 16;
/// If more than this part of the usual space is used, a layer gets the full usual space in
/// addition.
const LARGE_PART: u64 = 4;

/// The way to choose the size of a layer's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizing {
    /// The size stays as it is.
    Fixed,
    /// The size follows the layer, and leaves about this much free space in the end.
    Following {
        /// The free space, in bytes.
        usual_bytes: u64,
    },
}

/// The free resources of a file system.
struct Left {
    bytes: u64,
    inodes: u64,
    used_bytes: u64,
    used_inodes: u64,
    all_inodes: u64,
}

/// The way in which a volume's file system is mounted to be filled.
#[derive(Clone, Copy)]
pub(crate) enum Mounted<'a> {
    /// By an operation that alone knows the mount.
    ForWork,
    /// For programs, and others may request it meanwhile.
    Shared(&'a dyn Holder),
}

/// Keeps others from a shared file system while it is unmounted to grow.
pub(crate) trait Holder {
    /// Runs `grow` while no other thread mounts or unmounts the file system. `grow` mounts it again
    /// in the given mode.
    fn hold(&self, grow: &dyn Fn(Mode) -> Grown) -> Grown;
}

/// The outcome of growing. An inner error is the reason why it kept its size; it is mounted as
/// before then.
pub(crate) type Grown = Result<Result<()>>;

/// Manages the free space of one mounted file system.
pub(crate) struct LayerRoom<'a> {
    mounts: &'a Mounts,
    volume: &'a Volume,
    path: &'a Path,
    mounted: Mounted<'a>,
    /// The number of the file system's device, which identifies it after it has grown.
    number: u64,
    sizing: Sizing,
    /// The known free bytes beyond the spare ones.
    left_bytes: u64,
    left_inodes: u64,
    /// The bytes that the entry which does not fit needs.
    wanted_bytes: u64,
    /// The reason why it could not grow.
    refused: Option<Error>,
}

impl<'a> LayerRoom<'a> {
    /// Returns the manager of the volume's file system, which is mounted at `path`.
    ///
    /// # Errors
    /// `Io` if it cannot be opened.
    pub(crate) fn new(
        mounts: &'a Mounts,
        volume: &'a Volume,
        path: &'a Path,
        mounted: Mounted<'a>,
        sizing: Sizing,
    ) -> Result<Self> {
        let at = FileSystem::at(path).map_err(Error::io("open", path))?;
        Ok(Self {
            mounts,
            volume,
            path,
            mounted,
            number: at.number(),
            sizing,
            left_bytes: 0,
            left_inodes: 0,
            wanted_bytes: 0,
            refused: None,
        })
    }

    /// Leaves space for the data that containers write, once the layer is complete.
    ///
    /// # Errors
    /// Any error of the pool and the host; the layer itself is complete.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let Sizing::Following { usual_bytes } = self.sizing else {
            return Ok(());
        };
        let left = self.left()?;
        let usual_inodes = left.inodes_of(usual_bytes, self.volume.size_bytes());
        let lacks = |used: u64, left: u64, usual: u64| used > usual / LARGE_PART && left < usual;
        let mut missing = 0;
        if lacks(left.used_bytes, left.bytes, usual_bytes) {
            missing = usual_bytes - left.bytes;
        }
        if lacks(left.used_inodes, left.inodes, usual_inodes) {
            let inodes = usual_inodes - left.inodes;
            missing = missing.max(left.bytes_of(inodes, self.volume.size_bytes()));
        }
        if missing == 0 {
            return Ok(());
        }
        if let Err(error) = self.grow(missing)? {
            // The layer is complete all the same, and a container can be made larger.
            let volume = self.volume.name();
            tracing::warn!(%error, %volume, "a layer has less free space than usual");
        }
        Ok(())
    }

    /// Returns the error that names the space that an entry lacked.
    pub(crate) fn explain(&self, error: oci::Error) -> Error {
        if error.raw_os_error() != Some(libc::ENOSPC) {
            return self.mounts.explain(error.into());
        }
        if let Some(full) = self.mounts.full_below() {
            return full;
        }
        let size_bytes = self.volume.size_bytes();
        let why = self.refused.as_ref().map(ToString::to_string);
        let full = |what| Error::FileSystemFull {
            what,
            size_bytes,
            why: why
                .map_or_else(
                    || "choose a larger size".to_owned(),
                    |why| format!("it cannot grow ({why}): choose a larger size"),
                )
                .into(),
        };
        match self.left() {
            Ok(left) if left.inodes == 0 => full(Shortage::Inodes),
            Ok(left) if left.bytes < SPARE_BYTES => full(Shortage::Blocks),
            _ => error.into(),
        }
    }

    fn left(&self) -> Result<Left> {
        let at = FileSystem::numbered(self.path, self.number);
        let found = at.and_then(|at| at.room());
        let found = found.map_err(Error::io("query the free space of", self.path))?;
        let block = found.fragment_size();
        let used_blocks = found.blocks().saturating_sub(found.blocks_free());
        Ok(Left {
            bytes: found.blocks_available().saturating_mul(block),
            inodes: found.files_available(),
            used_bytes: used_blocks.saturating_mul(block),
            used_inodes: found.files().saturating_sub(found.files_free()),
            all_inodes: found.files(),
        })
    }

    /// Reads the free space again; returns the number of bytes that an entry lacks.
    fn shortage(&mut self, bytes: u64) -> Result<u64> {
        let left = self.left()?;
        self.left_bytes = left.bytes.saturating_sub(SPARE_BYTES);
        self.left_inodes = left.inodes.saturating_sub(SPARE_INODES);
        let short_inodes = SPARE_INODES.saturating_add(1).saturating_sub(left.inodes);
        let for_inodes = left.bytes_of(short_inodes, self.volume.size_bytes());
        Ok(bytes.saturating_sub(self.left_bytes).max(for_inodes))
    }

    /// Grows the volume and the file system, in which nothing is open, so that about
    /// `missing_bytes` more are free.
    fn grow(&self, missing_bytes: u64) -> Grown {
        let old_bytes = self.volume.size_bytes();
        let more = missing_bytes.saturating_add(missing_bytes / OVERHEAD_PART);
        let wanted = old_bytes
            .saturating_add(more)
            .saturating_add(GROUP_BYTES)
            .min(MAX_SIZE_BYTES);
        let new_bytes = wanted - wanted % GROUP_BYTES;
        if new_bytes <= old_bytes {
            return Ok(Err(Error::Pool(base::Error::InvalidSize {
                what: "a file system",
                min_bytes: MIN_SIZE_BYTES,
                max_bytes: MAX_SIZE_BYTES,
            })));
        }
        match self.mounted {
            Mounted::ForWork => self.grow_unmounted(new_bytes, Mode::Fill, Access::FilesOnly),
            Mounted::Shared(holder) => {
                holder.hold(&|mode| self.grow_unmounted(new_bytes, mode, Access::Programs))
            }
        }
    }

    fn grow_unmounted(&self, new_bytes: u64, mode: Mode, access: Access) -> Grown {
        let listed = mount::mount_at(self.path);
        let listed = listed.map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
        let Some(entry) = listed else {
            return Ok(Err(Error::NotMounted(self.path.to_string_lossy().into())));
        };
        let device = Path::new(&entry.source);
        // Unmounting does not report data that could not be written.
        mount::sync_file_system(self.path).map_err(Error::io("flush", self.path))?;
        if let Err(busy) = filesystem::unmount(self.path) {
            return Ok(Err(busy));
        }
        let grown = self.grow_to(new_bytes, device);
        filesystem::mount(device, self.path, mode, access)?;
        Ok(grown)
    }

    fn grow_to(&self, new_bytes: u64, device: &Path) -> Result<()> {
        let old_bytes = self.volume.size_bytes();
        self.resize(new_bytes)?;
        filesystem::grow(device).inspect_err(|_| {
            // The file system does not use the space beyond its end.
            if let Err(error) = self.resize(old_bytes) {
                tracing::warn!(
                    %error,
                    "cannot shrink a volume back to the size of its file system"
                );
            }
        })
    }

    fn resize(&self, size_bytes: u64) -> Result<()> {
        self.mounts.pool().resize(self.volume, size_bytes)?;
        Ok(self.mounts.export()?.resized(self.volume)?)
    }
}

impl Room for LayerRoom<'_> {
    fn fits(&mut self, content_bytes: u64) -> bool {
        if self.sizing == Sizing::Fixed || self.refused.is_some() {
            return true;
        }
        // The block of an extent is small compared to the data that it refers to.
        let bytes = content_bytes
            .saturating_add(content_bytes / 128)
            .saturating_add(OBJECT_BYTES);
        if self.left_bytes < bytes || self.left_inodes == 0 {
            match self.shortage(bytes) {
                Ok(0) => {}
                Ok(_) => {
                    self.wanted_bytes = bytes;
                    return false;
                }
                Err(error) => self.refused = Some(error),
            }
        }
        self.left_bytes = self.left_bytes.saturating_sub(bytes);
        self.left_inodes = self.left_inodes.saturating_sub(1);
        true
    }

    fn make(&mut self) -> oci::Result<OwnedFd> {
        let failed = |error: Error| {
            let errno = error.raw_os_error().map(io::Error::from_raw_os_error);
            let source = errno.unwrap_or_else(|| io::Error::other(error));
            oci::Error::io("grow the file system", source)
        };
        let missing = self.shortage(self.wanted_bytes).map_err(failed)?;
        // By half at least, so that a large layer grows it only a few times.
        let missing = missing.max(self.volume.size_bytes() / 2);
        self.refused = self.grow(missing).map_err(failed)?.err();
        self.shortage(0).map_err(failed)?;
        let opened = FileSystem::numbered(self.path, self.number);
        let opened = opened.map_err(|error| oci::Error::io("open the file system", error))?;
        Ok(opened.into_directory().into())
    }
}

impl Left {
    /// Returns the number of bytes by which a file system of `size_bytes` grows with so many
    /// inodes.
    fn bytes_of(&self, inodes: u64, size_bytes: u64) -> u64 {
        let ratio = size_bytes / self.all_inodes.max(1);
        inodes.saturating_mul(ratio.saturating_add(1))
    }

    fn inodes_of(&self, bytes: u64, size_bytes: u64) -> u64 {
        bytes / (size_bytes / self.all_inodes.max(1)).max(1)
    }
}

impl Layers {
    /// Returns the size that a clone of `below` needs to have the usual free space beside its
    /// content; `None` if it has about that much. A file system that was made smaller than usual
    /// keeps its size.
    ///
    /// # Errors
    /// Any error of the pool.
    pub fn size_with_room(&self, below: &Volume, usual_bytes: u64) -> Result<Option<u64>> {
        let size_bytes = below.size_bytes();
        let Some(found) = ext4::superblock(below)?.filter(|_| size_bytes >= usual_bytes) else {
            return Ok(None);
        };
        let free_bytes = found.free_blocks().saturating_mul(BLOCK_BYTES as u64);
        let used_bytes = size_bytes.saturating_sub(free_bytes);
        // The metadata of an empty file system counts as used here.
        let is_large = used_bytes > usual_bytes / LARGE_PART + size_bytes / OVERHEAD_PART;
        if !is_large || free_bytes >= usual_bytes - usual_bytes / OVERHEAD_PART {
            return Ok(None);
        }
        let more = usual_bytes - free_bytes;
        let wanted = size_bytes.saturating_add(more + more / OVERHEAD_PART + GROUP_BYTES);
        let wanted = wanted.min(MAX_SIZE_BYTES);
        Ok(Some(wanted - wanted % GROUP_BYTES).filter(|wanted| *wanted > size_bytes))
    }
}
