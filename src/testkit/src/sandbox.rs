//! Private namespaces for processes, mounts and the network, and the resources that remain outside
//! of them.
//!
//! The test binary starts itself again in them, twice: the first process is process 1, which only
//! reaps orphans, the second runs the tests. When the tests end, in whatever way, the kernel kills
//! every process in the namespaces and removes every mount. Two kinds of resources are not in any
//! namespace, loop devices and control groups: those with our folder's name are removed from
//! outside.
//!
//! Daemons assume that `/run` is theirs: inside it is an empty folder.

use crate::fixtures::run;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU8, Ordering};

/// The variable that tells a process which of the three it is.
const STAGE: &str = "COWSHED_RUNTIMES_STAGE";
/// The variable with the folder of everything that the tests create.
const FOLDER: &str = "COWSHED_RUNTIMES_FOLDER";
/// The prefix of the folder's name, and of our control groups.
const PREFIX: &str = "cowshed-rt-";
/// A length that leaves room for the longest name of a socket below the folder.
const PATH_BYTES_MAX: usize = 48;
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

static EXIT_CODE: AtomicU8 = AtomicU8::new(1);

/// The inside of the namespaces.
pub struct Sandbox {
    folder: PathBuf,
}

/// Returns true if this process is inside: then it has no network.
pub fn is_inside() -> bool {
    env::var_os(STAGE).is_some()
}

/// Enters the namespaces; returns `None` in the processes that stay outside, once the tests are
/// over.
pub fn enter() -> Option<Sandbox> {
    match env::var(STAGE).as_deref() {
        Err(_) => {
            stay_outside();
            None
        }
        Ok("first") => {
            be_process_one();
            None
        }
        Ok(_) => {
            let folder = PathBuf::from(env::var_os(FOLDER).unwrap());
            furnish(&folder);
            Some(Sandbox { folder })
        }
    }
}

/// Returns the exit code of the processes outside.
pub fn exit_code() -> ExitCode {
    EXIT_CODE.load(Ordering::Relaxed).into()
}

impl Sandbox {
    /// Creates a folder for one test, with a short name: paths of sockets have a limit.
    pub fn folder_for(&self, test: &str) -> PathBuf {
        let number = fs::read_dir(&self.folder).unwrap().count();
        let folder = self.folder.join(format!("{number:02}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("test"), test).unwrap();
        folder
    }
}

/// Returns the prefix of the names of our control groups.
pub fn control_group(folder: &Path) -> String {
    // The name of the sandbox's folder is unique.
    let mut above = folder.ancestors();
    let own = above.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(PREFIX)
    });
    own.unwrap()
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned()
}

fn stay_outside() {
    let folder = tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap();
    let len = folder.path().as_os_str().len();
    assert!(
        len <= PATH_BYTES_MAX,
        "set TMPDIR to a shorter path than {}: the names of sockets below it have a limit",
        env::temp_dir().display()
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--net", "--fork", "--kill-child"])
        .args(["--propagation", "private", "--mount-proc", "--"])
        .arg(env::current_exe().unwrap())
        .args(env::args_os().skip(1))
        .env(STAGE, "first")
        .env(FOLDER, folder.path())
        .env("TMPDIR", folder.path())
        .env("HOME", folder.path());
    let devices = loop_devices();
    let status = command.status().expect("util-linux is installed");
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    EXIT_CODE.store(code.unwrap_or(1), Ordering::Relaxed);
    remove_loop_devices(folder.path(), &devices);
    remove_control_groups(folder.path());
}

#[expect(
    clippy::zombie_processes,
    reason = "it waits for all there are, this one among them"
)]
fn be_process_one() {
    let mut tests = Command::new(env::current_exe().unwrap());
    tests.args(env::args_os().skip(1)).env(STAGE, "tests");
    let child = tests.spawn().unwrap();
    let tests = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let code = loop {
        match waitpid(None, None).unwrap() {
            WaitStatus::Exited(process, code) if process == tests => break code,
            WaitStatus::Signaled(process, signal, _) if process == tests => {
                eprintln!("the tests were ended by {signal}");
                break 1;
            }
            _ => {}
        }
    };
    EXIT_CODE.store(u8::try_from(code).unwrap_or(1), Ordering::Relaxed);
}

/// Mounts file systems as a service manager does on a host.
fn furnish(folder: &Path) {
    run("mount", ["--make-rshared", "/"]);
    run("mount", ["-t", "tmpfs", "-o", "mode=755", "run", "/run"]);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut types = mounts.lines().filter(|line| line.contains(CONTROL_GROUPS));
    if types.next().is_none() {
        run("mount", ["-t", "cgroup2", "none", CONTROL_GROUPS]);
    }
    fs::create_dir_all(folder.join("dockerconfig")).unwrap();
}

/// Returns the existing loop devices, each with its file.
fn loop_devices() -> Vec<(String, String)> {
    let listed = Command::new("losetup")
        .args(["--list", "--noheadings", "--output", "NAME,BACK-FILE"])
        .output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let pairs = listed.lines().filter_map(|line| line.split_once(' '));
    pairs
        .map(|(device, file)| (device.to_owned(), file.trim().to_owned()))
        .collect()
}

/// Detaches what the tests left. A device whose file was on a mount that vanished with the sandbox
/// shows only the file's name; those in `before` are not ours.
fn remove_loop_devices(folder: &Path, before: &[(String, String)]) {
    let folder = folder.to_str().unwrap();
    for entry in loop_devices() {
        let (device, file) = &entry;
        let is_dead = !before.contains(&entry) && !Path::new(file).exists();
        if file.contains(folder) || is_dead {
            drop(Command::new("losetup").args(["--detach", device]).status());
        }
    }
}

/// Removes the groups from the innermost outwards; no process is left in them.
fn remove_control_groups(folder: &Path) {
    fn remove(group: &Path) {
        for entry in fs::read_dir(group).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            }
        }
        drop(fs::remove_dir(group));
    }
    let name = control_group(folder);
    let mut hierarchies = vec![PathBuf::from(CONTROL_GROUPS)];
    let below = fs::read_dir(CONTROL_GROUPS).into_iter().flatten().flatten();
    hierarchies.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
    for hierarchy in hierarchies {
        for entry in fs::read_dir(&hierarchy).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&name) {
                remove(&entry.path());
            }
        }
    }
}
