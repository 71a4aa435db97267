//! The cost of branching, comparing, removing and opening: snapshots and clones among few and many
//! volumes, the first write after a snapshot, differences, removals, and opening.

#![allow(missing_docs, reason = "criterion makes the entry points")]

mod subject;

use cowshed_engine::Volume;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};
use subject::{BLOCK, Subject, name, new_pool, noise, open_pool};

const POOL_BYTES: u64 = 8 << 30;
const GIB: u64 = 1 << 30;

/// Names that are unique among all calls.
struct Names(Cell<u64>);

impl Names {
    fn next(&self, kind: &str) -> cowshed_format::base::Name {
        self.0.set(self.0.get() + 1);
        name(&format!("{kind}-{}", self.0.get()))
    }
}

fn snapshot_and_clone(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("branch");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(1));
    for count in [1_u64, 1_000, 100_000] {
        let folder = subject::folder();
        let pool = new_pool(&folder.path().join("pool"), POOL_BYTES);
        let names = Names(Cell::new(0));
        let volume = pool
            .create_volume(&names.next("volume"), GIB)
            .expect("create");
        volume.write_at(&noise(1 << 20, 1), 0).expect("write");
        let frozen = pool
            .snapshot(&volume, &names.next("frozen"))
            .expect("snapshot");
        for _ in 1..count {
            pool.clone_volume(&frozen, &names.next("clone"))
                .expect("clone");
        }
        // Each clone is removed again, so that the number of volumes stays as named.
        group.bench_function(format!("clone/{count}"), |bencher| {
            bencher.iter_custom(|times| {
                let made = (0..times).map(|_| {
                    let name = names.next("clone");
                    let started = Instant::now();
                    let clone = pool.clone_volume(&frozen, &name).expect("clone");
                    let took = started.elapsed();
                    pool.remove(&clone).expect("remove");
                    took
                });
                made.sum()
            });
        });
        group.bench_function(format!("snapshot/{count}"), |bencher| {
            bencher.iter_custom(|times| {
                let made = (0..times).map(|_| {
                    let name = names.next("snapshot");
                    let started = Instant::now();
                    let snapshot = pool.snapshot(&volume, &name).expect("snapshot");
                    let took = started.elapsed();
                    pool.remove(&snapshot).expect("remove");
                    took
                });
                made.sum()
            });
        });
        drop((volume, frozen));
        pool.close().expect("close");
    }
    group.finish();
}

fn writes_after_a_snapshot(criterion: &mut Criterion) {
    let folder = subject::folder();
    let (pool, subject) = Subject::volume(folder.path());
    let Subject::Volume(volume) = subject else {
        unreachable!("it is a volume");
    };
    let names = Names(Cell::new(0));
    let block = noise(4096, 1);
    let mut group = criterion.benchmark_group("write-after-snapshot");
    for which in ["first", "later"] {
        group.bench_function(which, |bencher| {
            let offset = Cell::new(0);
            let mut before: Option<Volume> = None;
            bencher.iter_batched(
                || {
                    let snapshot = pool
                        .snapshot(&volume, &names.next("snapshot"))
                        .expect("snapshot");
                    if let Some(before) = before.replace(snapshot) {
                        pool.remove(&before).expect("remove");
                    }
                    offset.set((offset.get() + 4099 * BLOCK) % subject::SUBJECT_BYTES);
                    if which == "later" {
                        volume
                            .write_at(&block, offset.get() ^ BLOCK)
                            .expect("write");
                    }
                },
                |()| volume.write_at(&block, offset.get()).expect("write"),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    drop(volume);
    pool.close().expect("close");
}

fn removal(criterion: &mut Criterion) {
    const OWN_BLOCKS: u64 = 16 << 10;
    let folder = subject::folder();
    let pool = new_pool(&folder.path().join("pool"), POOL_BYTES);
    let names = Names(Cell::new(0));
    let mut group = criterion.benchmark_group("remove");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(OWN_BLOCKS));
    group.bench_function(format!("{OWN_BLOCKS} own blocks, reclaimed"), |bencher| {
        bencher.iter_batched(
            || {
                let volume = pool
                    .create_volume(&names.next("volume"), GIB)
                    .expect("create");
                for at in 0..OWN_BLOCKS / 256 {
                    volume
                        .write_at(&noise(1 << 20, at), at << 20)
                        .expect("write");
                }
                pool.checkpoint().expect("checkpoint");
                volume
            },
            |volume| {
                pool.remove(&volume).expect("remove");
                pool.reclaim().expect("reclaim");
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
    pool.close().expect("close");
}

fn differences(criterion: &mut Criterion) {
    const SIZE: u64 = 100 << 30;
    let folder = subject::folder();
    let pool = new_pool(&folder.path().join("pool"), POOL_BYTES);
    let volume = pool.create_volume(&name("a"), SIZE).expect("create");
    // A base that is sparse but spread over the whole volume.
    for at in 0..20_000 {
        volume
            .write_at(&noise(4096, at), at * (SIZE / 20_000) / BLOCK * BLOCK)
            .expect("write");
    }
    let mut group = criterion.benchmark_group("diff-100GiB");
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
        group.throughput(Throughput::Elements(changed));
        group.bench_function(format!("{changed} changed"), |bencher| {
            bencher.iter(|| pool.diff(&snapshot, &volume).expect("diff"));
        });
    }
    group.finish();
    drop(volume);
    pool.close().expect("close");
}

/// Creates a pool with `volumes` volumes; unless it is closed cleanly, its log has records to
/// replay.
fn stopped_pool(path: &Path, volumes: u64, clean: bool) {
    let pool = new_pool(path, POOL_BYTES);
    let base = pool.create_volume(&name("base"), GIB).expect("create");
    pool.freeze(&base).expect("freeze");
    for number in 0..volumes {
        pool.clone_volume(&base, &name(&format!("clone-{number}")))
            .expect("clone");
    }
    pool.checkpoint().expect("checkpoint");
    let volume = pool.create_volume(&name("busy"), GIB).expect("create");
    for at in 0..50_000 {
        volume
            .write_at(&noise(4096, at), at * BLOCK)
            .expect("write");
    }
    if clean {
        pool.close().expect("close");
    }
}

fn opening(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    group.sample_size(10);
    for volumes in [1_u64, 100_000] {
        for clean in [true, false] {
            let folder = subject::folder();
            let (kept, tried) = (folder.path().join("kept"), folder.path().join("tried"));
            stopped_pool(&kept, volumes, clean);
            let stop = if clean { "clean" } else { "unclean" };
            group.bench_function(format!("{stop}/{volumes}"), |bencher| {
                bencher.iter_batched(
                    || copy_sparse(&kept, &tried),
                    |()| open_pool(&tried, false),
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}

/// Copies a pool sparsely: opening changes a pool, so each opening has its own copy.
fn copy_sparse(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .arg("--sparse=always")
        .args([from, to])
        .status()
        .expect("run cp");
    assert!(status.success(), "cp failed");
}

criterion_group!(
    benches,
    snapshot_and_clone,
    writes_after_a_snapshot,
    removal,
    differences,
    opening
);
criterion_main!(benches);
