//! The whole walk with cowshed's commands alone: an image is pulled, another one is made of it and
//! pushed, both have containers, all are removed, and the images are pulled again. Other programs run
//! and read the result.

use crate::pull::pull;
use crate::push::{push, reused};
use crate::real::{PASSWORD, Registry, USER};
use cowshed_testkit::fixtures::busybox;
use cowshed_testkit::harness::{Bench, Reaped, eventually, host};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const CONTAINERS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Makes the image `mine:1`, which has a layer with a file of twelve bytes more.
fn extend(bench: &Bench, reference: &str) -> Value {
    bench.ok_quietly(["container", "create", reference, "--name", "maker"]);
    let maker = bench.json(["container", "mount", "maker"]);
    let root = Path::new(maker["path"].as_str().unwrap());
    fs::write(root.join("note"), "twelve bytes").unwrap();
    let committed = bench.json(["container", "commit", "maker", "mine:1"]);
    bench.ok(["container", "unmount", "maker"]);
    bench.ok(["container", "rm", "maker"]);
    committed
}

/// Returns the number of layers that an image has.
fn layers(image: &Value) -> usize {
    image["layers"].as_array().unwrap().len()
}

/// Runs a command with runc in the root of a container; returns its output.
fn run_with_runc(bench: &Bench, root: &str) -> String {
    let bundle = bench.path("bundle");
    fs::create_dir_all(&bundle).unwrap();
    let (path, state) = (bundle.to_str().unwrap(), bench.path("runc"));
    host("runc", ["spec", "--bundle", path]);
    let file = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/bin/busybox", "cat", "/note"]);
    config["root"] = json!({"path": root, "readonly": false});
    fs::write(&file, config.to_string()).unwrap();
    let id = format!("walk-{}", std::process::id());
    let state = state.to_str().unwrap();
    host("runc", ["--root", state, "run", "--bundle", path, &id])
}

/// Pulls an image with containerd; returns the line about it.
fn pull_with_containerd(bench: &Bench, registry: &Registry, reference: &str) -> String {
    let folder = bench.path("containerd");
    fs::create_dir_all(&folder).unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let socket = path("socket");
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n",
        path("root"),
        path("state")
    );
    fs::write(path("config.toml"), config).unwrap();
    let daemon = Command::new("containerd")
        .args(["--config", &path("config.toml")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(path("log")).unwrap())
        .spawn()
        .unwrap();
    let _daemon = Reaped(daemon);
    let ctr = |arguments: &[&str]| {
        let start = ["--address", &socket, "images"];
        let output = Command::new("ctr").args(start).args(arguments).output();
        output.unwrap()
    };
    eventually("containerd's start", || ctr(&["ls"]).status.success());
    let login = format!("{USER}:{PASSWORD}");
    // Otherwise it takes a registry on this host for one without TLS.
    let hosts = folder.join("hosts").join(&registry.server);
    fs::create_dir_all(&hosts).unwrap();
    let text = format!(
        "server = \"https://{0}\"\n[host.\"https://{0}\"]\nca = {1:?}\n",
        registry.server,
        registry.authority()
    );
    fs::write(hosts.join("hosts.toml"), text).unwrap();
    let pulled = ctr(&[
        "pull",
        "--snapshotter",
        "native",
        "--user",
        &login,
        "--hosts-dir",
        &path("hosts"),
        reference,
    ]);
    assert!(pulled.status.success(), "{pulled:?}");
    let listed = ctr(&["ls"]);
    String::from_utf8(listed.stdout).unwrap()
}

#[test]
fn an_image_is_pulled_extended_pushed_used_removed_and_pulled_again() {
    let registry = Registry::start();
    let image = busybox::image();
    let reference = format!("{}/busy:1", registry.server);
    let layout = format!("oci:{}", image.oci.display());
    registry.skopeo_copy(&layout, &format!("docker://{reference}"));
    let bench = Bench::with_pool("4G");
    let daemon = bench.serve();

    let pulled = pull(&bench, &registry, &reference);
    let steps = bench.json(["image", "history", &reference]);
    let steps = steps.as_array().unwrap().iter();
    assert_eq!(steps.filter(|step| step["diff_id"].is_string()).count(), 3);

    // A layer of twelve bytes costs what it must and no more, and so do containers.
    let committed = extend(&bench, &reference);
    assert_eq!(layers(&committed), 4);
    let own_bytes = committed["layers"][3]["own_bytes"].as_u64().unwrap();
    assert!((4096..1 << 20).contains(&own_bytes), "{own_bytes}");
    let steps = bench.json(["image", "history", "mine:1"]);
    assert!(steps[0]["size_bytes"].as_u64().unwrap() < 8192, "{steps}");
    for name in CONTAINERS {
        bench.ok_quietly(["container", "create", "mine:1", "--name", name]);
        let mounted = bench.json(["container", "mount", name]);
        let root = mounted["path"].as_str().unwrap();
        let said = host("chroot", [root, "/bin/busybox", "cat", "/note"]);
        assert_eq!(said, "twelve bytes");
    }
    let all = bench.json(["container", "ls"]);
    assert_eq!(all.as_array().unwrap().len(), CONTAINERS.len());
    for container in all.as_array().unwrap() {
        let own_bytes = container["own_bytes"].as_u64().unwrap();
        assert!(own_bytes < 1 << 20, "{container}");
    }

    // Only the new layer is sent; the others are mounted from the repository of the first image.
    let target = format!("{}/team/mine:1", registry.server);
    let pushed = push(&bench, &registry, &["mine:1", &target]);
    assert_eq!((layers(&pushed), reused(&pushed)), (4, 3), "{pushed}");
    assert_eq!(pushed["id"], committed["id"]);

    // The new image is removed, and only its own layer comes again.
    for name in CONTAINERS {
        bench.ok(["container", "unmount", name]);
        bench.ok(["container", "rm", name]);
    }
    bench.ok(["image", "rm", "mine:1"]);
    let again = pull(&bench, &registry, &target);
    assert_eq!(again["id"], committed["id"]);
    assert_eq!((layers(&again), reused(&again)), (4, 3), "{again}");
    bench.ok_quietly(["container", "create", &target, "--name", "run"]);
    let mounted = bench.json(["container", "mount", "run"]);
    let said = run_with_runc(&bench, mounted["path"].as_str().unwrap());
    assert_eq!(said, "twelve bytes");
    bench.ok(["container", "unmount", "run"]);
    bench.ok(["container", "rm", "run"]);

    // Everything is removed, and everything comes again.
    bench.ok(["image", "rm", &target]);
    bench.ok(["image", "rm", &reference]);
    assert_eq!(bench.json(["image", "ls"]), json!([]));
    let again = pull(&bench, &registry, &reference);
    assert_eq!(again["id"], pulled["id"]);
    assert_eq!((layers(&again), reused(&again)), (3, 0), "{again}");
    let again = pull(&bench, &registry, &reference);
    assert_eq!(reused(&again), 3, "{again}");
    daemon.stop();
    bench.expect_sound();

    let copy = bench.path("copy");
    let source = format!("docker://{target}");
    registry.skopeo_copy(&source, &format!("oci:{}:mine", copy.display()));
    let listed = pull_with_containerd(&bench, &registry, &target);
    let manifest = pushed["manifest"].as_str().unwrap();
    assert!(listed.contains(manifest), "{listed}");
}
