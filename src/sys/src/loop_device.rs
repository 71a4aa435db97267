//! Loop devices: block devices of the kernel over a file, attached and detached by ioctl.
//!
//! Works without udev: this module makes a missing node in `/dev`. Another user of loop devices may
//! take a free number or reuse one at any time. Therefore attaching retries, and detaching first
//! claims the device and lets the caller check that it is still the intended one.
#![allow(unsafe_code)]

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Number of attempts to get a free number while others keep taking it.
const ATTACH_ATTEMPTS_MAX: u32 = 64;
/// Maximum time that a detach waits for short-lived users of the device (blkid, udev).
const DETACH_WAIT: Duration = Duration::from_secs(2);
const DETACH_POLL: Duration = Duration::from_millis(5);

const FLAG_READ_ONLY: u32 = 1;
const FLAG_AUTOCLEAR: u32 = 4;
const FLAG_SCAN_PARTITIONS: u32 = 8;
const FLAG_DIRECT_IO: u32 = 16;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}
const _: () = assert!(size_of::<LoopInfo>() == 232);

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<LoopConfig>() == 304);

impl LoopInfo {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

mod ioctl {
    use super::{LoopConfig, LoopInfo};

    nix::ioctl_none_bad!(clear_fd, 0x4C01);
    nix::ioctl_write_ptr_bad!(set_status, 0x4C04, LoopInfo);
    nix::ioctl_read_bad!(get_status, 0x4C05, LoopInfo);
    nix::ioctl_none_bad!(set_capacity, 0x4C07);
    nix::ioctl_write_ptr_bad!(configure, 0x4C0A, LoopConfig);
    nix::ioctl_none_bad!(get_free, 0x4C82);
}

/// Options for attaching a file to a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopOptions {
    /// True if the device refuses writes.
    pub read_only: bool,
    /// True if the file's page cache is bypassed; only for files that can do that.
    pub direct_io: bool,
    /// True if the kernel looks for a partition table and shows its partitions.
    pub scan_partitions: bool,
    /// Size of the logical block: 512 or 4096 bytes. A kernel that refuses the latter gives 512.
    pub block_bytes: u32,
}

/// Identity of the file behind a loop device: its file system's device number and its inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackingId {
    /// The device number of the file system.
    pub device: u64,
    /// The inode number of the file.
    pub inode: u64,
}

/// The file that a loop device lies on, and the offset in it at which the device begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The device number of the file's file system.
    pub device: u64,
    /// The inode number of the file.
    pub inode: u64,
    /// The device number of the block device that the file is; 0 for a regular file.
    pub rdevice: u64,
    /// Offset in the file at which the device begins.
    pub offset_bytes: u64,
}

/// The loop device with a number, attached or not: a name, not an owner. Dropping it does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopDevice {
    number: u32,
}

