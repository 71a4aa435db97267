//! A pool under test beside a model of its expected contents: every volume's blocks in memory.

use crate::bench::{BLOCK, block, expect_sound, name, write_now};
use cowshed_engine::{Notes, OpenOptions, Pool, Volume};
use cowshed_format::base::{BLOCK_BYTES, Error, Generation};
use cowshed_format::device::{Device, FileDevice, FileOptions, MemoryDevice};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type Blocks = BTreeMap<u64, Arc<[u8]>>;

/// The expected contents of a volume.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) blocks: Blocks,
    pub(crate) size_blocks: u64,
    pub(crate) frozen: bool,
    /// Another volume may share its blocks.
    pub(crate) shared: bool,
}

/// The storage of the pool.
pub(crate) enum Ground {
    Memory(Arc<MemoryDevice>),
    File(PathBuf),
}

impl Ground {
    pub(crate) fn device(&self) -> Arc<dyn Device> {
        match self {
            Self::Memory(device) => device.clone(),
            Self::File(path) => Arc::new(FileDevice::open(path, FileOptions::default()).unwrap()),
        }
    }
}

pub(crate) struct Subject {
    pub(crate) ground: Ground,
    pub(crate) options: OpenOptions,
    pool: Option<Pool>,
    pub(crate) models: BTreeMap<String, Model>,
    pub(crate) rng: StdRng,
    names: u64,
    /// The newest superblock that the pool has reported durable.
    durable: Arc<AtomicU64>,
}

impl Subject {
    pub(crate) fn new(ground: Ground, options: OpenOptions, seed: u64) -> Self {
        let mut subject = Self {
            ground,
            options,
            pool: None,
            models: BTreeMap::new(),
            rng: StdRng::seed_from_u64(seed),
            names: 0,
            durable: Arc::default(),
        };
        subject.open(None);
        subject
    }

    pub(crate) fn pool(&self) -> &Pool {
        self.pool.as_ref().unwrap()
    }

    pub(crate) fn volume(&self, volume: &str) -> Volume {
        self.pool().volume(volume).unwrap()
    }

    fn new_name(&mut self) -> String {
        self.names += 1;
        format!("v{}", self.names)
    }

    /// Returns a random volume that passes.
    pub(crate) fn pick(&mut self, passes: impl Fn(&Model) -> bool) -> Option<String> {
        let all: Vec<_> = self
            .models
            .iter()
            .filter(|(_, model)| passes(model))
            .collect();
        let number = self.rng.random_range(0..all.len().max(1));
        all.get(number).map(|(name, _)| (*name).clone())
    }

    pub(crate) fn create(&mut self, size_blocks: u64) -> Result<(), Error> {
        let volume = self.new_name();
        self.pool()
            .create_volume(&name(&volume), size_blocks * BLOCK)?;
        let model = Model {
            blocks: Blocks::new(),
            size_blocks,
            frozen: false,
            shared: false,
        };
        self.models.insert(volume, model);
        Ok(())
    }

    pub(crate) fn snapshot(&mut self, volume: &str) -> Result<String, Error> {
        let snapshot = self.new_name();
        self.pool()
            .snapshot(&self.volume(volume), &name(&snapshot))?;
        let model = self.models.get_mut(volume).unwrap();
        model.shared = true;
        let frozen = true;
        let copy = Model {
            frozen,
            ..model.clone()
        };
        self.models.insert(snapshot.clone(), copy);
        Ok(snapshot)
    }

    pub(crate) fn clone_of(&mut self, snapshot: &str) -> Result<(), Error> {
        let clone = self.new_name();
        self.pool()
            .clone_volume(&self.volume(snapshot), &name(&clone))?;
        let model = self.models.get_mut(snapshot).unwrap();
        model.shared = true;
        let frozen = false;
        let copy = Model {
            frozen,
            ..model.clone()
        };
        self.models.insert(clone, copy);
        Ok(())
    }

    pub(crate) fn rename(&mut self, volume: &str) -> Result<(), Error> {
        let new = self.new_name();
        self.pool().rename(&self.volume(volume), &name(&new))?;
        let model = self.models.remove(volume).unwrap();
        self.models.insert(new, model);
        Ok(())
    }

    pub(crate) fn remove(&mut self, volume: &str) {
        self.pool().remove(&self.volume(volume)).unwrap();
        self.models.remove(volume);
    }

