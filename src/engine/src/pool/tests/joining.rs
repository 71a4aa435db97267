//! Writers that are in the middle of a write while a side of a mirror joins.

use super::*;
use crate::pool::publish::publish;
use crate::pool::write::{Scratch, place};
use crate::space::Demand;
use cowshed_format::base::{BLOCK_BYTES, Result};
use cowshed_format::device::MirrorDevice;
use cowshed_format::device::mirror::Found;
use std::path::PathBuf;

fn found(number: usize, device: &Arc<MemoryDevice>) -> Found {
    Found {
        path: PathBuf::from(format!("/side/{number}")),
        device: Arc::clone(device) as Arc<dyn Device>,
    }
}

fn assembled<'a>(
    devices: impl IntoIterator<Item = (usize, &'a Arc<MemoryDevice>)>,
) -> Arc<MirrorDevice> {
    let found = devices
        .into_iter()
        .map(|(number, device)| found(number, device));
    Arc::new(MirrorDevice::assemble(found.collect()).unwrap())
}

/// A writer has placed its data on the side that is there, and makes it part of its volume only after
/// the side that comes back has got everything that the maps lead to.
#[test]
fn what_was_placed_before_a_side_joined_is_copied_to_it() -> Result<()> {
    for was_away in [true, false] {
        let devices = [0, 1].map(|_| Arc::new(MemoryDevice::new(64 * MIB)));
        let sides = || devices.iter().enumerate();
        let both = MirrorDevice::new(sides().map(|(number, it)| found(number, it)).collect())?;
        Pool::create(&both, &CreateOptions::default())?;
        let pool = Pool::open(assembled(sides().take(1)), &options())?;
        let volume = pool.create_volume(&name("v"), 8 * MIB)?;
        volume.write_at(&pattern(1, 1 << 20), 0)?;
        pool.checkpoint()?;
        if !was_away {
            // The births say nothing: everything is copied.
            pool.shared.mirror()?.outdate()?;
        }

        let mut scratch = Scratch::default();
        let bytes = pattern(2, 2 * BLOCK_BYTES);
        place(
            &pool.shared,
            &volume.core,
            &bytes,
            &mut scratch,
            Demand::Write,
        )?;
        let addr = scratch.runs[0].addr.unwrap();
        let second = Arc::clone(&devices[1]);
        let new = NewSide {
            path: PathBuf::from("/side/1"),
            open: Box::new(move |_| Ok(second as Arc<dyn Device>)),
            force: false,
        };
        let mut copied = 0;
        pool.add_side(new, &mut |done, _| {
            copied = done;
            true
        })?;
        assert!(!pool.status()?.degraded && copied > 0);
        let published = publish(
            &pool.shared,
            &volume.core,
            300,
            &mut scratch,
            None,
            Demand::Write,
        );
        assert!(published.is_ok());
        pool.close()?;
        let mut stored = vec![0; 2 * BLOCK_BYTES];
        devices[1].read_at(&mut stored, addr.offset_bytes())?;
        assert!(stored == bytes, "the side lacks what was in flight");
        drop((pool, volume));
        let alone = Pool::open(assembled(sides().skip(1)), &options())?;
        assert!(content(&alone.volume("v")?)[300 * BLOCK_BYTES..][..bytes.len()] == bytes);
    }
    Ok(())
}

/// A pool that is only read keeps in memory what its recovery writes; no side has that.
#[test]
fn a_mirror_that_is_only_read_is_recovered_in_memory() -> Result<()> {
    let devices = [0, 1].map(|_| Arc::new(MemoryDevice::new(64 * MIB)));
    let sides = || devices.iter().enumerate();
    let both = MirrorDevice::new(sides().map(|(number, it)| found(number, it)).collect())?;
    Pool::create(&both, &CreateOptions::default())?;
    let pool = Pool::open(assembled(sides()), &options())?;
    let volumes: Vec<_> = (0..20)
        .map(|number| pool.create_volume(&name(&format!("v{number}")), 8 * MIB))
        .collect::<Result<_>>()?;
    for (number, volume) in volumes.iter().enumerate() {
        for at in 0..8 {
            volume.write_at(&pattern(number as u8, 3 * BLOCK_BYTES), at * MIB)?;
        }
    }
    pool.flush()?;
    let expected: Vec<_> = volumes.iter().map(content).collect();
    drop((volumes, pool));
    let before = devices.each_ref().map(|device| device.snapshot_image());
    let read_only = OpenOptions {
        read_only: true,
        // Nodes are read again.
        cache_bytes: 64 << 10,
        ..options()
    };
    let pool = Pool::open(assembled(sides()), &read_only)?;
    for _ in 0..2 {
        for (number, expected) in expected.iter().enumerate() {
            let volume = pool.volume(&format!("v{number}"))?;
            assert!(content(&volume) == *expected, "volume {number}");
        }
    }
    pool.close()?;
    let after = devices.each_ref().map(|device| device.snapshot_image());
    assert!(before == after, "a pool that was only read has changed");
    Ok(())
}
