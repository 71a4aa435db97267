//! A log in a file: opened without following a link, rotated by size, and reopened when another
//! program has moved it away.
//!
//! Two processes, the keeper and its worker, write to one file. Each appends whole lines, and each
//! checks before a line whether the file still has its name.

use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file that would become larger is renamed, and a new one is started.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Number of older files kept: `LOG.1` is the youngest.
const OLDER_FILES: u32 = 3;

/// A log file. It is closed if it could not be opened; each line tries again.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    folder: File,
    name: OsString,
    file: Option<File>,
    bytes_max: u64,
    /// The last line is incomplete.
    is_cut: bool,
}

impl LogFile {
    /// Opens the log at `path`; creates the file if necessary.
    ///
    /// # Errors
    /// When the folder cannot be opened, or the file is a link, not a regular file, or owned by a
    /// user other than this one and the superuser. A full disk is not an error.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, FILE_BYTES_MAX)
    }

    fn with_limit(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let mut log = Self {
            path: path.to_owned(),
            folder: File::open(folder)?,
            name: name.to_owned(),
            file: None,
            bytes_max,
            is_cut: false,
        };
        match log.open_named() {
            Err(error) if !is_want_of_room(&error) => Err(error),
            _ => Ok(log),
        }
    }

    /// Opens the file that has the name now; if that fails, the file opened before stays open.
    fn open_named(&mut self) -> io::Result<()> {
        self.file = Some(open_own(&self.folder, &self.name)?);
        self.is_cut = false;
        Ok(())
    }

    /// Opens the file at the path again, whatever happened to the folder and the file.
    ///
    /// # Errors
    /// Like those of `open`; the log then continues in the old file.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        *self = Self::with_limit(&self.path, self.bytes_max)?;
        Ok(())
    }

    /// Appends a line.
    ///
    /// # Errors
    /// The host's error; then the line is missing or incomplete.
    pub(super) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if !self.has_its_name() {
            // If the log cannot be opened again, it continues in the old file, if that was open.
            let _ = self.open_named();
        }
        let size = self.size_bytes()?;
        if size > 0 && size + line.len() as u64 > self.bytes_max {
            // If rotating fails, the file keeps growing for a while.
            let _ = self.rotate();
            if self.size_bytes()? >= 2 * self.bytes_max {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
        let Some(file) = &mut self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if self.is_cut {
            file.write_all(b"\n")?;
            self.is_cut = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => rest = &rest[len..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_cut = rest.len() < line.len();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn size_bytes(&self) -> io::Result<u64> {
        self.file
            .as_ref()
            .map_or(Ok(0), |file| file.metadata().map(|found| found.len()))
    }

    fn has_its_name(&self) -> bool {
        let Some(ours) = self.file.as_ref().and_then(|file| file.metadata().ok()) else {
            return false;
        };
        let named = fstatat(
            &self.folder,
            self.name.as_os_str(),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        );
        named.is_ok_and(|named| (named.st_dev, named.st_ino) == (ours.dev(), ours.ino()))
    }

    /// Renames the file and starts a new one, unless the other process is doing that now.
    fn rotate(&mut self) -> io::Result<()> {
        if let Some(file) = &self.file {
            // Closed, and so unlocked, when the new file replaces it.
            file.try_lock().map_err(io::Error::from)?;
        }
        if self.has_its_name() {
            let older = |number: u32| {
                let mut name = self.name.clone();
                name.push(format!(".{number}"));
                name
            };
            for number in (1..OLDER_FILES).rev() {
                // There may be no such file yet.
                let _ = self.rename(&older(number), &older(number + 1));
            }
            self.rename(&self.name, &older(1))?;
        }
        self.open_named()
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.folder, from, &self.folder, to)?)
    }
}

/// Opens a file of this process's user or the superuser for appending, and creates it if necessary.
/// Does not follow a symbolic link nor accept a second hard link, and does not wait for a reader of
/// a FIFO.
fn open_own(folder: &File, name: &OsStr) -> io::Result<File> {
    let flags = OFlag::O_WRONLY
        | OFlag::O_APPEND
        | OFlag::O_CREAT
        | OFlag::O_NOFOLLOW
        | OFlag::O_NONBLOCK
        | OFlag::O_NOCTTY
        | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let opened: OwnedFd = openat(folder, name, flags, mode).map_err(|errno| match errno {
        nix::errno::Errno::ELOOP => refused("it is a symbolic link, which is not followed"),
        errno => errno.into(),
    })?;
    let file = File::from(opened);
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(refused("it is not a regular file"));
    }
    if found.uid() != nix::unistd::geteuid().as_raw() && found.uid() != 0 {
        return Err(refused("it belongs to another user"));
    }
    if found.nlink() > 1 {
        return Err(refused("it has more than one hard link"));
    }
    Ok(file)
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn is_want_of_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{chown, symlink};

    #[test]
    fn a_log_becomes_no_larger_than_its_limit_and_keeps_some_older_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let mut first = LogFile::with_limit(&path, 100).unwrap();
        let mut second = LogFile::with_limit(&path, 100).unwrap();
        for number in 0..100 {
            let line = format!("line {number:03}, of one process or the other\n");
            let log = if number % 3 == 0 {
                &mut first
            } else {
                &mut second
            };
            log.write(line.as_bytes()).unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["x.log", "x.log.1", "x.log.2", "x.log.3"]);
        let mut all = String::new();
        for name in names.iter().rev() {
            let text = fs::read_to_string(folder.path().join(name)).unwrap();
            assert!(text.len() <= 100, "{name}: {}", text.len());
            all.push_str(&text);
        }
        let numbers: Vec<usize> = all
            .lines()
            .map(|line| line[5..8].parse().unwrap())
            .collect();
        assert_eq!(numbers, (100 - numbers.len()..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_log_that_was_moved_away_is_begun_again_at_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let mut log = LogFile::open(&path).unwrap();
        log.write(b"one\n").unwrap();
        fs::rename(&path, folder.path().join("moved")).unwrap();
        log.write(b"two\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two\n");
        fs::remove_file(&path).unwrap();
        log.reopen().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn links_and_files_of_others_are_refused_and_stay_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "victim").unwrap();
        let path = folder.path().join("x.log");
        let expect_refused = || {
            assert!(LogFile::open(&path).is_err());
            fs::remove_file(&path).unwrap();
        };
        symlink(&victim, &path).unwrap();
        expect_refused();
        fs::hard_link(&victim, &path).unwrap();
        expect_refused();
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        expect_refused();
        if nix::unistd::geteuid().is_root() {
            fs::write(&path, "").unwrap();
            chown(&path, Some(65534), None).unwrap();
            expect_refused();
        }
        assert_eq!(fs::read(&victim).unwrap(), b"victim");
        // A link that appears later is not followed either.
        let mut log = LogFile::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&victim, &path).unwrap();
        log.write(b"a line\n").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"victim");
    }
}
