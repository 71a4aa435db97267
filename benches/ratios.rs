//! The table of targets: measured ratios of a volume to a plain file, and the times of branching
//! and opening, in Markdown.
//!
//! `cargo bench --bench ratios -- [--rounds N] [--dir DIR]...`
//!
//! In each round the two sides of a ratio run directly after each other, in alternating order, and
//! the table shows the median of the rounds' ratios, so that a temporary slowdown of the machine
//! affects both. Without `--dir` it runs below `target` and, if it exists, in `/dev/shm`.

mod subject;

use cowshed_engine::{Pool, Volume};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use subject::{
    Action, BLOCK, Load, Order, Subject, compare, median, name, new_pool, noise, open_pool,
};

/// The duration of one side of a round.
const SIDE: Duration = Duration::from_millis(250);
const VOLUME_COUNTS: [u64; 3] = [1, 1_000, 100_000];

struct Arguments {
    rounds: u64,
    dirs: Vec<PathBuf>,
    side: Duration,
}

fn arguments() -> Arguments {
    let mut found = Arguments {
        rounds: 15,
        dirs: Vec::new(),
        side: SIDE,
    };
    let mut bench = false;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .unwrap_or_else(|| panic!("{word} needs a value"))
        };
        match word.as_str() {
            "--bench" => bench = true,
            "--rounds" => found.rounds = value().parse().expect("--rounds needs a number"),
            "--dir" => found.dirs.push(value().into()),
            _ => panic!("usage: ratios [--rounds N] [--dir DIR]..."),
        }
    }
    // As a test, it only shows that it works.
    if !bench {
        (found.rounds, found.side) = (1, Duration::from_millis(5));
    }
    if found.dirs.is_empty() {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
        found.dirs = vec![target, "/dev/shm".into()];
        found.dirs.retain(|dir| dir.is_dir());
    }
    found
}

fn main() {
    let arguments = arguments();
    for dir in &arguments.dirs {
        println!("\n### {}, {} rounds\n", dir.display(), arguments.rounds);
        println!("| what | measured | target |");
        println!("|---|---|---|");
        ratios(dir, &arguments);
        first_write(dir, &arguments);
        for count in VOLUME_COUNTS {
            branching(dir, count, &arguments);
        }
        removal(dir, &arguments);
        differences(dir, &arguments);
        opening(dir, &arguments);
    }
}

fn row(what: &str, measured: &str, target: &str) {
    println!("| {what} | {measured} | {target} |");
}

