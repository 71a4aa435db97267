//! The file system beneath the pool: what it is, and what it can do, tried with a file that has no
//! name and is gone when it is closed.

use super::{Check, fail, ok, warn};
use cowshed_format::base::printable_path;
use cowshed_format::base::size::human;
use cowshed_sys::{beneath, extent, mount};
use nix::fcntl::OFlag;
use nix::sys::statvfs::statvfs;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The bytes that are written to try something.
const PROBE_BYTES: usize = 1 << 20;
/// With less, a pool soon cannot allocate.
const FREE_MIN_BYTES: u64 = 1 << 30;
/// The same as a part of the file system, in percent.
const FREE_MIN_PERCENT: u64 = 5;

/// File systems that another host serves.
const REMOTE: [&str; 9] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "glusterfs",
    "9p",
    "virtiofs",
    "afs",
];
/// File systems that never write in place.
const COPY_ON_WRITE: [&str; 4] = ["btrfs", "zfs", "bcachefs", "nilfs2"];
/// File systems whose files are gone after a restart.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

pub(super) fn checks(pool: &Path) -> Vec<Check> {
    if let Ok(found) = pool.metadata()
        && found.file_type().is_block_device()
    {
        let detail = format!("{} is a block device", printable_path(pool));
        return vec![ok("file-system", detail)];
    }
    let Some(folder) = existing_folder(pool) else {
        let detail = format!("{} has no directory", printable_path(pool));
        return vec![fail("file-system", detail, "name another pool with --pool")];
    };
    let mut checks = vec![kind(&folder), space(&folder)];
    match probe(&folder) {
        Ok(file) => checks.extend([holes(&file), direct(&file), reflinks(&file, &folder)]),
        Err(error) => {
            let detail = format!(
                "no file can be made in {}: {error}",
                printable_path(&folder)
            );
            let remedy = match error.kind() {
                io::ErrorKind::ReadOnlyFilesystem => "mount -o remount,rw, or another directory",
                io::ErrorKind::StorageFull => "free some space there",
                _ => "run `cowshed doctor` as root, or name a pool of your own with --pool",
            };
            checks.push(warn("files", detail, remedy));
        }
    }
    checks
}

/// Returns the pool's directory, or the nearest one above it that is there.
fn existing_folder(pool: &Path) -> Option<PathBuf> {
    let folder = pool.ancestors().skip(1).find(|folder| folder.is_dir())?;
    folder.canonicalize().ok()
}

/// Returns the type of the file system that has this directory.
fn file_system(folder: &Path) -> String {
    let mounts = mount::mounts().unwrap_or_default().into_iter();
    let found = mounts
        .filter(|entry| folder.starts_with(&entry.mount_point))
        // Of mounts at one place the last one is on top.
        .max_by_key(|entry| entry.mount_point.components().count());
    found.map_or_else(
        || "unknown".to_owned(),
        |entry| entry.fs_type.to_string_lossy().into_owned(),
    )
}

fn kind(folder: &Path) -> Check {
    judge_kind(&file_system(folder), folder)
}

fn judge_kind(name: &str, folder: &Path) -> Check {
    let check = "file-system";
    let detail = format!("{name} at {}", printable_path(folder));
    if REMOTE.contains(&name) {
        fail(
            check,
            format!("{detail}: another host serves it, and may lose or repeat writes"),
            "put the pool on a disk of this host",
        )
    } else if name.starts_with("fuse") {
        warn(
            check,
            format!("{detail}: a program serves it, and decides what a flush is worth"),
            "put the pool on a disk of this host",
        )
    } else if IN_MEMORY.contains(&name) {
        warn(
            check,
            format!("{detail}: it is gone after a restart"),
            "put the pool on a disk",
        )
    } else if name == "overlay" {
        warn(
            check,
            format!("{detail}: the root of a container, which goes with it"),
            "put the pool on a volume or a directory of the host",
        )
    } else if COPY_ON_WRITE.contains(&name) {
        warn(
            check,
            format!("{detail}: it copies on write, and so does the pool: twice the work"),
            "on btrfs, make the pool in a new directory with `chattr +C`; or use ext4, XFS or a \
             block device",
        )
    } else {
        ok(check, detail)
    }
}

