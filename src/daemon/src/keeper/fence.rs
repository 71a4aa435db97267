//! Decides whether a worker that was killed can still change the pool.
//!
//! A killed process may linger: a thread that waits in the kernel for a file system on one of our
//! own volumes (mounting, unmounting, writing back) ends only when a successor replies to it, so
//! the keeper cannot wait for the process as a whole. But a killed thread never runs the program's
//! code again; it can only complete its current system call. So the pool is safe once each
//! remaining thread has ended, or sleeps in a call that does not write to the pool.
//!
//! # Invariants
//! - Nothing here touches a file of the volumes: that access would wait for the successor, too.
//! - A thread whose state the kernel does not report counts as one that may write.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

/// `PF_EXITING` of linux/sched.h: the thread is past its last system call.
const EXITING: u64 = 0x4;

/// System calls that can change a file, with the index of the argument that is the file's
/// descriptor; each concerns the pool only if that descriptor is open on the pool.
const WRITES: &[(libc::c_long, usize)] = &[
    (libc::SYS_write, 0),
    (libc::SYS_writev, 0),
    (libc::SYS_pwrite64, 0),
    (libc::SYS_pwritev, 0),
    (libc::SYS_pwritev2, 0),
    (libc::SYS_fallocate, 0),
    (libc::SYS_ftruncate, 0),
    // Not a change, but these calls consume the report of a failed write that the successor's own
    // sync would otherwise get.
    (libc::SYS_fdatasync, 0),
    (libc::SYS_fsync, 0),
    (libc::SYS_sync_file_range, 0),
    // BLKDISCARD and similar requests.
    (libc::SYS_ioctl, 0),
    (libc::SYS_sendfile, 0),
    (libc::SYS_copy_file_range, 2),
    (libc::SYS_splice, 2),
];
/// System calls that may write to any file.
const WRITES_ANYWHERE: &[libc::c_long] = &[libc::SYS_io_uring_enter, libc::SYS_io_submit];

/// The state of a killed worker's threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// No threads, or only threads that the kernel is taking down.
    Nothing,
    /// This many threads sleep in calls that do not concern the pool.
    Harmless(usize),
    /// This thread may still change the pool.
    MayWrite(u32),
}

/// The file that a descriptor is open on, identified by its mount and inode in `/proc/…/fdinfo`.
/// Both stay the same when the file, a folder above it, or the mount itself loses its name. Reading
/// them does not access the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PoolFile {
    mount: u64,
    /// `None` before Linux 5.14: then every file of the mount counts as the pool.
    inode: Option<u64>,
}

impl PoolFile {
    /// Returns the file that `pool` is open on.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub(super) fn of(pool: impl AsFd) -> io::Result<Self> {
        let number = pool.as_fd().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
        Self::parse(&info).ok_or_else(|| io::Error::other("/proc/self/fdinfo names no mount"))
    }

    fn parse(info: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            let (_, value) = lines.find(|(key, _)| *key == name)?;
            value.trim().parse().ok()
        };
        Some(Self {
            mount: field("mnt_id")?,
            inode: field("ino"),
        })
    }

    /// Returns true if `other` may be the same file.
    fn may_be(&self, other: &Self) -> bool {
        self.mount == other.mount
            && self
                .inode
                .zip(other.inode)
                .is_none_or(|(own, other)| own == other)
    }
}

/// Inspects the threads of the process `pid`, which has been killed, for changes of these files.
///
/// # Errors
/// When `/proc` cannot be read.
pub(super) fn look(pid: u32, pool: &[PoolFile]) -> io::Result<Left> {
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    let entries = match fs::read_dir(&tasks) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Left::Nothing),
        Err(error) => return Err(error),
    };
    let mut asleep = 0;
    for entry in entries {
        let task = match entry {
            Ok(entry) => entry.path(),
            Err(error) if is_gone(&error) => break,
            Err(error) => return Err(error),
        };
        match look_at_thread(&task, pool) {
            Ok(Thread::Ended) => {}
            Ok(Thread::Harmless) => asleep += 1,
            Err(error) if is_gone(&error) => {}
            Ok(Thread::MayWrite) | Err(_) => {
                let name = task.file_name().and_then(|name| name.to_str());
                let thread = name.and_then(|name| name.parse().ok());
                return Ok(Left::MayWrite(thread.unwrap_or(pid)));
            }
        }
    }
    Ok(match asleep {
        0 => Left::Nothing,
        asleep => Left::Harmless(asleep),
    })
}

enum Thread {
    Ended,
    Harmless,
    MayWrite,
}

