//! One crash image: opened, checked, compared with the model, reclaimed, and checked again.

use crate::compare;
use crate::digest;
use crate::history::{History, State, Window};
use crate::oracle::BLOCK;
use crate::workload::open;
use cowshed_check::{CheckOptions, CheckReport, FindingKind, check};
use cowshed_engine::{Pool, VolumeInfo};
use cowshed_format::device::{Device, MemoryDevice};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    static CAUGHT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Silences panics that `caught` handles.
pub(crate) fn hush_caught_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if CATCHING.get() {
            CAUGHT.set(info.to_string());
        } else {
            usual(info);
        }
    }));
}

/// Runs `work`; returns its panic message as the error.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CATCHING.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(outer);
    outcome.map_err(|_| CAUGHT.take())
}

/// The treatment of an image once it has proved to be a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thorough {
    /// Removed volumes are reclaimed, and everything is counted.
    Counts,
    /// In addition, every byte of every volume is read and compared, including holes.
    Everything,
    /// The pool is left unchanged, for a workload to continue with.
    LeaveAsItIs,
}

/// A recovered pool.
pub(crate) struct Recovered {
    pub(crate) pool: Pool,
    /// The number of its state.
    pub(crate) state: usize,
    /// True if it can be no other state: if a write changed no byte, only the owner of the block
    /// differs.
    pub(crate) certain: bool,
}

/// Opens the contents of `device`, and proves that they are one of the states of `window`.
///
/// # Panics
/// When they are not, or anything else is wrong.
pub(crate) fn recover(
    device: &Arc<MemoryDevice>,
    history: &History,
    window: Window,
    thorough: Thorough,
) -> Recovered {
    let pool = open(Arc::clone(device) as Arc<dyn Device>)
        .unwrap_or_else(|error| panic!("the pool does not open: {error} ({error:?})"));
    checked(device, false, &[FindingKind::SuperblockUnreadable]);
    let infos = pool.volumes();
    let content = digest::content_of_pool(&pool, &infos)
        .unwrap_or_else(|error| panic!("the pool cannot be read: {error} ({error:?})"));
    let states = &history.states[window.first..=window.last];
    let same = |state: &State| state.content == content;
    // Consecutive states may have the same content, and differ in the parents.
    let Some(last) = states.iter().rposition(same) else {
        explain(&pool, history, window, content);
    };
    for info in &infos {
        let created = history.created.get(&info.id.0);
        assert_eq!(Some(&info.created), created, "when {} was made", info.name);
    }
    if thorough == Thorough::LeaveAsItIs {
        let others = states.iter().filter(|state| same(state));
        let certain = others.map(|state| state.ownership);
        let certain = certain.collect::<HashSet<_>>().len() == 1;
        let state = window.first + last;
        return Recovered {
            pool,
            state,
            certain,
        };
    }
    pool.reclaim()
        .unwrap_or_else(|error| panic!("removed volumes are not reclaimed: {error} ({error:?})"));
    let infos = pool.volumes();
    let family = digest::family_of_pool(&infos);
    let settled = |state: &State| same(state) && state.family == family;
    // If a write changed no byte, only the owner of the block distinguishes the states.
    let report = checked(device, false, &[]);
    let mut wrong = None;
    let mut counts = |state: usize| {
        let state = &history.states[state];
        let outcome = caught(|| count(&pool, &infos, state, &report));
        outcome.map_err(|message| wrong = Some(message)).is_ok()
    };
    let candidates = (window.first..=window.last).rev();
    let mut candidates = candidates.filter(|state| settled(&history.states[*state]));
    let Some(state) = candidates.find(|state| counts(*state)) else {
        let found: Vec<_> = infos.iter().map(|i| (i.id, i.parent, i.children)).collect();
        panic!(
            "{}",
            wrong.unwrap_or_else(|| format!("wrong parents: {found:?}"))
        );
    };
    if thorough == Thorough::Everything {
        compare::everything(&pool, &history.states[state].oracle);
        checked(device, true, &[]);
    }
    Recovered {
        pool,
        state,
        certain: true,
    }
}

/// Asserts that the check finds nothing but what is `expected`: a torn slot of the superblock is
/// rewritten by the next checkpoint but one, as `FORMAT.md` says.
fn checked(device: &Arc<MemoryDevice>, deep: bool, expected: &[FindingKind]) -> CheckReport {
    let options = CheckOptions {
        deep,
        repair: false,
        forget: false,
    };
    let report = check(&**device, options, &mut |_| {})
        .unwrap_or_else(|error| panic!("the pool cannot be checked: {error} ({error:?})"));
    let mut findings = report.findings.iter();
    assert!(
        findings.all(|finding| expected.contains(&finding.kind)),
        "the check found {:#?}",
        report.findings
    );
    report
}

/// Asserts that no block is lost and none is used twice: the pool's used blocks are those that the
/// check reached, and each volume owns what the model says.
fn count(pool: &Pool, infos: &[VolumeInfo], state: &State, report: &CheckReport) {
    for info in infos {
        compare::info(info, info.id.0, &state.oracle);
    }
    let volumes = state.oracle.volumes.len() as u64;
    assert_eq!(
        report.volumes, volumes,
        "volumes, with those that still wait"
    );
    let status = pool.status().expect("status");
    let used = status.used_bytes + status.pending_free_bytes;
    assert_eq!(used, report.blocks_used * BLOCK, "bytes in use");
    let fixed = status.metadata_bytes + used;
    assert!(fixed <= status.size_bytes, "more in use than there is");
}

/// Explains how the pool differs from all states of the window.
fn explain(pool: &Pool, history: &History, window: Window, content: u64) -> ! {
    let outside = history
        .states
        .iter()
        .position(|state| state.content == content);
    if let Some(state) = outside {
        panic!(
            "the pool came back as state {state}, which is not among {}..={}",
            window.first, window.last
        );
    }
    let mut differences = Vec::new();
    for state in (window.first..=window.last).rev().take(6) {
        let mut oracle = (*history.states[state].oracle).clone();
        oracle.unsettled = true;
        let outcome = caught(|| compare::everything(pool, &oracle));
        differences.push(format!(
            "  not state {state}: {}",
            outcome.err().unwrap_or_else(|| "it is".into())
        ));
    }
    panic!(
        "the pool is none of the states {}..={}:\n{}",
        window.first,
        window.last,
        differences.join("\n")
    );
}
