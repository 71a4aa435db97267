//! The file or device that is to become a side: opened, checked, and removed again if it was made for
//! a request that is refused.

use cowshed_daemon::SideFiles;
use cowshed_engine::{NewSide, Pool, refuse_unless_empty, uuid_of};
use cowshed_format::base::{Error, MirrorError, Result};
use cowshed_format::device::mirror::newest_label;
use cowshed_format::device::{CreateFile, Device, FileDevice, FileOptions, NewDevice};
use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::Path;

/// The properties of the pool that a side must fit.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pool: [u8; 16],
    /// True if it overwrites what the file or device holds.
    force: bool,
    /// True to read and write it past the host's page cache.
    direct: bool,
    /// True in a daemon.
    is_daemon: bool,
}

impl Wanted {
    /// Returns what `pool` wants.
    pub(super) fn by(pool: &Pool, force: bool, is_daemon: bool) -> Self {
        Self {
            pool: pool.uuid(),
            force,
            direct: pool.is_direct(),
            is_daemon,
        }
    }

    /// Returns true in a daemon.
    pub(super) const fn is_daemon(&self) -> bool {
        self.is_daemon
    }
}

/// A file that was made to become a side.
#[derive(Default)]
pub(super) struct Made(RefCell<Option<NewDevice>>);

impl Made {
    /// Lets the file stay if it is a side of the pool now; removes it otherwise.
    pub(super) fn settle(self, pool: &Pool, path: &Path) {
        let sides = pool.sides().unwrap_or_default();
        if let Some(made) = self.0.into_inner()
            && sides.iter().any(|side| side.path == path)
        {
            made.keep();
        }
    }
}

/// Returns the request for a new side at `path`.
pub(super) fn new_side<'a>(
    path: &Path,
    wanted: Wanted,
    made: &'a Made,
    files: &'a SideFiles<'a>,
) -> NewSide<'a> {
    let file = path.to_owned();
    NewSide {
        path: path.to_owned(),
        open: Box::new(move |pool_bytes| {
            // Only now is it certain that it lacks something.
            files.joins(&file);
            let device = open(&file, pool_bytes, wanted, made)?;
            Ok(files.open(&file, device))
        }),
        force: wanted.force,
    }
}

/// Opens the file or block device at `path` to become a side; a file that is not there or empty gets
/// the pool's size.
fn open(path: &Path, pool_bytes: u64, wanted: Wanted, made: &Made) -> Result<FileDevice> {
    let device = open_file(path, pool_bytes, wanted, made)?;
    refuse_other_pool(&device, path, wanted)?;
    Ok(device)
}

fn open_file(path: &Path, pool_bytes: u64, wanted: Wanted, made: &Made) -> Result<FileDevice> {
    if is_new(path)? {
        let create = CreateFile {
            direct: wanted.direct,
            ..CreateFile::default()
        };
        let new = NewDevice::take(path, pool_bytes, create);
        let new = new.map_err(|error| of_side(path, error))?;
        let device = new.lay_out().map_err(|error| of_side(path, error))?;
        *made.0.borrow_mut() = Some(new);
        return Ok(device);
    }
    let options = FileOptions {
        direct: wanted.direct,
        read_only: false,
    };
    FileDevice::open(path, options).map_err(|error| of_side(path, error))
}

/// Returns true for a file that is not there or empty.
fn is_new(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(found) => Ok(found.is_file() && found.len() == 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(Error::io("look at the new side", source)),
    }
}

/// Says that it is the new side which cannot be opened or made, and not the pool.
fn of_side(path: &Path, error: Error) -> Error {
    match in_use(path, error) {
        Error::Io { source, .. } => Error::io("make it a side", source),
        error => error,
    }
}

/// Says which file or device is in use.
pub(in super::super) fn in_use(path: &Path, error: Error) -> Error {
    match error {
        Error::InUse => {
            let path = path.to_owned();
            MirrorError::SideInUse { path }.into()
        }
        error => error,
    }
}

fn refuse_other_pool(device: &dyn Device, path: &Path, wanted: Wanted) -> Result<()> {
    let of_label = newest_label(device).map(|(label, _)| label.pool);
    let found = of_label.or_else(|| uuid_of(device).ok());
    if !wanted.force && found.is_some_and(|found| found != wanted.pool) {
        let path = path.to_owned();
        return Err(MirrorError::OtherPool { path }.into());
    }
    Ok(())
}

/// Refuses a file or device that cannot become a side of the pool, which has no mirror. Nothing is
/// changed or left.
pub(super) fn refuse(path: &Path, pool_bytes: u64, wanted: Wanted) -> Result<()> {
    if is_new(path)? {
        // It is removed at once if it was made now.
        let new = NewDevice::take(path, pool_bytes, CreateFile::default());
        return new.map(drop).map_err(|error| of_side(path, error));
    }
    let made = Made::default();
    let device = open_file(path, pool_bytes, wanted, &made)?;
    let device_bytes = device.len_bytes();
    if device_bytes < pool_bytes {
        let path = path.to_owned();
        return Err(MirrorError::TooSmall {
            path,
            device_bytes,
            pool_bytes,
        }
        .into());
    }
    refuse_other_pool(&device, path, wanted)?;
    if wanted.force {
        return Ok(());
    }
    refuse_unless_empty(&device, device_bytes)
}
