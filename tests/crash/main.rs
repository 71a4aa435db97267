//! Power cuts in memory: random operations, every way in which a cut may leave the device, and the
//! proof that the pool comes back in one state at or after the last acknowledged flush.
//!
//! `cargo test` runs the short form; `tools/crash --images 1000000 --seed 1` the long one. `images`
//! has the states that a cut may leave, `history` the states that may come back, `verify` the
//! comparison. A failure prints the seed that repeats it, the operations, and the fate of each
//! change of the device.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod digest;
mod history;
mod images;
mod liar;
mod meddler;
mod meddling;
mod operations;
mod prove;
mod verify;
mod workload;

use cowshed_testkit::compare;
use cowshed_testkit::oracle;

use clap::Parser;
use cowshed_testkit::test_program::Harness;
use indicatif::{ProgressBar, ProgressStyle};
use liar::Liar;
use prove::{Tally, prove};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Number of images of the short form.
const SHORT_IMAGES: u64 = 30_000;
/// Every liar is found within this number of seeds.
const LIAR_SEEDS: u64 = 8;
/// One flush in this many is a lie.
const LIE_EVERY: u64 = 5;
/// The interval at which a run without a terminal reports its progress.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Cuts the power of pools in memory and recovers them.
#[derive(Parser)]
#[command(name = "crash")]
struct Options {
    /// How many images to make at the least; a run that has begun is ended.
    #[arg(long)]
    images: Option<u64>,
    /// The first seed; each run takes the next one.
    #[arg(long)]
    seed: Option<u64>,
    /// Stop after this time, images or not.
    #[arg(long)]
    seconds: Option<u64>,
    #[command(flatten)]
    harness: Harness,
}

type Test = (&'static str, fn(&Options) -> Result<(), String>);

const TESTS: [Test; 2] = [
    (
        "every_power_cut_leaves_one_moment_at_or_after_the_last_flush",
        every_power_cut,
    ),
    (
        "a_device_that_lies_about_a_flush_is_found_out",
        a_liar_is_found,
    ),
];

fn main() -> ExitCode {
    let options = Options::parse();
    let long = options.images.is_some() || options.seed.is_some() || options.seconds.is_some();
    let Some(tests) = options.harness.choose(TESTS, |(name, _)| name) else {
        return ExitCode::SUCCESS;
    };
    verify::hush_caught_panics();
    let mut failed = false;
    for (name, test) in tests.iter().take(if long { 1 } else { TESTS.len() }) {
        let outcome = test(&options);
        println!(
            "test {name} ... {}",
            if outcome.is_ok() { "ok" } else { "FAILED" }
        );
        if let Err(message) = outcome {
            failed = true;
            println!("\n{message}");
        }
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Runs seeds on all processors until there are enough images.
fn every_power_cut(options: &Options) -> Result<(), String> {
    let images = match (options.images, options.seconds) {
        (Some(images), _) => images,
        (None, Some(_)) => u64::MAX,
        (None, None) => SHORT_IMAGES,
    };
    let first = options.seed.unwrap_or(1);
    let limit = options.seconds.map(Duration::from_secs);
    let (tally, next) = (Tally::default(), AtomicU64::new(first));
    let failure: Mutex<Option<String>> = Mutex::new(None);
    let started = Instant::now();
    let threads = options.harness.test_threads;
    let threads = threads.unwrap_or_else(|| thread::available_parallelism().map_or(2, Into::into));
    let (done, all_done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (tally, next, failure, done) = (&tally, &next, &failure, done.clone());
            scope.spawn(move || {
                let _done = done;
                while tally.images.load(Ordering::Relaxed) < images
                    && !tally.stop.load(Ordering::Relaxed)
                {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if let Err(message) = prove(seed, tally, None) {
                        tally.stop.store(true, Ordering::Relaxed);
                        let mut failure = failure.lock().expect("no thread panics with it");
                        failure.get_or_insert(format!(
                            "{message}\nto repeat it: tools/crash --images 1 --seed {seed}"
                        ));
                    }
                }
            });
        }
        drop(done);
        watch(&tally, images, started, limit, &all_done);
    });
    println!("{}", summary(&tally, first, started));
    let failure = failure.into_inner().expect("no thread panics with it");
    failure.map_or(Ok(()), Err)
}

/// Shows the progress until all threads have ended, and stops them when the time is up.
fn watch(
    tally: &Tally,
    images: u64,
    started: Instant,
    limit: Option<Duration>,
    all_done: &mpsc::Receiver<()>,
) {
    let bar = if images == u64::MAX {
        ProgressBar::no_length()
    } else {
        ProgressBar::new(images)
    };
    let style = "{elapsed_precise} {wide_bar} {human_pos} of {human_len} images, {per_sec}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let mut told = Instant::now();
    while all_done.recv_timeout(Duration::from_millis(200)) == Err(mpsc::RecvTimeoutError::Timeout)
    {
        let made = tally.images.load(Ordering::Relaxed);
        bar.set_position(made.min(images));
        if bar.is_hidden() && told.elapsed() >= TELL_EVERY {
            println!("{made} images in {} s", started.elapsed().as_secs());
            told = Instant::now();
        }
        if limit.is_some_and(|limit| started.elapsed() >= limit) {
            tally.stop.store(true, Ordering::Relaxed);
        }
    }
    bar.finish_and_clear();
}

fn summary(tally: &Tally, first: u64, started: Instant) -> String {
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (images, runs) = (of(&tally.images), of(&tally.runs));
    let seconds = started.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "it is shown rounded")]
    let rate = images as f64 / seconds;
    format!(
        "{images} crash images of {} epochs in {runs} runs from seed {first}, {} operations; \
         {} went on afterwards, {} images cut a recovery, {} repeated others; {seconds:.0} s, \
         {rate:.0} images/s",
        of(&tally.epochs),
        of(&tally.operations),
        of(&tally.gone_on),
        of(&tally.recoveries_cut),
        of(&tally.duplicates),
    )
}

/// The prover is useless if it does not notice a flush that did not happen.
fn a_liar_is_found(_: &Options) -> Result<(), String> {
    let disguise = |device| {
        let (every, flushes) = (LIE_EVERY, AtomicU64::new(0));
        Arc::new(Liar {
            device,
            every,
            flushes,
        }) as Arc<dyn cowshed_format::device::Device>
    };
    let found =
        (1..=LIAR_SEEDS).find_map(|seed| prove(seed, &Tally::default(), Some(&disguise)).err());
    match found {
        Some(message) if message.contains("power cut in epoch") => Ok(()),
        Some(message) => Err(format!(
            "it was found out, but not by a power cut: {message}"
        )),
        None => Err(format!(
            "{LIAR_SEEDS} seeds on a device that lies, and nothing was noticed"
        )),
    }
}
