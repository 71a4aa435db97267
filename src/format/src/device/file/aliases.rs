//! Other names of a pool's bytes: loop devices over its file or device, and partitions of them.
//!
//! A lock belongs to one inode, and a loop device has another inode than the file behind it. So an
//! opener that has locked the name it was given checks the locks of all other names before it goes
//! on.
//!
//! # Invariants
//! - An opener holds its own lock before it checks others: of two openers at least one is refused.
//! - Files on FUSE mounts are not examined: their server may wait for this process.

use crate::base::{Error, Result};
use cowshed_sys::loop_device::{self, Backing, LoopDevice};
use cowshed_sys::mount;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes in a sector of sysfs.
const SECTOR_BYTES: u64 = 512;
/// Maximum number of loop devices on top of each other.
const DEPTH_MAX: usize = 8;

/// The file or disk that bytes finally lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    File { device: u64, inode: u64 },
    Disk { number: u64 },
}

/// The final place of a range of bytes.
#[derive(Clone, Copy, Debug)]
struct Extent {
    base: Base,
    start: u64,
    end: u64,
}

impl Extent {
    fn overlaps(&self, other: &Self) -> bool {
        self.base == other.base && self.start < other.end && other.start < self.end
    }

    /// Returns the part of it from `start` on, at most `len` bytes long.
    fn part(&self, start: u64, len: u64) -> Self {
        let start = self.start.saturating_add(start);
        Self {
            start,
            end: start.saturating_add(len).min(self.end),
            ..*self
        }
    }
}

/// Refuses a pool that is locked under another name; `opened` is the file locked under its own
/// name.
///
/// # Errors
/// `InUse`; `Io` when the kernel's list of loop devices cannot be read.
pub(super) fn check_unlocked(opened: &Metadata, read_only: bool) -> Result<()> {
    let locked = find_locked(opened, read_only)
        .map_err(|source| Error::io("look for loop devices of the pool", source))?;
    if locked { Err(Error::InUse) } else { Ok(()) }
}

fn find_locked(opened: &Metadata, read_only: bool) -> io::Result<bool> {
    let mut behind = Vec::new();
    let own = if opened.file_type().is_block_device() {
        match resolve(opened.rdev(), &mut behind) {
            Ok(own) => own,
            // Nothing is known of such a device but its own name.
            Err(_) => return Ok(false),
        }
    } else {
        whole_file(opened.dev(), opened.ino())
    };
    if behind
        .iter()
        .any(|(path, id)| is_locked(path, *id, read_only))
    {
        return Ok(true);
    }
    let attached = loop_device::attached()?;
    if attached.is_empty() {
        return Ok(false);
    }
    let mounts = mount::mounts()?;
    let mut others = attached
        .into_iter()
        .filter(|(_, file)| !is_on_fuse(file, &mounts))
        .flat_map(|(device, _)| nodes_of(device));
    Ok(others.any(|(node, number)| {
        number != opened.rdev()
            && resolve(number, &mut Vec::new()).is_ok_and(|other| other.overlaps(&own))
            && is_locked(&node, Id::Device(number), read_only)
    }))
}

fn whole_file(device: u64, inode: u64) -> Extent {
    Extent {
        base: Base::File { device, inode },
        start: 0,
        end: u64::MAX,
    }
}

/// The identity that the object at a path must have for its lock to count.
#[derive(Clone, Copy, Debug)]
enum Id {
    File { device: u64, inode: u64 },
    Device(u64),
}

impl Id {
    fn is(self, found: &Metadata) -> bool {
        match self {
            Self::File { device, inode } => (found.dev(), found.ino()) == (device, inode),
            Self::Device(number) => found.file_type().is_block_device() && found.rdev() == number,
        }
    }
}

/// Returns where the block device `number` finally lies; appends to `behind` the devices and files
/// that it lies on, from the top.
fn resolve(number: u64, behind: &mut Vec<(PathBuf, Id)>) -> io::Result<Extent> {
    let mut folder = sys_folder(number)?;
    let whole_len = u64::MAX;
    let mut part = (0, whole_len);
    if folder.join("partition").exists() {
        part = (sectors(&folder, "start")?, sectors(&folder, "size")?);
        folder.pop();
    }
    let name = folder.file_name().and_then(|name| name.to_str());
    let loop_number = name.and_then(|name| name.strip_prefix("loop")?.parse().ok());
    let Some(loop_number) = loop_number else {
        let text = fs::read_to_string(folder.join("dev"))?;
        let disk = Extent {
            base: Base::Disk {
                number: parse_number(&text)?,
            },
            start: 0,
            end: u64::MAX,
        };
        return Ok(disk.part(part.0, part.1));
    };
    if behind.len() >= DEPTH_MAX {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    let device = LoopDevice::numbered(loop_number);
    let backing = device.backing()?;
    let path = device.backing_file()?.unwrap_or_default();
    let below = match backing {
        Backing { rdevice: 0, .. } => {
            let (device, inode) = (backing.device, backing.inode);
            behind.push((path, Id::File { device, inode }));
            whole_file(device, inode)
        }
        Backing { rdevice, .. } => {
            behind.push((path, Id::Device(rdevice)));
            resolve(rdevice, behind)?
        }
    };
    let whole = below.part(backing.offset_bytes, sectors(&folder, "size")?);
    Ok(whole.part(part.0, part.1))
}

/// Returns the nodes of a loop device and of its partitions, with their device numbers.
fn nodes_of(device: LoopDevice) -> Vec<(PathBuf, u64)> {
    let node = device.path();
    let Some(name) = node.file_name().and_then(|name| name.to_str()) else {
        return Vec::new();
    };
    let folder = Path::new("/sys/block").join(name);
    let number_in = |folder: &Path| {
        let text = fs::read_to_string(folder.join("dev")).ok()?;
        parse_number(&text).ok()
    };
    let mut nodes: Vec<_> = number_in(&folder)
        .map(|number| (node.clone(), number))
        .into_iter()
        .collect();
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let part = entry.path();
        if part.join("partition").exists()
            && let Some(number) = number_in(&part)
        {
            nodes.push((Path::new("/dev").join(entry.file_name()), number));
        }
    }
    nodes
}

/// Returns true if another process holds the lock of the object at `path`, provided that it is
/// `id`. What cannot be opened counts as unlocked.
fn is_locked(path: &Path, id: Id, read_only: bool) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    if !file.metadata().is_ok_and(|found| id.is(&found)) {
        return false;
    }
    // A lock that is held only for a moment is waited for, as with the own lock.
    matches!(super::open::lock(&file, read_only), Err(Error::InUse))
}

fn is_on_fuse(file: &Path, mounts: &[mount::MountEntry]) -> bool {
    let above = mounts
        .iter()
        .filter(|entry| file.starts_with(&entry.mount_point));
    // Of equal lengths the last one, which lies on top.
    above
        .max_by_key(|entry| entry.mount_point.as_os_str().len())
        .is_some_and(|entry| entry.fs_type.as_encoded_bytes().starts_with(b"fuse"))
}

fn sys_folder(number: u64) -> io::Result<PathBuf> {
    let (major, minor) = (libc::major(number), libc::minor(number));
    fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))
}

fn sectors(folder: &Path, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(folder.join(name))?;
    let sectors: u64 = text.trim().parse().map_err(io::Error::other)?;
    Ok(sectors.saturating_mul(SECTOR_BYTES))
}

/// Parses the device number that sysfs prints as `MAJOR:MINOR`.
fn parse_number(text: &str) -> io::Result<u64> {
    text.trim()
        .split_once(':')
        .and_then(|(major, minor)| Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}
