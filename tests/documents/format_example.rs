//! The smallest pool that has every structure of the format, byte by byte: docs/format-example.md.
//!
//! The pool is made with the encoders, because a pool made by the engine has times and random
//! numbers in it. The engine then opens it and reads both blocks, and the check finds nothing, so
//! the example is a pool and not only bytes. Each number that the page shows is compared with the
//! bytes at its place.
//!
//! `COWSHED_WRITE_EXAMPLE=1 cargo test --test documents -- format_example` writes the page anew.

use crate::document;
use cowshed_check::{CheckOptions, check};
use cowshed_engine::{Device, OpenOptions, Pool};
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::codec::Writer;
use cowshed_format::base::{
    BLOCK_BYTES, BlockAddr, BlockIndex, Generation, Name, Sequence, VolumeId,
};
use cowshed_format::catalogue::{EntryId, VolumeEntry, cut};
use cowshed_format::device::MemoryDevice;
use cowshed_format::node::{self, NODE_ENTRIES};
use cowshed_format::operation::{Operation, Run};
use cowshed_format::record::{self, Header};
use cowshed_format::{Layout, Pointer, Superblock, group, superblock};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

const POOL_BLOCKS: u64 = 512;
const LOG_BLOCKS: u64 = 16;
const DATA: BlockAddr = BlockAddr(36);
const LEAF: BlockAddr = BlockAddr(37);
const CATALOGUE: BlockAddr = BlockAddr(38);
const CATALOGUE_LEAF: BlockAddr = BlockAddr(39);
/// The block that is in the log only.
const LOGGED: BlockAddr = BlockAddr(40);
const UUID: [u8; 16] = *b"cowshed-example!";
const SALT: u64 = 0x5a17;
const BORN: Generation = Generation(1);
const CUT: Generation = Generation(2);
const FIRST_RECORD: Sequence = Sequence(5);
/// 1970-01-01 and a second.
const CREATED_NS: u64 = 1_000_000_000;
const SIZE_BYTES: u64 = 16 << 10;

type Block = [u8; BLOCK_BYTES];

fn block(text: &[u8]) -> Block {
    let mut block = [0; BLOCK_BYTES];
    block[..text.len()].copy_from_slice(text);
    block
}

fn layout() -> Layout {
    Layout::new(POOL_BLOCKS, LOG_BLOCKS).unwrap()
}

fn data() -> Block {
    block(b"Hello, checkpoint.\n")
}

fn logged() -> Block {
    block(b"Hello, log.\n")
}

fn leaf_of(pointer: Pointer) -> Block {
    let mut entries = [Pointer::HOLE; NODE_ENTRIES];
    entries[0] = pointer;
    *node::encode(&entries)
}

fn leaf() -> Block {
    leaf_of(Pointer::data(DATA, BORN, crc32(&data())))
}

fn volume() -> Vec<u8> {
    VolumeEntry {
        id: VolumeId(1),
        name: Some(Name::new("disk").unwrap()),
        parent: None,
        frozen: false,
        pinned: false,
        branch: Generation(0),
        size_bytes: SIZE_BYTES,
        height: 1,
        root: Pointer::node(LEAF, BORN, crc32(&leaf())),
        own_blocks: 2,
        mapped_blocks: 1,
        reclaimed: 0,
        created_ns: CREATED_NS,
        labels: BTreeMap::new(),
    }
    .encode()
}

fn catalogue() -> Block {
    let mut out = Writer::new();
    for fragment in cut(EntryId::Volume(1), &volume()) {
        fragment.encode(&mut out);
    }
    block(&out.into_bytes())
}

fn catalogue_leaf() -> Block {
    leaf_of(Pointer::data(CATALOGUE, CUT, crc32(&catalogue())))
}

/// The group's header and four blocks.
fn bitmap() -> group::Bitmap {
    let mut bitmap = [0; group::BITMAP_WORDS];
    bitmap[0] = 0xff;
    bitmap
}

fn superblock() -> Vec<u8> {
    Superblock {
        version: superblock::VERSION,
        clean: false,
        features: [0; 3],
        uuid: UUID,
        layout: layout(),
        groups_initialized: 1,
        generation: CUT,
        log_sequence: FIRST_RECORD,
        log_offset: 0,
        log_salt: SALT,
        catalogue_root: Pointer::node(CATALOGUE_LEAF, CUT, crc32(&catalogue_leaf())),
        catalogue_height: 1,
        catalogue_blocks: 1,
        used_blocks: 4,
        volume_count: 1,
        next_volume_id: 2,
        created_ns: CREATED_NS,
        bitmaps_digest: group::digest(0, &bitmap()),
        metadata_copies: 1,
    }
    .encode()
}

