//! Images fetched from a real registry through the command line.

use crate::command;
use crate::real::{PASSWORD, Registry};
use cowshed_testkit::fixtures::{busybox, listing};
use cowshed_testkit::harness::{Bench, expect_failure};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Pulls with the registry's password and certificate.
pub(crate) fn pull(bench: &Bench, registry: &Registry, reference: &str) -> Value {
    let authority = registry.authority();
    let arguments = [
        "image",
        "pull",
        "--json",
        "--ca",
        authority.to_str().unwrap(),
        reference,
    ];
    let output = command(bench, arguments)
        .env("REGISTRY_AUTH_FILE", registry.login())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn files_in(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn a_pulled_image_is_the_one_that_an_import_makes_and_comes_only_once() {
    let registry = Registry::start();
    let image = busybox::image();
    let reference = format!("{}/team/busy:1", registry.server);
    let layout = format!("oci:{}", image.oci.display());
    registry.skopeo_copy(&layout, &format!("docker://{reference}"));

    let bench = Bench::with_pool("2G");
    let pulled = pull(&bench, &registry, &reference);
    assert_eq!(pulled["names"], serde_json::json!([reference]));
    assert_eq!(pulled["images"][0]["id"], pulled["id"]);
    let layers = pulled["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 3);
    assert!(
        layers.iter().all(|layer| layer["reused"] == false),
        "{pulled}"
    );
    assert_eq!(
        files_in(&bench.path("cache")),
        0,
        "what was fetched is removed"
    );

    let other = Bench::with_pool("2G");
    let imported = other.json(["image", "import", image.oci.to_str().unwrap()]);
    assert_eq!(imported["id"], pulled["id"]);
    for (one, other) in layers.iter().zip(imported["layers"].as_array().unwrap()) {
        assert_eq!(one["chain_id"], other["chain_id"]);
    }

    // A daemon does the same, without a network of its own; nothing is fetched again.
    let daemon = bench.serve();
    let again = pull(&bench, &registry, &reference);
    let layers = again["layers"].as_array().unwrap();
    assert!(
        layers.iter().all(|layer| layer["reused"] == true),
        "{again}"
    );
    bench.ok(["image", "rm", &reference]);
    let anew = pull(&bench, &registry, &reference);
    assert_eq!(anew["id"], pulled["id"]);
    assert_eq!(anew["layers"][2]["reused"], false);
    bench.ok_quietly(["container", "create", &reference, "--name", "c"]);
    let mounted = bench.json(["container", "mount", "c"]);
    let found = listing::of(Path::new(mounted["path"].as_str().unwrap()));
    assert!(found.len() > 10);
    bench.ok(["container", "unmount", "c"]);
    daemon.stop();
    bench.expect_sound();
}

#[test]
fn a_certificate_that_signs_itself_is_trusted_where_it_is_given_and_for_its_names() {
    let registry = Registry::self_signed("IP:127.0.0.1");
    let other = Registry::self_signed("IP:127.0.0.1");
    let elsewhere = Registry::self_signed("DNS:registry.example");
    let bench = Bench::with_pool("2G");
    let pull = |from: &Registry, given: Option<&Registry>| {
        let reference = format!("{}/busy:1", from.server);
        let mut command = command(&bench, ["image", "pull", &reference]);
        if let Some(given) = given {
            command.arg("--ca").arg(given.certificate());
        }
        command.output().unwrap()
    };
    // What the registry answers comes over a connection that is trusted.
    let trusted = pull(&registry, Some(&registry));
    expect_failure(&trusted, 1, "refuses the image busy:1");
    let unknown = "as its own; give that certificate (--ca)";
    for untrusted in [pull(&registry, None), pull(&registry, Some(&other))] {
        expect_failure(&untrusted, 1, unknown);
        let said = String::from_utf8_lossy(&untrusted.stderr);
        assert!(!said.contains("Other"), "{said}");
    }
    let named_otherwise = pull(&elsewhere, Some(&elsewhere));
    expect_failure(&named_otherwise, 1, "is for another name");
}

#[test]
fn the_certificate_of_a_server_that_was_given_is_no_authority() {
    let registry = Registry::signed_by_a_server();
    let bench = Bench::with_pool("2G");
    let reference = format!("{}/busy:1", registry.server);
    let pull = |given: &Path| {
        let mut command = command(&bench, ["image", "pull", &reference, "--ca"]);
        command.arg(given).output().unwrap()
    };
    let refused = pull(&registry.authority());
    expect_failure(&refused, 1, "no authority that is trusted here has signed");
    // What it has signed is trusted where that is given itself.
    let trusted = pull(&registry.certificate());
    expect_failure(&trusted, 1, "refuses the image busy:1");
}

#[test]
fn without_a_password_or_a_trusted_certificate_nothing_is_fetched() {
    let registry = Registry::start();
    let image = busybox::image();
    let reference = format!("{}/busy:1", registry.server);
    let layout = format!("oci:{}", image.oci.display());
    registry.skopeo_copy(&layout, &format!("docker://{reference}"));
    let bench = Bench::with_pool("2G");
    let authority = registry.authority();
    let authority = authority.to_str().unwrap();

    let run = |arguments: &[&str]| command(&bench, arguments).output().unwrap();
    let untrusted = run(&["image", "pull", &reference]);
    expect_failure(&untrusted, 1, "is not trusted");
    expect_failure(&untrusted, 1, "or that of its authority (--ca)");
    let anonymous = run(&["image", "pull", "--ca", authority, &reference]);
    expect_failure(&anonymous, 1, "refuses the image busy:1");
    expect_failure(&anonymous, 1, "(asked without a login)");
    let plain = run(&["image", "pull", "--plain-http", &reference]);
    expect_failure(
        &plain,
        1,
        "wants TLS, and was asked over plain HTTP (omit --plain-http)",
    );
    let wrong = bench.path("wrong.json");
    let text = format!(
        r#"{{"auths": {{"{}": {{"username": "user", "password": "wr0ng"}}}}}}"#,
        registry.server
    );
    fs::write(&wrong, text).unwrap();
    let refused = command(&bench, ["image", "pull", "--ca", authority, &reference])
        .env("REGISTRY_AUTH_FILE", &wrong)
        .output()
        .unwrap();
    expect_failure(
        &refused,
        1,
        "(asked with the login that was found); check the name, and log in",
    );
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !said.contains("wr0ng") && !said.contains(PASSWORD),
        "{said}"
    );
    let missing = format!("{}/busy:2", registry.server);
    let missing = command(&bench, ["image", "pull", "--ca", authority, &missing])
        .env("REGISTRY_AUTH_FILE", registry.login())
        .output()
        .unwrap();
    expect_failure(&missing, 1, "does not have the image busy:2");
    assert!(bench.volumes().is_empty(), "{:?}", bench.volumes());
}
