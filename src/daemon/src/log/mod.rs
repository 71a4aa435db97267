//! The log of a daemon: its `tracing` output.
//!
//! The lines go through a queue to a thread that writes them to a file or to the error
//! stream. Logging never fails, waits or panics: when the disk is full or nobody reads the pipe,
//! lines are lost, and the log reports their number once it can.
//!
//! On the journal (`JOURNAL_STREAM` names the error stream) each line begins with its priority, as
//! `sd-daemon(3)` describes, and has no time, since the journal has one.

mod file;
mod place;
mod queue;

pub use place::{default_log, make_folder, open_stream, resolve};

use cowshed_format::base::printable;
use cowshed_sys::file_table;
use file::LogFile;
use nix::sys::signal::SigSet;
use queue::{Batch, Queue};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The time that the last lines may take when the process ends.
const FLUSH_TIME: Duration = Duration::from_secs(1);
/// The priority of a failure, as in syslog(3).
const PRIORITY_ERROR: u8 = 3;
/// The stack size of the log's thread: a keeper's memory is locked, including the stacks of its
/// threads.
const STACK_BYTES: usize = 256 << 10;

/// The daemon's log, in a daemon's process.
static DAEMON: OnceLock<Log> = OnceLock::new();

/// Starts the log of a daemon: the file at `path`, or else the error stream, in colour if that
/// `takes_colour`.
///
/// # Errors
/// When the file is refused, or no thread can be started.
pub fn start(filter: EnvFilter, path: Option<&Path>, takes_colour: bool) -> io::Result<()> {
    let on_journal = path.is_none() && is_journal();
    let in_colour = path.is_none() && !on_journal && takes_colour;
    let path = path.map(resolve);
    let log = Log::start(on_journal, in_colour, move || match path {
        Some(path) => match open_stream(&path)? {
            Some(stream) => Ok(Sink::Stream(stream)),
            None => LogFile::open(&path).map(Sink::File),
        },
        None => Ok(Sink::Stream(
            io::stderr().as_fd().try_clone_to_owned()?.into(),
        )),
    })?;
    let log = DAEMON.get_or_init(|| log).clone();
    let format = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .log_internal_errors(false)
        .with_writer(log);
    if on_journal {
        format
            .without_time()
            .with_level(false)
            .with_ansi(false)
            .init();
    } else {
        format.with_ansi(in_colour).init();
    }
    Ok(())
}

/// Writes a line to the daemon's log; returns true if this process is a daemon.
pub fn complain(line: &str) -> bool {
    let Some(log) = DAEMON.get() else {
        return false;
    };
    log.push(PRIORITY_ERROR, format!("{line}\n").as_bytes());
    true
}

/// Tells the log's thread to open the daemon's log file again.
pub fn reopen() {
    if let Some(log) = DAEMON.get() {
        log.queue.reopen();
    }
}

/// Waits for a limited time until the daemon's log is written out.
pub fn flush() {
    if let Some(log) = DAEMON.get() {
        log.queue.flush(FLUSH_TIME);
    }
}

/// Returns true if the error stream is the one that the service manager connected to the journal.
fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    nix::sys::stat::fstat(io::stderr())
        .is_ok_and(|found| format!("{}:{}", found.st_dev, found.st_ino) == named)
}

/// The queue and format of the lines. Clones are the same log.
#[derive(Clone, Debug)]
struct Log {
    queue: Queue,
    on_journal: bool,
    /// Events carry the escapes of a terminal; `tracing` keeps escapes from other sources out.
    in_colour: bool,
}

impl Log {
    /// Starts the thread, which opens its output in its own table of descriptors: if the thread
    /// hangs on a disk when the process is killed, it keeps no other descriptor open.
    fn start(
        on_journal: bool,
        in_colour: bool,
        open: impl FnOnce() -> io::Result<Sink> + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Queue::default();
        let lines = queue.clone();
        let (sender, opened) = channel();
        thread::Builder::new()
            .name("log".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // Signals are left to the threads that wait for them.
                let _ = SigSet::all().thread_block();
                let mut sink = match file_table::keep_only(&[]).and_then(|()| open()) {
                    Ok(sink) => sink,
                    Err(error) => return drop(sender.send(Err(error))),
                };
                let _ = sender.send(Ok(()));
                let mut lost = 0;
                loop {
                    sink.write_out(lines.take(), &mut lost, on_journal);
                }
            })?;
        opened.recv().map_err(io::Error::other)??;
        Ok(Self {
            queue,
            on_journal,
            in_colour,
        })
    }

    fn push(&self, priority: u8, text: &[u8]) {
        let line = if self.on_journal {
            with_priority(priority, text)
        } else {
            text.to_owned()
        };
        self.queue.push(line);
    }
}

