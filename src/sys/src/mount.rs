//! Mounts: making, removing, listing and freezing them, and telling a dead mount from a live one.
//!
//! Neither a parser of mount options nor a policy: callers state exactly what they want. Paths in
//! the list are those of this process's mount namespace.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::mount::MntFlags;
pub use nix::mount::MsFlags as MountFlags;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// linux/prctl.h; libc has it for Android only.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// One line of `/proc/self/mountinfo` (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The number of the mount; later mounts may reuse it.
    pub id: u64,
    /// The major number of the file system's device.
    pub major: u32,
    /// The minor number of the file system's device.
    pub minor: u32,
    /// The directory of the file system that is mounted; `/` unless it is a bind mount.
    pub root: PathBuf,
    /// The mount point.
    pub mount_point: PathBuf,
    /// The file system's type with its subtype, e.g. `ext4` or `fuse.cowshed`.
    pub fs_type: OsString,
    /// The device or name that was mounted.
    pub source: OsString,
    /// The file system's own options as the kernel writes them: with commas between them, and
    /// escaped.
    pub options: OsString,
}

impl MountEntry {
    /// Returns the value of the file system's option `name`, if it has one.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<OsString> {
        let mut all = self.options.as_bytes().split(|&byte| byte == b',');
        let value = all.find_map(|option| {
            let value = option.strip_prefix(name.as_bytes())?;
            value.strip_prefix(b"=")
        });
        value.map(unescape)
    }
}

/// Returns all mounts of this namespace in the order of mounting: of two mounts at one place the
/// later one is on top.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text
        .split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect())
}

/// Returns the topmost mount exactly at `path`, which must be absolute and free of links.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn mount_at(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(mounts()?
        .into_iter()
        .rfind(|entry| entry.mount_point == path))
}

/// Parses one line; `None` for an empty or unknown one.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?)?;
    let _parent = fields.next()?;
    let device = str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = PathBuf::from(unescape(fields.next()?));
    let mount_point = PathBuf::from(unescape(fields.next()?));
    // The number of optional fields varies; a lone hyphen ends them.
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    // Not unescaped as a whole: a value may hold a comma.
    let options = OsStr::from_bytes(fields.next().unwrap_or_default()).to_owned();
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    Some(MountEntry {
        id,
        major,
        minor,
        root,
        mount_point,
        fs_type,
        source,
        options,
    })
}

fn number(field: &[u8]) -> Option<u64> {
    str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes the kernel's octal escapes: `\040` for a space, and so on.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(octal);
        if let Some(byte) = escaped {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8]) -> Option<u8> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok()
}

/// Mounts `source` at `target`.
///
/// # Errors
/// Errors of mount(2).
pub fn mount(
    source: &OsStr,
    target: &Path,
    fs_type: &str,
    flags: MountFlags,
    options: &str,
) -> io::Result<()> {
    nix::mount::mount(Some(source), target, Some(fs_type), flags, Some(options))
        .map_err(io::Error::from)
}

/// Unmounts the topmost mount at `target`, without following a link there.
///
/// # Errors
/// `ResourceBusy` (EBUSY) while a file in it is open, and other errors of umount2(2).
pub fn unmount(target: &Path) -> io::Result<()> {
    nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW).map_err(io::Error::from)
}

/// Takes the mount at `target` out of the tree at once; the kernel ends it when the last file in it
/// is closed.
///
/// # Errors
/// Errors of umount2(2).
pub fn unmount_lazy(target: &Path) -> io::Result<()> {
    nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
        .map_err(io::Error::from)
}

/// Ends the connection of the FUSE mount at `target`, so requests that wait for an answer fail, and
/// unmounts it if it is not in use.
///
/// # Errors
/// EBUSY if it is in use, although the connection has ended; and other errors of umount2(2).
pub fn abort(target: &Path) -> io::Result<()> {
    nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_FORCE)
        .map_err(io::Error::from)
}

