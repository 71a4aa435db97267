//! `cowshed setup` below a root of the test's own: what it writes, that it does it once, and that
//! undoing it leaves what was there.

use crate::harness::{expect_failure, program};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CONFIG: &str = "etc/containerd/config.toml";
const DOCKER: &str = "etc/docker/daemon.json";
const OPTIONS: &str = "etc/default/cowshed";

/// A folder that stands for `/`.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    /// Returns a host with systemd and the files that Debian's packages bring.
    fn debian() -> Self {
        let host = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        host.put("usr/lib/systemd/systemd", "");
        host.put("usr/bin/cowshed", "");
        host.put(CONFIG, "version = 2\n\n# Debian's\n[plugins]\n");
        host.put(DOCKER, "{\n    \"debug\": true\n}\n");
        host
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap_or_default()
    }

    fn run(&self, arguments: &str) -> Output {
        Command::new(program())
            .env_remove("COWSHED_POOL")
            .arg("setup")
            .args(arguments.split(' '))
            .arg("--root")
            .arg(self.folder.path())
            .output()
            .unwrap()
    }

    /// Runs it, which must succeed; returns the actions by file.
    fn actions(&self, arguments: &str) -> BTreeMap<String, String> {
        let output = self.run(&format!("{arguments} --json"));
        assert!(output.status.success(), "{output:?}");
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let of = |change: &Value, name: &str| change[name].as_str().unwrap().to_owned();
        let changes = document.as_array().unwrap().iter();
        changes
            .map(|change| (of(change, "file"), of(change, "action")))
            .collect()
    }

    /// Returns the files and links with their contents.
    fn all(&self) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        let mut left = vec![self.folder.path().to_owned()];
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let kind = fs::symlink_metadata(&path).unwrap();
                let text = if kind.is_dir() {
                    left.push(path);
                    continue;
                } else if kind.is_symlink() {
                    format!("-> {}", fs::read_link(&path).unwrap().display())
                } else {
                    fs::read_to_string(&path).unwrap()
                };
                all.insert(path, text);
            }
        }
        all
    }
}

#[test]
fn docker_is_set_up_once_and_undone_to_what_was_there() {
    let host = Host::debian();
    let before = host.all();
    let line = "docker --containerd-version 1.7.24";
    let first = host.actions(line);
    assert_eq!(first["/etc/docker/daemon.json"], "changed");
    assert_eq!(first["/etc/containerd/config.toml"], "changed");
    assert_eq!(first["/etc/default/cowshed"], "created");
    let drop_in = "/etc/systemd/system/docker.service.d/cowshed.conf";
    assert_eq!(first[drop_in], "created");
    let json: Value = serde_json::from_str(&host.text(DOCKER)).unwrap();
    assert_eq!(json["storage-driver"], "cowshed");
    assert_eq!(json["features"]["containerd-snapshotter"], true);
    assert_eq!(json["debug"], true);
    let config = host.text(CONFIG);
    assert!(config.contains("# Debian's") && config.contains("[proxy_plugins.cowshed-diff]"));
    toml::from_str::<toml::Table>(&config).unwrap();
    assert_eq!(
        host.text(OPTIONS),
        "COWSHED_OPTIONS=--containerd-socket /run/cowshed/containerd.sock --containerd-address \
         /run/containerd/containerd.sock --mount /var/lib/cowshed/volumes\n"
    );
    let made = host.all();
    let again = host.actions(line);
    assert!(
        again.values().all(|action| action == "unchanged"),
        "{again:?}"
    );
    assert_eq!(host.all(), made);
    let undone = host.actions("docker --undo");
    assert_eq!(undone["/etc/docker/daemon.json"], "restored");
    assert_eq!(host.all(), before);
    let again = host.actions("docker --undo");
    assert!(
        again.values().all(|action| action == "unchanged"),
        "{again:?}"
    );
}

#[test]
fn a_dry_run_shows_the_lines_and_changes_nothing() {
    let host = Host::debian();
    let before = host.all();
    let output = host.run("docker --dry-run");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("+[proxy_plugins.cowshed]"), "{text}");
    assert!(text.contains("\"storage-driver\": \"cowshed\""), "{text}");
    assert_eq!(host.all(), before);
}

#[test]
fn containerd_that_was_asked_for_by_itself_outlives_docker() {
    let host = Host::debian();
    host.actions("docker --containerd-version 2.1");
    host.actions("containerd --containerd-version 2.1");
    let refused = host.run("containerd --undo");
    expect_failure(&refused, 1, "cowshed setup docker --undo");
    host.actions("docker --undo");
    assert!(!host.text(DOCKER).contains("cowshed"));
    assert!(host.text(CONFIG).contains("[proxy_plugins.cowshed]"));
    host.actions("containerd --undo");
    assert_eq!(host.text(CONFIG), "version = 2\n\n# Debian's\n[plugins]\n");
    assert!(!host.at(OPTIONS).exists());
}

