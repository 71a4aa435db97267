//! Volumes shown to the kernel: as files of a FUSE mount, and as loop devices over those files.
//!
//! This crate neither creates nor removes volumes, and does not mount their file systems. It knows
//! the pool only through the traits in `target`. Read on in `fuse` for the files, in `attachments`
//! for the rules of attaching and in `succession` for mounts that outlive a process.
//!
//! # Invariants
//! - Threads of this process reply to the kernel's requests for the files, while other threads of
//!   this process wait in the kernel for those replies (opening a file, attaching a loop device,
//!   flushing one). So no lock that the replying threads need is ever held across such a wait.
//! - A volume that is attached or open is held: the pool does not remove it.

mod attach;
mod attachments;
mod detach;
mod device;
mod device_records;
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

pub use attachments::{AttachKind, AttachOptions, Attached, Attachment};
pub use device_records::{DEVICES, clean_recorded};
pub use error::{AttachMode, ExportError};
pub use fuse::{Connection, ConnectionParts, HandoverState, Negotiated, Transport};
pub use holders::{Holder, Holders};
pub use stale::{Cleaned, StaleDevice, clean_stale};
pub use target::{BlockTarget, Directory, Space, TargetHold, TargetInfo};

use attachments::{Slot, Table};
use cowshed_engine::Pool;
use cowshed_format::base::{Name, VolumeId};
use fuse::{Origin, Session, VolumeFiles};
use own_opens::OwnOpens;
use parking_lot::{Mutex, RwLock};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The options of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// Number of threads that serve the files; `None` for one per processor, at least two.
    pub threads: Option<usize>,
    /// The transport between the kernel and the threads.
    pub transport: Transport,
    /// The logical block size of loop devices: 4096 bytes, or 512 for guests that need it. Each
    /// write of less than 4096 bytes costs a read.
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
/// users of the mount allow; `unmount` also reports what failed.
pub struct Export {
    directory: Arc<dyn Directory>,
    session: Session,
    handover_state: HandoverState,
    attached: Table,
    own_opens: OwnOpens,
    options: ExportOptions,
    /// The folder that records loop devices, for the cleanup after a kill.
    device_records: OnceLock<PathBuf>,
    /// Held while an attachment is recorded.
    recording: Mutex<()>,
    /// Locked for reading while attaching or detaching, for writing while unmounting.
    mounted: RwLock<bool>,
}

impl Export {
    /// Shows the pool's volumes at `dir`, which is created if it is missing. First clears away what
    /// a killed daemon left there.
    ///
    /// # Errors
    /// `NotRoot`, `NoFuse`, `Served` if a live cowshed is mounted there, `Io`.
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
        let handover_state = HandoverState::create()
            .map_err(ExportError::io("create the hand-over state of", dir))?;
        Self::start(directory, origin, handover_state, options)
    }

    fn start(
        directory: Arc<dyn Directory>,
        origin: Origin,
        handover_state: HandoverState,
        options: ExportOptions,
    ) -> Result<Self, ExportError> {
        let own_opens = OwnOpens::default();
        let files = VolumeFiles::new(
            directory.clone(),
            own_opens.clone(),
            handover_state.records().clone(),
        );
        let session = Session::start(files, directory.clone(), origin)?;
        Ok(Self {
            directory,
            session,
            handover_state,
            attached: Table::default(),
            own_opens,
            options,
            device_records: OnceLock::new(),
            recording: Mutex::new(()),
            mounted: RwLock::new(true),
        })
    }

    /// Records the loop devices of this export in `folder`, so that `clean_recorded` can detach
    /// them after all serving processes were killed. Must be called before anything is attached.
    pub fn note_devices_in(&self, folder: PathBuf) {
        // The first folder stays: later calls change nothing.
        let _ = self.device_records.set(folder);
    }

    /// Returns the mount point, the directory with the files.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        self.session.dir()
    }

    /// Returns the transport between the kernel and the serving threads.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.session.transport()
    }

    /// Returns what a killed daemon had left and was cleared away before mounting.
    #[must_use]
    pub fn cleaned(&self) -> &Cleaned {
        self.session.cleaned()
    }

    /// Returns the path of a volume's file under its present name. An attachment keeps the volume,
    /// not its name.
    #[must_use]
    pub fn file_path(&self, volume: &dyn BlockTarget) -> PathBuf {
        self.path_of(&volume.name())
    }

    fn path_of(&self, name: &Name) -> PathBuf {
        self.mount_point().join(entry::file_name(name))
    }

    /// Informs the kernel of the volume's new size, if it is attached as a loop device.
    ///
    /// # Errors
    /// `Io` if the kernel refuses.
    pub fn resized(&self, volume: &dyn BlockTarget) -> Result<(), ExportError> {
        let _mounted = self.mounted.read();
        let slot = self.attached.slot(volume.id());
        let entries = slot.lock();
        for attached in entries.iter().filter_map(|entry| entry.device) {
            let path = self.file_path(volume);
            // The kernel keeps the size in the file's inode; stat(2) on the file renews it.
            fs::metadata(&path).map_err(ExportError::io("inspect", &path))?;
            attached.refresh_size()?;
        }
        drop(entries);
        drop(slot);
        self.attached.tidy();
        Ok(())
    }

    /// Returns the attachments in the order of volume ids.
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
                count: entry.count,
            });
            Some(list.collect::<Vec<_>>())
        };
        slots.into_iter().filter_map(of_slot).flatten().collect()
    }
}
