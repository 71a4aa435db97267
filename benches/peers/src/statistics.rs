//! The evaluation of rounds: medians, their spread, ratios, and whether a difference exceeds noise.

use serde::Serialize;

/// Medians that differ by less count as equal, whatever the rounds show.
pub(crate) const SAME_WITHIN: f64 = 0.05;
/// Fewer rounds cannot exclude noise: for two equal builds, three rounds each are separated by
/// chance in one of 10 measurements, five in one of 126, seven in one of 1716.
pub(crate) const ROUNDS_MIN: usize = 5;

/// The rounds of one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) rounds: usize,
}

impl Summary {
    /// Returns `None` for an empty list, or if a value is not finite.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self {
            median,
            min: sorted[0],
            max: sorted[sorted.len() - 1],
            rounds: sorted.len(),
        })
    }
}

/// The value of a round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    pub(crate) value: f64,
}

/// Returns how many times better `ours` is than `theirs`, for the rounds that both have: both
/// values of a round were measured side by side, so that a slowdown of the machine affected both.
pub(crate) fn times_better(
    ours: &[Sample],
    theirs: &[Sample],
    higher_is_better: bool,
) -> Option<Summary> {
    let ratio = |sample: &Sample| {
        let other = theirs.iter().find(|other| other.round == sample.round)?;
        let ratio = if higher_is_better {
            sample.value / other.value
        } else {
            other.value / sample.value
        };
        ratio.is_finite().then_some(ratio)
    };
    let ratios: Vec<_> = ours.iter().filter_map(ratio).collect();
    Summary::of(&ratios)
}

/// The result of comparing two builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Better,
    Worse,
    /// The rounds of the two overlap, or their medians are within `SAME_WITHIN`.
    Noise,
    TooFewRounds,
}

/// Judges a change: it exceeds noise if no round of one build overlaps the rounds of the other, and
/// the medians differ by more than `SAME_WITHIN`.
pub(crate) fn judge(before: Summary, after: Summary, higher_is_better: bool) -> Verdict {
    if before.rounds < ROUNDS_MIN || after.rounds < ROUNDS_MIN {
        return Verdict::TooFewRounds;
    }
    let overlap = before.min <= after.max && after.min <= before.max;
    let difference = (after.median - before.median).abs();
    if overlap || difference <= SAME_WITHIN * before.median.abs() {
        return Verdict::Noise;
    }
    if (after.median > before.median) == higher_is_better {
        Verdict::Better
    } else {
        Verdict::Worse
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(values: &[f64]) -> Summary {
        Summary::of(values).unwrap()
    }

    fn samples(values: &[(u32, f64)]) -> Vec<Sample> {
        let sample = |&(round, value)| Sample { round, value };
        values.iter().map(sample).collect()
    }

    #[test]
    fn the_median_is_the_middle_one_or_between_the_middle_two() {
        let odd = summary(&[9.0, 1.0, 2.0]);
        assert_eq!(
            (odd.median, odd.min, odd.max, odd.rounds),
            (2.0, 1.0, 9.0, 3)
        );
        assert_eq!(summary(&[4.0, 1.0, 2.0, 100.0]).median, 3.0);
        assert_eq!(summary(&[5.0]).median, 5.0);
    }

    #[test]
    fn nothing_and_what_is_no_number_have_no_summary() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
        assert_eq!(Summary::of(&[f64::INFINITY]), None);
    }

    #[test]
    fn ratios_pair_the_rounds_that_both_have() {
        let ours = samples(&[(0, 10.0), (1, 20.0), (3, 7.0)]);
        let theirs = samples(&[(3, 14.0), (0, 5.0), (2, 1.0)]);
        let more = times_better(&ours, &theirs, true).unwrap();
        assert_eq!(
            (more.min, more.median, more.max, more.rounds),
            (0.5, 1.25, 2.0, 2)
        );
        let less = times_better(&ours, &theirs, false).unwrap();
        assert_eq!((less.min, less.max), (0.5, 2.0));
        assert_eq!(times_better(&ours, &samples(&[(9, 1.0)]), true), None);
    }

    #[test]
    fn a_ratio_to_nothing_is_left_out() {
        let (ours, theirs) = (samples(&[(0, 1.0)]), samples(&[(0, 0.0)]));
        assert_eq!(times_better(&ours, &theirs, true), None);
    }

    #[test]
    fn only_rounds_apart_and_medians_apart_are_a_change() {
        let before = summary(&[100.0, 100.5, 101.0, 101.5, 102.0]);
        let judged = |after: &[f64], higher| judge(before, summary(after), higher);
        let more = [120.0, 121.0, 122.0, 123.0, 130.0];
        assert_eq!(judged(&more, true), Verdict::Better);
        assert_eq!(judged(&more, false), Verdict::Worse);
        assert_eq!(
            judged(&[80.0, 81.0, 82.0, 83.0, 90.0], true),
            Verdict::Worse
        );
        // One round overlaps the others.
        assert_eq!(
            judged(&[101.5, 121.0, 122.0, 123.0, 130.0], true),
            Verdict::Noise
        );
        // Separated, but by less than what counts.
        assert_eq!(
            judged(&[103.0, 104.0, 104.5, 105.0, 105.5], true),
            Verdict::Noise
        );
        assert_eq!(
            judged(&[200.0, 201.0, 202.0, 203.0], true),
            Verdict::TooFewRounds
        );
    }
}
