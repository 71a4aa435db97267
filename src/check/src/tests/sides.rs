//! A mirror is checked as one device, and sides that are behind lack what a repair writes.

use super::*;
use cowshed_format::device::mirror::Found;
use cowshed_format::device::{Device, MirrorDevice};
use cowshed_format::layout::GROUP_HEADER_BLOCKS;
use cowshed_format::side::{Lack, SideId, SideState};
use std::sync::Arc;

type Sides = [Arc<MemoryDevice>; 2];

fn found(sides: &Sides) -> Vec<Found> {
    let found = |(side, path): (&Arc<MemoryDevice>, &str)| Found {
        path: path.into(),
        device: Arc::clone(side) as Arc<dyn Device>,
    };
    sides.iter().zip(["/first", "/second"]).map(found).collect()
}

/// Returns a mirror on two sides with the same sound pool, and their identities.
fn mirror() -> (Sides, MirrorDevice, [SideId; 2]) {
    let sides = [(); 2].map(|()| Arc::new(forest().0.finish()));
    let new = MirrorDevice::new(found(&sides)).unwrap();
    new.name_pool(pool::UUID).unwrap();
    let mirror = MirrorDevice::assemble(found(&sides)).unwrap();
    let open = mirror.open_sides();
    (sides, mirror, [open[0].id(), open[1].id()])
}

fn damage(side: &MemoryDevice, block: BlockAddr) {
    let bytes = [0xab; BLOCK_BYTES];
    side.write_at(&bytes, block.offset_bytes()).unwrap();
}

#[test]
fn what_either_side_has_is_not_lost() {
    let (sides, mirror, ids) = mirror();
    let layout = slots::read(&*sides[0], &mut Findings::default(), &mut Vec::new());
    let layout = layout.unwrap().newest.layout;
    // Each block of data and metadata on one of the sides.
    let start = layout.group_start(0) + GROUP_HEADER_BLOCKS;
    for (block, turn) in (start..start + 1000).zip([0, 1].into_iter().cycle()) {
        damage(&sides[turn], BlockAddr(block));
    }
    for slot in [0, 1] {
        damage(&sides[0], layout.bitmap_slot(0, slot));
        for place in layout.superblock_slots(slot) {
            damage(&sides[1], place);
        }
    }
    assert!(check(&*sides[1], DEEP, &mut |_| {}).is_err());
    assert!(!check_deep(&sides[0]).clean());
    let before = sides.each_ref().map(|side| {
        let mut bytes = vec![0; usize::try_from(side.len_bytes()).unwrap()];
        side.read_at(&mut bytes, 0).unwrap();
        bytes
    });
    mirror.begin(&ids, &[], Generation(5), true).unwrap();
    let report = check(&mirror, DEEP, &mut |_| {}).unwrap();
    assert!(report.clean(), "{:?}", report.findings);
    for (side, before) in sides.iter().zip(before) {
        let mut bytes = vec![0; before.len()];
        side.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == before, "a check writes nothing");
    }
}

#[test]
fn a_side_that_is_behind_lacks_everything_from_the_first_write_of_a_repair() {
    let (sides, mirror, [good, behind]) = mirror();
    let lack = Lack::since(Generation(3));
    let claimed = [(behind, lack)];
    mirror
        .begin(&[good], &claimed, Generation(5), false)
        .unwrap();
    let repair = || {
        let options = CheckOptions {
            repair: true,
            ..DEEP
        };
        check(&mirror, options, &mut |_| {}).unwrap()
    };
    assert_eq!(repair().repaired, []);
    assert_eq!(mirror.state_of(behind), Some(SideState::Behind(lack)));
    damage(
        &sides[0],
        BlockAddr(sides[0].len_bytes() / BLOCK_BYTES as u64 - 2),
    );
    let report = repair();
    assert!(report.clean() && !report.repaired.is_empty(), "{report:?}");
    assert_eq!(mirror.state_of(behind), Some(SideState::Behind(Lack::ALL)));
}
