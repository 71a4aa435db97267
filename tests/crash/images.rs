//! The states in which a power cut may leave one epoch: each change is lost, complete, or torn.
//!
//! - Writes reach the device in any order, and tear at blocks and at sectors of 512 bytes.
//! - So do stores through the mapping; the mapping's pages are written back in their state at any
//!   point of the epoch, and on memory that persists by itself stores tear at eight bytes.
//! - A discard happens or not, for each of its blocks, and leaves arbitrary contents.
//! - A change of the length happens or not.

use crate::digest::Mix;
use cowshed_format::base::{BLOCK_BYTES, BLOCK_SHIFT};
use cowshed_format::device::{DeviceImage, RecordedOp};
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeSet;
use std::fmt;

/// For up to this many changes in an epoch, every subset is tried.
const SUBSETS_OF: usize = 10;
/// Number of subsets that are tried of more changes.
const SUBSETS: usize = 200;
/// Number of images of each kind in which every change has its own fate.
const MIXED: usize = 40;
/// Approximate number of pages of a discarded range that hold garbage, if any do.
const GARBAGE_PAGES: u64 = 64;
const SECTOR_BYTES: u64 = 512;
const PAGE_BYTES: u64 = BLOCK_BYTES as u64;
/// The smallest store that memory keeps complete.
const WORD_BYTES: u64 = 8;

/// The fate of one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Lost,
    Whole,
    /// Only some of its units of this many bytes are there.
    Torn(u64, Kept),
    /// A discarded range has arbitrary contents.
    Garbage(u64),
}

/// The units of a torn change that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// This many from its start.
    Head(u64),
    /// All but this many from its start.
    Tail(u64),
    /// Each with a probability of one half, by this seed.
    Some(u64),
    /// Those whose unit was written back later than this change, by this seed: the change's number
    /// and the number of changes.
    WrittenBack(u64, usize, usize),
}

/// One power cut.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    pub(crate) kind: &'static str,
    pub(crate) fates: Vec<Fate>,
    /// If set, the image is exactly what the host had after this many changes.
    pub(crate) whole: Option<usize>,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        for (index, fate) in self.fates.iter().enumerate() {
            match fate {
                Fate::Lost => {}
                Fate::Whole => write!(f, " {index}")?,
                fate => write!(f, " {index}:{fate:?}")?,
            }
        }
        Ok(())
    }
}

fn random(seed: u64, of: u64) -> u64 {
    let mut mix = Mix::new(seed);
    mix.word(of);
    mix.word(seed);
    mix.finish() >> 7
}

impl Kept {
    /// Returns true if unit `index` of `count`, which is number `unit` of the device, is there.
    fn has(self, unit: u64, index: u64) -> bool {
        match self {
            Self::Head(count) => index < count,
            Self::Tail(lost) => index >= lost,
            Self::Some(seed) => random(seed, unit) & 1 == 1,
            Self::WrittenBack(seed, change, changes) => {
                (change as u64) < random(seed, unit) % (changes as u64 + 1)
            }
        }
    }
}

/// Applies one change as far as its fate permits.
pub(crate) fn apply(image: &mut DeviceImage, op: &RecordedOp, fate: Fate) {
    match (op, fate) {
        (_, Fate::Lost) => {}
        (
            RecordedOp::Write {
                offset_bytes,
                bytes,
                mapped,
            },
            Fate::Torn(unit, kept),
        ) => {
            let mut torn = vec![0; bytes.len()];
            image.read(&mut torn, *offset_bytes);
            for (range, unit, index) in units(*offset_bytes, bytes.len() as u64, unit) {
                if kept.has(unit, index) {
                    torn[range.clone()].copy_from_slice(&bytes[range]);
                }
            }
            image.apply(&RecordedOp::Write {
                offset_bytes: *offset_bytes,
                bytes: torn.into(),
                mapped: *mapped,
            });
        }
        (
            RecordedOp::Discard {
                offset_bytes,
                len_bytes,
            },
            Fate::Torn(_, kept),
        ) => {
            for (range, page, index) in units(*offset_bytes, *len_bytes, PAGE_BYTES) {
                if kept.has(page, index) {
                    image.apply(&RecordedOp::Discard {
                        offset_bytes: offset_bytes + range.start as u64,
                        len_bytes: PAGE_BYTES,
                    });
                }
            }
        }
        (
            RecordedOp::Discard {
                offset_bytes,
                len_bytes,
            },
            Fate::Garbage(seed),
        ) => {
            let every = (len_bytes / PAGE_BYTES).div_ceil(GARBAGE_PAGES);
            let pages = units(*offset_bytes, *len_bytes, PAGE_BYTES);
            for (range, page, _) in pages.filter(|(_, page, _)| page % every == 0) {
                let bytes = vec![random(seed, page).to_le_bytes()[0] | 1; BLOCK_BYTES];
                image.apply(&RecordedOp::Write {
                    offset_bytes: offset_bytes + range.start as u64,
                    bytes: bytes.into(),
                    mapped: false,
                });
            }
        }
        (op, _) => image.apply(op),
    }
}