fn log_record() -> Vec<u8> {
    let write = Operation::Write {
        volume: VolumeId(1),
        first: BlockIndex(1),
        runs: vec![Run {
            addr: Some(LOGGED),
            count: 1,
        }],
        crcs: vec![crc32(&logged())],
    };
    let mut out = Writer::from_bytes(vec![0; record::HEADER_BYTES]);
    write.encode(&mut out);
    let mut bytes = out.into_bytes();
    bytes.resize(record::record_bytes(bytes.len() - record::HEADER_BYTES), 0);
    let header = Header {
        sequence: FIRST_RECORD,
        salt: SALT,
        durable: Sequence(4),
        generation: Generation(3),
    };
    record::seal(&mut bytes, &header);
    bytes
}

fn device() -> Arc<MemoryDevice> {
    let device = MemoryDevice::new(POOL_BLOCKS * BLOCK_BYTES as u64);
    let put = |bytes: &[u8], at: BlockAddr| {
        let mut whole = bytes.to_vec();
        whole.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        device.write_at(&whole, at.offset_bytes()).unwrap();
    };
    for at in layout().superblock_slots(0) {
        put(&superblock(), at);
    }
    put(
        &log_record(),
        BlockAddr(layout().log_offset_bytes() / BLOCK_BYTES as u64),
    );
    put(
        &group::encode(&UUID, 0, CUT, &bitmap())[..],
        layout().bitmap_slot(0, 0),
    );
    put(&data(), DATA);
    put(&leaf(), LEAF);
    put(&catalogue(), CATALOGUE);
    put(&catalogue_leaf(), CATALOGUE_LEAF);
    put(&logged(), LOGGED);
    Arc::new(device)
}

/// A structure on the page: its bytes and, in order, what they are.
struct Shown {
    heading: &'static str,
    at: u64,
    bytes: Vec<u8>,
    text: String,
    next: usize,
}

impl Shown {
    fn new(heading: &'static str, at: u64, bytes: &[u8]) -> Self {
        let (bytes, text) = (bytes.to_vec(), String::new());
        Self {
            heading,
            at,
            bytes,
            text,
            next: 0,
        }
    }

    /// Shows the next bytes.
    fn bytes(mut self, len: usize, meaning: &str) -> Self {
        for (index, line) in self.bytes[self.next..self.next + len]
            .chunks(16)
            .enumerate()
        {
            let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            let meaning = if index == 0 { meaning } else { "" };
            let offset = self.next + index * 16;
            let line = format!("{offset:5}  {:<47}  {meaning}", hex.join(" "));
            writeln!(self.text, "{}", line.trim_end()).unwrap();
        }
        self.next += len;
        self
    }

    /// Shows the next bytes, which must be this number.
    fn number(self, len: usize, value: u64, meaning: &str) -> Self {
        let found = &self.bytes[self.next..self.next + len];
        assert_eq!(
            found,
            &value.to_le_bytes()[..len],
            "{}: {meaning}",
            self.heading
        );
        let meaning = format!("{meaning}: {value}");
        self.bytes(len, &meaning)
    }

    /// Shows the next bytes, which must be these.
    fn exactly(self, value: &[u8], meaning: &str) -> Self {
        assert_eq!(
            &self.bytes[self.next..self.next + value.len()],
            value,
            "{meaning}"
        );
        self.bytes(value.len(), meaning)
    }

    /// Shows a pointer, which must be this one.
    fn pointer(self, pointer: Pointer, meaning: &str) -> Self {
        let to = format!(
            "{meaning}: block {}, born in generation {}",
            pointer.addr().0,
            pointer.birth().0
        );
        self.exactly(&pointer.encode(), &to)
    }

    /// Ends the structure: all that follows is zero, but for `tail` bytes at its end.
    fn zeros(mut self, tail: usize) -> Self {
        let end = self.bytes.len() - tail;
        assert!(
            self.bytes[self.next..end].iter().all(|byte| *byte == 0),
            "{}",
            self.heading
        );
        writeln!(self.text, "{:5}  zeros to byte {}", self.next, end - 1).unwrap();
        self.next = end;
        self
    }

