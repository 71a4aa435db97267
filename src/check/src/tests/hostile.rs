//! No bytes make the check panic or run on, and a pool damaged by a flip is never called clean.

use super::*;
use proptest::prelude::*;

/// Returns the non-zero blocks of a finished pool, in order.
fn blocks_in_use(device: &MemoryDevice) -> Vec<u64> {
    let blocks = device.len_bytes() / BLOCK_BYTES as u64;
    let holds = |block: &u64| {
        let mut bytes = vec![0; BLOCK_BYTES];
        device.read_at(&mut bytes, *block << 12).unwrap();
        bytes.iter().any(|byte| *byte != 0)
    };
    (0..blocks).filter(holds).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_bytes_anywhere_never_panic(
        seeds in prop::collection::vec((any::<u32>(), 0..BLOCK_BYTES, any::<u8>()), 1..40),
        repair in any::<bool>(),
    ) {
        let device = forest().0.finish();
        let used = blocks_in_use(&device);
        for (block, byte, value) in seeds {
            let block = used[block as usize % used.len()];
            let mut bytes = vec![0; BLOCK_BYTES];
            device.read_at(&mut bytes, block << 12).unwrap();
            bytes[byte] = value;
            device.write_at(&bytes, block << 12).unwrap();
        }
        let options = CheckOptions { deep: true, repair, forget: false };
        if let Ok(report) = check(&device, options, &mut |_| {}) {
            for finding in &report.findings {
                prop_assert!(!finding.to_string().is_empty());
            }
        }
    }

    /// Valid checksums do not make the contents sound.
    #[test]
    fn random_pointers_under_valid_checksums_never_panic(
        changes in prop::collection::vec(
            (0usize..4, 0u64..700, 1u8..3, 0usize..256, any::<[u64; 2]>(), any::<bool>()),
            1..12,
        ),
        cursor in prop::option::of(0u64..1000),
    ) {
        let (mut pool, ids) = forest();
        let now = Generation(pool.generation);
        let (start, end) = (pool.layout.group_start(0), *pool.used.last().unwrap());
        for (volume, index, level, entry, words, plausible) in changes {
            let addr = BlockAddr(start + words[0] % (end - start));
            let birth = Generation(words[1] % (now.0 + 1));
            let pointer = match (plausible, level) {
                (false, _) => Pointer::from_words(words),
                (true, 1) => Pointer::data(addr, birth, 0),
                (true, _) => pool.path(ids[volume], index)[0],
            };
            let id = ids[volume];
            let path = pool.path(id, index);
            if path.iter().all(|each| pool.layout.locate(each.addr()).is_some()) {
                pool.tamper(id, index, level, &|entries| entries[entry] = pointer);
            }
        }
        if let Some(cursor) = cursor {
            pool.volume(ids[0]).reclaimed = cursor;
        }
        let device = pool.finish();
        let options = CheckOptions { deep: true, repair: true, forget: false };
        let report = check(&device, options, &mut |_| {}).unwrap();
        // Whatever was done, a second repair has nothing left to do.
        let again = check(&device, options, &mut |_| {}).unwrap();
        prop_assert_eq!(&again.repaired, &[], "first {:?}", report.repaired);
    }
}

/// What a repair makes reachable is repaired, too: here a forged pointer that two volumes had
/// differently leads to a block that is marked only after the maps are right.
#[test]
fn what_a_repair_makes_reachable_is_repaired_by_the_same_repair() {
    let (mut pool, ids) = forest();
    let addr = BlockAddr(pool.layout.group_start(0) + 11);
    let pointer = Pointer::data(addr, Generation(0), 0);
    pool.tamper(ids[3], 375, 1, &|entries| entries[0] = pointer);
    let device = pool.finish();
    let options = CheckOptions {
        deep: true,
        repair: true,
        forget: false,
    };
    let report = check(&device, options, &mut |_| {}).unwrap();
    assert!(report.repaired.len() > 3, "{:?}", report.repaired);
    let again = check(&device, options, &mut |_| {}).unwrap();
    assert_eq!(again.repaired, []);
}

#[test]
fn a_flipped_bit_is_found_in_any_block_in_use_and_nowhere_else() {
    let (pool, _) = forest();
    let (start, slot) = (pool.layout.group_start(0), pool.layout.bitmap_slot(0, 0));
    let device = pool.finish();
    let mut bitmap = vec![0; BLOCK_BYTES];
    let offset = BlockAddr(slot.0 + 1).offset_bytes();
    device.read_at(&mut bitmap, offset).unwrap();
    let in_use = |block: u64| {
        let Some(index) = block.checked_sub(start) else {
            return true;
        };
        let byte = bitmap.get(usize::try_from(index / 8).unwrap());
        byte.is_none_or(|byte| byte >> (index % 8) & 1 == 1)
    };
    let mut flips = [0, 0];
    for block in blocks_in_use(&device) {
        let mut bytes = vec![0; BLOCK_BYTES];
        device.read_at(&mut bytes, block << 12).unwrap();
        let whole = bytes.clone();
        bytes[usize::try_from(block * 37 % 40).unwrap()] ^= 1 << (block % 8);
        device.write_at(&bytes, block << 12).unwrap();
        assert_eq!(check_deep(&device).clean(), !in_use(block), "block {block}");
        device.write_at(&whole, block << 12).unwrap();
        flips[usize::from(in_use(block))] += 1;
    }
    assert!(flips[0] > 100 && flips[1] > 100, "{flips:?}");
}
