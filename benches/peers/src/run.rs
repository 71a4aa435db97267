//! A run: what is wanted, what was found, and what to do when something fails.

use crate::options::{Options, Scale};
use crate::progress::Progress;
use crate::results::{Failure, Key, Results, Unit};
use crate::signals::{self, Interrupted};
use crate::statistics::Sample;

pub(crate) struct Run {
    pub(crate) options: Options,
    pub(crate) scale: Scale,
    pub(crate) results: Results,
    pub(crate) progress: Progress,
}

/// Some work, on one backing, in one round.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) backing: &'a str,
    pub(crate) work: &'a str,
    pub(crate) round: u32,
}

impl Run {
    /// Says that a round begins.
    pub(crate) fn begin(&mut self, at: At, rounds: u32) {
        let round = at.round + 1;
        let line = format!("{}, {}, round {round} of {rounds}", at.backing, at.work);
        self.progress.round(&line);
    }

    /// Does something that may fail; a failure is kept for the report, and the rest goes on.
    ///
    /// # Errors
    /// When somebody has asked to stop.
    pub(crate) fn attempt<T>(
        &mut self,
        at: At,
        peer: &str,
        action: impl FnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> Result<Option<T>, Interrupted> {
        signals::go_on()?;
        match action(self) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                signals::go_on()?;
                let why = format!("{error:#}");
                let said = format!("{}, {}: {peer} failed: {why}", at.backing, at.work);
                self.progress.say(&said);
                self.results.failures.push(Failure {
                    backing: at.backing.into(),
                    work: at.work.into(),
                    peer: peer.into(),
                    why,
                });
                Ok(None)
            }
        }
    }

    /// Adds a round's value of some measurement.
    pub(crate) fn add(
        &mut self,
        at: At,
        group: &str,
        work: &str,
        peer: &str,
        (unit, value): (Unit, f64),
    ) {
        let (backing, round) = (at.backing, at.round);
        let key = Key {
            backing,
            group,
            work,
            peer,
        };
        self.results.add(&key, unit, Sample { round, value });
    }
}

/// Indexes of `count` peers for a turn: each begins with another one, so that none is always first.
pub(crate) fn turn(count: usize, number: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |index| (index + number) % count)
}
