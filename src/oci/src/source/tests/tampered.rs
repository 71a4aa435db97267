//! Images with a fault in every possible place.

use super::*;
use proptest::prelude::*;

/// Opens and unpacks; returns the error.
fn fail(layout: Layout) -> Error {
    let image = match open_bytes(&layout.with_index().tar(), None) {
        Ok(image) => image,
        Err(error) => return error,
    };
    unpack(&image).map(drop).unwrap_err()
}

/// Replaces a blob's content under its old name.
fn replace(layout: &mut Layout, blob: usize, change: impl Fn(&mut Vec<u8>)) {
    change(&mut layout.files[blob].1);
}

/// The indexes of the blobs in a layout of [`two_layers`].
const CONFIG: usize = 0;
const LOWER: usize = 1;
const UPPER: usize = 2;
const MANIFEST: usize = 3;

#[test]
fn every_stated_digest_is_verified() {
    for (blob, part) in [
        (CONFIG, Part::Config),
        (LOWER, Part::layer(0)),
        (UPPER, Part::layer(1)),
        (MANIFEST, Part::Manifest),
    ] {
        let mut layout = Layout::of(&two_layers());
        replace(&mut layout, blob, |bytes| {
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
        });
        let error = fail(layout);
        let right = matches!(error, Error::DigestMismatch { what, .. } if what == part);
        assert!(right, "{part}: {error}");
    }
}

#[test]
fn every_stated_size_is_verified() {
    for (blob, part) in [
        (CONFIG, Part::Config),
        (LOWER, Part::layer(0)),
        (UPPER, Part::layer(1)),
        (MANIFEST, Part::Manifest),
    ] {
        let mut layout = Layout::of(&two_layers());
        replace(&mut layout, blob, |bytes| bytes.push(b' '));
        let error = fail(layout);
        let right = matches!(error, Error::SizeMismatch { what, .. } if what == part);
        assert!(right, "{part}: {error}");
    }
}

#[test]
fn a_wrong_diff_id_shows_before_the_stream_ends() {
    for wrong in 0..2 {
        let mut layers = two_layers();
        // The configuration states a digest other than that of the stored content.
        layers[wrong].2.push(0);
        let error = fail(Layout::of(&layers));
        let part = Part::layer_content(wrong);
        assert!(
            matches!(error, Error::DigestMismatch { what, .. } if what == part),
            "{error}"
        );
        let image = open_bytes(&Layout::of(&layers).with_index().tar(), None).unwrap();
        let mut reader = image.open_layer(wrong).unwrap();
        assert!(std::io::copy(&mut reader, &mut std::io::sink()).is_err());
        assert!(reader.finish().is_err());
    }
}

#[test]
fn a_wrong_digest_of_an_inner_index_is_found() {
    let mut layout = Layout::of(&two_layers());
    let index = json!({"schemaVersion": 2, "manifests": layout.manifests});
    let index = layout.document("application/vnd.oci.image.index.v1+json", &index);
    layout.manifests = vec![index];
    let last = layout.files.len() - 1;
    replace(&mut layout, last, |bytes| bytes[0] = b' ');
    assert!(matches!(
        fail(layout),
        Error::DigestMismatch {
            what: Part::Index,
            ..
        }
    ));
}

#[test]
fn a_docker_archive_s_names_and_diff_ids_are_verified() {
    let name = format!("{}.json", Digest::of(b"something else").hex());
    let error = open_bytes(&docker_archive(Some(&name), &[], false), None)
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::DigestMismatch {
                what: Part::Config,
                ..
            }
        ),
        "{error}"
    );
    let mut bytes = docker_archive(None, &[], false);
    // The content of the first file of the first layer.
    let place = bytes
        .windows(3)
        .position(|window| window == b"1\0\0")
        .unwrap();
    let content = (0..bytes.len() - 512).find(|at| at % 512 == 0 && bytes[*at] == b'1');
    bytes[content.unwrap_or(place)] = b'X';
    let error = unpack(&open_bytes(&bytes, None).unwrap())
        .map(drop)
        .unwrap_err();
    let part = Part::layer_content(0);
    assert!(
        matches!(error, Error::DigestMismatch { what, .. } if what == part),
        "{error}"
    );
}

