//! What the kernel says about a test's own devices.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Words that a healthy device gives no reason for.
const COMPLAINTS: [&str; 5] = ["error", "corrupt", "shut", "abort", "warning"];

/// The kernel's log from a moment on.
pub(crate) struct KernelLog {
    log: Option<File>,
    /// By the names that the kernel has for them.
    devices: Vec<String>,
}

impl KernelLog {
    /// Begins now. Where the log may not be read, nothing is ever found in it.
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

    /// Nothing was said about the devices that one would have to worry about.
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
                // What was said too long ago to be kept.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return found,
                Err(error) => panic!("the kernel's log: {error}"),
            }
        }
    }
}

/// What is said about a device is found, and what is said about others is not. Where nobody may
/// say anything, there is nothing to find.
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
    // How ext4 tells how it is mounted.
    let harmless = lower.contains("errors=");
    is_ours && !harmless && COMPLAINTS.iter().any(|complaint| lower.contains(complaint))
}
