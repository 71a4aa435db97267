//! Panics in a daemon: the process ends at once, whatever thread panicked.
//!
//! If only the thread ended, its work would be left undone and its data half changed, while
//! everything else would seem well. A worker that ends is followed by another one, which opens the
//! pool as after a crash; the panic is recorded in the log and in `pool status`.

use super::keeper::ToKeeper;
use super::log;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

/// The time that another panicking thread leaves the first one to report its panic.
const TELL_TIME: Duration = Duration::from_secs(5);

static KEEPER: OnceLock<Arc<ToKeeper>> = OnceLock::new();
static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// Makes every later panic end this process.
pub fn end_the_process() {
    std::panic::set_hook(Box::new(|info| {
        if IS_ENDING.swap(true, Ordering::SeqCst) {
            thread::sleep(TELL_TIME);
            std::process::abort();
        }
        let what = describe(info);
        if let Some(keeper) = KEEPER.get() {
            keeper.failed(&what);
        }
        log::complain(&format!(
            "cowshed: {what}; this is a defect in cowshed, and the process ends"
        ));
        let trace = std::backtrace::Backtrace::capture();
        if trace.status() == std::backtrace::BacktraceStatus::Captured {
            log::complain(&trace.to_string());
        }
        log::flush();
        std::process::abort();
    }));
}

/// Makes a panic be reported to the keeper, too.
pub(super) fn tell(keeper: &Arc<ToKeeper>) {
    let _ = KEEPER.set(Arc::clone(keeper));
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let place = info
        .location()
        .map_or(String::new(), |place| format!(" at {place}"));
    format!("thread {thread} panicked{place}: {message}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const LOG: &str = "COWSHED_TEST_PANIC_LOG";

    /// Not a test by itself: the test below starts it as a process.
    #[test]
    fn the_process_that_panics() {
        let Some(path) = std::env::var_os(LOG) else {
            return;
        };
        let filter = tracing_subscriber::EnvFilter::new("info");
        log::start(filter, Some(path.as_ref()), false).unwrap();
        end_the_process();
        // Not joined: nobody would notice its panic.
        thread::Builder::new()
            .name("background".to_owned())
            .spawn(|| panic!("a defect"))
            .unwrap();
        loop {
            thread::park();
        }
    }

    #[test]
    fn a_panic_in_any_thread_ends_the_process_and_is_in_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "panics::tests::the_process_that_panics"])
            .env(LOG, &log)
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(
            text.contains("thread background panicked at") && text.contains("a defect"),
            "{text}"
        );
    }
}
