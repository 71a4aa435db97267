//! Images that came in streams of somebody who is not to be trusted, pushed.

use crate::fake::Server;
use crate::sending::{expect_whole, push_to, with_image};
use crate::shelf::Shelf;
use cowshed_oci::{Compression, KnownBlob};
use cowshed_stream::labels::BLOBS;
use cowshed_stream::wire::{
    Begin, Frame, Head, Member, Record, Source, StreamReader, StreamWriter,
};
use cowshed_testkit::harness::{Bench, noise};
use serde_json::Value;
use std::fs;
use std::process::Stdio;

/// Returns the stream of a set, with the start of each member changed.
fn rewritten(stream: &[u8], change: impl Fn(&mut Begin)) -> Vec<u8> {
    let (mut reader, head) = StreamReader::new(stream).unwrap();
    let Head::Set(head) = head else {
        panic!("it is no set")
    };
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::of_set(&mut bytes, &head).unwrap();
    let (mut frame, mut buffer) = (Frame::default(), Vec::new());
    let sent = |member: &&Member| matches!(member.source, Source::Stream);
    for _ in head.members.iter().filter(sent) {
        let mut begin = reader.next_member().unwrap();
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

/// Receives images.
fn receive(bench: &Bench, stream: &[u8]) {
    fs::write(bench.path("stream"), stream).unwrap();
    let mut command = bench.command(["image", "receive"]);
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
    let stream = rewritten(&sent.stdout, |begin| {
        begin.labels.insert(BLOBS.to_owned(), label.clone());
    });

    let bench = Bench::with_pool("2G");
    receive(&bench, &stream);
    let pushed = expect_whole(&push_to(&bench, &server.name, "a/b"), &shelf);
    assert_ne!(pushed["layers"][0]["digest"], planted_digest);
    assert_eq!(pushed["layers"][0]["reused"], false, "{pushed}");
}
