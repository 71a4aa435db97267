//! A loop device that an export has made, with the data that proves that it is still the same one.
//!
//! Anyone may detach a loop device and attach another file to the same number; then it no longer
//! belongs to this export, and detaching it succeeds without touching it.

use super::error::ExportError;
use super::fuse::DeviceRecord;
use super::holders::Holders;
use cowshed_sys::loop_device::{BackingId, Claim, LoopDevice, LoopOptions};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Number of attempts to claim a device that is to be detached. A process that is about to execute a
/// program in a mount namespace of its own has the mount of the one that started it for a moment.
const CLAIM_TRIES: u32 = 30;
/// Time to wait between attempts.
const CLAIM_WAIT: Duration = Duration::from_millis(10);

/// A loop device and the file that it had when it was made.
#[derive(Clone, Copy)]
pub(super) struct AttachedDevice {
    device: LoopDevice,
    backing: BackingId,
}

impl AttachedDevice {
    /// Attaches `file`, which was opened as `path`.
    pub(super) fn attach(
        file: &File,
        path: &Path,
        options: LoopOptions,
    ) -> Result<Self, ExportError> {
        let device = LoopDevice::attach(file, options).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ExportError::NoLoop,
            _ => ExportError::io("attach a loop device to", path)(error),
        })?;
        match device.backing_id() {
            Ok(backing) => {
                if !device.uses_direct_io().unwrap_or(true) {
                    tracing::warn!(
                        device = %device.path().display(),
                        "a loop device does not use direct I/O"
                    );
                }
                Ok(Self { device, backing })
            }
            Err(error) => {
                // Best effort: the caller gets the first error.
                let _ = device.detach_when_unused();
                Err(ExportError::io("inspect", &device.path())(error))
            }
        }
    }

    /// Returns the device that a predecessor attached, from its entry in the handover state.
    pub(super) fn restore(number: u32, backing: BackingId) -> Self {
        Self {
            device: LoopDevice::numbered(number),
            backing,
        }
    }

    /// Returns the record of the device for a successor.
    pub(super) fn record(self) -> DeviceRecord {
        DeviceRecord::Made {
            number: self.device.number(),
            backing_device: self.backing.device,
            backing_inode: self.backing.inode,
        }
    }

    /// Returns the device's number.
    pub(super) fn number(self) -> u32 {
        self.device.number()
    }

    /// Returns the device's logical block size.
    pub(super) fn sector_bytes(self) -> Option<u32> {
        self.device.block_bytes()
    }

    /// Returns the path of the device's node.
    pub(super) fn path(self) -> PathBuf {
        self.device.path()
    }

    /// Sets the device's size to the file's present size.
    pub(super) fn refresh_size(self) -> Result<(), ExportError> {
        self.device
            .refresh_size()
            .map_err(ExportError::io("resize", &self.path()))
    }

    /// Flushes and detaches the device. A busy device stays attached.
    pub(super) fn detach(self) -> Result<(), ExportError> {
        let mounts = Holders::mounts_of(self.device);
        if !mounts.0.is_empty() && self.is_ours() {
            return Err(ExportError::Busy {
                what: self.path(),
                by: mounts,
            });
        }
        let claim = match self.claim() {
            Ok(claim) => claim,
            Err(error) if is_gone(&error) || self.is_lost() => return Ok(()),
            Err(error) => return Err(self.failed(error)),
        };
        // Read again, now that nobody else can attach anything to the device.
        match claim.backing_id() {
            Ok(found) if found == self.backing => {}
            Ok(_) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(self.failed(error)),
        }
        claim
            .sync()
            .map_err(ExportError::io("flush", &self.path()))?;
        claim.detach().map_err(|error| self.failed(error))
    }

    fn claim(self) -> io::Result<Claim> {
        let mut tries = CLAIM_TRIES;
        loop {
            let claimed = self.device.claim();
            tries -= 1;
            match claimed {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && tries > 0 => {
                    thread::sleep(CLAIM_WAIT);
                }
                claimed => return claimed,
            }
        }
    }

    /// Asks the kernel to detach the device when its last user is gone.
    pub(super) fn leave_to_kernel(self) {
        if self.is_ours()
            && let Err(error) = self.device.detach_when_unused()
        {
            tracing::warn!(device = %self.path().display(), %error, "cannot detach a loop device");
        }
    }

    fn is_ours(self) -> bool {
        self.device
            .backing_id()
            .is_ok_and(|found| found == self.backing)
    }

    /// Returns true if someone has detached the device, and perhaps attached another file.
    pub(super) fn is_lost(self) -> bool {
        match self.device.backing_id() {
            Ok(found) => found != self.backing,
            Err(error) => is_gone(&error),
        }
    }

    fn failed(self, error: io::Error) -> ExportError {
        let what = self.path();
        match error.raw_os_error() {
            Some(libc::EBUSY) => ExportError::Busy {
                what,
                by: Holders::of_device(self.device),
            },
            _ => ExportError::io("detach", &what)(error),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENOENT))
}
