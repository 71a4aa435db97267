//! Reading a device past what its host has in memory.

use super::Device;
use crate::base::Error;

/// What a medium has at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMedium {
    /// These bytes.
    Read,
    /// The medium says that it has lost them.
    Lost,
    /// It cannot be told: the host does not read past its memory, or there.
    Unknown,
}

/// Reads the medium of a device, for the thread that made it and those that it starts.
pub struct Medium {
    reader: Option<Box<dyn Device>>,
    /// The device's length when this was made.
    len_bytes: u64,
}

impl Medium {
    /// Returns the medium of `device`.
    #[must_use]
    pub fn of(device: &dyn Device) -> Self {
        Self {
            reader: device.medium(),
            len_bytes: device.len_bytes(),
        }
    }

    /// Returns true unless the device has grown since.
    #[must_use]
    pub fn is_current(&self, device: &dyn Device) -> bool {
        self.len_bytes == device.len_bytes()
    }

    /// Fills `buf` from `offset_bytes`.
    pub fn read(&self, buf: &mut [u8], offset_bytes: u64) -> OnMedium {
        let end = offset_bytes.saturating_add(buf.len() as u64);
        let Some(reader) = self.reader.as_ref().filter(|_| end <= self.len_bytes) else {
            return OnMedium::Unknown;
        };
        match reader.read_at(buf, offset_bytes) {
            Ok(()) => OnMedium::Read,
            Err(error) if is_of_medium(&error) => OnMedium::Lost,
            Err(_) => OnMedium::Unknown,
        }
    }
}

/// Returns true for the errors with which Linux says that a medium has lost what is read, and not
/// that it cannot read in this way.
fn is_of_medium(error: &Error) -> bool {
    let errors = [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EBADMSG];
    errors.contains(&error.errno())
}
