//! The whole walk with cowshed's commands alone: an image is pulled, another one is made of it, both
//! have containers, all are removed, and the image is pulled again.

use crate::command;
use crate::pull::pull;
use crate::real::Registry;
use cowshed_testkit::fixtures::busybox;
use cowshed_testkit::harness::{Bench, host};
use std::fs;
use std::path::Path;

#[test]
fn an_image_is_pulled_extended_used_removed_and_pulled_again() {
    let registry = Registry::start();
    let image = busybox::image();
    let reference = format!("{}/busy:1", registry.server);
    let layout = format!("oci:{}", image.oci.display());
    registry.skopeo_copy(&layout, &format!("docker://{reference}"));
    let bench = Bench::with_pool("4G");
    let daemon = bench.serve();

    let pulled = pull(&bench, &registry, &reference);
    let steps = bench.json(["image", "history", &reference]);
    let with_layers = steps.as_array().unwrap().iter();
    assert_eq!(
        with_layers
            .filter(|step| step["diff_id"].is_string())
            .count(),
        3
    );

    // A second image, whose layer of twelve bytes costs what it must and no more.
    bench.ok_quietly(["container", "create", &reference, "--name", "maker"]);
    let maker = bench.json(["container", "mount", "maker"]);
    let root = Path::new(maker["path"].as_str().unwrap());
    fs::write(root.join("note"), "twelve bytes").unwrap();
    let committed = bench.json(["container", "commit", "maker", "mine:1"]);
    let layers = committed["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    let own_bytes = layers[3]["own_bytes"].as_u64().unwrap();
    assert!((4096..1 << 20).contains(&own_bytes), "{own_bytes}");
    bench.ok(["container", "unmount", "maker"]);
    bench.ok(["container", "rm", "maker"]);

    // Five containers of it, each of which costs next to nothing, and runs a command.
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        bench.ok_quietly(["container", "create", "mine:1", "--name", name]);
        let mounted = bench.json(["container", "mount", name]);
        let root = mounted["path"].as_str().unwrap();
        let said = host("chroot", [root, "/bin/busybox", "cat", "/note"]);
        assert_eq!(said, "twelve bytes");
    }
    let all = bench.json(["container", "ls"]);
    assert_eq!(all.as_array().unwrap().len(), names.len());
    for container in all.as_array().unwrap() {
        assert!(
            container["own_bytes"].as_u64().unwrap() < 1 << 20,
            "{container}"
        );
    }

    // All is removed and pulled again.
    for name in names {
        bench.ok(["container", "unmount", name]);
        bench.ok(["container", "rm", name]);
    }
    bench.ok(["image", "rm", "mine:1"]);
    bench.ok(["image", "rm", &reference]);
    assert_eq!(bench.json(["image", "ls"]), serde_json::json!([]));
    let again = pull(&bench, &registry, &reference);
    assert_eq!(again["id"], pulled["id"]);
    assert!(
        again["layers"]
            .as_array()
            .unwrap()
            .iter()
            .all(|layer| layer["reused"] == false)
    );
    let authority = registry.authority();
    let by_digest = [
        "image",
        "pull",
        "--ca",
        authority.to_str().unwrap(),
        &reference,
    ];
    let output = command(&bench, by_digest)
        .env("REGISTRY_AUTH_FILE", registry.login())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("3 layers, 3 reused"),
        "{output:?}"
    );
    daemon.stop();
    bench.expect_sound();
}
