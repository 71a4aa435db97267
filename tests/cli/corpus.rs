//! Images made by common tools: skopeo, umoci and buildah write them in every form that they
//! support, cowshed imports them, and the trees are compared. Skopeo reads what cowshed exports.

use crate::harness::{Bench, Daemon, host};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder with a small tree, an image `app:1` of it in the pool, and the daemon.
struct Corpus {
    bench: Bench,
    daemon: Daemon,
    root: PathBuf,
}

impl Corpus {
    fn new() -> Self {
        let bench = Bench::with_pool("2G");
        let root = bench.path("root");
        fs::create_dir_all(root.join("etc/empty")).unwrap();
        fs::write(root.join("etc/motd"), b"hello\n").unwrap();
        std::os::unix::fs::symlink("motd", root.join("etc/link")).unwrap();
        let daemon = bench.serve();
        bench.ok(["image", "import", root.to_str().unwrap(), "--name", "app:1"]);
        Self {
            bench,
            daemon,
            root,
        }
    }

    fn path(&self, name: &str) -> String {
        self.bench.path(name).to_str().unwrap().to_owned()
    }

    /// Imports `source`, which has these names, and compares its tree with that of `root`.
    fn expect(&self, source: &str, arguments: &[&str], names: &[&str], root: &Path) {
        let import = ["image", "import", source];
        let imported = self.bench.json(import.iter().chain(arguments));
        assert_eq!(imported["images"].as_array().unwrap().len(), 1, "{source}");
        assert_eq!(imported["names"], serde_json::json!(names), "{source}");
        let id = imported["id"].as_str().unwrap();
        let path = self
            .bench
            .ok(["container", "create", id, "--name=c", "--mount"]);
        assert_eq!(tree(Path::new(path.trim())), tree(root), "{source}");
        self.bench.ok(["container", "rm", "c"]);
    }

    fn close(self) {
        self.daemon.stop();
        self.bench.expect_sound();
    }
}

/// Returns every name with its kind, its mode and the target of a link.
fn tree(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let list = host(
        "find",
        [
            folder,
            "-mindepth",
            "1",
            "!",
            "-name",
            "lost+found",
            "-printf",
            "%P %y %m %l %s\n",
        ],
    );
    let mut lines: Vec<_> = list
        .lines()
        .map(|line| match line.split_once(" d ") {
            // The size of a directory depends on the file system.
            Some((name, rest)) => format!("{name} d {}", rest.split(' ').next().unwrap()),
            None => line.to_owned(),
        })
        .collect();
    lines.sort();
    lines
}

fn skopeo(source: &str, target: &str) {
    host(
        "skopeo",
        ["--insecure-policy", "copy", "--quiet", source, target],
    );
}

#[test]
fn what_skopeo_writes_in_any_form_is_imported_and_it_reads_what_is_exported() {
    let corpus = Corpus::new();
    let exported = corpus.path("app.tar");
    corpus.bench.ok(["image", "export", "app:1", &*exported]);
    // Selected by the name in Docker's manifest, by the tag in the layout's index, and as the only
    // image.
    for (source, target) in [
        (format!("docker-archive:{exported}:app:1"), "dir"),
        (format!("oci-archive:{exported}:1"), "dir-of-tag"),
        (format!("oci-archive:{exported}"), "dir-of-only"),
    ] {
        let target = corpus.path(target);
        skopeo(&source, &format!("dir:{target}"));
        corpus.expect(
            &target,
            &["--name", "from/dir"],
            &["from/dir:latest"],
            &corpus.root,
        );
        corpus.expect(&target, &[], &[], &corpus.root);
    }
    let source = format!("dir:{}", corpus.path("dir"));
    for (transport, name, found) in [
        ("oci", "v1", "v1:latest"),
        ("oci-archive", "docker.io/library/other:2", "other:2"),
        ("docker-archive", "quay.io/acme/app:3", "quay.io/acme/app:3"),
    ] {
        let target = corpus.path(transport);
        skopeo(&source, &format!("{transport}:{target}:{name}"));
        corpus.expect(&target, &[], &[found], &corpus.root);
        corpus.bench.ok(["image", "inspect", name]);
    }
    // Without their index they are not mistaken for roots.
    fs::remove_file(corpus.bench.path("oci/index.json")).unwrap();
    let oci = corpus.path("oci");
    corpus
        .bench
        .fails(["image", "import", &*oci], 1, "--rootfs");
    corpus.close();
}

