//! The part of a volume's file that is in the kernel's memory: pages of snapshots and of shared
//! mappings.

use super::*;

/// Opens a file for reading and writing.
fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_snapshots_file_is_read_ahead_and_a_volumes_file_never_cached() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", MIB);
    let bytes = pattern(5, 1 << 20);
    volume.write_at(&bytes, 0).unwrap();
    let path = fixture.export.file_path(&*volume);
    let file = File::open(&path).unwrap();
    let mut found = vec![0; 4096];
    file.read_exact_at(&mut found, 0).unwrap();
    volume.write_at(&[9; 4096], 0).unwrap();
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, [9; 4096], "a changed block was read from a cache");
    drop(file);
    assert_eq!(volume.largest_read.load(SeqCst), 4096);
    volume.freeze();
    let file = File::open(&path).unwrap();
    for (index, wanted) in bytes.chunks(4096).enumerate().skip(1) {
        file.read_exact_at(&mut found, index as u64 * 4096).unwrap();
        assert!(found == wanted, "block {index}");
    }
    assert!(volume.largest_read.load(SeqCst) >= 64 << 10);
}

#[test]
fn a_shared_mapping_is_written_to_the_volume() {
    let fixture = Fixture::new();
    let volume = fixture.pool.create("v", MIB + 512);
    let file = open(&fixture.export.file_path(&*volume));
    let len = (1 << 20) + 512;
    let mapping = match cowshed_sys::mapped::Mapped::new(&file, 0, len) {
        Ok(mapping) => mapping,
        // Before Linux 6.6.
        Err(error) => return assert_eq!(error.raw_os_error(), Some(libc::ENODEV)),
    };
    let bytes = pattern(6, 10_000);
    let end = len - bytes.len();
    for at in [0, 4091, end] {
        mapping.store(at, &bytes);
    }
    // A direct read sees the store, and so does a snapshot that writes it back first.
    let mut found = vec![0; bytes.len()];
    file.read_exact_at(&mut found, 4091).unwrap();
    assert!(found == bytes);
    fixture.export.write_back(&*volume).unwrap();
    for at in [4091, end] {
        assert!(volume.bytes(at as u64, bytes.len()) == bytes, "at {at}");
    }
    // A direct write between two stores into the same page loses neither.
    mapping.store(8192, &[6; 16]);
    file.write_all_at(&[7; 512], 8192 + 1024).unwrap();
    mapping.store(8192 + 2048, &[8; 16]);
    file.sync_all().unwrap();
    assert_eq!(volume.bytes(8192, 16), [6; 16]);
    assert_eq!(volume.bytes(8192 + 1024, 512), [7; 512]);
    assert_eq!(volume.bytes(8192 + 2048, 16), [8; 16]);
}
