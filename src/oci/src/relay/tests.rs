//! An image that is passed on over a socket, to receivers and from senders of all kinds.

use super::*;
use crate::digest::Digest;
use crate::source::{Document, Image, LayerInfo, Remote};
use serde_json::json;
use std::io::Cursor;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

const LAYERS: [&[u8]; 3] = [b"the first", b"the second one", b"the third"];

/// The configuration of the image, wherever it is.
struct Config(Vec<u8>);

impl Remote for Config {
    fn document(&self, _: Document, _: Digest, _: u64) -> Result<Vec<u8>> {
        Ok(self.0.clone())
    }

    fn layer(&self, _: usize, _: &LayerInfo) -> Result<Box<dyn Read + Send>> {
        Err(unexpected())
    }
}

fn image() -> Image {
    let ids: Vec<Digest> = LAYERS.iter().map(|layer| Digest::of(layer)).collect();
    let config = json!({"rootfs": {"type": "layers", "diff_ids": ids}}).to_string();
    let config = config.into_bytes();
    let layers = LAYERS.iter().zip(&ids).map(|(layer, id)| {
        let kind = "application/vnd.oci.image.layer.v1.tar";
        json!({"mediaType": kind, "digest": id, "size": layer.len()})
    });
    let manifest = json!({
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(&config), "size": config.len(),
        },
        "layers": layers.collect::<Vec<_>>(),
    });
    let remote: Arc<dyn Remote> = Arc::new(Config(config));
    let names = vec!["app:1".to_owned()];
    Image::open_chosen(&remote, manifest.to_string().as_bytes(), names).unwrap()
}

fn content(image: &Image, index: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut layer = image.open_layer(index)?;
    layer.read_to_end(&mut bytes).map_err(Error::archive)?;
    Ok(bytes)
}

#[test]
fn only_the_layers_that_are_asked_for_come_and_one_may_be_skipped() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let sender = thread::spawn(move || {
        let mut sender = Sender::new(&ours, &image()).unwrap();
        let mut requests = Requests::new(&ours);
        let wanted = requests.wanted().unwrap();
        for index in &wanted {
            sender.layer(*index, LAYERS[*index]).unwrap();
        }
        sender.finish().unwrap();
        let stored = [requests.stored(), requests.stored(), requests.stored()];
        ours.shutdown(Shutdown::Write).unwrap();
        (wanted, stored)
    });
    let out = theirs.try_clone().unwrap();
    let received = receive(theirs, out).unwrap();
    assert_eq!(received.image().reference_names(), ["app:1"]);
    let (image, mut reports) = received.request(&[0, 2]).unwrap();
    // The first one turned out to be there; the second was not asked for.
    assert_eq!(content(&image, 2).unwrap(), LAYERS[2]);
    reports.stored(1);
    reports.stored(3);
    let missing = content(&image, 1).unwrap_err();
    assert!(matches!(missing, Error::Missing { .. }), "{missing}");
    reports.give_up();
    reports.wait_for_end();
    let (wanted, stored) = sender.join().unwrap();
    assert_eq!(wanted, [0, 2]);
    assert_eq!(stored, [Some(1), Some(3), None]);
}

#[test]
fn a_sender_that_fails_says_why_and_one_that_ends_is_noticed() {
    for fails in [true, false] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sender = thread::spawn(move || {
            let sender = Sender::new(&ours, &image()).unwrap();
            Requests::new(&ours).wanted().unwrap();
            if fails {
                sender.fail("the network is gone");
                // It waits until it is told to end, as a pull does.
                assert_eq!(Requests::new(&ours).stored(), None);
            }
        });
        let out = theirs.try_clone().unwrap();
        let (image, mut reports) = receive(theirs, out).unwrap().request(&[0]).unwrap();
        let error = content(&image, 0).unwrap_err().to_string();
        let why = if fails {
            "the network is gone"
        } else {
            "has ended"
        };
        assert!(error.contains(why), "{error}");
        reports.give_up();
        reports.wait_for_end();
        sender.join().unwrap();
    }
}

#[test]
fn what_is_no_message_or_too_long_is_refused() {
    let mut large = vec![b'M'];
    large.extend_from_slice(&u32::MAX.to_le_bytes());
    for bytes in [
        &b""[..],
        b"I",
        b"GET / HTTP/1.1\r\n",
        b"C\x02\0\0\0{}",
        &large,
    ] {
        let error = receive(Cursor::new(bytes.to_vec()), Vec::new());
        let Err(error) = error else {
            panic!("{bytes:?}")
        };
        assert!(matches!(error, Error::PassedOn(_)), "{error}");
    }
}
