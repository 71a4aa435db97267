//! A private containerd, and its client.

use crate::fixtures::output;
use crate::harness::{eventually, program};
use crate::packages::Release;
use crate::process::Process;
use crate::sandbox::control_group;
use crate::service::Service;
use crate::world::{Setting, Snapshotter};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The file of its configuration, in the test's folder, which stands for `/`.
const CONFIGURATION: &str = "etc/containerd/config.toml";

pub struct Containerd {
    folder: PathBuf,
    release: Release,
    pub snapshotter: &'static str,
    /// containerd's namespace; its control groups have the same name.
    pub namespace: String,
    process: Option<Process>,
}

impl Containerd {
    /// Starts it, with cowshed as a snapshotter if the setting's snapshots are cowshed's.
    pub fn start(setting: &Setting) -> Self {
        write_configuration(setting);
        if setting.snapshotter == Snapshotter::Cowshed {
            let pods = (setting.release == Release::Sid).then_some("--pods");
            setup("containerd", setting, pods);
        }
        Self::start_configured(setting)
    }

    /// Starts it as a distribution configures it.
    pub fn start_plain(setting: &Setting) -> Self {
        write_configuration(setting);
        Self::start_configured(setting)
    }

    fn start_configured(setting: &Setting) -> Self {
        let folder = setting.folder.clone();
        let mut containerd = Self {
            namespace: namespace(&folder),
            folder,
            release: setting.release,
            snapshotter: setting.snapshotter.word(),
            process: None,
        };
        containerd.restart();
        containerd
    }

    pub fn socket(folder: &Path) -> PathBuf {
        folder.join("c.sock")
    }

    /// Returns true if cowshed unpacks and writes the layers of its own snapshots.
    pub fn asks_differs(&self) -> bool {
        takes_differs(self.release)
    }

    /// Starts it if it does not run.
    pub fn restart(&mut self) {
        if self.process.is_some() {
            return;
        }
        let mut command = self.program("containerd");
        command.arg("--config").arg(self.folder.join(CONFIGURATION));
        let ready = || self.attempt(["version"]).status.success();
        let log = self.folder.join("containerd.log");
        self.process = Some(Process::start("containerd", command, log, ready));
    }

    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    pub fn stop(mut self) {
        self.halt();
    }

    /// Stops it; it can be started again.
    pub fn halt(&mut self) {
        self.process.take().unwrap().stop();
    }

    /// Returns a command for one of the release's programs.
    fn program(&self, name: &str) -> Command {
        program_of(self.release, name)
    }

    /// Returns `ctr` with these arguments.
    pub fn ctr<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.program("ctr");
        command
            .arg("--address")
            .arg(Self::socket(&self.folder))
            .args(["--namespace", &self.namespace])
            .args(arguments);
        command
    }

    /// Runs `ctr`, which must succeed, and returns its output.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        output(&mut self.ctr(arguments))
    }

    pub fn attempt<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        self.ctr(arguments).output().unwrap()
    }

    /// Runs `ctr snapshots` with our snapshotter.
    pub fn snapshot<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> String {
        output(&mut self.snapshot_command(arguments))
    }

    pub fn snapshot_command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.ctr(["snapshots", "--snapshotter", self.snapshotter]);
        command.args(arguments);
        command
    }

    /// Returns the keys of all snapshots.
    pub fn snapshots(&self) -> Vec<String> {
        let table = self.snapshot(["ls"]);
        let lines = table.lines().skip(1);
        lines
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect()
    }

    /// Returns a command that imports an archive and unpacks it; all its names begin with `name`.
    pub fn import(&self, archive: &Path, name: &str) -> Command {
        let mut command = self.ctr(["images", "import", "--snapshotter", self.snapshotter]);
        command
            .args(["--base-name", name, "--digests"])
            .arg(archive);
        command
    }

    /// Runs a container to its end, and returns its output.
    pub fn run<'a>(
        &self,
        image: &str,
        id: &str,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> String {
        let mut command = self.ctr(["run", "--rm", "--snapshotter", self.snapshotter, image, id]);
        output(command.args(arguments))
    }

    /// Starts a container that waits.
    pub fn start_container(&self, image: &str, id: &str) {
        let options = ["run", "--detach", "--null-io", "--snapshotter"];
        let mut command = self.ctr(options);
        command.args([self.snapshotter, image, id]);
        output(command.args(["/bin/busybox", "sleep", "1000"]));
    }

    /// Runs a shell script in a running container.
    pub fn exec(&self, id: &str, process: &str, script: &str) -> String {
        let mut command = self.ctr(["tasks", "exec", "--exec-id", process, id]);
        output(command.args(["/bin/busybox", "sh", "-euc", script]))
    }

    /// Kills a container's process and removes the container with its snapshot.
    pub fn remove_container(&self, id: &str) {
        self.attempt(["tasks", "kill", "--signal", "KILL", id]);
        eventually("the task's removal", || {
            let removed = self.attempt(["tasks", "rm", "--force", id]);
            removed.status.success()
                || String::from_utf8_lossy(&removed.stderr).contains("not found")
        });
        self.ok(["containers", "rm", id]);
    }
}

