//! Runs targets with a seeded mutator, on any toolchain:
//!
//!     fuzz-smoke [--seed S] [TARGET...]                  as many inputs of each as a short run takes
//!     fuzz-smoke --seconds N [--seed S] [TARGET...]      N seconds for each
//!     fuzz-smoke --seeds FOLDER                          writes the seeds of all targets
//!     fuzz-smoke TARGET FILE                             one input again
//!
//! Without a seed, a short run uses 1, so that it finds the same things everywhere, and a timed run
//! uses a different seed each time. An input that fails is kept in a file, whose name is printed.

#![allow(
    clippy::unwrap_used,
    reason = "a tool for developers fails by panicking"
)]

use cowshed_fuzz::{TARGETS, Target, mutate};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{fs, panic, process, thread};

/// An input that takes longer is considered hung.
const HANG: Duration = Duration::from_secs(30);
/// Number of inputs that are kept as starting points.
const POOL_MAX: usize = 500;

/// The current input, and its start time.
static CURRENT: Mutex<Option<(&'static str, Vec<u8>, Instant)>> = Mutex::new(None);

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.remove(at);
        (at < arguments.len()).then(|| arguments.remove(at))
    };
    let limit = option("--seconds")
        .map(|text| Duration::from_secs(text.parse().expect("a number of seconds")));
    let seed = match option("--seed") {
        Some(text) => text.parse().expect("a seed"),
        None if limit.is_some() => rand::random(),
        None => 1,
    };
    if let Some(folder) = option("--seeds") {
        return write_seeds(Path::new(&folder));
    }
    keep_what_fails();
    if let [name, file] = &arguments[..]
        && Path::new(file).is_file()
    {
        let input = fs::read(file).unwrap();
        return run(target(name), &input);
    }
    let chosen: Vec<&Target> = if arguments.is_empty() {
        TARGETS.iter().collect()
    } else {
        arguments.iter().map(|name| target(name)).collect()
    };
    for target in chosen {
        smoke(target, limit, seed);
    }
}

fn target(name: &str) -> &'static Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("there is no target {name}; there are: {}", names.join(" "));
        process::exit(2)
    })
}

fn run(target: &'static Target, input: &[u8]) {
    *CURRENT.lock().unwrap() = Some((target.name, input.to_vec(), Instant::now()));
    (target.run)(input);
    *CURRENT.lock().unwrap() = None;
}

fn smoke(target: &'static Target, limit: Option<Duration>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut inputs = (target.seeds)();
    inputs.iter().for_each(|input| run(target, input));
    let (started, mut count) = (Instant::now(), inputs.len());
    let goes_on = |count| match limit {
        Some(limit) => started.elapsed() < limit,
        None => count < target.short_run,
    };
    while goes_on(count) {
        let mut input = inputs.choose(&mut rng).unwrap().clone();
        let other = inputs.choose(&mut rng).unwrap().clone();
        mutate::mutate(&mut input, &other, &mut rng);
        run(target, &input);
        count += 1;
        if inputs.len() < POOL_MAX {
            inputs.push(input);
        } else if rng.random_ratio(1, 20) {
            let at = rng.random_range(0..inputs.len());
            inputs[at] = input;
        }
    }
    let took = started.elapsed();
    println!("{}: {count} inputs, seed {seed}, {took:.1?}", target.name);
}

/// Keeps the input of a panic or of a hang.
fn keep_what_fails() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        default(info);
        keep("crash");
        process::exit(1);
    }));
    thread::spawn(|| {
        loop {
            thread::sleep(Duration::from_secs(1));
            let current = CURRENT.lock().unwrap().clone();
            if current.is_some_and(|(_, _, since)| since.elapsed() > HANG) {
                eprintln!("an input took longer than {HANG:?}");
                keep("hang");
                process::exit(1);
            }
        }
    });
}

fn keep(what: &str) {
    if let Some((target, input, _)) = CURRENT.lock().unwrap().take() {
        let folder = PathBuf::from("target/fuzz-findings");
        let path = folder.join(format!("{what}-{target}-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(&path, input).unwrap();
        eprintln!("the input is in {}", path.display());
    }
}

fn write_seeds(folder: &Path) {
    for target in &TARGETS {
        let folder = folder.join(target.name);
        fs::create_dir_all(&folder).unwrap();
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed).unwrap();
        }
    }
}
