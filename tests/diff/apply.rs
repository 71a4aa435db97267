//! Applying blobs to snapshots.

use crate::client::refused;
use crate::differ::{GZIP, TAR, ZSTD, descriptor};
use crate::fixtures::{busybox, listing, reference};
use crate::stage::{Stage, gzipped, place, shell};
use crate::wire::Mount;
use cowshed_daemon::snapshotter::MountMode;
use cowshed_oci::Digest;
use std::fs;
use std::path::Path;
use std::process::Command;
use tonic::Code;

/// A function from a tar to a blob.
type Form = fn(&[u8]) -> Vec<u8>;

#[test]
fn layers_are_applied_as_gnu_tar_does_and_told_by_their_content() {
    let mut stage = Stage::new();
    let image = busybox::image();
    let forms: [(&str, Form); 3] = [
        (GZIP, gzipped),
        (ZSTD, |bytes| zstd::encode_all(bytes, 1).unwrap()),
        (TAR, <[u8]>::to_vec),
    ];
    let wanted = stage.folder("wanted");
    let mut parent = String::new();
    for (number, (layer, (media_type, form))) in image.layers.iter().zip(forms).enumerate() {
        let bytes = fs::read(layer).unwrap();
        let blob = stage.blob(media_type, form(&bytes));
        let key = format!("key-{number}");
        let mount = stage.client.prepare(&key, &parent).unwrap();
        let applied = stage.differ.apply(blob, &mount).unwrap();
        assert_eq!(applied.media_type, TAR);
        assert_eq!(applied.digest, Digest::of(&bytes).to_string());
        assert_eq!(applied.size, i64::try_from(bytes.len()).unwrap());
        reference::apply(std::slice::from_ref(layer), &wanted);
        let found = listing::of(place(&mount));
        listing::assert_same(&found, &listing::of(&wanted), &key);
        parent = format!("layer-{number}");
        stage.client.commit(&parent, &key).unwrap();
    }
    let view = stage.client.view("view", &parent).unwrap();
    let found = listing::of(place(&view));
    listing::assert_same(&found, &listing::of(&wanted), "committed");
    stage.client.remove("view").unwrap();
    let state = stage.store.state();
    assert_eq!(state.namespaces, [Some("test".to_owned())].into());
}

#[test]
fn a_snapshot_that_is_unpacked_grows_with_its_layer_and_leaves_the_usual_room() {
    const USUAL: u64 = 64 << 20;
    let mut stage = Stage::with_snapshots_of(USUAL);
    let folder = stage.folder("content");
    let script = "head -c 200M /dev/urandom > large; tar -cf ../layer.tar large";
    shell(&folder, script);
    let bytes = fs::read(folder.parent().unwrap().join("layer.tar")).unwrap();
    let blob = stage.blob(TAR, bytes);
    let key = format!("extract-1 {}", blob.digest);
    let mount = stage.client.prepare(&key, "").unwrap();
    stage.differ.apply(blob.clone(), &mount).unwrap();
    stage.client.commit("layer", &key).unwrap();
    let mount = stage.client.prepare("container", "layer").unwrap();
    let found = nix::sys::statvfs::statvfs(place(&mount)).unwrap();
    let left = found.blocks_available() * found.fragment_size();
    assert!(left >= USUAL, "a container has {left} bytes");
    // A container's own root keeps the requested size, whatever is applied to it.
    let mount = stage.client.prepare("other", "").unwrap();
    let refused = stage.differ.apply(blob, &mount).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("free blocks"), "{refused}");
    for key in ["container", "other"] {
        stage.client.remove(key).unwrap();
    }
}

