//! The slowest writes during checkpoints, and without any.
//!
//! A pool that is written to fast makes checkpoints by itself, because it frees many blocks. So
//! there are two speeds: a slow one, at which only requested checkpoints happen in the time, one
//! each second; and full speed, with only the pool's own checkpoints, or with continuous ones.

use super::Subject;
use super::work::Stage;
use crate::fio::{End, Job, Pattern};
use crate::host;
use crate::results::Unit;
use crate::run::Run;
use crate::signals::Interrupted;
use anyhow::Context;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const GROUP: &str = "99.9th percentile of 4 KiB writes and checkpoints";
/// A rate that a pool sustains for some seconds without a checkpoint.
const SLOW_PER_SECOND: u32 = 2000;
/// Less than the time after which a pool makes a checkpoint by itself.
const SLOW_TIME_MAX: Duration = Duration::from_millis(4500);
const PAUSE: Duration = Duration::from_millis(10);

struct Case {
    name: &'static str,
    depth: u32,
    per_second_max: Option<u32>,
    /// The pause after each requested checkpoint.
    checkpoints: Option<Duration>,
}

const CASES: &[Case] = &[
    Case {
        name: "2,000 writes a second, no checkpoint",
        depth: 1,
        per_second_max: Some(SLOW_PER_SECOND),
        checkpoints: None,
    },
    Case {
        name: "2,000 writes a second, a checkpoint each second",
        depth: 1,
        per_second_max: Some(SLOW_PER_SECOND),
        checkpoints: Some(Duration::from_secs(1)),
    },
    Case {
        name: "depth 32 at full speed, the pool's own checkpoints",
        depth: 32,
        per_second_max: None,
        checkpoints: None,
    },
    Case {
        name: "depth 32 at full speed, checkpoints in a loop",
        depth: 32,
        per_second_max: None,
        checkpoints: Some(Duration::ZERO),
    },
];

pub(super) fn round(run: &mut Run, stage: &Stage) -> Result<(), Interrupted> {
    let size = run.scale.subject_bytes;
    let time = (2 * run.scale.seconds).min(SLOW_TIME_MAX);
    stage.each(run, |run, number, peer| {
        let subject = stage.filled(number, size)?;
        for case in CASES {
            run.progress.step(&format!("{}: {peer}", case.name));
            host::wait(subject.checkpoint().context("it has no checkpoints")?)?;
            let seconds = slowest(subject.as_ref(), case, time, size)?;
            run.add(stage.at, GROUP, case.name, peer, (Unit::Seconds, seconds));
        }
        Ok(())
    })
}

/// Returns the time within which 99.9 % of the writes were done.
fn slowest(subject: &dyn Subject, case: &Case, time: Duration, size: u64) -> anyhow::Result<f64> {
    let job = Job {
        pattern: Pattern::RandomWrite,
        block_bytes: 4096,
        depth: case.depth,
        fsync: false,
        per_second_max: case.per_second_max,
        end: End::After(time),
        seed: 1,
    };
    let Some(pause) = case.checkpoints else {
        return Ok(job.run(subject.target(), size)?.writes.seconds_p999);
    };
    let target = subject.target().clone();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let outcome = job.run(&target, size);
            over.store(true, Ordering::Release);
            outcome
        });
        let asked = ask(subject, pause, &over);
        let outcome = writer
            .join()
            .map_err(|_| anyhow::anyhow!("fio's thread ended"))??;
        asked?;
        Ok(outcome.writes.seconds_p999)
    })
}

/// Requests checkpoints until `over` is set.
fn ask(subject: &dyn Subject, pause: Duration, over: &AtomicBool) -> anyhow::Result<()> {
    while !over.load(Ordering::Acquire) {
        host::wait(subject.checkpoint().context("it has no checkpoints")?)?;
        let mut waited = Duration::ZERO;
        while waited < pause && !over.load(Ordering::Acquire) {
            thread::sleep(PAUSE);
            waited += PAUSE;
        }
    }
    Ok(())
}
