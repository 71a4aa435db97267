//! If the daemon's worker dies, users see a pause; if its keeper dies, the worker goes on; and if
//! workers keep dying, users get errors.

use crate::harness::{
    Bench, Daemon, clear_mounts, eventually, host, is_mounted, is_over, kill_and_wait, loops_below,
    mounts_below, noise,
};
use crate::load::{check_device, check_files, goes_on, in_folder, on_device, serving};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Creates a small image, and a container `one` of it.
fn container(bench: &Bench) {
    let root = bench.path("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/large"), noise(2 << 20, 1)).unwrap();
    let root = root.to_str().unwrap();
    bench.ok(["image", "import", root, "--name", "mine:1"]);
    bench.ok(["container", "create", "mine:1", "--name", "one"]);
}

fn mount(bench: &Bench, name: &str) -> PathBuf {
    let answer = bench.json(["container", "mount", name]);
    answer["path"].as_str().unwrap().into()
}

/// Kills the worker and waits until another one takes commands.
fn kill_worker(bench: &Bench, daemon: &Daemon) {
    let before = serving(bench)["worker"].clone();
    daemon.kill_worker();
    eventually("another worker", || serving(bench)["worker"] != before);
}

/// Asserts that nothing of the daemon is left on the host, and that the pool is sound.
fn expect_nothing_left(bench: &Bench, volumes: &Path) {
    let state = volumes.parent().unwrap();
    assert_eq!(mounts_below(state), Vec::<PathBuf>::new());
    assert!(loops_below(volumes).is_empty(), "a loop device was left");
    assert!(!state.exists(), "{} was left", state.display());
    assert!(!bench.path("pool.sock").exists(), "the socket was left");
    let names = bench.volumes();
    assert!(
        names.iter().all(|name| !name.starts_with("work/")),
        "{names:?}"
    );
    bench.expect_sound();
}

#[test]
fn a_worker_that_is_killed_again_and_again_is_a_pause_for_a_device() {
    const KILLS: u64 = 12;
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    let volumes = daemon.mount.clone();
    bench.ok(["volume", "create", "disk", "--size", "8M"]);
    let device = bench.ok(["attach", "disk"]).trim().to_owned();
    let load = on_device(&device);
    for kill in 0..KILLS {
        goes_on(&load, 20 + 150 * (kill % 4));
        kill_worker(&bench, &daemon);
        goes_on(&load, 1);
    }
    let versions = load.end().unwrap();
    check_device(&device, &versions);
    let serving = serving(&bench);
    assert_eq!(serving["restarts"], KILLS, "{serving}");
    assert_eq!(serving["keeper"], daemon.pid(), "{serving}");
    assert_eq!(serving["worker"], daemon.worker().unwrap(), "{serving}");
    // The attachment is still known, exactly once.
    assert_eq!(bench.json(["attach", "--ls"]).as_array().unwrap().len(), 1);
    bench.ok(["detach", "disk"]);
    bench.fails(["detach", "disk"], 1, "not attached");
    daemon.stop();
    expect_nothing_left(&bench, &volumes);
}

#[test]
fn a_worker_that_is_killed_again_and_again_is_a_pause_for_a_container() {
    const KILLS: u64 = 8;
    let bench = Bench::with_pool("1G");
    let daemon = bench.serve();
    let volumes = daemon.mount.clone();
    container(&bench);
    bench.ok(["container", "create", "mine:1", "--name", "two"]);
    let elsewhere = bench.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let one = mount(&bench, "one");
    bench.ok(["container", "mount", "two", elsewhere.to_str().unwrap()]);
    let (first, second) = (in_folder(&one), in_folder(&elsewhere));
    for _ in 0..KILLS {
        goes_on(&first, 5);
        kill_worker(&bench, &daemon);
    }
    goes_on(&second, 1);
    let (first, second) = (first.end().unwrap(), second.end().unwrap());
    check_files(&first);
    check_files(&second);
    assert!(fs::read(one.join("etc/large")).unwrap() == noise(2 << 20, 1));
    // Both are known to be mounted at their folders.
    assert_eq!(mount(&bench, "one"), one);
    assert_eq!(mount(&bench, "two"), elsewhere);
    for name in ["one", "two"] {
        bench.ok(["container", "unmount", name]);
    }
    assert!(loops_below(&volumes).is_empty(), "a loop device was left");
    check_file_systems(&bench);
    daemon.stop();
    expect_nothing_left(&bench, &volumes);
}

