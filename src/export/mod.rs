//! Volumes shown to the kernel: as files of a FUSE mount, and as loop devices over those files.
//!
//! Not a place where volumes are made or removed, and not where their file systems are mounted.
//! The traits in `target` are all that is known of the pool. Read on in `fuse` for the files, in
//! `attachments` for the rules of attaching and in `succession` for mounts that outlive a process.
//!
//! # Invariants
//! - The kernel's requests for the files are answered by threads of this process, while other
//!   threads of this process wait in the kernel for those answers (opening a file, attaching a
//!   loop device, flushing one). So nothing that the answering threads need is ever locked
//!   across such a wait.
//! - A volume that is attached or open is held: the pool does not remove it.

mod attachments;
mod detach;
mod device;
mod empty;
mod entry;
mod error;
mod file_io;
mod fuse;
mod holders;
mod own_opens;
mod refusals;
mod stale;
mod succession;
mod target;
#[cfg(test)]
mod tests;

pub use attachments::{AttachKind, Attachment};
pub use empty::{EMPTY_FILE, Empty};
pub use error::{AttachMode, ExportError};
pub use fuse::{Connection, ConnectionParts, Keepsake, Negotiated, Transport};
pub use holders::{Holder, Holders};
pub use stale::{Cleaned, StaleDevice, clean_stale};
pub use target::{BlockTarget, Directory, Space, TargetHold, TargetInfo};

use crate::base::{Error, Name, VolumeId};
use crate::pool::Pool;
use crate::sys::loop_device::LoopOptions;
use attachments::{Entry, Slot, Table};
use device::AttachedDevice;
use fuse::{AttachedRecord, DeviceRecord, Origin, Session, VolumeFiles};
use own_opens::OwnOpens;
use parking_lot::{Mutex, RwLock};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How often a volume's file is looked for while its name changes.
const OPEN_ATTEMPTS_MAX: u32 = 8;

/// How volumes are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// How many threads serve the files; `None` for one for each processor, at least two.
    pub threads: Option<usize>,
    /// How requests reach the threads.
    pub transport: Transport,
    /// The logical block of loop devices: 4096 bytes, or 512 for guests that need it. Writes of
    /// less than 4096 bytes cost a read each.
    pub loop_block_bytes: u32,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            threads: None,
            transport: Transport::Threads,
            loop_block_bytes: entry::BLOCK_SIZE,
        }
    }
}

/// A mounted directory of volumes with the loop devices on it. Dropping it cleans up as far as
/// its users let it; `unmount` says what went wrong.
pub struct Export {
    directory: Arc<dyn Directory>,
    session: Session,
    keepsake: Keepsake,
    attached: Table,
    own_opens: OwnOpens,
    options: ExportOptions,
    /// Held while a record of an attachment is made.
    recording: Mutex<()>,
    /// Read while attaching or detaching, written while unmounting.
    mounted: RwLock<bool>,
}

impl Export {
    /// Shows the pool's volumes at `dir`, which is made when it is missing. What a killed daemon
    /// left there is cleared away first.
    ///
    /// # Errors
    /// `NotRoot`, `NoFuse`, `Served` when a live cowshed is mounted there, `Io`.
    pub fn mount(pool: Pool, dir: &Path, options: ExportOptions) -> Result<Self, ExportError> {
        Self::over(Arc::new(pool), dir, options)
    }

    /// Shows any directory of targets at `dir`.
    ///
    /// # Errors
    /// As `mount`.
    pub fn over(
        directory: Arc<dyn Directory>,
        dir: &Path,
        options: ExportOptions,
    ) -> Result<Self, ExportError> {
        let origin = Origin::Mount {
            dir: dir.to_owned(),
            threads: options.threads,
            transport: options.transport,
        };
        let keepsake = Keepsake::create().map_err(ExportError::io("keep a record for", dir))?;
        Self::start(directory, origin, keepsake, options)
    }

