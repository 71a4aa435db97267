//! Random changes of a tree, as processes in a container could make them.

use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};
use rand::seq::IndexedRandom;
use rand::{Rng, rngs::StdRng};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cowshed_sys::{beneath, xattr};
use nix::fcntl::OFlag;

/// A directory of more names than this has a hash tree of two levels.
const MANY: usize = 1_500;
/// Deeper directories are not changed, so that paths stay short enough for the kernel.
const PATH_BYTES_MAX: usize = 1_200;

pub(super) struct Mutator {
    root: PathBuf,
    random: StdRng,
    /// Files that stay open, some of them deleted.
    open: Vec<File>,
    serial: u64,
}

impl Mutator {
    pub(super) fn new(root: &Path, random: StdRng) -> Self {
        Self {
            root: root.to_owned(),
            random,
            open: Vec::new(),
            serial: 0,
        }
    }

    /// Creates a tree with objects of every kind.
    pub(super) fn fill(&mut self) {
        self.mass_create().unwrap();
        self.deep().unwrap();
        self.mutate(250);
        self.open.clear();
    }

    /// Makes `count` changes; returns the number that were possible.
    pub(super) fn mutate(&mut self, count: usize) -> usize {
        (0..count).filter(|_| self.one().is_ok()).count()
    }

    fn one(&mut self) -> io::Result<()> {
        match self.random.random_range(0..100) {
            0..12 => self.create(),
            12..18 => self.write(true),
            18..24 => self.write(false),
            24..27 => self.truncate(),
            27..30 => self.punch(),
            30..34 => self.chmod(),
            34..37 => self.chown(),
            37..43 => self.set_attribute(),
            43..45 => self.remove_attribute(),
            45..52 => self.rename(),
            52..54 => self.exchange(),
            54..60 => self.link(),
            60..67 => self.unlink(),
            67..69 => self.remove_all(),
            69..74 => self.symlink(),
            74..78 => self.node(),
            78..82 => self.replace(),
            82..88 => self.make_directory(),
            88..91 => self.touch(),
            91..93 => self.replace_directory(),
            93..95 => self.open_and_delete(),
            95 => self.mass_create(),
            96 => self.mass_change(),
            97 => self.deep(),
            98 => self.rewrite(),
            _ => self.recreate(),
        }
    }

