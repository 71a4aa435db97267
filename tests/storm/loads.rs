//! Concurrent loads on a file system: files compared with models, fio with verification, stress-ng,
//! and a probe of a bare device. Each runs until it is told to stop, or gets an error.

use crate::fsx::{Outcome, Style};
use crate::harness::eventually;
use crate::probe::{Probed, probe};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The duration of a round of stress-ng.
const STRESS_SECONDS: &str = "4";
/// The interval at which a load checks whether its process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The time to wait for the loads of a failed test.
const PATIENCE: Duration = Duration::from_secs(5);

/// The result of a load.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) operations: u64,
    pub(crate) rounds: u64,
    pub(crate) verified_bytes: u64,
    /// The longest time of one block past the cache.
    pub(crate) probed: Duration,
    /// The longest time of one operation on a file.
    pub(crate) longest: Duration,
    /// Files with their contents.
    pub(crate) files: Vec<(PathBuf, Outcome)>,
}

/// The signals that end loads.
#[derive(Clone, Default)]
struct Signs {
    /// Finish the current work.
    stop: Arc<AtomicBool>,
    /// Kill the process.
    abort: Arc<AtomicBool>,
}

impl Signs {
    fn stop(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

type Work = JoinHandle<Result<Tally, String>>;

/// All running loads.
pub(crate) struct Loads {
    signs: Signs,
    works: Vec<(&'static str, Work)>,
}

impl Loads {
    /// Starts all loads: on a mounted file system, and on a device that no other process uses. The
    /// programs' output goes to files in `notes`.
    pub(crate) fn start(folder: &Path, bare: &Path, notes: &Path, seed: u64) -> Self {
        fs::create_dir_all(notes).unwrap();
        let signs = Signs::default();
        let mut works: Vec<(_, Work)> = Vec::new();
        for (name, style) in [("buffered", Style::Buffered), ("direct", Style::Direct)] {
            let (path, notes) = (folder.join(name), notes.join(name));
            let signs = signs.clone();
            let work = move || fsx(&path, style, seed, &notes, &signs);
            works.push((name, thread::spawn(work)));
        }
        let rounds: [Program; 2] = [("fio", fio, fio_bytes), ("stress-ng", stress_ng, |_| Ok(0))];
        for (name, command, count) in rounds {
            let (folder, notes, signs) = (folder.join(name), notes.join(name), signs.clone());
            fs::create_dir(&folder).unwrap();
            let work = move || {
                in_rounds(
                    &|round| command(&folder, seed + round),
                    count,
                    &notes,
                    &signs,
                )
            };
            works.push((name, thread::spawn(work)));
        }
        let (bare, stop) = (bare.to_owned(), signs.stop.clone());
        let work = move || probe(&bare, &stop).map(Tally::from);
        works.push(("probe", thread::spawn(work)));
        Self { signs, works }
    }

    /// Asserts that none has ended, because only an error ends one.
    pub(crate) fn expect_at_work(&mut self) {
        let ended = |(_, work): &(_, Work)| work.is_finished();
        if let Some(index) = self.works.iter().position(ended) {
            let (name, work) = self.works.remove(index);
            panic!("{name} met an error: {:?}", work.join().unwrap());
        }
    }

    /// Stops them, and returns their results, which must be successful.
    pub(crate) fn end(mut self) -> Tally {
        self.signs.stop.store(true, Ordering::SeqCst);
        let mut sum = Tally::default();
        for (name, work) in self.works.drain(..) {
            match work.join().unwrap() {
                Ok(tally) => sum.add(tally),
                Err(failure) => panic!("{name} met an error: {failure}"),
            }
        }
        sum
    }
}

impl Drop for Loads {
    fn drop(&mut self) {
        self.signs.stop.store(true, Ordering::SeqCst);
        self.signs.abort.store(true, Ordering::SeqCst);
        // A load that hangs with its device ends when the device is cut off.
        let deadline = Instant::now() + PATIENCE;
        while !self.works.iter().all(|(_, work)| work.is_finished()) && Instant::now() < deadline {
            thread::sleep(LOOK_EVERY);
        }
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.rounds += other.rounds;
        self.verified_bytes += other.verified_bytes;
        self.probed = self.probed.max(other.probed);
        self.longest = self.longest.max(other.longest);
        self.files.extend(other.files);
    }
}

impl From<Probed> for Tally {
    fn from(probed: Probed) -> Self {
        Self {
            operations: probed.operations,
            verified_bytes: probed.operations / 2 * 4096,
            probed: probed.longest,
            ..Self::default()
        }
    }
}

/// Compares a file with its model, in a process of this program.
fn fsx(path: &Path, style: Style, seed: u64, notes: &Path, signs: &Signs) -> Result<Tally, String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let style = match style {
        Style::Buffered => "buffered",
        Style::Direct => "direct",
    };
    command.args(["--style", style, "--seed", &seed.to_string(), "--fsx"]);
    command.arg(path).stdin(Stdio::piped());
    let said = finish(command, notes, signs)?;
    let outcome: Outcome = serde_json::from_str(&said).map_err(|error| error.to_string())?;
    Ok(Tally {
        operations: outcome.operations,
        verified_bytes: outcome.compared_bytes,
        longest: outcome.longest,
        files: vec![(path.to_owned(), outcome)],
        ..Tally::default()
    })
}

/// A function from a round's output to the number of bytes that it verified.
type Count = fn(&str) -> Result<u64, String>;

/// A program's name, its command for a folder and a seed, and the function that counts the verified
/// bytes.
type Program = (&'static str, fn(&Path, u64) -> Command, Count);

/// Runs a program that ends by itself, repeatedly.
fn in_rounds(
    command: &dyn Fn(u64) -> Command,
    count: Count,
    notes: &Path,
    signs: &Signs,
) -> Result<Tally, String> {
    let mut tally = Tally::default();
    while !signs.stop() {
        let said = finish(command(tally.rounds), notes, signs)?;
        tally.rounds += 1;
        tally.verified_bytes += count(&said)?;
    }
    Ok(tally)
}

/// Asserts that a load whose file another process changes ends with a failure that reports it.
pub(crate) fn expect_to_notice(seed: u64) {
    let folder = tempfile::Builder::new()
        .prefix("cowshed-storm-")
        .tempdir_in("/var/tmp")
        .unwrap();
    for (name, style) in [("buffered", Style::Buffered), ("direct", Style::Direct)] {
        let path = folder.path().join(name);
        let signs = Signs::default();
        let (file, notes, told) = (path.clone(), path.with_extension("notes"), signs.clone());
        let load = thread::spawn(move || fsx(&file, style, seed, &notes, &told));
        eventually("a load that ends", || {
            meddle(&path);
            load.is_finished()
        });
        let failure = load.join().unwrap().unwrap_err();
        assert!(failure.contains(" instead of "), "{failure}");
    }
}

/// Changes one byte in the middle of a file, if it has one.
fn meddle(path: &Path) {
    let Ok(file) = File::options().read(true).write(true).open(path) else {
        return;
    };
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    // The load may truncate it at any time.
    if file.read_exact_at(&mut byte, middle).is_ok() {
        file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
    }
}

fn fio(folder: &Path, seed: u64) -> Command {
    let mut command = Command::new("fio");
    let (folder, seed) = (folder.display(), format!("--randseed={seed}"));
    command.arg(format!("--directory={folder}"));
    command.args([
        &seed,
        "--output-format=json",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--exitall_on_error",
        "--size=12m",
        "--unlink=1",
        "--name=direct",
        "--rw=randrw",
        "--bsrange=4k-64k",
        "--direct=1",
        "--fsync=16",
        "--name=buffered",
        "--rw=randwrite",
        "--bs=4k",
        "--fsync=64",
        "--verify_backlog=256",
    ]);
    command
}

/// Returns the bytes that jobs wrote, which are all read back and verified at the end.
fn fio_bytes(said: &str) -> Result<u64, String> {
    // Remarks may precede the document.
    let document = said.find('{').map_or("", |start| &said[start..]);
    let report: Value =
        serde_json::from_str(document).map_err(|error| format!("{error}: {said}"))?;
    let mut bytes = 0;
    for job in report["jobs"].as_array().ok_or("no jobs")? {
        if job["error"] != 0 {
            return Err(format!("{}: error {}", job["jobname"], job["error"]));
        }
        let of = |what: &str| job[what]["io_bytes"].as_u64().unwrap_or(0);
        bytes += of("write").min(of("read"));
    }
    Ok(bytes)
}

fn stress_ng(folder: &Path, _seed: u64) -> Command {
    let mut command = Command::new("stress-ng");
    command.arg("--temp-path").arg(folder).args([
        "--timeout",
        STRESS_SECONDS,
        "--verify",
        "--hdd=1",
        "--hdd-bytes=16m",
        "--hdd-write-size=16k",
        "--dir=1",
        "--dir-dirs=256",
        "--rename=1",
        "--link=1",
    ]);
    command
}

/// Runs a program to its end, which must be successful; returns its output. Its input, if it has
/// one, ends when it is to stop.
fn finish(mut command: Command, notes: &Path, signs: &Signs) -> Result<String, String> {
    let errors = notes.with_extension("errors");
    let create = |path: &Path| File::create(path).map_err(|error| error.to_string());
    command.stdout(create(notes)?).stderr(create(&errors)?);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let status = wait(&mut child, signs).map_err(|error| error.to_string())?;
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    if status.success() {
        return Ok(read(notes));
    }
    Err(format!("{status}: {}{}", read(&errors), read(notes)))
}

fn wait(child: &mut Child, signs: &Signs) -> std::io::Result<ExitStatus> {
    // Dropping the input ends the program.
    let mut input = child.stdin.take();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if signs.stop() {
            drop(input.take());
        }
        if signs.abort.load(Ordering::SeqCst) {
            child.kill()?;
        }
        thread::sleep(LOOK_EVERY);
    }
}
