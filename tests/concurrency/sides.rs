//! A mirror in memory whose sides fail in turn and are brought back, while other threads use the
//! pool.

use crate::workers::World;
use crate::{Ground, POOL_BYTES};
use cowshed_engine::NewSide;
use cowshed_format::base::Error;
use cowshed_format::device::mirror::Found;
use cowshed_format::device::{
    Device, Effect, Fault, FaultyDevice, Lasting, MemoryDevice, MirrorDevice, Operation,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// The time between two failures.
const PAUSE: Duration = Duration::from_millis(40);

fn path(number: usize) -> PathBuf {
    PathBuf::from(format!("/side/{number}"))
}

/// Returns a mirror of two sides; after the death of the process, one of them is left.
pub(crate) fn mirror() -> Ground {
    let memory = [0, 1].map(|_| Arc::new(MemoryDevice::new(POOL_BYTES)));
    let faulty = memory.each_ref().map(|device| {
        let device = Arc::clone(device) as Arc<dyn Device>;
        Arc::new(FaultyDevice::new(device))
    });
    let found = faulty.iter().enumerate().map(|(number, device)| Found {
        path: path(number),
        device: Arc::clone(device) as Arc<dyn Device>,
    });
    let device = MirrorDevice::new(found.collect()).unwrap();
    let left = rand::random_range(0..2);
    let again = move || {
        let image = memory[left].snapshot_image();
        let found = Found {
            path: path(left),
            device: Arc::new(MemoryDevice::from_image(image)),
        };
        Arc::new(MirrorDevice::assemble(vec![found]).unwrap()) as Arc<dyn Device>
    };
    Ground {
        device: Arc::new(device),
        again: Box::new(again),
        meddle: Box::new(move |world, ended| meddle(world, &faulty, ended)),
    }
}

fn meddle(world: &World, sides: &[Arc<FaultyDevice>; 2], ended: &AtomicBool) {
    let operations = [Operation::Write, Operation::Flush, Operation::Store];
    let mut failures = 0;
    for round in 0.. {
        let number = round % 2;
        let side = &sides[number];
        let operation = operations[round / 2 % operations.len()];
        side.inject(Fault {
            operation,
            nth: side.calls(operation) + 1,
            lasting: Lasting::Forever,
            effect: Effect::Errno(libc::EIO),
        });
        while !world.pool.status().unwrap().degraded && !ended.load(Ordering::Acquire) {
            thread::yield_now();
        }
        failures += 1;
        thread::sleep(PAUSE);
        side.heal();
        bring_back(world, number);
        if ended.load(Ordering::Acquire) {
            break;
        }
    }
    println!("{failures} failures of sides");
    let sides = world.pool.sides().unwrap();
    assert!(!world.pool.status().unwrap().degraded, "{sides:?}");
}

/// Has a side used again, until it has everything.
fn bring_back(world: &World, number: usize) {
    while world.pool.status().unwrap().degraded {
        let new = NewSide {
            path: path(number),
            // Its device is still there.
            open: Box::new(|_| Err(Error::InUse)),
            force: false,
        };
        match world.pool.add_side(new, &mut |_, _| true) {
            // The pool's own thread may have been faster.
            Ok(()) | Err(Error::Mirror(_)) => {}
            Err(error) => panic!("side {number}: {error}"),
        }
    }
}
