//! Getting a thread out of a system call that waits, and keeping signals from threads that are not
//! to handle them.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

/// Ignored unless someone asks for it, so that a stray one harms nobody.
const SIGNAL: Signal = Signal::SIGURG;

extern "C" fn nothing(_signal: libc::c_int) {}

/// Leaves the signals that ask a process to end to other threads than this one and those that it
/// starts.
///
/// # Errors
/// What pthread_sigmask(3) answers.
pub fn leave_requests_to_others() -> io::Result<()> {
    let requests = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];
    let requests: SigSet = requests.into_iter().collect();
    Ok(requests.thread_block()?)
}

/// Makes `interrupt` end system calls: from now on SIGURG runs a handler that does nothing.
///
/// # Errors
/// What sigaction(2) answers.
pub fn prepare() -> io::Result<()> {
    // Without SA_RESTART, so that the interrupted call answers EINTR.
    let handler = SigHandler::Handler(nothing);
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it is safe at any point of any thread.
    unsafe { sigaction(SIGNAL, &action) }?;
    Ok(())
}

/// Ends the call in which the thread waits, with EINTR. One that is about to wait is missed, so
/// this is repeated until the thread does what was wanted.
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
