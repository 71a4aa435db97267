//! One file compared with a model in memory, under random operations: writes, stores through a
//! mapping, truncation, holes, and flushes, with every read compared, mostly from the device.
//!
//! It runs in its own process, because an unreadable page of a mapping kills the process. It runs
//! until its input ends, and then prints what it did. The seed determines the operations.

use clap::ValueEnum;
use memmap2::MmapMut;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The maximum length of the file.
const FILE_BYTES_MAX: usize = 8 << 20;
/// The maximum length of one read or write.
const PIECE_BYTES_MAX: usize = 128 << 10;
/// The alignment of direct I/O on these devices.
const BLOCK: usize = 4096;
/// Number of operations that a failure shows.
const RECENT: usize = 16;
/// Number of operations after which the whole file is compared.
const COMPARE_EVERY: u64 = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Style {
    /// Through the page cache, at any byte, and through mappings.
    Buffered,
    /// Past the page cache.
    Direct,
}

/// The result of a run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) operations: u64,
    pub(crate) compared_bytes: u64,
    pub(crate) longest: Duration,
    /// The length and checksum of the file at the end.
    pub(crate) len_bytes: u64,
    pub(crate) crc32: u32,
}

/// Runs the process.
pub(crate) fn main(path: &Path, style: Style, seed: u64) -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    thread::spawn(move || {
        // Nothing is ever written to the input; its end is the signal to stop, and so is its
        // failure.
        let _ = io::stdin().read(&mut [0]);
        told.store(true, Ordering::SeqCst);
    });
    match Fsx::new(path, style, seed).and_then(|fsx| fsx.run(&stop)) {
        Ok(outcome) => {
            println!("{}", serde_json::to_string(&outcome).unwrap());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{} with seed {seed}: {failure}", path.display());
            ExitCode::FAILURE
        }
    }
}

/// Bytes aligned for direct I/O.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new() -> Self {
        let bytes = vec![0; PIECE_BYTES_MAX + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, start }
    }

    fn piece(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
}

struct Fsx {
    path: PathBuf,
    file: File,
    style: Style,
    model: Vec<u8>,
    buffer: Aligned,
    rng: StdRng,
    recent: VecDeque<String>,
    outcome: Outcome,
}

