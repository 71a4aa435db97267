//! The measurements of block devices.

use super::{Peer, Place, Subject, branching, discard, io, pgbench, tail};
use crate::backing::Backing;
use crate::fio::{self, Part};
use crate::host;
use crate::options::Scale;
use crate::postgres;
use crate::report::OURS;
use crate::results::Unsound;
use crate::run::{At, Run};
use crate::signals::{self, Interrupted};
use anyhow::Context;
use std::time::Duration;

/// The kinds of work, in the order of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Io,
    Busy,
    Overwrite,
    Snapshots,
    Mapped,
    Discard,
    Checkpoint,
    Pgbench,
}

pub(crate) fn works() -> [Work; 8] {
    [
        Work::Io,
        Work::Busy,
        Work::Overwrite,
        Work::Snapshots,
        Work::Mapped,
        Work::Discard,
        Work::Checkpoint,
        Work::Pgbench,
    ]
}

impl Work {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Io => "block/io",
            Self::Busy => "block/busy",
            Self::Overwrite => "block/overwrite",
            Self::Snapshots => "block/snapshots",
            Self::Mapped => "block/mapped",
            Self::Discard => "block/discard",
            Self::Checkpoint => "block/checkpoint",
            Self::Pgbench => "block/pgbench",
        }
    }

    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Io => "4 KiB at random and 128 KiB in sequence, at depth 1 and 32, with flushes",
            Self::Busy => "4 KiB at random and depth 1, while every processor is busy",
            Self::Overwrite => {
                "a pass of 4 KiB writes before and after a snapshot, its space, the removal"
            }
            Self::Snapshots => "one more snapshot beside many",
            Self::Mapped => "a snapshot of a volume that was written at random",
            Self::Discard => "half of it discarded, and what comes back to the host",
            Self::Checkpoint => "the slowest writes with and without checkpoints (cowshed only)",
            Self::Pgbench => "transactions of PostgreSQL on ext4, and a snapshot while it is idle",
        }
    }

    /// Returns the reason why it cannot be done here.
    pub(crate) fn missing(self) -> Option<String> {
        match self {
            Self::Pgbench => postgres::missing(),
            _ => None,
        }
    }

    pub(crate) fn rounds(self, scale: &Scale) -> u32 {
        match self {
            Self::Snapshots | Self::Mapped => scale.rounds.min(scale.long_rounds_max),
            _ => scale.rounds,
        }
    }

    /// Returns fio's jobs in it.
    fn jobs(self) -> &'static [io::Named] {
        match self {
            Self::Io => io::JOBS,
            Self::Busy => io::BUSY_JOBS,
            _ => &[],
        }
    }

    fn takes(self, peer: &dyn Peer) -> bool {
        let is_variant = peer.name().starts_with("cowshed (");
        match self {
            Self::Io | Self::Busy => true,
            Self::Discard | Self::Pgbench => {
                peer.has_snapshots() || peer.name().starts_with("plain")
            }
            Self::Overwrite => peer.has_snapshots(),
            // These do not depend on the transport.
            Self::Snapshots | Self::Mapped => peer.has_snapshots() && !is_variant,
            Self::Checkpoint => peer.name().starts_with("cowshed"),
        }
    }

    /// Returns the approximate duration, from runs on a small machine.
    pub(crate) fn expected(self, scale: &Scale, peers: &[Box<dyn Peer>]) -> Duration {
        let taking = peers
            .iter()
            .filter(|peer| self.takes(peer.as_ref()))
            .count();
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let job = scale.seconds.as_secs_f64() + 0.8;
        let fill = 1.0 + 3.0 * gib(scale.subject_bytes);
        let seconds = match self {
            Self::Io | Self::Busy => {
                let jobs = self.jobs().len() as f64;
                fill + 12.0 * gib(scale.verify_bytes) + jobs * job
            }
            Self::Overwrite => fill + 4.0 + 90.0 * gib(scale.pass_bytes),
            Self::Snapshots => {
                let most = scale.snapshot_counts.iter().max().copied().unwrap_or(0);
                2.0 + 0.01 * f64::from(most)
            }
            Self::Mapped => 2.0 + 30.0 * gib(scale.mapped_bytes),
            Self::Discard => fill + 1.0,
            Self::Checkpoint => fill + 4.0 * 2.0 * job,
            Self::Pgbench => pgbench::expected_seconds(scale),
        };
        let rounds = f64::from(self.rounds(scale));
        Duration::from_secs_f64(seconds * rounds * taking as f64)
    }

    /// Does all its rounds.
    ///
    /// # Errors
    /// When the user has asked to stop.
    pub(crate) fn run(
        self,
        run: &mut Run,
        backing: &Backing,
        peers: &[Box<dyn Peer>],
    ) -> Result<(), Interrupted> {
        let peers: Vec<_> = peers
            .iter()
            .map(AsRef::as_ref)
            .filter(|peer| self.takes(*peer))
            .collect();
        let rounds = self.rounds(&run.scale);
        if peers.is_empty() {
            return Ok(());
        }
        if let Some(why) = self.missing() {
            let name = self.name();
            run.results.note(format!("{name} was left out: {why}"));
            return Ok(());
        }
        for round in 0..rounds {
            let stage = Stage {
                backing,
                peers: &peers,
                at: At {
                    backing: backing.name(),
                    work: self.name(),
                    round,
                },
            };
            run.begin(stage.at, rounds);
            match self {
                Self::Io | Self::Busy => io::round(run, &stage, self.jobs())?,
                Self::Overwrite => branching::overwrite(run, &stage)?,
                Self::Snapshots => branching::snapshots(run, &stage)?,
                Self::Mapped => branching::mapped(run, &stage)?,
                Self::Discard => discard::round(run, &stage)?,
                Self::Checkpoint => tail::round(run, &stage)?,
                Self::Pgbench => pgbench::round(run, &stage)?,
            }
        }
        Ok(())
    }
}

