//! Decaying media: flipped bits, and blocks that are lost, old, misdirected or swapped. Every read
//! returns correct bytes or an error, the check finds damage in blocks in use, a repair makes
//! nothing worse, and nothing panics, hangs or uses memory without bound.
//!
//! `tools/rot` runs more: `COWSHED_TEST_ROUNDS` sets the number of damages of each kind on each
//! pool (`0`: every bit of every structure), `COWSHED_TEST_SEED` the start of the random choice.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod claims;
mod copies;
mod golden;
mod judge;
mod missing;
mod named;

use cowshed_format::device::{DeviceImage, RecordedOp};
use golden::{BLOCK, Golden, Part, State, block_of, golden};
use judge::judge;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// Number of damages of each kind on each pool, by default.
const ROUNDS: u64 = 120;
const TINY_BYTES: u64 = 6 << 20;
const LARGER_BYTES: u64 = 160 << 20;
/// Number of meaningful bytes in a bitmap's header.
const HEADER_BYTES: u64 = 48;

fn number(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().expect(name))
}

fn rounds() -> u64 {
    number("COWSHED_TEST_ROUNDS").unwrap_or(ROUNDS)
}

fn seed() -> u64 {
    number("COWSHED_TEST_SEED").unwrap_or(1)
}

fn put(image: &mut DeviceImage, block: u64, bytes: &[u8]) {
    image.apply(&RecordedOp::Write {
        offset_bytes: block * BLOCK,
        bytes: bytes.into(),
        mapped: false,
    });
}

/// The results by part: number of damages, found by the check, opened, mended, opened after the
/// repair.
#[derive(Default)]
struct Tally(BTreeMap<Part, [u64; 5]>);

impl Tally {
    /// Judges one damage and adds its result.
    fn take(
        &mut self,
        what: &str,
        part: Part,
        image: &DeviceImage,
        (allowed, any): (&[State], &[State]),
    ) -> bool {
        let verdict = judge(image, allowed, any)
            .unwrap_or_else(|why| panic!("{what}: {why} (COWSHED_TEST_SEED={})", seed()));
        let counts = self.0.entry(part).or_default();
        let facts = [
            true,
            verdict.found,
            verdict.readable.is_some(),
            verdict.mended,
            verdict.opens_after,
        ];
        for (count, fact) in counts.iter_mut().zip(facts) {
            *count += u64::from(fact);
        }
        verdict.found
    }

    fn print(&self, what: &str) {
        for (part, [all, found, opened, mended, after]) in &self.0 {
            println!(
                "{what}, {part:?}: {all} damages; {found} found by the check, {opened} opened, \
                 {mended} clean and {after} opened after repairs"
            );
        }
    }
}

/// Returns the states that damage of `part` may leave. The end of a log cannot be distinguished
/// from a write that did not complete: the records in its last blocks may be missing.
fn allowed(golden: &Golden, part: Part, whole_block: bool) -> (&[State], &[State]) {
    let states = &golden.states;
    let allowed = match part {
        Part::Log if whole_block => states,
        _ => &states[states.len().saturating_sub(2)..],
    };
    (allowed, states)
}

fn flip(golden: &Golden, block: u64, bit: u64) -> DeviceImage {
    let mut image = golden.image.clone();
    let mut bytes = block_of(&image, block);
    bytes[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
    put(&mut image, block, &bytes);
    image
}

/// Flips bits of every structure. The check must find damage in superblocks, and in bitmaps, nodes,
/// catalogue and data that are in use, but not in old blocks and slots.
fn flips(what: &str, golden: &Golden) {
    let mut random = StdRng::seed_from_u64(seed());
    let mut tally = Tally::default();
    let mut parts: BTreeMap<Part, Vec<u64>> = BTreeMap::new();
    for (block, part) in &golden.blocks {
        parts.entry(*part).or_default().push(*block);
    }
    for (part, blocks) in &parts {
        let bits = match part {
            Part::BitmapHeader => HEADER_BYTES * 8,
            _ => BLOCK * 8,
        };
        let mut one = |block: u64, bit: u64| {
            let image = flip(golden, block, bit);
            let name = format!("{what}: bit {bit} of block {block} ({part:?}) flipped");
            let found = tally.take(&name, *part, &image, allowed(golden, *part, false));
            assert!(found || *part != Part::Superblock, "{name}: not found");
        };
        if rounds() == 0 {
            for block in blocks {
                (0..bits).for_each(|bit| one(*block, bit));
            }
        } else {
            for _ in 0..rounds() {
                one(
                    *blocks.choose(&mut random).unwrap(),
                    random.random_range(0..bits),
                );
            }
        }
    }
    tally.print(what);
}

/// Damages whole blocks: zeros, noise, an older version, another block's bytes, two swapped blocks.
fn blocks(what: &str, golden: &Golden) {
    let mut random = StdRng::seed_from_u64(seed());
    let mut tally = Tally::default();
    let every = rounds() == 0 || golden.blocks.len() as u64 <= rounds();
    let chosen: Vec<_> = if every {
        golden.blocks.clone()
    } else {
        let rounds = usize::try_from(rounds()).unwrap();
        let body = golden.blocks.choose_multiple(&mut random, rounds).copied();
        let others = golden.blocks.iter().filter(|(_, part)| *part != Part::Body);
        others.copied().chain(body).collect()
    };
    for (block, part) in chosen {
        let (other, other_part) = *golden.blocks.choose(&mut random).unwrap();
        let mut noise = vec![0; 4096];
        random.fill(&mut noise[..]);
        let mut damages = vec![
            ("lost", vec![(block, vec![0; 4096])]),
            ("noise", vec![(block, noise)]),
            ("old", vec![(block, block_of(&golden.older, block))]),
            ("misdirected", vec![(other, block_of(&golden.image, block))]),
        ];
        damages.push((
            "swapped",
            vec![
                (block, block_of(&golden.image, other)),
                (other, block_of(&golden.image, block)),
            ],
        ));
        for (kind, changes) in damages {
            let mut image = golden.image.clone();
            for (at, bytes) in changes {
                put(&mut image, at, &bytes);
            }
            if image == golden.image {
                continue;
            }
            let log = if other_part == Part::Log {
                other_part
            } else {
                part
            };
            let name = format!("{what}: block {block} ({part:?}) {kind}, with {other}");
            tally.take(&name, part, &image, allowed(golden, log, true));
        }
    }
    tally.print(what);
}

#[test]
fn flipped_bits_of_a_closed_pool() {
    flips("flips, closed", &golden(seed(), TINY_BYTES, true));
}

#[test]
fn flipped_bits_of_a_pool_with_a_log() {
    flips("flips, with a log", &golden(seed(), TINY_BYTES, false));
}

#[test]
fn flipped_bits_of_a_larger_pool() {
    flips("flips, larger", &golden(seed() + 1, LARGER_BYTES, false));
}

#[test]
fn damaged_blocks_of_a_closed_pool() {
    blocks("blocks, closed", &golden(seed(), TINY_BYTES, true));
}

#[test]
fn damaged_blocks_of_a_pool_with_a_log() {
    blocks("blocks, with a log", &golden(seed(), TINY_BYTES, false));
}
