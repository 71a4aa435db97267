//! A pool in its own folder, the command on it, and a daemon that never outlives its test.

use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// The time after which a test gives up on any operation.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the path of the command's program.
pub fn program() -> PathBuf {
    crate::program()
}

/// Runs a program of the host, which must succeed.
pub fn host<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `holds` returns true.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns bytes that differ for every seed.
pub fn noise(len_bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len_bytes + 8);
    while bytes.len() < len_bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len_bytes);
    bytes
}

/// A pool in its own folder.
pub struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// Creates a folder without a pool.
    pub fn empty() -> Self {
        // Not on a memory file system, which shows no holes and has little space.
        Self::below(Path::new("/var/tmp"))
    }

    /// Creates a folder without a pool in another one.
    pub fn below(folder: &Path) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cowshed-cli-")
            .tempdir_in(folder);
        Self {
            folder: folder.unwrap(),
        }
    }

    /// Creates a folder with a new pool.
    pub fn with_pool(size: &str) -> Self {
        let bench = Self::empty();
        bench.ok(["pool", "create", "--size", size]);
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn pool(&self) -> PathBuf {
        self.path("pool")
    }

    /// Returns the command on this pool.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(program());
        command.env_remove("COWSHED_POOL").env_remove("COWSHED_LOG");
        command
            .arg("--pool")
            .arg(self.pool())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs the command, which must succeed without output on the error stream; returns its output.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the command, which must succeed, whatever its output.
    pub fn ok_quietly<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) {
        let output = self.run(arguments);
        assert!(output.status.success(), "{output:?}");
    }

    /// Runs the command with `--json`.
    pub fn json<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Value {
        let output = self.command(arguments).arg("--json").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs the command, which must fail with `status` and one line that contains `why`.
    pub fn fails<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        status: i32,
        why: &str,
    ) {
        expect_failure(&self.run(arguments), status, why);
    }

    /// Returns the names of all volumes.
    pub fn volumes(&self) -> Vec<String> {
        let list = self.json(["volume", "ls"]);
        let name = |volume: &Value| volume["name"].as_str().unwrap().to_owned();
        list.as_array().unwrap().iter().map(name).collect()
    }

    /// Asserts that a deep check finds nothing.
    pub fn expect_sound(&self) {
        let report = self.json(["pool", "check", "--deep"]);
        assert_eq!(report["clean"], true, "{report}");
        assert_eq!(report["errors"].as_array().unwrap().len(), 0, "{report}");
    }

    /// Starts a daemon on the pool.
    pub fn serve(&self) -> Daemon {
        self.serve_with([""; 0])
    }

    /// Starts a daemon with further options.
    pub fn serve_with<S: AsRef<OsStr>>(&self, options: impl IntoIterator<Item = S>) -> Daemon {
        let mut command = self.command(["serve", "--foreground", "--json"]);
        command.args(options);
        Daemon::start(command)
    }
}

/// Asserts that a failure is one line, with the right status and reason.
pub fn expect_failure(output: &Output, status: i32, why: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    assert!(errors.contains(why), "{why:?} is not in {errors:?}");
    assert!(
        errors.starts_with("cowshed: ") && errors.lines().count() == 1,
        "{errors:?}"
    );
}

/// A running daemon, stopped on drop in any case.
pub struct Daemon {
    child: Option<Child>,
    /// The folder of its volumes.
    pub mount: PathBuf,
}

