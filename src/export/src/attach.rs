//! Attaching volumes: as a file whose volume is held, or as a loop device over that file.
//!
//! # Invariants
//! - An attachment is in the handover state before its device is made and before the file's writers
//!   are checked, so no writer and no exclusive device ever miss each other.

use super::attachments::{AttachKind, AttachOptions, Attached, Entry, Slot};
use super::detach::{CLOSE_POLL, CLOSE_WAIT};
use super::device::AttachedDevice;
use super::entry;
use super::error::ExportError;
use super::fuse::{AttachedRecord, DeviceRecord};
use super::holders::Holders;
use super::target::BlockTarget;
use super::{Export, device_records};
use cowshed_format::base::{Error, Name};
use cowshed_sys::loop_device::LoopOptions;
use cowshed_sys::write_back::write_out;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

/// Number of attempts to open a volume's file while its name changes.
const OPEN_ATTEMPTS_MAX: u32 = 8;

impl Export {
    /// Keeps the volume for a user of its file, and returns the file's path. A repeated call for
    /// the same mode returns the same path and is counted. A writable volume's file stays writable
    /// for root; the mode only states an intent that other attachments are checked against.
    ///
    /// # Errors
    /// `Attached` if it is attached in a conflicting mode, `Pool` with `Frozen` for a writable
    /// attachment of a snapshot.
    pub fn attach_file(
        &self,
        volume: &dyn BlockTarget,
        read_only: bool,
    ) -> Result<PathBuf, ExportError> {
        let options = AttachOptions {
            read_only,
            ..AttachOptions::default()
        };
        let attached = self.attach(volume, AttachKind::File, options)?;
        Ok(attached.path)
    }

    /// Makes the volume a block device, `/dev/loopN`, with direct I/O and discard. A repeated call
    /// for the same mode returns the same device and is counted.
    ///
    /// # Errors
    /// As `attach`.
    pub fn attach_loop(
        &self,
        volume: &dyn BlockTarget,
        read_only: bool,
    ) -> Result<PathBuf, ExportError> {
        let options = AttachOptions {
            read_only,
            ..AttachOptions::default()
        };
        let attached = self.attach(volume, AttachKind::Loop, options)?;
        Ok(attached.path)
    }

    /// Attaches the volume as `options` say. A repeated call for the same mode returns the same
    /// path and is counted.
    ///
    /// # Errors
    /// As `attach_file`; also `OtherSectors`, `Busy` while another program writes to the file that
    /// is to become a device, `NoLoop`, and `Io` if the kernel refuses.
    pub fn attach(
        &self,
        volume: &dyn BlockTarget,
        kind: AttachKind,
        options: AttachOptions,
    ) -> Result<Attached, ExportError> {
        let mounted = self.mounted.read();
        if !*mounted {
            return Err(ExportError::Unmounted {
                dir: self.mount_point().to_owned(),
            });
        }
        let slot = self.attached.slot(volume.id());
        let result = self.attach_in(&slot, volume, kind, options);
        drop(slot);
        self.attached.tidy();
        result
    }

    fn attach_in(
        &self,
        slot: &Slot,
        volume: &dyn BlockTarget,
        kind: AttachKind,
        options: AttachOptions,
    ) -> Result<Attached, ExportError> {
        let mut entries = slot.lock();
        let read_only = options.read_only;
        let info = volume.info()?;
        entries.retain(|entry| !self.forget_lost(entry));
        let same = |entry: &&mut Entry| entry.kind() == kind && entry.read_only == read_only;
        if let Some(entry) = entries.iter_mut().find(same) {
            self.check_sectors(entry, &info.name, options)?;
            entry.count += 1;
            entry.by_hand += u64::from(options.by_hand);
            self.handover_state
                .records()
                .count(entry.slot, entry.count, entry.by_hand);
            return Ok(self.outcome(entry, &info.name));
        }
        let goes_along =
            |entry: &Entry| (read_only && entry.read_only) || (options.shared && entry.shared);
        if let Some(entry) = entries.iter().find(|entry| !goes_along(entry)) {
            let path = self.entry_path(entry, &info.name);
            return Err(ExportError::Attached {
                volume: info.name,
                how: entry.mode(),
                path,
            });
        }
        if info.is_read_only && !read_only {
            return Err(Error::Frozen(info.name).into());
        }
        let entry = self.make_entry(volume, kind, options)?;
        let outcome = self.outcome(&entry, &info.name);
        entries.push(entry);
        Ok(outcome)
    }

    fn make_entry(
        &self,
        volume: &dyn BlockTarget,
        kind: AttachKind,
        options: AttachOptions,
    ) -> Result<Entry, ExportError> {
        let hold = volume.hold()?;
        let mut record = AttachedRecord {
            volume: volume.id(),
            read_only: options.read_only,
            shared: options.shared,
            count: 1,
            by_hand: options.by_hand.into(),
            device: match kind {
                AttachKind::File => DeviceRecord::None,
                AttachKind::Loop => DeviceRecord::Started,
            },
        };
        let slot = self.record(&record)?;
        let device = match kind {
            AttachKind::File => None,
            AttachKind::Loop => {
                let made = self
                    .refuse_writers(volume, options)
                    .and_then(|()| self.make_device(volume, options));
                let made = made.inspect_err(|_| self.handover_state.records().detach(slot))?;
                record.device = made.record();
                self.handover_state.records().made(slot, &record);
                device_records::note(self.device_records.get(), made.number());
                Some(made)
            }
        };
        Ok(Entry {
            read_only: options.read_only,
            shared: options.shared,
            count: 1,
            by_hand: record.by_hand,
            device,
            slot,
            _hold: hold,
        })
    }

