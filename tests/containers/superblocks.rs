//! File systems whose superblocks a guest has written: they must not affect the host.

use crate::stage::{Stage, small_image};
use cowshed_format::base::Name;
use cowshed_host::{CopySide, CreateContainer};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Creates a stage with a container whose superblock was changed with tune2fs.
fn tuned(arguments: &[&str]) -> Stage {
    let stage = Stage::new();
    let path = small_image(stage.folder("small"));
    stage.import(&path, "small:1");
    let options = CreateContainer {
        name: Some(Name::new("one").unwrap()),
        ..Default::default()
    };
    let made = stage.host.containers().create("small:1", &options).unwrap();
    let volume = stage
        .pool
        .volume(&format!("container/{}", made.id))
        .unwrap();
    let tuned = Command::new("/usr/sbin/tune2fs")
        .args(arguments)
        .arg(stage.export.file_path(&volume))
        .output()
        .unwrap();
    assert!(tuned.status.success(), "{tuned:?}");
    stage
}

/// Returns the fields of each line of mountinfo below `folder`: device, root, mount point, options.
fn mounts_below(folder: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines = text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        Path::new(fields[4])
            .starts_with(folder)
            .then(|| (line.to_owned(), fields[5].to_owned()))
    });
    lines.collect()
}

/// Returns the effective options of the ext4 mounted at `path`.
fn options_of(path: &Path) -> String {
    let mounts = mounts_below(path);
    let (line, _) = mounts.first().unwrap();
    let device = line.split(" - ext4 ").nth(1).unwrap();
    let device = Path::new(device.split(' ').next().unwrap());
    let name = device.file_name().unwrap().to_str().unwrap();
    fs::read_to_string(format!("/proc/fs/ext4/{name}/options")).unwrap()
}

fn expect_no_panic(arguments: &[&str]) {
    let stage = tuned(arguments);
    let root = stage.host.containers().mount("one", None).unwrap().path;
    let options = options_of(&root);
    assert!(
        options.lines().any(|line| line == "errors=remount-ro"),
        "{options}"
    );
    assert!(!options.contains("panic"), "{options}");
    stage.host.containers().unmount("one").unwrap();
}

#[test]
fn a_superblock_that_wants_a_panic_is_overruled() {
    expect_no_panic(&["-e", "panic"]);
}

#[test]
fn mount_options_in_a_superblock_that_want_a_panic_are_overruled() {
    expect_no_panic(&["-E", "mount_opts=errors=panic"]);
}

#[test]
fn nothing_runs_and_no_device_opens_in_the_mounts_that_only_copy_and_compare() {
    let stage = tuned(&["-e", "panic"]);
    let work = stage.folder("state").join("work");
    let source = stage.folder("there").join("big");
    fs::write(&source, vec![7; 8 << 20]).unwrap();
    let inside = CopySide::Container {
        container: "one".to_owned(),
        path: "/big".into(),
    };
    let done = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = Vec::new();
            while !done.load(Ordering::Acquire) {
                seen.extend(mounts_below(&work));
            }
            seen
        });
        stage
            .host
            .containers()
            .copy(&CopySide::Host(source), &inside)
            .unwrap();
        stage.host.containers().mount("one", None).unwrap();
        stage.host.containers().diff("one").unwrap();
        stage.host.containers().unmount("one").unwrap();
        done.store(true, Ordering::Release);
        watcher.join().unwrap()
    });
    assert!(
        !seen.is_empty(),
        "no mount was made below {}",
        work.display()
    );
    for (line, options) in seen {
        let has = |flag: &str| options.split(',').any(|option| option == flag);
        assert!(has("nosuid") && has("nodev") && has("noexec"), "{line}");
    }
}
