//! The users that keep a device or a mount busy, found in `/proc` and sysfs.
//!
//! Read only after an operation failed with "busy": walking all processes takes milliseconds. Users
//! in another mount namespace, and processes that end meanwhile, may be missing.

use cowshed_sys::loop_device::{self, LoopDevice};
use cowshed_sys::mount::{self, MountEntry};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The maximum number of users that a message names.
const NAMED_MAX: usize = 8;

/// One user of a device or mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A mount of the device at this path.
    Mount(PathBuf),
    /// A block device on top of the device.
    Device(PathBuf),
    /// A process that has it open, or works in it.
    Process {
        /// The process's id.
        pid: u32,
        /// Its command name.
        name: String,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(path) => write!(f, "the mount at {}", path.display()),
            Self::Device(path) => write!(f, "the device {}", path.display()),
            Self::Process { pid, name } => write!(f, "process {pid} ({name})"),
        }
    }
}

/// The users that were found; perhaps none, perhaps not all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders(pub Vec<Holder>);

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("a process outside of this mount namespace");
        }
        for (index, holder) in self.0.iter().enumerate() {
            match index {
                0 => holder.fmt(f)?,
                NAMED_MAX => return f.write_str(" and more"),
                _ => write!(f, ", {holder}")?,
            }
        }
        Ok(())
    }
}

impl Holders {
    /// Returns the mounts of the device.
    pub(super) fn mounts_of(device: LoopDevice) -> Self {
        let numbers = device.device_numbers().ok();
        // Some file systems report a device number of their own instead of their device's.
        let uses = |entry: &MountEntry| {
            numbers == Some((entry.major, entry.minor)) || device.has_node(Path::new(&entry.source))
        };
        let mounts = mount::mounts().unwrap_or_default().into_iter().filter(uses);
        Self(
            mounts
                .map(|entry| Holder::Mount(entry.mount_point))
                .collect(),
        )
    }

    /// Returns all users of the loop device.
    pub(super) fn of_device(device: LoopDevice) -> Self {
        let mut found = Self::mounts_of(device);
        let devices = device.holders().into_iter();
        found
            .0
            .extend(devices.map(|name| Holder::Device(Path::new("/dev").join(name))));
        found.add_processes(|path| device.has_node(path));
        found
    }

    /// Returns the processes that have the file at `file` open, whose inode number is `inode`.
    pub(super) fn of_file(file: &Path, inode: u64) -> Self {
        let mut found = Self::default();
        for (device, backing) in loop_device::attached().unwrap_or_default() {
            if backing == file && device.backing_id().is_ok_and(|id| id.inode == inode) {
                found.0.push(Holder::Device(device.path()));
            }
        }
        found.add_processes(|path| path == file);
        found
    }

    /// Returns all users of the file system mounted at `dir`.
    pub(super) fn of_mount(dir: &Path) -> Self {
        let mut found = Self::default();
        let devices = loop_device::attached().unwrap_or_default().into_iter();
        let above = devices.filter(|(_, backing)| mount::lies_in(backing, dir));
        found
            .0
            .extend(above.map(|(device, _)| Holder::Device(device.path())));
        let below = mount::mounts().unwrap_or_default().into_iter();
        let below = below
            .filter(|entry| entry.mount_point != dir && mount::lies_in(&entry.mount_point, dir));
        found
            .0
            .extend(below.map(|entry| Holder::Mount(entry.mount_point)));
        found.add_processes(|path| mount::lies_in(path, dir));
        found
    }

    /// Adds the processes that have a matching path open, work in it, or have it as their root.
    fn add_processes(&mut self, uses: impl Fn(&Path) -> bool) {
        let Ok(processes) = fs::read_dir("/proc") else {
            return;
        };
        for process in processes.flatten() {
            let pid = process
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            let Some(pid) = pid else { continue };
            if process_uses(&process.path(), &uses) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                self.0.push(Holder::Process {
                    pid,
                    name: name.trim_end().to_owned(),
                });
            }
        }
    }
}

fn process_uses(process: &Path, uses: &impl Fn(&Path) -> bool) -> bool {
    let is_used = |link: PathBuf| fs::read_link(link).is_ok_and(|target| uses(&target));
    if is_used(process.join("cwd")) || is_used(process.join("root")) {
        return true;
    }
    let Ok(files) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    files.flatten().any(|file| is_used(file.path()))
}
