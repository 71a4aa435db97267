//! A pool with its daemon, as a snapshotter of containerd.

use crate::harness::{children_of, eventually, kill_and_wait, mounts_below, program};
use crate::process::Process;
use crate::world::Mounts;
use serde_json::Value;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub struct Service {
    folder: PathBuf,
    mounts: Mounts,
    daemon: Option<Process>,
}

impl Service {
    /// Creates a pool and starts its daemon.
    pub fn open(folder: &Path, mounts: Mounts) -> Self {
        let mut service = Self {
            folder: folder.to_owned(),
            mounts,
            daemon: None,
        };
        service.cowshed(["pool", "create", "--size", "40G"]);
        service.start();
        service
    }

    /// Returns the socket where containerd finds the snapshots service and the diff service.
    pub fn socket(folder: &Path) -> PathBuf {
        folder.join("snap.sock")
    }

    fn pool(&self) -> PathBuf {
        self.folder.join("pool")
    }

    fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(program());
        command.arg("--pool").arg(self.pool()).args(arguments);
        command
    }

    pub fn start(&mut self) {
        assert!(self.daemon.is_none(), "it runs already");
        let mut command = self.command(["serve", "--foreground", "--mount"]);
        let socket = Self::socket(&self.folder);
        command
            .arg(self.folder.join("volumes"))
            .arg("--containerd-socket")
            .arg(&socket)
            .arg("--containerd-address")
            .arg(crate::containerd::Containerd::socket(&self.folder))
            .args(["--snapshot-mounts", self.mounts.word()])
            // The path where Docker looks for volume drivers.
            .args(["--docker-plugin-socket", "/run/docker/plugins/cowshed.sock"]);
        let ready = || UnixStream::connect(&socket).is_ok();
        let log = self.folder.join("cowshed.log");
        self.daemon = Some(Process::start("cowshed", command, log, ready));
    }

    /// Starts it if it does not run.
    pub fn restart(&mut self) {
        if self.daemon.is_none() {
            self.start();
        }
    }

    /// Runs a command that must succeed, and returns its output.
    pub fn cowshed<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> String {
        crate::fixtures::output(&mut self.command(arguments))
    }

    pub fn json<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Value {
        let text = crate::fixtures::output(self.command(arguments).arg("--json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Runs a command, which may fail.
    pub fn attempt<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Returns the space that the pool uses for volumes, once all removed ones have been reclaimed.
    pub fn used_bytes(&self) -> u64 {
        self.cowshed(["pool", "checkpoint"]);
        let status = self.json(["pool", "status"]);
        status["used_bytes"].as_u64().unwrap()
    }

    /// Kills the process that has the pool open; its keeper starts another one.
    pub fn kill_worker(&self) {
        let keeper = self.daemon.as_ref().unwrap().id();
        let workers = children_of(keeper);
        workers.into_iter().for_each(kill_and_wait);
    }

    /// Kills both processes, the keeper first, because it would start another worker.
    pub fn kill(&mut self) {
        let daemon = self.daemon.take().unwrap();
        let workers = children_of(daemon.id());
        daemon.kill();
        workers.into_iter().for_each(kill_and_wait);
    }

    /// Waits until a worker replies.
    pub fn wait(&self) {
        eventually("an answer of cowshed", || {
            self.attempt(["pool", "status"]).status.success()
        });
    }

    /// Stops the daemon, which leaves nothing mounted, and checks the whole pool.
    pub fn close(mut self) {
        self.daemon.take().unwrap().stop();
        assert_eq!(mounts_below(&self.folder), Vec::<PathBuf>::new());
        let report = self.json(["pool", "check", "--deep"]);
        assert_eq!(report["clean"], true, "{report}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Only a failed test leads here with a running daemon.
        if let Some(daemon) = self.daemon.take() {
            let workers = children_of(daemon.id());
            drop(daemon);
            workers.into_iter().for_each(kill_and_wait);
        }
    }
}
