//! A stream that anybody may send, received into a pool in memory: the input's own bytes, or sound
//! records built from it, whose checksums are right; of one snapshot, or of a set.

use crate::parts::Parts;
use cowshed_engine::{CreateOptions, Name, OpenOptions, Pool};
use cowshed_format::device::MemoryDevice;
use cowshed_stream::receive::Incoming;
use cowshed_stream::wire::{
    BaseName, Begin, DATA_BYTES_MAX, Entry, EntryKind, Frame, Head, Member, MemberKind, Packer,
    Record, SetHead, Source, StreamReader, StreamWriter,
};
use cowshed_stream::{Error, Fate, Identity, Token, Unobserved, receive};
use std::io::Write;
use std::sync::Arc;

const POOL_BYTES: u64 = 24 << 20;
/// Number of records that are built from an input.
const RECORDS_MAX: usize = 64;

/// The first byte chooses between bytes as they are, and a stream built of them.
pub fn run(data: &[u8]) {
    let mut parts = Parts(data);
    let bytes = match parts.byte() % 3 {
        0 => parts.rest().to_vec(),
        1 => built(&mut parts),
        _ => built_set(&mut parts),
    };
    let whole = read(&bytes).is_ok();
    if let Ok(text) = std::str::from_utf8(&bytes)
        && let Ok(token) = text.parse::<Token>()
    {
        assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
    }
    let pool = pool();
    let name = Name::new("received").unwrap();
    let received = match Incoming::open(&bytes[..]) {
        Ok(Incoming::Set(_)) => receive_set(&pool, &bytes),
        _ => receive(&pool, &name, &bytes[..], &Unobserved).map(drop),
    };
    // Nothing is there under its name unless all of it was verified.
    let is_there = |info: &cowshed_engine::VolumeInfo| info.name.as_str().starts_with("received");
    assert_eq!(pool.volumes().iter().any(is_there), received.is_ok());
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

fn pool() -> Pool {
    let device = Arc::new(MemoryDevice::new(POOL_BYTES));
    Pool::create(&*device, &CreateOptions::default()).unwrap();
    let options = OpenOptions {
        cache_bytes: 4 << 20,
        background: false,
        ..OpenOptions::default()
    };
    Pool::open(device, &options).unwrap()
}

fn receive_set(pool: &Pool, bytes: &[u8]) -> Result<(), Error> {
    let Incoming::Set(incoming) = Incoming::open(bytes)? else {
        return Err(Error::IsSnapshot);
    };
    let numbers = 0..incoming.head().members.len();
    let fates = numbers
        .map(|number| Fate::Named(Name::new(&format!("received/{number}")).unwrap()))
        .collect();
    let arrived = incoming.receive(pool, "received/", fates, &Unobserved)?;
    let mut transaction = pool.transaction();
    arrived.settle(&mut transaction)?;
    Ok(transaction.commit()?)
}

/// Reads all records, as far as the stream is whole.
fn read(bytes: &[u8]) -> Result<(), Error> {
    let read = read_records(bytes);
    if let Err(error) = &read {
        assert!(matches!(error, Error::Stream(_)), "{error}");
    }
    read
}

fn read_records(bytes: &[u8]) -> Result<(), Error> {
    let (mut reader, head) = StreamReader::new(bytes)?;
    match head {
        Head::Snapshot(begin) => read_ranges(&mut reader, &begin),
        Head::Set(head) => {
            for member in &head.members {
                if member.source == Source::Stream {
                    let begin = reader.next_member()?;
                    read_ranges(&mut reader, &begin)?;
                }
            }
            reader.end_of_set()
        }
    }
}

fn read_ranges(reader: &mut StreamReader<&[u8]>, begin: &Begin) -> Result<(), Error> {
    let (mut buffer, mut at) = (Vec::new(), begin.position);
    loop {
        match reader.next(&mut buffer)? {
            Record::Data { offset } => {
                assert!(offset >= at && (1..=DATA_BYTES_MAX).contains(&buffer.len()));
                at = offset + buffer.len() as u64;
            }
            Record::Zero { offset, len_bytes } => {
                assert!(offset >= at && len_bytes > 0);
                at = offset + len_bytes;
            }
            Record::End => return Ok(()),
        }
        assert!(at <= begin.size_bytes && at == reader.position());
    }
}

fn identity(seed: u8) -> Identity {
    Identity {
        pool: [seed; 16],
        volume: u64::from(seed),
        created_ns: 1,
    }
}

fn begin(parts: &mut Parts<'_>, identity_of: u8, name: &Name) -> Begin {
    Begin {
        identity: identity(identity_of),
        name: name.clone(),
        size_bytes: u64::from(parts.word()) << (parts.byte() % 40),
        labels: [("a".to_owned(), "b".repeat(usize::from(parts.byte())))].into(),
        base: (parts.byte() > 200).then(|| BaseName {
            identity: identity(2),
            name: name.clone(),
        }),
        position: u64::from(parts.byte() / 200) << 12,
        data_bytes: u64::from(parts.word()),
    }
}

/// Writes ranges that are sound each by itself.
fn ranges<W: Write>(parts: &mut Parts<'_>, writer: &mut StreamWriter<W>, count: usize) {
    let (mut frame, mut packer) = (Frame::default(), Packer::new().unwrap());
    for _ in 0..count {
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
}

/// Returns a stream of one snapshot whose records are sound each by itself.
fn built(parts: &mut Parts<'_>) -> Vec<u8> {
    let seed = parts.byte();
    let begin = begin(parts, seed, &Name::new("sent").unwrap());
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::new(&mut bytes, &begin).unwrap();
    ranges(parts, &mut writer, RECORDS_MAX);
    writer.end().unwrap();
    bytes
}

/// Returns a stream of a set whose records are sound each by itself.
fn built_set(parts: &mut Parts<'_>) -> Vec<u8> {
    let mut members = Vec::new();
    for number in 0..parts.below(5) {
        let kind = parts.byte();
        members.push(Member {
            identity: identity(parts.byte() % 8),
            name: Name::new(&format!("sent{number}")).unwrap(),
            kind: match kind % 2 {
                0 => MemberKind::Snapshot,
                _ => MemberKind::Volume,
            },
            source: match kind / 2 % 8 {
                0 => Source::Pool,
                1 => Source::Kept,
                _ => Source::Stream,
            },
        });
    }
    let entry = Entry {
        kind: EntryKind::Image,
        key: vec![7; parts.below(40)],
        value: vec![parts.byte(); parts.below(1000)],
    };
    let head = SetHead {
        members,
        entries: vec![entry; parts.below(3)],
        data_bytes: u64::from(parts.word()),
    };
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::of_set(&mut bytes, &head).unwrap();
    for member in &head.members {
        if member.source != Source::Stream {
            continue;
        }
        let begin = begin(parts, member.identity.pool[0], &member.name);
        writer.begin_member(&begin).unwrap();
        let count = parts.below(8);
        ranges(parts, &mut writer, count);
        if parts.byte() != 1 {
            writer.end_member().unwrap();
        }
    }
    writer.end().unwrap();
    bytes
}

/// Returns a sound stream as bytes, one that is built, a set, and the start of a token.
pub fn seeds() -> Vec<Vec<u8>> {
    let sound = [
        1_u8, 1, 1, 0, 20, 2, 0, 0, 0, 0, 0, 0, 12, 0xff, 0x0f, 1, 1, 0, 12, 0xff, 0x0f,
    ];
    let stream = built(&mut Parts(&sound[1..]));
    let set = [
        2_u8, 2, 0xfe, 1, 0xff, 2, 3, 9, 1, 0, 1, 0, 20, 2, 0, 0, 0, 0, 0, 0, 2, 12,
    ];
    vec![
        sound.to_vec(),
        [&[0], &stream[..]].concat(),
        set.to_vec(),
        vec![0; 40],
    ]
}