#[test]
fn what_umoci_writes_is_imported_and_its_bundle_is_not_taken_for_a_root() {
    let corpus = Corpus::new();
    let (layout, bundle) = (corpus.path("layout"), corpus.path("bundle"));
    let image = format!("{layout}:v1");
    host("umoci", ["init", "--layout", &*layout]);
    host("umoci", ["new", "--image", &*image]);
    host("umoci", ["unpack", "--image", &*image, &*bundle]);
    let root = corpus.bench.path("bundle/rootfs");
    fs::create_dir(root.join("etc")).unwrap();
    fs::write(root.join("etc/one"), b"one\n").unwrap();
    host("umoci", ["repack", "--image", &*image, &*bundle]);
    fs::remove_file(root.join("etc/one")).unwrap();
    fs::write(root.join("etc/two"), b"two\n").unwrap();
    host(
        "umoci",
        ["repack", "--image", &*image, "--refresh-bundle", &*bundle],
    );
    corpus.expect(&layout, &[], &["v1:latest"], &root);
    let refused = ["image", "import", &*bundle];
    corpus.bench.fails(refused, 1, "import that directory");
    corpus.close();
}

#[test]
fn what_buildah_writes_in_any_form_is_imported() {
    let corpus = Corpus::new();
    let policy = corpus.path("policy.json");
    fs::write(
        &policy,
        r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
    )
    .unwrap();
    let (storage, run) = (corpus.path("storage"), corpus.path("run"));
    let buildah = |arguments: &[&str]| {
        let storage = [
            "--root",
            &*storage,
            "--runroot",
            &*run,
            "--storage-driver",
            "vfs",
        ];
        host("buildah", storage.iter().chain(arguments))
    };
    buildah(&["from", "--name", "work", "scratch"]);
    buildah(&["copy", "work", corpus.root.to_str().unwrap(), "/"]);
    buildah(&[
        "commit",
        "--quiet",
        "--signature-policy",
        &policy,
        "work",
        "built:1",
    ]);
    for (transport, name, found) in [
        ("dir", "", &[][..]),
        ("oci-archive", ":built:1", &["built:1"]),
        // With the image's name in buildah's storage.
        (
            "docker-archive",
            ":built:1",
            &["built:1", "localhost/built:1"],
        ),
    ] {
        let target = corpus.path(transport);
        let place = format!("{transport}:{target}{name}");
        buildah(&[
            "push",
            "--quiet",
            "--signature-policy",
            &policy,
            "built:1",
            &place,
        ]);
        corpus.expect(&target, &[], found, &corpus.root);
    }
    corpus.close();
}

#[test]
fn several_images_go_out_and_come_in_together() {
    let corpus = Corpus::new();
    let bench = &corpus.bench;
    let other = bench.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("other"), b"other").unwrap();
    let other = other.to_str().unwrap();
    bench.ok(["image", "import", other, "--name", "quay.io/acme/other:2"]);
    let (first, second) = (corpus.path("first.tar"), corpus.path("second.tar"));
    let exported = bench.json(["image", "export", "app:1", "quay.io/acme/other:2", &*first]);
    assert_eq!(exported["images"].as_array().unwrap().len(), 2);
    let option = [
        "image",
        "export",
        "docker.io/library/app:1",
        "quay.io/acme/other:2",
    ];
    bench.ok(option.into_iter().chain(["--output", &*second]));
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());
    let wrong = bench.run(["image", "export", "app:1"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("file is missing"));
    let there = Bench::with_pool("2G");
    let imported = there.json(["image", "import", &*first]);
    let names = |image: &Value| image["names"][0].as_str().unwrap().to_owned();
    let all: Vec<_> = imported["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(names)
        .collect();
    assert_eq!(all, ["app:1", "quay.io/acme/other:2"]);
    assert_eq!(imported["id"], imported["images"][0]["id"]);
    let one = Bench::with_pool("2G");
    one.ok(["image", "import", &*first, "--name", "quay.io/acme/other:2"]);
    assert_eq!(one.json(["image", "ls"]).as_array().unwrap().len(), 1);
    one.fails(["image", "import", &*first, "--name", "third"], 1, "app:1");
    skopeo(
        &format!("docker-archive:{first}:quay.io/acme/other:2"),
        &format!("dir:{}", corpus.path("dir")),
    );
    corpus.expect(&corpus.path("dir"), &[], &[], Path::new(other));
    corpus.close();
}
