//! The label of a mirror's side: which side a device is, and which sides of its pool are good.
//!
//! Each side of a mirrored pool has two label slots in blocks that a pool without a mirror keeps
//! zero, each slot in two places. A label holds the whole set of sides, so any one side leads to
//! the others. It changes only when a side comes, goes, or changes its state.
//!
//! # Invariants
//! - Each change of the set has a higher epoch than the one before, a random tag of its own, and
//!   the tags of those before it. So of two labels it is known whether one is an ancestor of the
//!   other, or whether the two sides went different ways.

use super::base::checksum::crc32;
use super::base::codec::{Reader, Writer};
use super::base::{BLOCK_BYTES, BlockAddr, Generation};

/// Maximum number of sides of a mirror.
pub const SIDES_MAX: usize = 4;
/// Maximum length of a side's path in bytes.
pub const PATH_BYTES_MAX: usize = 512;
/// Maximum number of earlier sets whose tags a label holds.
pub const HISTORY_MAX: usize = 96;
/// Number of label slots of a side.
pub const SLOTS: u8 = 2;

const MAGIC: [u8; 8] = *b"CWMIRROR";
const VERSION: u32 = 1;
const CRC_OFFSET: usize = BLOCK_BYTES - 4;
/// The flag of a set that was made without one of the sides.
const APART: u8 = 1;
const GOOD: u8 = 1;
const BEHIND: u8 = 2;

/// The identity of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SideId(pub [u8; 16]);

/// Tells whether a side has everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideState {
    /// It has everything that was acknowledged.
    Good,
    /// It may lack this much.
    Behind(Lack),
}

/// The part of a pool that a side may lack: what was born after `since`, apart from what lies below
/// the block `below` and was born up to `until`, which has been copied to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack {
    /// Generation 0 stands for everything that is in use.
    pub since: Generation,
    /// At least `since`.
    pub until: Generation,
    /// Block 0 if nothing has been copied.
    pub below: BlockAddr,
}

impl Lack {
    /// Everything.
    pub const ALL: Self = Self::since(Generation(0));

    /// What was born after a generation.
    #[must_use]
    pub const fn since(since: Generation) -> Self {
        Self {
            since,
            until: since,
            below: BlockAddr(0),
        }
    }

    /// Returns true for a block that the side may lack.
    #[must_use]
    pub fn has(&self, addr: BlockAddr, birth: Generation) -> bool {
        birth > self.until || (birth > self.since && addr >= self.below)
    }

    /// Returns a lack that includes this one and what was born after a generation.
    #[must_use]
    pub fn and_since(self, since: Generation) -> Self {
        Self {
            since: self.since.min(since),
            until: self.until.min(since),
            below: self.below,
        }
    }

    /// Returns a lack that includes both. What has been copied counts as far as both say so.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self.since != other.since {
            return Self::since(self.since.min(other.since));
        }
        Self {
            since: self.since,
            until: self.until.min(other.until),
            below: self.below.min(other.below),
        }
    }
}

/// One side in a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideEntry {
    /// Its identity.
    pub id: SideId,
    /// Its state.
    pub state: SideState,
    /// The path at which it was last opened: a hint.
    pub path: Vec<u8>,
}

/// The epoch of a set of sides, and its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Rises by at least one with each set.
    pub number: u64,
    /// Random.
    pub tag: u64,
}

/// All sides of a pool, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideSet {
    /// This set's epoch.
    pub epoch: Epoch,
    /// The epochs of earlier sets, the newest last.
    pub history: Vec<Epoch>,
    /// True if it was made where a side was missing or behind, which has never had it.
    pub is_apart: bool,
    /// The sides.
    pub sides: Vec<SideEntry>,
}

/// The label of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideLabel {
    /// The pool's identity.
    pub pool: [u8; 16],
    /// The side that holds this label.
    pub side: SideId,
    /// The set as of when it was written.
    pub set: SideSet,
}

/// Returns the places of a label slot.
#[must_use]
pub const fn label_places(slot: u8) -> [BlockAddr; 2] {
    [BlockAddr(2 + slot as u64), BlockAddr(4 + slot as u64)]
}

impl SideSet {
    /// Returns the entry of a side.
    #[must_use]
    pub fn entry(&self, id: SideId) -> Option<&SideEntry> {
        self.sides.iter().find(|entry| entry.id == id)
    }

    /// Returns the entry of a side, to change it.
    pub fn entry_mut(&mut self, id: SideId) -> Option<&mut SideEntry> {
        self.sides.iter_mut().find(|entry| entry.id == id)
    }

