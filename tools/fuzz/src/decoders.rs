//! Every decoder of the format, with repaired checksums: it returns a value or an error, and a
//! value that it accepts can be written and read back unchanged.

use crate::parts::Parts;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::codec::{Reader, Writer};
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, Generation, Name, Sequence, VolumeId};
use cowshed_format::catalogue::{RecordEntry, VolumeEntry, fragments};
use cowshed_format::node::{Bounds, Entries};
use cowshed_format::operation::Operation;
use cowshed_format::record::{self, HEADER_BYTES, Header};
use cowshed_format::side::{Epoch, Lack, SideEntry, SideId, SideLabel, SideSet, SideState};
use cowshed_format::{Layout, Pointer, Superblock, group, node};

const UUID: [u8; 16] = [7; 16];

/// The selector of the label of a side. The others are counted, and keep their meanings.
const SIDE_LABEL: u8 = 0xff;

/// The first byte selects the decoder; the rest overlays a sound structure or is one.
pub fn run(data: &[u8]) {
    let mut parts = Parts(data);
    let which = parts.byte();
    let rest = parts.rest();
    if which == SIDE_LABEL {
        return side_label(rest);
    }
    match which % 8 {
        0 => superblock(rest),
        1 => bitmap_slot(rest),
        2 => map_node(rest),
        3 => log_record(rest),
        4 => catalogue_block(rest),
        5 => volume_entry(rest),
        6 => operation(rest),
        _ => name(rest),
    }
}

/// Returns one seed for each decoder.
pub fn seeds() -> Vec<Vec<u8>> {
    let with = |which: u8, bytes: &[u8]| [&[which], bytes].concat();
    let mut seeds: Vec<Vec<u8>> = (0..8).map(|which| with(which, &[])).collect();
    seeds.push(with(SIDE_LABEL, &[]));
    let mut out = Writer::new();
    for each in operations() {
        each.encode(&mut out);
    }
    let bytes = out.into_bytes();
    seeds.push(with(3, &bytes));
    seeds.push(with(6, &bytes));
    seeds.push(with(5, &entry().encode()));
    seeds.push(with(4, &RecordEntry::encode(1, b"key", b"value")));
    seeds.push(with(7, b"layer/sha256:00ff"));
    seeds
}

fn operations() -> Vec<Operation> {
    let (volume, name) = (VolumeId(1), Name::new("a").unwrap());
    vec![
        Operation::Create {
            volume,
            name: name.clone(),
            size_bytes: 1 << 20,
            created_ns: 5,
        },
        Operation::Freeze { volume },
        Operation::Clone {
            snapshot: volume,
            volume: VolumeId(2),
            name,
            created_ns: 6,
        },
        Operation::PutRecord {
            kind: 1,
            key: b"k".to_vec(),
            value: b"v".to_vec(),
        },
        Operation::Remove { volume },
    ]
}

fn entry() -> VolumeEntry {
    VolumeEntry {
        id: VolumeId(3),
        name: Name::new("name").ok(),
        parent: Some(VolumeId(1)),
        branch: Generation(4),
        frozen: false,
        pinned: false,
        size_bytes: 1 << 20,
        root: Pointer::node(BlockAddr(300), Generation(5), 77),
        height: 2,
        own_blocks: 3,
        mapped_blocks: 2,
        reclaimed: 0,
        created_ns: 9,
        labels: [("a".to_owned(), "b".to_owned())].into(),
    }
}

/// Overlays `bytes` with `rest`, as pairs of an offset and a byte.
fn overlay(bytes: &mut [u8], rest: &[u8]) {
    for change in rest.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] = change[2];
    }
}

