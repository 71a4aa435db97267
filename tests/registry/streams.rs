//! Sets that came in streams of another version, or of somebody who is not to be trusted: what is
//! pushed of them, and what becomes of recipes in them.

use crate::fake::Server;
use crate::sending::{expect_whole, push_to, with_image};
use crate::shelf::Shelf;
use cowshed_format::base::Name;
use cowshed_oci::{Compression, KnownBlob};
use cowshed_stream::labels::BLOBS;
use cowshed_stream::wire::{
    Begin, Frame, Head, Member, Record, Source, StreamReader, StreamWriter,
};
use cowshed_testkit::harness::{Bench, noise};
use serde_json::Value;
use std::fs;
use std::process::Stdio;

/// Returns the stream of a set, with the names of its members and the start of each one changed.
fn rewritten(stream: &[u8], rename: impl Fn(&mut Name), change: impl Fn(&mut Begin)) -> Vec<u8> {
    let (mut reader, head) = StreamReader::new(stream).unwrap();
    let Head::Set(mut head) = head else {
        panic!("it is no set")
    };
    for member in &mut head.members {
        rename(&mut member.name);
    }
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::of_set(&mut bytes, &head).unwrap();
    let (mut frame, mut buffer) = (Frame::default(), Vec::new());
    let sent = |member: &&Member| matches!(member.source, Source::Stream);
    for _ in head.members.iter().filter(sent) {
        let mut begin = reader.next_member().unwrap();
        rename(&mut begin.name);
        change(&mut begin);
        writer.begin_member(&begin).unwrap();
        loop {
            match reader.next(&mut buffer).unwrap() {
                Record::Data { offset } => {
                    let place = frame.data(offset, buffer.len());
                    place.copy_from_slice(&buffer);
                }
                Record::Zero { offset, len_bytes } => frame.zero(offset, len_bytes),
                Record::End => break,
            }
            writer.send(&mut frame).unwrap();
        }
        writer.end_member().unwrap();
    }
    reader.end_of_set().unwrap();
    writer.end().unwrap();
    bytes
}

/// Receives a set.
fn receive(bench: &Bench, arguments: &[&str], stream: &[u8]) {
    fs::write(bench.path("stream"), stream).unwrap();
    let mut command = bench.command(arguments);
    command.stdin(fs::File::open(bench.path("stream")).unwrap());
    let output = command.stdout(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_label_in_a_stream_does_not_decide_which_layer_is_pushed() {
    let shelf = Shelf::default();
    let serving = shelf.clone();
    let server = Server::start(move |request| serving.answer(request));
    // Somebody else's layer is in the registry.
    let planted = noise(70_000, 9);
    let planted_digest = shelf.put(&planted);

    let sender = with_image();
    let image: Value = sender.json(["image", "export", "app:1", "/dev/null"]);
    let diff_id = image["layers"][0]["diff_id"].as_str().unwrap();
    let blob = KnownBlob {
        digest: planted_digest.parse().unwrap(),
        size_bytes: planted.len() as u64,
        compression: Compression::Gzip,
        diff_id: diff_id.parse().unwrap(),
        source: None,
    };
    let label = serde_json::to_string(&[blob]).unwrap();
    let sent = sender.run(["image", "send", "app:1"]);
    assert!(sent.status.success(), "{sent:?}");
    let plant = |begin: &mut Begin| drop(begin.labels.insert(BLOBS.to_owned(), label.clone()));
    let stream = rewritten(&sent.stdout, |_| {}, plant);

    let bench = Bench::with_pool("2G");
    receive(&bench, &["image", "receive"], &stream);
    let pushed = expect_whole(&push_to(&bench, &server.name, "a/b"), &shelf);
    assert_ne!(pushed["layers"][0]["digest"], planted_digest);
    assert_eq!(pushed["layers"][0]["reused"], false, "{pushed}");
}

#[test]
fn recipes_in_a_set_are_dropped() {
    let sender = Bench::with_pool("64M");
    fs::write(sender.path("raw"), noise(1 << 20, 3)).unwrap();
    let raw = sender.path("raw");
    sender.ok(["volume", "import", "disk", raw.to_str().unwrap()]);
    for (volume, snapshot) in [("disk", "disk@1"), ("disk", "disk@2")] {
        sender.ok(["volume", "snapshot", volume, snapshot]);
    }
    let sent = sender.run(["volume", "send", "-R"]);
    assert!(sent.status.success(), "{sent:?}");
    // As a version sends them that knows no recipes.
    let recipe = Name::new(&format!("recipe/{}", "0".repeat(64))).unwrap();
    let rename = |name: &mut Name| {
        if name.as_str() == "disk@1" {
            *name = recipe.clone();
        }
    };
    let stream = rewritten(&sent.stdout, rename, |_| {});
    let bench = Bench::with_pool("64M");
    receive(&bench, &["volume", "receive", "-"], &stream);
    assert_eq!(bench.volumes(), ["disk", "disk@2"]);
    bench.fails(
        ["volume", "show", recipe.as_str()],
        1,
        "there is no volume recipe/",
    );
    let export = |bench: &Bench| bench.run(["volume", "export", "disk@2", "-"]).stdout;
    assert!(export(&bench) == export(&sender));
    bench.expect_sound();
}
