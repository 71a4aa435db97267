//! Sequences of operations on a small pool, compared with the model of `tests/model`.

use crate::oracle::{BLOCK, Oracle};
use crate::parts::Parts;
use cowshed_check::{CheckOptions, check};
use cowshed_engine::{CreateOptions, OpenOptions, Pool, Volume};
use cowshed_format::base::{Error, Name, VolumeId};
use cowshed_format::device::{Device, MemoryDevice};
use std::sync::Arc;

const OPERATIONS_MAX: usize = 96;
const VOLUMES_MAX: usize = 10;
const POOL_BYTES: u64 = 16 << 20;
/// Sizes in blocks: one for each height of a map, and sizes one block larger than a height can
/// hold.
const SIZES: [u64; 5] = [1, 256, 257, 65_536, 65_537];

struct Run {
    device: Arc<MemoryDevice>,
    pool: Option<Pool>,
    oracle: Oracle,
    names: u64,
}

/// Runs the input: each operation takes a byte for its kind, followed by its parameters.
pub fn run(data: &[u8]) {
    let device = Arc::new(MemoryDevice::new(POOL_BYTES));
    let create = CreateOptions {
        log_bytes: Some(64 << 10),
        force: false,
        ..CreateOptions::default()
    };
    Pool::create(&*device, &create).unwrap();
    let mut run = Run {
        device,
        pool: None,
        oracle: Oracle::default(),
        names: 0,
    };
    run.open();
    let mut parts = Parts(data);
    for _ in 0..OPERATIONS_MAX {
        if parts.is_empty() {
            break;
        }
        run.step(&mut parts);
    }
    run.compare();
    run.reopen(true);
    run.compare();
    drop(run.pool.take());
    let deep = CheckOptions {
        deep: true,
        repair: false,
        forget: false,
    };
    let report = check(&*run.device, deep, &mut |_| {}).unwrap();
    assert!(report.clean(), "{:?}", report.findings);
}

/// Returns a few sequences that cover all operations.
pub fn seeds() -> Vec<Vec<u8>> {
    let all: Vec<u8> = (0..80u8).flat_map(|n| [n, n, 0, n / 3, 0, n]).collect();
    let writes: Vec<u8> = (0..60u8).flat_map(|n| [3, n, n, 0, 2, n, 7, n]).collect();
    let branches = (0..90u8).map(|n| n.wrapping_mul(7)).collect();
    vec![all, writes, branches]
}

impl Run {
    fn open(&mut self) {
        let options = OpenOptions {
            cache_bytes: 64 << 10,
            background: false,
            ..OpenOptions::default()
        };
        let device = Arc::clone(&self.device) as Arc<dyn Device>;
        self.pool = Some(Pool::open(device, &options).expect("open"));
    }

    fn pool(&self) -> &Pool {
        self.pool.as_ref().expect("it is open")
    }

    fn handle(&self, id: u64) -> Volume {
        self.pool()
            .volume_by_id(VolumeId(id))
            .expect("a volume of the model")
    }

    fn name(&mut self) -> (String, Name) {
        self.names += 1;
        let text = format!("v{}", self.names);
        let name = Name::new(&text).unwrap();
        (text, name)
    }

    fn reopen(&mut self, close: bool) {
        if close {
            self.pool().close().expect("close");
        }
        self.pool = None;
        self.device = Arc::new(MemoryDevice::from_image(self.device.snapshot_image()));
        self.open();
    }

    fn step(&mut self, parts: &mut Parts<'_>) {
        let what = parts.byte() % 24;
        let named = self.oracle.all_named();
        if named.is_empty() || (what == 0 && named.len() < VOLUMES_MAX) {
            return self.create(parts);
        }
        let id = named[parts.below(named.len())];
        let frozen = self.oracle.volumes[&id].frozen;
        match what {
            1..=9 => self.write(id, parts),
            10..=12 => self.discard(id, parts),
            13..=14 => self.branch(id),
            15 => self.remove(id),
            16 => self.rollback(id, parts),
            17 if !frozen => self.resize(id, parts),
            18 => {
                self.pool().freeze(&self.handle(id)).expect("freeze");
                self.oracle.freeze(id);
            }
            19 => self.pool().checkpoint().expect("checkpoint"),
            20 => self.pool().reclaim().expect("reclaim"),
            21 => self.reopen(parts.byte().is_multiple_of(2)),
            22 => drop(self.pool().trim().expect("trim")),
            _ => {
                let (text, name) = self.name();
                self.pool().rename(&self.handle(id), &name).expect("rename");
                self.oracle.rename(id, &text);
            }
        }
    }

