//! The history of a run: every change that its device saw, and the state of the pool after each
//! operation.
//!
//! # What a crash may leave
//! A crash image consists of all closed epochs up to one, and of any part of the next. The
//! recovered pool must be **one** of the states that the operations made, completely:
//! - not one before the last flush that was acknowledged while the image's epoch was open;
//! - if the image is exactly what the host had at one point in time, as after the death of the
//!   process: not one before the last *operation* acknowledged by then;
//! - not one made by an operation that had not begun.
//!
//! A recovery that has not finished guarantees nothing: if the power is cut during it, every state
//! is permitted that was permitted before it began. Once it has finished, the state that it found
//! is durable.

use crate::digest;
use crate::oracle::Oracle;
use cowshed_format::device::Recording;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

/// A position in a device's record: number of closed epochs, and number of changes since.
pub(crate) type Moment = (usize, usize);

/// One state of a pool. An operation that takes several log records makes several states.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) oracle: Arc<Oracle>,
    pub(crate) content: u64,
    pub(crate) family: u64,
    pub(crate) ownership: u64,
    /// The start of the operation that made it.
    pub(crate) begun: Moment,
    /// The end of that operation.
    pub(crate) acknowledged: Moment,
}

impl State {
    pub(crate) fn new(oracle: &Oracle, begun: Moment, acknowledged: Moment) -> Self {
        let mut oracle = oracle.clone();
        // The engine settles removals asynchronously; the pool is compared after that.
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

/// A run, for the functions that cut its power.
pub(crate) struct History {
    pub(crate) recording: Recording,
    pub(crate) states: Vec<State>,
    /// The acknowledgement of each flush (or equivalent), and the state that it covered.
    pub(crate) flushed: Vec<(Moment, usize)>,
    /// The creation time of each volume.
    pub(crate) created: BTreeMap<u64, SystemTime>,
    /// The operations, each with its start.
    pub(crate) trace: Vec<(Moment, String)>,
}

/// The states that a recovered pool may have: the numbers of the first and the last one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) first: usize,
    pub(crate) last: usize,
}

impl History {
    /// Returns the states that may come back if `epoch` epochs are durable, and of the next one the
    /// first `whole` changes, or any part.
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
            // A flush with nothing to make durable is also acknowledged in the middle of an epoch:
            // the states before it, back to the last change of the device, are the same.
            last: first.max(begun - 1),
        }
    }

    /// Returns the last operations before the end of an epoch.
    pub(crate) fn last_operations(&self, epoch: usize, count: usize) -> &[(Moment, String)] {
        let end = self.trace.partition_point(|(moment, _)| moment.0 <= epoch);
        &self.trace[end.saturating_sub(count)..end]
    }
}
