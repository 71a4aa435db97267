//! Inputs with several images, or with none that is recognized at first.

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
    // A single one for another platform is taken; of several, none is.
    let only = Layout {
        manifests: vec![arm.clone()],
        ..layout.clone()
    }
    .with_index();
    let image = open_bytes(&only.tar(), None).unwrap();
    assert_eq!(names(&unpack(&image).unwrap().1), ["arm"]);
    let other = image.other_platform().unwrap().to_string();
    assert_eq!(other, "linux/arm64", "it is not told");
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

/// Returns a layout whose index lists an image for each of these platforms, each with a file of
/// that name.
fn platforms(texts: &[&str]) -> Layout {
    let mut layout = Layout::default();
    for text in texts {
        let plain = Tarball::new().file(&text.replace('/', "-"), b"").bytes();
        let mut parts = text.split('/');
        let (os, architecture) = (parts.next().unwrap(), parts.next().unwrap());
        let mut platform = json!({"os": os, "architecture": architecture});
        if let Some(variant) = parts.next() {
            platform["variant"] = json!(variant);
        }
        let manifest = layout.image(&[("tar", plain.clone(), plain)], &platform);
        layout.manifests.push(manifest);
    }
    layout
}

/// Returns the image that is taken on a host, or the reason why none is.
fn taken(layout: &Layout, host: &str, platform: Option<&str>) -> Result<(String, bool), String> {
    let select = Select {
        host: host.parse().unwrap(),
        platform: platform.map(|text| text.parse().unwrap()),
        ..Select::default()
    };
    let spool = tempfile::tempdir().unwrap();
    let tar = layout.clone().with_index().tar();
    let input = SourceInput::Stream(Box::new(std::io::Cursor::new(tar)));
    let image = Image::open(input, spool.path(), &select).map_err(|error| error.to_string())?;
    let tree = unpack(&image).map_err(|error| error.to_string())?.1;
    Ok((names(&tree)[0].to_owned(), image.other_platform().is_some()))
}

#[test]
fn the_best_variant_that_the_host_runs_is_taken() {
    let amd = platforms(&[
        "linux/amd64/v9",
        "linux/386",
        "linux/amd64",
        "linux/amd64/v3",
    ]);
    let of = |host, platform| taken(&amd, host, platform).unwrap().0;
    assert_eq!(of("linux/amd64/v3", None), "linux-amd64-v3");
    assert_eq!(of("linux/amd64/v4", None), "linux-amd64-v3");
    assert_eq!(of("linux/amd64/v2", None), "linux-amd64");
    assert_eq!(
        of("linux/amd64/v2", Some("linux/amd64/v9")),
        "linux-amd64-v9"
    );
    assert_eq!(of("linux/amd64/v2", Some("linux/386")), "linux-386");
    let arm = platforms(&["linux/arm/v6", "linux/arm/v7", "linux/s390x"]);
    assert_eq!(taken(&arm, "linux/arm64", None).unwrap().0, "linux-arm-v7");
    let error = taken(&arm, "linux/arm64", Some("linux/arm64")).unwrap_err();
    assert!(
        error.contains("linux/arm/v6, linux/arm/v7, linux/s390x"),
        "{error}"
    );
}

#[test]
fn a_single_image_for_another_platform_is_told_or_refused() {
    let future = platforms(&["linux/amd64/v9"]);
    let told = |host, platform| taken(&future, host, platform).map(|(_, told)| told);
    assert_eq!(told("linux/amd64/v3", None), Ok(true));
    assert_eq!(told("linux/amd64/v3", Some("linux/amd64/v9")), Ok(false));
    assert!(told("linux/amd64/v3", Some("linux/amd64")).is_err());
    let windows = platforms(&["windows/amd64"]);
    let error = taken(&windows, "linux/amd64", None).unwrap_err();
    assert!(error.contains("windows/amd64"), "{error}");
    assert!(taken(&windows, "linux/amd64", Some("windows/amd64")).is_ok());
    // A docker-archive states its platform only in the configuration.
    let mut bytes = Vec::new();
    for os in ["windows", "linux"] {
        let layer = Tarball::new().file("f", b"").bytes();
        let config = json!({
            "os": os, "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]},
        });
        let manifest = json!([{"Config": "c.json", "Layers": ["l.tar"]}]);
        let tar = Tarball::new()
            .file("manifest.json", &serde_json::to_vec(&manifest).unwrap())
            .file("c.json", &serde_json::to_vec(&config).unwrap())
            .file("l.tar", &layer);
        bytes.push(tar.bytes());
    }
    let error = open_bytes(&bytes[0], None).map(drop).unwrap_err();
    assert!(matches!(error, Error::OtherSystem { .. }), "{error}");
    assert!(open_bytes(&bytes[1], None).is_ok());
}

#[test]
fn a_platform_that_is_listed_and_not_held_is_passed_over() {
    let mut layout = platforms(&["linux/amd64", "linux/arm64"]);
    let digest = layout.manifests[0]["digest"].as_str().unwrap().to_owned();
    let hex = digest.strip_prefix("sha256:").unwrap();
    layout.files.retain(|(path, _)| !path.ends_with(hex));
    let (name, told) = taken(&layout, "linux/amd64", None).unwrap();
    assert_eq!((&*name, told), ("linux-arm64", true));
    assert!(taken(&layout, "linux/amd64", Some("linux/amd64")).is_err());
}

#[test]
fn all_images_are_opened_and_each_has_all_its_names() {
    let mut layout = Layout::default();
    for (name, content) in [("one:1", "1"), ("two:1", "2"), ("one:latest", "1")] {
        let plain = Tarball::new().file("f", content.as_bytes()).bytes();
        let platform = json!({"architecture": "amd64", "os": "linux"});
        let mut manifest = layout.image(&[("tar", plain.clone(), plain)], &platform);
        let full = format!("docker.io/library/{name}");
        let tag = name.rsplit(':').next().unwrap();
        manifest["annotations"] = json!({
            "io.containerd.image.name": full, "org.opencontainers.image.ref.name": tag,
        });
        layout.manifests.push(manifest);
    }
    let tar = layout.with_index().tar();
    let spool = tempfile::tempdir().unwrap();
    let open = |reference| {
        let input = SourceInput::Stream(Box::new(std::io::Cursor::new(tar.clone())));
        Image::open_all(input, spool.path(), &select(reference)).unwrap()
    };
    let all = open(None);
    assert_eq!(all.len(), 2);
    assert_eq!(
        all[0].reference_names(),
        ["docker.io/library/one:1", "docker.io/library/one:latest"]
    );
    assert_eq!(all[1].reference_names(), ["docker.io/library/two:1"]);
    let one = open(Some("one"));
    assert_eq!((one.len(), one[0].reference_names().len()), (1, 2));
}
