//! Writing a file's cached pages back, and finding out whether the host failed to.
//!
//! The kernel reports a failed write-back once to each open file description, and forgets the data
//! that was not written. If a process is killed while it gets the report, the report is lost with
//! it; another description that was opened before still gets its own.

use nix::errno::Errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// An offset beyond all data, so that the call waits for nothing.
const NOWHERE: i64 = 1 << 62;

/// Returns true if writing to the file has failed since `witness` was opened or last asked.
#[must_use]
pub fn has_failed(witness: BorrowedFd<'_>) -> bool {
    // SAFETY: no memory is passed, and the descriptor is open for as long as it is borrowed.
    let outcome = unsafe {
        libc::sync_file_range(
            witness.as_raw_fd(),
            NOWHERE,
            libc::off64_t::from(4096),
            libc::SYNC_FILE_RANGE_WAIT_BEFORE,
        )
    };
    match Errno::result(outcome) {
        Ok(_) => false,
        // A descriptor without a page cache has no failures to report.
        Err(Errno::EINVAL | Errno::ESPIPE | Errno::ENOSYS) => false,
        Err(_) => true,
    }
}

/// Writes out a file's cached pages and waits for that, without the file's lock: concurrent writes
/// to the file may go on for long. It is not a barrier on the disk.
///
/// # Errors
/// Errors of the host, and the error of an earlier write-back.
pub fn write_out(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed, and the descriptor is open for as long as it is borrowed.
    let outcome = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            0,
            0,
            libc::SYNC_FILE_RANGE_WAIT_BEFORE
                | libc::SYNC_FILE_RANGE_WRITE
                | libc::SYNC_FILE_RANGE_WAIT_AFTER,
        )
    };
    Errno::result(outcome)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::process::Command;

    fn run(program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}: {told}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    struct Undo(Vec<Vec<String>>);

    impl Drop for Undo {
        fn drop(&mut self) {
            for command in self.0.iter().rev() {
                let _ = Command::new(&command[0]).args(&command[1..]).status();
            }
        }
    }

    #[test]
    fn a_witness_learns_of_a_failure_that_another_was_told_of() {
        let folder = tempfile::Builder::new()
            .prefix("cowshed-write-back")
            .tempdir()
            .unwrap();
        let path = folder.path().to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=1M", "cowshed", path]);
        let mut undo = Undo(vec![vec!["umount".into(), path.into()]]);
        // A disk of 16 MiB whose host has space for 1 MiB.
        let backing = folder.path().join("disk");
        File::create(&backing).unwrap().set_len(16 << 20).unwrap();
        let device = run("losetup", &["-f", "--show", backing.to_str().unwrap()]);
        undo.0
            .push(vec!["losetup".into(), "-d".into(), device.clone()]);
        let witness = File::open(&device).unwrap();
        assert!(!has_failed(witness.as_fd()));
        let mut writer = fs::OpenOptions::new().write(true).open(&device).unwrap();
        writer.write_all(&[1; 8 << 20]).unwrap();
        writer.sync_data().unwrap_err();
        // The host would not report it again to the descriptor that has already been told.
        writer.sync_data().unwrap();
        assert!(has_failed(witness.as_fd()));
        assert!(!has_failed(witness.as_fd()));
        drop((writer, witness));
    }
}
