//! Inputs with several images, or with none that looks like one at first.

use super::*;

#[test]
fn the_host_s_platform_is_taken_from_nested_indexes() {
    let mut layout = Layout::default();
    let layer = |name: &str| {
        let plain = Tarball::new().file(name, b"").bytes();
        vec![("tar", plain.clone(), plain)]
    };
    let arm = layout.image(
        &layer("arm"),
        &json!({"architecture": "arm64", "os": "linux"}),
    );
    let amd = layout.image(
        &layer("amd"),
        &json!({"architecture": "amd64", "os": "linux"}),
    );
    let mut attestation = layout.image(
        &layer("no"),
        &json!({"architecture": "unknown", "os": "unknown"}),
    );
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let index = json!({"schemaVersion": 2, "manifests": [attestation, arm, amd]});
    let index = layout.document("application/vnd.oci.image.index.v1+json", &index);
    let outer = json!({"schemaVersion": 2, "manifests": [index]});
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let outer = layout.document(list, &outer);
    for manifests in [vec![outer], vec![arm.clone(), amd, attestation.clone()]] {
        let layout = Layout {
            manifests,
            ..layout.clone()
        }
        .with_index();
        let image = open_bytes(&layout.tar(), None).unwrap();
        assert_eq!(names(&unpack(&image).unwrap().1), ["amd"]);
    }
    // One for another platform is better than none; several are not.
    let only = Layout {
        manifests: vec![arm.clone()],
        ..layout.clone()
    }
    .with_index();
    assert_eq!(
        names(&unpack(&open_bytes(&only.tar(), None).unwrap()).unwrap().1),
        ["arm"]
    );
    let mips = layout.image(
        &layer("mips"),
        &json!({"architecture": "mips", "os": "linux"}),
    );
    let others = Layout {
        manifests: vec![arm, mips],
        ..layout
    }
    .with_index();
    let error = open_bytes(&others.tar(), None)
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("linux/amd64") && error.contains("linux/arm64, linux/mips"),
        "{error}"
    );
}

#[test]
fn one_of_several_images_is_chosen_by_name() {
    let mut layout = Layout::default();
    for (key, name) in [
        ("org.opencontainers.image.ref.name", "v1"),
        (
            "io.containerd.image.name",
            "docker.io/library/busybox:latest",
        ),
    ] {
        let plain = Tarball::new().file("f", name.as_bytes()).bytes();
        let platform = json!({"architecture": "amd64", "os": "linux"});
        let mut manifest = layout.image(&[("tar", plain.clone(), plain)], &platform);
        manifest["annotations"] = json!({key: name});
        layout.manifests.push(manifest);
    }
    let tar = layout.with_index().tar();
    let content = |name: &str| {
        let (root, ..) = unpack(&open_bytes(&tar, Some(name)).unwrap()).unwrap();
        fs::read_to_string(root.path().join("f")).unwrap()
    };
    assert_eq!(content("v1"), "v1");
    assert_eq!(content("busybox"), "docker.io/library/busybox:latest");
    let error = open_bytes(&tar, Some("v2")).map(drop).unwrap_err();
    assert!(matches!(error, Error::NoSuchReference { .. }));
    let text = error.to_string();
    assert!(text.contains("v1") && text.contains("busybox"), "{text}");
    let error = open_bytes(&tar, None).map(drop).unwrap_err();
    assert!(matches!(error, Error::SeveralImages { .. }), "{error}");
}

#[test]
fn a_root_file_system_with_an_image_s_file_names_is_still_one() {
    let tar = Tarball::new()
        .file("manifest.json", br#"{"name": "an app"}"#)
        .file("index.json", b"[]")
        .file("bin/sh", b"#!");
    let image = open_bytes(&tar.bytes(), None).unwrap();
    assert_eq!(
        names(&unpack(&image).unwrap().1),
        ["bin", "bin/sh", "index.json", "manifest.json"]
    );
}
