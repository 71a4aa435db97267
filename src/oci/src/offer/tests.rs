use super::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

fn offer(layers: usize) -> Offer {
    let layer = |number: usize| OfferedLayer {
        chain_id: Digest::of(&number.to_le_bytes()),
        diff_id: Digest::of(b"layer"),
        size_bytes: Some(7),
        own_bytes: 4096,
        blobs: vec![blob(number)],
    };
    Offer {
        id: Digest::of(b"config"),
        name: Some("app:1".to_owned()),
        config: "{\"a\":\t1}".to_owned(),
        layers: (0..layers).map(layer).collect(),
    }
}

fn blob(number: usize) -> KnownBlob {
    KnownBlob {
        digest: Digest::of(&number.to_be_bytes()),
        size_bytes: number as u64,
        compression: Compression::Gzip,
        diff_id: Digest::of(b"layer"),
        source: None,
    }
}

fn written(number: usize) -> WrittenLayer {
    WrittenLayer {
        blob: blob(number),
        why_anew: Some("it has no recipe".to_owned()),
    }
}

#[test]
fn layers_are_written_into_the_files_that_come_along_in_any_order() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let giving = thread::spawn(move || {
        let giver = Giver::new(theirs, &offer(3)).unwrap();
        let (mut asked, mut stored) = (Vec::new(), Vec::new());
        while let Some(next) = giver.next().unwrap() {
            match next {
                Asked::Write {
                    layer,
                    file,
                    folder,
                    ..
                } => {
                    assert_eq!(folder, "/folder");
                    file.write_all_at(format!("layer {layer}").as_bytes(), 0)
                        .unwrap();
                    asked.push(layer);
                    if asked.len() == 3 {
                        // The last one that was asked for is ready first.
                        for layer in asked.iter().rev() {
                            let outcome = if *layer == 1 {
                                Err("no space".to_owned())
                            } else {
                                Ok(written(*layer))
                            };
                            giver.written(*layer, outcome).unwrap();
                        }
                    }
                }
                Asked::Stored { layer, .. } => stored.push(layer),
            }
        }
        stored
    });
    let folder = Path::new("/folder");
    let (taker, offered) = Taker::new(&ours).unwrap();
    assert_eq!(offered, offer(3));
    thread::scope(|scope| {
        let listening = scope.spawn(|| taker.listen());
        let layers: Vec<_> = (0..3)
            .map(|layer| {
                let taker = &taker;
                scope.spawn(move || {
                    let file = tempfile::tempfile().unwrap();
                    let outcome = taker.write(layer, Compression::Gzip, &file, folder);
                    let mut text = [0; 7];
                    file.read_exact_at(&mut text, 0).unwrap();
                    assert_eq!(text, format!("layer {layer}").as_bytes());
                    outcome
                })
            })
            .collect();
        let outcomes: Vec<_> = layers.into_iter().map(|it| it.join().unwrap()).collect();
        assert_eq!(outcomes[0].as_ref().unwrap(), &written(0));
        assert_eq!(outcomes[1].as_ref().unwrap_err().to_string(), "no space");
        taker.stored(2, blob(2)).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(giving.join().unwrap(), [2]);
        listening.join().unwrap();
    });
    let file: File = tempfile::tempfile().unwrap();
    assert!(
        taker.write(0, Compression::Gzip, &file, folder).is_err(),
        "it has ended"
    );
}

#[test]
fn what_is_no_message_is_refused_and_so_is_a_layer_without_a_file() {
    for bytes in [
        &[0xff, 0xff, 0xff, 0xff][..],
        b"\x02\0\0\0{}",
        b"\x09\0\0\0{}",
    ] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let giver = Giver::new(theirs, &offer(0)).unwrap();
        (&ours).write_all(bytes).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(giver.next().is_err(), "{bytes:?}");
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    let giver = Giver::new(theirs, &offer(0)).unwrap();
    let message = ToGiver::Write {
        layer: 0,
        compression: Compression::Zstd,
        folder: "/folder".to_owned(),
    };
    send(&ours, &message, None).unwrap();
    assert!(giver.next().is_err());
}