fn microseconds(time: Duration) -> String {
    format!("{:.1} µs", time.as_secs_f64() * 1e6)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn ratios(dir: &Path, arguments: &Arguments) {
    const SMALL: u64 = 4 << 10;
    const LARGE: u64 = 128 << 10;
    use {Action::DurableWrite, Action::Read, Action::Write, Order::Random, Order::Sequential};
    let folder = subject::folder_in(dir);
    let (pool, volume) = Subject::volume(folder.path());
    let plain = Subject::plain(folder.path());
    // In this order: blocks written at random stay scattered from then on.
    #[rustfmt::skip]
    let loads = [
        ("128 KiB sequential read, 1 thread", Read, Sequential, LARGE, 1, "at least 0.9"),
        ("128 KiB sequential read, 2 threads", Read, Sequential, LARGE, 2, "at least 0.9"),
        ("128 KiB sequential write, 1 thread", Write, Sequential, LARGE, 1, "at least 0.9"),
        ("128 KiB sequential write, 2 threads", Write, Sequential, LARGE, 2, "at least 0.9"),
        ("4 KiB random read, 1 thread", Read, Random, SMALL, 1, ""),
        ("4 KiB random read, 2 threads", Read, Random, SMALL, 2, "at least 0.85"),
        ("4 KiB random overwrite, 1 thread", Write, Random, SMALL, 1, ""),
        ("4 KiB random overwrite, 2 threads", Write, Random, SMALL, 2, "at least 0.6"),
        ("4 KiB write + flush, 1 thread", DurableWrite, Random, SMALL, 1, "at least 0.8"),
        ("128 KiB sequential read of what was written at random", Read, Sequential, LARGE, 1, ""),
    ];
    for (what, action, order, len_bytes, threads, target) in loads {
        let load = Load {
            action,
            order,
            len_bytes,
            threads,
        };
        let (ratio, rate) = compare(&volume, &plain, load, arguments.rounds, arguments.side);
        row(what, &format!("{ratio:.2} of plain ({rate:.0}/s)"), target);
    }
    drop(volume);
    pool.close().expect("close");
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let started = Instant::now();
    let result = work();
    (started.elapsed(), result)
}

fn first_write(dir: &Path, arguments: &Arguments) {
    let folder = subject::folder_in(dir);
    let (pool, subject) = Subject::volume(folder.path());
    let Subject::Volume(volume) = subject else {
        unreachable!("it is a volume");
    };
    let block = noise(4096, 1);
    let (mut first, mut later) = (Vec::new(), Vec::new());
    for number in 0..arguments.rounds * 100 {
        let snapshot = pool
            .snapshot(&volume, &name(&format!("s{number}")))
            .expect("snapshot");
        let offset = number * 4099 * BLOCK % subject::SUBJECT_BYTES;
        first.push(timed(|| volume.write_at(&block, offset).expect("write")).0);
        later.push(timed(|| volume.write_at(&block, offset ^ BLOCK).expect("write")).0);
        pool.remove(&snapshot).expect("remove");
    }
    let (first, later) = (median(first), median(later));
    let ratio = first.as_secs_f64() / later.as_secs_f64();
    let measured = format!(
        "{ratio:.2} of a later one ({} and {})",
        microseconds(first),
        microseconds(later)
    );
    row(
        "first 4 KiB write after a snapshot",
        &measured,
        "at most 1.3",
    );
    drop(volume);
    pool.close().expect("close");
}

/// Creates a pool with a volume, a snapshot of it, and clones of that: `count` volumes in total.
fn crowd(path: &Path, count: u64) -> (Pool, Volume, Volume) {
    let pool = new_pool(path, 8 << 30);
    let volume = pool
        .create_volume(&name("volume"), 1 << 30)
        .expect("create");
    volume.write_at(&noise(1 << 20, 1), 0).expect("write");
    let frozen = pool.snapshot(&volume, &name("frozen")).expect("snapshot");
    for number in 2..count {
        pool.clone_volume(&frozen, &name(&format!("crowd-{number}")))
            .expect("clone");
    }
    pool.checkpoint().expect("checkpoint");
    (pool, volume, frozen)
}

fn branching(dir: &Path, count: u64, arguments: &Arguments) {
    let folder = subject::folder_in(dir);
    let (pool, volume, frozen) = crowd(&folder.path().join("pool"), count);
    let (mut snapshots, mut clones) = (Vec::new(), Vec::new());
    for number in 0..arguments.rounds * 100 {
        let snapshot_name = name(&format!("s{number}"));
        let (took, snapshot) = timed(|| pool.snapshot(&volume, &snapshot_name).expect("snapshot"));
        snapshots.push(took);
        let clone_name = name(&format!("c{number}"));
        let (took, clone) = timed(|| pool.clone_volume(&frozen, &clone_name).expect("clone"));
        clones.push(took);
        pool.remove(&snapshot).expect("remove");
        pool.remove(&clone).expect("remove");
    }
    let target = "under 50 µs";
    row(
        &format!("snapshot among {count} volumes"),
        &microseconds(median(snapshots)),
        target,
    );
    row(
        &format!("clone among {count} volumes"),
        &microseconds(median(clones)),
        target,
    );
    drop((volume, frozen));
    pool.close().expect("close");
}

fn removal(dir: &Path, arguments: &Arguments) {
    const MIB: u64 = 64;
    let folder = subject::folder_in(dir);
    let pool = new_pool(&folder.path().join("pool"), 4 << 30);
    let (mut calls, mut reclaims) = (Vec::new(), Vec::new());
    for round in 0..arguments.rounds.min(10) {
        let volume = pool
            .create_volume(&name(&format!("v{round}")), 1 << 30)
            .expect("create");
        for at in 0..MIB {
            volume
                .write_at(&noise(1 << 20, at), at << 20)
                .expect("write");
        }
        pool.checkpoint().expect("checkpoint");
        let (call, ()) = timed(|| pool.remove(&volume).expect("remove"));
        let (rest, ()) = timed(|| pool.reclaim().expect("reclaim"));
        calls.push(call);
        reclaims.push((call + rest).as_secs_f64() * 1e9 / (MIB * 256) as f64);
    }
    row(
        "removal, until the caller goes on",
        &microseconds(median(calls)),
        "at once",
    );
    row(
        "removal, for each own block",
        &format!("{:.0} ns", median(reclaims)),
        "",
    );
    pool.close().expect("close");
}

fn differences(dir: &Path, arguments: &Arguments) {
    const SIZE: u64 = 100 << 30;
    let folder = subject::folder_in(dir);
    let pool = new_pool(&folder.path().join("pool"), 4 << 30);
    let volume = pool.create_volume(&name("a"), SIZE).expect("create");
    for at in 0..20_000 {
        volume
            .write_at(&noise(4096, at), at * (SIZE / 20_000) / BLOCK * BLOCK)
            .expect("write");
    }
    for changed in [1_u64, 10_000] {
        let snapshot = pool
            .snapshot(&volume, &name(&format!("s{changed}")))
            .expect("snapshot");
        for at in 0..changed {
            let offset = at * (SIZE / changed) / BLOCK * BLOCK;
            volume
                .write_at(&noise(4096, at + 7), offset)
                .expect("write");
        }
        pool.checkpoint().expect("checkpoint");
        let times = (0..arguments.rounds)
            .map(|_| timed(|| pool.diff(&snapshot, &volume).expect("diff")).0)
            .collect();
        let what = format!("diff in 100 GiB, {changed} changed blocks");
        row(&what, &microseconds(median(times)), "");
    }
    drop(volume);
    pool.close().expect("close");
}

fn opening(dir: &Path, arguments: &Arguments) {
    let folder = subject::folder_in(dir);
    let path = folder.path().join("pool");
    let (pool, volume, frozen) = crowd(&path, 100_000);
    drop((volume, frozen));
    pool.close().expect("close");
    drop(pool);
    let (mut clean, mut unclean) = (Vec::new(), Vec::new());
    for round in 0..arguments.rounds.min(5) {
        let (took, pool) = timed(|| open_pool(&path, false));
        clean.push(took);
        fill_log(&pool, round);
        drop(pool);
        let (took, pool) = timed(|| open_pool(&path, false));
        unclean.push(took);
        pool.close().expect("close");
        drop(pool);
    }
    row(
        "open 100,000 volumes, closed",
        &milliseconds(median(clean)),
        "under 1 s",
    );
    row(
        "open 100,000 volumes, log full",
        &milliseconds(median(unclean)),
        "under 3 s",
    );
}

/// Writes until the log is almost full, without a checkpoint.
fn fill_log(pool: &Pool, round: u64) {
    let volume = pool.volume("volume").expect("it is there");
    let log_bytes = pool.status().expect("status").log_bytes;
    let mut before = 0;
    for number in 0.. {
        let offset = (number * 4099 + round) % (1 << 18) * BLOCK;
        volume
            .write_at(&noise(4096, number), offset)
            .expect("write");
        if number % 256 == 0 {
            let used = pool.status().expect("status").log_used_bytes;
            // The engine may make a checkpoint by itself before the log is full.
            if used < before || used > log_bytes / 10 * 9 {
                break;
            }
            before = used;
        }
    }
}
