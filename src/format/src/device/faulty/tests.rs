use super::*;
use crate::device::MemoryDevice;

const ALL: [Operation; Operation::COUNT] = [
    Operation::Read,
    Operation::Write,
    Operation::Store,
    Operation::Flush,
    Operation::Discard,
    Operation::Grow,
];

/// The device's first length, and the length that each growth adds.
const MIB: u64 = 1 << 20;

fn faulty() -> (FaultyDevice, Arc<MemoryDevice>) {
    let memory = Arc::new(MemoryDevice::new(MIB));
    let device = FaultyDevice::new(memory.clone());
    device.map_log(0, 8192).unwrap();
    (device, memory)
}

fn call(device: &FaultyDevice, operation: Operation) -> Result<()> {
    match operation {
        Operation::Read => device.read_at(&mut [0; 4 * BLOCK_BYTES], 8192),
        Operation::Write => device.write_at(&[7; 4 * BLOCK_BYTES], 8192),
        Operation::Store => device.store_log(0, &[7; 11]),
        Operation::Flush => device.flush(),
        Operation::Discard => device.discard(8192, 16_384),
        Operation::Grow => device.grow(device.len_bytes() + MIB),
    }
}

fn calls_behind(memory: &MemoryDevice) -> [u64; Operation::COUNT] {
    [
        memory.reads(),
        memory.writes(),
        memory.stores(),
        memory.flushes(),
        memory.discards(),
        memory.len_bytes() / MIB - 1,
    ]
}

fn content(memory: &MemoryDevice, offset_bytes: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.snapshot_image().read(&mut bytes, offset_bytes);
    bytes
}

#[test]
fn only_the_nth_call_of_the_operation_fails_and_it_does_not_reach_the_device() {
    for operation in ALL {
        let (device, memory) = faulty();
        device.inject(Fault {
            operation,
            nth: 2,
            lasting: Lasting::Once,
            effect: Effect::Errno(libc::EREMOTEIO),
        });
        for round in 1..=3 {
            for each in ALL {
                let answer = call(&device, each);
                if each == operation && round == 2 {
                    assert_eq!(answer.unwrap_err().errno(), libc::EREMOTEIO);
                } else {
                    answer.unwrap();
                }
            }
        }
        for each in ALL {
            assert_eq!(device.calls(each), 3);
            let expected = if each == operation { 2 } else { 3 };
            assert_eq!(calls_behind(&memory)[each.index()], expected, "{each:?}");
        }
        assert_eq!(device.failures(), 1);
    }
}

#[test]
fn a_lasting_fault_fails_every_call_until_it_is_healed() {
    for operation in ALL {
        let (device, _) = faulty();
        call(&device, operation).unwrap();
        device.fail_next(operation, Lasting::Forever, Effect::Errno(libc::EIO));
        for _ in 0..3 {
            assert_eq!(call(&device, operation).unwrap_err().errno(), libc::EIO);
        }
        device.heal();
        call(&device, operation).unwrap();
        assert_eq!(device.failures(), 3);
    }
}

#[test]
fn a_short_write_leaves_its_first_half() {
    let half = [[7; 2 * BLOCK_BYTES], [0; 2 * BLOCK_BYTES]].concat();
    let short = Effect::Short(libc::ENOSPC);

    let (device, memory) = faulty();
    device.fail_next(Operation::Write, Lasting::Once, short);
    let error = call(&device, Operation::Write).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    assert_eq!(content(&memory, 8192, half.len()), half);

    let (device, memory) = faulty();
    device.fail_next(Operation::Write, Lasting::Once, short);
    let (first, second) = ([7; BLOCK_BYTES], [7; 3 * BLOCK_BYTES]);
    device
        .write_vectored_at(&[IoSlice::new(&first), IoSlice::new(&second)], 8192)
        .unwrap_err();
    assert_eq!(content(&memory, 8192, half.len()), half);
}

#[test]
fn a_short_write_of_one_block_leaves_nothing() {
    let (device, memory) = faulty();
    device.fail_next(Operation::Write, Lasting::Once, Effect::Short(libc::EIO));
    device.write_at(&[7; BLOCK_BYTES], 8192).unwrap_err();
    assert_eq!(memory.writes(), 0);
}

#[test]
fn a_short_store_discard_or_flush_does_half_or_nothing() {
    let (device, memory) = faulty();
    for operation in [Operation::Store, Operation::Discard, Operation::Flush] {
        device.fail_next(operation, Lasting::Once, Effect::Short(libc::EIO));
    }
    call(&device, Operation::Store).unwrap_err();
    assert_eq!(content(&memory, 0, 11), [7, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0]);

    call(&device, Operation::Write).unwrap();
    call(&device, Operation::Discard).unwrap_err();
    let half = [[0; 2 * BLOCK_BYTES], [7; 2 * BLOCK_BYTES]].concat();
    assert_eq!(content(&memory, 8192, half.len()), half);

    call(&device, Operation::Flush).unwrap_err();
    assert_eq!(memory.flushes(), 0);
}

#[test]
fn a_seed_always_chooses_the_same_fault_within_its_limits() {
    let operations = [Operation::Write, Operation::Flush];
    let chosen: Vec<Fault> = (0..64)
        .map(|seed| Fault::seeded(seed, &operations, 10))
        .collect();
    for (seed, fault) in (0..).zip(&chosen) {
        assert_eq!(*fault, Fault::seeded(seed, &operations, 10));
        assert!(operations.contains(&fault.operation) && (1..=10).contains(&fault.nth));
    }
    for operation in operations {
        assert!(chosen.iter().any(|fault| fault.operation == operation));
    }
    for nth in [1, 10] {
        assert!(
            chosen.iter().any(|fault| fault.nth == nth),
            "never the call {nth}"
        );
    }
}