/// Splits a range at multiples of `unit` bytes of the device; returns for each piece its range
/// within the range, the number of the unit on the device, and its number within the range.
fn units(
    offset_bytes: u64,
    len_bytes: u64,
    unit: u64,
) -> impl Iterator<Item = (std::ops::Range<usize>, u64, u64)> {
    let end = offset_bytes + len_bytes;
    let first = offset_bytes / unit;
    (first..end.div_ceil(unit)).map(move |number| {
        let from = offset_bytes.max(number * unit) - offset_bytes;
        let to = end.min((number + 1) * unit) - offset_bytes;
        let small = |bytes| usize::try_from(bytes).expect("a change is in memory");
        (small(from)..small(to), number, number - first)
    })
}

/// Returns the fate of a durable discard: each has its own, by `seed`.
pub(crate) fn fate_of_durable(op: &RecordedOp, seed: u64, number: u64) -> Fate {
    match (op, random(seed, number) % 3) {
        (RecordedOp::Discard { .. }, 0) => Fate::Lost,
        (RecordedOp::Discard { .. }, 1) => Fate::Garbage(seed),
        _ => Fate::Whole,
    }
}

/// Returns every cut of an epoch.
pub(crate) fn all_cuts(ops: &[RecordedOp], rng: &mut StdRng) -> Vec<Cut> {
    let mut cuts = prefixes(ops);
    singles(ops, &mut cuts);
    subsets(ops, rng, &mut cuts);
    torn(ops, rng, &mut cuts);
    mixed(ops, MIXED, rng, &mut cuts);
    cuts
}

/// Returns the cuts with each prefix, each change dropped, each kept alone, and `more` others.
pub(crate) fn few_cuts(ops: &[RecordedOp], more: usize, rng: &mut StdRng) -> Vec<Cut> {
    let mut cuts = prefixes(ops);
    singles(ops, &mut cuts);
    mixed(ops, more.div_ceil(3), rng, &mut cuts);
    cuts
}

fn prefixes(ops: &[RecordedOp]) -> Vec<Cut> {
    let first = |count: usize| {
        let fate = |index| {
            if index < count {
                Fate::Whole
            } else {
                Fate::Lost
            }
        };
        (0..ops.len()).map(fate).collect()
    };
    (0..=ops.len())
        .map(|count| Cut {
            kind: "the first",
            fates: first(count),
            whole: Some(count),
        })
        .collect()
}

fn singles(ops: &[RecordedOp], cuts: &mut Vec<Cut>) {
    for one in 0..ops.len() {
        let but = |it: Fate, others: Fate| {
            let fate = |index| if index == one { it } else { others };
            (0..ops.len()).map(fate).collect()
        };
        cuts.push(Cut {
            kind: "one is lost, there are",
            fates: but(Fate::Lost, Fate::Whole),
            whole: None,
        });
        cuts.push(Cut {
            kind: "alone",
            fates: but(Fate::Whole, Fate::Lost),
            whole: None,
        });
    }
}

fn subsets(ops: &[RecordedOp], rng: &mut StdRng, cuts: &mut Vec<Cut>) {
    let mut push = |has: &mut dyn FnMut(usize) -> bool| {
        let fate = |index| if has(index) { Fate::Whole } else { Fate::Lost };
        cuts.push(Cut {
            kind: "a subset",
            fates: (0..ops.len()).map(fate).collect(),
            whole: None,
        });
    };
    if ops.len() <= SUBSETS_OF {
        (0..1u32 << ops.len()).for_each(|bits| push(&mut |index| bits >> index & 1 == 1));
        return;
    }
    for _ in 0..SUBSETS {
        let share = rng.random_range(0.1..0.95);
        push(&mut |_| rng.random_bool(share));
    }
}

