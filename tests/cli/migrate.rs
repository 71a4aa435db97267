//! Images of other programs' stores: those that buildah makes, and one of Docker 1.9 that is laid out
//! here.

use crate::harness::{Bench, eventually, expect_failure, host};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

/// The size of a file that takes a while to read, though it takes no space.
const LARGE_BYTES: u64 = 32 << 30;

/// Makes two images with buildah, the second on the first, and returns their ids.
fn build(bench: &Bench, driver: &str) -> [String; 2] {
    let (storage, run) = (bench.path("storage"), bench.path("run"));
    let policy = bench.path("policy.json");
    fs::write(
        &policy,
        r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
    )
    .unwrap();
    let buildah = |arguments: &[&str]| -> String {
        let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let (storage, run) = (text(&storage), text(&run));
        let options = [
            "--root",
            &storage,
            "--runroot",
            &run,
            "--storage-driver",
            driver,
        ];
        host("buildah", options.iter().chain(arguments))
            .trim()
            .to_owned()
    };
    let commit = |container: &str, name: &str| {
        let policy = policy.to_str().unwrap();
        buildah(&[
            "commit",
            "--quiet",
            "--signature-policy",
            policy,
            container,
            name,
        ])
    };
    let root = bench.path("root");
    fs::create_dir_all(root.join("etc/folder")).unwrap();
    for name in ["etc/one", "etc/folder/old"] {
        fs::write(root.join(name), "old\n").unwrap();
    }
    buildah(&["from", "--name", "lower", "scratch"]);
    buildah(&["copy", "lower", root.to_str().unwrap(), "/"]);
    let lower = commit("lower", "base:1");
    buildah(&[
        "from",
        "--name",
        "upper",
        "--pull-never",
        "localhost/base:1",
    ]);
    let mounted = PathBuf::from(buildah(&["mount", "upper"]));
    fs::remove_file(mounted.join("etc/one")).unwrap();
    fs::remove_dir_all(mounted.join("etc/folder")).unwrap();
    fs::create_dir(mounted.join("etc/folder")).unwrap();
    fs::write(mounted.join("etc/folder/new"), "new\n").unwrap();
    buildah(&["umount", "upper"]);
    let upper = commit("upper", "app:1");
    buildah(&["rm", "--all"]);
    [lower, upper]
}

/// Returns the images of a result by their first name.
fn image<'m>(migrated: &'m Value, name: &str) -> &'m Value {
    let mut images = migrated.as_array().unwrap().iter();
    let found = images.find(|image| image["names"][0] == name);
    found.unwrap_or_else(|| panic!("{name} in {migrated}"))
}

/// Asserts that a container of the image has exactly these files.
fn expect_files(bench: &Bench, image: &str, wanted: &[(&str, &str)]) {
    bench.ok(["container", "create", image, "--name", "c"]);
    let copied = bench.path("copied");
    bench.ok(["container", "cp", "c:/etc", copied.to_str().unwrap()]);
    bench.ok(["container", "rm", "c"]);
    let list = host(
        "find",
        [copied.to_str().unwrap(), "-type", "f", "-printf", "%P\n"],
    );
    let mut names: Vec<&str> = list.lines().collect();
    names.sort_unstable();
    assert_eq!(
        names,
        wanted.iter().map(|(name, _)| *name).collect::<Vec<_>>()
    );
    for (name, content) in wanted {
        assert_eq!(fs::read_to_string(copied.join(name)).unwrap(), *content);
    }
    fs::remove_dir_all(copied).unwrap();
}

/// Returns bytes as tar-split keeps them.
fn base64(bench: &Bench, bytes: &[u8]) -> String {
    let file = bench.path("bytes");
    fs::write(&file, bytes).unwrap();
    host("base64", ["-w0", file.to_str().unwrap()])
}

/// Returns the lines of a command's error stream.
fn lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().map(str::to_owned).collect()
}

