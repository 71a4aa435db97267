//! Proves one seed: a run, and every power cut of some of its epochs. Some of the recovered pools
//! are used further, and their power is cut again, during their recovery and after it.

use crate::history::{History, Moment, State, Window};
use crate::images::{self, Cut, Fate};
use crate::oracle::Oracle;
use crate::verify::{Recovered, Thorough, caught, recover};
use crate::workload::{Ground, Run, empty_pool};
use cowshed_format::device::{Device, DeviceImage, MemoryDevice, RecordedOp};
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The maximum number of operations before the epochs that are cut.
const WARM_UP: usize = 500;
/// Number of epochs that are cut.
const EPOCHS: usize = 6;
/// The maximum number of changes of an epoch that is cut: then a flush closes it.
const CHANGES_MAX: usize = 40;
/// One image in this many is used further.
const GO_ON: u32 = 80;
/// One image in this many is compared to the last byte.
const THOROUGH: u32 = 16;
/// Number of operations on a pool that is used further, and of images of each of its epochs beyond
/// those of each write.
const MORE_OPERATIONS: usize = 12;
const MORE_IMAGES: usize = 12;
/// Maximum nesting of power cuts and further use.
const DEPTH: u32 = 3;
/// Number of operations that a failure shows.
const TRACE: usize = 30;

/// The progress of the proof, of all threads.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) images: AtomicU64,
    pub(crate) duplicates: AtomicU64,
    pub(crate) recoveries_cut: AtomicU64,
    pub(crate) gone_on: AtomicU64,
    pub(crate) epochs: AtomicU64,
    pub(crate) runs: AtomicU64,
    pub(crate) operations: AtomicU64,
    /// Set when the work is to end.
    pub(crate) stop: AtomicBool,
}

impl Tally {
    fn add(counter: &AtomicU64, more: usize) {
        counter.fetch_add(more as u64, Ordering::Relaxed);
    }
}

/// A run, its cuts, and its nesting depth.
struct Proof<'a> {
    history: &'a History,
    rng: StdRng,
    tally: &'a Tally,
    depth: u32,
    /// The seed of the contents that durable discards left.
    discards: u64,
}

/// Proves one seed on a device that `disguise` may change.
///
/// # Errors
/// A description of the first thing that is wrong.
pub(crate) fn prove(
    seed: u64,
    tally: &Tally,
    disguise: Option<&dyn Fn(Arc<MemoryDevice>) -> Arc<dyn Device>>,
) -> Result<(), String> {
    let device = MemoryDevice::recording_from(empty_pool(seed));
    let mut ground = Ground::honest(device);
    if let Some(disguise) = disguise {
        ground.seen = disguise(Arc::clone(&ground.device));
        ground.meddler = None;
        ground.honest = false;
    }
    let before = vec![State::new(&Oracle::default(), (0, 0), (0, 0))];
    let mut trace = Vec::new();
    let lived = caught(|| {
        let mut run = Run::new(
            seed,
            ground,
            None,
            Oracle::default(),
            BTreeMap::new(),
            before,
        );
        let outcome = caught(|| live(&mut run, tally));
        trace = run.last_operations(TRACE);
        outcome.map(|first| (run.into_history(), first))
    });
    let ((history, rng), first) = lived.and_then(|lived| lived).map_err(|message| {
        format!(
            "seed {seed}, without a power cut: {message}\n{}",
            lines(&trace)
        )
    })?;
    Tally::add(&tally.runs, 1);
    let mut proof = Proof {
        history: &history,
        rng,
        tally,
        depth: 0,
        discards: seed,
    };
    let epochs = first..history.recording.epochs.len();
    proof
        .cut(epochs, images::all_cuts)
        .map_err(|message| format!("seed {seed}, {message}"))
}

/// Runs operations until there are enough epochs; returns the first epoch to cut.
fn live(run: &mut Run, tally: &Tally) -> usize {
    // Some runs start at the very beginning, with the first opening.
    let warm_up = if run.rng.random_ratio(1, 8) {
        0
    } else {
        run.rng.random_range(0..WARM_UP)
    };
    for _ in 0..warm_up {
        run.step();
    }
    if warm_up > 0 {
        run.flush();
    }
    let first = if warm_up > 0 { run.epochs() } else { 0 };
    let mut steps = warm_up;
    while run.epochs() < first + EPOCHS {
        run.step();
        steps += 1;
        if run.moment().1 > CHANGES_MAX {
            run.flush();
        }
    }
    Tally::add(&tally.operations, steps);
    run.compare();
    first
}