    /// Refuses to attach a device, which writes to the file, while a program has the file open for
    /// writing.
    fn refuse_writers(
        &self,
        volume: &dyn BlockTarget,
        options: AttachOptions,
    ) -> Result<(), ExportError> {
        let since = Instant::now();
        while !options.shared && self.handover_state.records().users_of(volume.id()).writers {
            let busy = self.file_busy(volume);
            let is_closed = matches!(&busy, ExportError::Busy { by, .. } if by.0.is_empty());
            if !is_closed || since.elapsed() >= CLOSE_WAIT {
                return Err(busy);
            }
            thread::sleep(CLOSE_POLL);
        }
        Ok(())
    }

    /// Returns a `Busy` error that names the users of the volume's open file.
    pub(super) fn file_busy(&self, volume: &dyn BlockTarget) -> ExportError {
        let what = self.file_path(volume);
        let by = Holders::of_file(&what, entry::inode(volume.id()));
        ExportError::Busy { what, by }
    }

    fn check_sectors(
        &self,
        entry: &Entry,
        name: &Name,
        options: AttachOptions,
    ) -> Result<(), ExportError> {
        let present = entry.device.and_then(AttachedDevice::sector_bytes);
        match (options.sector_bytes, present) {
            (Some(wanted), Some(present)) if wanted != present => Err(ExportError::OtherSectors {
                volume: name.clone(),
                present,
                path: self.entry_path(entry, name),
            }),
            _ => Ok(()),
        }
    }

    fn outcome(&self, entry: &Entry, name: &Name) -> Attached {
        Attached {
            path: self.entry_path(entry, name),
            count: entry.count,
            sector_bytes: entry.device.and_then(AttachedDevice::sector_bytes),
        }
    }

    /// Returns true if somebody else has detached the attachment's device, and forgets the
    /// attachment then.
    fn forget_lost(&self, entry: &Entry) -> bool {
        let lost = entry.device.filter(|device| device.is_lost());
        if let Some(device) = lost {
            tracing::warn!(
                device = %device.path().display(),
                "a loop device was detached by another program"
            );
            self.forget(entry);
        }
        lost.is_some()
    }

    /// Removes the attachment from the handover state and from the recorded devices.
    pub(super) fn forget(&self, entry: &Entry) {
        self.handover_state.records().detach(entry.slot);
        if let Some(device) = entry.device {
            device_records::forget(self.device_records.get(), device.number());
        }
    }

    /// Records an attachment for a successor, before the attachment is made.
    fn record(&self, record: &AttachedRecord) -> Result<usize, ExportError> {
        // Attachments of other volumes may be made at the same time.
        let _one = self.recording.lock();
        self.handover_state.records().attach(record).ok_or_else(|| {
            let attached = self.handover_state.records().attached().len();
            ExportError::TooMany { attached }
        })
    }

    pub(super) fn entry_path(&self, entry: &Entry, name: &Name) -> PathBuf {
        entry
            .device
            .map_or_else(|| self.path_of(name), |attached| attached.path())
    }

    fn make_device(
        &self,
        volume: &dyn BlockTarget,
        options: AttachOptions,
    ) -> Result<AttachedDevice, ExportError> {
        let (path, file) = self.open_file(volume, options.read_only)?;
        let wanted = options
            .sector_bytes
            .unwrap_or(self.options.loop_block_bytes);
        // A device with larger blocks would lose the end of a volume of odd size.
        let fits = volume.size_bytes().is_multiple_of(wanted.into());
        let options = LoopOptions {
            read_only: options.read_only,
            direct_io: true,
            scan_partitions: options.scan_partitions,
            block_bytes: if fits { wanted } else { 512 },
        };
        AttachedDevice::attach(&file, &path, options)
    }

    /// Writes what programs changed in shared mappings of the volume's file to the volume. Does
    /// nothing if nobody has the file open for writing.
    ///
    /// # Errors
    /// `Io`, also if a write found no space.
    pub fn write_back(&self, volume: &dyn BlockTarget) -> Result<(), ExportError> {
        let mounted = self.mounted.read();
        if !*mounted || !self.handover_state.records().users_of(volume.id()).writers {
            return Ok(());
        }
        let (path, file) = self.open_file(volume, true)?;
        write_out(file.as_fd()).map_err(ExportError::io("flush", &path))
    }

    /// Opens the volume's file through the mount, and checks that it belongs to the volume: between
    /// reading the name and opening the file, the name may have gone to another volume.
    fn open_file(
        &self,
        volume: &dyn BlockTarget,
        read_only: bool,
    ) -> Result<(PathBuf, File), ExportError> {
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for _ in 0..OPEN_ATTEMPTS_MAX {
            let path = self.file_path(volume);
            let open = || OpenOptions::new().read(true).write(!read_only).open(&path);
            match self.own_opens.during(volume.id(), open) {
                Ok(file) => {
                    let metadata = file.metadata().map_err(ExportError::io("inspect", &path))?;
                    if metadata.ino() == entry::inode(volume.id()) {
                        return Ok((path, file));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => failure = error,
                Err(error) => return Err(ExportError::io("open", &path)(error)),
            }
        }
        Err(ExportError::io("open", &self.file_path(volume))(failure))
    }
}
