//! The file systems in volumes: ext4, created once for each size as a frozen template and cloned
//! after that; also the mount options of each kind of volume.
//!
//! `mkfs.ext4` runs on a memory file, and its output is copied into the template's volume: a new
//! file system is a few hundred blocks, the rest are holes. Nothing is initialised lazily, so that
//! a mounted container writes only what its programs write; the journal is small, because every
//! container that writes gets a copy of it; there is no `lost+found`, so that an image's root holds
//! exactly what its layers contain.

use crate::error::{Error, Result};
use cowshed_engine::{Labels, Pool, Volume};
use cowshed_format::base::{self, BLOCK_BYTES, Name};
use cowshed_sys::extent;
use cowshed_sys::mount::{self, MountFlags};
use cowshed_sys::program;
use nix::sys::memfd::{MFdFlags, memfd_create};
use rand::TryRngCore;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// The default size of an image's file system.
pub const DEFAULT_SIZE_BYTES: u64 = 10 << 30;
/// The smallest file system: it has space for the journal and a small root.
pub const MIN_SIZE_BYTES: u64 = 64 << 20;
/// The largest file system: the limit of ext4 with 32-bit block numbers in its resize inode.
pub const MAX_SIZE_BYTES: u64 = 16 << 40;

/// Number of attempts to unmount before a mount counts as busy.
const UNMOUNT_ATTEMPTS: u32 = 12;
const UNMOUNT_PAUSE: Duration = Duration::from_millis(25);

/// The prefix of a template volume's name; the size in bytes follows.
pub(crate) const TEMPLATE_PREFIX: &str = "template/ext4-";
/// Names the format options below; changes with them.
const TEMPLATE_OPTIONS: &str = "ext4 journal=16M inode-ratio=8192 metadata_csum no-lost+found v1";
const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,\
                        sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum,\
                        resize_inode";

/// The mode in which a volume's file system is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// For filling it: without protection against a crash, since a volume that was not unmounted
    /// cleanly is discarded.
    Fill,
    /// For a container's root: safe against a crash; deleted files free their blocks.
    Container,
    /// For reading a copy of a volume that may have been in use: the journal is replayed, then
    /// nothing is written.
    Settle,
    /// For reading a frozen, cleanly unmounted volume.
    Frozen,
}

impl Mode {
    /// Returns true if the block device is attached read-only.
    pub(crate) const fn is_device_read_only(self) -> bool {
        matches!(self, Self::Frozen)
    }

    fn flags(self) -> MountFlags {
        match self {
            Self::Fill | Self::Container => MountFlags::MS_NOATIME,
            Self::Settle | Self::Frozen => MountFlags::MS_NOATIME | MountFlags::MS_RDONLY,
        }
    }

    const fn options(self) -> &'static str {
        match self {
            // Inode tables that were never written are holes, so nothing has to zero them later.
            Self::Fill => "data=writeback,nobarrier,noauto_da_alloc,commit=600,noinit_itable",
            Self::Container => "discard,noinit_itable",
            Self::Settle => "",
            Self::Frozen => "noload",
        }
    }
}

/// The option that overrides the superblock's error behaviour. A container or guest may have
/// written the superblock, and `panic` there would stop the host.
pub const ERRORS_OPTION: &str = "errors=remount-ro";

/// The users of a mount's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Containers run programs from it.
    Programs,
    /// Only this process reads or writes its files: no file in it may be executed or be a device.
    FilesOnly,
}

impl Access {
    fn flags(self) -> MountFlags {
        match self {
            Self::Programs => MountFlags::empty(),
            Self::FilesOnly => MountFlags::MS_NOSUID | MountFlags::MS_NODEV | MountFlags::MS_NOEXEC,
        }
    }
}

/// Mounts the ext4 on `device` at `target`.
pub(crate) fn mount(device: &Path, target: &Path, mode: Mode, access: Access) -> Result<()> {
    let options = match mode.options() {
        "" => ERRORS_OPTION.to_owned(),
        options => format!("{options},{ERRORS_OPTION}"),
    };
    mount::mount(
        device.as_os_str(),
        target,
        "ext4",
        mode.flags() | access.flags(),
        &options,
    )
    .map_err(Error::io("mount the file system at", target))
}

