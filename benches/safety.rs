//! Compares two copies of metadata with one, and a mirror with a single file; counts what resync
//! copies, and measures the speed of a scrub. Prints a table of ratios in Markdown.
//!
//! `cargo bench --bench safety -- [--rounds N] [--dir DIR]`
//!
//! In each round the two sides of a ratio run directly after each other, in alternating order, and
//! the table shows the median of the rounds' ratios.

mod subject;

use cowshed_engine::{CreateOptions, MetadataCopies, OpenOptions, Pool};
use cowshed_format::device::mirror::Found;
use cowshed_format::device::{
    Device, FileDevice, MemoryDevice, MirrorDevice, RecordedOp, Recording,
};
use cowshed_sys::aligned::AlignedBuffer;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use subject::{Action, BLOCK, Load, Order, SUBJECT_BYTES, Subject, compare, median, name, noise};

const POOL_BYTES: u64 = 8 * SUBJECT_BYTES;
const SMALL: u64 = 4 << 10;

struct Arguments {
    rounds: u64,
    dir: PathBuf,
    side: Duration,
}

fn arguments() -> Arguments {
    let mut found = Arguments {
        rounds: 11,
        dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        side: Duration::from_millis(250),
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
            "--dir" => found.dir = value().into(),
            _ => panic!("usage: safety [--rounds N] [--dir DIR]"),
        }
    }
    // As a test, it only shows that it works.
    if !bench {
        (found.rounds, found.side) = (1, Duration::from_millis(5));
    }
    found
}

fn main() {
    let arguments = arguments();
    println!("| what | measured | target |");
    println!("|---|---|---|");
    copies(&arguments);
    checkpoint_bytes();
    mirrors(&arguments);
    resync();
    scrub(&arguments);
}

fn row(what: &str, measured: &str, target: &str) {
    println!("| {what} | {measured} | {target} |");
}

fn file(path: &Path) -> Found {
    let device = FileDevice::create(path, POOL_BYTES, Default::default()).expect("create a file");
    Found {
        path: path.to_owned(),
        device: Arc::new(device),
    }
}

/// Creates a pool on one file, or a mirror on several, with a volume that is completely written.
fn pool(files: Vec<Found>, copies: MetadataCopies) -> (Pool, Subject) {
    let options = CreateOptions {
        metadata_copies: Some(copies),
        ..CreateOptions::default()
    };
    let device: Arc<dyn Device> = if files.len() == 1 {
        Arc::clone(&files[0].device)
    } else {
        Arc::new(MirrorDevice::new(files).expect("make a mirror"))
    };
    Pool::create(&*device, &options).expect("create the pool");
    let pool = Pool::open(device, &OpenOptions::default()).expect("open the pool");
    let volume = pool.create_volume(&name("subject"), SUBJECT_BYTES);
    let subject = Subject::Volume(volume.expect("create a volume"));
    subject.fill();
    pool.checkpoint().expect("checkpoint");
    (pool, subject)
}

const fn random(action: Action, threads: u64) -> Load {
    Load {
        action,
        order: Order::Random,
        len_bytes: SMALL,
        threads,
    }
}

fn copies(arguments: &Arguments) {
    let folder = subject::folder_in(&arguments.dir);
    let (one_pool, one) = pool(vec![file(&folder.path().join("one"))], MetadataCopies::One);
    let (two_pool, two) = pool(vec![file(&folder.path().join("two"))], MetadataCopies::Two);
    let (ratio, rate) = compare(
        &two,
        &one,
        random(Action::Write, 32),
        arguments.rounds,
        arguments.side,
    );
    row(
        "4 KiB random write, 32 threads: two copies of metadata against one",
        &format!("{ratio:.2} ({rate:.0}/s)"),
        "at least 0.93",
    );
    drop((one, two));
    one_pool.close().expect("close");
    two_pool.close().expect("close");
}

fn bytes_of(recording: &Recording) -> u64 {
    let all = recording
        .epochs
        .iter()
        .flatten()
        .chain(&recording.unflushed);
    all.map(|op| match op {
        RecordedOp::Write { bytes, mapped, .. } if !mapped => bytes.len() as u64,
        _ => 0,
    })
    .sum()
}

/// Counts what a checkpoint after 10,000 random writes writes and flushes.
fn checkpoint_bytes() {
    let measure = |copies| {
        let device = Arc::new(MemoryDevice::new(POOL_BYTES));
        let seen = Found {
            path: PathBuf::new(),
            device: Arc::clone(&device) as Arc<dyn Device>,
        };
        let (pool, subject) = pool(vec![seen], copies);
        drop(subject);
        pool.close().expect("close");
        drop(pool);
        let device = Arc::new(MemoryDevice::recording_from(device.snapshot_image()));
        let options = OpenOptions {
            background: false,
            ..OpenOptions::default()
        };
        let pool = Pool::open(Arc::clone(&device) as Arc<dyn Device>, &options).expect("open");
        let volume = Subject::Volume(pool.volume("subject").expect("it is there"));
        volume.run(random(Action::Write, 1), 10_000, 3);
        let recorded = || device.recorded().expect("it records");
        let (before, flushes) = (bytes_of(&recorded()), device.flushes());
        pool.checkpoint().expect("checkpoint");
        (bytes_of(&recorded()) - before, device.flushes() - flushes)
    };
    let (one, two) = (measure(MetadataCopies::One), measure(MetadataCopies::Two));
    row(
        "bytes of a checkpoint after 10,000 random writes: two copies against one",
        &format!("{:.2} ({} KiB)", two.0 as f64 / one.0 as f64, two.0 >> 10),
        "at most 2.0",
    );
    row(
        "flushes of it",
        &format!("{} against {}", two.1, one.1),
        "the same",
    );
}

