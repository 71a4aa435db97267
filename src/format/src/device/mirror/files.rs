//! Finding and opening the files and block devices of a mirror's sides, from any of them.
//!
//! The search starts from open files. A label of theirs has the identities of all sides, with the
//! paths where they were last. Paths are only looked at while a side is missing, and what is found
//! there counts by the identity in its own label.
//!
//! # Invariants
//! - A side that another process has, or that this one may not open, is never left out: only one
//!   that is gone, or whose device fails.
//! - A file that is opened here is not used if another file holds the same side.

use super::members::Found;
use super::side::newest_label;
use super::{Device, MirrorDevice};
use crate::base::{BLOCK_BYTES, Error, MirrorError, Result};
use crate::device::{FileDevice, FileOptions};
use crate::side::{SLOTS, SideId, SideLabel, label_places};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Maximum number of paths that are tried.
const PATHS_MAX: usize = 16;

/// Opens the pool that has the file or block device at `path`, with all its sides if it is
/// mirrored. Sides that are not there are left out.
///
/// # Errors
/// As `FileDevice::open`; `InUse` also when another process has one of the sides; `Mirror` when two
/// sides were written apart from each other, or two files hold the same side.
pub fn open_pool(path: impl AsRef<Path>, options: FileOptions) -> Result<Arc<dyn Device>> {
    let others = |path: &Path| FileDevice::open(path, options);
    open_files(first_file(path.as_ref(), options)?, others)
}

/// Returns the device of the pool that `first` belongs to; `open` opens the other sides' files.
///
/// # Errors
/// As `open_pool`.
pub fn open_files(
    first: Found,
    open: impl FnMut(&Path) -> Result<FileDevice>,
) -> Result<Arc<dyn Device>> {
    device_of(find(vec![first], false, open)?)
}

/// As `open_files`, from files that another process has opened and locked for this one. They are the
/// pool's, whatever lies at their paths by now; of two that hold the same side, the last one counts.
/// `open` opens the files of other sides.
///
/// # Errors
/// As `open_pool`; `NotAPool` without files.
pub fn open_handed_over(
    files: Vec<Found>,
    open: impl FnMut(&Path) -> Result<FileDevice>,
) -> Result<Arc<dyn Device>> {
    device_of(find(files, true, open)?)
}

fn device_of(files: Files) -> Result<Arc<dyn Device>> {
    match files {
        Files::Alone(device) => Ok(device),
        Files::Sides(found) => Ok(Arc::new(MirrorDevice::assemble(found)?)),
    }
}

fn first_file(path: &Path, options: FileOptions) -> Result<Found> {
    Ok(Found {
        device: Arc::new(FileDevice::open(path, options)?),
        path: absolute(path)?,
    })
}

/// Opens the side at `path` and the other sides that are there; it is the first one.
///
/// # Errors
/// As `open_pool`, apart from what the labels say; `NotMirrored` if it has no label.
pub fn open_sides(path: &Path, options: FileOptions) -> Result<Vec<Found>> {
    let first = vec![first_file(path, options)?];
    match find(first, false, |path| FileDevice::open(path, options))? {
        Files::Sides(found) => Ok(found),
        Files::Alone(_) => Err(MirrorError::NotMirrored.into()),
    }
}

/// The files of a pool.
enum Files {
    /// It has no mirror.
    Alone(Arc<dyn Device>),
    /// The sides that are there, the one first from which the search began.
    Sides(Vec<Found>),
}

/// A side that is there.
struct Known {
    found: Found,
    label: SideLabel,
    /// True if it may be used, whatever lies at other paths.
    is_trusted: bool,
}

/// The search for a pool's sides.
struct Search {
    sides: Vec<Known>,
    /// The identities of all files that are open.
    open: Vec<Identity>,
    tried: Vec<PathBuf>,
}

/// Finds the sides by `handed`, and by the paths in the labels for those that are not among them.
fn find(
    handed: Vec<Found>,
    is_trusted: bool,
    mut open: impl FnMut(&Path) -> Result<FileDevice>,
) -> Result<Files> {
    let mut search = Search {
        sides: Vec::new(),
        open: handed
            .iter()
            .flat_map(|found| identities(&*found.device))
            .collect(),
        tried: Vec::new(),
    };
    let mut alone = None;
    for found in handed {
        let device = Arc::clone(&found.device);
        alone = alone.or(Some(device));
        search.take_handed(found, is_trusted);
    }
    if search.sides.is_empty() {
        return alone.map(Files::Alone).ok_or(Error::NotAPool);
    }
    // First, since the other sides may be in use.
    search.refuse_copies()?;
    while let Some(path) = search.next_path() {
        search.look_at(path, &mut open)?;
    }
    search.refuse_copies()?;
    search.tell_missing();
    let sides = search.sides.into_iter();
    Ok(Files::Sides(sides.map(|known| known.found).collect()))
}