/// Asserts that e2fsck finds no fault in any container's file system.
fn check_file_systems(bench: &Bench) {
    for name in bench.volumes() {
        if name.starts_with("container/") {
            let file = bench.ok(["attach", &name, "--as", "file", "--read-only"]);
            host("e2fsck", ["-f", "-n", file.trim()]);
            bench.ok(["detach", &name]);
        }
    }
}

/// Asserts that a command that a kill may have interrupted was done, or reports in one line what
/// happened.
fn expect_done_or_told(output: &Output) -> bool {
    if output.status.success() {
        return true;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        said.starts_with("cowshed: ") && said.lines().count() == 1 && said.contains("restarted"),
        "{said:?}"
    );
    false
}

/// Starts a command, kills the worker in the middle of it, and repeats the command until it is done
/// or reports that it was done before. Returns true if the kill interrupted it.
fn interrupted(
    bench: &Bench,
    daemon: &Daemon,
    arguments: &[&str],
    delay: Duration,
    done_before: &str,
) -> bool {
    let mut command = bench.command(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    std::thread::sleep(delay);
    kill_worker(bench, daemon);
    if expect_done_or_told(&child.wait_with_output().unwrap()) {
        return false;
    }
    let again = bench.run(arguments);
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(
        again.status.success() || said.contains(done_before),
        "{arguments:?}: {said}"
    );
    true
}

#[test]
fn commands_that_a_kill_interrupts_say_so_work_again_and_leave_nothing() {
    let bench = Bench::with_pool("2G");
    let daemon = bench.serve();
    let volumes = daemon.mount.clone();
    container(&bench);
    bench.ok(["container", "create", "mine:1", "--name", "busy"]);
    let busy = mount(&bench, "busy");
    let load = in_folder(&busy);
    let other = bench.path("other");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("file"), noise(6 << 20, 2)).unwrap();
    let mut hits = 0;
    for round in 0..10 {
        let delay = |step: u64| Duration::from_millis((round * 13 + step * 7) % 70);
        let mut hit = |arguments: &[&str], step: u64, done_before: &str| {
            hits += u32::from(interrupted(
                &bench,
                &daemon,
                arguments,
                delay(step),
                done_before,
            ));
        };
        hit(&["container", "mount", "one"], 1, "-");
        let path = mount(&bench, "one");
        fs::write(path.join("new"), round.to_string()).unwrap();
        hit(&["container", "diff", "one"], 2, "-");
        let image = format!("mine:c{round}");
        hit(&["container", "commit", "busy", &image], 3, "exists");
        hit(&["container", "unmount", "one"], 4, "not mounted");
        let name = format!("other:{round}");
        let other = other.to_str().unwrap();
        hit(&["image", "import", other, "--name", &name], 5, "exists");
        bench.ok(["image", "inspect", &name]);
        bench.ok(["image", "inspect", &image]);
        fs::write(Path::new(other).join("file"), noise(6 << 20, 3 + round)).unwrap();
    }
    assert!(hits > 5, "only {hits} commands were interrupted");
    goes_on(&load, 3);
    let files = load.end().unwrap();
    check_files(&files);
    bench.ok(["container", "unmount", "busy"]);
    // A mount namespace of another test may have copies of the mounts for a moment.
    eventually("the loop devices' end", || loops_below(&volumes).is_empty());
    check_file_systems(&bench);
    // Nothing holds what was attached temporarily.
    bench.ok(["container", "rm", "one"]);
    bench.ok(["container", "rm", "busy"]);
    daemon.stop();
    expect_nothing_left(&bench, &volumes);
}