/// Returns everything in a folder with its size, owner, mode and times; reading is not among them.
fn listing(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let found = host("find", [folder, "-printf", "%p %y %m %u %s %T@ %C@\n"]);
    let mut lines: Vec<String> = found.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Returns the command on the store in this folder.
fn migrate(folder: &Path) -> [&str; 4] {
    ["image", "migrate", "--from", folder.to_str().unwrap()]
}

#[test]
fn images_of_containers_storage_are_taken_over_byte_by_byte() {
    for (driver, has_daemon) in [("overlay", false), ("vfs", true)] {
        let bench = Bench::with_pool("2G");
        let ids = build(&bench, driver);
        let store = bench.path("storage");
        let before = listing(&store);
        let daemon = has_daemon.then(|| bench.serve());
        let migrated = bench.json(migrate(&store));
        for (name, id, layers) in [
            ("localhost/base:1", &ids[0], 1),
            ("localhost/app:1", &ids[1], 2),
        ] {
            let image = image(&migrated, name);
            assert_eq!(image["old_id"], **id);
            assert_eq!(image["id"], format!("sha256:{id}"), "{driver}: {image}");
            let found = image["layers"].as_array().unwrap();
            assert_eq!(found.len(), layers);
            assert!(found.iter().all(|layer| layer["exact"] == true), "{image}");
        }
        expect_files(
            &bench,
            "localhost/base:1",
            &[("folder/old", "old\n"), ("one", "old\n")],
        );
        expect_files(&bench, "localhost/app:1", &[("folder/new", "new\n")]);

        let again = bench.json(migrate(&store));
        for name in ["localhost/base:1", "localhost/app:1"] {
            let layers = image(&again, name)["layers"].as_array().unwrap();
            assert!(
                layers.iter().all(|layer| layer["reused"] == true),
                "{again}"
            );
        }
        assert_eq!(listing(&store), before, "{driver}: the store has changed");
        if let Some(daemon) = daemon {
            daemon.stop();
        }
        bench.expect_sound();
    }
}

#[test]
fn a_damaged_image_is_named_the_others_are_taken_and_the_rest_follows_later() {
    let bench = Bench::with_pool("2G");
    let ids = build(&bench, "overlay");
    let store = bench.path("storage");
    let new = host(
        "find",
        [store.to_str().unwrap(), "-path", "*/diff/etc/folder/new"],
    );
    let new = Path::new(new.trim());
    fs::write(new, "NEW\n").unwrap();
    let output = bench.run(migrate(&store));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        shown.contains("localhost/base:1") && !shown.contains("app:1"),
        "{shown}"
    );
    let lines = lines(&output);
    let [named, all] = &lines[..] else {
        panic!("{lines:?}");
    };
    let start = format!("cowshed: image localhost/app:1 ({})", &ids[1][..12]);
    assert!(named.starts_with(&start), "{named}");
    assert!(
        named.contains("the uncompressed layer 2 should be"),
        "{named}"
    );
    assert!(
        all.ends_with("1 of 2 images could not be taken over"),
        "{all}"
    );
    let layers = || {
        let mut volumes = bench.volumes();
        volumes.retain(|volume| volume.starts_with("layer/"));
        volumes.len()
    };
    assert_eq!(layers(), 1);

    // With --json each of the two lines is a document.
    let output = bench
        .command(migrate(&store))
        .arg("--json")
        .output()
        .unwrap();
    for line in self::lines(&output) {
        let failure: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(failure["status"], 1, "{failure}");
    }
    fs::write(new, "new\n").unwrap();
    let migrated = bench.json(migrate(&store));
    let reused = |name: &str| image(&migrated, name)["layers"][0]["reused"].clone();
    assert_eq!(reused("localhost/base:1"), true);
    assert_eq!(reused("localhost/app:1"), true);
    assert_eq!(layers(), 2);
    bench.expect_sound();
}

