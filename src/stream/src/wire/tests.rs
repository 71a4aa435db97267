#![allow(
    clippy::cast_possible_truncation,
    reason = "small numbers of a test's own making"
)]

use super::*;
use crate::error::{Error, Fault};
use crate::identity::Identity;
use cowshed_engine::Name;
use proptest::prelude::*;

const SIZE: u64 = (8 << 20) + 100;

fn identity(seed: u8) -> Identity {
    Identity {
        pool: [seed; 16],
        volume: 3,
        created_ns: 4,
    }
}

fn begin() -> Begin {
    Begin {
        identity: identity(1),
        name: Name::new("disk@2").unwrap(),
        size_bytes: SIZE,
        labels: [("a".to_owned(), "b".to_owned())].into(),
        base: Some(BaseName {
            identity: identity(2),
            name: Name::new("disk@1").unwrap(),
        }),
        position: 0,
        data_bytes: 12_288,
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Data(u64, Vec<u8>),
    Zero(u64, u64),
}

fn parts() -> Vec<Part> {
    vec![
        Part::Data(0, vec![7; 8192]),
        Part::Zero(8192, 4096),
        Part::Data(
            1 << 20,
            (0..4096_u32).map(|at| ((at * 31) >> 3) as u8).collect(),
        ),
        Part::Data(8 << 20, vec![9; 100]),
    ]
}

fn write(begin: &Begin, parts: &[Part], packed: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::new(&mut bytes, begin).unwrap();
    let mut packer = Packer::new().unwrap();
    let mut frame = Frame::default();
    for part in parts {
        match part {
            Part::Data(offset, data) => {
                frame.data(*offset, data.len()).copy_from_slice(data);
                if packed {
                    packer.pack(&mut frame);
                }
            }
            Part::Zero(offset, len) => frame.zero(*offset, *len),
        }
        writer.send(&mut frame).unwrap();
    }
    writer.end().unwrap();
    bytes
}

/// Reads a stream up to its end, or to an error, and returns the parts before that.
fn read(bytes: &[u8]) -> (Vec<Part>, Result<Begin, Error>) {
    let mut parts = Vec::new();
    let (mut reader, begin) = match StreamReader::new(bytes) {
        Ok((reader, Head::Snapshot(begin))) => (reader, begin),
        Ok((_, Head::Set(_))) => panic!("a set"),
        Err(error) => return (parts, Err(error)),
    };
    let mut buffer = Vec::new();
    loop {
        match reader.next(&mut buffer) {
            Ok(Record::Data { offset }) => parts.push(Part::Data(offset, buffer.clone())),
            Ok(Record::Zero { offset, len_bytes }) => parts.push(Part::Zero(offset, len_bytes)),
            Ok(Record::End) => return (parts, Ok(begin)),
            Err(error) => return (parts, Err(error)),
        }
    }
}

fn fault(bytes: &[u8]) -> Fault {
    match read(bytes).1.unwrap_err() {
        Error::Stream(fault) => fault,
        error => panic!("{error}"),
    }
}

#[test]
fn a_stream_comes_back_as_it_was_compressed_or_not() {
    let plain = write(&begin(), &parts(), false);
    let packed = write(&begin(), &parts(), true);
    assert!(packed.len() < plain.len());
    for bytes in [plain, packed] {
        let (found, ended) = read(&bytes);
        assert_eq!(found, parts());
        assert_eq!(ended.unwrap(), begin());
    }
}

#[test]
fn a_stream_that_is_cut_anywhere_is_an_error_and_its_records_so_far_are_right() {
    let bytes = write(&begin(), &parts(), false);
    for len in (0..bytes.len()).filter(|len| len % 7 == 0 || *len > bytes.len() - 200) {
        let (found, ended) = read(&bytes[..len]);
        assert!(matches!(ended, Err(Error::Stream(Fault::Cut))), "{len}");
        assert_eq!(found, parts()[..found.len()]);
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(fault(&longer), Fault::Trailing);
}

#[test]
fn any_altered_byte_is_found_before_its_record_is_given_out() {
    let bytes = write(&begin(), &parts(), true);
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 0x10;
        let (found, ended) = read(&altered);
        assert!(ended.is_err(), "{at}");
        assert_eq!(found, parts()[..found.len()], "{at}");
    }
}

#[test]
fn records_that_change_places_are_found() {
    let record = |data: &[u8]| HEADER_BYTES + data.len() + CHECKSUM_BYTES;
    let same = [
        Part::Data(0, vec![1; 4096]),
        Part::Data(4096, vec![2; 4096]),
    ];
    let bytes = write(&begin(), &same, false);
    let end = bytes.len() - record(&[0; 32]);
    let (first, second) = (end - 2 * record(&[0; 4096]), end - record(&[0; 4096]));
    let swapped = [
        &bytes[..first],
        &bytes[second..end],
        &bytes[first..second],
        &bytes[end..],
    ];
    assert_eq!(fault(&swapped.concat()), Fault::Checksum(1));
    let without = [&bytes[..first], &bytes[second..]].concat();
    assert_eq!(fault(&without), Fault::Checksum(1));
}

#[test]
fn foreign_and_newer_streams_are_told_apart() {
    let bytes = write(&begin(), &parts(), false);
    assert_eq!(fault(b"GET / HTTP/1.1\r\n\r\n"), Fault::NotAStream);
    assert_eq!(fault(b"x"), Fault::NotAStream);
    assert_eq!(fault(b""), Fault::Cut);
    let mut newer = bytes.clone();
    newer[8] = 9;
    let version = Fault::Version { theirs: 9, ours: 1 };
    assert_eq!(fault(&newer), version);
    let mut features = bytes;
    features[12] = 4;
    assert_eq!(fault(&features), Fault::Features(4));
}

#[test]
fn ranges_that_cannot_be_are_refused_although_their_checksums_are_right() {
    let refused = |parts: &[Part]| {
        let bytes = write(&begin(), parts, false);
        assert!(
            matches!(fault(&bytes), Fault::Malformed { .. }),
            "{parts:?}"
        );
    };
    refused(&[Part::Zero(0, 0)]);
    refused(&[Part::Zero(4096, u64::MAX)]);
    refused(&[Part::Zero(u64::MAX - 4095, 4096)]);
    refused(&[Part::Data(8 << 20, vec![0; 101])]);
    refused(&[Part::Data(1, vec![0; 4095])]);
    refused(&[Part::Data(0, vec![0; 4095])]);
    refused(&[Part::Zero(4096, 4096), Part::Zero(0, 4096)]);
    refused(&[Part::Zero(0, 8192), Part::Zero(4096, 4096)]);
    let odd = |change: &dyn Fn(&mut Begin)| {
        let mut begin = begin();
        change(&mut begin);
        let bytes = write(&begin, &[], false);
        assert!(matches!(fault(&bytes), Fault::Malformed { record: 0, .. }));
    };
    odd(&|begin| begin.size_bytes = 0);
    odd(&|begin| begin.size_bytes = u64::MAX);
    odd(&|begin| begin.position = 5);
    odd(&|begin| begin.position = SIZE + 4096);
    odd(&|begin| begin.data_bytes = SIZE + 1);
    odd(&|begin| drop(begin.labels.insert("x".to_owned(), "y".repeat(20_000))));
}

#[test]
fn a_length_that_promises_too_much_is_refused_before_it_is_read() {
    let mut bytes = write(&begin(), &[], false);
    let end = bytes.len() - HEADER_BYTES - DIGEST_BYTES - CHECKSUM_BYTES;
    bytes.truncate(end);
    for (kind, payload_bytes, len_bytes) in [
        (kind::DATA, u32::MAX, 4096),
        (kind::DATA, 4096, 2 << 20),
        (kind::DATA_ZSTD, u32::MAX, 4096),
        (kind::DATA_ZSTD, 4096, 4096),
        (kind::ZERO, 1, 4096),
        (kind::END, 31, 0),
        (kind::BEGIN, 8, 0),
        (kind::SET, 8, 0),
        (kind::ENTRY, 8, 0),
        (kind::MEMBER_END, 0, 0),
        (77, 0, 0),
    ] {
        let header = Header {
            kind,
            payload_bytes,
            offset: 0,
            len_bytes,
        };
        let hostile = [&bytes[..], &header.encode()].concat();
        assert!(matches!(
            fault(&hostile),
            Fault::Malformed { record: 1, .. }
        ));
    }
}

fn set() -> SetHead {
    let member = |seed, name, kind, source| Member {
        identity: identity(seed),
        name: Name::new(name).unwrap(),
        kind,
        source,
    };
    SetHead {
        members: vec![
            member(2, "disk@1", MemberKind::Snapshot, Source::Pool),
            member(1, "disk@2", MemberKind::Snapshot, Source::Stream),
            member(3, "disk", MemberKind::Volume, Source::Kept),
        ],
        entries: vec![
            Entry {
                kind: EntryKind::Image,
                key: b"key".to_vec(),
                value: Vec::new(),
            },
            Entry {
                kind: EntryKind::Container,
                key: vec![0xff; 1024],
                value: vec![7; 1 << 20],
            },
        ],
        data_bytes: 12_288,
    }
}

/// Writes a set with one member in the stream.
fn write_set(head: &SetHead, begin: &Begin) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::of_set(&mut bytes, head).unwrap();
    writer.begin_member(begin).unwrap();
    let mut frame = Frame::default();
    frame.data(0, 4096).fill(3);
    writer.send(&mut frame).unwrap();
    writer.end_member().unwrap();
    writer.end().unwrap();
    bytes
}