#[test]
fn without_its_keeper_a_worker_goes_on_and_stops_in_order() {
    let bench = Bench::with_pool("256M");
    let ready = bench.json(["serve"]);
    let (keeper, volumes) = (ready["pid"].as_u64().unwrap(), &ready["mount"]);
    let volumes = PathBuf::from(volumes.as_str().unwrap());
    let worker = u32::try_from(ready["worker"].as_u64().unwrap()).unwrap();
    bench.ok(["volume", "create", "disk", "--size", "8M"]);
    let device = bench.ok(["attach", "disk"]).trim().to_owned();
    let load = on_device(&device);
    goes_on(&load, 10);
    kill_and_wait(u32::try_from(keeper).unwrap());
    goes_on(&load, 10);
    let versions = load.end().unwrap();
    check_device(&device, &versions);
    bench.fails(["serve"], 1, "a daemon has it open");
    bench.fails(["serve", "--upgrade"], 1, "keeper");
    // The dead process is not reported as serving.
    eventually("a warning", || {
        let status = bench.json(["pool", "status"]);
        let warnings = status["warnings"].as_array().unwrap();
        let is_told =
            |warning: &serde_json::Value| warning.as_str().unwrap().contains("keeper is gone");
        status["daemon"]["keeper"].is_null() && warnings.iter().any(is_told)
    });
    let shown = bench.ok(["pool", "status"]);
    assert!(shown.contains("no keeper, worker"), "{shown}");
    assert!(!shown.contains(&format!("keeper {keeper}")), "{shown}");
    bench.ok(["detach", "disk"]);
    host("kill", ["-TERM", &worker.to_string()]);
    eventually("the worker's end", || is_over(worker));
    let log = fs::read_to_string(bench.path("pool.log")).unwrap();
    assert!(log.contains("keeper is gone"), "{log}");
    expect_nothing_left(&bench, &volumes);
}

/// These threads have no descriptor to which a handler could write, so a signal delivered to one
/// would be lost.
#[test]
fn threads_that_serve_leave_signals_to_others() {
    const REQUESTS: u64 = 1 << (1 - 1) | 1 << (2 - 1) | 1 << (15 - 1);
    let bench = Bench::with_pool("64M");
    let daemon = bench.serve();
    let threads = format!("/proc/{}/task", daemon.worker().unwrap());
    let blocked = |name: &str| -> Vec<u64> {
        let threads = fs::read_dir(&threads)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let named = threads.filter(|path| {
            fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
        });
        named
            .map(|path| {
                let status = fs::read_to_string(path.join("status")).unwrap();
                let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
                u64::from_str_radix(mask.unwrap().trim(), 16).unwrap() & REQUESTS
            })
            .collect()
    };
    let serving = blocked("fuse");
    assert!(serving.len() > 1);
    assert!(serving.iter().all(|mask| *mask == REQUESTS), "{serving:x?}");
    // The main thread; a serving thread may just have started another one, which has no name yet.
    assert!(blocked("cowshed").contains(&0));
    daemon.stop();
}

#[test]
fn a_signal_to_stop_during_a_restart_stops_in_order() {
    for pause_ms in [0, 10, 40] {
        let bench = Bench::with_pool("256M");
        let daemon = bench.serve();
        let volumes = daemon.mount.clone();
        bench.ok(["volume", "create", "disk", "--size", "8M"]);
        let device = bench.ok(["attach", "disk"]).trim().to_owned();
        let load = on_device(&device);
        goes_on(&load, 50);
        let versions = load.end().unwrap();
        daemon.kill_worker();
        std::thread::sleep(Duration::from_millis(pause_ms));
        daemon.signal("TERM");
        let (status, said) = daemon.wait();
        assert!(status.success(), "{said}");
        let next = bench.serve();
        let device = bench.ok(["attach", "disk"]).trim().to_owned();
        check_device(&device, &versions);
        bench.ok(["detach", "disk"]);
        next.stop();
        expect_nothing_left(&bench, &volumes);
    }
}