#[test]
fn a_truncated_or_trailing_compression_is_found() {
    let (_, stored, plain) = two_layers().swap_remove(0);
    let cut = stored[..stored.len() - 9].to_vec();
    let error = fail(Layout::of(&[("tar+gzip", cut, plain.clone())]));
    assert!(matches!(error, Error::Archive(_)), "{error}");
    let mut longer = stored;
    longer.extend_from_slice(b"garbage that is no member");
    let error = fail(Layout::of(&[("tar+gzip", longer, plain.clone())]));
    assert!(matches!(error, Error::Trailing), "{error}");
    // Several members are one stream.
    let (first, second) = plain.split_at(700);
    let members = [gzip(first), gzip(second)].concat();
    let layout = Layout::of(&[("tar+gzip", members, plain.clone())]).with_index();
    unpack(&open_bytes(&layout.tar(), None).unwrap()).unwrap();
    // A root file system has no digest, so only its end marker shows that it is complete.
    let error = unpack(&open_bytes(&plain[..1024], None).unwrap())
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Header {
                fault: HeaderFault::NoEnd,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn what_is_not_supported_is_named() {
    let plain = Tarball::new().bytes();
    for suffix in ["tar+lz4", "tar+gzip+encrypted", "squashfs"] {
        let error = fail(Layout::of(&[(suffix, plain.clone(), plain.clone())]));
        assert!(matches!(error, Error::UnsupportedMediaType { .. }));
        assert!(error.to_string().contains(suffix), "{error}");
    }
    let mut layout = Layout::of(&two_layers());
    layout.manifests[0]["mediaType"] = json!("application/vnd.oci.artifact.manifest.v1+json");
    assert!(matches!(
        fail(layout),
        Error::UnsupportedMediaType {
            what: Part::Manifest,
            ..
        }
    ));
    let mut layout = Layout::of(&two_layers());
    layout.manifests[0]["digest"] = json!("sha512:00");
    let error = fail(layout);
    assert!(
        matches!(error, Error::UnsupportedDigest(_) | Error::Json { .. }),
        "{error}"
    );
}

#[test]
fn missing_and_surplus_layers_are_found() {
    for blob in [CONFIG, LOWER, MANIFEST] {
        let mut layout = Layout::of(&two_layers());
        layout.files.remove(blob);
        assert!(matches!(fail(layout), Error::Missing { .. }));
    }
    let mut layout = Layout::of(&two_layers());
    let mut manifest: Value = serde_json::from_slice(&layout.files[MANIFEST].1).unwrap();
    manifest["layers"].as_array_mut().unwrap().pop();
    let manifest = layout.document("application/vnd.oci.image.manifest.v1+json", &manifest);
    layout.manifests = vec![manifest];
    assert!(matches!(
        fail(layout),
        Error::LayerCount {
            layers: 1,
            diff_ids: 2
        }
    ));
}

#[test]
fn an_index_that_refers_to_itself_ends() {
    let mut layout = Layout::of(&two_layers());
    for _ in 0..10 {
        let index = json!({"schemaVersion": 2, "manifests": layout.manifests});
        let index = layout.document("application/vnd.oci.image.index.v1+json", &index);
        layout.manifests = vec![index];
    }
    assert!(matches!(
        fail(layout),
        Error::Document {
            what: Part::Index,
            ..
        }
    ));
}

#[test]
fn too_large_documents_are_not_read() {
    let mut layout = Layout::of(&two_layers());
    let large = vec![b' '; (4 << 20) + 1];
    let index = layout.blob("application/vnd.oci.image.index.v1+json", &large);
    layout.manifests = vec![index];
    assert!(matches!(
        fail(layout),
        Error::Document {
            what: Part::Index,
            ..
        }
    ));
}

#[test]
fn what_is_no_image_says_what_it_is_not() {
    for bytes in [
        &b""[..],
        b"hello",
        &[0; 511],
        b"LZIP and more",
        b"\x04\x22\x4d\x18 and more",
    ] {
        let error = open_bytes(bytes, None).map(drop).unwrap_err();
        assert!(matches!(error, Error::NotAnImage(_)), "{error}");
    }
    for bytes in [&b"\xfd7zXZ\0 and more"[..], b"BZh9 and more"] {
        let error = open_bytes(bytes, None).map(drop).unwrap_err();
        assert!(matches!(error, Error::Archive(_)), "{error}");
    }
    let missing = open_path(Path::new("/nonexistent/image"))
        .map(drop)
        .unwrap_err();
    assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn links_in_an_archive_cannot_lead_out_of_it_nor_in_circles() {
    let manifest = |layer: &str| {
        let diff_ids = [Digest::of(b"")];
        let config = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let manifest = json!([{"Config": "config.json", "Layers": [layer]}]);
        Tarball::new()
            .file("manifest.json", &serde_json::to_vec(&manifest).unwrap())
            .file("config.json", &serde_json::to_vec(&config).unwrap())
            .symlink("out", "../../../../etc/passwd")
            .symlink("circle", "circle")
            .symlink("absolute", "/etc/passwd")
            .bytes()
    };
    for layer in [
        "out",
        "circle",
        "absolute",
        "../../etc/passwd",
        "/etc/passwd",
        "",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let tar = manifest(layer);
        assert!(
            matches!(open_bytes(&tar, None), Err(Error::Missing { .. })),
            "{layer}"
        );
        // The same in a folder, with real links.
        let archive = folder.path().join("a.tar");
        fs::write(&archive, &tar).unwrap();
        let unpacked = folder.path().join("unpacked");
        fs::create_dir(&unpacked).unwrap();
        gnu_extract(&archive, &unpacked);
        assert!(open_path(&unpacked).is_err(), "{layer}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_bytes_are_refused_or_unpacked_but_never_panic(
        magic in prop::sample::select(vec![&b""[..], b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh"]),
        bytes in prop::collection::vec(any::<u8>(), 0..2048),
    ) {
        if let Ok(image) = open_bytes(&[magic, &bytes].concat(), None) {
            let _ = unpack(&image);
        }
    }

    #[test]
    fn a_damaged_layout_is_found_or_harmless(
        place in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let mut tar = Layout::of(&two_layers()).with_index().tar();
        let place = place.index(tar.len());
        tar[place] = value;
        if let Ok(image) = open_bytes(&tar, None)
            && image.config().is_some()
            && let Ok((_root, tree, _)) = unpack(&image)
        {
            prop_assert_eq!(names(&tree), ["b", "c"]);
        }
    }
}
