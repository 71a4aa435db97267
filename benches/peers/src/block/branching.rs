//! The cost of snapshots: beside many others, of large volumes, and for later writes.

use super::work::Stage;
use super::{Place, Subject};
use crate::fio::{self, End, Job, Part, Pattern, Target};
use crate::results::Unit;
use crate::run::Run;
use crate::signals::Interrupted;
use crate::statistics::Summary;
use anyhow::{Context, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// A volume that has many snapshots.
const SMALL_BYTES: u64 = 64 * MIB;
/// Number of snapshots or removals of which the median is taken.
const TIMED: u32 = 5;
const AFTER: &str = "writing after a snapshot";
const COUNT: &str = "one more snapshot beside many";

/// Measures a pass of writes without a snapshot and one directly after a snapshot.
pub(super) fn overwrite(run: &mut Run, stage: &Stage) -> Result<(), Interrupted> {
    let scale = run.scale;
    stage.each(run, |run, number, peer| {
        let mut subject = stage.filled(number, scale.subject_bytes)?;
        let subject = subject.as_mut();
        let pass = |subject: &dyn Subject, seed| {
            let outcome = pass(subject.target(), scale.pass_bytes, scale.patience, seed)?;
            complete(outcome, scale.pass_bytes)
        };
        // The first pass changes the sequential layout; the second one is measured.
        pass(subject, 1)?;
        let without = pass(subject, 2)?;
        subject.settle()?;
        let before = subject.host_bytes()?;
        subject.snapshot("before")?;
        let first = pass(subject, 3)?;
        subject.settle()?;
        let with_snapshot = subject.host_bytes()?;
        let part = Part {
            offset: scale.subject_bytes - scale.verify_bytes,
            len_bytes: scale.verify_bytes,
            seed: 4,
        };
        stage.verify(run, peer, subject, part)?;
        let mut add = |work, unit, value| run.add(stage.at, AFTER, work, peer, (unit, value));
        add("4 KiB random write pass, no snapshot", Unit::Iops, without);
        add(
            "4 KiB random write pass, first after a snapshot",
            Unit::Iops,
            first,
        );
        add(
            "of the speed is left after a snapshot",
            Unit::Ratio,
            first / without,
        );
        let grown = with_snapshot.saturating_sub(before) as f64;
        let written = scale.pass_bytes as f64;
        add(
            "host bytes for each byte overwritten",
            Unit::Amplification,
            grown / written,
        );
        subject.settle()?;
        let full = subject.host_bytes()?;
        let removal = subject.remove_snapshot("before")?.took;
        add(
            "snapshot removal after the pass",
            Unit::Seconds,
            removal.as_secs_f64(),
        );
        subject.settle()?;
        let back = full.saturating_sub(subject.host_bytes()?) as f64;
        let could = full.saturating_sub(before).max(1) as f64;
        add(
            "of its space is back after the removal",
            Unit::Ratio,
            back / could,
        );
        Ok(())
    })
}

/// Writes 4 KiB at a time, each block once.
fn pass(
    target: &Target,
    bytes: u64,
    patience: Duration,
    seed: u64,
) -> anyhow::Result<fio::Direction> {
    let job = Job {
        pattern: Pattern::RandomWrite,
        block_bytes: 4096,
        depth: 32,
        fsync: false,
        per_second_max: None,
        end: End::Pass(bytes, patience),
        seed,
    };
    Ok(job.run(target, bytes)?.writes)
}

/// Returns the speed of a pass that was completed.
fn complete(writes: fio::Direction, bytes: u64) -> anyhow::Result<f64> {
    ensure!(
        writes.bytes == bytes,
        "the pass was given up at {} of {bytes} bytes: it took too long",
        writes.bytes
    );
    Ok(writes.per_second)
}

/// Takes snapshots of one small volume, one after the other.
pub(super) fn snapshots(run: &mut Run, stage: &Stage) -> Result<(), Interrupted> {
    let scale = run.scale;
    stage.each(run, |run, number, peer| {
        let mut subject = stage.filled(number, SMALL_BYTES)?;
        let deadline = Instant::now() + scale.patience;
        let mut taken = 0;
        for count in scale.snapshot_counts {
            let timed_from = count.saturating_sub(TIMED);
            let mut times = Vec::new();
            while taken < *count && Instant::now() < deadline {
                // Something changes in between, as in real use.
                if taken >= timed_from {
                    change(subject.target(), taken)?;
                }
                let took = subject.snapshot(&format!("s{taken}"))?.took;
                taken += 1;
                if taken > timed_from {
                    times.push(took.as_secs_f64());
                }
                if taken % 100 == 0 {
                    run.progress.step(&format!("{peer}: {taken} snapshots"));
                }
            }
            if taken < *count {
                let seconds = scale.patience.as_secs();
                run.results.note(format!(
                    "{peer} took {taken} snapshots in {seconds} s on {} and was given up: there is \
                    no time for {count}, and for the removal of one of these",
                    stage.at.backing
                ));
                return Ok(());
            }
            let time = Summary::of(&times).context("no snapshot was timed")?.median;
            let work = format!("snapshot number {count}");
            run.add(stage.at, COUNT, &work, peer, (Unit::Seconds, time));
        }
        let removed = taken.min(TIMED);
        let mut times = Vec::new();
        for name in 0..removed {
            times.push(
                subject
                    .remove_snapshot(&format!("s{name}"))?
                    .took
                    .as_secs_f64(),
            );
        }
        let time = Summary::of(&times).context("no removal was timed")?.median;
        let work = "removal of an old one of these";
        run.add(stage.at, COUNT, work, peer, (Unit::Seconds, time));
        Ok(())
    })
}

/// Changes one block, and makes it durable.
fn change(target: &Target, number: u32) -> anyhow::Result<()> {
    let Target::Device(path) = target else {
        return Ok(());
    };
    let device = File::options().write(true).open(path);
    let device = device.context("open the device")?;
    let block = [(number % 255 + 1) as u8; 4096];
    let blocks = SMALL_BYTES / 4096;
    let offset = u64::from(number).wrapping_mul(0x9E37_79B9) % blocks * 4096;
    device
        .write_all_at(&block, offset)
        .context("change a block")?;
    device.sync_data().context("make a changed block durable")
}

/// Measures a snapshot of a volume whose blocks were written at random.
pub(super) fn mapped(run: &mut Run, stage: &Stage) -> Result<(), Interrupted> {
    let scale = run.scale;
    let size = scale.mapped_bytes;
    let group = "snapshot of a volume written at random";
    let work = format!("snapshot, {} mapped", crate::report::bytes(size as f64));
    stage.each(run, |run, number, peer| {
        let place = Place {
            folder: stage.backing.path(),
            name: "mapped",
            size_bytes: size,
        };
        let mut subject = stage.peers[number].prepare(&place)?;
        let writes = pass(subject.target(), size, scale.patience, 1)?;
        if writes.bytes < size {
            let reached = crate::report::bytes(writes.bytes as f64);
            run.results.note(format!(
                "{peer} had written {reached} of {} at random on {} when time was up: its snapshot \
                would not compare",
                crate::report::bytes(size as f64),
                stage.at.backing
            ));
            return Ok(());
        }
        // The written data must reach the disk with or without a snapshot.
        subject.target().flush()?;
        let took = subject.snapshot("mapped")?.took;
        let seconds = |took: Duration| (Unit::Seconds, took.as_secs_f64());
        run.add(stage.at, group, &work, peer, seconds(took));
        let removal = subject.remove_snapshot("mapped")?.took;
        run.add(stage.at, group, "removal of that", peer, seconds(removal));
        if let Some(taken) = subject.snapshot_unserved("unserved") {
            let peer = format!("{peer} (its image tool)");
            run.add(stage.at, group, &work, &peer, seconds(taken?.took));
        }
        Ok(())
    })
}
