//! Decides whether a worker that died gets a successor, and after what pause.
//!
//! A worker that was killed from outside after it had served says nothing about the next one. A
//! worker that fails by itself again and again, or never serves, will not get better, and the users
//! that wait for it get errors.

use std::time::Duration;

/// Number of consecutive workers that may fail by themselves.
pub(super) const FAILURES_MAX: u32 = 8;
/// A worker that has served for this long has not failed at once.
const STEADY: Duration = Duration::from_secs(5);
/// A worker that served for less than this counts as short-lived; repeated short lives lead to
/// pauses.
const QUICK: Duration = Duration::from_millis(200);
/// The first pause; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The longest pause after a worker that had served and was killed: users wait.
const PAUSE_KILLED_MAX: Duration = Duration::from_millis(500);

/// The circumstances of a worker's death.
#[derive(Clone, Copy, Debug)]
pub(super) struct Death {
    /// The time for which the worker had served; `None` if it never did.
    pub served: Option<Duration>,
    /// True if another process killed it.
    pub killed: bool,
}

/// The decision after a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Start a successor after this pause.
    After(Duration),
    /// No successor.
    GiveUp,
}

/// The deaths so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Restarts {
    /// Number of consecutive workers that failed by themselves.
    failures: u32,
    /// Number of consecutive workers that lived only for a short time.
    short: u32,
}

impl Restarts {
    /// Records a worker's death and returns what to do next.
    pub(super) fn after(&mut self, death: Death) -> Next {
        let has_served = |time| death.served.is_some_and(|served| served >= time);
        let was_well = has_served(STEADY) || (death.killed && death.served.is_some());
        let failed = !was_well;
        self.failures = if failed { self.failures + 1 } else { 0 };
        self.short = if failed || !has_served(QUICK) {
            self.short + 1
        } else {
            0
        };
        if self.failures >= FAILURES_MAX {
            return Next::GiveUp;
        }
        let longest = if failed { PAUSE_MAX } else { PAUSE_KILLED_MAX };
        Next::After(match self.short {
            0 | 1 => Duration::ZERO,
            short => PAUSE_MIN
                .saturating_mul(1 << (short - 2).min(10))
                .min(longest),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Next = Next::After(Duration::ZERO);

    #[test]
    fn a_worker_that_served_and_was_killed_is_followed_at_once_for_ever() {
        let mut restarts = Restarts::default();
        let death = Death {
            served: Some(Duration::from_millis(1100)),
            killed: true,
        };
        assert!((0..100).all(|_| restarts.after(death) == AT_ONCE));
    }

    #[test]
    fn one_that_never_serves_is_followed_ever_later_and_then_given_up() {
        let mut restarts = Restarts::default();
        let death = Death {
            served: None,
            killed: false,
        };
        assert_eq!(restarts.after(death), AT_ONCE);
        let mut before = Duration::ZERO;
        for _ in 2..FAILURES_MAX {
            let Next::After(pause) = restarts.after(death) else {
                panic!("given up too early");
            };
            assert!(pause > before && pause <= PAUSE_MAX);
            before = pause;
        }
        assert_eq!(restarts.after(death), Next::GiveUp);
    }

    #[test]
    fn one_that_crashes_soon_after_it_serves_is_given_up_and_one_that_served_long_is_not() {
        let mut restarts = Restarts::default();
        let crash = |served| Death {
            served: Some(Duration::from_secs(served)),
            killed: false,
        };
        let next: Vec<_> = (0..FAILURES_MAX)
            .map(|_| restarts.after(crash(1)))
            .collect();
        assert_eq!(next.last(), Some(&Next::GiveUp));
        let mut restarts = Restarts::default();
        for _ in 0..20 {
            assert_ne!(restarts.after(crash(1)), Next::GiveUp);
            assert_eq!(restarts.after(crash(60)), AT_ONCE);
        }
    }

    #[test]
    fn one_that_is_killed_at_once_again_and_again_is_followed_with_pauses() {
        let mut restarts = Restarts::default();
        let death = Death {
            served: Some(Duration::from_millis(1)),
            killed: true,
        };
        assert_eq!(restarts.after(death), AT_ONCE);
        let pauses: Vec<_> = (0..100).map(|_| restarts.after(death)).collect();
        assert!(
            pauses
                .iter()
                .all(|next| *next != AT_ONCE && *next != Next::GiveUp)
        );
        assert_eq!(pauses[99], Next::After(PAUSE_KILLED_MAX));
    }
}
