//! Images and containers through the command line, with the daemon and without.

use crate::harness::{Bench, expect_failure, host, is_mounted, loops_below, noise};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

/// Creates a folder that is a small root file system.
fn root(bench: &Bench) -> std::path::PathBuf {
    let root = bench.path("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::create_dir_all(root.join("usr/lib")).unwrap();
    fs::write(root.join("etc/motd"), b"hello\n").unwrap();
    fs::write(root.join("etc/secret"), b"x").unwrap();
    fs::set_permissions(root.join("etc/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(root.join("usr/lib/large"), noise(8 << 20, 1)).unwrap();
    root
}

/// Returns the contents of a folder: each path with its content.
fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let list = host(
        "find",
        [folder.to_str().unwrap(), "-type", "f", "-printf", "%P\n"],
    );
    let mut files: Vec<_> = list
        .lines()
        .map(|path| (path.to_owned(), fs::read(folder.join(path)).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_scrub_names_the_image_and_the_container_that_a_rotten_block_is_in() {
    let bench = Bench::with_pool("2G");
    let root = root(&bench);
    let path = root.to_str().unwrap();
    bench.ok(["image", "import", path, "--name", "mine:1"]);
    bench.ok(["container", "create", "mine:1", "--name", "web"]);
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    // A block of the large file must appear unchanged in the pool's file.
    let wanted = noise(8 << 20, 1)[1 << 20..][..4096].to_vec();
    let pool = fs::read(bench.pool()).unwrap();
    let at = pool.chunks(4096).position(|block| block == wanted);
    let at = at.expect("the file's blocks are in the pool") * 4096;
    let device = fs::File::options().write(true).open(bench.pool()).unwrap();
    device.write_all_at(&[!wanted[7]], at as u64 + 7).unwrap();
    drop(device);
    let scrub = bench.run(["pool", "scrub", "--json"]);
    assert_eq!(scrub.status.code(), Some(3), "{scrub:?}");
    let report: Value = serde_json::from_slice(&scrub.stdout).unwrap();
    let bad = report["bad"].as_array().unwrap();
    assert_eq!(bad.len(), 1, "{report}");
    assert_eq!(bad[0]["kind"], "data");
    assert_eq!(
        bad[0]["affects"],
        serde_json::json!(["container web", "image mine:1"])
    );
}

#[test]
fn an_image_becomes_containers_that_change_alone() {
    let bench = Bench::with_pool("2G");
    let root = root(&bench);
    let daemon = bench.serve();
    let imported = bench.json([
        "image",
        "import",
        root.to_str().unwrap(),
        "--name",
        "mine:1",
    ]);
    assert_eq!(imported["name"], "mine:1");
    assert_eq!(imported["layers"][0]["reused"], false);
    let created = bench.json(["container", "create", "mine:1", "--name", "one"]);
    assert_eq!(created["id"].as_str().unwrap().len(), 64);
    bench.ok(["container", "create", "mine:1", "--name", "two"]);
    let mount = |name: &str| {
        let answer = bench.json(["container", "mount", name]);
        std::path::PathBuf::from(answer["path"].as_str().unwrap())
    };
    let (one, two) = (mount("one"), mount("two"));
    assert!(
        content(&one) == content(&root),
        "the container is not as its image"
    );
    fs::write(one.join("new"), b"new").unwrap();
    fs::remove_file(one.join("etc/secret")).unwrap();
    let lines = bench.ok(["container", "diff", "one"]);
    assert_eq!(lines, "C /etc\nD /etc/secret\nA /new\n");
    let changes = bench.json(["container", "diff", "one"]);
    assert_eq!(changes[1]["kind"], "D");
    assert_eq!(changes[1]["path"], "/etc/secret");
    assert_eq!(
        bench.json(["container", "diff", "two"]),
        Value::Array(Vec::new())
    );
    assert!(
        content(&two) == content(&root),
        "the other container changed too"
    );
    let list = bench.json(["container", "ls"]);
    let first = &list[0];
    for field in ["id", "name", "image", "mounted", "created"] {
        assert!(first[field].is_string(), "{field} of {first}");
    }
    assert!(
        first["own_bytes"].is_u64() && first["virtual_bytes"].is_u64(),
        "{first}"
    );
    bench.fails(["image", "rm", "mine:1"], 1, "in use by");
    bench.ok(["container", "rm", "one", "two"]);
    bench.ok(["image", "rm", "mine:1"]);
    assert_eq!(bench.json(["image", "ls"]), Value::Array(Vec::new()));
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn one_command_makes_and_mounts_a_container_or_leaves_none() {
    let bench = Bench::with_pool("2G");
    let root = root(&bench);
    let source = root.to_str().unwrap();
    bench.ok(["image", "import", source, "--name", "mine:1"]);
    let create = ["container", "create", "mine:1", "--mount"];
    bench.fails(create, 1, "serve");
    let daemon = bench.serve();
    let nowhere = bench.path("nowhere");
    let nowhere = nowhere.to_str().unwrap();
    bench.fails(create.into_iter().chain(["--dir", nowhere]), 1, nowhere);
    assert_eq!(
        bench.json(["container", "ls"]),
        Value::Array(Vec::new()),
        "what failed left a container"
    );
    let one = bench.ok(create.into_iter().chain(["--name", "one"]));
    assert!(content(Path::new(one.trim())) == content(&root));
    let own = bench.path("own");
    fs::create_dir(&own).unwrap();
    let two = bench.json(create.into_iter().chain(["--dir", own.to_str().unwrap()]));
    assert_eq!(two["path"], own.to_str().unwrap());
    assert!(content(&own) == content(&root));
    let name = two["name"].as_str().unwrap();
    bench.fails(["container", "mount", "one", source], 1, "mounted at");
    bench.ok(["container", "rm", "one", name]);
    // A folder whose name JSON and the daemon's requests cannot represent as text.
    let odd = bench.path("").join(OsStr::from_bytes(b"odd-\xff"));
    fs::create_dir(&odd).unwrap();
    let arguments = create.map(OsStr::new).into_iter();
    let arguments = arguments.chain([
        OsStr::new("--name=odd"),
        OsStr::new("--dir"),
        odd.as_os_str(),
    ]);
    let output = bench.run(arguments);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read(odd.join("etc/motd")).unwrap(), b"hello\n");
    bench.ok(["container", "rm", "odd"]);
    assert!(!is_mounted(&own) && !Path::new(one.trim()).exists());
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn without_a_daemon_the_same_works_and_leaves_no_mount() {
    let bench = Bench::with_pool("2G");
    let root = root(&bench);
    bench.ok([
        "image",
        "import",
        root.to_str().unwrap(),
        "--name",
        "mine:1",
    ]);
    bench.ok(["container", "create", "mine:1", "--name", "one"]);
    fs::write(bench.path("added"), b"added\n").unwrap();
    let added = bench.path("added");
    bench.ok(["container", "cp", added.to_str().unwrap(), "one:/etc/added"]);
    assert_eq!(
        bench.ok(["container", "diff", "one"]),
        "C /etc\nA /etc/added\n"
    );
    let back = bench.path("back");
    bench.ok(["container", "cp", "one:/etc/motd", back.to_str().unwrap()]);
    assert_eq!(fs::read(&back).unwrap(), b"hello\n");
    let committed = bench.json(["container", "commit", "one", "mine:2"]);
    assert_eq!(committed["layers"].as_array().unwrap().len(), 2);
    assert_eq!(committed["layers"][0]["reused"], true);
    let history = bench.json(["image", "history", "mine:2"]);
    assert_eq!(history.as_array().unwrap().len(), 2);
    let inspected = bench.json(["image", "inspect", "mine:2"]);
    assert_eq!(inspected["id"], committed["id"]);

    // In another pool it is the same image.
    let archive = bench.path("mine.tar");
    bench.ok(["image", "export", "mine:2", archive.to_str().unwrap()]);
    let other = Bench::with_pool("2G");
    let mut import = other.command(["image", "import", "-", "--json"]);
    let mut child = import
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(&fs::read(&archive).unwrap())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let there: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(there["id"], committed["id"]);
    assert_eq!(there["name"], "mine:2");
    for bench in [&bench, &other] {
        // A daemon shows where the pool's mounts are.
        let daemon = bench.serve();
        let state = daemon.mount.parent().unwrap().to_owned();
        daemon.stop();
        assert!(loops_below(&state).is_empty(), "a loop device was left");
    }
    bench.expect_sound();
    other.expect_sound();
}

#[test]
fn an_image_is_exported_with_its_id_and_recipes_are_seen_only_when_asked_for() {
    let bench = Bench::with_pool("2G");
    let root = root(&bench);
    let archive = bench.path("root.tar");
    let (folder, tar) = (root.to_str().unwrap(), archive.to_str().unwrap());
    host(
        "tar",
        ["--create", "--file", tar, "--directory", folder, "."],
    );
    let imported = bench.json(["image", "import", tar, "--name", "mine:1"]);
    let exported = bench.path("exported.tar");
    let exported = exported.to_str().unwrap();
    bench.ok(["image", "export", "mine:1", exported]);
    let again = bench.json(["image", "import", exported, "--name", "again:1"]);
    assert_eq!(again["id"], imported["id"]);
    assert_eq!(again["layers"][0]["reused"], true);

    let recipe = imported["layers"][0]["chain_id"].as_str().unwrap();
    let recipe = format!("recipe/{recipe}");
    let shown = bench.json(["volume", "show", &recipe]);
    assert_eq!(shown["kind"], "snapshot");
    assert!(!bench.volumes().contains(&recipe));
    assert!(!bench.ok(["tree", "--no-trunc"]).contains(&recipe));
    assert!(bench.ok(["tree", "--all", "--no-trunc"]).contains(&recipe));
    bench.fails(["volume", "rm", &recipe], 1, "cowshed image");
    assert_eq!(bench.json(["gc"])["removed"], serde_json::json!([]));

    // One that has a file twice cannot be written as it was.
    fs::write(root.join("etc/motd"), "later").unwrap();
    host(
        "tar",
        [
            "--append",
            "--file",
            tar,
            "--directory",
            folder,
            "./etc/motd",
        ],
    );
    bench.ok_quietly(["image", "import", tar, "--name", "twice:1"]);
    bench.ok_quietly(["container", "create", "twice:1", "--name", "c"]);
    bench.ok(["container", "cp", tar, "c:/more"]);
    bench.ok_quietly(["container", "commit", "c", "more:1"]);
    bench.ok(["container", "rm", "c"]);
    let output = bench.run(["image", "export", "twice:1", "more:1", "--output", exported]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{output:?}");
    let warning = "imported (a later part of the layer replaced a file of it): it is";
    assert_eq!(said.matches(warning).count(), 1, "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for name in ["mine:1", "again:1", "twice:1", "more:1"] {
        bench.ok(["image", "rm", name]);
    }
    bench.fails(["volume", "show", &recipe], 1, "there is no volume recipe/");
    bench.expect_sound();
}

#[test]
fn a_volume_command_on_the_name_of_an_image_says_so() {
    let bench = Bench::with_pool("2G");
    let root = root(&bench);
    let path = root.to_str().unwrap();
    bench.ok(["image", "import", path, "--name", "mine:1"]);
    bench.ok(["volume", "create", "disk", "--size", "1M"]);
    let line = |arguments: &[&str]| {
        let output = bench.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said =
        "there is no volume mine:1; an image has that name (`cowshed image inspect mine:1`)\n";
    let try_all = || {
        assert_eq!(
            line(&["volume", "rm", "mine:1"]),
            "cowshed: remove volume mine:1: there is no volume mine:1; an image has that name \
             (`cowshed image rm mine:1`)\n"
        );
        for arguments in [
            &["volume", "show", "mine:1"][..],
            &["volume", "clone", "mine:1", "copy"],
            &["volume", "resize", "mine:1", "--size", "2M"],
            &["volume", "diff", "disk", "mine:1"],
            &["volume", "export", "mine:1", "-"],
            &["volume", "send", "mine:1"],
        ] {
            let line = line(arguments);
            assert!(line.ends_with(said), "{arguments:?}: {line}");
        }
    };
    try_all();
    let daemon = bench.serve();
    try_all();
    let line_of_attach = line(&["attach", "mine:1"]);
    assert!(line_of_attach.ends_with(said), "{line_of_attach}");
    daemon.stop();
    // A name that no image has, and the id of one, which is no name.
    let id = bench.json(["image", "inspect", "mine:1"])["id"].clone();
    for name in ["mine:2", id.as_str().unwrap()] {
        let line = line(&["volume", "rm", name]);
        assert!(
            line.ends_with(&format!("there is no volume {name}\n")),
            "{line}"
        );
    }
    bench.ok(["image", "inspect", "mine:1"]);
}

#[test]
fn an_import_into_a_full_pool_says_so_and_leaves_nothing() {
    let bench = Bench::with_pool("64M");
    let root = root(&bench);
    fs::write(root.join("usr/lib/larger"), noise(100 << 20, 2)).unwrap();
    let before = bench.volumes();
    let output = bench.run([
        "image",
        "import",
        root.to_str().unwrap(),
        "--name",
        "mine:1",
    ]);
    expect_failure(&output, 1, "no space left in the pool");
    assert_eq!(bench.json(["image", "ls"]), Value::Array(Vec::new()));
    let left: Vec<_> = bench
        .volumes()
        .into_iter()
        .filter(|name| !name.starts_with("template/"))
        .collect();
    assert_eq!(left, before);
    bench.expect_sound();
}

#[test]
fn what_is_no_image_is_refused_in_one_line() {
    let bench = Bench::with_pool("256M");
    let junk = bench.path("junk");
    fs::write(&junk, noise(1 << 20, 3)).unwrap();
    let output = bench.run(["image", "import", junk.to_str().unwrap()]);
    expect_failure(&output, 1, "import image");
    bench.fails(["image", "import", "/no/such/image"], 1, "No such file");
    bench.fails(
        ["image", "inspect", "nothing"],
        1,
        "there is no image nothing",
    );
    bench.fails(
        ["container", "create", "nothing"],
        1,
        "there is no image nothing",
    );
    bench.fails(
        ["container", "rm", "nothing"],
        1,
        "there is no container nothing",
    );
}

#[test]
fn containers_that_a_killed_daemon_left_mounted_are_cleared_away_and_mounted_again() {
    let bench = Bench::with_pool("2G");
    let root = root(&bench);
    let own = bench.path("own");
    fs::create_dir(&own).unwrap();
    let daemon = bench.serve();
    bench.ok([
        "image",
        "import",
        root.to_str().unwrap(),
        "--name",
        "mine:1",
    ]);
    for (name, dir) in [("one", Some(own.as_path())), ("two", None)] {
        bench.ok(["container", "create", "mine:1", "--name", name]);
        let dir = dir.map(|dir| dir.to_str().unwrap());
        bench.ok(["container", "mount", name].into_iter().chain(dir));
    }
    fs::write(own.join("kept"), b"kept").unwrap();
    host("sync", ["-f", own.to_str().unwrap()]);
    let volumes = daemon.mount.clone();
    daemon.kill();
    let next = bench.serve();
    assert_eq!(next.mount, volumes);
    assert!(!is_mounted(&own), "the dead mount is still there");
    assert_eq!(bench.json(["container", "ls"])[0]["mounted"], Value::Null);
    bench.ok(["container", "mount", "one", own.to_str().unwrap()]);
    assert_eq!(fs::read(own.join("kept")).unwrap(), b"kept");
    next.kill();
    // A command that opens the pool itself removes the same leftovers.
    assert!(bench.ok(["container", "diff", "one"]).contains("A /kept"));
    assert!(
        !is_mounted(&own) && !is_mounted(&volumes),
        "dead mounts are still there"
    );
    bench.expect_sound();
}

#[test]
fn an_image_is_found_by_every_form_of_its_name_and_shown_short() {
    let bench = Bench::with_pool("2G");
    let root = bench.path("small");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("f"), b"x").unwrap();
    let root = root.to_str().unwrap();
    for (given, shown, forms) in [
        (
            "app",
            "app:latest",
            &["app", "library/app", "docker.io/library/app:latest"][..],
        ),
        (
            "docker.io/library/debian:12",
            "debian:12",
            &["debian:12", "index.docker.io/debian:12"],
        ),
        (
            "localhost:5000/me/app",
            "localhost:5000/me/app:latest",
            &["localhost:5000/me/app"],
        ),
    ] {
        let imported = bench.json(["image", "import", root, "--name", given]);
        assert_eq!(imported["name"], shown);
        for form in forms {
            let inspected = bench.json(["image", "inspect", form]);
            assert_eq!(inspected["names"][0], shown, "{form}");
        }
        let container = bench.json(["container", "create", forms[0]]);
        let list = bench.json(["container", "ls"]);
        assert_eq!(list[0]["image"], shown);
        bench.ok(["container", "rm", container["name"].as_str().unwrap()]);
        let last = forms.last().unwrap();
        bench.ok(["container", "create", last, "--name", "c"]);
        bench.ok(["container", "commit", "c", &format!("{shown}-more")]);
        bench.ok(["container", "rm", "c"]);
        bench.ok(["image", "rm", last]);
        bench.fails(["image", "inspect", given], 1, "there is no image");
    }
    let names = bench.ok(["--no-trunc", "image", "ls"]);
    assert!(
        names.contains("debian:12-more") && !names.contains("docker.io"),
        "{names}"
    );
}

#[test]
fn an_image_gets_one_more_name_and_stays_until_the_last_is_gone() {
    let bench = Bench::with_pool("2G");
    let root = root(&bench);
    let id =
        bench.json(["image", "import", root.to_str().unwrap(), "--name", "app:1"])["id"].clone();
    assert_eq!(bench.ok(["image", "tag", "app:1", "app"]), "app:latest\n");
    let tagged = bench.json(["image", "tag", "app", "localhost:5000/me/app:1"]);
    assert_eq!(tagged["name"], "localhost:5000/me/app:1");
    assert_eq!(tagged["id"], id);
    // Again, by id, and under another form of a name that is there: nothing changes.
    bench.ok([
        "image",
        "tag",
        id.as_str().unwrap(),
        "docker.io/library/app:1",
    ]);
    let names = bench.json(["image", "inspect", "app"])["names"].clone();
    assert_eq!(
        names,
        serde_json::json!(["app:1", "app:latest", "localhost:5000/me/app:1"])
    );
    bench.ok(["image", "rm", "app:1", "app:latest"]);
    assert_eq!(
        bench.json(["image", "inspect", "localhost:5000/me/app:1"])["id"],
        id
    );
    // A name of another image goes over to this one, as with `image import`.
    fs::write(root.join("etc/motd"), b"other\n").unwrap();
    let other =
        bench.json(["image", "import", root.to_str().unwrap(), "--name", "app:2"])["id"].clone();
    bench.ok(["image", "tag", "localhost:5000/me/app:1", "app:2"]);
    assert_eq!(bench.json(["image", "inspect", "app:2"])["id"], id);
    assert_eq!(
        bench.json(["image", "inspect", other.as_str().unwrap()])["names"],
        serde_json::json!([])
    );
    bench.fails(["image", "tag", "none", "x"], 1, "there is no image none");
    bench.fails(["image", "tag", "app:2", "App"], 1, "lower case");
    bench.ok(["image", "rm", "app:2", "localhost:5000/me/app:1"]);
    bench.fails(
        ["image", "inspect", id.as_str().unwrap()],
        1,
        "there is no image",
    );
}

#[test]
fn a_name_that_docker_refuses_is_refused_before_anything_is_read() {
    let bench = Bench::with_pool("2G");
    let digits = "0123456789abcdef".repeat(4);
    let by_digest = format!("app@sha256:{digits}");
    for (name, why) in [
        ("App", "lower case"),
        ("quay.io/Me/app:1", "lower case"),
        ("app:", "tag"),
        ("a..b", "each part"),
        (&*digits, "id"),
        (&*by_digest, "digest"),
    ] {
        bench.fails(
            ["image", "import", "/no/such/image", "--name", name],
            1,
            why,
        );
    }
    let root = root(&bench);
    bench.ok(["image", "import", root.to_str().unwrap(), "--name", "app"]);
    bench.ok(["container", "create", "app", "--name", "c"]);
    bench.fails(["container", "commit", "c", "App:1"], 1, "lower case");
}

/// Creates a docker-archive of one image with an empty tree.
fn docker_archive(bench: &Bench, platform: (&str, &str), tag: &str) -> String {
    let folder = bench.path("archive");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    host("tar", ["-cf", &at("layer.tar"), "-T", "/dev/null"]);
    let sum = host("sha256sum", [at("layer.tar")]);
    let config = serde_json::json!({
        "os": platform.0, "architecture": platform.1,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", &sum[..64])]},
    });
    fs::write(at("config.json"), config.to_string()).unwrap();
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]);
    fs::write(at("manifest.json"), manifest.to_string()).unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn an_image_for_another_platform_is_told_or_refused_unless_it_is_asked_for() {
    let bench = Bench::with_pool("2G");
    let source = docker_archive(&bench, ("linux", "s390x"), "app:1");
    let import = bench.run(["image", "import", &*source]);
    let said = String::from_utf8_lossy(&import.stderr).into_owned();
    assert!(import.status.success(), "{said}");
    assert!(
        said.starts_with("warning: ") && said.contains("linux/s390x"),
        "{said}"
    );
    bench.ok(["image", "import", &*source, "--platform", "linux/s390x"]);
    let wrong = ["image", "import", &*source, "--platform", "linux/arm64"];
    bench.fails(
        wrong,
        1,
        "there is no image for linux/arm64 in it; it has linux/s390x",
    );
    let output = bench.run(["image", "import", &*source, "--platform", "pdp11"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let source = docker_archive(&bench, ("windows", "amd64"), "win:1");
    bench.fails(["image", "import", &*source], 1, "windows/amd64");
    bench.ok(["image", "import", &*source, "--platform", "windows/amd64"]);
}

#[test]
fn a_name_that_cannot_be_taken_from_an_image_is_told() {
    let bench = Bench::with_pool("2G");
    let source = docker_archive(&bench, ("linux", "amd64"), "App\u{1b}[31m:1");
    let import = bench.run(["image", "import", &*source]);
    let said = String::from_utf8_lossy(&import.stderr).into_owned();
    assert!(import.status.success(), "{said}");
    assert!(
        said.contains("left out") && !said.contains('\u{1b}'),
        "{said:?}"
    );
    assert_eq!(
        bench.json(["image", "ls"])[0]["names"],
        serde_json::json!([])
    );
}
