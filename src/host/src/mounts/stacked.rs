//! The file systems on a volume: on its loop device, on partitions of that, on device mapper (LVM,
//! LUKS) or RAID devices over them, and on a btrfs of several devices.
//!
//! They are found in sysfs and in this process's table of mounts; nothing is opened. Mounts in
//! other mount namespaces are not seen.

use cowshed_sys::mount::MountEntry;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder in which the kernel shows its devices.
pub(crate) const SYSFS: &str = "/sys";
/// The maximum number of devices that are followed.
const DEVICES_MAX: usize = 1024;

/// The block devices over a volume.
#[derive(Debug)]
pub(crate) struct Stack {
    sysfs: PathBuf,
    devices: BTreeMap<String, Device>,
}

#[derive(Debug)]
struct Device {
    numbers: Option<(u32, u32)>,
    /// Its nodes in `/dev`.
    nodes: Vec<PathBuf>,
    /// The devices directly below it.
    below: Vec<String>,
}

/// A file system on a volume.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OnVolume<'a> {
    /// Its mounts: those of the whole file system first.
    pub(crate) mounts: Vec<&'a MountEntry>,
    /// Devices that it also uses and that are not the volume's.
    pub(crate) others: Vec<String>,
}

impl Stack {
    /// Returns the devices of the nodes `bottom`, and all devices over them.
    pub(crate) fn over(sysfs: &Path, bottom: &[PathBuf]) -> Self {
        let mut stack = Self {
            sysfs: sysfs.to_owned(),
            devices: BTreeMap::new(),
        };
        let name = |node: &PathBuf| Some(node.file_name()?.to_str()?.to_owned());
        let mut next: Vec<String> = bottom.iter().filter_map(name).collect();
        while let Some(name) = next.pop() {
            if stack.devices.contains_key(&name) || stack.devices.len() == DEVICES_MAX {
                continue;
            }
            next.extend(stack.above(&name));
            let device = stack.device(&name);
            stack.devices.insert(name, device);
        }
        stack
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.sysfs.join("class/block").join(name)
    }

    fn device(&self, name: &str) -> Device {
        let folder = self.folder(name);
        let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
        let numbers = read("dev").and_then(|text| {
            let (major, minor) = text.trim().split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        let mut nodes = vec![Path::new("/dev").join(name)];
        if let Some(mapped) = read("dm/name") {
            nodes.push(Path::new("/dev/mapper").join(mapped.trim()));
        }
        Device {
            numbers,
            nodes,
            below: names_in(&folder.join("slaves")),
        }
    }

    /// Returns the devices directly over a device.
    fn above(&self, name: &str) -> Vec<String> {
        let folder = self.folder(name);
        let mut found = names_in(&folder.join("holders"));
        let partitions = names_in(&folder).into_iter();
        found.extend(partitions.filter(|it| folder.join(it).join("partition").exists()));
        let node = Path::new("/dev").join(name);
        let loops = names_in(&self.sysfs.join("class/block")).into_iter();
        found.extend(loops.filter(|it| {
            let file = self.folder(it).join("loop/backing_file");
            it.starts_with("loop")
                && fs::read_to_string(file).is_ok_and(|text| Path::new(text.trim_end()) == node)
        }));
        found
    }

    /// Returns the file systems that are mounted from these devices.
    pub(crate) fn mounted<'a>(&self, mounts: &'a [MountEntry]) -> Vec<OnVolume<'a>> {
        let pools = self.btrfs_pools();
        let mut found: BTreeMap<(u32, u32), OnVolume<'a>> = BTreeMap::new();
        for entry in mounts {
            let Some(others) = self.others_below(entry, &pools) else {
                continue;
            };
            // Each btrfs has device numbers of its own, which its mounts share.
            let at = found
                .entry((entry.major, entry.minor))
                .or_insert_with(|| OnVolume {
                    mounts: Vec::new(),
                    others,
                });
            at.mounts.push(entry);
        }
        let mut found: Vec<_> = found.into_values().collect();
        for it in &mut found {
            it.mounts.sort_by_key(|entry| entry.root != Path::new("/"));
        }
        found
    }

    /// Returns the devices, other than these, that the file system of a mount uses; `None` if it
    /// uses none of these.
    fn others_below(&self, entry: &MountEntry, pools: &[Vec<String>]) -> Option<Vec<String>> {
        if entry.fs_type == "btrfs" {
            let source = self.name_of(Path::new(&entry.source))?;
            let pool = pools.iter().find(|pool| pool.contains(&source));
            let alone = [source];
            let members = pool.map_or(alone.as_slice(), Vec::as_slice);
            let is_on = members.iter().any(|name| self.devices.contains_key(name));
            return is_on.then(|| self.outside(members));
        }
        let numbers = Some((entry.major, entry.minor));
        let (name, _) = self.devices.iter().find(|(_, device)| {
            device.numbers == numbers
                || device
                    .nodes
                    .iter()
                    .any(|node| node == Path::new(&entry.source))
        })?;
        Some(self.outside(std::slice::from_ref(name)))
    }

    /// Returns those of these devices, and of all devices below them, that are not the volume's.
    fn outside(&self, names: &[String]) -> Vec<String> {
        let mut found = Vec::new();
        let (mut next, mut seen) = (names.to_vec(), Vec::new());
        while let Some(name) = next.pop() {
            if seen.contains(&name) {
                continue;
            }
            match self.devices.get(&name) {
                Some(device) => next.extend(device.below.iter().cloned()),
                None => found.push(name.clone()),
            }
            seen.push(name);
        }
        found.sort();
        found
    }