    /// Makes this the next set, which all sides may have.
    pub fn advance(&mut self) {
        self.is_apart = false;
        self.history.push(self.epoch);
        let surplus = self.history.len().saturating_sub(HISTORY_MAX);
        self.history.drain(..surplus);
        self.epoch = Epoch {
            number: self.epoch.number + 1,
            tag: rand::random(),
        };
    }

    /// Returns true if `other` is this set or one that came before it. A set that is older than
    /// this one's history counts if it calls every side good that this one calls good.
    #[must_use]
    pub fn descends_from(&self, other: &Self) -> bool {
        if self.epoch == other.epoch || self.history.contains(&other.epoch) {
            return true;
        }
        let oldest = self.history.first().unwrap_or(&self.epoch);
        let is_known = |entry: &SideEntry| {
            let there = other.entry(entry.id).map(|there| there.state);
            entry.state != SideState::Good || there == Some(SideState::Good)
        };
        self.history.len() == HISTORY_MAX
            && other.epoch.number < oldest.number
            && self.sides.iter().all(is_known)
    }
}

impl SideLabel {
    /// Returns the encoded label, one block.
    ///
    /// # Panics
    /// When the set is beyond the limits of the format, which its maker must check.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let set = &self.set;
        assert!(set.sides.len() <= SIDES_MAX && set.history.len() <= HISTORY_MAX);
        let mut out = Writer::new();
        out.bytes(&MAGIC)
            .u32(VERSION)
            .u8(u8::try_from(set.sides.len()).expect("below the limit"))
            .u8(if set.is_apart { APART } else { 0 })
            .u16(u16::try_from(set.history.len()).expect("below the limit"))
            .bytes(&self.pool)
            .bytes(&self.side.0);
        for epoch in [set.epoch].iter().chain(&set.history) {
            out.u64(epoch.number).u64(epoch.tag);
        }
        for entry in &set.sides {
            assert!(entry.path.len() <= PATH_BYTES_MAX);
            let (state, lack) = match entry.state {
                SideState::Good => (GOOD, Lack::ALL),
                SideState::Behind(lack) => (BEHIND, lack),
            };
            out.bytes(&entry.id.0)
                .u8(state)
                .u64(lack.since.0)
                .u64(lack.until.0)
                .u64(lack.below.0)
                .short_bytes(&entry.path);
        }
        let mut bytes = out.into_bytes();
        assert!(bytes.len() <= CRC_OFFSET);
        bytes.resize(CRC_OFFSET, 0);
        let crc = crc32(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Returns the label in `bytes`; `None` if it is not a whole label with possible fields.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != BLOCK_BYTES {
            return None;
        }
        let (covered, crc) = bytes.split_at(CRC_OFFSET);
        let mut input = Reader::new(covered);
        if input.bytes(8)? != MAGIC || crc != crc32(covered).to_le_bytes() {
            return None;
        }
        if input.u32()? != VERSION {
            return None;
        }
        let (sides, flags) = (usize::from(input.u8()?), input.u8()?);
        let history = usize::from(input.u16()?);
        if sides > SIDES_MAX || flags > APART || history > HISTORY_MAX {
            return None;
        }
        let pool = input.bytes(16)?.try_into().ok()?;
        let side = SideId(input.bytes(16)?.try_into().ok()?);
        let epoch = take_epoch(&mut input)?;
        let history = (0..history)
            .map(|_| take_epoch(&mut input))
            .collect::<Option<Vec<_>>>()?;
        let sides = (0..sides)
            .map(|_| take_entry(&mut input))
            .collect::<Option<Vec<_>>>()?;
        let set = SideSet {
            epoch,
            history,
            is_apart: flags & APART != 0,
            sides,
        };
        let label = Self { pool, side, set };
        label.is_possible().then_some(label)
    }

    fn is_possible(&self) -> bool {
        let set = &self.set;
        let is_once = |entry: &SideEntry| {
            let same = set.sides.iter().filter(|other| other.id == entry.id);
            same.count() == 1
        };
        let rises = set
            .history
            .iter()
            .chain([&set.epoch])
            .is_sorted_by(|before, after| before.number < after.number);
        set.entry(self.side).is_some()
            && set.epoch.number < u64::MAX / 2
            && rises
            && set.sides.iter().all(is_once)
    }
}

fn take_epoch(input: &mut Reader<'_>) -> Option<Epoch> {
    Some(Epoch {
        number: input.u64()?,
        tag: input.u64()?,
    })
}

