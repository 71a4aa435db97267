//! A run: its options, its results, and its handling of failures.

use crate::options::{Options, Scale};
use crate::progress::Progress;
use crate::results::{Failure, Key, Results, Unit};
use crate::signals::{self, Interrupted};
use crate::statistics::Sample;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

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
    /// Reports that a round begins.
    pub(crate) fn begin(&mut self, at: At, rounds: u32) {
        let round = at.round + 1;
        let line = format!("{}, {}, round {round} of {rounds}", at.backing, at.work);
        self.progress.round(&line);
    }

    /// Runs an action that may fail; a failure is recorded for the report, and the run goes on.
    ///
    /// # Errors
    /// When the user has asked to stop.
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

    /// Adds a round's value of a measurement.
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

/// Returns the order of `count` peers for a turn: two alternate, so that each is first equally
/// often; more have a different order each time, so that none always follows the same one.
pub(crate) fn turn(count: usize, number: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if count > 2 {
        order.shuffle(&mut StdRng::seed_from_u64(number as u64));
    } else if number % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::turn;
    use std::collections::BTreeSet;

    #[test]
    fn two_take_turns_and_more_follow_each_other_in_many_ways() {
        assert_eq!((turn(2, 0), turn(2, 1)), (vec![0, 1], vec![1, 0]));
        let before_the_last: BTreeSet<_> = (0..40)
            .map(|number| {
                let order = turn(5, number);
                assert_eq!(BTreeSet::from_iter(&order).len(), 5);
                let place = order.iter().position(|index| *index == 4).unwrap();
                place.checked_sub(1).map(|before| order[before])
            })
            .collect();
        assert_eq!(before_the_last.len(), 5);
    }
}
