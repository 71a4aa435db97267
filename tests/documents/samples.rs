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
