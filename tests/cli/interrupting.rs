//! Commands whose client is gone: whatever they are waiting for, they end, and the daemon gets back
//! what they held.

use crate::harness::{Bench, Daemon, Reaped, eventually, noise};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

/// A pool with an image, a container and a volume, and a named pipe that no other process opens.
struct Scene {
    bench: Bench,
    daemon: Daemon,
    pipe: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let bench = Bench::with_pool("512M");
        let root = bench.path("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/large"), noise(4 << 20, 1)).unwrap();
        fs::write(bench.path("disk.raw"), noise(4 << 20, 2)).unwrap();
        let pipe = bench.path("pipe");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        let daemon = bench.serve();
        bench.ok([
            "image",
            "import",
            root.to_str().unwrap(),
            "--name",
            "mine:1",
        ]);
        bench.ok(["container", "create", "mine:1", "--name", "c"]);
        let disk = bench.path("disk.raw");
        bench.ok(["volume", "import", "disk", disk.to_str().unwrap()]);
        Self {
            bench,
            daemon,
            pipe,
        }
    }

    /// Returns commands that wait for the other end of a pipe without limit; the names of the
    /// standard streams stand for pipes that are open and idle.
    fn waiting(&self) -> Vec<Vec<&str>> {
        let pipe = self.pipe.to_str().unwrap();
        vec![
            vec!["volume", "export", "disk", pipe],
            vec!["volume", "export", "disk", "-"],
            vec!["volume", "import", "new", pipe],
            vec!["volume", "import", "new", "-"],
            vec!["image", "export", "mine:1", pipe],
            vec!["image", "export", "mine:1", "-"],
            vec!["image", "import", pipe],
            vec!["image", "import", "-"],
            vec!["container", "cp", "c:/etc", "-"],
            vec!["container", "cp", "-", "c:/etc"],
        ]
    }

    /// Starts a command and waits until the daemon runs it.
    fn start(&self, arguments: &[&str]) -> Reaped {
        let mut command = self.bench.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let client = Reaped(command.stderr(Stdio::null()).spawn().unwrap());
        eventually("the command", || self.running() == 1);
        client
    }

    /// Returns the number of commands that the daemon runs.
    fn running(&self) -> usize {
        let worker = self.daemon.worker().unwrap();
        let threads = fs::read_dir(format!("/proc/{worker}/task")).unwrap();
        let names = threads.flatten().map(|thread| {
            // A thread that ends meanwhile has no name any more.
            fs::read_to_string(thread.path().join("comm")).unwrap_or_default()
        });
        names.filter(|name| name.trim() == "command").count()
    }

    fn left(&self) -> Vec<String> {
        let mut left = self.bench.volumes();
        left.retain(|name| name.starts_with("work/") || name.starts_with("unfinished/"));
        left
    }
}

#[test]
fn a_command_ends_with_its_killed_client_whatever_it_waits_for() {
    let scene = Scene::new();
    for arguments in scene.waiting() {
        let mut client = scene.start(&arguments);
        client.0.kill().unwrap();
        // The other ends of its pipes are still open and idle.
        eventually(&format!("the end of {arguments:?}"), || {
            scene.running() == 0
        });
        assert!(scene.left().is_empty(), "{arguments:?}: {:?}", scene.left());
        // The container is no longer locked.
        scene.bench.ok(["container", "diff", "c"]);
    }
    scene.daemon.stop();
    scene.bench.expect_sound();
}

#[test]
fn a_daemon_that_is_told_to_stop_ends_commands_whatever_they_wait_for() {
    let scene = Scene::new();
    let pipe = scene.pipe.to_str().unwrap();
    let export = scene.start(&["image", "export", "mine:1", pipe]);
    let copy = {
        let mut command = scene.bench.command(["container", "cp", "c:/etc", "-"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Reaped(command.stderr(Stdio::null()).spawn().unwrap())
    };
    eventually("the second command", || scene.running() == 2);
    let Scene { bench, daemon, .. } = scene;
    daemon.stop();
    drop((export, copy));
    let mut left = bench.volumes();
    left.retain(|name| name.starts_with("work/"));
    assert!(left.is_empty(), "{left:?}");
    bench.expect_sound();
}

#[test]
fn a_command_that_waits_for_a_locked_container_ends_with_its_client() {
    let scene = Scene::new();
    let holder = scene.start(&["container", "cp", "-", "c:/etc"]);
    let mut command = scene.bench.command(["container", "commit", "c", "c:1"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut waiting = Reaped(command.spawn().unwrap());
    eventually("the second command", || scene.running() == 2);
    waiting.0.kill().unwrap();
    eventually("the end of what waits", || scene.running() == 1);
    drop(holder);
    eventually("the end of the holder", || scene.running() == 0);
    let images = scene.bench.json(["image", "ls"]);
    assert_eq!(images.as_array().unwrap().len(), 1, "{images}");
    scene.daemon.stop();
}
