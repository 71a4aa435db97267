//! The cost of listing and committing one changed file among many, in Markdown: from the blocks
//! that differ, and by walking every object of both trees. Needs root, for mounting.
//!
//! `cargo bench --bench changes -- [--rounds N] [--files N]`
//!
//! In each round all variants run directly after each other, each after its own change, on one
//! mounted container; the table shows medians.

mod subject;

use cowshed_format::base::Name;
use cowshed_host::{Comparison, CreateContainer, Host, ImportOptions};
use cowshed_oci::SourceInput;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use subject::{folder, name, new_pool};

const FILES_IN_A_FOLDER: u64 = 100;
const CONTAINER: &str = "bench";

struct Arguments {
    rounds: u64,
    files: u64,
}

fn arguments() -> Arguments {
    let mut found = Arguments {
        rounds: 9,
        files: 50_000,
    };
    let mut bench = false;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            let value = words.next().and_then(|text| text.parse().ok());
            value.unwrap_or_else(|| panic!("{word} needs a number"))
        };
        match word.as_str() {
            "--bench" => bench = true,
            "--rounds" => found.rounds = value(),
            "--files" => found.files = value(),
            _ => panic!("usage: changes [--rounds N] [--files N]"),
        }
    }
    // As a test, it only shows that it works.
    if !bench {
        (found.rounds, found.files) = (1, 500);
    }
    found
}

/// A container whose image has many files.
struct Subject {
    host: Host,
    root: PathBuf,
    files: u64,
    changes: u64,
}

fn main() {
    let Arguments { rounds, files } = arguments();
    let folder = folder();
    let pool = new_pool(&folder.path().join("pool"), 8 << 30);
    let host = Host::new(pool, &folder.path().join("state")).expect("start");
    let mut subject = Subject::new(host, folder.path(), files);
    let first = subject.diff(Comparison::Blocks);
    let mut times: [Vec<Duration>; 4] = Default::default();
    for _ in 0..rounds {
        for (comparison, [diffs, commits]) in [Comparison::Blocks, Comparison::Trees]
            .into_iter()
            .zip(times.as_chunks_mut().0)
        {
            diffs.push(subject.diff(comparison));
            commits.push(subject.commit(comparison));
        }
    }
    let [diff, commit, diff_trees, commit_trees] = times.map(median);
    println!("One changed file among {files}, {rounds} rounds, medians:\n");
    println!("| what | from the blocks | by the trees | ratio |");
    println!("|---|---|---|---|");
    row("diff", diff, diff_trees);
    row("commit", commit, commit_trees);
    row("first diff of an image", first, diff_trees);
    subject.host.close().expect("unmount");
}

impl Subject {
    fn new(host: Host, folder: &Path, files: u64) -> Self {
        let content = folder.join("content");
        for number in 0..files {
            let path = content.join(path_of(number));
            if number % FILES_IN_A_FOLDER == 0 {
                fs::create_dir_all(path.parent().expect("it has one")).expect("make a folder");
            }
            fs::write(path, format!("file {number}\n").repeat(40)).expect("write a file");
        }
        let tar = folder.join("content.tar");
        let packed = Command::new("tar")
            .arg("-C")
            .arg(&content)
            .arg("-cf")
            .arg(&tar)
            .arg(".")
            .status()
            .expect("start tar");
        assert!(packed.success(), "tar failed");
        let image = host
            .images()
            .open(SourceInput::Path(tar), None)
            .expect("open the image");
        let options = ImportOptions {
            name: Some(name("bench:1")),
            ..Default::default()
        };
        host.images()
            .import(&image, &options, &mut |_| true)
            .expect("import the image");
        let options = CreateContainer {
            name: Some(name(CONTAINER)),
            ..Default::default()
        };
        host.containers()
            .create("bench:1", &options)
            .expect("make a container");
        let root = host
            .containers()
            .mount(CONTAINER, None)
            .expect("mount it")
            .path;
        Self {
            host,
            root,
            files,
            changes: 0,
        }
    }

    /// Changes one file, always the same one, and writes it back to the disk.
    fn change(&mut self) {
        self.changes += 1;
        let path = self.root.join(path_of(self.files / 2));
        fs::write(&path, format!("change {}\n", self.changes)).expect("change a file");
        let file = fs::File::open(&path).expect("open it");
        file.sync_all().expect("write it out");
    }

    fn diff(&mut self, comparison: Comparison) -> Duration {
        self.change();
        self.host.layers().set_comparison(comparison);
        let started = Instant::now();
        let changes = self.host.containers().diff(CONTAINER).expect("compare");
        let took = started.elapsed();
        // The file and the two folders above it.
        assert_eq!(changes.len(), 3, "{changes:?}");
        took
    }

    fn commit(&mut self, comparison: Comparison) -> Duration {
        self.change();
        self.host.layers().set_comparison(comparison);
        let name = Name::new(&format!("committed:{}", self.changes)).expect("a good name");
        let started = Instant::now();
        self.host
            .containers()
            .commit(CONTAINER, &name, None)
            .expect("commit");
        started.elapsed()
    }
}

fn path_of(number: u64) -> PathBuf {
    let folder = number / FILES_IN_A_FOLDER;
    format!("{}/{folder}/file-{number}", folder / 10).into()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn row(what: &str, blocks: Duration, trees: Duration) {
    let ratio = trees.as_secs_f64() / blocks.as_secs_f64();
    println!("| {what} | {blocks:.1?} | {trees:.1?} | {ratio:.0} |");
}
