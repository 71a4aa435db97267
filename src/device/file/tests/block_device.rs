//! The device on a block device: a loop device for each test.

use super::*;

/// A loop device over a file, detached when the test ends, however it ends.
struct LoopDevice {
    path: PathBuf,
    backing: PathBuf,
    _folder: TempDir,
}

impl LoopDevice {
    fn new(len_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backing = folder.path().join("backing");
        File::create(&backing).unwrap().set_len(len_bytes).unwrap();
        let printed = run("losetup", &["-f", "--show", text(&backing)]);
        Self {
            path: PathBuf::from(printed.trim()),
            backing,
            _folder: folder,
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
        // The backing file shows what has left the page cache of the device: all of it.
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
        Err(Error::InvalidSize { max_bytes, .. }) if max_bytes == 4 * MIB
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
    assert!(matches!(too_long, Err(Error::InvalidSize { .. })));
    let device = FileDevice::create(&host.path, MIB, CreateFile::default()).unwrap();
    assert_eq!(device.len_bytes(), 4 * MIB);
    assert_eq!(read(&device, 0, 4096), blocks(6, 1));
}