    fn page(self) -> String {
        assert_eq!(
            self.next,
            self.bytes.len(),
            "{}: all of it is shown",
            self.heading
        );
        let (heading, at, text) = (self.heading, self.at, self.text);
        format!("\n## {heading}\n\nAt byte {at} of the pool:\n\n```text\n{text}```\n")
    }
}

fn at(addr: BlockAddr) -> u64 {
    addr.offset_bytes()
}

fn shown_superblock() -> String {
    let root = Pointer::node(CATALOGUE_LEAF, CUT, crc32(&catalogue_leaf()));
    Shown::new("The superblock in slot 0", 0, &superblock())
        .exactly(b"COWSHED\0", "magic")
        .number(4, u64::from(superblock::VERSION), "version")
        .number(4, 0, "flags, not clean")
        .number(8, 0, "compat features")
        .number(8, 0, "ro_compat features")
        .number(8, 0, "incompat features")
        .exactly(&UUID, "uuid")
        .number(8, POOL_BLOCKS, "N, blocks in the pool")
        .number(8, LOG_BLOCKS, "L, blocks in the log")
        .number(8, 1, "groups initialized")
        .number(8, CUT.0, "generation that the checkpoint cut")
        .number(8, FIRST_RECORD.0, "sequence of the first record to replay")
        .number(8, 0, "its offset in the ring")
        .number(8, SALT, "salt")
        .pointer(root, "root of the catalogue")
        .number(8, 1, "height of the catalogue's map")
        .number(8, 1, "blocks of the catalogue")
        .number(8, 4, "blocks in use")
        .number(8, 1, "volumes")
        .number(8, 2, "id of the next volume")
        .number(8, CREATED_NS, "made, ns since 1970")
        .number(8, group::digest(0, &bitmap()), "digest of the bitmaps")
        .number(
            8,
            1,
            "copies in which map nodes and the catalogue are written",
        )
        .zeros(4)
        .bytes(4, "CRC of the bytes before")
        .page()
}

fn shown_record() -> String {
    let bytes = log_record();
    let crc = u64::from(crc32(&bytes[4..]));
    Shown::new("A record in the log", layout().log_offset_bytes(), &bytes)
        .number(4, crc, "CRC of the bytes behind it")
        .number(4, bytes.len() as u64, "length")
        .number(8, FIRST_RECORD.0, "sequence")
        .number(8, SALT, "salt")
        .number(8, 4, "durable")
        .number(6, 3, "generation")
        .number(2, 0, "flags")
        .number(1, 1, "operation, a write")
        .number(8, 1, "volume")
        .number(8, 1, "first block")
        .number(2, 1, "runs")
        .number(
            8,
            LOGGED.0 | 1 << 40,
            "one block from block 40, as a number",
        )
        .number(4, u64::from(crc32(&logged())), "CRC of that block")
        .zeros(0)
        .page()
}

fn shown_bitmap() -> String {
    let bytes = group::encode(&UUID, 0, CUT, &bitmap());
    let (header, body) = bytes.split_at(BLOCK_BYTES);
    let slot = layout().bitmap_slot(0, 0);
    let header = Shown::new("The header of bitmap slot 0 of group 0", at(slot), header)
        .exactly(b"CWGB", "magic")
        .number(4, u64::from(crc32(body)), "CRC of the bitmap block")
        .exactly(&UUID, "uuid")
        .number(8, 0, "group")
        .number(8, CUT.0, "generation")
        .number(4, 0, "zero")
        .bytes(4, "CRC of the bytes before")
        .zeros(0)
        .page();
    let body = Shown::new("Its bitmap block", at(BlockAddr(slot.0 + 1)), body)
        .number(8, 0xff, "the group's header and blocks 36 to 39 are in use")
        .zeros(0)
        .page();
    header + &body
}

fn shown_trees() -> String {
    let data = data();
    let leaf = leaf();
    let pointer = Pointer::data(DATA, BORN, crc32(&data));
    let text = Shown::new("Block 0 of the volume", at(DATA), &data)
        .exactly(b"Hello, checkpoint.\n", "\"Hello, checkpoint.\\n\"")
        .zeros(0)
        .page();
    let leaf_text = Shown::new("The volume's map: one leaf", at(LEAF), &leaf)
        .pointer(pointer, "data")
        .zeros(0)
        .page();
    text + &leaf_text
}

