//! Reads and writes of a volume, through the library, compared with a plain file of the same size.

#![allow(missing_docs, reason = "criterion makes the entry points")]

mod subject;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use std::cell::Cell;
use std::time::Duration;
use subject::{Action, Load, Order, Subject};

fn compare(
    group: &mut BenchmarkGroup<'_, WallTime>,
    subjects: &[(&str, &Subject)],
    what: &str,
    load: Load,
) {
    group.throughput(Throughput::Bytes(load.len_bytes));
    let seed = Cell::new(0);
    for (who, subject) in subjects {
        group.bench_function(format!("{what}/{who}"), |bencher| {
            bencher.iter_custom(|count| {
                seed.set(seed.get() + 1);
                subject.run(load, count, seed.get())
            });
        });
    }
}

fn reads_and_writes(criterion: &mut Criterion) {
    let folder = subject::folder();
    let (pool, volume) = Subject::volume(folder.path());
    let plain = Subject::plain(folder.path());
    let subjects = [("volume", &volume), ("plain", &plain)];
    let mut group = criterion.benchmark_group("io");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(2));
    for action in [Action::Read, Action::Write] {
        for order in [Order::Random, Order::Sequential] {
            for len_bytes in [4 << 10, 128 << 10] {
                for threads in [1, 2] {
                    let load = Load {
                        action,
                        order,
                        len_bytes,
                        threads,
                    };
                    let kib = len_bytes >> 10;
                    let what = format!("{action:?}/{order:?}/{kib}KiB/{threads}");
                    compare(&mut group, &subjects, &what.to_lowercase(), load);
                }
            }
        }
    }
    let load = Load {
        action: Action::DurableWrite,
        order: Order::Random,
        len_bytes: 4 << 10,
        threads: 1,
    };
    compare(&mut group, &subjects, "write+flush/4KiB", load);
    group.finish();
    drop(volume);
    pool.close().expect("close the pool");
}

criterion_group!(benches, reads_and_writes);
criterion_main!(benches);