#[test]
fn a_pool_that_no_worker_can_open_ends_in_errors_and_not_in_a_hang() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    let volumes = daemon.mount.clone();
    bench.ok(["volume", "create", "disk", "--size", "8M"]);
    let device = bench.ok(["attach", "disk"]).trim().to_owned();
    let load = on_device(&device);
    goes_on(&load, 10);
    let pool = fs::File::options().write(true).open(bench.pool()).unwrap();
    let len = pool.metadata().unwrap().len();
    for offset in [0, len - 8192] {
        pool.write_all_at(&[0; 8192], offset).unwrap();
    }
    daemon.kill_worker();
    let (status, said) = daemon.wait();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("not a cowshed pool"), "{said}");
    assert!(said.contains("in a row failed"), "{said}");
    let error = load.end().unwrap_err();
    assert!(error.contains("Input/output error"), "{error}");
    eventually("the device's end", || loops_below(&volumes).is_empty());
    assert!(!is_mounted(&volumes) && !bench.path("pool.sock").exists());
    clear_mounts(&volumes);
}

/// A block device whose host has less space than the device promises; removed on drop.
struct SmallDisk {
    host: PathBuf,
    device: String,
}

impl SmallDisk {
    fn new(bench: &Bench) -> Self {
        let folder = bench.path("small");
        fs::create_dir(&folder).unwrap();
        let place = folder.to_str().unwrap();
        host(
            "mount",
            ["-t", "tmpfs", "-o", "size=64M", "cowshed-small", place],
        );
        let file = folder.join("disk");
        fs::File::create(&file).unwrap().set_len(256 << 20).unwrap();
        let device = host("losetup", ["--find", "--show", file.to_str().unwrap()]);
        Self {
            host: folder,
            device: device.trim().to_owned(),
        }
    }

    /// Fills the host.
    fn fill(&self) {
        let filler = fs::File::create(self.host.join("filler")).unwrap();
        let piece = vec![1; 1 << 20];
        for index in 0.. {
            if filler.write_all_at(&piece, index << 20).is_err() {
                return;
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .args(["--detach", &self.device])
            .status();
        clear_mounts(&self.host);
    }
}

#[test]
fn a_worker_whose_device_failed_is_followed_by_none() {
    let bench = Bench::empty();
    let disk = SmallDisk::new(&bench);
    std::os::unix::fs::symlink(&disk.device, bench.pool()).unwrap();
    bench.ok(["pool", "create", "--size", "256M"]);
    let daemon = bench.serve();
    let volumes = daemon.mount.clone();
    bench.ok(["volume", "create", "disk", "--size", "100M"]);
    let path = bench
        .ok(["attach", "disk", "--as", "file"])
        .trim()
        .to_owned();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&noise(1 << 20, 1), 0).unwrap();
    file.sync_data().unwrap();
    disk.fill();
    // The page cache takes the data; the host has no space when it is written back.
    let refused = (0..32).find_map(|index| {
        file.write_all_at(&noise(1 << 20, index), index << 20)
            .and_then(|()| file.sync_data())
            .err()
    });
    refused.expect("a flush that fails");
    daemon.kill_worker();
    let (status, said) = daemon.wait();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("no other worker is started"), "{said}");
    drop(file);
    assert!(!is_mounted(&volumes) && !bench.path("pool.sock").exists());
}

#[test]
fn a_client_waits_while_a_worker_is_followed_by_another() {
    let bench = Bench::with_pool("256M");
    let daemon = bench.serve();
    for _ in 0..5 {
        daemon.kill_worker();
        let start = Instant::now();
        bench.ok(["volume", "ls"]);
        eventually("a worker", || daemon.worker().is_some());
        assert!(start.elapsed() < crate::harness::PATIENCE);
    }
    daemon.stop();
}