    fn create(&mut self, parts: &mut Parts<'_>) {
        let size = SIZES[parts.below(SIZES.len())] * BLOCK;
        let (text, name) = self.name();
        let volume = self.pool().create_volume(&name, size).expect("create");
        self.oracle.create(volume.id().0, &text, size);
    }

    /// Returns a range of the volume, near a boundary.
    fn range(&self, id: u64, parts: &mut Parts<'_>) -> (u64, u64) {
        let size = self.oracle.volumes[&id].size_bytes;
        let near = [0, 250 * BLOCK, 65_530 * BLOCK, size][parts.below(4)];
        let at = (near + u64::from(parts.word())).min(size - 1);
        let whole = parts.byte().is_multiple_of(2);
        let at = if whole { at / BLOCK * BLOCK } else { at };
        let len = u64::from(parts.byte()) * if whole { BLOCK / 8 } else { 61 } + 1;
        (at, len.min(size - at))
    }

    fn write(&mut self, id: u64, parts: &mut Parts<'_>) {
        let (offset, len) = self.range(id, parts);
        let bytes = vec![parts.byte(); usize::try_from(len).unwrap()];
        match self.handle(id).write_at(&bytes, offset) {
            Ok(()) => self.oracle.write(id, offset, &bytes),
            Err(Error::Frozen(_)) => assert!(self.oracle.volumes[&id].frozen),
            Err(error) => panic!("write: {error}"),
        }
    }

    fn discard(&mut self, id: u64, parts: &mut Parts<'_>) {
        let (offset, len) = self.range(id, parts);
        match self.handle(id).discard(offset, len) {
            Ok(()) => self.oracle.discard(id, offset, len),
            Err(Error::Frozen(_)) => assert!(self.oracle.volumes[&id].frozen),
            Err(error) => panic!("discard: {error}"),
        }
    }

    fn branch(&mut self, id: u64) {
        if self.oracle.all_named().len() >= VOLUMES_MAX {
            return;
        }
        let (text, name) = self.name();
        let origin = self.handle(id);
        if self.oracle.volumes[&id].frozen {
            let clone = self.pool().clone_volume(&origin, &name).expect("clone");
            let done = self.oracle.clone_volume(id, clone.id().0, &text);
            done.expect("it is frozen");
        } else {
            let snapshot = self.pool().snapshot(&origin, &name).expect("snapshot");
            self.oracle.snapshot(id, snapshot.id().0, &text);
        }
    }

    fn remove(&mut self, id: u64) {
        self.pool().remove(&self.handle(id)).expect("remove");
        self.oracle.remove(id);
    }

    fn rollback(&mut self, id: u64, parts: &mut Parts<'_>) {
        let named = self.oracle.all_named();
        let snapshot = named[parts.below(named.len())];
        if snapshot == id {
            return;
        }
        let wanted = self.oracle.check_rollback(id, snapshot);
        let found = self
            .pool()
            .rollback(&self.handle(id), &self.handle(snapshot));
        assert_eq!(found.is_ok(), wanted.is_ok(), "{found:?}, {wanted:?}");
        if found.is_ok() {
            self.oracle.rollback(id, snapshot);
        }
    }

    fn resize(&mut self, id: u64, parts: &mut Parts<'_>) {
        let size = SIZES[parts.below(SIZES.len())] * BLOCK - u64::from(parts.byte() % 3) * 100;
        self.pool().resize(&self.handle(id), size).expect("resize");
        self.oracle.resize(id, size);
    }

    fn compare(&self) {
        for id in self.oracle.all_named() {
            let (volume, model) = (self.handle(id), &self.oracle.volumes[&id]);
            let info = volume.info().expect("info");
            assert_eq!(info.size_bytes, model.size_bytes);
            assert_eq!(info.referenced_bytes, model.blocks.len() as u64 * BLOCK);
            let probes = model.blocks.keys().flat_map(|index| [*index, index + 1]);
            for index in probes.chain([0]) {
                let offset = index * BLOCK;
                let len = BLOCK.min(model.size_bytes.saturating_sub(offset));
                let mut bytes = vec![0xee; usize::try_from(len).unwrap()];
                if len > 0 {
                    volume.read_at(&mut bytes, offset).expect("read");
                }
                assert!(
                    bytes == model.read(offset, len),
                    "block {index} of volume {id}"
                );
            }
        }
    }
}