fn read_set(bytes: &[u8]) -> Result<(SetHead, Begin), Error> {
    let (mut reader, head) = StreamReader::new(bytes)?;
    let Head::Set(head) = head else {
        panic!("one snapshot");
    };
    let begin = reader.next_member()?;
    let mut buffer = Vec::new();
    while reader.next(&mut buffer)? != Record::End {}
    reader.end_of_set()?;
    Ok((head, begin))
}

#[test]
fn a_set_comes_back_as_it_was_and_is_found_cut_or_altered_anywhere() {
    let bytes = write_set(&set(), &begin());
    assert_eq!(read_set(&bytes).unwrap(), (set(), begin()));
    let entries = PREAMBLE_BYTES + 2000;
    let dull = |at: &usize| *at < entries || *at > bytes.len() - 6000;
    for at in (0..bytes.len()).filter(|at| dull(at) && at.is_multiple_of(3)) {
        let cut = read_set(&bytes[..at]);
        assert!(matches!(cut, Err(Error::Stream(Fault::Cut))), "{at}");
        let mut altered = bytes.clone();
        altered[at] ^= 0x10;
        assert!(read_set(&altered).is_err(), "{at}");
    }
}

#[test]
fn a_set_that_breaks_a_rule_is_refused_although_its_checksums_are_right() {
    let refused = |change: &dyn Fn(&mut SetHead)| {
        let mut head = set();
        change(&mut head);
        let found = read_set(&write_set(&head, &begin()));
        assert!(
            matches!(found, Err(Error::Stream(Fault::Malformed { .. }))),
            "{found:?}"
        );
    };
    refused(&|head| head.members.clear());
    refused(&|head| head.members[1].name = head.members[0].name.clone());
    refused(&|head| head.members[1].identity = head.members[0].identity);
    refused(&|head| head.data_bytes = u64::MAX);
    refused(&|head| head.entries[0].key.clear());
    refused(&|head| head.entries[1].key.push(0));
    refused(&|head| head.entries[1].value.push(0));
    // A snapshot by itself where a member must end, and more members than the set lists.
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::of_set(&mut bytes, &set()).unwrap();
    writer.begin_member(&begin()).unwrap();
    writer.end().unwrap();
    assert!(matches!(
        read_set(&bytes),
        Err(Error::Stream(Fault::Malformed { .. }))
    ));
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::of_set(&mut bytes, &set()).unwrap();
    for _ in 0..2 {
        writer.begin_member(&begin()).unwrap();
        writer.end_member().unwrap();
    }
    writer.end().unwrap();
    assert!(matches!(
        read_set(&bytes),
        Err(Error::Stream(Fault::Malformed { .. }))
    ));
}

proptest! {
    #[test]
    fn hostile_bytes_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..600), keep in 0..400_usize) {
        let sound = write(&begin(), &parts(), true);
        let hostile = [&sound[..keep.min(sound.len())], &bytes[..]].concat();
        let _ = read(&hostile);
    }
}
