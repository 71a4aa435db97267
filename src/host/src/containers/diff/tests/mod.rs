//! The comparison by blocks against the one by trees, on real mounted containers.
//!
//! `COWSHED_TEST_SECONDS` sets the duration of the random changes, `COWSHED_TEST_SEED` repeats one
//! run.

mod hostile;
mod mutations;
mod overlays;
mod stage;

use crate::mounts::ext4::{self, InVolume};
use cowshed_ext4diff::{Fault, FileSystem, Indexes, TreeChange, TreePath};
use mutations::Mutator;
use rand::{Rng, SeedableRng, rngs::StdRng};
use stage::{Stage, shell};
use std::env;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

/// The default duration of the random changes.
const DEFAULT_SECONDS: u64 = 8;
/// The maximum number of changes between two comparisons.
const BATCH_MAX: usize = 24;
/// Number of stacked containers for each seed.
const GENERATIONS: usize = 4;
/// Number of comparisons of each container.
const COMPARISONS: usize = 5;

#[test]
fn random_changes_are_found_as_the_trees_show_them() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse().unwrap());
    let seconds = Duration::from_secs(number("COWSHED_TEST_SECONDS").unwrap_or(DEFAULT_SECONDS));
    let started = Instant::now();
    let (mut mutations, mut comparisons, mut listed) = (0, 0, 0);
    let fixed = number("COWSHED_TEST_SEED");
    let first = fixed.unwrap_or_else(|| rand::rng().random::<u32>().into());
    for seed in first.. {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let stage = Stage::new();
        stage.image("base:0", |root| {
            Mutator::new(root, StdRng::seed_from_u64(seed)).fill();
        });
        for generation in 0..GENERATIONS {
            let size_bytes = random
                .random_bool(0.2)
                .then(|| random.random_range(1..9) << 30);
            let name = format!("c{generation}");
            let root = stage.container_of_size(&format!("base:{generation}"), &name, size_bytes);
            let mut mutator = Mutator::new(&root, StdRng::seed_from_u64(random.random()));
            for _ in 0..COMPARISONS {
                let batch = random.random_range(1..=BATCH_MAX);
                mutations += mutator.mutate(batch);
                let found = stage.compare(&name, &format!("seed {seed}"));
                comparisons += 1;
                listed += found.len();
            }
            drop(mutator);
            if random.random_bool(0.5) {
                stage.host.containers().unmount(&name).unwrap();
                stage.compare(&name, &format!("seed {seed}, not mounted"));
            }
            stage.commit_both_ways(&name, &format!("base:{}", generation + 1));
        }
        if fixed.is_some() || started.elapsed() > seconds {
            break;
        }
    }
    println!("{mutations} mutations, {comparisons} comparisons, {listed} changes listed");
    assert!(listed > 0);
}

#[test]
fn a_container_that_goes_on_writing_is_compared() {
    let stage = Stage::new();
    stage.image("base:0", |root| {
        Mutator::new(root, StdRng::seed_from_u64(1)).fill();
    });
    let root = stage.container("base:0", "busy");
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let busy = root.clone();
        scope.spawn(move || {
            let mut mutator = Mutator::new(&busy, StdRng::seed_from_u64(2));
            while let Err(std::sync::mpsc::TryRecvError::Empty) = stopped.try_recv() {
                mutator.mutate(3);
            }
        });
        for round in 0..6 {
            stage.compare("busy", &format!("round {round}"));
        }
        drop(stop);
    });
    stage.compare("busy", "at rest");
}

#[test]
fn content_that_changed_behind_the_inodes_back_is_found() {
    let stage = Stage::new();
    stage.image("base:0", |root| {
        shell(root, "mkdir -p a/b; seq 100000 > a/b/file; echo x > y")
    });
    let root = stage.container("base:0", "one");
    shell(&root, "echo changed > y");
    stage.host.containers().unmount("one").unwrap();
    let (base, volume) = stage.volumes_of("one");
    let source = InVolume(&volume);
    let reader = FileSystem::open(&source).unwrap();
    let file = stage.inode_of(&reader, &["a", "b", "file"]);
    let block = reader.extents(&file).unwrap().runs[0].physical + 1;
    drop(reader);
    volume.write_at(b"not the same", block * 4096 + 7).unwrap();
    let changes = ext4::changes(&stage.pool, &base, &volume, &Indexes::default()).unwrap();
    let listed: Vec<_> = changes
        .keys()
        .map(|path| path.as_path().to_owned())
        .collect();
    assert_eq!(
        listed,
        ["a", "a/b", "a/b/file", "y"].map(std::path::PathBuf::from)
    );
}

#[test]
fn an_open_file_that_was_deleted_does_not_matter() {
    let stage = Stage::new();
    stage.image("base:0", |root| {
        shell(root, "mkdir a; seq 1000 > a/log; ln a/log again")
    });
    let root = stage.container("base:0", "one");
    let mut log = File::options()
        .append(true)
        .open(root.join("a/log"))
        .unwrap();
    let mut temporary = File::create(root.join("temporary")).unwrap();
    temporary.write_all(&[7; 1 << 20]).unwrap();
    log.write_all(b"more").unwrap();
    shell(&root, "rm temporary a/log");
    let changes = stage.compare("one", "open");
    let change = |path: &str| changes.get(&TreePath::from_bytes(path.into())).copied();
    assert_eq!(change("a/log"), Some(TreeChange::Removed));
    assert_eq!(change("again"), Some(TreeChange::Changed));
    shell(&root, "rm again");
    let changes = stage.compare("one", "both names are gone");
    let change = |path: &str| changes.get(&TreePath::from_bytes(path.into())).copied();
    assert_eq!(change("again"), Some(TreeChange::Removed));
    stage.commit_both_ways("one", "two:1");
}

#[test]
fn a_second_comparison_reads_a_handful_of_blocks() {
    let stage = Stage::new();
    stage.image("base:0", |root| {
        shell(
            root,
            "for d in $(seq 400); do mkdir $d; touch $d/{1..20}; done",
        );
    });
    let root = stage.container("base:0", "one");
    shell(&root, "echo x > 77/7");
    stage.compare("one", "first");
    stage.host.containers().unmount("one").unwrap();
    let (base, volume) = stage.volumes_of("one");
    let indexes = Indexes::default();
    ext4::changes(&stage.pool, &base, &volume, &indexes).unwrap();
    let read = stage.with_sides(&base, &volume, |sides| {
        let before = sides.base.reads_left() + sides.now.reads_left();
        sides.changes(&indexes).unwrap();
        before - sides.base.reads_left() - sides.now.reads_left()
    });
    assert!(read < 100, "{read} blocks were read");
}

#[test]
fn what_only_the_kernel_can_read_is_compared_as_trees() {
    let stage = Stage::new();
    stage.image("base:0", |root| {
        shell(root, "mkdir a; echo one > a/one; echo two > a/two");
    });
    let root = stage.container("base:0", "one");
    // A file without extents, as ext3 had them.
    shell(&root, "sync; chattr -e a/two; echo changed > a/one");
    let changes = stage.host.containers().diff("one").unwrap();
    let listed: Vec<_> = changes.iter().map(|change| change.path.as_path()).collect();
    assert_eq!(listed, ["/a", "/a/one"].map(std::path::Path::new));
    stage.host.containers().unmount("one").unwrap();
    let (base, volume) = stage.volumes_of("one");
    let refused = ext4::changes(&stage.pool, &base, &volume, &Indexes::default());
    assert!(matches!(refused, Err(Fault::Unsupported(_))), "{refused:?}");
    stage.commit_both_ways("one", "two:1");
}
