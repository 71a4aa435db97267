//! Reading and writing. All subjects of a round exist at once, and each job runs on all of them
//! before the next job begins, so that a slow minute of the machine affects all of them.

use super::Subject;
use super::work::Stage;
use crate::fio::{End, Job, Outcome, Part, Pattern};
use crate::neighbours::Neighbours;
use crate::results::Unit;
use crate::run::{Run, turn};
use crate::signals::Interrupted;
use anyhow::Context;

const KIB: u64 = 1 << 10;

/// A job, and the display of its result.
pub(super) struct Named {
    name: &'static str,
    pattern: Pattern,
    block_bytes: u64,
    depth: u32,
    fsync: bool,
    /// True if every processor is also busy with other work.
    busy: bool,
}

const fn random(name: &'static str, pattern: Pattern, depth: u32) -> Named {
    Named {
        name,
        pattern,
        block_bytes: 4 * KIB,
        depth,
        fsync: false,
        busy: false,
    }
}

const fn sequential(name: &'static str, pattern: Pattern, depth: u32) -> Named {
    Named {
        block_bytes: 128 * KIB,
        ..random(name, pattern, depth)
    }
}

const fn busy(name: &'static str, pattern: Pattern) -> Named {
    Named {
        busy: true,
        ..random(name, pattern, 1)
    }
}

/// Reads come first: they use the sequential layout.
pub(super) const JOBS: &[Named] = &[
    sequential("128 KiB sequential read, depth 8", Pattern::Read, 8),
    random("4 KiB random read, depth 1", Pattern::RandomRead, 1),
    random("4 KiB random read, depth 32", Pattern::RandomRead, 32),
    sequential("128 KiB sequential write, depth 8", Pattern::Write, 8),
    random("4 KiB random write, depth 1", Pattern::RandomWrite, 1),
    random("4 KiB random write, depth 32", Pattern::RandomWrite, 32),
    random("4 KiB random 70:30, depth 1", Pattern::RandomMixed, 1),
    random("4 KiB random 70:30, depth 32", Pattern::RandomMixed, 32),
    Named {
        fsync: true,
        ..random("4 KiB write + fsync", Pattern::RandomWrite, 1)
    },
];

/// Jobs while every processor is also busy with other work.
pub(super) const BUSY_JOBS: &[Named] = &[
    busy("4 KiB random read, depth 1, busy host", Pattern::RandomRead),
    busy(
        "4 KiB random write, depth 1, busy host",
        Pattern::RandomWrite,
    ),
];

impl Named {
    fn is_sequential(&self) -> bool {
        self.block_bytes > 4 * KIB
    }

    /// Returns the requests or bytes per second, of both directions.
    fn value(&self, outcome: &Outcome) -> (Unit, f64) {
        let (reads, writes) = (outcome.reads, outcome.writes);
        if self.is_sequential() {
            let bytes = reads.bytes_per_second + writes.bytes_per_second;
            (Unit::BytesPerSecond, bytes)
        } else {
            (Unit::Iops, reads.per_second + writes.per_second)
        }
    }

    fn group(&self) -> &'static str {
        if self.is_sequential() {
            "sequential reads and writes"
        } else {
            "random reads and writes"
        }
    }
}

pub(super) fn round(run: &mut Run, stage: &Stage, jobs: &[Named]) -> Result<(), Interrupted> {
    let size = run.scale.subject_bytes;
    let mut subjects: Vec<Option<Box<dyn Subject>>> = Vec::new();
    for (number, peer) in stage.peers.iter().enumerate() {
        run.progress.step(&format!("setting up {}", peer.name()));
        subjects.push(run.attempt(stage.at, peer.name(), |run| {
            let subject = stage.filled(number, size)?;
            verify(run, stage, peer.name(), subject.as_ref())?;
            Ok(subject)
        })?);
    }
    let round = stage.at.round as usize;
    for (position, job) in jobs.iter().enumerate() {
        for number in turn(subjects.len(), round + position) {
            let name = stage.peers[number].name();
            let Some(subject) = &subjects[number] else {
                continue;
            };
            run.progress.step(&format!("{}: {name}", job.name));
            let measured = run.attempt(stage.at, name, |run| {
                let others = job.busy.then(Neighbours::begin).transpose()?;
                let outcome = Job {
                    pattern: job.pattern,
                    block_bytes: job.block_bytes,
                    depth: job.depth,
                    fsync: job.fsync,
                    per_second_max: None,
                    end: End::After(run.scale.seconds),
                    seed: (round * 100 + position) as u64,
                }
                .run(subject.target(), size)?;
                drop(others);
                add(run, stage, job, name, &outcome)?;
                // The next job must not pay for work that this one has begun.
                stage.rest(subject.as_ref())
            })?;
            if measured.is_none() {
                subjects[number] = None;
            }
        }
    }
    for (peer, subject) in stage.peers.iter().zip(&subjects) {
        if let Some(subject) = subject {
            run.progress.step(&format!("verifying {}", peer.name()));
            let check = |run: &mut Run| verify(run, stage, peer.name(), subject.as_ref());
            run.attempt(stage.at, peer.name(), check)?;
        }
    }
    Ok(())
}

fn add(
    run: &mut Run,
    stage: &Stage,
    job: &Named,
    peer: &str,
    outcome: &Outcome,
) -> anyhow::Result<()> {
    run.add(stage.at, job.group(), job.name, peer, job.value(outcome));
    let (of, seconds) = if job.fsync {
        let flushes = outcome.flush_seconds_p999;
        ("of the flush", flushes.context("fio timed no flush")?)
    } else if !job.is_sequential() && outcome.writes.count > 0 {
        ("of the writes", outcome.writes.seconds_p999)
    } else {
        return Ok(());
    };
    let name = format!("{}: 99.9th percentile {of}", job.name);
    let group = "99.9th percentile of random writes and flushes";
    run.add(stage.at, group, &name, peer, (Unit::Seconds, seconds));
    Ok(())
}

/// Writes a part with checksums, and reads it back.
fn verify(run: &mut Run, stage: &Stage, peer: &str, subject: &dyn Subject) -> anyhow::Result<()> {
    let part = Part {
        offset: 0,
        len_bytes: run.scale.verify_bytes,
        seed: u64::from(stage.at.round),
    };
    stage.verify(run, peer, subject, part)
}