    /// Returns the name of a node's device, which may belong to device mapper.
    fn name_of(&self, node: &Path) -> Option<String> {
        let known = self
            .devices
            .iter()
            .find(|(_, device)| device.nodes.iter().any(|it| it == node));
        if let Some((name, _)) = known {
            return Some(name.clone());
        }
        let node = fs::canonicalize(node).unwrap_or_else(|_| node.to_owned());
        Some(node.file_name()?.to_str()?.to_owned())
    }

    /// Returns the devices of each btrfs that the kernel knows.
    fn btrfs_pools(&self) -> Vec<Vec<String>> {
        let folder = self.sysfs.join("fs/btrfs");
        let pools = names_in(&folder).into_iter();
        pools
            .map(|uuid| names_in(&folder.join(uuid).join("devices")))
            .filter(|devices| !devices.is_empty())
            .collect()
    }
}

/// Returns the names in a folder; none if it is missing.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a tree like sysfs's from the paths of folders, and of files with their content.
    fn sysfs(entries: &[(&str, Option<&str>)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in entries {
            let path = root.path().join(path);
            match text {
                Some(text) => {
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, format!("{text}\n")).unwrap();
                }
                None => fs::create_dir_all(path).unwrap(),
            }
        }
        root
    }

    fn entry(numbers: (u32, u32), root: &str, at: &str, fs_type: &str, source: &str) -> MountEntry {
        MountEntry {
            id: 1,
            major: numbers.0,
            minor: numbers.1,
            root: root.into(),
            mount_point: at.into(),
            fs_type: fs_type.into(),
            source: source.into(),
            options: std::ffi::OsString::new(),
        }
    }

    fn found(sysfs: &Path, mounts: &[MountEntry]) -> Vec<(PathBuf, Vec<String>)> {
        Stack::over(sysfs, &["/dev/loop3".into()])
            .mounted(mounts)
            .into_iter()
            .map(|it| (it.mounts[0].mount_point.clone(), it.others))
            .collect()
    }

    #[test]
    fn a_file_system_is_found_through_partitions_lvm_and_luks() {
        let root = sysfs(&[
            ("class/block/loop3/dev", Some("7:3")),
            ("class/block/loop3/loop3p1/partition", Some("1")),
            ("class/block/loop3/loop3p2/partition", Some("2")),
            ("class/block/loop3p1/dev", Some("259:1")),
            ("class/block/loop3p2/dev", Some("259:2")),
            // LUKS on the second partition, and a logical volume on that.
            ("class/block/loop3p2/holders/dm-0", None),
            ("class/block/dm-0/dev", Some("252:0")),
            ("class/block/dm-0/dm/name", Some("crypt")),
            ("class/block/dm-0/slaves/loop3p2", None),
            ("class/block/dm-0/holders/dm-1", None),
            ("class/block/dm-1/dev", Some("252:1")),
            ("class/block/dm-1/dm/name", Some("vg-data")),
            ("class/block/dm-1/slaves/dm-0", None),
        ]);
        let mounts = [
            entry((259, 1), "/", "/boot", "ext4", "/dev/loop3p1"),
            entry((252, 1), "/", "/data", "xfs", "/dev/mapper/vg-data"),
            entry((8, 1), "/", "/", "ext4", "/dev/sda1"),
        ];
        let boot = ("/boot".into(), vec![]);
        assert_eq!(
            found(root.path(), &mounts),
            [("/data".into(), vec![]), boot]
        );
    }

    #[test]
    fn a_logical_volume_on_another_device_as_well_is_told_apart() {
        let root = sysfs(&[
            ("class/block/loop3/dev", Some("7:3")),
            ("class/block/loop3/holders/dm-0", None),
            ("class/block/dm-0/dev", Some("252:0")),
            ("class/block/dm-0/slaves/loop3", None),
            ("class/block/dm-0/slaves/loop4", None),
        ]);
        let mounts = [entry((252, 0), "/", "/data", "ext4", "/dev/mapper/vg-data")];
        let wanted = [("/data".into(), vec!["loop4".to_owned()])];
        assert_eq!(found(root.path(), &mounts), wanted);
    }

    #[test]
    fn a_btrfs_is_found_by_its_devices_and_whatever_part_of_it_is_mounted() {
        let root = sysfs(&[
            ("class/block/loop3/dev", Some("7:3")),
            ("fs/btrfs/features", None),
            ("fs/btrfs/uuid-1/devices/loop3", None),
            ("fs/btrfs/uuid-1/devices/loop4", None),
        ]);
        let mounts = [
            entry((0, 50), "/home", "/home", "btrfs", "/dev/loop4"),
            entry((0, 50), "/", "/top", "btrfs", "/dev/loop4"),
            entry((0, 51), "/", "/other", "btrfs", "/dev/loop5"),
        ];
        let wanted = [("/top".into(), vec!["loop4".to_owned()])];
        assert_eq!(found(root.path(), &mounts), wanted);
        let alone = [entry((0, 51), "/@", "/", "btrfs", "/dev/loop3")];
        fs::remove_dir_all(root.path().join("fs")).unwrap();
        assert_eq!(found(root.path(), &alone), [("/".into(), vec![])]);
    }

    #[test]
    fn a_loop_device_on_the_volumes_device_is_followed() {
        let root = sysfs(&[
            ("class/block/loop3/dev", Some("7:3")),
            ("class/block/loop9/dev", Some("7:9")),
            ("class/block/loop9/loop/backing_file", Some("/dev/loop3")),
        ]);
        let mounts = [entry((7, 9), "/sub", "/mnt", "ext4", "/dev/loop9")];
        assert_eq!(found(root.path(), &mounts), [("/mnt".into(), vec![])]);
    }
}
