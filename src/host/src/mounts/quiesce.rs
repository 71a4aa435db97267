//! Snapshots of volumes that may be mounted: their file systems are quiesced meanwhile, so that the
//! snapshot holds all written data and needs no journal replay.
//!
//! While a file system is quiesced, the folder `work/still-<volume>-<device>` informs a successor
//! of this process.

use super::Mounts;
use super::ext4;
use super::frozen::{FrozenMount, thaw_at};
use super::stacked::{OnVolume, SYSFS, Stack};
use crate::error::{Error, Names, Result};
use cowshed_engine::Volume;
use cowshed_export::Export;
use cowshed_format::base::{Name, VolumeId};
use cowshed_sys::mount::{self, FileSystem, MountEntry};
use std::fs;
use std::path::{Path, PathBuf};

/// The prefix of the name of a folder that records a volume whose file system is quiesced.
const QUIESCED_PREFIX: &str = "still-";
/// The maximum number of snapshots that are dropped because another process thawed the file system.
const HOLDS_MAX: u32 = 3;

impl Mounts {
    /// Snapshots `volume` under the name `name`, including everything written to the file systems
    /// on it, if it is attached as a loop device and they are mounted on this host: on the device,
    /// on its partitions, or on LVM, LUKS or btrfs over it. If somebody has frozen them already,
    /// that freeze is used, and remains.
    ///
    /// # Errors
    /// `CannotHold` and `OnOthersToo`, if only the user can make the snapshot consistent;
    /// `ThawedMeanwhile`; `Io` if a file system cannot be quiesced, and errors of the pool.
    pub fn snapshot(&self, volume: &Volume, name: &Name) -> Result<Volume> {
        self.with_volume_lock(volume.id(), || {
            self.snapshot_held(volume, name, Reach::InSight)
        })
    }

    /// As `snapshot`, but does not freeze a file system that is not being written to: for a
    /// freeze, the kernel waits for all processors, tens of milliseconds on a busy host. The
    /// snapshot may be marked as needing a journal replay, but its journal is empty.
    pub(crate) fn snapshot_passing(&self, volume: &Volume, name: &Name) -> Result<Volume> {
        let passing =
            self.with_volume_lock(volume.id(), || self.snapshot_checkpointed(volume, name));
        match passing? {
            Some(snapshot) => Ok(snapshot),
            None => self.snapshot(volume, name),
        }
    }

    /// Writes out the dirty data of the volume's file system, has the kernel checkpoint the
    /// journal, and snapshots the volume; returns the snapshot if nothing got into the journal
    /// meanwhile. The volume's lock is held.
    fn snapshot_checkpointed(&self, volume: &Volume, name: &Name) -> Result<Option<Volume>> {
        let mut found = self.mounted_on(volume)?;
        let (Some(it), true) = (found.pop(), found.is_empty()) else {
            return Ok(None);
        };
        if !it.others.is_empty() {
            return Ok(None);
        }
        self.write_out(volume, &it)?;
        if let Err(error) = it.at.checkpoint() {
            tracing::debug!(
                %error, path = %it.path.display(),
                "cannot empty the journal of a file system"
            );
            return Ok(None);
        }
        let snapshot = self.pool().snapshot(volume, name)?;
        let settled = ext4::is_settled(&snapshot);
        if matches!(settled, Ok(true)) {
            return Ok(Some(snapshot));
        }
        self.pool().remove(&snapshot)?;
        Ok(settled.map(|_| None)?)
    }

    /// As `snapshot`, for a root whose user may have mounted it where this process cannot
    /// see it: then all file systems of this host are written out.
    pub(crate) fn snapshot_in_use(&self, volume: &Volume, name: &Name) -> Result<Volume> {
        self.with_volume_lock(volume.id(), || {
            self.snapshot_held(volume, name, Reach::AllOfHost)
        })
    }

    /// Snapshots the volume while its file systems are frozen; retries if somebody thawed one of
    /// them meanwhile. The volume's lock is held.
    fn snapshot_held(&self, volume: &Volume, name: &Name, reach: Reach) -> Result<Volume> {
        for _ in 0..HOLDS_MAX {
            let held = self.hold_in_sight(volume)?;
            match reach {
                Reach::AllOfHost => self.prepare_root(volume, &held)?,
                // Writes out the data that programs wrote to shared mappings of the volume's file.
                Reach::InSight if volume.is_held() => self.export()?.write_back(volume)?,
                Reach::InSight => {}
            }
            let snapshot = self.pool().snapshot(volume, name);
            // Ends all of them, even if one was thawed.
            let ends: Vec<bool> = held.into_iter().map(FrozenMount::end).collect();
            let snapshot = snapshot?;
            if !ends.contains(&false) {
                return Ok(snapshot);
            }
            tracing::info!(
                volume = %volume.name(),
                "another process thawed the file system during a snapshot: taking another one"
            );
            self.pool().remove(&snapshot)?;
        }
        Err(Error::ThawedMeanwhile(volume.name()))
    }

    fn prepare_root(&self, volume: &Volume, held: &[FrozenMount]) -> Result<()> {
        if held.is_empty() && volume.is_held() {
            // The volume is mounted in another mount namespace. Only sync(2) reaches every file
            // system.
            nix::unistd::sync();
        }
        let is_ours = held.first().is_some_and(FrozenMount::is_ours);
        if is_ours && ext4::superblock(volume)?.is_some() {
            // The journal is empty while the file system is frozen, and is never read.
            ext4::release_journal(volume)?;
        }
        Ok(())
    }

