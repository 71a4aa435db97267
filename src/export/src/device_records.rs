//! Records of the loop devices that a pool has made, for the cleanup after all its processes were
//! killed.
//!
//! The kernel shows only the path of such a device's file, which means nothing once the mount is
//! gone. So each device has a file in a folder of the pool, named by the device's number and
//! holding the sequence number of its use, which the kernel never reuses.
//!
//! # Invariants
//! - The caller of `clean_recorded` knows that no process serves that pool.
//! - A device is touched only if its sequence number is the one in the file.
//!
//! A device whose maker was killed after making it and before recording it is found only by its
//! path, by `stale`.

use super::error::ExportError;
use super::stale::{Cleaned, detach_or_leave};
use cowshed_sys::loop_device::LoopDevice;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folder, in a pool's state folder.
pub const DEVICES: &str = "loops";

fn record_of(folder: &Path, number: u32) -> PathBuf {
    folder.join(number.to_string())
}

/// Records the device. If that fails, only the cleanup after a kill is impaired.
pub(super) fn note(folder: Option<&PathBuf>, number: u32) {
    let Some(folder) = folder else { return };
    let Some(sequence) = LoopDevice::numbered(number).sequence() else {
        return;
    };
    let noted = fs::create_dir_all(folder)
        .and_then(|()| fs::write(record_of(folder, number), format!("{sequence}\n")));
    if let Err(error) = noted {
        tracing::warn!(
            %error, number,
            "cannot record a loop device, which stays attached if all processes are killed"
        );
    }
}

/// Removes the record of a detached device.
pub(super) fn forget(folder: Option<&PathBuf>, number: u32) {
    if let Some(folder) = folder {
        // A file that remains names an earlier use of the number.
        let _ = fs::remove_file(record_of(folder, number));
    }
}

/// Detaches the devices that are recorded in `folder`, whose makers are all dead, and removes their
/// records.
///
/// # Errors
/// `Io` if the folder cannot be read or a device cannot be detached.
pub fn clean_recorded(folder: &Path) -> Result<Cleaned, ExportError> {
    let mut cleaned = Cleaned::default();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(cleaned),
        Err(error) => return Err(ExportError::io("read", folder)(error)),
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let noted = fs::read_to_string(entry.path()).unwrap_or_default();
        let device = LoopDevice::numbered(number);
        let is_it = || {
            Ok(device
                .sequence()
                .is_some_and(|now| noted.trim() == now.to_string()))
        };
        detach_or_leave(device, &is_it, &mut cleaned)?;
        forget(Some(&folder.to_owned()), number);
    }
    Ok(cleaned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowshed_sys::loop_device::{self, LoopOptions};
    use std::fs::File;

    #[test]
    fn a_device_is_detached_by_its_record_only_if_it_is_still_that_use_of_its_number() {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let folder = place.path().join("loops");
        let path = place.path().join("backing");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let options = LoopOptions {
            read_only: false,
            direct_io: false,
            scan_partitions: false,
            block_bytes: 512,
        };
        let device = LoopDevice::attach(&file, options).unwrap();
        // A record of an earlier use of the number.
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(device.number().to_string()), "1\n").unwrap();
        let before = clean_recorded(&folder);
        let is_there = loop_device::attached()
            .unwrap()
            .contains(&(device, path.clone()));
        note(Some(&folder), device.number());
        let after = clean_recorded(&folder);
        assert_eq!(before.unwrap(), Cleaned::default());
        assert!(is_there, "somebody else's device was detached");
        assert_eq!(after.unwrap().detached, [device.path()]);
        assert!(!loop_device::attached().unwrap().contains(&(device, path)));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}