impl Fsx {
    fn new(path: &Path, style: Style, seed: u64) -> Result<Self, String> {
        Ok(Self {
            path: path.to_owned(),
            file: open(path, style).map_err(|error| format!("open it: {error}"))?,
            style,
            model: Vec::new(),
            buffer: Aligned::new(),
            rng: StdRng::seed_from_u64(seed),
            recent: VecDeque::new(),
            outcome: Outcome::default(),
        })
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Outcome, String> {
        while !stop.load(Ordering::SeqCst) {
            self.step().map_err(|failure| self.explain(&failure))?;
        }
        self.compare_all()
            .map_err(|failure| self.explain(&failure))?;
        self.outcome.len_bytes = self.model.len() as u64;
        self.outcome.crc32 = crc32fast::hash(&self.model);
        Ok(self.outcome)
    }

    fn explain(&self, failure: &str) -> String {
        let recent: Vec<_> = self.recent.iter().map(String::as_str).collect();
        let number = self.outcome.operations;
        format!("operation {number}: {failure}\nafter {}", recent.join(", "))
    }

    fn step(&mut self) -> Result<(), String> {
        self.outcome.operations += 1;
        let started = Instant::now();
        let done = match self.rng.random_range(0..100) {
            0..30 => self.write(),
            30..52 => self.read(),
            52..62 if self.style == Style::Buffered => self.store(),
            52..62 => self.write(),
            62..68 if self.style == Style::Buffered => self.load(),
            62..68 => self.read(),
            68..74 => self.truncate(),
            74..82 => self.punch(FallocateFlags::FALLOC_FL_PUNCH_HOLE),
            82..86 => self.punch(FallocateFlags::FALLOC_FL_ZERO_RANGE),
            86..94 => self.flush(),
            94..98 => self.forget(),
            _ => self.reopen(),
        };
        self.outcome.longest = self.outcome.longest.max(started.elapsed());
        done?;
        if self.outcome.operations.is_multiple_of(COMPARE_EVERY) {
            self.compare_all()?;
        }
        Ok(())
    }

    /// Records an operation, and returns a function that turns its error into a failure.
    fn note(&mut self, what: String) -> impl FnOnce(io::Error) -> String + use<> {
        self.recent.push_back(what.clone());
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        move |error| format!("{what}: {error}")
    }

    /// Returns a range of up to one piece that starts before `limit`, and ends before it if
    /// `within`.
    fn range(&mut self, limit: usize, within: bool) -> Range<usize> {
        let unit = match self.style {
            Style::Buffered => 1,
            Style::Direct => BLOCK,
        };
        let start = self.rng.random_range(0..limit) / unit * unit;
        // Short ones as often as long ones.
        let longest = PIECE_BYTES_MAX >> self.rng.random_range(0..8);
        let len = self.rng.random_range(1..=longest).div_ceil(unit) * unit;
        let end = start + len;
        start..if within { end.min(limit) } else { end }
    }

    fn write(&mut self) -> Result<(), String> {
        let range = self.range(FILE_BYTES_MAX - PIECE_BYTES_MAX, false);
        let failed = self.note(format!("write {range:?}"));
        let piece = self.buffer.piece(range.len());
        self.rng.fill_bytes(piece);
        let written = self.file.write_all_at(piece, range.start as u64);
        written.map_err(failed)?;
        if self.model.len() < range.end {
            self.model.resize(range.end, 0);
        }
        self.model[range].copy_from_slice(piece);
        Ok(())
    }

    fn read(&mut self) -> Result<(), String> {
        if self.model.is_empty() {
            return Ok(());
        }
        let range = self.range(self.model.len(), true);
        self.compare(range)
    }

    fn compare(&mut self, range: Range<usize>) -> Result<(), String> {
        let failed = self.note(format!("read {range:?}"));
        let piece = self.buffer.piece(range.len());
        let read = self.file.read_exact_at(piece, range.start as u64);
        read.map_err(failed)?;
        self.outcome.compared_bytes += range.len() as u64;
        expect_same(piece, &self.model[range.clone()], range.start)
    }

    /// Writes through a mapping.
    fn store(&mut self) -> Result<(), String> {
        if self.model.is_empty() {
            return Ok(());
        }
        let range = self.range(self.model.len(), true);
        let failed = self.note(format!("store {range:?}"));
        let piece = self.buffer.piece(range.len());
        self.rng.fill_bytes(piece);
        let mut mapping = map(&self.file, self.model.len()).map_err(failed)?;
        mapping[range.clone()].copy_from_slice(piece);
        self.model[range.clone()].copy_from_slice(piece);
        if self.rng.random() {
            let failed = self.note("msync".into());
            let synced = mapping.flush_range(range.start, range.len());
            synced.map_err(failed)?;
        }
        Ok(())
    }

    /// Reads through a mapping.
    fn load(&mut self) -> Result<(), String> {
        if self.model.is_empty() {
            return Ok(());
        }
        let range = self.range(self.model.len(), true);
        let failed = self.note(format!("load {range:?}"));
        let mapping = map(&self.file, self.model.len()).map_err(failed)?;
        self.outcome.compared_bytes += range.len() as u64;
        let found = &mapping[range.clone()];
        expect_same(found, &self.model[range.clone()], range.start)
    }

    fn truncate(&mut self) -> Result<(), String> {
        let len = self.range(FILE_BYTES_MAX - PIECE_BYTES_MAX, false).end;
        let failed = self.note(format!("truncate {len}"));
        self.file.set_len(len as u64).map_err(failed)?;
        self.model.resize(len, 0);
        Ok(())
    }

    fn punch(&mut self, how: FallocateFlags) -> Result<(), String> {
        if self.model.is_empty() {
            return Ok(());
        }
        let range = self.range(self.model.len(), true);
        let failed = self.note(format!("{how:?} {range:?}"));
        let flags = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (start, len) = (range.start, range.len());
        let punched = fallocate(
            &self.file,
            flags,
            i64::try_from(start).unwrap(),
            i64::try_from(len).unwrap(),
        );
        punched.map_err(io::Error::from).map_err(failed)?;
        self.model[range].fill(0);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        if self.rng.random() {
            let failed = self.note("fsync".into());
            self.file.sync_all().map_err(failed)
        } else {
            let failed = self.note("fdatasync".into());
            self.file.sync_data().map_err(failed)
        }
    }

    /// Drops the page cache, so that the next reads come from the device.
    fn forget(&mut self) -> Result<(), String> {
        let failed = self.note("forget".into());
        self.file.sync_all().map_err(failed)?;
        let failed = self.note("fadvise".into());
        let advised = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        advised.map_err(io::Error::from).map_err(failed)
    }

    fn reopen(&mut self) -> Result<(), String> {
        let failed = self.note("open".into());
        self.file = open(&self.path, self.style).map_err(failed)?;
        Ok(())
    }

    /// Compares the whole file, from the device.
    fn compare_all(&mut self) -> Result<(), String> {
        self.forget()?;
        let failed = self.note("stat".into());
        let len = self.file.metadata().map_err(failed)?.len();
        if len != self.model.len() as u64 {
            let wanted = self.model.len();
            return Err(format!("it is {len} bytes long instead of {wanted}"));
        }
        for start in (0..self.model.len()).step_by(PIECE_BYTES_MAX) {
            let end = (start + PIECE_BYTES_MAX).min(self.model.len());
            self.compare(start..end)?;
        }
        Ok(())
    }
}

fn open(path: &Path, style: Style) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    if style == Style::Direct {
        options.custom_flags(libc::O_DIRECT);
    }
    options.open(path)
}

#[expect(unsafe_code, reason = "mapping a file has no safe form")]
fn map(file: &File, len: usize) -> io::Result<MmapMut> {
    let mut options = memmap2::MmapOptions::new();
    // SAFETY: only this thread of this process changes the file, and it drops the mapping before it
    // changes the file in another way; a page that cannot be read ends the process, which is the
    // failure that the test is for.
    unsafe { options.len(len).map_mut(file) }
}

fn expect_same(found: &[u8], wanted: &[u8], start: usize) -> Result<(), String> {
    let Some(at) = found.iter().zip(wanted).position(|(a, b)| a != b) else {
        return Ok(());
    };
    let wrong = found.iter().zip(wanted).filter(|(a, b)| a != b).count();
    let (offset, found, wanted) = (start + at, found[at], wanted[at]);
    Err(format!(
        "{wrong} wrong bytes, the first at {offset}: {found:#04x} instead of {wanted:#04x}"
    ))
}