fn take_entry(input: &mut Reader<'_>) -> Option<SideEntry> {
    let id = SideId(input.bytes(16)?.try_into().ok()?);
    let state = input.u8()?;
    let lack = Lack {
        since: Generation(input.u64()?),
        until: Generation(input.u64()?),
        below: BlockAddr(input.u64()?),
    };
    if lack.until < lack.since {
        return None;
    }
    let path = input.short_bytes()?.to_vec();
    let state = match state {
        GOOD => SideState::Good,
        BEHIND => SideState::Behind(lack),
        _ => return None,
    };
    (path.len() <= PATH_BYTES_MAX).then_some(SideEntry { id, state, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> SideSet {
        let side = |number, state| SideEntry {
            id: SideId([number; 16]),
            state,
            path: format!("/pool/{number}").into_bytes(),
        };
        SideSet {
            epoch: Epoch { number: 1, tag: 77 },
            history: Vec::new(),
            is_apart: true,
            sides: vec![
                side(1, SideState::Good),
                side(2, SideState::Behind(Lack::since(Generation(9)))),
            ],
        }
    }

    fn label() -> SideLabel {
        SideLabel {
            pool: [3; 16],
            side: SideId([2; 16]),
            set: set(),
        }
    }

    #[test]
    fn a_label_survives_the_round_trip_at_its_largest() {
        let mut label = label();
        assert_eq!(SideLabel::decode(&label.encode()).unwrap(), label);
        for _ in 0..2 * HISTORY_MAX {
            label.set.advance();
        }
        for number in 3..=4 {
            label.set.sides.push(SideEntry {
                id: SideId([number; 16]),
                state: SideState::Good,
                path: Vec::new(),
            });
        }
        for side in &mut label.set.sides {
            side.path = vec![b'/'; PATH_BYTES_MAX];
        }
        assert_eq!(SideLabel::decode(&label.encode()).unwrap(), label);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = label().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SideLabel::decode(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn impossible_sets_are_refused() {
        let mut twice = label();
        twice.set.sides[0].id = SideId([2; 16]);
        let mut foreign = label();
        foreign.side = SideId([9; 16]);
        let mut backwards = label();
        backwards.set.history.push(Epoch { number: 1, tag: 5 });
        for bad in [twice, foreign, backwards] {
            assert_eq!(SideLabel::decode(&bad.encode()), None);
        }
    }

    #[test]
    fn a_lack_covers_what_each_of_two_claims_names() {
        let claim = |since, until, below| Lack {
            since: Generation(since),
            until: Generation(until),
            below: BlockAddr(below),
        };
        let claims = [
            claim(0, 0, 0),
            claim(0, 7, 50),
            claim(0, 9, 90),
            claim(4, 4, 0),
            claim(4, 8, 70),
        ];
        let blocks = || {
            (0..100)
                .step_by(10)
                .flat_map(|addr| (1..12).map(move |birth| (addr, birth)))
        };
        for one in claims {
            for other in claims {
                for (addr, birth) in blocks() {
                    let (addr, birth) = (BlockAddr(addr), Generation(birth));
                    let is_named = one.has(addr, birth) || other.has(addr, birth);
                    assert!(
                        !is_named || one.and(other).has(addr, birth),
                        "{one:?} {other:?}"
                    );
                }
            }
            for (addr, birth) in blocks() {
                let (addr, birth) = (BlockAddr(addr), Generation(birth));
                let is_named = one.has(addr, birth) || birth > Generation(6);
                assert_eq!(
                    is_named,
                    one.and_since(Generation(6)).has(addr, birth),
                    "{one:?}"
                );
            }
        }
        assert_eq!(claim(0, 7, 50).and(claim(0, 9, 90)), claim(0, 7, 50));
    }

    #[test]
    fn a_set_descends_from_earlier_ones_and_not_from_another_branch() {
        let old = set();
        let (mut left, mut right) = (old.clone(), old.clone());
        left.advance();
        right.advance();
        right.advance();
        for new in [&left, &right] {
            assert!(new.descends_from(&old) && !old.descends_from(new));
        }
        assert!(!left.descends_from(&right) && !right.descends_from(&left));
        // So long ago that its tag is forgotten: it counts unless it denies a good side.
        (0..2 * HISTORY_MAX).for_each(|_| left.advance());
        assert!(left.descends_from(&old));
        let mut removes = old.clone();
        removes.sides.remove(0);
        assert!(!left.descends_from(&removes));
        let mut denies = old;
        denies.sides[0].state = SideState::Behind(Lack::since(Generation(1)));
        assert!(!left.descends_from(&denies));
    }
}