    fn start(
        directory: Arc<dyn Directory>,
        origin: Origin,
        keepsake: Keepsake,
        options: ExportOptions,
    ) -> Result<Self, ExportError> {
        let own_opens = OwnOpens::default();
        let files = VolumeFiles::new(
            directory.clone(),
            own_opens.clone(),
            keepsake.records().clone(),
        );
        let session = Session::start(files, directory.clone(), origin)?;
        Ok(Self {
            directory,
            session,
            keepsake,
            attached: Table::default(),
            own_opens,
            options,
            recording: Mutex::new(()),
            mounted: RwLock::new(true),
        })
    }

    /// Where the files are.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        self.session.dir()
    }

    /// How requests reach the threads that serve.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.session.transport()
    }

    /// What a killed daemon had left and was cleared away before mounting.
    #[must_use]
    pub fn cleaned(&self) -> &Cleaned {
        self.session.cleaned()
    }

    /// The path of a volume's file under its present name; whoever attaches keeps the volume, not
    /// its name.
    #[must_use]
    pub fn file_path(&self, volume: &dyn BlockTarget) -> PathBuf {
        self.path_of(&volume.name())
    }

    fn path_of(&self, name: &Name) -> PathBuf {
        self.mount_point().join(entry::file_name(name))
    }

    /// Keeps the volume for a user of its file, and gives the file's path. Again for the same
    /// mode: the same path, counted. A writable volume's file stays writable for root; the mode
    /// is a statement of intent that other attachments are checked against.
    ///
    /// # Errors
    /// `Attached` when it is attached in a mode that does not go with this one, `Pool` with
    /// `Frozen` for a writable attachment of a snapshot.
    pub fn attach_file(
        &self,
        volume: &dyn BlockTarget,
        read_only: bool,
    ) -> Result<PathBuf, ExportError> {
        self.attach(volume, AttachKind::File, read_only)
    }

    /// Makes the volume a block device, `/dev/loopN`, with direct I/O and discard. Again for the
    /// same mode: the same device, counted.
    ///
    /// # Errors
    /// As `attach_file`; also `NoLoop`, and `Io` when the kernel refuses.
    pub fn attach_loop(
        &self,
        volume: &dyn BlockTarget,
        read_only: bool,
    ) -> Result<PathBuf, ExportError> {
        self.attach(volume, AttachKind::Loop, read_only)
    }

    fn attach(
        &self,
        volume: &dyn BlockTarget,
        kind: AttachKind,
        read_only: bool,
    ) -> Result<PathBuf, ExportError> {
        let mounted = self.mounted.read();
        if !*mounted {
            return Err(ExportError::Unmounted {
                dir: self.mount_point().to_owned(),
            });
        }
        let slot = self.attached.slot(volume.id());
        let result = self.attach_in(&slot, volume, kind, read_only);
        drop(slot);
        self.attached.tidy();
        result
    }

    fn attach_in(
        &self,
        slot: &Slot,
        volume: &dyn BlockTarget,
        kind: AttachKind,
        read_only: bool,
    ) -> Result<PathBuf, ExportError> {
        let mut entries = slot.lock();
        let same = |entry: &&mut Entry| entry.kind() == kind && entry.read_only == read_only;
        let info = volume.info()?;
        entries.retain(|entry| !self.forget_lost(entry));
        if let Some(entry) = entries.iter_mut().find(same) {
            entry.count += 1;
            self.keepsake.records().count(entry.slot, entry.count);
            return Ok(self.entry_path(entry, &info.name));
        }
        if let Some(entry) = entries.iter().find(|entry| !(read_only && entry.read_only)) {
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
        let hold = volume.hold()?;
        let mut record = AttachedRecord {
            volume: volume.id(),
            read_only,
            count: 1,
            device: match kind {
                AttachKind::File => DeviceRecord::None,
                AttachKind::Loop => DeviceRecord::Started,
            },
        };
        let slot = self.record(&record)?;
        let device = match kind {
            AttachKind::File => None,
            AttachKind::Loop => {
                let made = self.make_device(volume, read_only);
                let made = made.inspect_err(|_| self.keepsake.records().detach(slot))?;
                record.device = made.record();
                self.keepsake.records().made(slot, &record);
                Some(made)
            }
        };
        let entry = Entry {
            read_only,
            count: 1,
            device,
            slot,
            _hold: hold,
        };
        let path = self.entry_path(&entry, &info.name);
        entries.push(entry);
        Ok(path)
    }

    /// Whether somebody else has detached the attachment's device: then there is none any more.
    fn forget_lost(&self, entry: &Entry) -> bool {
        let lost = entry.device.filter(|device| device.is_lost());
        if let Some(device) = lost {
            tracing::warn!(device = %device.path().display(), "was detached by someone else");
            self.keepsake.records().detach(entry.slot);
        }
        lost.is_some()
    }

    /// Lets a successor know of an attachment, before there is one.
    fn record(&self, record: &AttachedRecord) -> Result<usize, ExportError> {
        // Attachments of other volumes may be made at the same time.
        let _one = self.recording.lock();
        self.keepsake.records().attach(record).ok_or_else(|| {
            let attached = self.keepsake.records().attached().len();
            ExportError::TooMany { attached }
        })
    }

    fn entry_path(&self, entry: &Entry, name: &Name) -> PathBuf {
        entry
            .device
            .map_or_else(|| self.path_of(name), |attached| attached.path())
    }

    fn make_device(
        &self,
        volume: &dyn BlockTarget,
        read_only: bool,
    ) -> Result<AttachedDevice, ExportError> {
        let (path, file) = self.open_file(volume, read_only)?;
        // A device of larger blocks would lose the end of a volume of odd size.
        let fits = volume
            .size_bytes()
            .is_multiple_of(self.options.loop_block_bytes.into());
        let block_bytes = if fits {
            self.options.loop_block_bytes
        } else {
            512
        };
        let options = LoopOptions {
            read_only,
            direct_io: true,
            block_bytes,
        };
        AttachedDevice::attach(&file, &path, options)
    }

    /// Opens the volume's file through the mount, and makes sure that it is the volume's: between
    /// asking for the name and opening it, the name may have gone to another volume.
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
                    let metadata = file.metadata().map_err(ExportError::io("look at", &path))?;
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

    /// Tells the kernel of a new size of the volume, where it is attached as a loop device.
    ///
    /// # Errors
    /// `Io` when the kernel refuses.
    pub fn resized(&self, volume: &dyn BlockTarget) -> Result<(), ExportError> {
        let _mounted = self.mounted.read();
        let slot = self.attached.slot(volume.id());
        let entries = slot.lock();
        for attached in entries.iter().filter_map(|entry| entry.device) {
            let path = self.file_path(volume);
            // The kernel keeps a size with the file's inode; looking at the file renews it.
            fs::metadata(&path).map_err(ExportError::io("look at", &path))?;
            attached.refresh_size()?;
        }
        drop(entries);
        drop(slot);
        self.attached.tidy();
        Ok(())
    }

    /// What is attached, in the order of volume ids.
    #[must_use]
    pub fn attachments(&self) -> Vec<Attachment> {
        let slots = self.attached.all();
        let of_slot = |(id, slot): (VolumeId, Slot)| {
            // A held volume is not removed, so it has a name.
            let name = self.directory.by_id(id).ok()?.name();
            let entries = slot.lock();
            let list = entries.iter().map(|entry| Attachment {
                volume: id,
                name: name.clone(),
                path: self.entry_path(entry, &name),
                kind: entry.kind(),
                read_only: entry.read_only,
            });
            Some(list.collect::<Vec<_>>())
        };
        slots.into_iter().filter_map(of_slot).flatten().collect()
    }
}
