//! Blobs that were damaged or crafted, and stores that fail.

use crate::client::refused;
use crate::differ::{GZIP, TAR, between};
use crate::stage::{Stage, gzipped, place};
use crate::store::{Reading, Writing};
use std::fs;
use std::path::Path;
use tar::{EntryType, Header};
use tonic::Code;

/// Returns a tar of entries: name, kind, link, content.
fn tarball(entries: &[(&str, EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, link, content) in entries {
        // Names longer than the fields go into a preceding entry, as in GNU tar.
        for (long, kind) in [
            (name, EntryType::GNULongName),
            (link, EntryType::GNULongLink),
        ] {
            if long.len() > 100 {
                append(&mut bytes, "././@LongLink", kind, "", long.as_bytes());
            }
        }
        append(&mut bytes, name, *kind, link, content);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Appends one entry; names are cut at the length of their fields.
fn append(bytes: &mut Vec<u8>, name: &str, kind: EntryType, link: &str, content: &[u8]) {
    let mut header = Header::new_gnu();
    let cut = |text: &str| text.as_bytes()[..text.len().min(100)].to_vec();
    // Written directly: the crate would refuse such names.
    let (name, link) = (cut(name), cut(link));
    header.as_old_mut().name[..name.len()].copy_from_slice(&name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(&link);
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(content.len() as u64);
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

fn noise(len: usize) -> Vec<u8> {
    crate::harness::noise(len, 7)
}

#[test]
fn a_blob_that_comes_other_than_it_was_named_is_refused() {
    let mut stage = Stage::new();
    let content = noise(300_000);
    let plain = tarball(&[("file", EntryType::Regular, "", &content)]);
    for (number, (media_type, bytes)) in [(TAR, plain.clone()), (GZIP, gzipped(&plain))]
        .into_iter()
        .enumerate()
    {
        let blob = stage.blob(media_type, bytes);
        for (index, (reading, codes)) in [
            (Reading::Flipped(200_000), &[Code::DataLoss][..]),
            (Reading::Flipped(3), &[Code::DataLoss]),
            (Reading::Cut(200_000), &[Code::DataLoss]),
            (Reading::Cut(0), &[Code::DataLoss]),
            (Reading::Misplaced(200_000), &[Code::DataLoss]),
            (Reading::Failing(200_000), &[Code::Internal]),
        ]
        .into_iter()
        .enumerate()
        {
            let key = format!("key-{number}-{index}");
            let mount = stage.client.prepare(&key, "").unwrap();
            stage.store.state().reading = reading;
            let answer = stage.differ.apply(blob.clone(), &mount);
            let status = answer.expect_err(&format!("{reading:?}"));
            assert!(codes.contains(&status.code()), "{reading:?}: {status}");
            stage.client.remove(&key).unwrap();
        }
        stage.store.state().reading = Reading::Well;
        let mount = stage.client.prepare("well", "").unwrap();
        stage.differ.apply(blob, &mount).unwrap();
        assert!(fs::read(place(&mount).join("file")).unwrap() == content);
        stage.client.remove("well").unwrap();
    }
}

#[test]
fn archives_do_not_reach_out_of_the_root_and_do_not_stop_the_service() {
    let mut stage = Stage::new();
    let outside = stage.folder("outside");
    let target = outside.to_str().unwrap();
    let up = "../".repeat(16) + &target[1..];
    let (file, link, hard) = (EntryType::Regular, EntryType::Symlink, EntryType::Link);
    let escape = format!("{up}/file");
    let archives = [
        tarball(&[("../../file", file, "", b"x")]),
        tarball(&[(&escape, file, "", b"x")]),
        tarball(&[("way", link, target, b""), ("way/file", file, "", b"x")]),
        tarball(&[("way", link, &up, b""), ("way/file", file, "", b"x")]),
        tarball(&[("file", hard, "/etc/shadow", b"")]),
        tarball(&[("..", file, "", b"x")]),
        tarball(&[(".wh...", file, "", b"")]),
        tarball(&[("a/.wh.", file, "", b"")]),
        noise(4096),
        noise(100),
        [tarball(&[("file", file, "", b"x")]), noise(5000)].concat(),
        {
            let mut huge = tarball(&[("file", file, "", b"x")]);
            huge[124..135].copy_from_slice(b"77777777777");
            huge
        },
    ];
    for (index, archive) in archives.into_iter().enumerate() {
        let blob = stage.blob(TAR, archive);
        let key = format!("key-{index}");
        let mount = stage.client.prepare(&key, "").unwrap();
        let answer = stage.differ.apply(blob, &mount);
        if let Err(status) = answer {
            // Not a code that makes containerd try another differ.
            assert_ne!(status.code(), Code::Unimplemented, "{index}: {status}");
            assert_ne!(status.code(), Code::Internal, "{index}: {status}");
        }
        stage.client.remove(&key).unwrap();
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!Path::new("/file").exists());
    let blob = stage.blob(TAR, tarball(&[("file", file, "", b"content")]));
    let mount = stage.client.prepare("well", "").unwrap();
    stage.differ.apply(blob, &mount).unwrap();
    assert_eq!(fs::read(place(&mount).join("file")).unwrap(), b"content");
}

#[test]
fn a_store_that_fails_while_it_is_written_to_fails_the_call_and_nothing_else() {
    let mut stage = Stage::new();
    stage.commit("base", "", "echo base > file");
    let left = stage.client.view("left", "base").unwrap();
    let right = stage.client.prepare("right", "base").unwrap();
    fs::write(place(&right).join("large"), noise(12 << 20)).unwrap();
    let mut request = between(&left, &right);
    request.media_type = TAR.to_owned();
    stage.store.state().writing = Writing::Failing(5 << 20);
    refused(
        stage.differ.compare(request.clone()),
        Code::ResourceExhausted,
    );
    // The ref belongs to no other call, so it is aborted.
    {
        let state = stage.store.state();
        assert_eq!(state.aborted.len(), 1, "{:?}", state.aborted);
        assert!(state.ingests.is_empty());
    }
    request.r#ref = "mine".to_owned();
    refused(
        stage.differ.compare(request.clone()),
        Code::ResourceExhausted,
    );
    assert_eq!(stage.store.state().aborted.len(), 1);
    stage.store.state().writing = Writing::Well;
    stage.differ.compare(request).unwrap();
    assert!(stage.store.state().ingests.is_empty());
    assert_eq!(stage.in_work(), [""; 0]);
    // Its file system is no longer frozen.
    fs::write(place(&right).join("later"), "x").unwrap();
}
