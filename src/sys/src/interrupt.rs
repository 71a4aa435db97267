//! Interrupting a thread that waits in a system call, and keeping signals from threads that are not
//! to handle them.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

/// A signal that is ignored by default, so that a stray one does no harm.
const SIGNAL: Signal = Signal::SIGURG;

extern "C" fn nothing(_signal: libc::c_int) {}

/// Blocks the signals that ask a process to end in this thread and those that it starts; other
/// threads handle them.
///
/// # Errors
/// Errors of pthread_sigmask(3).
pub fn leave_requests_to_others() -> io::Result<()> {
    let requests = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];
    let requests: SigSet = requests.into_iter().collect();
    Ok(requests.thread_block()?)
}

/// Makes `interrupt` end system calls: from now on SIGURG runs a handler that does nothing.
///
/// # Errors
/// Errors of sigaction(2).
pub fn prepare() -> io::Result<()> {
    // Without SA_RESTART, so that the interrupted call returns EINTR.
    let handler = SigHandler::Handler(nothing);
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it is safe at any point of any thread.
    unsafe { sigaction(SIGNAL, &action) }?;
    Ok(())
}

/// Ends the call in which the thread waits, with EINTR. A thread that is just about to wait misses
/// the signal, so the caller repeats this until the thread has done what was wanted.
pub fn interrupt<T>(thread: &JoinHandle<T>) {
    if !thread.is_finished() {
        // SAFETY: the thread has neither been joined nor detached, since its handle is borrowed,
        // so its pthread_t is valid, even if it ends just now.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGNAL as libc::c_int) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::Duration;

    #[test]
    fn a_thread_that_reads_from_an_empty_pipe_is_interrupted() {
        let (reader, writer) = io::pipe().unwrap();
        prepare().unwrap();
        let waiting = std::thread::spawn(move || (&reader).read(&mut [0]).unwrap_err().kind());
        while !waiting.is_finished() {
            interrupt(&waiting);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(waiting.join().unwrap(), io::ErrorKind::Interrupted);
        drop(writer);
    }
}
