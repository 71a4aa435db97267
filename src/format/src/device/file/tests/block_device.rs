//! The device on a block device: a loop device for each test.

use super::*;

/// A loop device over a file, detached when the test ends, also by a panic.
struct LoopDevice {
    path: PathBuf,
    backing: PathBuf,
    _folder: Option<TempDir>,
}

impl LoopDevice {
    fn new(len_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backing = folder.path().join("backing");
        File::create(&backing).unwrap().set_len(len_bytes).unwrap();
        let mut made = Self::over(&backing, &[]);
        made._folder = Some(folder);
        made
    }

    fn over(backing: &Path, options: &[&str]) -> Self {
        let mut arguments = options.to_vec();
        arguments.extend(["-f", "--show", text(backing)]);
        let printed = run("losetup", &arguments);
        Self {
            path: PathBuf::from(printed.trim()),
            backing: backing.to_owned(),
            _folder: None,
        }
    }

    fn lengthen(&self, len_bytes: u64) {
        let backing = File::options().write(true).open(&self.backing).unwrap();
        backing.set_len(len_bytes).unwrap();
        run("losetup", &["-c", text(&self.path)]);
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
    }
}

/// Asserts that every other name of a pool is refused while it is open as `first`, and accepted
/// once it is closed.
fn assert_one_opener(first: &Path, others: &[&Path]) {
    let read_only = FileOptions {
        read_only: true,
        ..FileOptions::default()
    };
    let holder = lock_pool(first).unwrap();
    for other in others {
        for options in [FileOptions::default(), read_only] {
            let refused = FileDevice::open(other, options);
            assert!(
                matches!(refused, Err(Error::InUse)),
                "{} while {} is open: {:?}",
                other.display(),
                first.display(),
                refused.err()
            );
        }
    }
    drop(holder);
    for other in others {
        FileDevice::open(other, FileOptions::default()).unwrap();
    }
}

#[test]
fn a_pool_is_opened_once_as_a_file_and_through_its_loop_devices() {
    let host = LoopDevice::new(16 * MIB);
    let second = LoopDevice::over(&host.backing, &[]);
    let stacked = LoopDevice::over(&host.path, &[]);
    let names = [&host.backing, &host.path, &second.path, &stacked.path];
    for first in names {
        let others: Vec<&Path> = names
            .iter()
            .filter(|name| **name != first)
            .map(|name| name.as_path())
            .collect();
        assert_one_opener(first, &others);
    }
}

#[test]
fn a_renamed_file_behind_a_loop_device_is_still_the_same_pool() {
    let host = LoopDevice::new(16 * MIB);
    let renamed = host.backing.with_extension("renamed");
    fs::rename(&host.backing, &renamed).unwrap();
    assert_one_opener(&host.path, &[&renamed]);
    assert_one_opener(&renamed, &[&host.path]);
}

#[test]
fn readers_share_a_pool_under_its_several_names() {
    let host = LoopDevice::new(16 * MIB);
    let read_only = FileOptions {
        read_only: true,
        ..FileOptions::default()
    };
    let _first = FileDevice::open(&host.path, read_only).unwrap();
    let _second = FileDevice::open(&host.backing, read_only).unwrap();
    let writer = FileDevice::open(&host.backing, FileOptions::default());
    assert!(matches!(writer, Err(Error::InUse)));
}

#[test]
fn pools_side_by_side_in_one_file_do_not_refuse_each_other() {
    let host = LoopDevice::new(16 * MIB);
    let offset = (8 * MIB).to_string();
    let lower = LoopDevice::over(&host.backing, &["--sizelimit", &offset]);
    let upper = LoopDevice::over(&host.backing, &["--offset", &offset]);
    let _lower = FileDevice::open(&lower.path, FileOptions::default()).unwrap();
    let _upper = FileDevice::open(&upper.path, FileOptions::default()).unwrap();
    let whole = FileDevice::open(&host.backing, FileOptions::default());
    assert!(matches!(whole, Err(Error::InUse)));
}

#[test]
fn a_block_device_reads_writes_maps_and_discards() {
    for direct in [false, true] {
        let host = LoopDevice::new(16 * MIB);
        let device = FileDevice::open(
            &host.path,
            FileOptions {
                direct,
                read_only: false,
            },
        )
        .unwrap();
        assert_eq!(device.len_bytes(), 16 * MIB);
        assert_eq!(device.host_bytes().unwrap(), 16 * MIB);
        let data = pattern(2 * BOUNCE_BYTES);
        device.write_at(&data, 4 * MIB).unwrap();
        device.map_log(MIB, MIB).unwrap();
        device.store_log(5000, &[7; 5000]).unwrap();
        device.flush().unwrap();
        // The backing file shows what has left the device's page cache: everything.
        let backing = fs::read(&host.backing).unwrap();
        let (data_at, log_at) = (4 << 20, (1 << 20) + 5000);
        assert!(backing[data_at..data_at + data.len()] == data);
        assert_eq!(backing[log_at..log_at + 5000], [7; 5000]);
        assert!(read(&device, 4 * MIB, data.len()) == data);

        let taken = fs::metadata(&host.backing).unwrap().blocks();
        device.discard(4 * MIB, 2 * MIB).unwrap();
        let left = fs::metadata(&host.backing).unwrap().blocks();
        assert!(
            left + 4000 < taken,
            "discard did not reach the host: {taken} to {left}"
        );
        device.write_at(&data, 4 * MIB).unwrap();
        assert!(read(&device, 4 * MIB, data.len()) == data);
    }
}

#[test]
fn a_block_device_in_use_is_refused_under_any_name() {
    let host = LoopDevice::new(4 * MIB);
    let folder = tempfile::tempdir().unwrap();
    let alias = folder.path().join("alias");
    run("cp", &["-a", text(&host.path), text(&alias)]);
    let device = FileDevice::open(&host.path, FileOptions::default()).unwrap();
    for path in [&host.path, &alias] {
        assert!(matches!(
            FileDevice::open(path, FileOptions::default()),
            Err(Error::InUse)
        ));
    }
    drop(device);
    FileDevice::open(&alias, FileOptions::default()).unwrap();
}

#[test]
fn a_block_device_grows_only_with_its_host() {
    let host = LoopDevice::new(4 * MIB);
    let device = FileDevice::open(&host.path, FileOptions::default()).unwrap();
    assert!(matches!(
        device.grow(8 * MIB),
        Err(Error::BeyondDevice { device_bytes }) if device_bytes == 4 * MIB
    ));
    host.lengthen(8 * MIB);
    device.grow(8 * MIB).unwrap();
    assert_eq!(device.len_bytes(), 8 * MIB);
    device.write_at(&blocks(1, 1), 8 * MIB - 4096).unwrap();
}

#[test]
fn creating_takes_a_block_device_whole_and_keeps_its_bytes() {
    let host = LoopDevice::new(4 * MIB);
    let device = FileDevice::open(&host.path, FileOptions::default()).unwrap();
    device.write_at(&blocks(6, 1), 0).unwrap();
    drop(device);
    let too_long = FileDevice::create(&host.path, 8 * MIB, CreateFile::default());
    assert!(matches!(too_long, Err(Error::BeyondDevice { .. })));
    let device = FileDevice::create(&host.path, MIB, CreateFile::default()).unwrap();
    assert_eq!(device.len_bytes(), 4 * MIB);
    assert_eq!(read(&device, 0, 4096), blocks(6, 1));
}