    /// Writes whole blocks, at most 256: afterwards either all are written, or the write was
    /// refused and none is.
    pub(crate) fn write(&mut self, volume: &str, first: u64, count: u64) -> Result<(), Error> {
        let blocks: Vec<Arc<[u8]>> = (0..count)
            .map(|_| match self.rng.random_range(0..20) {
                0 => vec![0; BLOCK_BYTES].into(),
                _ => block(self.rng.random()).into(),
            })
            .collect();
        write_now(&self.volume(volume), &blocks.concat(), first * BLOCK)?;
        let model = self.models.get_mut(volume).unwrap();
        model.blocks.extend((first..).zip(blocks));
        Ok(())
    }

    /// Writes a part of a block.
    pub(crate) fn write_part(&mut self, volume: &str, index: u64) -> Result<(), Error> {
        let from = self.rng.random_range(0..BLOCK_BYTES - 1);
        let to = self.rng.random_range(from + 1..BLOCK_BYTES);
        let bytes = &block(self.rng.random())[from..to];
        write_now(&self.volume(volume), bytes, index * BLOCK + from as u64)?;
        self.change(volume, index, |block| {
            block[from..to].copy_from_slice(bytes)
        });
        Ok(())
    }

    /// Discards a range of bytes.
    pub(crate) fn discard(&mut self, volume: &str, from: u64, to: u64) -> Result<(), Error> {
        self.volume(volume).discard(from, to - from)?;
        let touched = self.models[volume]
            .blocks
            .range(from / BLOCK..to.div_ceil(BLOCK));
        for index in touched.map(|(index, _)| *index).collect::<Vec<_>>() {
            let start = from.saturating_sub(index * BLOCK).min(BLOCK);
            let end = (to - index * BLOCK).min(BLOCK);
            let within = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
            self.change(volume, index, |block| block[within].fill(0));
        }
        Ok(())
    }

    fn change(&mut self, volume: &str, index: u64, change: impl FnOnce(&mut [u8])) {
        let blocks = &mut self.models.get_mut(volume).unwrap().blocks;
        let mut bytes = blocks
            .get(&index)
            .map_or(vec![0; BLOCK_BYTES], |old| old.to_vec());
        change(&mut bytes);
        blocks.insert(index, bytes.into());
    }

    /// Asserts that everything acknowledged reads back.
    pub(crate) fn verify(&self) {
        let mut found = vec![0; BLOCK_BYTES];
        for (name, model) in &self.models {
            let volume = self.volume(name);
            assert_eq!(volume.size_bytes(), model.size_blocks * BLOCK);
            for (index, expected) in &model.blocks {
                volume.read_at(&mut found, index * BLOCK).unwrap();
                assert!(found[..] == **expected, "block {index} of {name}");
            }
        }
        assert_eq!(self.pool().volumes().len(), self.models.len());
    }

    /// Closes the pool, runs the offline check, and opens it again.
    pub(crate) fn close_and_open(&mut self) {
        let pool = self.pool.take().unwrap();
        pool.close().unwrap();
        drop(pool);
        let used = self.renew();
        self.open(None);
        let status = self.pool().status().unwrap();
        let counted = status.used_bytes + status.pending_free_bytes;
        assert_eq!(counted, used * BLOCK, "the counts of used blocks agree");
    }

    /// Ends like a killed process, and opens the remaining pool as its successor or as an unrelated
    /// process.
    pub(crate) fn die_and_open(&mut self) {
        drop(self.pool.take());
        self.renew();
        let durable = Generation(self.durable.load(Ordering::SeqCst));
        let resumes = self.rng.random_bool(0.5).then_some(durable);
        self.open(resumes);
    }

    fn open(&mut self, resumes: Option<Generation>) {
        let durable = Arc::clone(&self.durable);
        let notes = Notes {
            durable: Some(Arc::new(move |generation: Generation| {
                durable.store(generation.0, Ordering::SeqCst);
            })),
            ..Notes::default()
        };
        let options = OpenOptions {
            resumes,
            notes,
            ..self.options.clone()
        };
        self.pool = Some(Pool::open(self.ground.device(), &options).unwrap());
    }

    /// Checks a pool that is not open; returns the number of blocks in use. In memory, continues
    /// with its contents on a new device.
    fn renew(&mut self) -> u64 {
        if let Ground::Memory(device) = &self.ground {
            let image = device.snapshot_image();
            self.ground = Ground::Memory(Arc::new(MemoryDevice::from_image(image)));
        }
        expect_sound(&*self.ground.device())
    }
}
