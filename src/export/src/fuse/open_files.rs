//! The open files by handle, found without a lock, and recorded in the handover state.
//!
//! # Invariants
//! - A file is in the handover state before its handle is returned, and leaves it after its last
//!   request, so a successor knows every handle that the kernel may name.
//! - The volume's hold is taken before the handover state has the file.

use super::abi::InHeader;
use super::dispatch::first_unique;
use super::handover_state::{OPEN_MAX, OpenRecord, Records};
use crate::file_io::{Answer, OpenFile};
use crate::target::Directory;
use arc_swap::{ArcSwapOption, Guard};
use cowshed_format::base::VolumeId;
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};

/// Slots that are allocated together, when the first of them is needed.
const CHUNK: usize = 1024;

type Slot = ArcSwapOption<Opened>;

/// An open file with the kernel's handle for it.
pub(super) struct Opened {
    handle: u64,
    pub(super) file: OpenFile,
}

/// The table.
pub(super) struct OpenFiles {
    records: Arc<Records>,
    chunks: Box<[OnceLock<Box<[Slot]>>]>,
    free: Mutex<Free>,
}

/// The free slots.
#[derive(Default)]
struct Free {
    returned: Vec<usize>,
    /// All slots from here on.
    next: usize,
}

impl OpenFiles {
    /// Returns the table of the files that the handover state records as open. A file whose volume
    /// is gone is left out, and its handle stays dead.
    pub(super) fn adopt(records: Arc<Records>, directory: &dyn Directory) -> Self {
        let files = Self {
            records,
            chunks: (0..OPEN_MAX / CHUNK).map(|_| OnceLock::new()).collect(),
            free: Mutex::default(),
        };
        let mut free = Free::default();
        for slot in 0..OPEN_MAX {
            let Some(record) = files.records.opened(slot) else {
                continue;
            };
            free.returned.extend(free.next..slot);
            free.next = slot + 1;
            match reopen(directory, &record) {
                Ok(file) => files.store(slot, record.handle, file),
                Err(code) => {
                    let (volume, error) = (record.volume, std::io::Error::from_raw_os_error(code));
                    tracing::error!(
                        %volume, %error,
                        "cannot serve an open file any longer, and its users get errors"
                    );
                    files.records.close(slot);
                    free.returned.push(slot);
                }
            }
        }
        *files.free.lock() = free;
        files
    }

    fn slot(&self, slot: usize) -> &Slot {
        let make = || (0..CHUNK).map(|_| Slot::empty()).collect();
        &self.chunks[slot / CHUNK].get_or_init(make)[slot % CHUNK]
    }

    fn store(&self, slot: usize, handle: u64, file: OpenFile) {
        self.slot(slot)
            .store(Some(Arc::new(Opened { handle, file })));
    }

    /// Keeps `file`, opened by the request with this header, and returns its handle. If an earlier
    /// run of the same request has opened it already, that file stays and `file` is dropped.
    pub(super) fn insert(&self, header: &InHeader, id: VolumeId, file: OpenFile) -> Answer<u64> {
        let (is_again, unique) = first_unique(header);
        if is_again && let Some(earlier) = self.opened_by(unique, id) {
            return Ok(earlier);
        }
        let slot = self.free.lock().take().ok_or(libc::ENFILE)?;
        let handle = self
            .records
            .open(slot, id, unique, file.holds(), file.writes());
        self.store(slot, handle, file);
        Ok(handle)
    }

    fn opened_by(&self, unique: u64, id: VolumeId) -> Option<u64> {
        let end = self.free.lock().next;
        let record = (0..end)
            .filter_map(|slot| self.records.opened(slot))
            .find(|record| record.unique == unique && record.volume == id)?;
        self.get(record.handle).ok().map(|_| record.handle)
    }

    /// Returns the open file of the handle.
    pub(super) fn get(&self, handle: u64) -> Answer<Found> {
        let slot = Records::slot_of(handle).ok_or(libc::EBADF)?;
        let chunk = self.chunks[slot / CHUNK].get().ok_or(libc::EBADF)?;
        let found = chunk[slot % CHUNK].load();
        match &*found {
            Some(opened) if opened.handle == handle => Ok(Found(found)),
            _ => Err(libc::EBADF),
        }
    }

    /// Closes the file of the handle. Does nothing if the file is gone: an earlier run of the same
    /// request may have closed it.
    pub(super) fn remove(&self, handle: u64) {
        let (Ok(found), Some(slot)) = (self.get(handle), Records::slot_of(handle)) else {
            return;
        };
        let before = self.slot(slot).compare_and_swap(&*found.0, None);
        let is_ours = match (&*before, &*found.0) {
            (Some(before), Some(found)) => Arc::ptr_eq(before, found),
            _ => false,
        };
        if is_ours {
            // No request for the file is in progress: the kernel sends this one after their
            // replies.
            self.records.close(slot);
            drop((before, found));
            self.free.lock().returned.push(slot);
        }
    }
}

impl Free {
    fn take(&mut self) -> Option<usize> {
        if let Some(slot) = self.returned.pop() {
            return Some(slot);
        }
        let slot = self.next;
        (slot < OPEN_MAX).then(|| {
            self.next += 1;
            slot
        })
    }
}

/// An open file in use.
pub(super) struct Found(Guard<Option<Arc<Opened>>>);

impl Found {
    pub(super) fn file(&self) -> Answer<&OpenFile> {
        self.0
            .as_ref()
            .map(|opened| &opened.file)
            .ok_or(libc::EBADF)
    }
}

fn reopen(directory: &dyn Directory, record: &OpenRecord) -> Answer<OpenFile> {
    let target = directory
        .by_id(record.volume)
        .map_err(|error| error.errno())?;
    OpenFile::reopen(target, record.writes, !record.holds)
}
