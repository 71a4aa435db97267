//! Full pools through the kernel: through files, and through file systems on loop devices.

use crate::bench::{BLOCK, MIB, block, eventually, expect_sound, fill, name, verify, waiting};
use cowshed_engine::{CreateOptions, FullOptions, OpenOptions, Pool, Volume};
use cowshed_export::{Export, ExportError, ExportOptions};
use cowshed_format::device::{CreateFile, FileDevice, FileOptions};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const PUNCH: FallocateFlags =
    FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);

/// A pool in a file with its volumes mounted. The mounts are dropped first, then the export, then
/// the folder.
struct Stage {
    mounts: Vec<PathBuf>,
    export: Export,
    pool: Pool,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new(pool_bytes: u64, full: FullOptions) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cowshed-full-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let path = folder.path().join("pool");
        let device = FileDevice::create(&path, pool_bytes, CreateFile::default()).unwrap();
        Pool::create(&device, &CreateOptions::default()).unwrap();
        let open = OpenOptions {
            full,
            ..OpenOptions::default()
        };
        let pool = Pool::open(Arc::new(device), &open).unwrap();
        let options = ExportOptions {
            threads: Some(2),
            ..ExportOptions::default()
        };
        let export = Export::mount(pool.clone(), &folder.path().join("volumes"), options).unwrap();
        Self {
            mounts: Vec::new(),
            export,
            pool,
            folder,
        }
    }

    fn volume(&self, text: &str, size_bytes: u64) -> Volume {
        self.pool.create_volume(&name(text), size_bytes).unwrap()
    }

    fn file(&self, volume: &Volume) -> File {
        let path = self.export.file_path(volume);
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// Mounts the ext4 of a volume, and creates it first if `make` is set.
    fn ext4(&mut self, volume: &Volume, make: bool) -> PathBuf {
        let device = self.export.attach_loop(volume, false).unwrap();
        if make {
            run(
                "mkfs.ext4",
                &[
                    "-q",
                    "-E",
                    "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
                ],
                &device,
            );
        } else {
            check_ext4(&device);
        }
        let at = self.folder.path().join(format!("mount-{}", volume.id()));
        fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount").arg(&device).arg(&at).status();
        assert!(mounted.unwrap().success());
        self.mounts.push(at.clone());
        at
    }

    fn unmount(&mut self, at: &Path, volume: &Volume) {
        let unmounted = Command::new("umount").arg(at).status();
        assert!(unmounted.unwrap().success());
        self.mounts.retain(|mount| mount != at);
        // Refused writes that have not been reported yet are reported here, once.
        if let Err(error) = self.export.detach(volume) {
            let told = matches!(
                &error,
                ExportError::Io {
                    action: "flush",
                    ..
                }
            );
            assert!(told, "{error}");
            self.export.detach(volume).unwrap();
        }
    }

    /// Unmounts everything, closes the pool, and runs the offline check.
    fn finish(self) {
        assert!(self.mounts.is_empty());
        self.export.unmount().unwrap();
        self.pool.close().unwrap();
        let path = self.folder.path().join("pool");
        // On a copy: this handle of the pool still holds the file's lock.
        let copy = self.folder.path().join("copy");
        fs::copy(&path, &copy).unwrap();
        expect_sound(&FileDevice::open(&copy, FileOptions::default()).unwrap());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.pool.stop_holding();
        for mount in self.mounts.drain(..) {
            let _ = Command::new("umount").arg("-l").arg(mount).status();
        }
    }
}

fn run(program: &str, arguments: &[&str], device: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .arg(device)
        .output()
        .unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
}

/// Lets e2fsck replay the journal and repair what an aborted one left; nothing may remain.
fn check_ext4(device: &Path) {
    let fsck = Command::new("e2fsck")
        .args(["-f", "-y"])
        .arg(device)
        .output()
        .unwrap();
    assert!(matches!(fsck.status.code(), Some(0 | 1)), "{fsck:?}");
    let again = Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(device)
        .output()
        .unwrap();
    assert!(again.status.success(), "{again:?}");
}

fn code<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

/// Writes a file and makes it durable.
fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[test]
fn files_of_a_full_pool_answer_enospc_are_trimmed_and_take_writes_again() {
    let stage = Stage::new(16 * MIB, FullOptions::default());
    let (volume, other) = (stage.volume("v", 64 * MIB), stage.volume("other", 64 * MIB));
    let file = stage.file(&volume);
    let other_file = stage.file(&other);
    for index in 0..100 {
        other_file
            .write_all_at(&block(index), index * BLOCK)
            .unwrap();
    }
    let mut took = 0;
    let refused = loop {
        match file.write_all_at(&block(1000 + took), took * BLOCK) {
            Ok(()) => took += 1,
            Err(error) => break error.raw_os_error(),
        }
    };
    assert_eq!(refused, Some(libc::ENOSPC));
    assert_eq!(
        code(other_file.write_all_at(&block(1), 200 * BLOCK)),
        Some(libc::ENOSPC)
    );
    verify(&volume, 1000, took);
    // Parts of blocks first, which take space before they free some.
    fallocate(&file, PUNCH, 1000, 6000).unwrap();
    fallocate(&other_file, PUNCH, 100, 200).unwrap();
    fallocate(&file, PUNCH, 0, 50 * 4096).unwrap();
    for index in 0..40 {
        file.write_all_at(&block(1000 + index), index * BLOCK)
            .unwrap();
    }
    file.sync_all().unwrap();
    verify(&volume, 1000, 40);
    drop((file, other_file, other));
    // The kernel releases a closed file some time after close(2).
    eventually("the removal of a closed volume", || {
        stage
            .pool
            .remove(&stage.pool.volume("other").unwrap())
            .is_ok()
    });
    let file = stage.file(&volume);
    for index in 40..120 {
        file.write_all_at(&block(1000 + index), index * BLOCK)
            .unwrap();
    }
    verify(&volume, 1000, took);
    drop((file, volume));
    stage.finish();
}