fn look_at_thread(task: &Path, pool: &[PoolFile]) -> io::Result<Thread> {
    let Some((state, flags)) = state_of(&fs::read_to_string(task.join("stat"))?) else {
        return Ok(Thread::MayWrite);
    };
    if matches!(state, 'Z' | 'X' | 'x') || flags & EXITING != 0 {
        return Ok(Thread::Ended);
    }
    if state != 'D' {
        // The thread has not noticed the kill yet.
        return Ok(Thread::MayWrite);
    }
    let call = fs::read_to_string(task.join("syscall"))?;
    let writes = match target_of(&call) {
        Target::None => false,
        Target::Any => true,
        Target::Descriptor(number) => {
            // A file that cannot be told apart from the pool counts as the pool.
            fs::read_to_string(task.join(format!("fdinfo/{number}")))
                .ok()
                .and_then(|info| PoolFile::parse(&info))
                .is_none_or(|file| pool.iter().any(|pool| file.may_be(pool)))
        }
    };
    Ok(if writes {
        Thread::MayWrite
    } else {
        Thread::Harmless
    })
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Parses the state and flags in a line of `/proc/…/stat`. The program's name in the line may
/// contain any characters.
fn state_of(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let flags = fields.nth(5)?.parse().ok()?;
    Some((state, flags))
}

/// The file that a system call may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    None,
    Any,
    Descriptor(u64),
}

/// Parses a line of `/proc/…/syscall`: the call's number and arguments; `running`; or -1 outside of
/// any call, as in a page fault.
fn target_of(call: &str) -> Target {
    let mut fields = call.split_whitespace();
    let Some(number) = fields.next().and_then(|text| text.parse().ok()) else {
        return Target::Any;
    };
    if WRITES_ANYWHERE.contains(&number) {
        return Target::Any;
    }
    let Some((_, argument)) = WRITES.iter().find(|(write, _)| *write == number) else {
        return Target::None;
    };
    let value = fields
        .nth(*argument)
        .and_then(|text| text.strip_prefix("0x"));
    value
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .map_or(Target::Any, |value| {
            // A descriptor is an int; the upper half of the register is undefined.
            Target::Descriptor(value & u64::from(u32::MAX))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_line_of_the_kernels_is_understood_whatever_the_programs_name_is() {
        let line = "7 (a) D 1 (x) D 1 7 7 0 -1 4194564 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0\n";
        assert_eq!(state_of(line), Some(('D', 4_194_564)));
        assert_eq!(state_of("7 (x) D 1 7"), None);
        assert_eq!(state_of(""), None);
    }

    #[test]
    fn only_calls_that_write_have_a_target() {
        let pwrite = format!(
            "{} 0x5 0x7f 0x1000 0x0 0x0 0x0 0x7f 0x7f",
            libc::SYS_pwrite64
        );
        assert_eq!(target_of(&pwrite), Target::Descriptor(5));
        let copy = format!(
            "{} 0x5 0x0 0x9 0x0 0x0 0x0 0x7f 0x7f",
            libc::SYS_copy_file_range
        );
        assert_eq!(target_of(&copy), Target::Descriptor(9));
        let umount = format!("{} 0x5 0x0 0x0", libc::SYS_umount2);
        assert_eq!(target_of(&umount), Target::None);
        assert_eq!(target_of("-1 0x7f 0x7f"), Target::None);
        assert_eq!(target_of("running"), Target::Any);
        assert_eq!(target_of(""), Target::Any);
        let ring = format!("{} 0x5", libc::SYS_io_uring_enter);
        assert_eq!(target_of(&ring), Target::Any);
        assert_eq!(target_of(&libc::SYS_pwrite64.to_string()), Target::Any);
    }

    #[test]
    fn a_file_is_the_same_under_another_name_and_another_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
        let file = fs::File::create(&old).unwrap();
        let pool = PoolFile::of(&file).unwrap();
        fs::rename(&old, &new).unwrap();
        let renamed = fs::File::open(&new).unwrap();
        assert!(pool.may_be(&PoolFile::of(&renamed).unwrap()));
        let other = fs::File::create(&old).unwrap();
        assert!(!pool.may_be(&PoolFile::of(&other).unwrap()));
        fs::remove_file(&new).unwrap();
        assert!(pool.may_be(&PoolFile::of(&file).unwrap()), "removed");
    }

    #[test]
    fn where_the_kernel_does_not_tell_the_inode_the_mount_decides() {
        let parse = |info| PoolFile::parse(info).unwrap();
        let pool = parse("pos:\t0\nflags:\t02\nmnt_id:\t29\n");
        assert!(pool.may_be(&parse("mnt_id:\t29\nino:\t7\n")));
        assert!(!pool.may_be(&parse("mnt_id:\t30\nino:\t7\n")));
        assert_eq!(PoolFile::parse("pos:\t0\n"), None);
    }

    #[test]
    fn a_live_process_may_write_and_one_that_has_ended_may_not() {
        let pool = PoolFile::of(fs::File::open("/proc/self/exe").unwrap()).unwrap();
        // Busy, because a process that sleeps in a read cannot write; for a minute, so that none is
        // left behind when the test fails.
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -t 60; while :; do :; done"])
            .spawn()
            .unwrap();
        let eventually = |what: &str, is_so: &dyn Fn(Left) -> bool| {
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while !is_so(look(child.id(), &[pool]).unwrap()) {
                assert!(std::time::Instant::now() < deadline, "{what}");
                std::thread::yield_now();
            }
        };
        // While it starts, it may just be in a read.
        eventually("it never may write", &|left| {
            matches!(left, Left::MayWrite(_))
        });
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.id().cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        // Not reaped yet: the process stays as a zombie.
        eventually("it does not die", &|left| left == Left::Nothing);
        child.wait().unwrap();
        assert_eq!(look(child.id(), &[pool]).unwrap(), Left::Nothing);
    }
}