/// Returns true if the file system at `path` is a FUSE mount whose server has died.
///
/// # Errors
/// Errors of statfs(2), except for the one that shows a dead server.
pub fn is_dead(path: &Path) -> io::Result<bool> {
    match nix::sys::statfs::statfs(path) {
        Ok(_) => Ok(false),
        Err(Errno::ENOTCONN | Errno::ECONNABORTED) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Writes all data of the file system that holds `path` to its device.
///
/// # Errors
/// Errors of open(2) and syncfs(2), write-back errors included.
pub fn sync_file_system(path: &Path) -> io::Result<()> {
    FileSystem::at(path)?.sync()
}

/// A mounted file system that stays mounted while this lives.
pub struct FileSystem {
    directory: File,
    number: u64,
}

impl FileSystem {
    /// Opens the file system that holds `path`.
    ///
    /// # Errors
    /// Errors of open(2) and fstat(2).
    pub fn at(path: &Path) -> io::Result<Self> {
        let directory = File::open(path)?;
        let number = directory.metadata()?.dev();
        Ok(Self { directory, number })
    }

    /// Opens the file system at `path` if its device has this number.
    ///
    /// # Errors
    /// ESTALE if another one is there, and errors of open(2) and fstat(2).
    pub fn numbered(path: &Path, number: u64) -> io::Result<Self> {
        let found = Self::at(path)?;
        if found.number == number {
            Ok(found)
        } else {
            Err(io::Error::from_raw_os_error(libc::ESTALE))
        }
    }

    /// Opens the file system at `path`, which must belong to the mount numbered `id`. This works
    /// also for file systems that report numbers other than their device's.
    ///
    /// # Errors
    /// ESTALE if another mount is there, and errors of open(2) and fstat(2).
    pub fn on_mount(path: &Path, id: u64) -> io::Result<Self> {
        let found = Self::at(path)?;
        let info = format!("/proc/self/fdinfo/{}", found.directory.as_raw_fd());
        let info = fs::read_to_string(info)?;
        let number = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        if number.and_then(|number| number.trim().parse().ok()) == Some(id) {
            Ok(found)
        } else {
            Err(io::Error::from_raw_os_error(libc::ESTALE))
        }
    }

    /// Returns the number of its device.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Returns the directory that was opened.
    pub fn into_directory(self) -> File {
        self.directory
    }

    /// Writes all its data to its device.
    ///
    /// # Errors
    /// Errors of syncfs(2), including write-back errors, each of which is reported once.
    pub fn sync(&self) -> io::Result<()> {
        nix::unistd::syncfs(&self.directory).map_err(io::Error::from)
    }

    /// Returns its size and free space.
    ///
    /// # Errors
    /// Errors of fstatvfs(3).
    pub fn room(&self) -> io::Result<nix::sys::statvfs::Statvfs> {
        nix::sys::statvfs::fstatvfs(&self.directory).map_err(io::Error::from)
    }

    /// Brings it to a clean state on its device and blocks all writes to it until `thaw`.
    ///
    /// # Errors
    /// Errors of the FIFREEZE ioctl: EBUSY if it is frozen already.
    pub fn freeze(&self) -> io::Result<()> {
        let mut unused = 0;
        // SAFETY: the descriptor is open for the call, and FIFREEZE reads or writes at most the
        // int that its number declares, which lives on this stack.
        unsafe { ioctl::freeze(self.directory.as_raw_fd(), &raw mut unused) }?;
        Ok(())
    }

    /// Writes everything in the journal of an ext4 to its final place, which leaves the journal
    /// empty.
    ///
    /// # Errors
    /// Errors of the `EXT4_IOC_CHECKPOINT` ioctl: ENOTTY from other file systems and from
    /// kernels before 5.15.
    pub fn checkpoint(&self) -> io::Result<()> {
        let flags = 0;
        // SAFETY: as for FIFREEZE: an open descriptor and an int that outlives the call.
        unsafe { ioctl::checkpoint(self.directory.as_raw_fd(), &raw const flags) }?;
        Ok(())
    }

    /// Unblocks the writes to it.
    ///
    /// # Errors
    /// Errors of the FITHAW ioctl: EINVAL if it is not frozen.
    pub fn thaw(&self) -> io::Result<()> {
        let mut unused = 0;
        // SAFETY: as for FIFREEZE: an open descriptor and an int that outlives the call.
        unsafe { ioctl::thaw(self.directory.as_raw_fd(), &raw mut unused) }?;
        Ok(())
    }
}

mod ioctl {
    use nix::libc::c_int;

    nix::ioctl_write_ptr!(checkpoint, b'f', 43, u32);
    nix::ioctl_readwrite!(freeze, b'X', 119, c_int);
    nix::ioctl_readwrite!(thaw, b'X', 120, c_int);
}

/// Unblocks the writes to a frozen file system.
///
/// # Errors
/// Errors of the FITHAW ioctl: EINVAL if it is not frozen.
pub fn thaw(path: &Path) -> io::Result<()> {
    FileSystem::at(path)?.thaw()
}

/// Marks this thread, and the threads and processes that it starts later, as servers of a block
/// device: their allocations never wait for write-back, which might wait for this thread (prctl(2),
/// `PR_SET_IO_FLUSHER`).
///
/// # Errors
/// EPERM without CAP_SYS_RESOURCE, EINVAL before Linux 5.6.
pub fn set_io_flusher() -> io::Result<()> {
    // SAFETY: PR_SET_IO_FLUSHER takes plain numbers and touches no memory of ours.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Returns the number of this thread, with which the kernel identifies the maker of a FUSE request.
#[must_use]
pub fn thread_id() -> u32 {
    nix::unistd::gettid().as_raw().unsigned_abs()
}

/// Returns true if this process may mount and attach, that is, if it runs as root.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Returns the absolute path of `path` without links. Works also for the path of a dead FUSE mount,
/// which cannot be examined.
///
/// # Errors
/// If `path` or its parent is missing or cannot be searched.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if is_disconnected(&error) => {
            let name = path.file_name().ok_or(error)?;
            let parent = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            Ok(fs::canonicalize(parent.unwrap_or(Path::new(".")))?.join(name))
        }
        resolved => resolved,
    }
}

