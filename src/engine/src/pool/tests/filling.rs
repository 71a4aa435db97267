//! Blocks that the host is made to store before they are written, where flushes follow few writes
//! each.

use super::super::Pool;
use super::{MIB, fresh, options};
use cowshed_format::base::Name;
use cowshed_format::device::Device;
use std::sync::Arc;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 1024;

#[test]
fn small_flushes_have_blocks_filled_ahead_and_nothing_is_lost() {
    let (device, pool) = fresh(64 * MIB);
    let name = Name::new("volume").unwrap();
    let volume = pool.create_volume(&name, BLOCKS * BLOCK).unwrap();
    let mut expected = vec![0; usize::try_from(BLOCKS).unwrap()];
    let mut step = 0_u64;
    let mut work = |flushes: bool| {
        for _ in 0..600 {
            step += 1;
            let block = step * 401 % BLOCKS;
            let byte = u8::try_from(step % 250 + 1).unwrap();
            expected[usize::try_from(block).unwrap()] = byte;
            volume.write_at(&[byte; 4096], block * BLOCK).unwrap();
            if flushes {
                volume.flush().unwrap();
            }
        }
        expected.clone()
    };
    work(false);
    assert_eq!(device.filled_bytes(), 0);
    work(true);
    let filled = device.filled_bytes();
    assert!(filled > 300 * BLOCK && filled < 700 * BLOCK, "{filled}");
    pool.checkpoint().unwrap();
    let expected = work(true);
    let check = |pool: &Pool| {
        let volume = pool.volume("volume").unwrap();
        for (block, byte) in (0..).zip(&expected) {
            let mut found = [0; 4096];
            volume.read_at(&mut found, block * BLOCK).unwrap();
            assert!(found.iter().all(|found| found == byte), "block {block}");
        }
    };
    check(&pool);
    drop((volume, pool));
    let device = Arc::clone(&device) as Arc<dyn Device>;
    check(&Pool::open(device, &options()).unwrap());
}
