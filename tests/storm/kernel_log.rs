//! The kernel's messages about a test's own devices.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Words for which a healthy device gives no reason.
const COMPLAINTS: [&str; 5] = ["error", "corrupt", "shut", "abort", "warning"];

/// The kernel's log from a point in time.
pub(crate) struct KernelLog {
    log: Option<File>,
    /// The kernel's names of the devices.
    devices: Vec<String>,
}

impl KernelLog {
    /// Starts now. If the log may not be read, nothing is ever found in it.
    pub(crate) fn begin(devices: &[&Path]) -> Self {
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut log = options.open("/dev/kmsg").ok();
        if let Some(file) = &mut log {
            file.seek(SeekFrom::End(0)).unwrap();
        }
        Self {
            log,
            devices: devices.iter().map(|path| device_name(path)).collect(),
        }
    }

    /// Asserts that there is no alarming message about the devices.
    pub(crate) fn expect_no_complaint(mut self) {
        let complaints = self.complaints();
        assert!(complaints.is_empty(), "the kernel says: {complaints:#?}");
    }

    fn complaints(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let Some(log) = &mut self.log else {
            return found;
        };
        let mut record = vec![0; 8192];
        loop {
            match log.read(&mut record) {
                Ok(len) => {
                    let text = String::from_utf8_lossy(&record[..len]);
                    if is_complaint(&text, &self.devices) {
                        found.push(text.into_owned());
                    }
                }
                // Messages that are too old to be kept.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return found,
                Err(error) => panic!("the kernel's log: {error}"),
            }
        }
    }
}

/// Asserts that messages about the test's device are found, and those about others are not. If no
/// process may write messages, nothing can be found.
pub(crate) fn expect_to_notice() {
    let ours = format!("cowshed{}", std::process::id());
    let devices = [Path::new("/dev").join(&ours), Path::new("/dev/none").into()];
    let [mut log, mut others] = devices.map(|device| KernelLog::begin(&[&device]));
    let line = format!("a test of cowshed: I/O error, dev {ours}, sector 0\n");
    if fs::write("/dev/kmsg", line).is_ok() && log.log.is_some() {
        assert_eq!(log.complaints().len(), 1);
        assert_eq!(others.complaints(), [""; 0]);
    }
}

fn device_name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn is_complaint(text: &str, devices: &[String]) -> bool {
    let message = text.split_once(';').map_or(text, |(_, message)| message);
    let lower = message.to_lowercase();
    let mut words = lower.split(|letter: char| !letter.is_alphanumeric());
    let is_ours = words.any(|word| devices.iter().any(|device| device == word));
    // ext4 reports its mount options this way.
    let harmless = lower.contains("errors=");
    is_ours && !harmless && COMPLAINTS.iter().any(|complaint| lower.contains(complaint))
}
