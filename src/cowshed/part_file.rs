//! A file that appears under its name only once it is complete.

use super::streams::Output;
use anyhow::Context;
use cowshed_format::base::Cancel;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Lets `fill` write the file at `path`, and passes it whether holes can be left in the file. A
/// regular file is replaced as a whole; a device is written in place; so is a FIFO, once a reader
/// has opened it.
///
/// # Errors
/// The error of `fill` or the host; then no new file is left behind.
pub(super) fn write_file<T>(
    path: &Path,
    cancel: &Cancel,
    fill: impl FnOnce(&File, bool) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => anyhow::bail!("it is a directory; give a file in it"),
        Ok(found) if !found.is_file() => {
            let file = Output::open(path, cancel)?;
            if file.metadata()?.is_file() {
                anyhow::bail!("it was replaced by a regular file just now; try again");
            }
            let filled = fill(&file, false)?;
            match file.sync_all() {
                Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error.into()),
                _ => Ok(filled),
            }
        }
        // The target of a symbolic link is replaced, not the link.
        Ok(_) => PartFile::beside(&fs::canonicalize(path)?)?.fill(|file| fill(file, true)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            PartFile::beside(path)?.fill(|file| fill(file, true))
        }
        Err(error) => Err(error.into()),
    }
}

/// A file beside the target that it will replace; it is removed unless it does.
struct PartFile {
    file: File,
    part: PathBuf,
    target: PathBuf,
    renamed: bool,
}

impl PartFile {
    /// Creates a file beside `target`.
    ///
    /// # Errors
    /// The host's error.
    fn beside(target: &Path) -> anyhow::Result<Self> {
        let name = target.file_name().context("it has no file name")?;
        let mut part_name = OsString::from(".");
        part_name.push(name);
        part_name.push(format!(".{:016x}.part", rand::random::<u64>()));
        let part = target.with_file_name(part_name);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&part)?;
        Ok(Self {
            file,
            part,
            target: target.to_owned(),
            renamed: false,
        })
    }

    /// Fills the file, makes it durable and renames it to the target.
    ///
    /// # Errors
    /// The error of `fill` or the host; then nothing is left behind.
    fn fill<T>(mut self, fill: impl FnOnce(&File) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let filled = fill(&self.file)?;
        self.file.sync_all()?;
        fs::rename(&self.part, &self.target)?;
        self.renamed = true;
        // Without this, a power cut could leave the old file, or no file.
        sync_folder(&self.target)?;
        Ok(filled)
    }
}

/// Makes the name `path` durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match File::open(folder)?.sync_all() {
        // This file system cannot sync folders.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        synced => synced,
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.renamed {
            // The command's own error is reported; a failure to remove the file adds nothing to it.
            let _ = fs::remove_file(&self.part);
        }
    }
}