impl Search {
    fn pool(&self) -> Option<[u8; 16]> {
        self.sides.first().map(|known| known.label.pool)
    }

    fn has(&self, id: SideId) -> bool {
        self.sides.iter().any(|known| known.label.side == id)
    }

    /// Takes a file in that was open before, if it has a label of the pool.
    fn take_handed(&mut self, found: Found, is_trusted: bool) {
        let label = newest_label(&*found.device).map(|(label, _)| label);
        let label = label.filter(|label| self.pool().is_none_or(|pool| pool == label.pool));
        let Some(label) = label else {
            let path = found.path.display();
            tracing::debug!(%path, "a file has no label of the mirror");
            return;
        };
        let known = Known {
            found,
            label,
            is_trusted,
        };
        let same = |other: &&mut Known| other.label.side == known.label.side;
        match self.sides.iter_mut().find(same) {
            Some(other) => *other = known,
            None => self.sides.push(known),
        }
    }

    /// Returns a path where a side may be that is not there yet: one where it was, or else one where
    /// another side was, since devices may have changed their names.
    fn next_path(&mut self) -> Option<PathBuf> {
        if self.tried.len() >= PATHS_MAX {
            return None;
        }
        let sets = self.sides.iter().map(|known| &known.label.set);
        let (mut wanted, mut others) = (Vec::new(), Vec::new());
        for entry in sets.flat_map(|set| &set.sides) {
            let known = self.sides.iter().find(|it| it.label.side == entry.id);
            match known {
                None => wanted.push(path_of(&entry.path)),
                Some(known) if !known.is_trusted => others.push(path_of(&entry.path)),
                Some(_) => {}
            }
        }
        if wanted.is_empty() {
            return None;
        }
        wanted.append(&mut others);
        let path = { wanted.into_iter() }.find(|path| !self.tried.contains(path))?;
        self.tried.push(path.clone());
        Some(path)
    }

    /// Opens what is at `path`, and takes it in if it is a side of the pool.
    fn look_at(
        &mut self,
        path: PathBuf,
        open: &mut impl FnMut(&Path) -> Result<FileDevice>,
    ) -> Result<()> {
        let opened = fs::metadata(&path)
            .map_err(|source| Error::io("open a side", source))
            .and_then(|metadata| {
                // The file may be open here, without a label.
                let is_new = !self.open.contains(&Identity::of(&metadata));
                is_new.then(|| open(&path)).transpose()
            });
        let device = match opened {
            Ok(Some(device)) => device,
            Ok(None) => return Ok(()),
            Err(error) if is_gone(&error) => {
                tracing::debug!(path = %path.display(), %error, "a side is not there");
                return Ok(());
            }
            Err(Error::InUse) => return Err(Error::InUse),
            Err(error) => {
                let why = match error {
                    Error::Io { source, .. } => source.to_string(),
                    error => error.to_string(),
                };
                return Err(MirrorError::NotOpened { path, why }.into());
            }
        };
        self.open.extend(identities(&device));
        let label = newest_label(&device).map(|(label, _)| label);
        let Some(label) = label.filter(|label| Some(label.pool) == self.pool()) else {
            return Ok(());
        };
        let same = |known: &&Known| known.label.side == label.side;
        if let Some(known) = self.sides.iter().find(same) {
            return if known.is_trusted {
                Ok(())
            } else {
                Err(copies(&known.found.path, &path))
            };
        }
        let device = Arc::new(device);
        self.sides.push(Known {
            found: Found { path, device },
            label,
            is_trusted: false,
        });
        Ok(())
    }

    /// Refuses a side if another file holds the same one, at a path where that side was before. The
    /// other file may be in use: it is not locked.
    fn refuse_copies(&self) -> Result<()> {
        for known in self.sides.iter().filter(|known| !known.is_trusted) {
            let own = identities(&*known.found.device);
            let labels = self.sides.iter().map(|other| &other.label);
            let paths = labels.filter_map(|label| label.set.entry(known.label.side));
            for path in paths.map(|entry| path_of(&entry.path)) {
                let found = fs::metadata(&path).ok();
                let is_other = found.is_some_and(|found| !own.contains(&Identity::of(&found)));
                let is_same = |label: SideLabel| {
                    (label.pool, label.side) == (known.label.pool, known.label.side)
                };
                if is_other && peek(&path).is_some_and(is_same) {
                    return Err(copies(&known.found.path, &path));
                }
            }
        }
        Ok(())
    }