impl Proof<'_> {
    /// Cuts the power in each of `epochs`.
    fn cut(
        &mut self,
        epochs: std::ops::Range<usize>,
        cuts: impl Fn(&[RecordedOp], &mut StdRng) -> Vec<Cut>,
    ) -> Result<(), String> {
        let recording = &self.history.recording;
        let mut base = recording.base.clone();
        let mut number = 0;
        for (epoch, ops) in recording.epochs.iter().enumerate() {
            if epochs.contains(&epoch) {
                let cuts = cuts(ops, &mut self.rng);
                self.cut_epoch(epoch, &base, ops, &cuts)?;
            }
            for op in ops {
                number += 1;
                images::apply(
                    &mut base,
                    op,
                    images::fate_of_durable(op, self.discards, number),
                );
            }
        }
        Ok(())
    }

    fn cut_epoch(
        &mut self,
        epoch: usize,
        base: &DeviceImage,
        ops: &[RecordedOp],
        cuts: &[Cut],
    ) -> Result<(), String> {
        let written = images::written(ops);
        let mut seen = HashSet::new();
        Tally::add(&self.tally.epochs, 1);
        for cut in cuts {
            let mut image = base.clone();
            for (op, fate) in ops.iter().zip(&cut.fates) {
                images::apply(&mut image, op, *fate);
            }
            if !seen.insert(images::fingerprint(&image, &written, ops, cut)) {
                Tally::add(&self.tally.duplicates, 1);
                continue;
            }
            if self.tally.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.one(epoch, cut, image)
                .map_err(|message| self.describe(epoch, ops, cut, &message))?;
            Tally::add(&self.tally.images, 1);
            if self.depth > 0 && self.in_recovery(epoch) {
                Tally::add(&self.tally.recoveries_cut, 1);
            }
        }
        Ok(())
    }

    /// Returns true if the epoch belongs to the recovery with which the run began.
    fn in_recovery(&self, epoch: usize) -> bool {
        self.history
            .trace
            .get(1)
            .is_none_or(|(begun, _)| epoch < begun.0)
    }

    fn one(&mut self, epoch: usize, cut: &Cut, image: DeviceImage) -> Result<(), String> {
        let window = self.history.window(epoch, cut.whole);
        let goes_on = self.depth < DEPTH && self.rng.random_ratio(1, GO_ON << (2 * self.depth));
        if !goes_on {
            let thorough = if self.rng.random_ratio(1, THOROUGH) {
                Thorough::Everything
            } else {
                Thorough::Counts
            };
            let device = Arc::new(MemoryDevice::from_image(image));
            return caught(|| drop(recover(&device, self.history, window, thorough)));
        }
        let device = Arc::new(MemoryDevice::recording_from(image.clone()));
        let thorough = Thorough::LeaveAsItIs;
        let recovered = caught(|| recover(&device, self.history, window, thorough))?;
        if !recovered.certain {
            let device = Arc::new(MemoryDevice::from_image(image));
            return caught(|| drop(recover(&device, self.history, window, Thorough::Counts)));
        }
        Tally::add(&self.tally.gone_on, 1);
        self.go_on(device, recovered, window)
    }

    /// Uses a recovered pool, and cuts its power again. No user has seen the pool before its
    /// recovery was done, so a second recovery may find more or less of what had not been flushed:
    /// the first one's writes may lie on blocks whose writes were torn.
    fn go_on(
        &mut self,
        device: Arc<MemoryDevice>,
        recovered: Recovered,
        window: Window,
    ) -> Result<(), String> {
        let seed = self.rng.random();
        let (pool, states) = (recovered.pool, &self.history.states);
        let before = states[window.first..=window.last].to_vec();
        let state = &states[recovered.state];
        let mut oracle = (*state.oracle).clone();
        oracle.unsettled = true;
        let ground = Ground {
            seen: Arc::clone(&device) as Arc<dyn Device>,
            device,
            meddler: None,
            honest: true,
        };
        let created = self.history.created.clone();
        let (tally, mut trace) = (self.tally, Vec::new());
        let lived = caught(|| {
            let mut run = Run::new(seed, ground, Some(pool), oracle, created, before);
            let outcome = caught(|| {
                for _ in 0..MORE_OPERATIONS {
                    run.step();
                }
                run.flush();
                run.compare();
            });
            trace = run.last_operations(TRACE);
            outcome.map(|()| run.into_history())
        });
        let (history, rng) = lived.and_then(|lived| lived).map_err(|message| {
            format!(
                "it went on after the power cut: {message}\n{}",
                lines(&trace)
            )
        })?;
        Tally::add(&tally.operations, MORE_OPERATIONS);
        let mut proof = Proof {
            history: &history,
            rng,
            tally,
            depth: self.depth + 1,
            discards: seed,
        };
        let epochs = 0..history.recording.epochs.len();
        proof
            .cut(epochs, |ops, rng| images::few_cuts(ops, MORE_IMAGES, rng))
            .map_err(|message| format!("it went on after the power cut, and then, {message}"))
    }

    fn describe(&self, epoch: usize, ops: &[RecordedOp], cut: &Cut, message: &str) -> String {
        let window = self.history.window(epoch, cut.whole);
        let mut text = format!(
            "power cut in epoch {epoch}: {message}\n\
             expected one of states {}..={}; of {} changes: {cut}\n",
            window.first,
            window.last,
            ops.len()
        );
        for (index, (op, fate)) in ops.iter().zip(&cut.fates).enumerate() {
            let _ = writeln!(text, "  {index:3} {} {}", op_line(op), fate_word(*fate));
        }
        text.push_str("operations, with the epoch and the change before which each began:\n");
        text.push_str(&lines(self.history.last_operations(epoch, TRACE)));
        text
    }
}

fn fate_word(fate: Fate) -> String {
    match fate {
        Fate::Lost => "lost".into(),
        Fate::Whole => "there".into(),
        fate => format!("{fate:?}"),
    }
}

fn op_line(op: &RecordedOp) -> String {
    match op {
        RecordedOp::Write {
            offset_bytes,
            bytes,
            mapped,
        } => {
            let what = if *mapped { "store" } else { "write" };
            format!(
                "{what} {}+{} (block {})",
                offset_bytes,
                bytes.len(),
                offset_bytes / 4096
            )
        }
        RecordedOp::Discard {
            offset_bytes,
            len_bytes,
        } => format!("discard {offset_bytes}+{len_bytes}"),
        RecordedOp::Grow { len_bytes } => format!("grow to {len_bytes}"),
    }
}

fn lines(trace: &[(Moment, String)]) -> String {
    let line = |((epoch, change), what): &(Moment, String)| format!("  {epoch}.{change} {what}\n");
    trace.iter().map(line).collect()
}
