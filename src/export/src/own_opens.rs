//! The files that this process is opening for a loop device at the moment.
//!
//! The kernel announces a file's last close without waiting for the reply. A hold that such an open
//! file takes could outlive the detaching of its device by a moment, and removing the volume then
//! would fail for no reason. The attachment holds the volume already, so a file that is opened for
//! it takes no hold of its own. The kernel names the thread that opens a file, which distinguishes
//! these opens from those of other users.

use cowshed_format::base::VolumeId;
use cowshed_sys::mount::thread_id;
use parking_lot::Mutex;
use std::sync::Arc;

/// The opens in progress; at most one per thread.
#[derive(Clone, Default)]
pub(super) struct OwnOpens {
    under_way: Arc<Mutex<Vec<(u32, VolumeId)>>>,
}

impl OwnOpens {
    /// Runs `open`, in which this thread opens the volume's file.
    pub(super) fn during<T>(&self, volume: VolumeId, open: impl FnOnce() -> T) -> T {
        let own = (thread_id(), volume);
        // The lock is not held while `open` waits for the threads that call `contains`.
        self.under_way.lock().push(own);
        let result = open();
        self.under_way.lock().retain(|other| *other != own);
        result
    }

    /// Returns true if `thread` is opening the volume's file for a device.
    pub(super) fn contains(&self, thread: u32, volume: VolumeId) -> bool {
        self.under_way.lock().contains(&(thread, volume))
    }
}
