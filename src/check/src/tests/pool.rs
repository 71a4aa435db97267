//! A pool built by hand from the format's encoders, with the semantics of FORMAT.md and no part of
//! the engine: every write copies its path at once.

use cowshed_format::base::checksum::crc32;
use cowshed_format::base::codec::Writer;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, Generation, Name, Sequence, VolumeId};
use cowshed_format::catalogue::{EntryId, Fragment, RecordEntry, VolumeEntry, cut};
use cowshed_format::device::{Device, MemoryDevice};
use cowshed_format::group::{self, BITMAP_WORDS, Bitmap};
use cowshed_format::layout::GROUP_HEADER_BLOCKS;
use cowshed_format::node::{self, Entries, NODE_ENTRIES};
use cowshed_format::operation::Operation;
use cowshed_format::record::{self, HEADER_BYTES, Header, record_bytes};
use cowshed_format::{Layout, Pointer, Superblock};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const UUID: [u8; 16] = *b"a pool for tests";
pub(super) const SALT: u64 = 0x5a17_5a17_5a17_5a17;

pub(super) struct TestPool {
    pub(super) layout: Layout,
    pub(super) volumes: BTreeMap<u64, VolumeEntry>,
    pub(super) used: BTreeSet<u64>,
    pub(super) generation: u64,
    pub(super) groups_initialized: u64,
    /// Catalogue entries besides the volumes.
    pub(super) records: Vec<(EntryId, Vec<u8>)>,
    pub(super) log: Vec<u8>,
    device: MemoryDevice,
    next_id: u64,
    next_addr: u64,
}

impl TestPool {
    pub(super) fn new() -> Self {
        let layout = Layout::new(16 + 64 + 32_768 + 5000 + 2, 64).unwrap();
        let record = RecordEntry::encode(1, b"key", &[7; 5000]);
        Self {
            layout,
            volumes: BTreeMap::new(),
            used: BTreeSet::new(),
            generation: 5,
            groups_initialized: 1,
            records: vec![(EntryId::Record(1), record)],
            log: Vec::new(),
            device: MemoryDevice::new(layout.block_count() * BLOCK_BYTES as u64),
            next_id: 1,
            next_addr: layout.group_start(0) + GROUP_HEADER_BLOCKS,
        }
    }

    fn now(&self) -> Generation {
        Generation(self.generation)
    }