fn is_disconnected(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED)
    )
}

/// Returns true if `path` is `directory` or lies in it, compared as text; for paths that the kernel
/// prints.
#[must_use]
pub fn lies_in(path: &Path, directory: &Path) -> bool {
    let (path, directory) = (
        path.as_os_str().as_bytes(),
        directory.as_os_str().as_bytes(),
    );
    let directory = directory.strip_suffix(b"/").unwrap_or(directory);
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_escapes_is_understood() {
        let line =
            br"36 35 98:10 /mnt1 /mnt\0402\134x rw,noatime master:1 shared:7 - ext3 /dev/a\011b rw";
        let entry = parse_line(line).unwrap();
        assert_eq!(entry.id, 36);
        assert_eq!((entry.major, entry.minor), (98, 10));
        assert_eq!(entry.root, Path::new("/mnt1"));
        assert_eq!(entry.mount_point, Path::new("/mnt 2\\x"));
        assert_eq!(entry.fs_type, "ext3");
        assert_eq!(entry.source, "/dev/a\tb");
    }

    #[test]
    fn a_line_without_optional_fields_is_understood() {
        let entry = parse_line(b"1 0 0:5 / /a rw - proc none rw").unwrap();
        assert_eq!(entry.mount_point, Path::new("/a"));
        assert_eq!(entry.fs_type, "proc");
    }

    #[test]
    fn the_folders_of_an_overlay_are_among_its_options() {
        let line =
            br"1 0 0:5 / /a rw - overlay overlay rw,lowerdir=/l,upperdir=/a\054b/u,workdir=/w";
        let entry = parse_line(line).unwrap();
        assert_eq!(entry.option("upperdir").unwrap(), "/a,b/u");
        assert_eq!(entry.option("lowerdir").unwrap(), "/l");
        assert_eq!(entry.option("rw"), None);
        assert_eq!(entry.option("dir"), None);
    }

    #[test]
    fn ill_formed_lines_are_left_out() {
        for line in [
            "",
            "1",
            "1 0 05 / /a rw - proc none",
            "1 0 0:5 / /a rw proc none",
            "x 0 0:5 / /a rw - p n",
        ] {
            assert_eq!(parse_line(line.as_bytes()), None, "{line:?}");
        }
    }

    #[test]
    fn a_backslash_without_three_octal_digits_stays() {
        for text in [r"a\04", r"a\", r"\999", r"\+12"] {
            assert_eq!(unescape(text.as_bytes()), text);
        }
    }

    #[test]
    fn the_root_is_found_alive_in_the_real_table() {
        assert!(mount_at(Path::new("/")).unwrap().is_some());
        assert!(!is_dead(Path::new("/")).unwrap());
    }

    #[test]
    fn only_whole_components_lie_in_a_directory() {
        assert!(lies_in(Path::new("/a/b"), Path::new("/a")));
        assert!(lies_in(Path::new("/a"), Path::new("/a/")));
        assert!(!lies_in(Path::new("/ab"), Path::new("/a")));
        assert!(!lies_in(Path::new("/"), Path::new("/a")));
    }
}
