//! A private Docker daemon over a private containerd, and its client.

use crate::containerd::{Containerd, setup};
use crate::fixtures::output;
use crate::packages::{Release, buildx};
use crate::process::Process;
use crate::sandbox::control_group;
use crate::world::{Setting, Snapshotter};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The file of its configuration, in the test's folder, which stands for `/`.
pub const CONFIGURATION: &str = "etc/docker/daemon.json";

pub struct Docker {
    folder: PathBuf,
    release: Release,
    process: Option<Process>,
}

impl Docker {
    /// Starts it over the running containerd of the same setting.
    pub fn start(setting: &Setting) -> Self {
        if setting.snapshotter == Snapshotter::Cowshed {
            setup("docker", setting, None);
            return Self::start_configured(setting);
        }
        let configuration = json!({
            "features": {"containerd-snapshotter": true},
            "storage-driver": setting.snapshotter.word(),
        });
        Self::start_with(setting, &configuration)
    }

    /// Like `start`, with the caller's configuration.
    pub fn start_with(setting: &Setting, configuration: &Value) -> Self {
        let file = setting.folder.join(CONFIGURATION);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, configuration.to_string()).unwrap();
        Self::start_configured(setting)
    }

    fn start_configured(setting: &Setting) -> Self {
        let folder = setting.folder.clone();
        let plugins = folder.join("docker-client/cli-plugins");
        fs::create_dir_all(&plugins).unwrap();
        std::os::unix::fs::symlink(buildx(), plugins.join("docker-buildx")).unwrap();
        let mut docker = Self {
            folder,
            release: setting.release,
            process: None,
        };
        docker.restart();
        docker
    }

    pub fn socket(folder: &Path) -> PathBuf {
        folder.join("d.sock")
    }

    pub fn restart(&mut self) {
        let path = |name: &str| self.folder.join(name);
        let mut command = Command::new(self.release.root().join("usr/sbin/dockerd"));
        command
            .env("PATH", self.release.path())
            .arg("--config-file")
            .arg(path(CONFIGURATION))
            .arg("--containerd")
            .arg(Containerd::socket(&self.folder))
            .arg("--data-root")
            .arg(path("d-root"))
            .arg("--exec-root")
            .arg(path("d-exec"))
            .arg("--pidfile")
            .arg(path("d.pid"))
            .arg("--host")
            .arg(format!("unix://{}", Self::socket(&self.folder).display()))
            .args(["--group", "root"])
            // No network at all, and control groups with our name.
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args([
                "--cgroup-parent",
                &format!("/{}", control_group(&self.folder)),
            ]);
        let ready = || self.attempt(["version"]).status.success();
        let log = path("dockerd.log");
        self.process = Some(Process::start("dockerd", command, log, ready));
    }

    pub fn stop(mut self) {
        self.halt();
    }

    /// Stops it; it can be started again.
    pub fn halt(&mut self) {
        self.process.take().unwrap().stop();
    }

    /// Returns the client with these arguments.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(self.release.root().join("usr/bin/docker"));
        command
            .env(
                "DOCKER_HOST",
                format!("unix://{}", Self::socket(&self.folder).display()),
            )
            .env("DOCKER_CONFIG", self.folder.join("docker-client"))
            .env("BUILDX_NO_DEFAULT_ATTESTATIONS", "1")
            .args(arguments);
        command
    }

    /// Runs the client, which must succeed, and returns its output.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        output(&mut self.command(arguments)).trim_end().to_owned()
    }

    pub fn attempt<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Returns the result of `docker inspect` for a single object.
    pub fn inspect(&self, name: &str) -> Value {
        let text = self.ok(["inspect", "--size", name]);
        let found: Value = serde_json::from_str(&text).unwrap();
        found[0].clone()
    }

    /// Starts a container that waits; further options come before the image.
    pub fn run_waiting(&self, name: &str, options: &[&str], image: &str) {
        let mut command = self.command(["run", "--detach", "--network=none", "--name", name]);
        command.args(options).args([image, "sleep", "1000"]);
        output(&mut command);
    }

    /// Runs a shell script in a new container, and returns its output.
    pub fn run(&self, options: &[&str], image: &str, script: &str) -> String {
        let mut command = self.command(["run", "--rm", "--network=none"]);
        command.args(options).args([image, "sh", "-euc", script]);
        output(&mut command)
    }

    pub fn exec(&self, container: &str, script: &str) -> String {
        output(&mut self.command(["exec", container, "sh", "-euc", script]))
    }

    /// Builds a folder with a `Dockerfile` in it.
    pub fn build(&self, folder: &Path, tag: &str) -> String {
        let mut command =
            self.command(["build", "--progress=plain", "--network=none", "--tag", tag]);
        let answer = command.arg(folder).output().unwrap();
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        assert!(answer.status.success(), "{said}");
        said
    }

    /// Returns the size that `docker ps --size` counts as a container's own.
    pub fn own_bytes(&self, container: &str) -> u64 {
        let size = &self.inspect(container)["SizeRw"];
        size.as_u64().unwrap_or_else(|| panic!("a size: {size}"))
    }
}