    /// Returns all paths in the tree, directories and others.
    fn scan(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let mut directories = vec![self.root.clone()];
        let mut others = Vec::new();
        let mut next = 0;
        while next < directories.len() {
            for entry in fs::read_dir(&directories[next])
                .into_iter()
                .flatten()
                .flatten()
            {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    directories.push(entry.path());
                } else {
                    others.push(entry.path());
                }
            }
            next += 1;
        }
        directories.sort();
        others.sort();
        (directories, others)
    }

    fn directory(&mut self) -> PathBuf {
        let directories = self.scan().0;
        directories.choose(&mut self.random).unwrap().clone()
    }

    /// Returns a directory that is not the root.
    fn inner_directory(&mut self) -> io::Result<PathBuf> {
        let directories = self.scan().0;
        chosen(directories[1..].choose(&mut self.random))
    }

    fn other(&mut self) -> io::Result<PathBuf> {
        let others = self.scan().1;
        chosen(others.choose(&mut self.random))
    }

    fn file(&mut self) -> io::Result<PathBuf> {
        let others = self.scan().1;
        let files: Vec<_> = others
            .iter()
            .filter(|path| path.symlink_metadata().is_ok_and(|data| data.is_file()))
            .collect();
        chosen(files.choose(&mut self.random).copied())
    }

    fn any(&mut self) -> io::Result<PathBuf> {
        if self.random.random_bool(0.3) {
            self.inner_directory()
        } else {
            self.other()
        }
    }

    /// Returns a free name, or sometimes one that is taken.
    fn new_path(&mut self) -> io::Result<PathBuf> {
        let directory = self.directory();
        if directory.as_os_str().len() - self.root.as_os_str().len() > PATH_BYTES_MAX {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        self.serial += 1;
        let (serial, tag) = (self.serial, self.random.random::<u16>());
        let name = match self.random.random_range(0..10) {
            0 => format!("{tag:05}").repeat(51),
            1 => format!("na\u{ef}ve\n{serial}"),
            2..5 => format!("{}", tag % 12),
            _ => format!("name-{serial}-{tag}"),
        };
        Ok(directory.join(name))
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = match self.random.random_range(0..12) {
            0 => 0,
            1 => self.random.random_range(0..3_000_000),
            2 => 4096 * self.random.random_range(1..5),
            _ => self.random.random_range(0..20_000),
        };
        let mut bytes = vec![0; len];
        self.random.fill(&mut bytes[..]);
        bytes
    }

    fn create(&mut self) -> io::Result<()> {
        let bytes = self.bytes();
        write_file(&self.new_path()?, &bytes)
    }

    /// Writes into a file, at its end or within, and sometimes restores the old time to hide the
    /// change.
    fn write(&mut self, append: bool) -> io::Result<()> {
        let path = self.file()?;
        let bytes = self.bytes();
        let data = fs::metadata(&path)?;
        let file = File::options().write(true).open(&path)?;
        if append {
            file.write_all_at(&bytes, data.len() + self.random.random_range(0..9000))?;
        } else {
            let len = usize::try_from(data.len()).unwrap().min(bytes.len());
            let start = self.random.random_range(0..=data.len() - len as u64);
            file.write_all_at(&bytes[..len], start)?;
        }
        if self.random.random_bool(0.5) {
            file.set_modified(data.modified()?)?;
        }
        if self.random.random_bool(0.1) {
            self.open.push(file);
        }
        Ok(())
    }

    fn truncate(&mut self) -> io::Result<()> {
        let path = self.file()?;
        let len = self.random.random_range(0..40_000);
        File::options().write(true).open(path)?.set_len(len)
    }

    fn punch(&mut self) -> io::Result<()> {
        let path = self.file()?;
        let data = fs::metadata(&path)?;
        let file = File::options().write(true).open(path)?;
        let mut flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if self.random.random_bool(0.7) {
            flags |= FallocateFlags::FALLOC_FL_PUNCH_HOLE;
        }
        fallocate(&file, flags, self.random.random_range(0..30_000), 9_000)?;
        file.set_modified(data.modified()?)
    }

    fn chmod(&mut self) -> io::Result<()> {
        let path = self.any()?;
        if path.is_symlink() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mode = *[0o755, 0o644, 0o4711, 0o1777, 0]
            .choose(&mut self.random)
            .unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }

    fn chown(&mut self) -> io::Result<()> {
        let path = self.any()?;
        let id = *[0, 1000, 70_000, u32::MAX - 2]
            .choose(&mut self.random)
            .unwrap();
        let (uid, gid) = (Some(Uid::from_raw(id)), Some(Gid::from_raw(id / 2)));
        Ok(fchownat(
            AT_FDCWD,
            &path,
            uid,
            gid,
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?)
    }

    fn set_attribute(&mut self) -> io::Result<()> {
        let path = self.any()?;
        let object = object(&path)?;
        let len = *[0, 3, 70, 900, 3_000].choose(&mut self.random).unwrap();
        // Some values are equal, so that blocks of attributes are shared.
        let value = vec![self.random.random_range(0..2); len];
        let number = self.random.random_range(0..4);
        let name = match self.random.random_range(0..8) {
            0 => {
                let acl = acl(self.random.random_range(0..8));
                return xattr::set(&object, c"system.posix_acl_access", &acl);
            }
            1 => "security.mark".to_owned(),
            2 => "security.selinux".to_owned(),
            3..5 => format!("trusted.{number}"),
            _ => format!("user.{}", "long".repeat(number)),
        };
        xattr::set(&object, &CString::new(name)?, &value)
    }

    fn remove_attribute(&mut self) -> io::Result<()> {
        let path = self.any()?;
        let object = object(&path)?;
        let names = xattr::list(&object)?;
        xattr::remove(&object, &chosen(names.choose(&mut self.random))?)
    }

    /// Moves an object to another name or over another object.
    fn rename(&mut self) -> io::Result<()> {
        let from = self.any()?;
        let to = if self.random.random_bool(0.3) {
            self.any()?
        } else {
            self.new_path()?
        };
        fs::rename(from, to)
    }

    fn exchange(&mut self) -> io::Result<()> {
        let (one, two) = (self.any()?, self.any()?);
        Ok(renameat2(
            AT_FDCWD,
            &one,
            AT_FDCWD,
            &two,
            RenameFlags::RENAME_EXCHANGE,
        )?)
    }

    fn link(&mut self) -> io::Result<()> {
        let from = self.other()?;
        let to = self.new_path()?;
        if self.random.random_bool(0.3) && fs::symlink_metadata(&to).is_ok_and(|d| !d.is_dir()) {
            fs::remove_file(&to)?;
        }
        fs::hard_link(from, to)
    }

    fn unlink(&mut self) -> io::Result<()> {
        fs::remove_file(self.other()?)
    }

    fn remove_all(&mut self) -> io::Result<()> {
        fs::remove_dir_all(self.inner_directory()?)
    }

    fn symlink(&mut self) -> io::Result<()> {
        let len = *[1, 30, 59, 60, 61, 400].choose(&mut self.random).unwrap();
        let letter = if self.random.random_bool(0.5) {
            "a"
        } else {
            "b"
        };
        let mut path = self.new_path()?;
        let before = path.symlink_metadata();
        // Replaces another link and gets its time, so that only the target differs.
        if let Ok(other) = self.other()
            && other.is_symlink()
            && self.random.random_bool(0.5)
        {
            path = other;
            fs::remove_file(&path)?;
        }
        symlink(letter.repeat(len), &path)?;
        if let Ok(before) = before {
            set_times(&path, before.mtime(), before.mtime_nsec())?;
        }
        Ok(())
    }

    fn node(&mut self) -> io::Result<()> {
        let kind = *[
            SFlag::S_IFCHR,
            SFlag::S_IFBLK,
            SFlag::S_IFIFO,
            SFlag::S_IFSOCK,
        ]
        .choose(&mut self.random)
        .unwrap();
        let numbers = [(0, 0), (1, 3), (8, 255), (8, 256), (300, 70_000)];
        let (major, minor) = *numbers.choose(&mut self.random).unwrap();
        let path = self.new_path()?;
        Ok(mknod(
            &path,
            kind,
            Mode::from_bits_truncate(0o644),
            makedev(major, minor),
        )?)
    }

    /// Puts a directory in place of a file, or a file in place of a directory.
    fn replace(&mut self) -> io::Result<()> {
        if self.random.random_bool(0.5) {
            let path = self.other()?;
            fs::remove_file(&path)?;
            fs::create_dir(&path)?;
            return fs::write(path.join("inside"), "x");
        }
        let path = self.inner_directory()?;
        fs::remove_dir_all(&path)?;
        fs::write(path, "was a directory")
    }

    fn make_directory(&mut self) -> io::Result<()> {
        fs::create_dir(self.new_path()?)
    }

    fn touch(&mut self) -> io::Result<()> {
        let path = self.any()?;
        let seconds = *[0, -5, 1, 1 << 31, 1 << 33, 1_700_000_000]
            .choose(&mut self.random)
            .unwrap();
        let nanoseconds = *[0, 1, 999_999_999].choose(&mut self.random).unwrap();
        set_times(&path, seconds, nanoseconds)
    }

    /// Puts a new directory in place of another, with the other's content: only the inode differs.
    fn replace_directory(&mut self) -> io::Result<()> {
        let path = self.inner_directory()?;
        self.serial += 1;
        let aside = self.root.join(format!("aside-{}", self.serial));
        fs::rename(&path, &aside)?;
        fs::create_dir(&path)?;
        for entry in fs::read_dir(&aside)? {
            let entry = entry?;
            fs::rename(entry.path(), path.join(entry.file_name()))?;
        }
        fs::remove_dir(&aside)
    }

    fn open_and_delete(&mut self) -> io::Result<()> {
        let path = self.file()?;
        let file = File::options().read(true).write(true).open(&path)?;
        fs::remove_file(path)?;
        file.write_all_at(&[1; 5000], 0)?;
        self.open.push(file);
        if self.open.len() > 5 {
            self.open.remove(0);
        }
        Ok(())
    }

    fn mass_create(&mut self) -> io::Result<()> {
        let directory = self.new_path()?;
        fs::create_dir_all(&directory)?;
        let count = self.random.random_range(MANY / 8..MANY);
        for number in 0..count {
            fs::write(
                directory.join(format!("file-with-a-name-{number}")),
                number.to_string(),
            )?;
        }
        Ok(())
    }

    /// Changes many files of the directory that has the most.
    fn mass_change(&mut self) -> io::Result<()> {
        let directories = self.scan().0;
        let size = |path: &PathBuf| fs::read_dir(path).map_or(0, Iterator::count);
        let largest = chosen(directories.iter().max_by_key(|path| size(path)))?;
        let way = self.random.random_range(0..4);
        for (number, entry) in fs::read_dir(&largest)?.enumerate() {
            let path = entry?.path();
            match way {
                0 => fs::set_permissions(&path, fs::Permissions::from_mode(0o600)),
                1 if number % 3 == 0 => fs::remove_file(&path),
                2 => write_file(&path, b"changed"),
                3 if number % 2 == 0 => fs::rename(&path, largest.join(format!("moved-{number}"))),
                _ => Ok(()),
            }
            .ok();
        }
        Ok(())
    }

    fn deep(&mut self) -> io::Result<()> {
        let mut path = self.new_path()?;
        for level in 0..20 {
            path.push(format!("level-{level}"));
        }
        fs::create_dir_all(&path)?;
        fs::write(path.join("bottom"), "deep")
    }

    /// Writes the same bytes again, with the same time, to a new file or to the old one.
    fn rewrite(&mut self) -> io::Result<()> {
        let path = self.file()?;
        let (bytes, data) = (fs::read(&path)?, fs::metadata(&path)?);
        if self.random.random_bool(0.5) {
            fs::remove_file(&path)?;
        }
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, data.permissions())?;
        fchownat(
            AT_FDCWD,
            &path,
            Some(Uid::from_raw(data.uid())),
            Some(Gid::from_raw(data.gid())),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?;
        set_times(&path, data.mtime(), data.mtime_nsec())
    }

    /// Creates the same name and kind anew, which often gets the same inode.
    fn recreate(&mut self) -> io::Result<()> {
        if self.random.random_bool(0.5) {
            let path = self.file()?;
            fs::remove_file(&path)?;
            return fs::write(path, "anew");
        }
        let path = self.inner_directory()?;
        fs::remove_dir_all(&path)?;
        fs::create_dir(&path)?;
        fs::write(path.join("1"), "anew")
    }
}

fn chosen<T: ToOwned + ?Sized>(choice: Option<&T>) -> io::Result<T::Owned> {
    choice
        .map(ToOwned::to_owned)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Writes a file, but not to a device or pipe of that name.
fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if path.symlink_metadata().is_ok_and(|data| !data.is_file()) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    fs::write(path, bytes)
}

fn object(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let root = File::open("/")?;
    let relative = path.strip_prefix("/").unwrap();
    let bytes = relative.as_os_str().as_bytes();
    Ok(beneath::open_plain(
        std::os::fd::AsFd::as_fd(&root),
        bytes,
        OFlag::O_PATH,
    )?)
}

fn set_times(path: &Path, seconds: i64, nanoseconds: i64) -> io::Result<()> {
    let time = TimeSpec::new(seconds, nanoseconds);
    let flags = UtimensatFlags::NoFollowSymlink;
    Ok(utimensat(AT_FDCWD, path, &time, &time, flags)?)
}

/// Returns an access control list with an entry for a user.
fn acl(permission: u16) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, id) in [
        (1_u16, u32::MAX),
        (2, 1000),
        (4, u32::MAX),
        (16, u32::MAX),
        (32, u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permission.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}