impl Daemon {
    /// Starts the daemon of `command`, with `--foreground` and `--json`.
    pub fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        let ready = loop {
            let before = text.len();
            output.read_line(&mut text).unwrap();
            if text.len() == before {
                let output = child.wait_with_output().unwrap();
                panic!(
                    "the daemon did not start: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            if let Ok(ready) = serde_json::from_str::<Value>(&text) {
                break ready;
            }
        };
        let mount = PathBuf::from(ready["mount"].as_str().unwrap());
        Self {
            child: Some(child),
            mount,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn signal(&self, name: &str) {
        host("kill", [format!("-{name}"), self.pid().to_string()]);
    }

    /// Waits for it to end, and returns its status and error output.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let child = self.child.as_mut().unwrap();
        eventually("the daemon's end", || child.try_wait().unwrap().is_some());
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        (
            output.status,
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// Stops it, which must succeed.
    pub fn stop(self) {
        let mount = self.mount.clone();
        self.signal("TERM");
        let (status, said) = self.wait();
        assert!(status.success(), "{said}");
        assert!(!is_mounted(&mount), "{} is still mounted", mount.display());
    }

    /// Returns the process that has the pool open now.
    pub fn worker(&self) -> Option<u32> {
        children_of(self.pid()).into_iter().next()
    }

    /// Kills all of its processes, whatever they are doing.
    pub fn kill(mut self) {
        let worker = self.worker();
        let mut child = self.child.take().unwrap();
        // The keeper first, or it would start another worker.
        child.kill().unwrap();
        child.wait().unwrap();
        if let Some(worker) = worker {
            kill_and_wait(worker);
        }
    }

    /// Kills the worker; the keeper starts another one.
    pub fn kill_worker(&self) {
        let worker = self.worker().expect("a worker");
        host("kill", ["-KILL", &worker.to_string()]);
    }

    /// Kills both of its processes, so that what they had mounted stays.
    pub fn kill_all(self) {
        let worker = self.worker().expect("a worker").to_string();
        // The keeper first, or it would start another worker.
        host("kill", ["-KILL", &self.pid().to_string(), &worker]);
        self.wait();
        let task = format!("/proc/{worker}/task");
        eventually("the worker's end", || !Path::new(&task).exists());
    }
}

/// Returns the processes that `parent` has started and not reaped yet.
pub fn children_of(parent: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process may end at any time.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let mut fields = rest.split_whitespace();
        let is_zombie = fields.next() == Some("Z");
        if !is_zombie && fields.next() == Some(&parent.to_string()) {
            children.push(pid);
        }
    }
    children
}

/// Kills a process that is not a child of this one.
pub fn kill_and_wait(pid: u32) {
    // It may have ended by itself.
    let _ = Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status();
    eventually("the process's end", || is_over(pid));
}

/// Returns true if a process has ended with all its threads. A process that is not reaped stays as
/// a zombie, and so does its first thread while others still end.
pub fn is_over(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    stat.rsplit_once(')').unwrap().1.starts_with(" Z") && threads <= 1
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // Only a failed test leads here; two signals end even a busy daemon.
        for _ in 0..2 {
            let _ = Command::new("kill")
                .args(["-TERM", &child.id().to_string()])
                .status();
            std::thread::sleep(Duration::from_millis(500));
        }
        std::thread::sleep(Duration::from_secs(2));
        let workers = children_of(child.id());
        let _ = child.kill();
        let _ = child.wait();
        for worker in workers {
            let _ = Command::new("kill")
                .args(["-KILL", &worker.to_string()])
                .status();
        }
        clear_mounts(self.mount.parent().unwrap_or(&self.mount));
    }
}

/// Returns the mount points below a folder, the innermost first.
pub fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let points = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(folder)).collect();
    below.reverse();
    below
}

/// Removes what a killed daemon or command left: mounts, and loop devices on files below.
pub fn clear_mounts(folder: &Path) {
    // Listed first: once the mount is gone, the devices can no longer be attributed to it.
    let devices = loops_below(folder);
    for point in mounts_below(folder) {
        let _ = Command::new("umount").arg("-l").arg(point).status();
    }
    for device in devices {
        let _ = Command::new("losetup").args(["--detach", &device]).status();
    }
}

pub fn is_mounted(path: &Path) -> bool {
    mounts_below(path).iter().any(|point| point == path)
}

/// Returns the loop devices whose file is below `folder`.
pub fn loops_below(folder: &Path) -> Vec<String> {
    let list = host(
        "losetup",
        ["--list", "--noheadings", "--output", "NAME,BACK-FILE"],
    );
    let folder = folder.to_str().unwrap();
    let ours = list.lines().filter(|line| line.contains(folder));
    ours.filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// Ends a child and waits for it when dropped.
pub struct Reaped(pub Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
