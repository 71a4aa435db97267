//! Asking what may never answer.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// The time that another program gets to answer.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Returns what `work` returns, or `None` if that takes too long: its thread ends with the process
/// then.
pub(super) fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(ANSWER_TIME).ok()
}