    fn store(&mut self, bytes: &[u8]) -> (BlockAddr, u32) {
        let addr = BlockAddr(self.next_addr);
        self.next_addr += 1;
        assert!(self.layout.locate(addr).is_some());
        self.used.insert(addr.0);
        self.device.write_at(bytes, addr.offset_bytes()).unwrap();
        (addr, crc32(bytes))
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    pub(super) fn volume(&mut self, id: u64) -> &mut VolumeEntry {
        self.volumes.get_mut(&id).unwrap()
    }

    pub(super) fn create(&mut self, name: &str) -> u64 {
        let id = self.id();
        let entry = VolumeEntry {
            id: VolumeId(id),
            name: Some(Name::new(name).unwrap()),
            parent: None,
            frozen: false,
            pinned: false,
            branch: Generation(0),
            size_bytes: 1 << 30,
            height: 1,
            root: Pointer::HOLE,
            own_blocks: 0,
            mapped_blocks: 0,
            reclaimed: 0,
            created_ns: 1,
            labels: [("label".to_owned(), "x".repeat(700))].into(),
        };
        self.volumes.insert(id, entry);
        id
    }

    /// Puts a frozen volume in the place of `id`; returns its id.
    pub(super) fn snapshot(&mut self, id: u64, name: &str) -> u64 {
        let (snapshot, now) = (self.id(), self.now());
        self.generation += 1;
        let mut entry = self.volumes[&id].clone();
        entry.id = VolumeId(snapshot);
        entry.name = Some(Name::new(name).unwrap());
        entry.frozen = true;
        self.volumes.insert(snapshot, entry);
        let volume = self.volume(id);
        volume.parent = Some(VolumeId(snapshot));
        (volume.branch, volume.own_blocks) = (now, 0);
        snapshot
    }

    pub(super) fn clone_of(&mut self, snapshot: u64, name: &str) -> u64 {
        let (id, now) = (self.id(), self.now());
        self.generation += 1;
        let mut entry = self.volumes[&snapshot].clone();
        entry.id = VolumeId(id);
        entry.name = Some(Name::new(name).unwrap());
        (entry.parent, entry.branch) = (Some(VolumeId(snapshot)), now);
        (entry.frozen, entry.own_blocks) = (false, 0);
        self.volumes.insert(id, entry);
        id
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.volume(id).name = None;
    }

    /// Stores a block of `fill` bytes; 0 makes it a hole.
    pub(super) fn write(&mut self, id: u64, index: u64, fill: u8) {
        let pointer = if fill == 0 {
            Pointer::HOLE
        } else {
            let (addr, crc) = self.store(&[fill; BLOCK_BYTES]);
            Pointer::data(addr, self.now(), crc)
        };
        let mut volume = self.volumes.remove(&id).unwrap();
        self.put(&mut volume, index, pointer);
        self.volumes.insert(id, volume);
    }

    fn put(&mut self, volume: &mut VolumeEntry, index: u64, pointer: Pointer) {
        while index >= node::entry_blocks(volume.height + 1) {
            volume.height += 1;
            if !volume.root.is_hole() {
                let mut entries = [Pointer::HOLE; NODE_ENTRIES];
                entries[0] = volume.root;
                volume.root = self.store_node(&entries);
                volume.own_blocks += 1;
            }
        }
        volume.root = self.put_below(volume, volume.root, volume.height, index, pointer);
    }

    fn put_below(
        &mut self,
        volume: &mut VolumeEntry,
        old: Pointer,
        level: u8,
        index: u64,
        new: Pointer,
    ) -> Pointer {
        let mut made = new;
        if level == 0 {
            volume.mapped_blocks += u64::from(!new.is_hole());
            volume.mapped_blocks -= u64::from(!old.is_hole());
        } else {
            let mut entries = self.entries(old);
            let slot = node::slot(index, level);
            entries[slot] = self.put_below(volume, entries[slot], level - 1, index, new);
            made = self.store_node(&entries);
        }
        volume.own_blocks += u64::from(!made.is_hole());
        if old.birth() > volume.branch {
            volume.own_blocks -= 1;
            self.used.remove(&old.addr().0);
        }
        made
    }

    fn store_node(&mut self, entries: &Entries) -> Pointer {
        let (addr, crc) = self.store(&node::encode(entries)[..]);
        Pointer::node(addr, self.now(), crc)
    }

    fn entries(&self, pointer: Pointer) -> Box<Entries> {
        // Tests also put pointers that lead nowhere.
        if self.layout.locate(pointer.addr()).is_none() {
            return Box::new([Pointer::HOLE; NODE_ENTRIES]);
        }
        let mut bytes = [0; BLOCK_BYTES];
        let offset = pointer.addr().offset_bytes();
        self.device.read_at(&mut bytes, offset).unwrap();
        Box::new(node::decode(&bytes))
    }

    /// Changes the node over `index` at `level` in place, and every checksum above it.
    pub(super) fn tamper(&mut self, id: u64, index: u64, level: u8, change: &dyn Fn(&mut Entries)) {
        let volume = self.volumes[&id].clone();
        self.volume(id).root = self.tamper_below(volume.root, volume.height, index, level, change);
    }

    fn tamper_below(
        &mut self,
        pointer: Pointer,
        at: u8,
        index: u64,
        level: u8,
        change: &dyn Fn(&mut Entries),
    ) -> Pointer {
        let mut entries = self.entries(pointer);
        if at == level {
            change(&mut entries);
        } else {
            let slot = node::slot(index, at);
            entries[slot] = self.tamper_below(entries[slot], at - 1, index, level, change);
        }
        let bytes = node::encode(&entries);
        let offset = pointer.addr().offset_bytes();
        self.device.write_at(&bytes[..], offset).unwrap();
        Pointer::node(pointer.addr(), pointer.birth(), crc32(&bytes[..]))
    }

    /// Returns the pointers over block `index` of a volume, from the root to the data.
    pub(super) fn path(&self, id: u64, index: u64) -> Vec<Pointer> {
        let volume = &self.volumes[&id];
        let mut path = vec![volume.root];
        for level in (1..=volume.height).rev() {
            let entries = self.entries(path[path.len() - 1]);
            path.push(entries[node::slot(index, level)]);
        }
        path
    }

    /// Settles a removed volume up to block `cursor`, as a reclaim does.
    pub(super) fn settle(&mut self, id: u64, cursor: u64) {
        let volume = self.volumes[&id].clone();
        let child = self.volumes.values().find(|v| v.parent == Some(volume.id));
        let theirs = child.map_or(Pointer::HOLE, |child| {
            assert_eq!(child.height, volume.height);
            child.root
        });
        let freed = self.settle_below(&volume, volume.root, theirs, volume.height, 0, cursor);
        let volume = self.volume(id);
        volume.own_blocks -= freed;
        volume.reclaimed = cursor;
    }

    fn settle_below(
        &mut self,
        volume: &VolumeEntry,
        mine: Pointer,
        theirs: Pointer,
        level: u8,
        first: u64,
        cursor: u64,
    ) -> u64 {
        if mine.birth() <= volume.branch || mine == theirs || first >= cursor {
            return 0;
        }
        let mut freed = 0;
        let span = node::entry_blocks(level + 1);
        if level > 0 {
            let (mine, theirs) = (self.entries(mine), self.entries(theirs));
            for (slot, (mine, theirs)) in (0u64..).zip(mine.iter().zip(theirs.iter())) {
                let first = first + slot * node::entry_blocks(level);
                freed += self.settle_below(volume, *mine, *theirs, level - 1, first, cursor);
            }
        }
        if first + span <= cursor {
            assert!(self.used.remove(&mine.addr().0));
            // The freed block may hold something else by now.
            let garbage = [0xdb; BLOCK_BYTES];
            let offset = mine.addr().offset_bytes();
            self.device.write_at(&garbage, offset).unwrap();
            freed += 1;
        }
        freed
    }

    /// Appends a record to the log.
    pub(super) fn append(&mut self, sequence: u64, durable: u64, operations: &[Operation]) {
        let mut out = Writer::new();
        out.bytes(&[0; HEADER_BYTES]);
        operations.iter().for_each(|each| each.encode(&mut out));
        let mut bytes = out.into_bytes();
        bytes.resize(record_bytes(bytes.len() - HEADER_BYTES), 0);
        let header = Header {
            sequence: Sequence(sequence),
            salt: SALT,
            durable: Sequence(durable),
            generation: self.now(),
        };
        record::seal(&mut bytes, &header);
        self.log.extend_from_slice(&bytes);
    }

    /// Writes catalogue, bitmaps and superblocks, with `change` applied to the fragments and then
    /// to the superblock.
    pub(super) fn finish_with(
        mut self,
        change: impl FnOnce(&mut Superblock, &mut BTreeMap<u64, Bitmap>),
    ) -> MemoryDevice {
        let mut catalogue = self.empty_catalogue();
        let mut blocks = vec![Writer::new()];
        let entries = self.volumes.values();
        let volumes = entries.map(|volume| (EntryId::Volume(volume.id.0), volume.encode()));
        for (id, bytes) in volumes.chain(self.records.clone()) {
            for fragment in cut(id, &bytes) {
                append_fragment(&mut blocks, &fragment);
            }
        }
        let catalogue_blocks = blocks.len() as u64;
        for (index, block) in (0..).zip(blocks) {
            let mut bytes = block.into_bytes();
            bytes.resize(BLOCK_BYTES, 0);
            let (addr, crc) = self.store(&bytes);
            let pointer = Pointer::data(addr, self.now(), crc);
            self.put(&mut catalogue, index, pointer);
        }
        let mut superblock = Superblock {
            version: cowshed_format::superblock::VERSION,
            metadata_copies: 1,
            clean: false,
            features: [0; 3],
            uuid: UUID,
            layout: self.layout,
            groups_initialized: self.groups_initialized,
            generation: self.now(),
            log_sequence: Sequence(9),
            log_offset: 0,
            log_salt: SALT,
            catalogue_root: catalogue.root,
            catalogue_height: catalogue.height,
            catalogue_blocks,
            used_blocks: self.used.len() as u64,
            volume_count: self.volumes.len() as u64,
            next_volume_id: self.next_id,
            created_ns: 1,
            bitmaps_digest: 0,
        };
        let mut bitmaps = self.bitmaps();
        change(&mut superblock, &mut bitmaps);
        let there = bitmaps.range(..superblock.groups_initialized);
        let digests = there.map(|(group, bitmap)| group::digest(*group, bitmap));
        superblock.bitmaps_digest = digests.fold(0, u64::wrapping_add);
        self.write_log();
        for (group, bitmap) in &bitmaps {
            let bytes = group::encode(&UUID, *group, superblock.generation, bitmap);
            let offset = self.layout.bitmap_slot(*group, 0).offset_bytes();
            self.device.write_at(&bytes[..], offset).unwrap();
        }
        // The checkpoint before was of an empty pool.
        let mut older = superblock.clone();
        older.generation.0 -= 1;
        older.catalogue_root = Pointer::HOLE;
        (older.catalogue_blocks, older.used_blocks) = (0, 0);
        (older.volume_count, older.groups_initialized) = (0, 0);
        for (slot, superblock) in [(0, older), (1, superblock)] {
            for place in self.layout.superblock_slots(slot) {
                let bytes = superblock.encode();
                self.device.write_at(&bytes, place.offset_bytes()).unwrap();
            }
        }
        self.device
    }

    pub(super) fn finish(self) -> MemoryDevice {
        self.finish_with(|_, _| {})
    }

    fn empty_catalogue(&mut self) -> VolumeEntry {
        let id = self.create("catalogue");
        let mut entry = self.volumes.remove(&id).unwrap();
        entry.id = VolumeId(0);
        self.next_id = id;
        entry
    }

    fn bitmaps(&self) -> BTreeMap<u64, Bitmap> {
        let groups = 0..self.groups_initialized;
        let mut bitmaps: BTreeMap<_, _> = groups.map(|group| (group, [0; BITMAP_WORDS])).collect();
        bitmaps.values_mut().for_each(|bitmap| bitmap[0] = 0b1111);
        for addr in &self.used {
            let (group, index) = self.layout.locate(BlockAddr(*addr)).unwrap();
            let bitmap = bitmaps.get_mut(&group).unwrap();
            bitmap[usize::try_from(index / 64).unwrap()] |= 1 << (index % 64);
        }
        bitmaps
    }

    fn write_log(&mut self) {
        let whole = self.log.len().next_multiple_of(BLOCK_BYTES);
        self.log.resize(whole, 0);
        let offset = self.layout.log_offset_bytes();
        self.device.write_at(&self.log, offset).unwrap();
    }
}

fn append_fragment(blocks: &mut Vec<Writer>, fragment: &Fragment<'_>) {
    if blocks[blocks.len() - 1].len() + fragment.len_bytes() > BLOCK_BYTES {
        blocks.push(Writer::new());
    }
    let last = blocks.len() - 1;
    fragment.encode(&mut blocks[last]);
}
