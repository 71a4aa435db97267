//! The remains of a killed daemon, and clearing them away.

use super::*;
use crate::{Cleaned, ExportError, Holder, clean_stale};
use cowshed_sys::loop_device;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The directory that the child process serves.
const SERVE_AT: &str = "COWSHED_TEST_SERVE_AT";

/// Not a test of its own: the process that the tests below kill.
#[test]
#[ignore = "the other tests of this module run it in a process of its own"]
fn serve_until_killed() {
    let Some(dir) = std::env::var_os(SERVE_AT) else {
        return;
    };
    let pool = FakePool::new();
    let export = Export::over(pool.clone(), Path::new(&dir), ExportOptions::default()).unwrap();
    // A unique name, so that its device differs from those of other tests.
    let name = Path::new(&dir).parent().unwrap().file_name().unwrap();
    let volume = pool.create(name.to_str().unwrap(), 64 * MIB);
    let device = export.attach_loop(&*volume, false).unwrap();
    println!("ready {}", device.display());
    thread::sleep(Duration::from_secs(600));
}

/// A daemon in a process of its own, and a guard that cleans up after it.
struct Daemon {
    process: Process,
    dir: PathBuf,
    device: PathBuf,
    _place: TempDir,
}

impl Daemon {
    fn start() -> Self {
        let place = TempDir::with_prefix("cowshed-export-").unwrap();
        let dir = place.path().join("volumes");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "--test-threads=1"])
            .arg("tests::stale::serve_until_killed")
            .env(SERVE_AT, &dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let process = Process(child);
        let device = output.lines().find_map(|line| {
            // The test runner may have printed the test's name on the same line.
            let line = line.unwrap();
            line.split_once("ready ")
                .map(|(_, device)| PathBuf::from(device))
        });
        Self {
            process,
            dir,
            device: device.expect("the daemon serves"),
            _place: place,
        }
    }

    fn kill(&mut self) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
    }

    /// Returns true if the daemon's device still has its file, of which the kernel may know only
    /// the name.
    fn is_attached(&self) -> bool {
        let name = self
            .dir
            .parent()
            .unwrap()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap();
        let attached = loop_device::attached().unwrap();
        attached.iter().any(|(device, path)| {
            let file = path.file_name().unwrap().to_str().unwrap();
            device.path() == self.device && file.starts_with(name)
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
        let _ = clean_stale(&self.dir);
    }
}

#[test]
fn a_killed_daemons_mount_and_devices_are_cleared_away() {
    let mut daemon = Daemon::start();
    let running = clean_stale(&daemon.dir);
    assert!(
        matches!(running, Err(ExportError::Served { .. })),
        "{running:?}"
    );
    assert!(daemon.is_attached());

    daemon.kill();
    assert!(mount::is_dead(&daemon.dir).unwrap());
    assert!(daemon.is_attached());
    let cleaned = clean_stale(&daemon.dir).unwrap();
    assert_eq!(
        cleaned,
        Cleaned {
            mounts: 1,
            detached: vec![daemon.device.clone()],
            busy: Vec::new()
        }
    );
    assert!(!daemon.is_attached());
    assert!(mount::mount_at(&daemon.dir).unwrap().is_none());
    assert_eq!(clean_stale(&daemon.dir).unwrap(), Cleaned::default());
}

#[test]
fn a_new_export_takes_the_place_of_a_killed_one() {
    let mut daemon = Daemon::start();
    daemon.kill();
    let pool = FakePool::new();
    let volume = pool.create("mine", MIB);
    let export = Export::over(pool, &daemon.dir, ExportOptions::default()).unwrap();
    assert_eq!(export.cleaned().detached, [daemon.device.clone()]);
    assert_eq!(
        std::fs::metadata(export.file_path(&*volume)).unwrap().len(),
        MIB
    );
    export.unmount().unwrap();
}

#[test]
fn a_file_system_on_a_killed_daemons_device_is_named() {
    let mut daemon = Daemon::start();
    run("mkfs.ext4", &[Path::new("-q"), &daemon.device]);
    let place = TempDir::with_prefix("cowshed-export-").unwrap();
    let mounted = Ext4::mount(&daemon.device, place.path().to_owned());
    daemon.kill();
    let cleaned = clean_stale(&daemon.dir).unwrap();
    assert_eq!((cleaned.mounts, cleaned.detached.len()), (1, 0));
    assert_eq!(cleaned.busy.len(), 1);
    assert_eq!(cleaned.busy[0].device, daemon.device);
    assert!(
        cleaned.busy[0]
            .by
            .0
            .contains(&Holder::Mount(place.path().to_owned()))
    );
    assert!(daemon.is_attached());

    // Once its last user is gone, the kernel detaches the device.
    mounted.unmount();
    let deadline = Instant::now() + Duration::from_secs(10);
    while daemon.is_attached() {
        assert!(Instant::now() < deadline, "the device is still attached");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_is_not_a_dead_cowshed_mount_is_left_alone() {
    let place = TempDir::with_prefix("cowshed-export-").unwrap();
    assert_eq!(
        clean_stale(&place.path().join("missing")).unwrap(),
        Cleaned::default()
    );

    // A foreign loop device on a regular file below the directory.
    let file = place.path().join("disk");
    File::create(&file).unwrap().set_len(MIB).unwrap();
    let shown = run("losetup", &[Path::new("--show"), Path::new("-f"), &file]);
    let device = PathBuf::from(shown.trim());
    let cleaned = clean_stale(place.path());
    let attached = loop_device::attached().unwrap();
    run("losetup", &[Path::new("-d"), &device]);
    assert_eq!(cleaned.unwrap(), Cleaned::default());
    assert!(
        attached
            .iter()
            .any(|(found, path)| found.path() == device && *path == file)
    );
}
