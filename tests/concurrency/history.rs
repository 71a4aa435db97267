//! The values that a read may return. Each lane (512 bytes of a block) is a register of its own,
//! and every write to it is recorded from before it begins until no read can see it any more.
//!
//! # The rule
//! A read may see a write that began before the read ended, unless another write lies completely
//! between the two: it began after the first one had taken effect, and took effect before the read
//! began. A write has taken effect when its call has returned, or when a read that saw it has. So a
//! value that was seen once is never followed by an older one.
//!
//! A block is written as a whole or in part, but never torn: if a read sees a write of the whole
//! block in some lane, it sees no other write of the whole block, and no older part, in any other
//! lane.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;

/// Lanes in a block.
pub(crate) const LANES: usize = 8;

/// A point in time: each start and each end of a call has a unique one.
pub(crate) type Tick = u64;

/// Counts ticks, and knows which calls are in progress.
#[derive(Default)]
pub(crate) struct Clock(Mutex<(Tick, BTreeSet<Tick>)>);

/// A call in progress.
pub(crate) struct Call<'a> {
    clock: &'a Clock,
    pub(crate) since: Tick,
}

impl Clock {
    pub(crate) fn begin(&self) -> Call<'_> {
        let mut state = self.0.lock().unwrap();
        state.0 += 1;
        let since = state.0;
        state.1.insert(since);
        Call { clock: self, since }
    }

    pub(crate) fn now(&self) -> Tick {
        let mut state = self.0.lock().unwrap();
        state.0 += 1;
        state.0
    }

    /// Returns the tick at which the oldest call in progress began.
    fn oldest(&self) -> Tick {
        let state = self.0.lock().unwrap();
        state.1.first().copied().unwrap_or(state.0)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.clock.0.lock().unwrap().1.remove(&self.since);
    }
}

/// One write of one lane. All lanes that a call writes of one block have the same `since`.
#[derive(Clone, Copy, Debug)]
struct Write {
    value: u64,
    since: Tick,
    /// The latest tick by which it has taken effect; `Tick::MAX` while that is unknown.
    until: Tick,
    /// True if it surely takes effect: a failed call may have written any part.
    certain: bool,
    /// True if it writes its whole block.
    whole: bool,
}

/// The writes of one block.
#[derive(Default)]
pub(crate) struct BlockHistory {
    lanes: [Vec<Write>; LANES],
}

/// The result of the call that began at `begin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// The call failed; any part may be written.
    Failed,
    /// The call failed before it did anything.
    Refused,
}

impl BlockHistory {
    /// Creates the history of a block that holds `values` from the start.
    pub(crate) fn holding(values: [u64; LANES]) -> Self {
        let write = |value| Write {
            value,
            since: 0,
            until: 0,
            certain: true,
            whole: true,
        };
        Self {
            lanes: values.map(|value| vec![write(value)]),
        }
    }

    /// Records that a call begins to write `value` to these lanes.
    pub(crate) fn begin(&mut self, clock: &Clock, since: Tick, lanes: Range<usize>, value: u64) {
        let whole = lanes.len() == LANES;
        for lane in &mut self.lanes[lanes] {
            if lane.len() > 6 {
                forget(lane, clock.oldest());
            }
            lane.push(Write {
                value,
                since,
                until: Tick::MAX,
                certain: true,
                whole,
            });
        }
    }

    /// Records that a call begins to make the block hold `values`.
    pub(crate) fn begin_content(&mut self, clock: &Clock, since: Tick, values: &[u64; LANES]) {
        self.begin(clock, since, 0..LANES, 0);
        for (lane, value) in self.lanes.iter_mut().zip(values) {
            lane.last_mut().expect("just begun").value = *value;
        }
    }

    /// Records that the call that began at `since` has returned.
    pub(crate) fn end(&mut self, since: Tick, now: Tick, outcome: Outcome) {
        for lane in &mut self.lanes {
            let Some(at) = lane.iter().position(|write| write.since == since) else {
                continue;
            };
            if outcome == Outcome::Refused {
                lane.remove(at);
                continue;
            }
            let write = &mut lane[at];
            let seen = write.until != Tick::MAX;
            write.certain = outcome == Outcome::Done || seen;
            write.until = write.until.min(now);
        }
    }

    /// Checks what a read between `since` and `now` saw in the lanes from `first` on, and derives
    /// from it which writes have taken effect.
    pub(crate) fn check(
        &mut self,
        first: usize,
        values: &[u64],
        since: Tick,
        now: Tick,
    ) -> Result<(), String> {
        let mut seen: Vec<Vec<Write>> = Vec::with_capacity(values.len());
        for (lane, value) in (first..).zip(values) {
            let may = self.may_see(lane, *value, since, now);
            if may.is_empty() {
                let writes = &self.lanes[lane];
                return Err(format!(
                    "lane {lane} held {value} at {since}..{now}; its writes: {writes:?}"
                ));
            }
            seen.push(may);
        }
        torn(&seen)?;
        for (lane, may) in (first..).zip(&seen) {
            if let [only] = may[..] {
                let writes = self.lanes[lane].iter_mut();
                for write in writes.filter(|write| write.since == only.since) {
                    write.until = write.until.min(now);
                    write.certain = true;
                }
            }
        }
        Ok(())
    }

