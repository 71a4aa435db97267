//! The default path of the log of a daemon in the background.
//!
//! The log lies beside a pool that is a regular file in a folder that only this user can write to.
//! For all other pools (block devices, pools in the system's folders, pools in folders of other
//! users) it lies in `/var/log/cowshed`, named by the pool's path.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The folder of logs.
const LOG_FOLDER: &str = "/var/log/cowshed";
/// The system's folders, which must not hold logs.
const SYSTEM_FOLDERS: &[&str] = &[
    "/boot",
    "/dev",
    "/etc",
    "/proc",
    "/run",
    "/sys",
    "/usr",
    "/var/cache",
    "/var/lib",
    "/var/spool",
];
/// Names of streams that the process itself has open.
const OWN_STREAMS: &[&str] = &["/dev/fd", "/dev/stdout", "/dev/stderr", "/proc/self/fd"];
/// The folder of the superuser's default pool; the log's name is made only of the path below it.
const DEFAULT_FOLDER: &str = "/var/lib/cowshed";
/// The longest file name that is made from a path.
const NAME_BYTES_MAX: usize = 200;
/// Permission bits that let others change the entries of a folder.
const WRITABLE_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Returns the default log of the pool at `pool`.
#[must_use]
pub fn default_log(pool: &Path) -> PathBuf {
    let folder = pool
        .parent()
        .and_then(|parent| fs::canonicalize(parent).ok());
    // A missing pool is reported later.
    let is_other = fs::symlink_metadata(pool).is_ok_and(|found| !found.is_file());
    if !is_other && folder.is_some_and(|folder| !is_system_folder(&folder) && is_private(&folder)) {
        let mut beside = pool.as_os_str().to_owned();
        beside.push(".log");
        return beside.into();
    }
    Path::new(LOG_FOLDER).join(format!("{}.log", name_of(pool)))
}

/// Creates the folder of logs if `log` lies in it.
///
/// # Errors
/// The host's error.
pub fn make_folder(log: &Path) -> io::Result<()> {
    if !log.starts_with(LOG_FOLDER) {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(LOG_FOLDER)
}

/// Returns the file that `log` leads to, if a link may be followed: one owned by this user or the
/// superuser, in a folder that no other user can write to. Else returns `log` itself.
#[must_use]
pub fn resolve(log: &Path) -> PathBuf {
    let is_trusted = || {
        let found = fs::symlink_metadata(log).ok()?;
        let folder = fs::canonicalize(log.parent()?).ok()?;
        let follows = found.is_symlink() && is_ours(found.uid()) && is_private(&folder);
        follows.then(|| fs::canonicalize(log).ok()).flatten()
    };
    is_trusted().unwrap_or_else(|| log.to_owned())
}

/// Opens the terminal, pipe or other stream at `log`; returns `None` if it is not a stream. Only
/// the names of this process's own streams are followed to their targets.
///
/// # Errors
/// The host's error.
pub fn open_stream(log: &Path) -> io::Result<Option<File>> {
    let is_own = OWN_STREAMS.iter().any(|own| log.starts_with(own));
    let found = if is_own {
        fs::metadata(log)
    } else {
        fs::symlink_metadata(log)
    };
    let is_stream = found.is_ok_and(|found| {
        let kind = found.file_type();
        kind.is_char_device() || kind.is_fifo() || kind.is_socket()
    });
    is_stream
        .then(|| File::options().append(true).open(log))
        .transpose()
}

fn is_system_folder(folder: &Path) -> bool {
    SYSTEM_FOLDERS
        .iter()
        .any(|system| folder.starts_with(system))
}

fn is_ours(user: u32) -> bool {
    user == 0 || user == nix::unistd::geteuid().as_raw()
}

/// Returns true if no other user can add or rename an entry of `folder`, or rename `folder` itself.
fn is_private(folder: &Path) -> bool {
    folder.ancestors().enumerate().all(|(distance, folder)| {
        fs::symlink_metadata(folder).is_ok_and(|found| {
            let shared = found.mode() & WRITABLE_BY_OTHERS != 0;
            // In a folder such as /tmp others can add entries, but not rename those of other users.
            let keeps = distance > 0 && found.mode() & STICKY != 0;
            is_ours(found.uid()) && (!shared || keeps)
        })
    })
}

/// Returns a file name for a path, escaped as systemd escapes paths in the names of units.
fn name_of(pool: &Path) -> String {
    let short = pool.strip_prefix(DEFAULT_FOLDER).unwrap_or(pool);
    let bytes = short.as_os_str().as_bytes();
    let bytes = bytes.strip_prefix(b"/").unwrap_or(bytes);
    let mut name = String::new();
    for (index, &byte) in bytes.iter().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if index > 0 => name.push('.'),
            byte if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':') => {
                name.push(char::from(byte));
            }
            byte => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    if name.len() > NAME_BYTES_MAX {
        // The whole name is ASCII.
        name.truncate(NAME_BYTES_MAX);
        name.push_str(&format!("-{:08x}", crc32fast::hash(bytes)));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    #[test]
    fn the_log_of_a_file_lies_beside_it_only_where_nobody_else_can_write() {
        let folder = tempfile::tempdir().unwrap();
        let pool = folder.path().join("pool");
        fs::write(&pool, "").unwrap();
        assert_eq!(default_log(&pool), folder.path().join("pool.log"));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(default_log(&pool).starts_with(LOG_FOLDER));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        if nix::unistd::geteuid().is_root() {
            chown(folder.path(), Some(65534), None).unwrap();
            assert!(default_log(&pool).starts_with(LOG_FOLDER));
        }
    }

    #[test]
    fn the_logs_of_devices_and_of_the_systems_pools_lie_in_the_folder_of_logs() {
        for (pool, log) in [
            ("/var/lib/cowshed/pool", "/var/log/cowshed/pool.log"),
            ("/dev/null", "/var/log/cowshed/dev-null.log"),
            (
                "/dev/mapper/vg-a",
                "/var/log/cowshed/dev-mapper-vg\\x2da.log",
            ),
        ] {
            assert_eq!(default_log(Path::new(pool)), Path::new(log));
        }
        let long = format!("/dev/{}", "ä/".repeat(400));
        let name = default_log(Path::new(&long));
        assert!(name.file_name().unwrap().len() < 255);
    }

    #[test]
    fn a_link_is_followed_only_where_nobody_else_could_have_put_it() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "").unwrap();
        symlink(&target, &link).unwrap();
        assert_eq!(resolve(&link), fs::canonicalize(&target).unwrap());
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(resolve(&link), link);
    }
}
