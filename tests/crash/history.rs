//! What a run did: every change that its device saw, and what the pool was after each operation.
//!
//! # What a crash may leave
//! A crash image is made of all closed epochs up to one and of any part of the next. The pool that
//! comes back must be **one** of the states that the operations made, whole:
//! - not one before the last flush that was acknowledged while the image's epoch was open;
//! - where the image is what the host had at one moment, and nothing is missing, as after the death
//!   of the process: not one before the last *operation* acknowledged by then;
//! - not one that an operation made that had not begun.
//!
//! A recovery that has not finished has promised nothing: after it is cut, any state is good that
//! was good before it began. Once it has finished, the state that it found is durable.

use crate::digest;
use crate::oracle::Oracle;
use cowshed_format::device::Recording;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

/// A moment of a device's record: how many epochs are closed, and how many changes came since.
pub(crate) type Moment = (usize, usize);

/// One state of a pool. An operation that takes several log records makes several.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) oracle: Arc<Oracle>,
    pub(crate) content: u64,
    pub(crate) family: u64,
    pub(crate) ownership: u64,
    /// When the operation that made it began.
    pub(crate) begun: Moment,
    /// When that operation had returned.
    pub(crate) acknowledged: Moment,
}

impl State {
    pub(crate) fn new(oracle: &Oracle, begun: Moment, acknowledged: Moment) -> Self {
        let mut oracle = oracle.clone();
        // The engine settles removals in its own time; it is compared once it has.
        oracle.unsettled = false;
        Self {
            content: digest::content_of_model(&oracle),
            family: digest::family_of_model(&oracle),
            ownership: digest::ownership_of_model(&oracle),
            oracle: Arc::new(oracle),
            begun,
            acknowledged,
        }
    }
}

/// A run, for those who cut its power.
pub(crate) struct History {
    pub(crate) recording: Recording,
    pub(crate) states: Vec<State>,
    /// When a flush (or what is as good as one) was acknowledged, and the state it was about.
    pub(crate) flushed: Vec<(Moment, usize)>,
    /// When each volume was made.
    pub(crate) created: BTreeMap<u64, SystemTime>,
    /// What was done, and when it began.
    pub(crate) trace: Vec<(Moment, String)>,
}

/// The states that a recovered pool may be in: the first and the last one, by number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) first: usize,
    pub(crate) last: usize,
}

impl History {
    /// The states that may come back when `epoch` epochs are durable, and of the next one the first
    /// `whole` changes, or any part.
    pub(crate) fn window(&self, epoch: usize, whole: Option<usize>) -> Window {
        let flushed = self
            .flushed
            .iter()
            .rev()
            .find(|(moment, _)| moment.0 <= epoch);
        let (_, mut first) = *flushed.expect("a run begins with a durable state");
        let mut end = (epoch, usize::MAX);
        if let Some(whole) = whole {
            end.1 = whole;
            let acknowledged = self
                .states
                .partition_point(|state| state.acknowledged <= end);
            first = first.max(acknowledged.saturating_sub(1));
        }
        let begun = self.states.partition_point(|state| state.begun <= end);
        Window {
            first,
            // A flush with nothing to make durable is acknowledged in the midst of an epoch, too:
            // the states before it, back to the last change of the device, are the same.
            last: first.max(begun - 1),
        }
    }

    /// What was done last before an epoch was over.
    pub(crate) fn last_operations(&self, epoch: usize, count: usize) -> &[(Moment, String)] {
        let end = self.trace.partition_point(|(moment, _)| moment.0 <= epoch);
        &self.trace[end.saturating_sub(count)..end]
    }
}