    /// Returns the start of the earliest write that a reader of `value` may have seen.
    pub(crate) fn began(&self, lane: usize, value: u64, since: Tick, now: Tick) -> Option<Tick> {
        let may = self.may_see(lane, value, since, now);
        may.iter().map(|write| write.since).min()
    }

    fn may_see(&self, lane: usize, value: u64, since: Tick, now: Tick) -> Vec<Write> {
        let writes = &self.lanes[lane];
        let hidden = |write: &Write| writes.iter().any(|other| hides(other, write, since));
        let may = |write: &&Write| write.value == value && write.since < now && !hidden(write);
        writes.iter().filter(may).copied().collect()
    }
}

/// Returns true if `other` has replaced `write` for every call that begins at `since`.
fn hides(other: &Write, write: &Write, since: Tick) -> bool {
    other.certain && other.since > write.until && other.until < since
}

fn forget(writes: &mut Vec<Write>, oldest: Tick) {
    let all = writes.clone();
    writes.retain(|write| !all.iter().any(|other| hides(other, write, oldest)));
}

/// Returns an error if the lanes of a block, each with the writes that it may show, cannot come
/// from one point in time.
fn torn(lanes: &[Vec<Write>]) -> Result<(), String> {
    let sure = lanes.iter().filter_map(|may| match may[..] {
        [only] if only.whole => Some(only),
        _ => None,
    });
    for whole in sure {
        let fits = |write: &Write| {
            write.since == whole.since || (!write.whole && write.until >= whole.since)
        };
        if let Some(other) = lanes.iter().find(|may| !may.iter().any(fits)) {
            return Err(format!("the block is torn: {whole:?} beside {other:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        clock: Clock,
        block: BlockHistory,
    }

    impl Scene {
        fn new() -> Self {
            Self {
                clock: Clock::default(),
                block: BlockHistory::holding([0; LANES]),
            }
        }

        fn begin(&mut self, lanes: Range<usize>, value: u64) -> Tick {
            let since = self.clock.now();
            self.block.begin(&self.clock, since, lanes, value);
            since
        }

        fn end(&mut self, since: Tick) {
            let now = self.clock.now();
            self.block.end(since, now, Outcome::Done);
        }

        fn write(&mut self, lanes: Range<usize>, value: u64) {
            let since = self.begin(lanes, value);
            self.end(since);
        }

        fn read(&mut self, values: [u64; LANES]) -> Result<(), String> {
            let (since, now) = (self.clock.now(), self.clock.now());
            self.block.check(0, &values, since, now)
        }
    }

    #[test]
    fn only_the_last_finished_write_and_those_under_way_may_be_seen() {
        let mut scene = Scene::new();
        scene.write(0..8, 1);
        scene.write(0..8, 2);
        assert!(scene.read([1; 8]).is_err(), "an older value");
        assert!(scene.read([7; 8]).is_err(), "a value that nobody wrote");
        assert!(scene.read([2; 8]).is_ok());
        let third = scene.begin(0..8, 3);
        assert!(scene.read([2; 8]).is_ok());
        assert!(scene.read([3; 8]).is_ok());
        assert!(scene.read([2; 8]).is_err(), "3 was seen already");
        scene.end(third);
        assert!(scene.read([3; 8]).is_ok());
    }

    #[test]
    fn a_read_that_began_before_a_write_may_miss_it() {
        let mut scene = Scene::new();
        scene.write(0..8, 1);
        let since = scene.clock.now();
        scene.write(0..8, 2);
        let now = scene.clock.now();
        assert!(scene.block.check(0, &[1; 8], since, now).is_ok());
        assert!(scene.block.check(0, &[0; 8], since, now).is_err());
    }

    #[test]
    fn a_torn_block_is_seen() {
        let mut scene = Scene::new();
        scene.write(0..8, 1);
        let second = scene.begin(0..8, 2);
        assert!(scene.read([2, 2, 2, 2, 1, 1, 1, 1]).is_err());
        scene.end(second);
        let part = scene.begin(2..3, 3);
        assert!(scene.read([2, 2, 3, 2, 2, 2, 2, 2]).is_ok());
        scene.end(part);
        let fourth = scene.begin(0..8, 4);
        assert!(
            scene.read([4, 4, 3, 4, 4, 4, 4, 4]).is_err(),
            "the part is older"
        );
        scene.end(fourth);
    }

    #[test]
    fn a_failed_write_may_be_seen_and_hides_nothing_until_it_is() {
        let mut scene = Scene::new();
        scene.write(0..8, 1);
        let failed = scene.begin(0..8, 2);
        let now = scene.clock.now();
        scene.block.end(failed, now, Outcome::Failed);
        assert!(scene.read([1; 8]).is_ok());
        assert!(scene.read([2; 8]).is_ok());
        assert!(scene.read([1; 8]).is_err());
    }

    #[test]
    fn what_is_forgotten_could_not_be_seen() {
        let mut scene = Scene::new();
        let reader = scene.clock.now();
        for value in 1..100 {
            scene.write(0..8, value);
        }
        assert!(scene.block.lanes[0].len() < 10);
        assert!(scene.read([98; 8]).is_err());
        assert!(scene.read([99; 8]).is_ok());
        let since = reader;
        let now = scene.clock.now();
        assert!(scene.block.check(0, &[99; 8], since, now).is_ok());
    }
}