/// Returns a name for each test: runc keeps containers by namespace and name, wherever they are.
fn namespace(folder: &Path) -> String {
    let number = folder.file_name().unwrap().to_string_lossy();
    format!("{}-{number}", control_group(folder))
}

/// containerd 1.6 supports no external plugins of this type.
fn takes_differs(release: Release) -> bool {
    release != Release::Bookworm
}

/// Returns a command for a program of a release.
fn program_of(release: Release, name: &str) -> Command {
    let path = release.path();
    // Programs are searched in the path of this process.
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| program.exists());
    let mut command = Command::new(found.unwrap_or_else(|| panic!("there is no {name}")));
    command.env("PATH", path);
    command
}

/// Returns the version of the release's containerd, as it prints it.
fn version(release: Release) -> String {
    let printed = output(program_of(release, "containerd").arg("--version"));
    printed.split_whitespace().nth(2).unwrap().to_owned()
}

/// Runs `cowshed setup` for the files in the setting's folder, as on the host that it stands for.
pub fn setup(target: &str, setting: &Setting, option: Option<&str>) {
    let mut command = Command::new(program());
    command
        .args([
            "setup",
            target,
            "--containerd-version",
            &version(setting.release),
            "--root",
        ])
        .arg(&setting.folder)
        .arg("--containerd-socket")
        .arg(Service::socket(&setting.folder))
        .arg("--containerd-address")
        .arg(Containerd::socket(&setting.folder))
        .arg("--mount")
        .arg(setting.folder.join("volumes"))
        .args(option);
    output(&mut command);
}

fn write_configuration(setting: &Setting) {
    let file = setting.folder.join(CONFIGURATION);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, configuration(setting)).unwrap();
}

/// Returns the configuration of a host before cowshed comes, with our paths.
fn configuration(setting: &Setting) -> String {
    let folder = setting.folder.display();
    let socket = Containerd::socket(&setting.folder);
    let version = if setting.release == Release::Sid {
        3
    } else {
        2
    };
    let disabled = if setting.release == Release::Sid {
        r#""io.containerd.nri.v1.nri""#
    } else {
        r#""io.containerd.grpc.v1.cri""#
    };
    let mut text = format!(
        r#"version = {version}
root = "{folder}/c-root"
state = "{folder}/c-state"
disabled_plugins = [{disabled}]

[grpc]
  address = "{}"

[debug]
  level = "warn"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
"#,
        socket.display(),
    );
    if setting.release == Release::Sid {
        text += &for_kubelets(setting);
    }
    if setting.snapshotter == Snapshotter::Blockfile {
        let scratch = setting.snapshotter.root(&setting.folder).join("empty.ext4");
        text += &format!(
            r#"
[plugins."io.containerd.snapshotter.v1.blockfile"]
  scratch_file = "{}"
  fs_type = "ext4"
  mount_options = []
  recreate_scratch = true
"#,
            scratch.display()
        );
    }
    text
}

/// Returns the configuration of containerd 2's CRI plugin. Without the right to lower an OOM score,
/// it stays unchanged.
fn for_kubelets(setting: &Setting) -> String {
    let folder = setting.folder.display();
    let snapshotter = match setting.snapshotter {
        // `cowshed setup` makes it that.
        Snapshotter::Cowshed => Snapshotter::Overlayfs.word(),
        other => other.word(),
    };
    format!(
        r#"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{}"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  conf_dir = "{folder}/cni"
  bin_dirs = ["{folder}/cni-bin"]
"#,
        crate::images::PAUSE
    )
}