#[test]
fn options_that_the_daemon_has_are_kept_and_used() {
    let host = Host::debian();
    let before = "# mine\nCOWSHED_OPTIONS=--max-size 5G --containerd-socket /run/mine.sock\n";
    host.put(OPTIONS, before);
    host.actions("containerd");
    assert!(host.text(CONFIG).contains("address = \"/run/mine.sock\""));
    assert!(host.text(OPTIONS).starts_with(before.trim_end()));
    let edited = host.text(OPTIONS).replace("5G", "6G");
    host.put(OPTIONS, &edited);
    assert_eq!(
        host.actions("containerd --undo")["/etc/default/cowshed"],
        "changed"
    );
    assert_eq!(host.text(OPTIONS), before.replace("5G", "6G"));
}

#[test]
fn a_file_that_cannot_be_read_stops_all_of_it_with_its_line() {
    let host = Host::debian();
    host.put(DOCKER, "{\n  \"debug\": true,\n}\n");
    let before = host.all();
    expect_failure(&host.run("docker"), 1, "/etc/docker/daemon.json: line 3");
    host.put(DOCKER, "{}");
    host.put(CONFIG, "version = 2\n[plugins\n");
    expect_failure(
        &host.run("docker"),
        1,
        "/etc/containerd/config.toml: line 2",
    );
    assert_eq!(host.all().len(), before.len());
    assert_eq!(host.text(DOCKER), "{}");
    let odd = host.run("containerd --containerd-socket /run/a\u{a0}b");
    expect_failure(&odd, 2, "blank");
}

#[test]
fn units_are_written_enabled_and_removed() {
    let host = Host::debian();
    let before = host.all();
    let made = host.actions("systemd");
    let wants = "/etc/systemd/system/multi-user.target.wants/cowshed.service";
    assert_eq!(made[wants], "created");
    let link = fs::read_link(host.at(&wants[1..])).unwrap();
    assert_eq!(link, Path::new("/etc/systemd/system/cowshed.service"));
    assert!(
        host.text("etc/systemd/system/cowshed.socket")
            .contains("ListenStream=")
    );
    let again = host.actions("systemd");
    assert!(
        again.values().all(|action| action == "unchanged"),
        "{again:?}"
    );
    host.actions("systemd --undo");
    assert_eq!(host.all(), before);
    // Units that a package has brought are enabled alone.
    host.put("usr/lib/systemd/system/cowshed.service", "[Service]\n");
    host.put("usr/lib/systemd/system/cowshed.socket", "[Socket]\n");
    let made = host.actions("systemd");
    assert_eq!(made.len(), 2, "{made:?}");
    let link = fs::read_link(host.at(&wants[1..])).unwrap();
    assert_eq!(link, Path::new("/usr/lib/systemd/system/cowshed.service"));
}

#[test]
fn a_host_without_systemd_gets_the_configuration_alone() {
    let host = Host {
        folder: tempfile::tempdir().unwrap(),
    };
    let made = host.actions("docker --containerd-version 2.0");
    let files: Vec<&str> = made.keys().map(String::as_str).collect();
    assert_eq!(
        files,
        ["/etc/containerd/config.toml", "/etc/docker/daemon.json"]
    );
    assert!(host.text(CONFIG).starts_with("version = 3\n"));
    expect_failure(&host.run("systemd"), 1, "there is no systemd");
    host.actions("docker --undo");
    assert!(host.all().is_empty(), "{:?}", host.all());
}

#[test]
fn a_root_that_does_not_exist_is_refused_and_not_made() {
    let host = Host::debian();
    let root = host.at("no/such");
    let output = Command::new(program())
        .args(["setup", "docker", "--root"])
        .arg(&root)
        .output()
        .unwrap();
    expect_failure(&output, 1, "there is no such directory");
    assert!(!root.exists());
}

#[test]
fn a_pool_elsewhere_has_options_of_its_own() {
    let host = Host::debian();
    let output = Command::new(program())
        .args(["--pool", "/srv/pools/a", "setup", "containerd", "--root"])
        .arg(host.folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(
        host.text("etc/default/cowshed@srv-pools-a")
            .contains("--containerd-socket")
    );
    let drop_in = host.text("etc/systemd/system/containerd.service.d/cowshed.conf");
    assert!(
        drop_in.contains("After=cowshed@srv-pools-a.service"),
        "{drop_in}"
    );
}
