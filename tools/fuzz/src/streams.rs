//! A stream that anybody may send, received into a pool in memory: the input's own bytes, or sound
//! records built from it, whose checksums are right.

use crate::parts::Parts;
use cowshed_engine::{CreateOptions, Name, OpenOptions, Pool};
use cowshed_format::device::MemoryDevice;
use cowshed_stream::wire::{
    BaseName, Begin, DATA_BYTES_MAX, Frame, Packer, Record, StreamReader, StreamWriter,
};
use cowshed_stream::{Error, Identity, Token, Unobserved, receive};
use std::sync::Arc;

const POOL_BYTES: u64 = 24 << 20;
/// Number of records that are built from an input.
const RECORDS_MAX: usize = 64;

/// The first byte chooses between bytes as they are, and a stream built of them.
pub fn run(data: &[u8]) {
    let mut parts = Parts(data);
    let is_built = parts.byte() % 2 == 1;
    let bytes = if is_built {
        built(&mut parts)
    } else {
        parts.rest().to_vec()
    };
    let whole = read(&bytes);
    if let Ok(text) = std::str::from_utf8(&bytes)
        && let Ok(token) = text.parse::<Token>()
    {
        assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
    }
    let device = Arc::new(MemoryDevice::new(POOL_BYTES));
    Pool::create(&*device, &CreateOptions::default()).unwrap();
    let options = OpenOptions {
        cache_bytes: 4 << 20,
        background: false,
        ..OpenOptions::default()
    };
    let pool = Pool::open(device, &options).unwrap();
    let name = Name::new("received").unwrap();
    let received = receive(&pool, &name, &bytes[..], &Unobserved);
    // Nothing is there under its name unless all of it was verified.
    assert_eq!(pool.volume("received").is_ok(), received.is_ok());
    assert!(
        whole || received.is_err(),
        "a stream that is not whole was taken"
    );
    assert!(
        pool.create_volume(&Name::new("other").unwrap(), 4096)
            .is_ok()
            || received.is_ok()
    );
}

/// Reads all records; returns true if the stream is whole.
fn read(bytes: &[u8]) -> bool {
    let Ok((mut reader, begin)) = StreamReader::new(bytes) else {
        return false;
    };
    let (mut buffer, mut at) = (Vec::new(), begin.position);
    loop {
        match reader.next(&mut buffer) {
            Ok(Record::Data { offset }) => {
                assert!(offset >= at && (1..=DATA_BYTES_MAX).contains(&buffer.len()));
                at = offset + buffer.len() as u64;
            }
            Ok(Record::Zero { offset, len_bytes }) => {
                assert!(offset >= at && len_bytes > 0);
                at = offset + len_bytes;
            }
            Ok(Record::End) => return true,
            Err(error) => {
                assert!(matches!(error, Error::Stream(_)), "{error}");
                return false;
            }
        }
        assert!(at <= begin.size_bytes && at == reader.position());
    }
}

/// Returns a stream whose records are sound each by itself.
fn built(parts: &mut Parts<'_>) -> Vec<u8> {
    let identity = |seed: u8| Identity {
        pool: [seed; 16],
        volume: u64::from(seed),
        created_ns: 1,
    };
    let name = Name::new("sent").unwrap();
    let begin = Begin {
        identity: identity(parts.byte()),
        name: name.clone(),
        size_bytes: u64::from(parts.word()) << (parts.byte() % 40),
        labels: [("a".to_owned(), "b".repeat(usize::from(parts.byte())))].into(),
        base: (parts.byte() > 200).then(|| BaseName {
            identity: identity(2),
            name,
        }),
        position: u64::from(parts.byte() / 200) << 12,
        data_bytes: u64::from(parts.word()),
    };
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::new(&mut bytes, &begin).unwrap();
    let (mut frame, mut packer) = (Frame::default(), Packer::new().unwrap());
    for _ in 0..RECORDS_MAX {
        if parts.is_empty() {
            break;
        }
        let (kind, offset) = (parts.byte(), u64::from(parts.word()) << (parts.byte() % 13));
        let len = 1 + parts.below(DATA_BYTES_MAX);
        if kind % 3 == 0 {
            frame.zero(offset, len as u64);
        } else {
            frame.data(offset, len).fill(kind);
            if kind % 3 == 1 {
                packer.pack(&mut frame);
            }
        }
        writer.send(&mut frame).unwrap();
    }
    writer.end().unwrap();
    bytes
}

/// Returns a sound stream as bytes, one that is built, and the start of a token.
pub fn seeds() -> Vec<Vec<u8>> {
    let sound = [
        1_u8, 1, 1, 0, 20, 2, 0, 0, 0, 0, 0, 0, 12, 0xff, 0x0f, 1, 1, 0, 12, 0xff, 0x0f,
    ];
    let stream = built(&mut Parts(&sound[1..]));
    vec![sound.to_vec(), [&[0], &stream[..]].concat(), vec![0; 40]]
}
