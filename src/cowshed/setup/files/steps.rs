//! The steps of a change of a file: each is whole or not done, and durable when it returns.

use cowshed_sys::xattr;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A step.
#[derive(Debug)]
pub(super) enum Step {
    /// Gives a file a second name.
    Keep {
        from: PathBuf,
        to: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Write {
        to: PathBuf,
        text: String,
        like: Option<Metadata>,
    },
    Remove {
        file: PathBuf,
    },
    Link {
        at: PathBuf,
        to: PathBuf,
    },
}

impl Step {
    /// Takes the step.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn take(&self) -> io::Result<()> {
        let changed = match self {
            Self::Keep { from, to } => {
                keep(from, to)?;
                to
            }
            Self::Rename { from, to } => {
                fs::rename(from, to)?;
                to
            }
            Self::Write { to, text, like } => {
                write(to, text, like.as_ref().map(|like| (to.as_path(), like)))?;
                to
            }
            Self::Remove { file } => {
                fs::remove_file(file)?;
                remove_empty_folder(file);
                return Ok(());
            }
            Self::Link { at, to } => {
                make_folder(at)?;
                std::os::unix::fs::symlink(to, at)?;
                at
            }
        };
        sync_folder(changed)
    }
}

/// Returns the path with something added to its last name.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Gives the file a second name; where its file system has none, makes a copy.
fn keep(from: &Path, to: &Path) -> io::Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let metadata = fs::metadata(from)?;
    write(to, &fs::read_to_string(from)?, Some((from, &metadata)))
}

/// Writes the file beside its place and renames it, with the owner, mode and attributes of `like`.
fn write(place: &Path, text: &str, like: Option<(&Path, &Metadata)>) -> io::Result<()> {
    const USUAL_MODE: u32 = 0o644;
    make_folder(place)?;
    let beside = with_suffix(place, &format!(".cowshed-{}", std::process::id()));
    let mode = like.map_or(USUAL_MODE, |(_, like)| like.mode() & 0o7777);
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            let own = file.metadata()?;
            if let Some((_, like)) = like
                && (like.uid(), like.gid()) != (own.uid(), own.gid())
            {
                std::os::unix::fs::fchown(&file, Some(like.uid()), Some(like.gid()))?;
            }
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            if let Some((like, _)) = like {
                copy_attributes(like, &file);
            }
            file.sync_all()?;
            fs::rename(&beside, place)
        });
    if written.is_err() {
        // It is not in use by anybody.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Gives a file the attributes of another one: its label and access list. What the file system
/// refuses, it does not have.
fn copy_attributes(from: &Path, to: &File) {
    let Ok(from) = File::open(from) else { return };
    for name in xattr::list(&from).unwrap_or_default() {
        if let Ok(value) = xattr::get(&from, &name) {
            let _ = xattr::set(to, &name, &value);
        }
    }
}

/// Creates the folder of a file, and those above it, so that a power cut does not lose them.
fn make_folder(place: &Path) -> io::Result<()> {
    let Some(folder) = place.parent().filter(|it| !it.as_os_str().is_empty()) else {
        return Ok(());
    };
    if folder.is_dir() {
        return Ok(());
    }
    make_folder(folder)?;
    match fs::DirBuilder::new().mode(0o755).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| sync_folder(folder)),
    }
}

fn sync_folder(place: &Path) -> io::Result<()> {
    place
        .parent()
        .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Removes the folder of drop-ins or links of a unit that is empty now: it means nothing.
fn remove_empty_folder(file: &Path) {
    let Some(folder) = file.parent() else { return };
    let kind = folder.extension().and_then(OsStr::to_str);
    if matches!(kind, Some("d" | "wants")) {
        // One that is not empty stays.
        let _ = fs::remove_dir(folder);
    }
}
