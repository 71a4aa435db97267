//! A descriptor table for some threads of a process, separate from that of the others.

use super::descriptors;
use nix::sched::{CloneFlags, unshare};
use std::io;
use std::os::fd::{OwnedFd, RawFd};

/// The standard streams, which every table keeps.
const STREAMS: i32 = 3;

/// Gives this thread, and the threads that it starts from now on, a descriptor table of their own
/// that holds only the standard streams and `keep`.
///
/// Descriptors that they open from now on are theirs alone: the kernel closes them when the last of
/// these threads ends, also when the process is killed and another of its threads cannot end yet.
/// In return, these threads must neither use nor drop any other object with a descriptor that
/// another thread has made or will make: here its number may be free or refer to something else.
///
/// # Errors
/// Errors of unshare(2) and close_range(2); the latter exists since Linux 5.9.
pub fn keep_only(keep: &[RawFd]) -> io::Result<()> {
    unshare(CloneFlags::CLONE_FILES)?;
    let mut kept = keep.to_vec();
    kept.sort_unstable();
    let mut first = STREAMS;
    for number in kept {
        close_range(first, number - 1)?;
        first = first.max(number + 1);
    }
    close_range(first, i32::MAX)
}

/// Returns owners for the descriptors that `keep_only` kept in this thread's own table. The table
/// that it was copied from has other owners for them; each owner closes only its own table's copy.
///
/// # Errors
/// EBADF if one of them was not kept.
pub fn own_copies(numbers: &[RawFd]) -> io::Result<Vec<OwnedFd>> {
    descriptors::inherit(numbers)
}

/// Closes all but the standard streams in the table that `keep_only` made; for the last of its
/// threads that uses it. Nothing in the table stays open, not even until that thread has ended.
///
/// # Errors
/// Errors of close_range(2).
pub fn close_all() -> io::Result<()> {
    close_range(STREAMS, i32::MAX)
}

/// Closes the descriptors from `first` to `last` in this thread's own table; nothing if the range
/// is empty.
fn close_range(first: i32, last: i32) -> io::Result<()> {
    let (Ok(from), Ok(to)) = (u32::try_from(first), u32::try_from(last)) else {
        return Ok(());
    };
    if from > to {
        return Ok(());
    }
    // SAFETY: close_range takes plain numbers. The table belongs to the threads that `keep_only`
    // set apart, and their code uses no object with one of these descriptors: the callers of both
    // callers guarantee that.
    let answer = unsafe { libc::close_range(from, to, 0) };
    nix::errno::Errno::result(answer)
        .map(drop)
        .map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::thread;

    #[test]
    fn a_thread_apart_keeps_what_it_was_left_and_others_lose_nothing() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let kept = File::open("/proc/self/exe").unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                keep_only(&[kept.as_raw_fd()]).unwrap();
                assert!(kept.metadata().is_ok());
                assert!(nix::unistd::dup(&writer).is_err(), "it is closed here");
            });
        });
        writer.write_all(b"open elsewhere").unwrap();
        drop(writer);
        let mut text = String::new();
        // The read reaches its end, since nothing else holds the other side.
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "open elsewhere");
    }
}
