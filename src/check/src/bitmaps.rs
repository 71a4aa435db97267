//! Comparing the groups' bitmaps with the blocks that were reached.

use super::finding::{Detail, FindingKind, Findings, Place};
use super::marks::{Marks, used_in, word_bit};
use cowshed_format::Superblock;
use cowshed_format::base::{BlockAddr, Generation};
use cowshed_format::device::Device;
use cowshed_format::group::{self, BITMAP_WORDS, Bitmap, BitmapSlot, SLOT_BYTES, decode};
use std::collections::BTreeSet;

/// The state of a group's two bitmap slots.
pub(super) struct GroupSlots {
    /// The bitmap that counts, and its slot.
    pub(super) current: Option<(u8, BitmapSlot)>,
    /// True if the other slot was left by an unfinished checkpoint, or is damaged.
    pub(super) unfinished: bool,
}

/// The result of comparing all groups.
#[derive(Default)]
pub(super) struct Bitmaps {
    /// Groups whose bitmap differs from the blocks that were reached, or is lost.
    pub(super) wrong: BTreeSet<u64>,
    /// Groups with a slot of an unfinished checkpoint.
    pub(super) unfinished: BTreeSet<u64>,
    /// True if an old bitmap is in place of a newer one: then no bitmap is to be trusted.
    pub(super) stale: bool,
}

/// Reads a group's two slots.
pub(super) fn read_group(device: &dyn Device, superblock: &Superblock, number: u64) -> GroupSlots {
    let mut slots = GroupSlots {
        current: None,
        unfinished: false,
    };
    for slot in [0, 1] {
        let mut bytes = Box::new([0; SLOT_BYTES]);
        let offset = superblock.layout.bitmap_slot(number, slot).offset_bytes();
        let is_sound = |bytes: &[u8]| is_slot(bytes, superblock, number);
        if device
            .read_accepted(&mut bytes[..], offset, false, &is_sound)
            .is_err()
        {
            continue;
        }
        let Some(found) = decode(&bytes, &superblock.uuid, number) else {
            slots.unfinished |= !group::is_blank(&bytes);
            continue;
        };
        let newest = slots.current.as_ref().map(|(_, slot)| slot.generation);
        if found.generation > superblock.generation {
            slots.unfinished = true;
        } else if newest.unwrap_or(Generation(0)) <= found.generation {
            slots.current = Some((slot, found));
        }
    }
    slots
}

/// Returns true if the bytes of a slot are whole, or were never written.
fn is_slot(bytes: &[u8], superblock: &Superblock, number: u64) -> bool {
    let Ok(bytes) = <&[u8; SLOT_BYTES]>::try_from(bytes) else {
        return false;
    };
    decode(bytes, &superblock.uuid, number).is_some() || group::is_blank(bytes)
}

/// Compares every group's bitmap with the marks.
pub(super) fn compare(
    device: &dyn Device,
    superblock: &Superblock,
    marks: &Marks,
    findings: &mut Findings,
) -> Bitmaps {
    let mut bitmaps = Bitmaps::default();
    let (mut used, mut digest) = (Some(0), 0u64);
    for group in 0..superblock.groups_initialized {
        let slots = read_group(device, superblock, group);
        if slots.unfinished {
            bitmaps.unfinished.insert(group);
        }
        let expected = marks.bitmap(group);
        let Some((_, slot)) = slots.current else {
            let place = Place::Group(group);
            findings.add(FindingKind::BitmapUnreadable, place, Detail::None);
            bitmaps.wrong.insert(group);
            used = None;
            continue;
        };
        used = used.map(|used| used + used_in(&slot.bitmap));
        digest = digest.wrapping_add(group::digest(group, &slot.bitmap));
        if slot.bitmap != expected {
            bitmaps.wrong.insert(group);
            let first = superblock.layout.group_start(group);
            report(findings, FindingKind::BlocksLeaked, first, |word| {
                slot.bitmap[word] & !expected[word]
            });
            report(findings, FindingKind::BlocksUnmarked, first, |word| {
                expected[word] & !slot.bitmap[word]
            });
        }
    }
    if used.is_some() && digest != superblock.bitmaps_digest {
        let detail = Detail::Fact("the bitmaps do not match the superblock's digest");
        findings.add(FindingKind::SuperblockField, Place::Pool, detail);
        bitmaps.stale = true;
    }
    // A group without slots is free throughout, according to the superblock.
    let last = marks.last_group().map_or(0, |last| last + 1);
    for group in superblock.groups_initialized..last {
        let expected = marks.bitmap(group);
        if used_in(&expected) > 0 {
            bitmaps.wrong.insert(group);
            let first = superblock.layout.group_start(group);
            report(findings, FindingKind::BlocksUnmarked, first, |word| {
                expected[word] & if word == 0 { !0b1111 } else { !0 }
            });
        }
    }
    if let Some(used) = used.filter(|used| *used != superblock.used_blocks) {
        let detail = Detail::Count {
            recorded: superblock.used_blocks,
            counted: used,
        };
        findings.add(FindingKind::UsedCount, Place::Pool, detail);
    }
    bitmaps
}

/// Reports the bits that `difference` gives, as runs of blocks.
fn report(
    findings: &mut Findings,
    kind: FindingKind,
    group_start: u64,
    difference: impl Fn(usize) -> u64,
) {
    let is_set = |index: u64| {
        let (word, bit) = word_bit(index);
        difference(word) & bit != 0
    };
    let end = BITMAP_WORDS as u64 * 64;
    let mut index = 0;
    while index < end {
        if !is_set(index) {
            index += 1;
            continue;
        }
        let first = index;
        while index < end && is_set(index) {
            index += 1;
        }
        let place = Place::Blocks {
            first: BlockAddr(group_start + first),
            count: index - first,
        };
        findings.add(kind, place, Detail::None);
    }
}

/// Returns a bitmap in which all blocks of a group of `blocks` blocks are set.
pub(super) fn whole(blocks: u64) -> Box<Bitmap> {
    let mut bitmap = Box::new([0; BITMAP_WORDS]);
    for index in 0..blocks {
        let (word, bit) = word_bit(index);
        bitmap[word] |= bit;
    }
    bitmap
}