fn mirrors(arguments: &Arguments) {
    let folder = subject::folder_in(&arguments.dir);
    let at = |name: &str| file(&folder.path().join(name));
    let (single_pool, single) = pool(vec![at("single")], MetadataCopies::Two);
    let (mirror_pool, mirror) = pool(vec![at("first"), at("second")], MetadataCopies::Two);
    let plain = Subject::plain(folder.path());
    let pair = Subject::pair(folder.path());
    let durable = random(Action::DurableWrite, 1);
    let (ratio, rate) = compare(&pair, &plain, durable, arguments.rounds, arguments.side);
    row(
        "4 KiB write + flush, 1 thread: two plain files on this disk against one",
        &format!("{ratio:.2} ({rate:.0}/s)"),
        "",
    );
    let loads = [
        (
            "4 KiB random read, 1 thread",
            Action::Read,
            1,
            "at least 1.0",
        ),
        (
            "4 KiB random read, 2 threads",
            Action::Read,
            2,
            "at least 1.0",
        ),
        (
            "4 KiB write + flush, 1 thread",
            Action::DurableWrite,
            1,
            "at least 0.85",
        ),
        // Last: the host goes on writing for some time.
        ("4 KiB random write, 2 threads", Action::Write, 2, ""),
    ];
    for (what, action, threads, target) in loads {
        let (ratio, rate) = compare(
            &mirror,
            &single,
            random(action, threads),
            arguments.rounds,
            arguments.side,
        );
        row(
            &format!("{what}: a mirror of two files against one file"),
            &format!("{ratio:.2} ({rate:.0}/s)"),
            target,
        );
    }
    drop((single, mirror));
    single_pool.close().expect("close");
    mirror_pool.close().expect("close");
}

/// Counts what is copied to a side that was away while a hundredth of the pool's data changed.
fn resync() {
    let devices = [0, 1].map(|_| Arc::new(MemoryDevice::new(POOL_BYTES)));
    let found = |number: usize| Found {
        path: PathBuf::from(format!("/side/{number}")),
        device: Arc::clone(&devices[number]) as Arc<dyn Device>,
    };
    let open = |sides: Vec<Found>| {
        let mirror = MirrorDevice::assemble(sides).expect("assemble the sides");
        let options = OpenOptions {
            background: false,
            ..OpenOptions::default()
        };
        Pool::open(Arc::new(mirror), &options).expect("open the pool")
    };
    let (whole, subject) = pool(vec![found(0), found(1)], MetadataCopies::Two);
    drop(subject);
    whole.close().expect("close");
    let used = whole.status().expect("status").used_bytes;
    drop(whole);
    let alone = open(vec![found(0)]);
    let volume = alone.volume("subject").expect("it is there");
    let changed = SUBJECT_BYTES / 100 / BLOCK;
    for number in 0..changed {
        let offset = number * 97 * BLOCK % SUBJECT_BYTES;
        volume
            .write_at(&noise(4096, number), offset)
            .expect("write");
    }
    alone.close().expect("close");
    drop((alone, volume));
    let both = open(vec![found(0), found(1)]);
    let mut copied = 0;
    let resynced = both.resync(&mut |done, _| {
        copied = done;
        true
    });
    resynced.expect("bring the side up to date");
    both.close().expect("close");
    row(
        "resync after 1 % of the data was written at random without a side, of a full copy",
        &format!(
            "{:.1} % ({} KiB)",
            100.0 * copied as f64 / used as f64,
            copied >> 10
        ),
        "under 3 %",
    );
}

/// Compares a scrub with reading a plain file of as many bytes. Both read past the page cache.
fn scrub(arguments: &Arguments) {
    let folder = subject::folder_in(&arguments.dir);
    let path = folder.path().join("pool");
    let (pool, subject) = pool(vec![file(&path)], MetadataCopies::Two);
    drop(subject);
    drop(Subject::plain(folder.path()));
    let plain = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(folder.path().join("plain"))
        .expect("open the file for direct I/O");
    let timed_scrub = || {
        let started = Instant::now();
        let report = pool.scrub(&mut |_, _| true).expect("scrub");
        assert!(report.bad.is_empty());
        started.elapsed()
    };
    let timed_read = || {
        let mut buf = AlignedBuffer::zeroed(1 << 20);
        let started = Instant::now();
        for offset in (0..SUBJECT_BYTES).step_by(1 << 20) {
            plain.read_exact_at(&mut buf, offset).expect("read");
        }
        started.elapsed()
    };
    timed_scrub();
    timed_read();
    let ratios = (0..arguments.rounds).map(|round| {
        let (ours, theirs) = if round % 2 == 0 {
            let ours = timed_scrub();
            (ours, timed_read())
        } else {
            let theirs = timed_read();
            (timed_scrub(), theirs)
        };
        theirs.as_secs_f64() / ours.as_secs_f64()
    });
    let ratio: f64 = median(ratios.collect());
    row(
        "scrub against reading a plain file of as many bytes in sequence, direct, in 1 MiB requests",
        &format!("{ratio:.2}"),
        "at least 0.8",
    );
    pool.close().expect("close");
}