/// Formats an event on one line: a name from outside in it neither forges a line nor moves a
/// cursor.
fn one_line(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    let mut line = printable(text.strip_suffix('\n').unwrap_or(&text)).into_owned();
    line.push('\n');
    line
}

/// Prefixes each line with its priority.
fn with_priority(priority: u8, text: &[u8]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(text.len() + 4);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        lines.extend_from_slice(format!("<{priority}>").as_bytes());
        lines.extend_from_slice(line);
    }
    lines
}

/// The output of the log.
#[derive(Debug)]
enum Sink {
    Stream(File),
    File(LogFile),
}

impl Sink {
    fn write_out(&mut self, batch: Batch, lost: &mut u64, on_journal: bool) {
        if batch.reopen
            && let Self::File(file) = self
            && let Err(error) = file.reopen()
        {
            // The failure is reported in the old file, which can still be read.
            let line = format!("cowshed: cannot reopen the log: {error}\n");
            let _ = file.write(line.as_bytes());
        }
        *lost += batch.lost;
        for line in batch.lines {
            if *lost > 0 {
                let told = format!("cowshed: {lost} lines of the log were lost before this line\n");
                let told = if on_journal {
                    with_priority(PRIORITY_ERROR, told.as_bytes())
                } else {
                    told.into_bytes()
                };
                if self.write(&told).is_err() {
                    *lost += 1;
                    continue;
                }
                *lost = 0;
            }
            if self.write(&line).is_err() {
                *lost += 1;
            }
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.write_all(line),
            Self::File(file) => file.write(line),
        }
    }
}

/// A writer of one event.
struct Event<'a> {
    log: &'a Log,
    priority: u8,
}

impl Write for Event<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.log.in_colour {
            self.log.push(self.priority, bytes);
        } else {
            self.log.push(self.priority, one_line(bytes).as_bytes());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Event<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Event {
            log: self,
            priority: PRIORITY_ERROR,
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        const WARNING: u8 = 4;
        const INFORMATION: u8 = 6;
        const DEBUG: u8 = 7;
        let priority = match *metadata.level() {
            Level::ERROR => PRIORITY_ERROR,
            Level::WARN => WARNING,
            Level::INFO => INFORMATION,
            _ => DEBUG,
        };
        Event {
            log: self,
            priority,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        assert_eq!(
            one_line(b"INFO took a\nERROR forged\x1b[2J\xff\n"),
            "INFO took a\\nERROR forged\\u{1b}[2J\u{fffd}\n"
        );
    }

    #[test]
    fn each_line_for_the_journal_has_its_priority() {
        assert_eq!(with_priority(4, b"one\ntwo\n"), b"<4>one\n<4>two\n");
    }

    #[test]
    fn a_full_disk_loses_lines_and_tells_how_many_later() {
        let mut lost = 0;
        let full = File::options().write(true).open("/dev/full").unwrap();
        let batch = |lines: &[&str]| Batch {
            lines: lines
                .iter()
                .map(|line| format!("{line}\n").into_bytes())
                .collect(),
            ..Batch::default()
        };
        Sink::Stream(full).write_out(batch(&["a", "b"]), &mut lost, false);
        assert_eq!(lost, 2);
        let (mut reader, writer) = io::pipe().unwrap();
        let mut pipe = Sink::Stream(File::from(std::os::fd::OwnedFd::from(writer)));
        pipe.write_out(batch(&["c", "d"]), &mut lost, true);
        drop(pipe);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(
            text,
            "<3>cowshed: 2 lines of the log were lost before this line\nc\nd\n"
        );
    }

    #[test]
    fn a_pipe_that_nobody_reads_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // A FIFO that is open for reading, but never read.
        let _reader = File::options().read(true).write(true).open(&fifo).unwrap();
        let open = move || Ok(Sink::Stream(File::options().write(true).open(fifo)?));
        let log = Log::start(false, false, open).unwrap();
        // Far more than a pipe and the queue hold: the loop returns, or the test hangs.
        for _ in 0..3000 {
            log.push(6, &[b'x'; 1000]);
        }
    }
}