#[test]
fn ext4_on_a_full_pool_fails_writes_keeps_what_was_synced_and_recovers() {
    let mut stage = Stage::new(64 * MIB, FullOptions::default());
    let (volume, ballast) = (
        stage.volume("v", 256 * MIB),
        stage.volume("ballast", 1 << 30),
    );
    let at = stage.ext4(&volume, true);
    let kept: Vec<_> = (0..1024).flat_map(block).collect();
    write_durably(&at.join("kept"), &kept).unwrap();
    for index in 0..2000 {
        ballast.write_at(&block(index), index * BLOCK).unwrap();
    }
    let too_much: Vec<_> = (0..MIB * 64 / BLOCK)
        .flat_map(|seed| block(seed + 5000))
        .collect();
    let refused = code(write_durably(&at.join("too-much"), &too_much)).unwrap();
    // Depending on whether the file's own blocks or the journal's were refused, or the file system
    // was shut down because of that.
    let expected = [libc::ENOSPC, libc::EIO, libc::EROFS];
    assert!(
        expected.contains(&refused),
        "{}",
        io::Error::from_raw_os_error(refused)
    );
    stage.unmount(&at, &volume);
    stage.pool.remove(&ballast).unwrap();
    drop(ballast);
    let at = stage.ext4(&volume, false);
    assert!(
        fs::read(at.join("kept")).unwrap() == kept,
        "what was synced"
    );
    let _ = fs::remove_file(at.join("too-much"));
    write_durably(&at.join("more"), &kept).unwrap();
    stage.unmount(&at, &volume);
    let at = stage.ext4(&volume, false);
    assert!(fs::read(at.join("more")).unwrap() == kept);
    stage.unmount(&at, &volume);
    drop(volume);
    stage.finish();
}

#[test]
fn held_writes_of_an_ext4_go_on_once_another_is_trimmed_through_the_same_mount() {
    let mut stage = Stage::new(96 * MIB, waiting(Duration::from_secs(600)));
    let (volume, other) = (
        stage.volume("v", 128 * MIB),
        stage.volume("other", 128 * MIB),
    );
    let ballast = stage.volume("ballast", 1 << 30);
    let (at, other_at) = (stage.ext4(&volume, true), stage.ext4(&other, true));
    let old: Vec<_> = (0..MIB * 24 / BLOCK).flat_map(block).collect();
    write_durably(&other_at.join("old"), &old).unwrap();
    fs::remove_file(other_at.join("old")).unwrap();
    run("sync", &["-f"], &other_at);
    let took = fill(&ballast, 1 << 32);
    let new: Vec<_> = (0..MIB * 12 / BLOCK)
        .flat_map(|seed| block(seed + 9000))
        .collect();
    thread::scope(|scope| {
        let held = scope.spawn(|| write_durably(&at.join("new"), &new));
        eventually("a held write", || stage.pool.status().unwrap().holds_writes);
        // By now the kernel has sent more writes than there are threads to serve the mount.
        run("fstrim", &[], &other_at);
        held.join().unwrap().unwrap();
    });
    assert!(fs::read(at.join("new")).unwrap() == new);
    verify(&ballast, 1 << 32, took);
    stage.unmount(&at, &volume);
    stage.unmount(&other_at, &other);
    let at = stage.ext4(&volume, false);
    assert!(fs::read(at.join("new")).unwrap() == new);
    stage.unmount(&at, &volume);
    drop((volume, other, ballast));
    stage.finish();
}

#[test]
fn a_held_write_of_a_loop_device_goes_on_once_the_same_device_is_discarded() {
    let stage = Stage::new(32 * MIB, waiting(Duration::from_secs(600)));
    let volume = stage.volume("v", 256 * MIB);
    let took = fill(&volume, 0);
    let device = stage.export.attach_loop(&volume, false).unwrap();
    let new: Vec<_> = (0..MIB / BLOCK)
        .flat_map(|seed| block(seed + 90_000))
        .collect();
    let (path, bytes) = (device.clone(), new.clone());
    let held = thread::spawn(move || {
        let file = File::options().write(true).open(path)?;
        file.write_all_at(&bytes, 128 * MIB)?;
        file.sync_all()
    });
    eventually("a held write", || stage.pool.status().unwrap().holds_writes);
    let mut discard = Command::new("blkdiscard")
        .args(["--offset", "0", "--length", "8388608"])
        .arg(&device)
        .spawn()
        .unwrap();
    // If they waited for each other, dropping the stage would end the wait.
    eventually("the end of the held write", || held.is_finished());
    assert!(discard.wait().unwrap().success());
    held.join().unwrap().unwrap();
    let mut found = vec![0; new.len()];
    volume.read_at(&mut found, 128 * MIB).unwrap();
    assert!(found == new);
    for index in 2048..took {
        volume.read_at(&mut found[..4096], index * BLOCK).unwrap();
        assert!(found[..4096] == block(index), "block {index}");
    }
    stage.export.detach(&volume).unwrap();
    drop(volume);
    stage.finish();
}
