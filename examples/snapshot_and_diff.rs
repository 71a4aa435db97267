//! Makes a pool in a file, writes, takes a snapshot, and reads from the maps what has changed
//! since.
//!
//! `cargo run --example snapshot_and_diff [POOL]`; without a name the pool is in a temporary
//! folder.

use cowshed_engine::{CreateFile, CreateOptions, FileDevice, Name, OpenOptions, Pool};
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = std::env::args_os()
        .nth(1)
        .map_or_else(|| folder.path().join("pool"), PathBuf::from);
    // The file is sparse: it takes from its file system what is written to it.
    let device = FileDevice::create(&path, 1 << 30, CreateFile::default())?;
    Pool::create(&device, &CreateOptions::default())?;
    let pool = Pool::open(Arc::new(device), &OpenOptions::default())?;

    let disk = pool.create_volume(&Name::new("disk")?, 10 << 30)?;
    disk.write_at(&[1; 1 << 20], 0)?;
    let before = pool.snapshot(&disk, &Name::new("disk@monday")?)?;

    // A block in the middle of what is there, and one where there was nothing.
    disk.write_at(&[2; 4096], 512 << 10)?;
    disk.write_at(b"a few bytes", 5 << 30)?;
    // Until here, a power cut may lose what was written; not from here on.
    pool.flush()?;

    // In time proportional to what differs, whatever the size of the volumes.
    let changed = pool.diff(&before, &disk)?;
    for extent in &changed {
        println!(
            "changed: {} bytes from {}",
            extent.len_bytes, extent.offset_bytes
        );
    }
    assert_eq!(changed.len(), 2);

    let mut old = [0; 4096];
    before.read_at(&mut old, 512 << 10)?;
    assert_eq!(old, [1; 4096], "the snapshot keeps what it had");
    pool.close()?;
    Ok(())
}