/// Unmounts the file system at `target`; if it is busy, the error names the mount point.
///
/// Programs that examine every new mount, and children of this process that have not executed their
/// program yet, hold a mount for a moment; so this retries for a short while.
pub(crate) fn unmount(target: &Path) -> Result<()> {
    for attempt in 1.. {
        match mount::unmount(target) {
            Ok(()) => return Ok(()),
            Err(source) if source.raw_os_error() != Some(libc::EBUSY) => {
                return Err(Error::Io {
                    action: "unmount",
                    path: target.to_owned(),
                    source,
                });
            }
            Err(_) if attempt == UNMOUNT_ATTEMPTS => break,
            Err(_) => thread::sleep(UNMOUNT_PAUSE),
        }
    }
    Err(Error::MountBusy {
        path: target.to_owned(),
    })
}

/// Grows the unmounted file system on `device` until it fills the device.
///
/// The kernel could grow a mounted file system, but only for a process with CAP_SYS_RESOURCE.
pub(crate) fn grow(device: &Path) -> Result<()> {
    // Without -f, resize2fs requires a full check first, which a clean unmount makes unnecessary.
    run(
        "resize2fs",
        program::command("resize2fs").arg("-f").arg(device),
    )
}

const fn whole_blocks(size_bytes: u64) -> u64 {
    size_bytes - size_bytes % BLOCK_BYTES as u64
}

/// Creates a volume with an empty file system of a size that is used only once, so without a
/// template.
pub(crate) fn fresh(pool: &Pool, size_bytes: u64, work: &Name) -> Result<Volume> {
    let size_bytes = checked_size(size_bytes)?;
    let file = format_memory_file(size_bytes)?;
    let volume = pool.create_volume(work, size_bytes)?;
    if let Err(error) = copy_data(&file, &volume) {
        // The first error is the one to report; a leftover is removed at the next start.
        let _ = pool.remove(&volume);
        return Err(error);
    }
    Ok(volume)
}

pub(crate) fn checked_size(size_bytes: u64) -> Result<u64> {
    if !(MIN_SIZE_BYTES..=MAX_SIZE_BYTES).contains(&size_bytes) {
        return Err(Error::Pool(base::Error::InvalidSize {
            what: "a file system",
            min_bytes: MIN_SIZE_BYTES,
            max_bytes: MAX_SIZE_BYTES,
        }));
    }
    Ok(whole_blocks(size_bytes))
}

/// Returns the frozen empty file system of `size_bytes`, and creates it if there is none yet.
///
/// `work` is a free name for the volume while it is being filled.
pub(crate) fn template(pool: &Pool, size_bytes: u64, work: &Name) -> Result<Volume> {
    let size_bytes = checked_size(size_bytes)?;
    let name = Name::new(&format!("{TEMPLATE_PREFIX}{size_bytes}"))?;
    if let Some(found) = existing(pool, &name)? {
        return Ok(found);
    }
    let file = format_memory_file(size_bytes)?;
    let volume = pool.create_volume(work, size_bytes)?;
    let made = fill_template(pool, &volume, &file, &name);
    if made.is_err() {
        // The first error is the one to report; a leftover is removed at the next start.
        let _ = pool.remove(&volume);
    }
    match made {
        // Another thread was faster: its template is equivalent.
        Err(Error::Pool(base::Error::Exists(_))) => Ok(pool.volume(name.as_str())?),
        made => made.map(|()| volume),
    }
}