#[test]
fn layers_are_applied_to_devices_and_files_too_or_left_to_the_next_differ() {
    for mode in [MountMode::Loop, MountMode::File] {
        let mut stage = Stage::with_mounts(mode);
        let image = busybox::image();
        let bytes = fs::read(&image.layers[0]).unwrap();
        let blob = stage.blob(TAR, bytes);
        let mount = stage.client.prepare("key", "").unwrap();
        let applied = stage.differ.apply(blob, &mount);
        if mode == MountMode::File {
            // Its file may be in use by another process, as that process's device.
            refused(applied, Code::Unimplemented);
            continue;
        }
        applied.unwrap();
        // The client mounts it, so it is not mounted here.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&format!(" {} ", mount.source)), "{mounts}");
        stage.client.commit("layer", "key").unwrap();
        let view = stage.client.view("view", "layer").unwrap();
        let here = stage.folder("here");
        let mounted = Command::new("mount")
            .args(["-t", &view.r#type, "-o", &view.options.join(",")])
            .args([&view.source, here.to_str().unwrap()])
            .status();
        assert!(mounted.unwrap().success(), "{view:?}");
        let wanted = stage.folder("wanted");
        reference::apply(&image.layers[..1], &wanted);
        let found = listing::of(&here);
        let unmounted = Command::new("umount").arg(&here).status();
        assert!(unmounted.unwrap().success());
        listing::assert_same(&found, &listing::of(&wanted), "as a device");
    }
}

#[test]
fn what_is_not_ours_is_left_to_the_next_differ() {
    let mut stage = Stage::new();
    let blob = stage.blob(TAR, vec![0; 1024]);
    let mount = stage.client.prepare("key", "").unwrap();
    let with = |source: &str, kind: &str, target: &str| Mount {
        r#type: kind.to_owned(),
        source: source.to_owned(),
        target: target.to_owned(),
        ..mount.clone()
    };
    let elsewhere = stage.folder("elsewhere");
    let inside = format!("{}/etc", mount.source);
    for mounts in [
        vec![],
        vec![mount.clone(), mount.clone()],
        vec![with(elsewhere.to_str().unwrap(), "bind", "")],
        vec![with(&inside, "bind", "")],
        vec![with(&format!("{}/../{}", mount.source, "999"), "bind", "")],
        vec![with("", "bind", "")],
        vec![with("/dev/loop0-that-is-none", "ext4", "")],
        vec![with(&mount.source, "overlay", "")],
        vec![with(&mount.source, "bind", "below")],
    ] {
        let answer = stage.differ.apply_to(blob.clone(), mounts.clone());
        let status = answer.expect_err(&format!("{mounts:?}"));
        assert_eq!(status.code(), Code::Unimplemented, "{mounts:?}: {status}");
    }
    for other in [
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.erofs.layer.v1",
        "",
    ] {
        let answer = stage.differ.apply(descriptor(other, &blob.digest), &mount);
        refused(answer, Code::Unimplemented);
    }
    let other_digest = format!("sha512:{}", "0".repeat(128));
    let answer = stage.differ.apply(descriptor(TAR, &other_digest), &mount);
    refused(answer, Code::Unimplemented);
}

#[test]
fn what_cannot_be_applied_is_refused_with_a_code_that_says_why() {
    let mut stage = Stage::new();
    let blob = stage.blob(TAR, vec![0; 1024]);
    let mount = stage.client.prepare("key", "").unwrap();
    let missing = Digest::of(b"nothing").to_string();
    let answer = stage.differ.apply(descriptor(TAR, &missing), &mount);
    refused(answer, Code::NotFound);
    let mut longer = blob.clone();
    longer.size += 1;
    refused(stage.differ.apply(longer, &mount), Code::InvalidArgument);
    stage.differ.apply(blob.clone(), &mount).unwrap();
    stage.client.commit("layer", "key").unwrap();
    let view = stage.client.view("view", "layer").unwrap();
    refused(stage.differ.apply(blob, &view), Code::FailedPrecondition);
}

#[test]
fn blobs_are_read_where_containerd_keeps_them_and_verified_there_too() {
    let mut stage = Stage::new();
    let root = stage.folder("content");
    let blobs = root.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    stage.store.state().root = Some(root);
    let bytes = fs::read(&busybox::image().layers[0]).unwrap();
    let place_of = |digest: &str| blobs.join(digest.strip_prefix("sha256:").unwrap());

    let blob = stage.blob(TAR, bytes.clone());
    let (file, digest) = (place_of(&blob.digest), blob.digest.clone());
    fs::write(&file, &bytes).unwrap();
    let mount = stage.client.prepare("there", "").unwrap();
    stage.differ.apply(blob.clone(), &mount).unwrap();
    assert_eq!(stage.store.state().reads, [""; 0]);

    let mut damaged = bytes;
    damaged[1_000_000] ^= 1;
    fs::write(&file, &damaged).unwrap();
    let mount = stage.client.prepare("damaged", "").unwrap();
    let refused_blob = stage.differ.apply(blob.clone(), &mount);
    refused(refused_blob, Code::DataLoss);
    assert_eq!(stage.store.state().reads, [""; 0]);

    // Another blob, not a file, or a missing file: then containerd provides the blob.
    let spoil: [fn(&Path); 3] = [
        |file| fs::write(file, b"shorter").unwrap(),
        |file| {
            fs::remove_file(file).unwrap();
            std::os::unix::fs::symlink("elsewhere", file).unwrap();
        },
        |file| fs::remove_file(file).unwrap(),
    ];
    for (number, spoil) in spoil.into_iter().enumerate() {
        spoil(&file);
        let mount = stage.client.prepare(&format!("key-{number}"), "").unwrap();
        stage.differ.apply(blob.clone(), &mount).unwrap();
        let found = std::mem::take(&mut stage.store.state().reads);
        assert_eq!(found, std::slice::from_ref(&digest));
    }
}
