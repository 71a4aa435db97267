//! The time that a thread runs before the scheduler checks whether another one is due.
//!
//! Not a priority: a thread with a short slice gets no more processor time than its neighbours, but
//! gets it in smaller pieces, and so sooner after it has woken (EEVDF). Linux 6.12 takes a slice
//! per thread (sched_setattr(2)); earlier kernels ignore it.

use nix::errno::Errno;
use std::io;

const THIS_THREAD: libc::pid_t = 0;
/// The smallest slice that the kernel takes; the default is about 3 ms.
const SHORT_NS: u64 = 100_000;
#[expect(clippy::cast_possible_truncation, reason = "48 bytes")]
const SIZE: u32 = size_of::<libc::sched_attr>() as u32;

/// Sets the slice of this thread, and of those that it starts from now on, to 0.1 ms, so that it
/// neither waits long for threads that keep every processor busy, nor makes them wait. Its other
/// scheduling attributes stay. A thread of a real-time policy has no slice and is left as it is.
///
/// # Errors
/// Errors of sched_getattr(2) and sched_setattr(2): EPERM or ENOSYS where a sandbox forbids them.
pub fn shorten() -> io::Result<()> {
    let mut attributes = read()?;
    let policy = i32::try_from(attributes.sched_policy);
    if !matches!(policy, Ok(libc::SCHED_OTHER | libc::SCHED_BATCH)) {
        return Ok(());
    }
    attributes.sched_runtime = SHORT_NS;
    // SAFETY: the pointer is to a whole structure whose `size` says how long it is; the kernel
    // reads that much of it during the call and keeps nothing.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            THIS_THREAD,
            &raw const attributes,
            0,
        )
    };
    Errno::result(outcome)?;
    Ok(())
}

fn read() -> io::Result<libc::sched_attr> {
    // SAFETY: the structure is made of integers, for which zero is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `SIZE` bytes, which is the structure's length, and writes
    // only integers; the pointer is to the whole structure, and the kernel does not keep it.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            THIS_THREAD,
            &raw mut attributes,
            SIZE,
            0,
        )
    };
    Errno::result(outcome)?;
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_slice_is_taken_and_changes_nothing_else() {
        let work = || {
            let before = read().unwrap();
            shorten().unwrap();
            let after = read().unwrap();
            let inherited = std::thread::spawn(|| read().unwrap().sched_runtime);
            (before, after, inherited.join().unwrap())
        };
        let (before, after, inherited) = std::thread::spawn(work).join().unwrap();
        assert_eq!(after.sched_policy, before.sched_policy);
        assert_eq!(after.sched_nice, before.sched_nice);
        assert_eq!(after.sched_flags, before.sched_flags);
        // A kernel before 6.12 has no slices to report.
        if before.sched_runtime == 0 {
            println!("skipped: this kernel has no slices of single threads");
            return;
        }
        assert_eq!((after.sched_runtime, inherited), (SHORT_NS, SHORT_NS));
    }
}