fn space(folder: &Path) -> Check {
    let check = "free-space";
    let Ok(found) = statvfs(folder) else {
        return warn(check, "unknown", "see `df`");
    };
    let block_bytes = found.fragment_size();
    let total = found.blocks().saturating_mul(block_bytes);
    let free = found.blocks_available().saturating_mul(block_bytes);
    let detail = format!("{} of {}", human(free), human(total));
    if free < FREE_MIN_BYTES || free < total / 100 * FREE_MIN_PERCENT {
        let remedy = "free some space there: a pool that cannot allocate refuses writes";
        warn(check, detail, remedy)
    } else {
        ok(check, detail)
    }
}

/// Makes a file without a name, with data in it.
fn probe(folder: &Path) -> io::Result<File> {
    let mut file = tempfile::tempfile_in(folder)?;
    file.write_all(&vec![0xC5; PROBE_BYTES])?;
    file.sync_data()?;
    Ok(file)
}

fn holes(file: &File) -> Check {
    let check = "holes";
    let half = (PROBE_BYTES / 2) as u64;
    let punched = (|| {
        let before = file.metadata()?.blocks();
        extent::punch_hole(file, 0, half)?;
        file.sync_all()?;
        let mut bytes = vec![1; PROBE_BYTES / 2];
        file.read_exact_at(&mut bytes, 0)?;
        let is_zero = bytes.iter().all(|byte| *byte == 0);
        io::Result::Ok((is_zero, file.metadata()?.blocks() < before))
    })();
    let remedy = "use ext4, XFS, btrfs or a block device";
    match punched {
        Ok((true, true)) => ok(check, "a hole that is punched gives space back"),
        Ok((true, false)) => warn(check, "a hole that is punched gives no space back", remedy),
        Ok((false, _)) => fail(
            check,
            "a hole that is punched does not read as zeros",
            remedy,
        ),
        Err(error) => warn(
            check,
            format!("holes cannot be punched ({error}): the host gets no space back"),
            remedy,
        ),
    }
}

fn direct(file: &File) -> Check {
    let opened = beneath::reopen(file, OFlag::O_RDWR | OFlag::O_DIRECT);
    match opened {
        Ok(_) => ok("direct-io", "works; used with `serve --direct`"),
        Err(error) => ok(
            "direct-io",
            format!("does not work here ({error}); the page cache is used, as usual"),
        ),
    }
}

fn reflinks(file: &File, folder: &Path) -> Check {
    let check = "reflinks";
    let shared = probe(folder).and_then(|other| extent::share(file, &other));
    match shared {
        Ok(()) => ok(
            check,
            "work: `cp --reflink` copies a closed pool in no time",
        ),
        Err(_) => ok(
            check,
            "none; a closed pool is copied with `cp --sparse=always`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn file_systems_are_judged_by_what_they_promise() {
        for (name, state) in [
            ("ext4", State::Ok),
            ("xfs", State::Ok),
            ("btrfs", State::Warn),
            ("tmpfs", State::Warn),
            ("fuse.sshfs", State::Warn),
            ("overlay", State::Warn),
            ("nfs4", State::Fail),
        ] {
            let check = judge_kind(name, Path::new("/srv"));
            assert_eq!(check.state, state, "{check:?}");
        }
    }

    #[test]
    fn a_folder_is_tried_and_stays_empty() {
        let folder = tempfile::tempdir().unwrap();
        let checks = checks(&folder.path().join("deep/pool"));
        let names: Vec<_> = checks.iter().map(|check| check.check).collect();
        let wanted = [
            "file-system",
            "free-space",
            "holes",
            "direct-io",
            "reflinks",
        ];
        assert_eq!(names, wanted);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