/// Adds cuts in which each change is torn, as the last one made and with all others complete.
fn torn(ops: &[RecordedOp], rng: &mut StdRng, cuts: &mut Vec<Cut>) {
    for (one, op) in ops.iter().enumerate() {
        let mut push = |fate: Fate, others: Fate| {
            let of = |index: usize| match index.cmp(&one) {
                std::cmp::Ordering::Less => Fate::Whole,
                std::cmp::Ordering::Equal => fate,
                std::cmp::Ordering::Greater => others,
            };
            cuts.push(Cut {
                kind: "one is torn",
                fates: (0..ops.len()).map(of).collect(),
                whole: None,
            });
        };
        match op {
            RecordedOp::Write { bytes, mapped, .. } => {
                let len = bytes.len() as u64;
                let head = |unit, rng: &mut StdRng| {
                    Fate::Torn(unit, Kept::Head(rng.random_range(0..=len / unit)))
                };
                let tail = Fate::Torn(
                    SECTOR_BYTES,
                    Kept::Tail(rng.random_range(0..=len / SECTOR_BYTES)),
                );
                push(head(SECTOR_BYTES, rng), Fate::Lost);
                push(tail, Fate::Lost);
                push(some(SECTOR_BYTES, rng), Fate::Lost);
                push(some(SECTOR_BYTES, rng), Fate::Whole);
                if len > PAGE_BYTES {
                    push(head(PAGE_BYTES, rng), Fate::Lost);
                    push(some(PAGE_BYTES, rng), Fate::Whole);
                }
                if *mapped {
                    push(head(WORD_BYTES, rng), Fate::Lost);
                    push(some(WORD_BYTES, rng), Fate::Lost);
                    push(some(WORD_BYTES, rng), Fate::Whole);
                }
            }
            RecordedOp::Discard { .. } => {
                for others in [Fate::Lost, Fate::Whole] {
                    push(Fate::Garbage(rng.random()), others);
                    push(some(PAGE_BYTES, rng), others);
                }
            }
            RecordedOp::Grow { .. } => {}
        }
    }
}

fn some(unit: u64, rng: &mut StdRng) -> Fate {
    Fate::Torn(unit, Kept::Some(rng.random()))
}

/// Adds cuts in which every change has its own fate, and the pages of the log are written back at
/// different times.
fn mixed(ops: &[RecordedOp], each: usize, rng: &mut StdRng, cuts: &mut Vec<Cut>) {
    let any = |op: &RecordedOp, rng: &mut StdRng| match (op, rng.random_range(0..6)) {
        (_, 0) => Fate::Lost,
        (_, 1 | 2) => Fate::Whole,
        (RecordedOp::Discard { .. }, 3) => Fate::Garbage(rng.random()),
        (RecordedOp::Grow { .. }, _) => Fate::Whole,
        (RecordedOp::Write { mapped: true, .. }, 3) => some(WORD_BYTES, rng),
        (_, 4) => some(PAGE_BYTES, rng),
        _ => some(SECTOR_BYTES, rng),
    };
    let kinds: [(&'static str, Option<u64>); 3] = [
        ("all torn", None),
        ("pages written back", Some(PAGE_BYTES)),
        ("sectors written back", Some(SECTOR_BYTES)),
    ];
    for (kind, unit) in kinds {
        for _ in 0..each {
            let seed = rng.random();
            let fates = ops.iter().enumerate().map(|(index, op)| match (op, unit) {
                (RecordedOp::Write { mapped: true, .. }, Some(unit)) => {
                    Fate::Torn(unit, Kept::WrittenBack(seed, index, ops.len()))
                }
                _ => any(op, rng),
            });
            cuts.push(Cut {
                kind,
                fates: fates.collect(),
                whole: None,
            });
        }
    }
}

/// Returns the pages that the writes of an epoch touch.
pub(crate) fn written(ops: &[RecordedOp]) -> BTreeSet<u64> {
    let pages = |op: &RecordedOp| match op {
        RecordedOp::Write {
            offset_bytes,
            bytes,
            ..
        } => offset_bytes >> BLOCK_SHIFT..(offset_bytes + bytes.len() as u64).div_ceil(PAGE_BYTES),
        _ => 0..0,
    };
    ops.iter().flat_map(pages).collect()
}

/// Returns what distinguishes an image from others of the same epoch: the written pages, and the
/// fate of all other changes.
pub(crate) fn fingerprint(
    image: &DeviceImage,
    written: &BTreeSet<u64>,
    ops: &[RecordedOp],
    cut: &Cut,
) -> u64 {
    let mut mix = Mix::new(image.len_bytes());
    let mut page = [0; BLOCK_BYTES];
    for number in written {
        image.read(&mut page, number << BLOCK_SHIFT);
        mix.bytes(&page);
    }
    for (op, fate) in ops.iter().zip(&cut.fates) {
        if let RecordedOp::Discard { .. } = op {
            mix.bytes(format!("{fate:?}").as_bytes());
        }
    }
    mix.finish()
}