#[test]
fn a_store_of_docker_1_9_becomes_images_with_new_ids_and_is_not_read_twice() {
    let bench = Bench::with_pool("2G");
    let store = bench.path("docker");
    let write = |path: &str, text: &str| {
        let path = store.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let (lower, upper) = ("1".repeat(64), "2".repeat(64));
    for (id, parent) in [(&lower, ""), (&upper, &*lower)] {
        let description = json!({
            "id": id, "parent": parent, "created": "2015-06-01T12:00:00Z", "os": "linux",
            "architecture": cowshed_testkit::images::architecture(),
            "container_config": {"Cmd": ["/bin/sh", "-c", "make"]}, "config": {"Cmd": ["/bin/sh"]},
        });
        write(&format!("graph/{id}/json"), &description.to_string());
        write(&format!("graph/{id}/layersize"), "8");
        write(&format!("aufs/layers/{id}"), parent);
    }
    write(&format!("aufs/diff/{lower}/etc/one"), "old\n");
    write(&format!("aufs/diff/{lower}/etc/folder/old"), "old\n");
    write(&format!("aufs/diff/{upper}/etc/.wh.one"), "");
    write(&format!("aufs/diff/{upper}/etc/folder/.wh..wh..opq"), "");
    write(&format!("aufs/diff/{upper}/etc/folder/new"), "new\n");
    let names =
        json!({"Repositories": {"app": {"1": upper}, "quay.io/acme/base": {"latest": lower}}});
    write("repositories-aufs", &names.to_string());

    let output = bench
        .command(migrate(&store))
        .arg("--json")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = lines(&output);
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in &lines {
        assert!(line.contains("were made anew of their files"), "{line}");
    }
    let migrated: Value = serde_json::from_slice(&output.stdout).unwrap();
    let app = image(&migrated, "app:1");
    assert_eq!(app["old_id"], *upper);
    assert_eq!(app["layers"].as_array().unwrap().len(), 2);
    assert_eq!(app["layers"][0]["exact"], false);
    expect_files(&bench, "app:1", &[("folder/new", "new\n")]);
    expect_files(
        &bench,
        "quay.io/acme/base",
        &[("folder/old", "old\n"), ("one", "old\n")],
    );
    let details = bench.json(["image", "inspect", "app:1"]);
    assert_eq!(details["id"], app["id"]);
    let diff_ids = &details["config"]["rootfs"]["diff_ids"];
    assert_eq!(
        *diff_ids,
        json!([app["layers"][0]["diff_id"], app["layers"][1]["diff_id"]])
    );
    assert_eq!(details["config"]["history"].as_array().unwrap().len(), 2);

    // A file that would be read again is not there any more.
    fs::remove_file(store.join(format!("aufs/diff/{upper}/etc/folder/new"))).unwrap();
    let output = bench
        .command(migrate(&store))
        .arg("--json")
        .output()
        .unwrap();
    let again: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = image(&again, "app:1");
    assert_eq!(found["id"], app["id"]);
    assert_eq!(found["layers"][1]["reused"], true);
    bench.expect_sound();
}

#[test]
fn an_interruption_leaves_whole_images_and_the_next_run_goes_on() {
    let bench = Bench::with_pool("2G");
    let store = bench.path("docker");
    let write = |path: String, text: &[u8]| {
        let path = store.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let (small, large) = ("1".repeat(64), "2".repeat(64));
    for id in [&small, &large] {
        let description = json!({"id": id, "os": "linux"});
        write(
            format!("graph/{id}/json"),
            description.to_string().as_bytes(),
        );
    }
    write(format!("aufs/diff/{small}/etc/one"), b"one\n");
    // What tar-split keeps of a file that takes a while to read.
    let file = |len: u64| {
        write(format!("aufs/diff/{large}/large"), b"");
        let path = store.join(format!("aufs/diff/{large}/large"));
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(len).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_path("large").unwrap();
        header.set_mode(0o644);
        header.set_size(len);
        header.set_cksum();
        let split = [
            json!({"type": 2, "payload": base64(&bench, header.as_bytes())}),
            json!({"type": 1, "name": "large", "size": len}),
            json!({"type": 2, "payload": base64(&bench, &[0; 1024])}),
        ];
        let split = split.map(|line| line.to_string()).join("\n");
        write(format!("graph/{large}/tar-data.json"), split.as_bytes());
        let split = store.join(format!("graph/{large}/tar-data.json"));
        host("gzip", ["--force", split.to_str().unwrap()]);
    };
    file(LARGE_BYTES);
    let names = json!({"Repositories": {"small": {"1": small}, "large": {"1": large}}});
    write("repositories-aufs".to_owned(), names.to_string().as_bytes());

    let daemon = bench.serve();
    let mut command = bench.command(migrate(&store));
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let images = || bench.json(["image", "ls"]).as_array().unwrap().len();
    let in_work = || bench.volumes().iter().any(|name| name.starts_with("work/"));
    eventually("the small image, beside the large one", || {
        images() == 1 && in_work()
    });
    host("kill", ["-TERM", &child.id().to_string()]);
    assert!(!child.wait_with_output().unwrap().status.success());
    // The daemon hears of it, and removes what it had begun.
    eventually("an end of the large image", || !in_work());
    assert_eq!(images(), 1);

    file(1 << 20);
    let migrated = bench.json(migrate(&store));
    assert_eq!(image(&migrated, "small:1")["layers"][0]["reused"], true);
    assert_eq!(image(&migrated, "large:1")["layers"][0]["exact"], true);
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn what_is_no_store_is_refused_in_one_line() {
    let bench = Bench::with_pool("2G");
    let folder = bench.path("folder");
    fs::create_dir(&folder).unwrap();
    let output = bench.run(migrate(&folder));
    expect_failure(&output, 1, "it holds no images of Docker");
    expect_failure(
        &bench.run(migrate(&bench.path("nothing"))),
        1,
        "No such file",
    );
}

#[test]
fn a_name_stays_that_of_the_first_image_and_an_image_that_fits_no_record_is_named() {
    let bench = Bench::with_pool("2G");
    let store = bench.path("docker");
    let write = |path: String, text: &str| {
        let path = store.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let ids = ["1", "2", "3"].map(|digit| digit.repeat(64));
    let [aufs, overlay, large] = &ids;
    for (id, comment) in [(aufs, 1), (overlay, 1), (large, 2 << 20)] {
        let description = json!({"id": id, "os": "linux", "comment": "x".repeat(comment)});
        write(format!("graph/{id}/json"), &description.to_string());
    }
    write(format!("aufs/diff/{aufs}/etc/one"), "aufs\n");
    write(format!("aufs/diff/{large}/etc/one"), "large\n");
    write(format!("overlay/{overlay}/root/etc/one"), "overlay\n");
    let of_aufs = json!({"Repositories": {
        "app": {"1": aufs}, "kept": {"1": aufs}, "large": {"1": large},
    }});
    write("repositories-aufs".to_owned(), &of_aufs.to_string());
    let of_overlay = json!({"Repositories": {"app": {"1": overlay}, "other": {"1": overlay}}});
    write("repositories-overlay".to_owned(), &of_overlay.to_string());
    // The pool has another image of one of the names.
    let root = bench.path("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/one"), "mine\n").unwrap();
    let root = root.to_str().unwrap();
    let mine = bench.json(["image", "import", root, "--rootfs", "--name", "kept:1"]);

    for _ in 0..2 {
        let output = bench
            .command(migrate(&store))
            .arg("--json")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let lines = lines(&output);
        let has = |part: &str| lines.iter().any(|line| line.contains(part));
        let two = format!(
            "app:1 is the name of two images in the store: {} gets it, and {} does not",
            &aufs[..12],
            &overlay[..12]
        );
        assert!(has(&two), "{lines:?}");
        assert!(
            has("kept:1 is another image here; `cowshed image tag "),
            "{lines:?}"
        );
        let refused = format!(
            "image large:1 ({}): the image's configuration is not valid: it is larger than a record",
            &large[..12]
        );
        assert!(has(&refused), "{lines:?}");
        let migrated: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(image(&migrated, "app:1")["old_id"], **aufs);
        assert_eq!(image(&migrated, "app:1")["names"], json!(["app:1"]));
        assert_eq!(image(&migrated, "other:1")["names"], json!(["other:1"]));
        let kept = bench.json(["image", "inspect", "kept:1"]);
        let id = mine.get("id").unwrap_or_else(|| &mine[0]["id"]);
        assert_eq!(kept["id"], *id);
    }
    bench.expect_sound();
}
