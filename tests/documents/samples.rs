//! That each block has a language that is checked, that samples of configuration are well-formed,
//! and that systemd takes the units.

use crate::document;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

#[test]
fn each_block_is_well_formed_in_its_language() {
    let mut faults = Vec::new();
    for document in document::all() {
        for block in &document.blocks {
            let found = match &*block.language {
                // Commands are checked beside this; text is what somebody else prints.
                "sh" | "text" => Ok(()),
                "toml" => toml::from_str::<toml::Table>(&block.text)
                    .map(drop)
                    .map_err(|error| error.to_string()),
                "json" => serde_json::from_str::<serde_json::Value>(&block.text)
                    .map(drop)
                    .map_err(|error| error.to_string()),
                other => Err(format!("nothing checks the language {other:?}")),
            };
            if let Err(fault) = found {
                faults.push(format!("{}: {fault}", document.at(block.line)));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Merges tables; the values of lists follow each other.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[test]
fn the_samples_for_containerd_are_what_setup_writes() {
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(cowshed_testkit::program())
        .env_remove("COWSHED_POOL")
        .args([
            "setup",
            "containerd",
            "--containerd-version",
            "2.1",
            "--root",
        ])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(status.status.success(), "{status:?}");
    let written = folder.path().join("etc/containerd/config.toml");
    let mut written: toml::Table = toml::from_str(&fs::read_to_string(written).unwrap()).unwrap();
    let mut sampled = toml::Table::new();
    let page = document::one("docs/containerd-docker.md");
    let platform = format!("linux/{}", cowshed_testkit::images::architecture());
    for block in page.blocks.iter().filter(|block| block.language == "toml") {
        let text = block.text.replace("linux/amd64", &platform);
        merge(&mut sampled, toml::from_str(&text).unwrap());
    }
    // What a sample for a host with other settings leaves out.
    written.remove("version");
    let plugin = written["proxy_plugins"]["cowshed"].as_table_mut().unwrap();
    plugin.remove("exports");
    assert_eq!(written, sampled);
}

#[test]
fn systemd_takes_the_units() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("NOT TESTED: there is no systemd-analyze");
        return;
    }
    // A root with the units and programs that they start, where nothing else is looked at.
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let units = root.join("etc/systemd/system");
    fs::create_dir_all(&units).unwrap();
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    let program = root.join("usr/bin/cowshed");
    fs::write(&program, "").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    copy(&document::root().join("tools/systemd"), &units);
    for other in ["containerd", "docker"] {
        let unit = "[Service]\nExecStart=/usr/bin/cowshed\n";
        fs::write(units.join(format!("{other}.service")), unit).unwrap();
    }
    // What a unit needs of systemd's own.
    for other in [
        "sysinit.target",
        "basic.target",
        "shutdown.target",
        "sockets.target",
        "local-fs.target",
        "multi-user.target",
        "system.slice",
        "system-cowshed.slice",
        "-.slice",
    ] {
        fs::write(units.join(other), "[Unit]\nDescription=of systemd\n").unwrap();
    }
    let names = [
        "cowshed.service",
        "cowshed.socket",
        "cowshed@srv-pool.service",
        "cowshed@srv-pool.socket",
        "containerd.service",
        "docker.service",
    ];
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=yes", "--root"])
        .arg(root)
        .args(names)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