/// One round of some work: its backing and its participants.
pub(super) struct Stage<'a> {
    pub(super) backing: &'a Backing,
    pub(super) peers: &'a [&'a dyn Peer],
    pub(super) at: At<'a>,
}

impl Stage<'_> {
    /// Creates a peer's subject.
    ///
    /// # Errors
    /// When it cannot be created.
    pub(super) fn prepare(
        &self,
        number: usize,
        size_bytes: u64,
    ) -> anyhow::Result<Box<dyn Subject>> {
        let name = format!("subject{number}");
        self.peers[number].prepare(&Place {
            folder: self.backing.path(),
            name: &name,
            size_bytes,
        })
    }

    /// Creates a peer's subject, and writes all of it.
    ///
    /// # Errors
    /// When it cannot be created or written.
    pub(super) fn filled(
        &self,
        number: usize,
        size_bytes: u64,
    ) -> anyhow::Result<Box<dyn Subject>> {
        let subject = self.prepare(number, size_bytes)?;
        if subject.keeps_what_is_written() {
            fio::fill(subject.target(), size_bytes)?;
        }
        Ok(subject)
    }

    /// Writes a part with checksums at depth 32, and reads it back. A peer that can do that only
    /// with one request in flight stays in the run, and the report says so beside its numbers: that
    /// is its property, and visible to its users. For cowshed it is a failure.
    ///
    /// # Errors
    /// When other data comes back than was written, or the device fails.
    pub(super) fn verify(
        &self,
        run: &mut Run,
        peer: &str,
        subject: &dyn Subject,
        part: Part,
    ) -> anyhow::Result<()> {
        if !subject.keeps_what_is_written() {
            return Ok(());
        }
        let Err(error) = fio::verify(subject.target(), part, 32) else {
            return Ok(());
        };
        signals::go_on()?;
        if peer.starts_with(OURS) || !fio::is_mismatch(&error) {
            return Err(error);
        }
        let again = fio::verify(subject.target(), part, 1);
        let why = match &again {
            Ok(()) => {
                "with 32 writes in flight, it gave back something else than was written; with one \
                in flight it did not. Its numbers at a greater depth are those of a device that \
                loses data"
            }
            Err(error) if fio::is_mismatch(error) => {
                "it gave back something else than was written, with one write in flight, too. Its \
                numbers are those of a device that loses data"
            }
            Err(_) => "with 32 writes in flight, it gave back something else than was written",
        };
        run.results.unsound(Unsound {
            backing: self.at.backing.into(),
            peer: peer.into(),
            why: why.into(),
        });
        again.context("also with one request in flight")
    }

    /// Waits until work that a subject and the host have begun has ended.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub(super) fn rest(&self, subject: &dyn Subject) -> anyhow::Result<()> {
        subject.target().flush()?;
        if let Some(checkpoint) = subject.checkpoint() {
            host::wait(checkpoint)?;
        }
        let folder = host::text(self.backing.path())?;
        host::run("sync", ["--file-system", folder])?;
        Ok(())
    }

    /// Runs each peer alone, in turn.
    ///
    /// # Errors
    /// When the user has asked to stop.
    pub(super) fn each(
        &self,
        run: &mut Run,
        mut action: impl FnMut(&mut Run, usize, &str) -> anyhow::Result<()>,
    ) -> Result<(), Interrupted> {
        for number in crate::run::turn(self.peers.len(), self.at.round as usize) {
            let name = self.peers[number].name();
            run.progress.step(name);
            run.attempt(self.at, name, |run| action(run, number, name))?;
        }
        Ok(())
    }
}
