//! `pool create`: makes the files of a pool, or takes devices for it.
//!
//! Nothing of what a file or device holds is changed before all of them are locked and found to fit.
//! A file is removed again only if this made it.

use super::arguments::size::Size;
use super::console::Console;
use super::failure::Usage;
use super::mirror::in_use;
use super::offline::refuse_daemon;
use super::open::{DEFAULT_POOL, Place};
use anyhow::Context;
use clap::Args;
use cowshed_daemon::request::HostPath;
use cowshed_engine::{CreateOptions, MetadataCopies, Pool};
use cowshed_format::base::{Error, MirrorError};
use cowshed_format::device::mirror::{Found, is_same_file};
use cowshed_format::device::{CreateFile, Device, MirrorDevice, NewDevice};
use cowshed_format::side::SIDES_MAX;
use serde_json::json;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::Path;
use std::sync::Arc;

/// `cowshed pool create`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cowshed pool create --size 100G\n  \
    cowshed --pool /dev/vdb pool create --size 1T")]
pub(super) struct Create {
    /// The pool's size: 100M, 10G, 1T; a file is sparse unless --preallocate
    #[arg(long)]
    pub size: Size,
    /// Allocate the whole size on the host now, so that it cannot run out later
    #[arg(long)]
    pub preallocate: bool,
    /// The size of the log [default: a sixteenth of the pool, 256K to 256M]
    #[arg(long, value_name = "SIZE")]
    pub log_size: Option<Size>,
    /// Overwrite the contents of the file or device
    #[arg(long)]
    pub force: bool,
    /// The number of copies of map nodes and of the catalogue, 1 or 2. With 2, a damaged copy is
    /// read from the other one and written anew [default: 2, or 1 in a pool under 16M]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=2))]
    pub metadata_copies: Option<u8>,
    /// Also keep the pool on this file or device; up to three of these. What cannot be read on one
    /// side is read from another, and a side that fails is left out
    #[arg(long, value_name = "PATH", value_parser = super::arguments::place::path())]
    pub mirror: Vec<HostPath>,
}

/// Creates a pool.
///
/// # Errors
/// The error of the engine or the host; a created file is removed then.
pub(super) fn create(create: &Create, place: &Place, console: &Console) -> anyhow::Result<()> {
    // Where there is no pool, no daemon has one open: then it is a service manager that listens.
    if place.pool.as_path().exists() {
        refuse_daemon(place, |_| "make another one elsewhere".to_owned())?;
    }
    let size_bytes = create_pool(create, place)?;
    let document = json!({ "path": place.pool, "size_bytes": size_bytes });
    console.result(&document, || place.pool.to_string())
}

/// Creates the pool and returns its size.
pub(super) fn create_pool(create: &Create, place: &Place) -> anyhow::Result<u64> {
    if create.mirror.len() >= SIDES_MAX {
        let most = SIDES_MAX - 1;
        return Err(Usage(format!("--mirror can be given up to {most} times")).into());
    }
    see_to_folder(place.pool.as_path()).with_context(|| format!("pool {}", place.pool))?;
    let paths: Vec<_> = [&place.pool].into_iter().chain(&create.mirror).collect();
    refuse_twice(&paths).map_err(|error| place.explain(error))?;
    let named = |path: &HostPath, error| {
        if *path == place.pool {
            return place.explain(error);
        }
        anyhow::Error::new(in_use(path.as_path(), error)).context(format!("side {path}"))
    };
    let file = CreateFile {
        preallocate: create.preallocate,
        direct: false,
        overwrite: create.force,
    };
    let taken = paths.iter().map(|path| {
        let path = path.as_path();
        refuse_foreign(path, create.force)?;
        NewDevice::take(path, create.size.0, file)
    });
    let taken = taken.zip(&paths);
    let taken: Vec<NewDevice> = taken
        .map(|(taken, path)| taken.map_err(|error| named(path, error)))
        .collect::<anyhow::Result<_>>()?;
    let options = CreateOptions {
        log_bytes: create.log_size.map(|size| size.0),
        force: create.force,
        metadata_copies: create.metadata_copies.map(|copies| match copies {
            1 => MetadataCopies::One,
            _ => MetadataCopies::Two,
        }),
    };
    let device = lay_out(&paths, &taken, &named)?;
    Pool::create(&*device, &options).map_err(|error| place.explain(error))?;
    let size_bytes = device.len_bytes();
    drop(device);
    taken.into_iter().for_each(NewDevice::keep);
    Ok(size_bytes)
}

/// Refuses a file or device that is named twice.
fn refuse_twice(paths: &[&HostPath]) -> Result<(), Error> {
    for (index, path) in paths.iter().enumerate() {
        let is_same =
            |other: &&HostPath| *other == *path || is_same_file(other.as_path(), path.as_path());
        if paths[..index].iter().any(is_same) {
            let path = path.as_path().to_owned();
            return Err(MirrorError::AlreadySide { path }.into());
        }
    }
    Ok(())
}

/// Gives the files their length, and returns the device of the pool.
fn lay_out(
    paths: &[&HostPath],
    taken: &[NewDevice],
    named: &dyn Fn(&HostPath, Error) -> anyhow::Error,
) -> anyhow::Result<Box<dyn Device>> {
    let mut found = Vec::new();
    for (path, taken) in paths.iter().zip(taken) {
        let device = taken.lay_out().map_err(|error| named(path, error))?;
        if paths.len() == 1 {
            return Ok(Box::new(device));
        }
        found.push(Found {
            path: path.as_path().to_owned(),
            device: Arc::new(device),
        });
    }
    let mirror = MirrorDevice::new(found);
    Ok(Box::new(mirror.map_err(|error| named(paths[0], error))?))
}

/// Creates the folder of the superuser's default pool. Any other folder must exist: if it does not,
/// its name is probably wrong.
fn see_to_folder(path: &Path) -> anyhow::Result<()> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    if path == Path::new(DEFAULT_POOL) {
        let mut make = fs::DirBuilder::new();
        return Ok(make.recursive(true).mode(0o700).create(folder)?);
    }
    if let Err(error) = fs::metadata(folder)
        && error.kind() == io::ErrorKind::NotFound
    {
        let folder = folder.display();
        anyhow::bail!(
            "the directory {folder} does not exist; create it first, or correct the path"
        );
    }
    Ok(())
}

/// Returns an error for a non-empty file without `force`, before anything examines or truncates the
/// file.
fn refuse_foreign(path: &Path, force: bool) -> Result<(), Error> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() > 0 && !force => {
            Err(Error::DeviceNotEmpty { found: "data" })
        }
        Ok(found) if !found.is_file() && !found.file_type().is_block_device() => {
            let source = io::Error::other("it is neither a file nor a block device");
            Err(Error::io("create the pool", source))
        }
        _ => Ok(()),
    }
}
