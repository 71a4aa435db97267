//! Follows the tour of README.md and the page about volumes, line by line, as root.
//!
//! Paths of the host become paths in a folder of the test's own. `docker save` gives an archive
//! that the test has made, and `cargo install` does nothing: the program is there.

use crate::document;
use cowshed_testkit::harness::{clear_mounts, eventually, is_over, kill_and_wait, mounts_below};
use cowshed_testkit::{images, program};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with the programs that the documents call, and whatever they leave.
pub(crate) struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cowshed-tour-")
            .tempdir_in("/var/tmp");
        let host = Self {
            folder: folder.unwrap(),
        };
        for name in ["bin", "mnt", "site"] {
            fs::create_dir(host.path(name)).unwrap();
        }
        symlink(program(), host.path("bin/cowshed")).unwrap();
        fs::write(host.path("site/index.html"), "a page\n").unwrap();
        let archive = images::Image::new(host.path("debian"))
            .named("docker.io/library/debian:12")
            .filled(|root| {
                images::shell_root(root);
                fs::create_dir_all(root.join("srv")).unwrap();
            })
            .write();
        host.stands_for("docker", &format!("exec cat {}", archive.display()));
        host.stands_for("cargo", "exit 0");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn stands_for(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Returns a shell that fails with the first command that does.
    fn shell(&self, script: &str) -> Command {
        let folder = self.folder.path().to_str().unwrap();
        let script = script
            .replace("/var/lib/cowshed", folder)
            .replace("/mnt", &format!("{folder}/mnt"));
        let search = format!("{folder}/bin:{}", std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", &script])
            .env("PATH", search)
            .env("COWSHED_POOL", self.path("pool"))
            .env_remove("COWSHED_LOG")
            .current_dir(self.folder.path());
        command
    }

    /// Runs a script that must succeed, and returns its output.
    pub(crate) fn run(&self, script: &str) -> String {
        // In a file, as a daemon that the script leaves behind holds its output open.
        let (out, err) = (self.path("out"), self.path("err"));
        let status = self
            .shell(script)
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap())
            .status()
            .unwrap();
        let said = fs::read_to_string(out).unwrap();
        let complained = fs::read_to_string(err).unwrap();
        assert!(status.success(), "{script}\n{said}\n{complained}");
        said
    }

    /// Returns the daemon's two processes, the keeper first.
    fn processes(&self) -> Vec<u32> {
        let output = self.shell("cowshed pool status --json").output().unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let number = |name| find(&status, name).and_then(|found| u32::try_from(found).ok());
        [number("keeper"), number("worker")]
            .into_iter()
            .flatten()
            .collect()
    }

    pub(crate) fn stop(&self) {
        let processes = self.processes();
        let keeper = *processes.first().expect("a daemon");
        assert!(
            Command::new("kill")
                .arg(keeper.to_string())
                .status()
                .unwrap()
                .success()
        );
        eventually("the daemon's end", || is_over(keeper));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for process in self.processes() {
            kill_and_wait(process);
        }
        clear_mounts(self.folder.path());
    }
}

/// Returns the first number of this name, at any depth.
fn find(value: &Value, name: &str) -> Option<u64> {
    match value {
        Value::Object(fields) => fields
            .get(name)
            .and_then(Value::as_u64)
            .or_else(|| fields.values().find_map(|inner| find(inner, name))),
        _ => None,
    }
}

/// Returns the document's first script that contains `mark`.
fn script(path: &str, mark: &str) -> String {
    let blocks = document::one(path).blocks.into_iter();
    let mut scripts = blocks.filter(|block| block.language == "sh");
    let found = scripts.find(|block| block.text.contains(mark));
    found
        .unwrap_or_else(|| panic!("{path} has no script with {mark}"))
        .text
}

fn is_elsewhere(folder: &Path) -> bool {
    mounts_below(folder).is_empty()
}

/// Says that a test is left out, unless the user may mount.
pub(crate) fn may_mount() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        println!("NOT TESTED: this needs root");
    }
    is_root
}

#[test]
fn the_tour_of_the_first_page_works() {
    if !may_mount() {
        return;
    }
    let host = Host::new();
    let script = script("README.md", "cowshed container create");
    let (served, stopped) = script
        .split_once("cowshed pool check")
        .expect("the last command");
    let said = host.run(served);
    assert!(said.contains("A /srv/site"), "{said}");
    assert!(host.path("web.tar").is_file());
    host.stop();
    assert!(is_elsewhere(host.folder.path()));
    host.run(&format!("cowshed pool check{stopped}"));
}

#[test]
fn the_page_about_volumes_works() {
    if !may_mount() {
        return;
    }
    let host = Host::new();
    host.run("truncate --size 1M disk.raw\ncowshed pool create --size 8G\ncowshed serve");
    let script = script("docs/virtual-machines.md", "cowshed volume create disk");
    let said = host.run(&script);
    assert!(said.lines().count() > 3, "{said}");
    assert_eq!(fs::metadata(host.path("copy.raw")).unwrap().len(), 1 << 20);
    host.stop();
    assert!(is_elsewhere(host.folder.path()));
    host.run("cowshed pool check --deep");
}
