//! A table of descriptors for some threads of a process, apart from that of the others.

use super::descriptors;
use nix::sched::{CloneFlags, unshare};
use std::io;
use std::os::fd::{OwnedFd, RawFd};

/// The standard streams, which every table keeps.
const STREAMS: i32 = 3;

/// Gives this thread, and the threads that it starts from now on, a table of descriptors of their
/// own, with nothing in it but the standard streams and `keep`.
///
/// What they open from now on is theirs alone: the kernel closes it when the last of them ends,
/// also when the process is killed and another thread of it cannot end yet. In return, they must
/// not use, nor drop, any other object with a descriptor that another thread has made or will
/// make; its number may be free or stand for something else here.
///
/// # Errors
/// What unshare(2) and close_range(2) answer; the latter exists since Linux 5.9.
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

/// The objects for descriptors that `keep_only` kept in this thread's own table, as the table that
/// it was copied from has others for them: each closes its own copy only.
///
/// # Errors
/// EBADF when one of them was not kept.
pub fn own_copies(numbers: &[RawFd]) -> io::Result<Vec<OwnedFd>> {
    descriptors::inherit(numbers)
}

/// Closes everything but the standard streams in the table that `keep_only` made, for the last of
/// its threads that uses it: nothing of it lives on, not even until that thread has ended.
///
/// # Errors
/// What close_range(2) answers.
pub fn close_all() -> io::Result<()> {
    close_range(STREAMS, i32::MAX)
}

/// Closes the descriptors from `first` to `last`, if that is a range, in this thread's own table.
fn close_range(first: i32, last: i32) -> io::Result<()> {
    let (Ok(from), Ok(to)) = (u32::try_from(first), u32::try_from(last)) else {
        return Ok(());
    };
    if from > to {
        return Ok(());
    }
    // SAFETY: close_range takes plain numbers. The table belongs to the threads that `keep_only`
    // set apart, and their code uses no object with one of these descriptors: that is the promise
    // of both callers' callers.
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
        // Reaches its end, since nobody else holds the other side.
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "open elsewhere");
    }
}