fn shown_catalogue() -> String {
    let length = volume().len() as u64 + 16;
    let root = Pointer::node(LEAF, BORN, crc32(&leaf()));
    let block = Shown::new("The catalogue: one block", at(CATALOGUE), &catalogue())
        .number(2, length, "length of the fragment")
        .number(1, 1, "kind, a volume")
        .number(1, 0, "zero")
        .number(8, 1, "id of the entry")
        .number(2, 0, "part")
        .number(2, 1, "parts")
        .number(1, 1, "version of the entry")
        .number(1, 2, "flags, named")
        .number(1, 1, "height")
        .number(1, 0, "zero")
        .number(8, 1, "id")
        .number(8, 0, "parent")
        .number(8, 0, "branch")
        .number(8, SIZE_BYTES, "size in bytes")
        .pointer(root, "root")
        .number(8, 2, "own blocks")
        .number(8, 1, "mapped blocks")
        .number(8, 0, "reclaim cursor")
        .number(8, CREATED_NS, "created, ns since 1970")
        .number(2, 4, "length of the name")
        .exactly(b"disk", "\"disk\"")
        .number(2, 0, "labels")
        .zeros(0)
        .page();
    let pointer = Pointer::data(CATALOGUE, CUT, crc32(&catalogue()));
    let leaf = Shown::new(
        "The catalogue's map: one leaf",
        at(CATALOGUE_LEAF),
        &catalogue_leaf(),
    )
    .pointer(pointer, "data")
    .zeros(0)
    .page();
    block + &leaf
}

fn page() -> String {
    let head = format!(
        "# A pool, byte by byte

<!-- `COWSHED_WRITE_EXAMPLE=1 cargo test --test documents -- format_example` writes this file from
the encoders of the program. Do not edit it. -->

The smallest pool that has every structure of [the format](FORMAT.md), version {}: 2 MiB with a log
of 64 KiB, and one volume `disk` of 16 KiB. Its first block was written before the last checkpoint,
the second one after it, so that the second is in the log only. A test makes this pool, opens it,
reads both blocks, checks it, and compares each number below with the bytes.

Each line has an offset within the structure, the bytes in hex, and what they are. What is not
shown is zero: the rest of the log, bitmap slot 1, superblock slot 1 in block 1 and its copy in block
511.

| block | what |
|---|---|
| 0, 510 | superblock slot 0, and its copy |
| 16 to 31 | the log |
| 32 to 35 | the header of group 0: two bitmap slots |
| 36 | data of the volume's block 0 |
| 37 | the volume's map |
| 38 | the catalogue |
| 39 | the catalogue's map |
| 40 | data of the volume's block 1; free in the bitmap, as the checkpoint does not know it |
",
        superblock::VERSION
    );
    let logged = Shown::new("Block 1 of the volume", at(LOGGED), &logged())
        .exactly(b"Hello, log.\n", "\"Hello, log.\\n\"")
        .zeros(0)
        .page();
    [
        head,
        shown_superblock(),
        shown_record(),
        shown_bitmap(),
        shown_trees(),
        shown_catalogue(),
        logged,
    ]
    .concat()
}

#[test]
fn the_pool_is_sound_and_reads_as_the_page_says() {
    let options = CheckOptions {
        deep: true,
        ..CheckOptions::default()
    };
    let report = check(&*device(), options, &mut |_| {}).unwrap();
    assert!(report.clean(), "{:?}", report.findings);
    let options = OpenOptions {
        background: false,
        ..OpenOptions::default()
    };
    let pool = Pool::open(device() as Arc<dyn Device>, &options).unwrap();
    let volume = pool.volume("disk").unwrap();
    assert_eq!(volume.size_bytes(), SIZE_BYTES);
    let mut found = vec![0; 3 * BLOCK_BYTES];
    volume.read_at(&mut found, 0).unwrap();
    assert!(found[..BLOCK_BYTES] == data() && found[BLOCK_BYTES..2 * BLOCK_BYTES] == logged());
    assert!(found[2 * BLOCK_BYTES..].iter().all(|byte| *byte == 0));
}

#[test]
fn the_page_shows_these_bytes() {
    let path = document::root().join("docs/format-example.md");
    if std::env::var_os("COWSHED_WRITE_EXAMPLE").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == page(),
        "docs/format-example.md is not what the code writes; run \
         COWSHED_WRITE_EXAMPLE=1 cargo test --test documents -- format_example"
    );
}