    /// Writes out and freezes the volume's file systems that are mounted where this process can see
    /// them, whoever mounted them. The volume's lock is held.
    fn hold_in_sight(&self, volume: &Volume) -> Result<Vec<FrozenMount>> {
        let found = self.mounted_on(volume)?;
        // All are written out before the first is frozen, so that none stays frozen for long.
        for it in &found {
            self.write_out(volume, it)?;
        }
        let mut held = Vec::new();
        for it in found {
            let note = self.quiesced_note(volume.id(), it.numbers);
            let is_read_only = it.is_read_only();
            let still = match FrozenMount::freeze(it.at, it.path.clone(), note) {
                // A file system that is never written need not be frozen.
                Err(Error::CannotHold { .. }) if is_read_only => continue,
                outcome => outcome?,
            };
            if still.is_ours() && !it.others.is_empty() {
                return Err(Error::OnOthersToo {
                    path: it.path,
                    others: Names(it.others),
                });
            }
            held.push(still);
        }
        Ok(held)
    }

    fn write_out(&self, volume: &Volume, it: &Mounted) -> Result<()> {
        // A write that found no space in the pool is reported here, and not again later.
        let synced = it.at.sync().map_err(Error::io("flush", &it.path));
        let synced = synced.inspect_err(|_| self.note_refusal(volume));
        synced.map_err(|error| self.explain(error))
    }

    /// Returns the volume's file systems that are mounted where this process can see them.
    fn mounted_on(&self, volume: &Volume) -> Result<Vec<Mounted>> {
        if !volume.is_held() {
            return Ok(Vec::new());
        }
        let mounts = mount::mounts();
        let mounts = mounts.map_err(Error::io("read", Path::new("/proc/self/mountinfo")))?;
        mounted_over(&self.export()?.devices_over(volume), &mounts)
    }

    fn quiesced_note(&self, id: VolumeId, (major, minor): (u32, u32)) -> PathBuf {
        self.work_dir()
            .join(format!("{QUIESCED_PREFIX}{id}-{major}-{minor}"))
    }

    /// Thaws the file systems that a predecessor froze.
    pub(crate) fn thaw_quiesced(&self, mounts: &[MountEntry], export: &Export) {
        for entry in fs::read_dir(self.work_dir())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let Some((id, numbers)) = name.to_str().and_then(parse_note) else {
                continue;
            };
            let volume = self.pool().volume_by_id(id);
            let devices = volume.map_or_else(|_| Vec::new(), |it| export.devices_over(&it));
            let found = mounted_over(&devices, mounts).unwrap_or_else(|error| {
                tracing::error!(
                    %error,
                    "cannot find the file systems of a volume, which may still be frozen"
                );
                Vec::new()
            });
            for it in found {
                if numbers.is_none_or(|numbers| numbers == it.numbers) {
                    thaw_at(&it.path);
                }
            }
            // An empty folder that remains does no harm.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The mounts in which a snapshot looks for data that is not written out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// The mounts that this process sees.
    InSight,
    /// All of this host, if this process sees none.
    AllOfHost,
}

/// A file system on a volume.
struct Mounted {
    at: FileSystem,
    path: PathBuf,
    /// The device numbers as in the table of mounts.
    numbers: (u32, u32),
    /// Other devices that it also uses.
    others: Vec<String>,
}

impl Mounted {
    fn is_read_only(&self) -> bool {
        let read_only = nix::sys::statvfs::FsFlags::ST_RDONLY;
        self.at
            .room()
            .is_ok_and(|room| room.flags().contains(read_only))
    }
}

/// Returns the file systems that are mounted from these devices and from all devices over them.
fn mounted_over(devices: &[PathBuf], mounts: &[MountEntry]) -> Result<Vec<Mounted>> {
    let stack = Stack::over(Path::new(SYSFS), devices);
    stack.mounted(mounts).into_iter().map(open).collect()
}

/// Opens a file system at one of its mounts; others may have mounted something over some of them.
fn open(found: OnVolume<'_>) -> Result<Mounted> {
    let mut outcome = None;
    for entry in &found.mounts {
        let path = &entry.mount_point;
        match FileSystem::on_mount(path, entry.id) {
            Ok(at) => {
                return Ok(Mounted {
                    at,
                    path: path.clone(),
                    numbers: (entry.major, entry.minor),
                    others: found.others,
                });
            }
            Err(error) => outcome = Some(Error::io("open", path)(error)),
        }
    }
    Err(outcome.expect("a file system that was found has a mount"))
}

/// Parses a note's name: the volume, and the device numbers of the file system.
fn parse_note(name: &str) -> Option<(VolumeId, Option<(u32, u32)>)> {
    let mut parts = name.strip_prefix(QUIESCED_PREFIX)?.split('-');
    let id = parts.next()?.parse().ok().map(VolumeId)?;
    let mut number = || parts.next()?.parse().ok();
    let numbers = number().zip(number());
    Some((id, numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_names_the_volume_and_the_file_system() {
        assert_eq!(
            parse_note("still-12-7-3"),
            Some((VolumeId(12), Some((7, 3))))
        );
        assert_eq!(parse_note("still-12"), Some((VolumeId(12), None)));
        assert_eq!(parse_note("still-x"), None);
        assert_eq!(parse_note("frozen-12"), None);
    }
}