    fn tell_missing(&self) {
        let sets = self.sides.iter().map(|known| &known.label.set);
        let Some(newest) = sets.max_by_key(|set| set.epoch.number) else {
            return;
        };
        for entry in newest.sides.iter().filter(|entry| !self.has(entry.id)) {
            let path = path_of(&entry.path);
            tracing::warn!(path = %path.display(), "a side of the mirror is not there");
        }
    }
}

fn copies(first: &Path, second: &Path) -> Error {
    let (first, second) = (first.to_owned(), second.to_owned());
    MirrorError::Copies { first, second }.into()
}

/// Returns the newest label at `path`, without locking the file.
fn peek(path: &Path) -> Option<SideLabel> {
    let kind = fs::metadata(path).ok()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return None;
    }
    let file = File::open(path).ok()?;
    let read = |place: crate::base::BlockAddr| {
        let mut bytes = vec![0; BLOCK_BYTES];
        file.read_exact_at(&mut bytes, place.offset_bytes()).ok()?;
        SideLabel::decode(&bytes)
    };
    let labels = (0..SLOTS).flat_map(label_places).filter_map(read);
    labels.max_by_key(|label| label.set.epoch.number)
}

/// Returns true for the error of a file or device that is gone, or that fails: the mirror can do
/// without it. Any other error may be over when the pool is opened again.
#[must_use]
pub fn is_gone(error: &Error) -> bool {
    let Error::Io { source, .. } = error else {
        return false;
    };
    match source.raw_os_error() {
        Some(errno) => matches!(
            errno,
            libc::ENOENT
                | libc::ENOTDIR
                | libc::ENXIO
                | libc::ENODEV
                | libc::ENOMEDIUM
                | libc::EIO
                | libc::EREMOTEIO
                | libc::ENODATA
                | libc::EILSEQ
                | libc::ESTALE
                | libc::ENOTCONN
                | libc::ETIMEDOUT
        ),
        // Something else than a file or block device has its place.
        None => source.kind() == io::ErrorKind::InvalidInput,
    }
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// Returns true if both paths lead to the same file or device.
#[must_use]
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|found| Identity::of(&found));
    identity(one).is_some_and(|found| identity(other) == Some(found))
}

/// A file, by its number, or a device, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, u64);

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        match metadata.rdev() {
            0 => Self(metadata.dev(), metadata.ino()),
            device => Self(0, device),
        }
    }
}

/// Returns what an open device is on.
fn identities(device: &dyn Device) -> Vec<Identity> {
    let of = |file: BorrowedFd<'_>| {
        let file = File::from(file.as_fd().try_clone_to_owned().ok()?);
        file.metadata().ok().map(|found| Identity::of(&found))
    };
    let files = device.descriptors().into_iter();
    files.filter_map(of).collect()
}

