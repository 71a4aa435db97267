//! The worker is killed every second beneath a loaded file system: no load fails, and nothing is
//! wrong or left behind afterwards.

use crate::file_system::{FileSystem, Mounted};
use crate::harness::{Bench, loops_below, mounts_below};
use crate::kernel_log::KernelLog;
use crate::loads::{Loads, Tally};
use crate::server::{Server, kill_worker, serving};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// The minimum number of kills of a storm, however slow the host is.
const KILLS_MIN: u64 = 6;
const KILL_EVERY: Duration = Duration::from_secs(1);
/// The minimum time that each worker serves, so that the loads make progress.
const SERVE_MIN: Duration = Duration::from_millis(300);

/// The resources, in the order in which they must be dropped when something fails.
struct Stage {
    loads: Option<Loads>,
    mounted: Option<Mounted>,
    server: Server,
    bench: Bench,
}

/// The result of the kills.
#[derive(Default)]
struct Killed {
    kills: u64,
    /// The longest time until commands were taken again.
    longest: Duration,
}

/// Runs one storm; returns a summary.
pub(crate) fn storm(file_system: FileSystem, time: Duration, seed: u64) -> String {
    let bench = Bench::empty();
    // A large log, because a successor spends its time on replaying it.
    bench.ok(["pool", "create", "--size", "6G", "--log-size", "64M"]);
    let server = Server::start(&bench);
    bench.ok(["volume", "create", "disk", "--size", "1G"]);
    bench.ok(["volume", "create", "bare", "--size", "1M"]);
    let device = PathBuf::from(bench.ok(["attach", "disk"]).trim());
    let bare = PathBuf::from(bench.ok(["attach", "bare"]).trim());
    let log = KernelLog::begin(&[&device, &bare]);
    let mount_point = bench.path("mounted");
    file_system.make(&device);
    let mut stage = Stage {
        loads: None,
        mounted: Some(file_system.mount(&device, &mount_point)),
        server,
        bench,
    };
    let notes = stage.bench.path("notes");
    stage.loads = Some(Loads::start(&mount_point, &bare, &notes, seed));
    let started = Instant::now();
    let killed = kill_for(&mut stage, time);
    let tally = stage.loads.take().unwrap().end();
    let took = started.elapsed();
    stage.mounted.take().unwrap().unmount();
    file_system.expect_clean(&device);
    let compared = compare_again(&mut stage, file_system, &device, &tally);
    log.expect_no_complaint();
    finish(stage, killed.kills);
    format!(
        "{}: {} kills in {:.0} s, seed {seed}; {} operations, {} rounds of fio and stress-ng, \
         {:.1} MiB verified; longest pause of a device {:.2} s, of a file {:.2} s, of commands \
         {:.2} s",
        file_system.name(),
        killed.kills,
        took.as_secs_f64(),
        tally.operations,
        tally.rounds,
        mib(tally.verified_bytes + compared),
        tally.probed.as_secs_f64(),
        tally.longest.as_secs_f64(),
        killed.longest.as_secs_f64(),
    )
}

#[allow(clippy::cast_precision_loss, reason = "it is shown rounded")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn kill_for(stage: &mut Stage, time: Duration) -> Killed {
    let started = Instant::now();
    let (mut worker, _) = serving(&stage.bench);
    let (mut killed, mut rest) = (Killed::default(), KILL_EVERY);
    while started.elapsed() < time || killed.kills < KILLS_MIN {
        // The rhythm of the storm, regardless of the loads; each worker serves for a while.
        thread::sleep(rest);
        stage.loads.as_mut().unwrap().expect_at_work();
        let (successor, pause) = kill_worker(&stage.bench, worker);
        worker = successor;
        rest = KILL_EVERY.saturating_sub(pause).max(SERVE_MIN);
        killed.kills += 1;
        killed.longest = killed.longest.max(pause);
    }
    killed
}

/// Mounts it again, and checks that the loads' files are still there. Returns the number of bytes.
fn compare_again(stage: &mut Stage, file_system: FileSystem, device: &Path, tally: &Tally) -> u64 {
    let at = stage.bench.path("mounted");
    stage.mounted = Some(file_system.mount(device, &at));
    let mut compared = 0;
    for (path, outcome) in &tally.files {
        let content = fs::read(path).unwrap();
        assert_eq!(content.len() as u64, outcome.len_bytes, "{path:?}");
        assert_eq!(crc32fast::hash(&content), outcome.crc32, "{path:?}");
        compared += outcome.len_bytes;
    }
    stage.mounted.take().unwrap().unmount();
    compared
}

/// Asserts that every kill was one restart; shuts everything down in order, and checks that the
/// pool is sound.
fn finish(stage: Stage, kills: u64) {
    let Stage { server, bench, .. } = stage;
    let (_, restarts) = serving(&bench);
    assert_eq!(
        restarts,
        kills,
        "a worker died by itself: {}",
        server.said()
    );
    for volume in ["disk", "bare"] {
        bench.ok(["detach", volume]);
    }
    let volumes = server.mount.clone();
    assert!(loops_below(&volumes).is_empty(), "a loop device was left");
    server.stop();
    let folder = bench.path("");
    assert_eq!(mounts_below(&folder), Vec::<PathBuf>::new());
    bench.expect_sound();
}