fn superblock(rest: &[u8]) {
    let layout = Layout::new(1 << 16, 256).unwrap();
    let sound = Superblock {
        version: cowshed_format::superblock::VERSION,
        clean: true,
        features: [0; 3],
        uuid: UUID,
        layout,
        groups_initialized: 1,
        generation: Generation(3),
        log_sequence: Sequence(1),
        log_offset: 0,
        log_salt: 1,
        catalogue_root: Pointer::node(BlockAddr(300), Generation(2), 7),
        catalogue_height: 1,
        catalogue_blocks: 1,
        used_blocks: 2,
        volume_count: 1,
        next_volume_id: 2,
        created_ns: 0,
        bitmaps_digest: 0,
        metadata_copies: 2,
    };
    let mut bytes = sound.encode();
    // The fields are in the first bytes.
    overlay(&mut bytes[..200], rest);
    let end = BLOCK_BYTES - 4;
    let crc = crc32(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    if let Ok(found) = Superblock::decode(&bytes) {
        let again = Superblock::decode(&found.encode()).unwrap();
        assert_eq!(again, found);
    }
}

fn side_label(rest: &[u8]) {
    let entry = |number: u8, state| SideEntry {
        id: SideId([number; 16]),
        state,
        path: vec![b'p'; 20],
    };
    let epoch = |number| Epoch { number, tag: 9 };
    let sound = SideLabel {
        pool: UUID,
        side: SideId([1; 16]),
        set: SideSet {
            epoch: epoch(5),
            is_apart: false,
            history: vec![epoch(3), epoch(4)],
            sides: vec![
                entry(1, SideState::Good),
                entry(2, SideState::Behind(Lack::since(Generation(7)))),
            ],
        },
    };
    let mut bytes = sound.encode();
    overlay(&mut bytes[..300], rest);
    let end = BLOCK_BYTES - 4;
    let crc = crc32(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    if let Some(found) = SideLabel::decode(&bytes) {
        assert_eq!(SideLabel::decode(&found.encode()), Some(found));
    }
}

fn bitmap_slot(rest: &[u8]) {
    let mut bytes = group::encode(&UUID, 4, Generation(9), &[0; group::BITMAP_WORDS]);
    overlay(&mut bytes[..48], rest);
    let body = crc32(&bytes[BLOCK_BYTES..]);
    bytes[4..8].copy_from_slice(&body.to_le_bytes());
    let header = crc32(&bytes[..44]);
    bytes[44..48].copy_from_slice(&header.to_le_bytes());
    if let Some(found) = group::decode(&bytes, &UUID, 4) {
        let again = group::encode(&UUID, found.group, found.generation, &found.bitmap);
        assert_eq!(group::decode(&again, &UUID, 4), Some(found));
    }
}

fn map_node(rest: &[u8]) {
    let mut bytes = [0; BLOCK_BYTES];
    for (at, byte) in bytes.iter_mut().zip(rest.iter().skip(1)) {
        *at = *byte;
    }
    let entries: Entries = node::decode(&bytes);
    assert_eq!(*node::encode(&entries), bytes);
    let bounds = Bounds {
        layout: Layout::new(1 << 16, 256).unwrap(),
        now: Generation(100),
    };
    let level = rest.first().map_or(1, |byte| byte % 6 + 1);
    if node::verify(&entries, BlockAddr(300), level, &bounds).is_ok() {
        let sound = |pointer: &Pointer| {
            let inside = pointer.is_lost() || bounds.layout.locate(pointer.addr()).is_some();
            pointer.is_hole() || (pointer.birth() <= bounds.now && inside)
        };
        assert!(entries.iter().all(sound));
    }
}

fn log_record(rest: &[u8]) {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(rest);
    bytes.resize(record::record_bytes(rest.len()), 0);
    let header = Header {
        sequence: Sequence(5),
        salt: 6,
        durable: Sequence(4),
        generation: Generation(3),
    };
    record::seal(&mut bytes, &header);
    let found = record::decode(&bytes).expect("a sealed record is one");
    assert_eq!((found.header, found.len_bytes), (header, bytes.len()));
    for operation in found.operations.unwrap_or_default() {
        same_again(&operation);
    }
    // And with an unsealed header.
    if let Some(found) = record::decode(rest) {
        assert!(found.len_bytes <= rest.len());
    }
}

fn same_again(operation: &Operation) {
    let mut out = Writer::new();
    operation.encode(&mut out);
    let bytes = out.into_bytes();
    let again = Operation::decode(&mut Reader::new(&bytes));
    assert_eq!(again.as_ref(), Some(operation));
}

fn operation(rest: &[u8]) {
    let mut input = Reader::new(rest);
    while let Some(found) = Operation::decode(&mut input) {
        same_again(&found);
    }
}

fn catalogue_block(rest: &[u8]) {
    let mut block = vec![0; BLOCK_BYTES];
    for (at, byte) in block.iter_mut().zip(rest) {
        *at = *byte;
    }
    if let Ok(found) = fragments(&block) {
        let mut out = Writer::new();
        found.iter().for_each(|fragment| fragment.encode(&mut out));
        assert!(block.starts_with(&out.into_bytes()));
    }
    if let Ok(found) = RecordEntry::decode(rest) {
        let again = RecordEntry::encode(found.kind, &found.key, &found.value);
        assert!(rest.starts_with(&again));
    }
}

fn volume_entry(rest: &[u8]) {
    if let Ok(found) = VolumeEntry::decode(rest) {
        assert_eq!(VolumeEntry::decode(&found.encode()).as_ref(), Ok(&found));
    }
}

fn name(rest: &[u8]) {
    let Ok(text) = std::str::from_utf8(rest) else {
        return;
    };
    if let Ok(name) = Name::new(text) {
        assert!(name.as_str() == text && !text.contains(['\0', '\n', ' ']));
    }
}
