//! What the host stores ahead of writes, and how much of its memory a record makes it write.

use super::*;

#[test]
fn gaps_are_filled_and_what_is_there_stays() {
    both_ways(|device| {
        let bytes = blocks(3, 2);
        device.write_at(&bytes, 2 * MIB).unwrap();
        device.flush().unwrap();
        let before = device.host_bytes().unwrap();
        device.fill_gaps(MIB, 2 * MIB);
        device.flush().unwrap();
        let after = device.host_bytes().unwrap();
        if geometry::records_first_writes(&device.buffered) {
            assert!(after >= before + 2 * MIB - 8192, "{before}, {after}");
        } else {
            assert_eq!(after, before);
        }
        assert!(read(device, 2 * MIB, 8192) == bytes);
        assert!(read(device, MIB, 4096).iter().all(|byte| *byte == 0));
        // What lies outside of the file is left alone.
        device.fill_gaps(15 * MIB, 2 * MIB);
        device.fill_gaps(u64::MAX - 4095, 4096);
        assert_eq!(device.buffered.metadata().unwrap().len(), 16 * MIB);
    });
}

/// Returns the number of bytes that the calling thread has had the host write, in the pieces in which
/// the host keeps them.
fn dirtied_bytes() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    line.unwrap().parse().unwrap()
}

#[test]
fn a_record_has_the_host_write_one_page_whatever_was_read_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let (device, path) = create(&folder, 16 * MIB, CreateFile::default());
    device.write_at(&pattern(12 << 20), 0).unwrap();
    device.flush().unwrap();
    drop(device);
    let device = FileDevice::open(&path, FileOptions::default()).unwrap();
    device.map_log(MIB, 10 * MIB).unwrap();
    let is_mapped = matches!(device.log.get(), Some(LogRegion::Mapped(_)));
    if !is_mapped || !geometry::records_first_writes(&device.buffered) {
        println!(
            "the host of temporary files maps no log, or keeps no account: nothing is seen here"
        );
        return;
    }
    device.forget(0..16 * MIB);
    // The host reads ahead more and more, and keeps that in large pieces.
    let mut before = Vec::new();
    for at in (0..12 * MIB).step_by(64 << 10) {
        before.extend(read(&device, at, 64 << 10));
    }
    for offset_bytes in [0, 5 * MIB, 9 * MIB] {
        let dirtied = dirtied_bytes();
        device.store_log(offset_bytes, &[9; 100]).unwrap();
        let dirtied = dirtied_bytes() - dirtied;
        assert!(dirtied <= 4096, "{dirtied}");
        let at = usize::try_from(MIB + offset_bytes).unwrap();
        before[at..at + 100].fill(9);
    }
    device.flush().unwrap();
    assert!(read(&device, 0, 12 << 20) == before);
}
