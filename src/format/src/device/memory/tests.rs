use super::*;

const MIB: u64 = 1 << 20;

fn blocks(byte: u8, count: usize) -> Vec<u8> {
    vec![byte; count * BLOCK_BYTES]
}

fn read(device: &MemoryDevice, offset_bytes: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xEE; len];
    device.read_at(&mut buf, offset_bytes).unwrap();
    buf
}

#[test]
fn reads_see_writes_and_zeros_elsewhere() {
    let device = MemoryDevice::new(MIB);
    device.write_at(&blocks(1, 2), 8192).unwrap();
    assert_eq!(
        read(&device, 4096, 4 * 4096),
        [blocks(0, 1), blocks(1, 2), blocks(0, 1)].concat()
    );
    assert_eq!(device.host_bytes().unwrap(), 8192);
}

#[test]
fn a_vectored_write_lays_its_pieces_end_to_end_as_one_write() {
    let device = MemoryDevice::new(MIB);
    let (first, second) = (blocks(1, 1), blocks(2, 2));
    device
        .write_vectored_at(&[IoSlice::new(&first), IoSlice::new(&second)], 4096)
        .unwrap();
    assert_eq!(read(&device, 4096, 3 * 4096), [first, second].concat());
    assert_eq!(device.writes(), 1);
}

#[test]
fn ranges_beyond_the_end_are_errors_until_the_device_grows() {
    let device = MemoryDevice::new(8192);
    assert!(matches!(
        device.read_at(&mut blocks(0, 1), 8192),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::UnexpectedEof
    ));
    assert!(device.write_at(&blocks(1, 2), 4096).is_err());
    assert!(device.discard(4096, 8192).is_err());
    device.grow(16_384).unwrap();
    device.grow(4096).unwrap();
    assert_eq!(device.len_bytes(), 16_384);
    device.write_at(&blocks(1, 2), 4096).unwrap();
}

#[test]
fn discarded_pages_read_as_zeros_and_take_no_room() {
    let device = MemoryDevice::new(MIB);
    device.write_at(&blocks(9, 4), 0).unwrap();
    device.discard(4096, 8192).unwrap();
    assert_eq!(
        read(&device, 0, 4 * 4096),
        [blocks(9, 1), blocks(0, 2), blocks(9, 1)].concat()
    );
    assert_eq!(device.host_bytes().unwrap(), 8192);
}

#[test]
fn an_image_stays_as_it_was_when_the_device_goes_on() {
    let device = MemoryDevice::new(MIB);
    device.write_at(&blocks(1, 1), 0).unwrap();
    let image = device.snapshot_image();
    device.write_at(&blocks(2, 1), 0).unwrap();
    let copy = MemoryDevice::from_image(image);
    assert_eq!(read(&copy, 0, 4096), blocks(1, 1));
    assert_eq!(read(&device, 0, 4096), blocks(2, 1));
}

#[test]
fn stores_land_in_the_log_region_at_any_alignment() {
    let device = MemoryDevice::new(MIB);
    device.map_log(8192, 8192).unwrap();
    device.store_log(4090, &[7; 12]).unwrap();
    let seen = read(&device, 8192, 8192);
    assert_eq!(seen[4090..4102], [7; 12]);
    assert_eq!((seen[4089], seen[4102]), (0, 0));
    assert_eq!((device.stores(), device.writes()), (1, 0));
}

#[test]
#[should_panic(expected = "outside the log region")]
fn a_store_outside_the_log_region_panics() {
    let device = MemoryDevice::new(MIB);
    device.map_log(0, 4096).unwrap();
    let _ = device.store_log(4095, &[1, 2]);
}

#[test]
fn changes_are_recorded_by_epoch_in_order() {
    let device = MemoryDevice::recording(MIB);
    device.map_log(0, 4096).unwrap();
    device.write_at(&blocks(1, 1), 8192).unwrap();
    device.store_log(3, &[5, 6]).unwrap();
    device.flush().unwrap();
    device.flush().unwrap();
    device.discard(8192, 4096).unwrap();
    let recording = device.recorded().unwrap();
    let first = vec![
        RecordedOp::Write {
            offset_bytes: 8192,
            bytes: blocks(1, 1).into(),
            mapped: false,
        },
        RecordedOp::Write {
            offset_bytes: 3,
            bytes: [5, 6].into(),
            mapped: true,
        },
    ];
    assert_eq!(recording.epochs, [first, vec![]]);
    let last = RecordedOp::Discard {
        offset_bytes: 8192,
        len_bytes: 4096,
    };
    assert_eq!(recording.unflushed, [last]);
    assert_eq!(device.flushes(), 2);
}

#[test]
fn a_crash_image_holds_the_durable_epochs_and_the_chosen_survivors_only() {
    let before = MemoryDevice::new(MIB);
    before.write_at(&blocks(9, 1), 0).unwrap();
    let device = MemoryDevice::recording_from(before.snapshot_image());
    device.write_at(&blocks(1, 1), 4096).unwrap();
    device.flush().unwrap();
    device.write_at(&blocks(2, 1), 4096).unwrap();
    device.write_at(&blocks(3, 1), 8192).unwrap();
    let recording = device.recorded().unwrap();

    let none = MemoryDevice::from_image(recording.crash_image(0, []));
    assert_eq!(
        read(&none, 0, 3 * 4096),
        [blocks(9, 1), blocks(0, 2)].concat()
    );
    let second_only = recording.crash_image(1, [&recording.unflushed[1]]);
    let second_only = MemoryDevice::from_image(second_only);
    assert_eq!(
        read(&second_only, 0, 3 * 4096),
        [blocks(9, 1), blocks(1, 1), blocks(3, 1)].concat()
    );
    assert_eq!(
        recording.crash_image(1, &recording.unflushed),
        device.snapshot_image()
    );
}

#[test]
fn growing_is_a_change_of_its_epoch_and_shrinking_is_none() {
    let device = MemoryDevice::recording(4096);
    device.flush().unwrap();
    device.grow(16_384).unwrap();
    device.grow(8192).unwrap();
    device.flush().unwrap();
    let recording = device.recorded().unwrap();
    assert_eq!(
        recording.epochs[1],
        [RecordedOp::Grow { len_bytes: 16_384 }]
    );
    assert_eq!(recording.crash_image(1, []).len_bytes(), 4096);
    assert_eq!(recording.crash_image(2, []).len_bytes(), 16_384);
}

#[test]
fn concurrent_writers_and_readers_see_whole_calls() {
    let device = MemoryDevice::recording(MIB);
    std::thread::scope(|scope| {
        for byte in 1..=4_u8 {
            let device = &device;
            scope.spawn(move || {
                for _ in 0..100 {
                    device.write_at(&blocks(byte, 4), 0).unwrap();
                    let seen = read(device, 0, 4 * 4096);
                    assert!(seen.iter().all(|b| *b == seen[0]) && seen[0] != 0);
                }
            });
        }
    });
    let recording = device.recorded().unwrap();
    assert_eq!(recording.unflushed.len(), 400);
    assert_eq!(
        recording.crash_image(0, &recording.unflushed),
        device.snapshot_image()
    );
}
