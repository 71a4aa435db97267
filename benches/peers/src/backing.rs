//! The storage of subjects: a folder, or a block device that temporarily gets a file system.

use crate::guards::{Folder, Mounted};
use crate::host::{run, text};
use crate::results::BackingRecord;
use anyhow::{Context, bail};
use nix::sys::statvfs::statvfs;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

const MEMORY: &str = "/dev/shm";

/// A folder for subjects. The folder is dropped first, then the mount, then its device.
pub(crate) struct Backing {
    folder: Folder,
    _mounted: Option<Mounted>,
    _point: Option<Folder>,
    _device: Option<Formatted>,
    pub(crate) record: BackingRecord,
    pub(crate) in_memory: bool,
}

impl Backing {
    /// Returns the named ones, or memory and disk.
    pub(crate) fn all(named: &[PathBuf], disk: &Path) -> anyhow::Result<Vec<Self>> {
        if !named.is_empty() {
            let mut all: Vec<Self> = Vec::new();
            for path in named {
                let mut backing = Self::at(path)?;
                if all.iter().any(|other| other.name() == backing.name()) {
                    let record = &mut backing.record;
                    record.name = format!("{} {}", record.name, record.path);
                }
                all.push(backing);
            }
            return Ok(all);
        }
        let memory = Path::new(MEMORY);
        let mut all = Vec::new();
        if file_system(memory).is_ok_and(|name| name == "tmpfs") {
            all.push(Self::at(memory)?);
        }
        all.push(Self::at(disk)?);
        Ok(all)
    }

    fn at(path: &Path) -> anyhow::Result<Self> {
        let path = fs::canonicalize(path)
            .with_context(|| format!("use {} as a backing", path.display()))?;
        let about = fs::metadata(&path)?;
        if about.file_type().is_block_device() {
            return Self::on_device(&path);
        }
        if !about.is_dir() {
            bail!(
                "{} is neither a folder nor a block device: name one of these",
                path.display()
            );
        }
        let folder = Folder::new_in(&path)?;
        let file_system = file_system(&path)?;
        Ok(Self {
            in_memory: file_system == "tmpfs",
            record: record(&file_system, &path),
            folder,
            _mounted: None,
            _point: None,
            _device: None,
        })
    }

    fn on_device(path: &Path) -> anyhow::Result<Self> {
        let device = Formatted::new(path)?;
        let point = Folder::new_in(&std::env::temp_dir())?;
        let mounted = Mounted::new(&[], path, point.path())?;
        let folder = Folder::new_in(mounted.path())?;
        Ok(Self {
            folder,
            _mounted: Some(mounted),
            _point: Some(point),
            _device: Some(device),
            record: record("ext4", path),
            in_memory: false,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.record.name
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the free space.
    pub(crate) fn free_bytes(&self) -> anyhow::Result<u64> {
        let about = statvfs(self.path())?;
        Ok(about.blocks_available() * about.fragment_size())
    }
}

fn record(file_system: &str, path: &Path) -> BackingRecord {
    let name = match file_system {
        "tmpfs" => "memory (tmpfs)".into(),
        other => format!("disk ({other})"),
    };
    BackingRecord {
        name,
        file_system: file_system.into(),
        path: path.display().to_string(),
    }
}

/// Returns the type of the file system that contains `path`.
fn file_system(path: &Path) -> anyhow::Result<String> {
    let words = ["--noheadings", "--output=FSTYPE", "--target"];
    let ran = run("findmnt", words.iter().chain(&[text(path)?]))?;
    let name = ran.output.lines().last().unwrap_or_default().trim();
    Ok(name.to_owned())
}

/// A device that was empty, now has an ext4, and will be made empty again.
struct Formatted(PathBuf);

impl Formatted {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let found = run("wipefs", ["--noheadings", text(path)?])?.output;
        if !found.trim().is_empty() {
            bail!(
                "{} holds something ({}): wipe it yourself if it may be overwritten",
                path.display(),
                found.split_whitespace().nth(2).unwrap_or("unknown")
            );
        }
        // mke2fs refuses a device in use.
        run(
            "mke2fs",
            ["-q", "-t", "ext4", "-E", "nodiscard", text(path)?],
        )?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Formatted {
    fn drop(&mut self) {
        let mut wipe = crate::host::command("wipefs", ["--all", "--quiet"]);
        wipe.arg(&self.0);
        if let Err(error) = crate::host::tidy(wipe) {
            eprintln!("left behind: {error:#}");
        }
    }
}