impl LoopDevice {
    /// Attaches `backing` to a free loop device.
    ///
    /// # Errors
    /// `NotFound` if the kernel has no loop devices; `ResourceBusy` if others take every free
    /// number; otherwise errors of the ioctls.
    pub fn attach(backing: &File, options: LoopOptions) -> io::Result<Self> {
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")?;
        for _ in 0..ATTACH_ATTEMPTS_MAX {
            // SAFETY: the descriptor is open; LOOP_CTL_GET_FREE takes no argument.
            let number = unsafe { ioctl::get_free(control.as_raw_fd()) }?;
            let number = u32::try_from(number).map_err(io::Error::other)?;
            let device = Self { number };
            match device.configure(backing, options) {
                Ok(()) => return Ok(device),
                // Another user took this number first, or removed it again.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EBUSY | libc::ENXIO | libc::ENOENT | libc::ENODEV)
                    ) => {}
                Err(error) => return Err(error),
            }
            thread::sleep(Duration::from_millis(1));
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    fn configure(self, backing: &File, options: LoopOptions) -> io::Result<()> {
        self.make_node()?;
        let node = OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .open(self.path())?;
        let result = configure_once(&node, backing, options, options.block_bytes);
        match result {
            Err(error)
                if error.raw_os_error() == Some(libc::EINVAL) && options.block_bytes != 512 =>
            {
                configure_once(&node, backing, options, 512)
            }
            result => result,
        }
    }

    /// Makes the node in `/dev` where neither devtmpfs nor udev does.
    fn make_node(self) -> io::Result<()> {
        let path = self.path();
        if path.exists() {
            return Ok(());
        }
        let (major, minor) = self.device_numbers()?;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        match mknod(
            &path,
            SFlag::S_IFBLK,
            mode,
            makedev(major.into(), minor.into()),
        ) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the device with a number that was learnt earlier.
    #[must_use]
    pub fn numbered(number: u32) -> Self {
        Self { number }
    }

    /// Returns its number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.number
    }

    /// Returns the path of the device's node.
    #[must_use]
    pub fn path(self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }

    fn sys_path(self, file: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/loop{}/{file}", self.number))
    }

    /// Returns the device's major and minor numbers, as its mounts show them.
    ///
    /// # Errors
    /// If sysfs does not know the device.
    pub fn device_numbers(self) -> io::Result<(u32, u32)> {
        let text = fs::read_to_string(self.sys_path("dev"))?;
        text.trim()
            .split_once(':')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// Returns the path of the file behind the device as the kernel prints it (with ` (deleted)` at
    /// the end if the name is gone); `None` if nothing is attached.
    ///
    /// # Errors
    /// If sysfs cannot be read.
    pub fn backing_file(self) -> io::Result<Option<PathBuf>> {
        match fs::read(self.sys_path("loop/backing_file")) {
            Ok(mut text) => {
                if text.last() == Some(&b'\n') {
                    text.pop();
                }
                Ok(Some(PathBuf::from(std::ffi::OsString::from_vec(text))))
            }
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the number that distinguishes this use of the device from all others since the host
    /// started; `None` before Linux 5.15.
    pub fn sequence(self) -> Option<u64> {
        let text = fs::read_to_string(self.sys_path("diskseq")).ok()?;
        text.trim().parse().ok()
    }

    /// Returns the size of the device's logical block.
    pub fn block_bytes(self) -> Option<u32> {
        let text = fs::read_to_string(self.sys_path("queue/logical_block_size")).ok()?;
        text.trim().parse().ok()
    }

    /// Returns true if `path` is the device's node or that of one of its partitions.
    pub fn has_node(self, path: &Path) -> bool {
        let (node, path) = (self.path(), path.as_os_str().as_encoded_bytes());
        let Some(rest) = path.strip_prefix(node.as_os_str().as_encoded_bytes()) else {
            return false;
        };
        match rest.strip_prefix(b"p") {
            Some(number) => !number.is_empty() && number.iter().all(u8::is_ascii_digit),
            None => rest.is_empty(),
        }
    }

    /// Returns true if the device bypasses the page cache of the file behind it.
    ///
    /// # Errors
    /// If nothing is attached.
    pub fn uses_direct_io(self) -> io::Result<bool> {
        Ok(fs::read_to_string(self.sys_path("loop/dio"))?.trim() == "1")
    }

    /// Returns the names of the devices (device mapper, RAID) that are built on this one.
    #[must_use]
    pub fn holders(self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.sys_path("holders")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Returns the identity of the file behind the device.
    ///
    /// # Errors
    /// ENXIO if nothing is attached; ENOTCONN if the file's FUSE server has died.
    pub fn backing_id(self) -> io::Result<BackingId> {
        let info = status(&File::open(self.path())?)?;
        Ok(BackingId {
            device: info.device,
            inode: info.inode,
        })
    }

    /// Returns the file that holds the device's bytes, and the offset at which they begin.
    ///
    /// # Errors
    /// As `backing_id`.
    pub fn backing(self) -> io::Result<Backing> {
        let info = status(&File::open(self.path())?)?;
        Ok(Backing {
            device: info.device,
            inode: info.inode,
            rdevice: info.rdevice,
            offset_bytes: info.offset,
        })
    }

    /// Sets the device's size to the file's present size.
    ///
    /// # Errors
    /// ENXIO if nothing is attached.
    pub fn refresh_size(self) -> io::Result<()> {
        let node = File::open(self.path())?;
        // SAFETY: the descriptor is open; LOOP_SET_CAPACITY takes no argument.
        unsafe { ioctl::set_capacity(node.as_raw_fd()) }?;
        Ok(())
    }

    /// Opens the device so that nobody else can mount or claim it meanwhile.
    ///
    /// # Errors
    /// EBUSY while it is mounted, in any mount namespace, or claimed by another user.
    pub fn claim(self) -> io::Result<Claim> {
        let node = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(self.path())?;
        Ok(Claim { device: self, node })
    }

    /// Asks the kernel to detach the device as soon as its last user closes it.
    ///
    /// # Errors
    /// ENXIO if nothing is attached.
    pub fn detach_when_unused(self) -> io::Result<()> {
        clear(&File::open(self.path())?)
    }

    /// Keeps the device attached after `detach_when_unused`.
    fn keep(self) -> io::Result<()> {
        let node = File::open(self.path())?;
        let mut info = status(&node)?;
        info.flags &= !FLAG_AUTOCLEAR;
        // SAFETY: the descriptor is open, and `info` is a whole loop_info64 that the kernel only
        // reads during the call.
        unsafe { ioctl::set_status(node.as_raw_fd(), &raw const info) }?;
        Ok(())
    }
}

/// A loop device that nobody else can claim while this lives.
pub struct Claim {
    device: LoopDevice,
    node: File,
}

impl Claim {
    /// Returns the identity of the file behind the device.
    ///
    /// # Errors
    /// As `LoopDevice::backing_id`.
    pub fn backing_id(&self) -> io::Result<BackingId> {
        let info = status(&self.node)?;
        Ok(BackingId {
            device: info.device,
            inode: info.inode,
        })
    }

    /// Writes the device's own page cache into the file and makes it durable.
    ///
    /// # Errors
    /// Errors of fsync(2).
    pub fn sync(&self) -> io::Result<()> {
        self.node.sync_all()
    }

    /// Detaches the device and waits until the kernel has released the file.
    ///
    /// # Errors
    /// EBUSY if a process keeps the device open; it then stays attached.
    pub fn detach(self) -> io::Result<()> {
        let attached = Attached {
            id: self.backing_id().ok(),
            file: self.device.backing_file()?,
        };
        let Self { device, node } = self;
        match clear(&node) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
            result => result?,
        }
        // The kernel detaches when the last descriptor is closed; this may be that one.
        drop(node);
        let deadline = Instant::now() + DETACH_WAIT;
        while attached.is_still_on(device)? {
            if Instant::now() >= deadline {
                return match device.keep() {
                    Ok(()) => Err(io::Error::from_raw_os_error(libc::EBUSY)),
                    // The device's last user closed it at this very moment.
                    Err(error) if is_gone(&error) => Ok(()),
                    Err(error) => Err(error),
                };
            }
            thread::sleep(DETACH_POLL);
        }
        Ok(())
    }
}

/// The file that a device had attached before it was detached. Another user's file may get the
/// device's number at once, and must not be mistaken for the old one.
struct Attached {
    /// `None` if the file's server is dead.
    id: Option<BackingId>,
    file: Option<PathBuf>,
}

impl Attached {
    fn is_still_on(&self, device: LoopDevice) -> io::Result<bool> {
        match device.backing_file()? {
            None => Ok(false),
            now if now == self.file => Ok(true),
            // Another file, or the same one renamed.
            Some(_) => Ok(self.id.is_some() && device.backing_id().ok() == self.id),
        }
    }
}

/// Returns true if an error says that there is no such device, or nothing attached to it.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV)
    )
}

fn configure_once(
    node: &File,
    backing: &File,
    options: LoopOptions,
    block_bytes: u32,
) -> io::Result<()> {
    let mut info = LoopInfo::EMPTY;
    if options.read_only {
        info.flags |= FLAG_READ_ONLY;
    }
    if options.direct_io {
        info.flags |= FLAG_DIRECT_IO;
    }
    if options.scan_partitions {
        info.flags |= FLAG_SCAN_PARTITIONS;
    }
    let config = LoopConfig {
        fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
        block_size: block_bytes,
        info,
        reserved: [0; 8],
    };
    // SAFETY: both descriptors are open for the call, and `config` is a whole loop_config that
    // the kernel only reads during the call.
    unsafe { ioctl::configure(node.as_raw_fd(), &raw const config) }?;
    Ok(())
}

fn status(node: &File) -> io::Result<LoopInfo> {
    let mut info = LoopInfo::EMPTY;
    // SAFETY: the descriptor is open, and the kernel writes at most one loop_info64, into a
    // variable of that size on this stack; every bit pattern of it is valid.
    unsafe { ioctl::get_status(node.as_raw_fd(), &raw mut info) }?;
    Ok(info)
}

fn clear(node: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open; LOOP_CLR_FD takes no argument.
    unsafe { ioctl::clear_fd(node.as_raw_fd()) }?;
    Ok(())
}

/// Returns all attached loop devices with the paths of their files as the kernel prints them.
///
/// # Errors
/// If sysfs cannot be read.
pub fn attached() -> io::Result<Vec<(LoopDevice, PathBuf)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(Path::new("/sys/block")) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("loop")?.parse().ok());
        let Some(number) = number else { continue };
        let device = LoopDevice { number };
        if let Some(path) = device.backing_file()? {
            found.push((device, path));
        }
    }
    found.sort_by_key(|(device, _)| device.number);
    Ok(found)
}
