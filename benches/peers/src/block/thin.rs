//! Thin volumes of the kernel or of ZFS, on a loop device on a file of the backing.
//!
//! Names of volume groups and ZFS pools are global to the host, so they contain this process's
//! number.

use super::{Peer, Place, Subject};
use crate::fio::Target;
use crate::guards::{Folder, LoopDevice, eventually};
use crate::host::{self, Ran, command, run, text, tidy};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const VOLUME: &str = "disk";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lvm,
    Zfs,
}

pub(crate) struct Thin(Kind);

impl Thin {
    pub(crate) fn lvm() -> Self {
        Self(Kind::Lvm)
    }

    pub(crate) fn zfs() -> Self {
        Self(Kind::Zfs)
    }
}

impl Peer for Thin {
    fn name(&self) -> &str {
        match self.0 {
            Kind::Lvm => "LVM thin",
            Kind::Zfs => "ZFS zvol",
        }
    }

    fn what(&self) -> String {
        match self.0 {
            Kind::Lvm => "a thin volume of LVM (chunks of 64 KiB) on a loop device past the host's page cache".into(),
            Kind::Zfs => "a sparse volume of ZFS (blocks of 4 KiB) on a loop device past the host's page cache".into(),
        }
    }

    fn missing(&self) -> Option<String> {
        match self.0 {
            Kind::Lvm => {
                let needed = [
                    ("lvcreate", "lvm2"),
                    ("thin_check", "thin-provisioning-tools"),
                ];
                missing_module("dm_thin_pool", "/sys/module/dm_thin_pool")
                    .or_else(|| host::missing_programs(&needed))
            }
            Kind::Zfs => missing_module("zfs", "/sys/module/zfs")
                .or_else(|| host::missing_programs(&[("zpool", "zfsutils-linux")])),
        }
    }

    fn has_snapshots(&self) -> bool {
        true
    }

    fn prepare(&self, place: &Place) -> anyhow::Result<Box<dyn Subject>> {
        let folder = Folder::at(place.folder.join(place.name))?;
        let file = folder.join("thin");
        File::create(&file)?.set_len(place.size_bytes * 3 + (1 << 30))?;
        let device = LoopDevice::attach(&file, true)?;
        let group = Group::new(self.0, device.path(), place)?;
        let path = group.path();
        eventually("the volume's device", || Ok(path.exists()))?;
        Ok(Box::new(Volume {
            target: Target::Device(path),
            group,
            _device: device,
            file,
            _folder: folder,
        }))
    }
}

fn missing_module(name: &str, sign: &str) -> Option<String> {
    let there = || {
        Path::new(sign).exists()
            || fs::read_to_string("/proc/modules")
                .unwrap_or_default()
                .lines()
                .any(|line| line.starts_with(name))
    };
    if !there() {
        // A kernel without modules refuses, which is an answer too.
        let _ = tidy(command("modprobe", [name]));
    }
    (!there()).then(|| format!("this kernel has no {name}"))
}

/// A volume group, or a ZFS pool.
struct Group {
    kind: Kind,
    name: String,
}

impl Group {
    fn new(kind: Kind, device: &Path, place: &Place) -> anyhow::Result<Self> {
        let word: String = place
            .name
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect();
        let group = Self {
            kind,
            name: format!("cowshedbench{}{word}", std::process::id()),
        };
        let (name, device) = (group.name.as_str(), text(device)?);
        let size = format!("{}b", place.size_bytes);
        match kind {
            Kind::Lvm => {
                run("vgcreate", ["--quiet", name, device])?;
                let pool = format!("{name}/pool");
                let words = ["--quiet", "--type=thin-pool", "--chunksize=64k"];
                run(
                    "lvcreate",
                    words
                        .iter()
                        .chain(&["--extents=90%FREE", "--name=pool", name]),
                )?;
                let words = ["--quiet", "--virtualsize", &size, "--thinpool", &pool];
                run("lvcreate", words.iter().chain(&["--name", VOLUME]))?;
            }
            Kind::Zfs => {
                run(
                    "zpool",
                    ["create", "-o", "ashift=12", "-m", "none", name, device],
                )?;
                let volume = format!("{name}/{VOLUME}");
                let size = place.size_bytes.to_string();
                run("zfs", ["create", "-s", "-b", "4096", "-V", &size, &volume])?;
            }
        }
        Ok(group)
    }

    fn path(&self) -> PathBuf {
        match self.kind {
            Kind::Lvm => Path::new("/dev").join(&self.name).join(VOLUME),
            Kind::Zfs => Path::new("/dev/zvol").join(&self.name).join(VOLUME),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let (program, words) = match self.kind {
            Kind::Lvm => ("vgremove", ["--force", "--force"]),
            Kind::Zfs => ("zpool", ["destroy", "-f"]),
        };
        let mut remove = command(program, words);
        remove.arg(&self.name);
        if let Err(error) = tidy(remove) {
            eprintln!("left behind: {error:#}");
        }
    }
}

struct Volume {
    target: Target,
    group: Group,
    _device: LoopDevice,
    file: PathBuf,
    _folder: Folder,
}

impl Subject for Volume {
    fn target(&self) -> &Target {
        &self.target
    }

    fn snapshot(&mut self, name: &str) -> anyhow::Result<Ran> {
        let group = &self.group.name;
        match self.group.kind {
            Kind::Lvm => {
                let volume = format!("{group}/{VOLUME}");
                run(
                    "lvcreate",
                    ["--quiet", "--snapshot", "--name", name, &volume],
                )
            }
            Kind::Zfs => run("zfs", ["snapshot", &format!("{group}/{VOLUME}@{name}")]),
        }
    }

    fn remove_snapshot(&mut self, name: &str) -> anyhow::Result<Ran> {
        let group = &self.group.name;
        match self.group.kind {
            Kind::Lvm => run("lvremove", ["--quiet", "--yes", &format!("{group}/{name}")]),
            Kind::Zfs => run("zfs", ["destroy", &format!("{group}/{VOLUME}@{name}")]),
        }
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        if self.group.kind == Kind::Zfs {
            run("zpool", ["sync", &self.group.name])?;
            run("zpool", ["trim", "-w", &self.group.name])?;
        }
        Ok(())
    }

    fn host_bytes(&self) -> anyhow::Result<u64> {
        host::allocated_bytes(&self.file)
    }
}