/// Returns the path from the root.
///
/// # Errors
/// `Io` when the current directory is not known.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|source| Error::io("open the pool", source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::CreateFile;
    use crate::device::mirror::Side;
    use std::os::unix::fs::symlink;

    const LEN_BYTES: u64 = 64 << 10;

    /// A mirror of three files in a folder.
    struct Three {
        folder: tempfile::TempDir,
    }

    impl Three {
        fn new() -> Self {
            let three = Self {
                folder: tempfile::tempdir().unwrap(),
            };
            let found = ["a", "b", "c"].map(|name| {
                let path = three.path(name);
                let device = FileDevice::create(&path, LEN_BYTES, CreateFile::default());
                let device = Arc::new(device.unwrap());
                Found { path, device }
            });
            let mirror = MirrorDevice::new(found.into()).unwrap();
            mirror.name_pool([7; 16]).unwrap();
            three
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn rename(&self, from: &str, to: &str) {
            fs::rename(self.path(from), self.path(to)).unwrap();
        }

        /// Opens a file as another process would hand it over.
        fn handed(&self, name: &str) -> Found {
            let device = FileDevice::open(self.path(name), FileOptions::default());
            Found {
                device: Arc::new(device.unwrap()),
                path: self.path(name),
            }
        }

        fn open(&self, name: &str) -> Result<Vec<String>> {
            open_pool(self.path(name), FileOptions::default()).map(|device| names(&*device))
        }
    }

    /// Returns the names of the files that are open as sides.
    fn names(device: &dyn Device) -> Vec<String> {
        let sides = device.mirror().expect("a mirror").open_sides();
        let name = |side: &Arc<Side>| side.path().file_name().unwrap().to_owned();
        let names = sides.iter().map(|side| name(side).into_string().unwrap());
        names.collect()
    }

    fn wipe(device: &dyn Device) {
        device.write_at(&vec![0; 6 * BLOCK_BYTES], 0).unwrap();
    }

    fn open(path: &Path) -> Result<FileDevice> {
        FileDevice::open(path, FileOptions::default())
    }

    #[test]
    fn sides_are_known_by_their_labels_whatever_their_names() {
        let three = Three::new();
        three.rename("a", "x");
        three.rename("b", "a");
        three.rename("c", "b");
        assert_eq!(three.open("x").unwrap(), ["x", "b", "a"]);
        three.rename("b", "away");
        assert_eq!(three.open("x").unwrap(), ["x", "a"]);
        three.rename("x", "b");
        assert_eq!(three.open("b").unwrap(), ["b", "a"]);
    }

    #[test]
    fn files_that_were_handed_over_are_used_whatever_is_at_their_paths() {
        let three = Three::new();
        let handed = || vec![three.handed("a"), three.handed("b")];
        let files = handed();
        // One is a copy of another side now, and one is gone.
        fs::copy(three.path("c"), three.path("copy")).unwrap();
        three.rename("copy", "a");
        fs::remove_file(three.path("b")).unwrap();
        let opened = open_handed_over(files, open).unwrap();
        assert_eq!(names(&*opened), ["a", "b", "c"]);
    }

    #[test]
    fn the_first_file_may_have_lost_its_label() {
        let three = Three::new();
        let files = vec![three.handed("a"), three.handed("b")];
        wipe(&*files[0].device);
        let opened = open_handed_over(files, open).unwrap();
        assert_eq!(names(&*opened), ["b", "c"]);
        drop(opened);
        let alone = open_handed_over(vec![three.handed("a")], open).unwrap();
        assert!(alone.mirror().is_none());
        drop(alone);
        assert!(matches!(
            open_handed_over(Vec::new(), open),
            Err(Error::NotAPool)
        ));
    }

    #[test]
    fn a_copy_of_a_side_is_refused_and_both_paths_are_told() {
        let three = Three::new();
        fs::copy(three.path("a"), three.path("backup")).unwrap();
        let expect_refusal = |name: &str| {
            let Err(Error::Mirror(MirrorError::Copies { first, second })) = three.open(name) else {
                panic!("the copy was opened");
            };
            assert_eq!((first, second), (three.path("backup"), three.path("a")));
        };
        expect_refusal("backup");
        assert_eq!(three.open("a").unwrap(), ["a", "b", "c"]);
        // Also while another process has the pool open.
        let live = three.handed("a");
        let Err(error) = three.open("b") else {
            panic!("it is in use");
        };
        assert!(matches!(error, Error::InUse));
        expect_refusal("backup");
        let other = three.handed("b");
        expect_refusal("backup");
        drop((live, other));
        // In place of the side, it is the side.
        three.rename("a", "away");
        assert_eq!(three.open("backup").unwrap(), ["backup", "b", "c"]);
    }

    #[test]
    fn only_a_side_that_is_gone_is_left_out() {
        let three = Three::new();
        three.rename("b", "away");
        fs::create_dir(three.path("b")).unwrap();
        assert_eq!(three.open("a").unwrap(), ["a", "c"]);
        fs::remove_dir(three.path("b")).unwrap();
        symlink(three.path("b"), three.path("b")).unwrap();
        let Err(Error::Mirror(MirrorError::NotOpened { path, .. })) = three.open("a") else {
            panic!("a side was left out");
        };
        assert_eq!(path, three.path("b"));
        for (errno, gone) in [
            (libc::ENOENT, true),
            (libc::ENXIO, true),
            (libc::EIO, true),
            (libc::EACCES, false),
            (libc::EMFILE, false),
            (libc::ENOMEM, false),
        ] {
            let error = Error::io("open", io::Error::from_raw_os_error(errno));
            assert_eq!(is_gone(&error), gone, "{error}");
        }
        assert!(!is_gone(&Error::InUse));
    }
}
