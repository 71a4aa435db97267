//! Images sent to a real registry through the command line.

use crate::command;
use crate::pull::pull;
use crate::real::Registry;
use cowshed_testkit::fixtures::busybox;
use cowshed_testkit::harness::{Bench, expect_failure};
use serde_json::{Value, json};
use std::process::Command;

/// Returns the command that pushes with the registry's password and certificate.
pub(crate) fn pushing(bench: &Bench, registry: &Registry, arguments: &[&str]) -> Command {
    let authority = registry.authority();
    let start = [
        "image",
        "push",
        "--json",
        "--ca",
        authority.to_str().unwrap(),
    ];
    let mut command = command(bench, start.iter().chain(arguments));
    command.env("REGISTRY_AUTH_FILE", registry.login());
    command
}

/// Pushes, which must succeed.
pub(crate) fn push(bench: &Bench, registry: &Registry, arguments: &[&str]) -> Value {
    let output = pushing(bench, registry, arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns how many layers the registry had before.
pub(crate) fn reused(pushed: &Value) -> usize {
    let layers = pushed["layers"].as_array().unwrap();
    layers.iter().filter(|it| it["reused"] == true).count()
}

#[test]
fn a_pushed_image_is_what_other_programs_and_another_pool_read() {
    let registry = Registry::start();
    let bench = Bench::with_pool("2G");
    let image = busybox::image();
    let layout = image.oci.to_str().unwrap();
    bench.ok_quietly(["image", "import", layout, "--name", "busy:1"]);
    let target = format!("{}/team/busy:1", registry.server);
    let pushed = push(&bench, &registry, &["busy:1", &target]);
    assert_eq!(pushed["name"], json!(target));
    assert_eq!(pushed["layers"].as_array().unwrap().len(), 3);
    assert_eq!(reused(&pushed), 0, "{pushed}");

    // skopeo verifies each blob, and reads the manifest by its digest.
    let copy = bench.path("copy");
    let by_digest = format!(
        "docker://{}/team/busy@{}",
        registry.server,
        pushed["manifest"].as_str().unwrap()
    );
    registry.skopeo_copy(&by_digest, &format!("oci:{}:x", copy.display()));
    let config = pushed["id"].as_str().unwrap().replace(':', "/");
    assert!(copy.join("blobs").join(config).exists());

    let other = Bench::with_pool("2G");
    let pulled = pull(&other, &registry, &target);
    assert_eq!(pulled["id"], pushed["id"]);
    for (one, other) in pulled["layers"]
        .as_array()
        .unwrap()
        .iter()
        .zip(pushed["layers"].as_array().unwrap())
    {
        assert_eq!(one["diff_id"], other["diff_id"]);
        assert_eq!(one["chain_id"], other["chain_id"]);
    }

    // What was sent once is not written again, whoever has the pool open.
    let again = push(&bench, &registry, &["busy:1", &target]);
    assert_eq!(reused(&again), 3, "{again}");
    assert_eq!(again["manifest"], pushed["manifest"]);
    let daemon = bench.serve();
    let tag = format!("{}/team/busy:2", registry.server);
    let again = push(&bench, &registry, &["busy:1", &tag]);
    assert_eq!(reused(&again), 3, "{again}");
    assert_eq!(again["manifest"], pushed["manifest"]);
    // In another repository of the registry it is mounted.
    let elsewhere = format!("{}/other/busy:1", registry.server);
    let mounted = push(&bench, &registry, &["busy:1", &elsewhere]);
    assert_eq!(reused(&mounted), 3, "{mounted}");
    // With another compression all layers are sent.
    let packed = push(
        &bench,
        &registry,
        &["busy:1", &elsewhere, "--compression", "zstd"],
    );
    assert_eq!(reused(&packed), 0, "{packed}");
    assert_ne!(packed["manifest"], pushed["manifest"]);
    assert_eq!(packed["id"], pushed["id"]);
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn the_layers_of_a_pulled_image_are_the_blobs_that_were_fetched() {
    let registry = Registry::start();
    let image = busybox::image();
    let layout = format!("oci:{}", image.oci.display());
    let source = format!("{}/base/busy:1", registry.server);
    registry.skopeo_copy(&layout, &format!("docker://{source}"));
    let bench = Bench::with_pool("2G");
    let pulled = pull(&bench, &registry, &source);
    let target = format!("{}/mine/busy:1", registry.server);
    let pushed = push(&bench, &registry, &[&source, &target]);
    assert_eq!(pushed["id"], pulled["id"]);
    assert_eq!(reused(&pushed), 3, "{pushed}");
}

#[test]
fn a_push_that_is_not_allowed_or_names_no_registry_is_one_line() {
    let registry = Registry::start();
    let bench = Bench::with_pool("2G");
    let image = busybox::image();
    let layout = image.oci.to_str().unwrap();
    let imported = bench.json(["image", "import", layout, "--name", "busy:1"]);
    let target = format!("{}/busy:1", registry.server);
    let run = |arguments: &[&str]| command(&bench, arguments).output().unwrap();
    let authority = registry.authority();
    let ca = ["--ca", authority.to_str().unwrap()];

    let untrusted = run(&["image", "push", "busy:1", &target]);
    expect_failure(&untrusted, 1, "or that of its authority (--ca)");
    let anonymous = run(&[&["image", "push", "busy:1", &target], &ca[..]].concat());
    expect_failure(&anonymous, 1, "log in");
    let missing = run(&[&["image", "push", "none:1", &target], &ca[..]].concat());
    expect_failure(&missing, 1, "there is no image none:1");
    let with_digest = format!("{target}@sha256:{}", "0".repeat(64));
    let digest = run(&["image", "push", "busy:1", &with_digest]);
    expect_failure(&digest, 1, "a digest cannot be given");
    let id = imported["id"].as_str().unwrap();
    let short = &id["sha256:".len()..][..12];
    let by_id = run(&["image", "push", short]);
    expect_failure(&by_id, 2, "DEST");
    let by_whole_id = run(&["image", "push", id]);
    expect_failure(&by_whole_id, 2, "DEST");
}