fn existing(pool: &Pool, name: &Name) -> Result<Option<Volume>> {
    match pool.volume(name.as_str()) {
        Ok(found) => Ok(Some(found)),
        Err(base::Error::NotFound(_) | base::Error::NoSuchVolume(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn fill_template(pool: &Pool, volume: &Volume, file: &File, name: &Name) -> Result<()> {
    copy_data(file, volume)?;
    let labels = Labels::from([("cowshed.template".to_owned(), TEMPLATE_OPTIONS.to_owned())]);
    let mut transaction = pool.transaction();
    transaction
        .freeze(volume.id())
        .set_labels(volume.id(), labels)
        .rename(volume.id(), name);
    transaction.commit()?;
    Ok(())
}

/// Creates a memory file of `size_bytes` that holds an empty file system.
fn format_memory_file(size_bytes: u64) -> Result<File> {
    let failed = |source| Error::Io {
        action: "create a memory file for",
        path: "mkfs.ext4".into(),
        source,
    };
    let memory = memfd_create(c"cowshed-template", MFdFlags::MFD_CLOEXEC);
    let file = File::from(memory.map_err(|errno| failed(errno.into()))?);
    file.set_len(size_bytes).map_err(failed)?;
    // The programs reach the file through this process, so that nothing is left on the host's disk,
    // however this process ends.
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    run(
        "mkfs.ext4",
        program::command("mkfs.ext4")
            .args([
                "-q", "-F", "-b", "4096", "-I", "256", "-i", "8192", "-m", "0",
            ])
            .args(["-J", "size=16", "-O", FEATURES, "-E"])
            .arg("nodiscard,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0")
            .args(["-U", &random_uuid()?, &path]),
    )?;
    run(
        "debugfs",
        program::command("debugfs").args(["-w", "-R", "rmdir lost+found", &path]),
    )?;
    Ok(file)
}

/// Returns a random UUID (version 4).
fn random_uuid() -> Result<String> {
    let mut bytes = [0; 16];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Error::Io {
            action: "read random numbers for",
            path: "the file system's UUID".into(),
            source: io::Error::other(error),
        })?;
    bytes[6] = bytes[6] & 0x0F | 0x40;
    bytes[8] = bytes[8] & 0x3F | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}

/// Runs a program of e2fsprogs, which may lie in a folder that only root's PATH has.
fn run(program: &'static str, command: &mut Command) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = path;
    folders.push(":/usr/sbin:/sbin");
    command
        .env("PATH", folders)
        .env("LC_ALL", "C")
        .env_remove("MKE2FS_CONFIG");
    let output = command.stdin(Stdio::null()).output().map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            Error::NoProgram {
                program,
                package: "e2fsprogs",
            }
        } else {
            Error::Io {
                action: "start",
                path: program.into(),
                source,
            }
        }
    })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let message = text
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("it printed no message");
    Err(Error::Program {
        program,
        status: output.status,
        message: message.trim().into(),
    })
}

/// Copies all data of `file`, without its holes, into `volume`, which is empty and of the same
/// size.
fn copy_data(file: &File, volume: &Volume) -> Result<()> {
    let failed = |source| Error::Io {
        action: "read",
        path: "the new file system".into(),
        source,
    };
    let end = file.metadata().map_err(failed)?.len();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while let Some(data) = extent::next_data(file, at, end).map_err(failed)? {
        at = data.start;
        while at < data.end {
            let len = usize::try_from(data.end - at)
                .unwrap_or(buffer.len())
                .min(buffer.len());
            file.read_exact_at(&mut buffer[..len], at).map_err(failed)?;
            volume.write_at(&buffer[..len], at)?;
            at += len as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_system_is_small_clean_and_has_no_lost_and_found() {
        let file = format_memory_file(DEFAULT_SIZE_BYTES).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let checked = Command::new("/usr/sbin/e2fsck")
            .args(["-fn", &path])
            .output()
            .unwrap();
        assert!(
            checked.status.success(),
            "{}",
            String::from_utf8_lossy(&checked.stdout)
        );
        let listed = Command::new("/usr/sbin/debugfs")
            .args(["-R", "ls -p", &path])
            .output()
            .unwrap();
        assert!(!String::from_utf8_lossy(&listed.stdout).contains("lost+found"));
    }

    #[test]
    fn a_failing_program_is_quoted_and_a_missing_one_named() {
        let failed = run(
            "mkfs.ext4",
            Command::new("mkfs.ext4").args(["-q", "/dev/null/none"]),
        );
        assert!(matches!(
            failed,
            Err(Error::Program {
                program: "mkfs.ext4",
                ..
            })
        ));
        let missing = run("mkfs.ext4", &mut Command::new("mkfs.no-such-thing"));
        assert!(matches!(
            missing,
            Err(Error::NoProgram {
                package: "e2fsprogs",
                ..
            })
        ));
    }
}
