//! Pools of random shapes, and filling them.

use crate::bench::{BLOCK, MIB};
use crate::subject::{Ground, Subject};
use cowshed_engine::{CreateOptions, MetadataCopies, OpenOptions, Pool};
use cowshed_format::base::Error;
use cowshed_format::device::{CreateFile, FileDevice, MemoryDevice};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// A pool of a random shape, empty.
pub(crate) fn random_pool(seed: u64, folder: &Path) -> Subject {
    let mut rng = StdRng::seed_from_u64(seed ^ 0xF0);
    // Any number of blocks, so that the last group has any length.
    let pool_bytes = match rng.random_range(0..10) {
        0..4 => rng.random_range(2 * MIB..6 * MIB),
        4..8 => rng.random_range(6 * MIB..24 * MIB),
        8 => rng.random_range(24 * MIB..64 * MIB),
        _ => rng.random_range(128 * MIB..140 * MIB),
    } & !(BLOCK - 1);
    let log_bytes = rng
        .random_bool(0.7)
        .then(|| rng.random_range(64 << 10..(pool_bytes / 4).min(MIB)) & !(BLOCK - 1));
    let create = CreateOptions {
        log_bytes,
        force: false,
        metadata_copies: (pool_bytes >= 4 * MIB)
            .then(|| [MetadataCopies::One, MetadataCopies::Two][rng.random_range(0..2)]),
    };
    let ground = if rng.random_bool(0.2) {
        let path = folder.join(format!("cowshed-full-{seed}"));
        let file = CreateFile {
            preallocate: rng.random_bool(0.5),
            ..CreateFile::default()
        };
        let device = FileDevice::create(&path, pool_bytes, file).unwrap();
        Pool::create(&device, &create).unwrap();
        Ground::File(path)
    } else {
        let device = MemoryDevice::new(pool_bytes);
        Pool::create(&device, &create).unwrap();
        Ground::Memory(Arc::new(device))
    };
    let options = OpenOptions {
        cache_bytes: rng.random_range(1..16) << 20,
        background: rng.random_bool(0.3),
        ..OpenOptions::default()
    };
    Subject::new(ground, options, seed)
}

impl Subject {
    /// Creates volumes, snapshots and clones among random writes, until an operation is refused.
    pub(crate) fn populate(&mut self) {
        let mut written = 0;
        for _ in 0..self.rng.random_range(1..40) {
            let outcome = match self.rng.random_range(0..10) {
                0..3 => {
                    let size = self.random_size();
                    self.create(size)
                }
                3 => match self.pick(|model| !model.frozen) {
                    Some(volume) => self.snapshot(&volume).map(drop),
                    None => Ok(()),
                },
                4 => match self.pick(|model| model.frozen) {
                    Some(snapshot) => self.clone_of(&snapshot),
                    None => Ok(()),
                },
                5 => self.random_labels(),
                _ => self.random_writes().inspect(|()| written += 1),
            };
            match outcome {
                // A small log takes no large labels.
                Ok(()) | Err(Error::TooLarge { .. }) => {}
                Err(Error::NoSpace) => break,
                Err(error) => panic!("after {written} writes: {error}"),
            }
        }
        if self.pick(|model| !model.frozen).is_none() {
            let size = self.random_size();
            self.create(size).unwrap();
        }
    }

    fn random_size(&mut self) -> u64 {
        let shift = self.rng.random_range(8..30);
        self.rng.random_range(1 << (shift - 1)..1 << shift)
    }

    fn random_labels(&mut self) -> Result<(), Error> {
        let Some(volume) = self.pick(|_| true) else {
            return Ok(());
        };
        let len = self.rng.random_range(0..15_000);
        let labels = [("key".to_owned(), "x".repeat(len))].into();
        self.pool().set_labels(&self.volume(&volume), labels)
    }

    fn random_writes(&mut self) -> Result<(), Error> {
        let Some(volume) = self.pick(|model| !model.frozen) else {
            return Ok(());
        };
        for _ in 0..self.rng.random_range(1..30) {
            self.random_write(&volume, 64)?;
        }
        Ok(())
    }

    fn random_write(&mut self, volume: &str, most: u64) -> Result<(), Error> {
        let size = self.models[volume].size_blocks;
        let first = self.rng.random_range(0..size);
        if self.rng.random_bool(0.2) {
            return self.write_part(volume, first);
        }
        let count = self.rng.random_range(1..=most).min(size - first);
        self.write(volume, first, count)
    }

    /// Fills the pool to the last block: in large and small writes, sequential or random, and at
    /// the end block by block on every volume.
    pub(crate) fn fill_up(&mut self) {
        if self
            .models
            .values()
            .all(|model| model.frozen || model.size_blocks < 1 << 16)
        {
            // A volume that is larger than the pool.
            match self.create(1 << 20) {
                Ok(()) | Err(Error::NoSpace) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let in_order = self.rng.random_bool(0.5);
        let mut most = self.rng.random_range(1..=256);
        let mut at = BTreeMap::new();
        while most > 0 {
            let Some(volume) = self.pick(|model| !model.frozen) else {
                return;
            };
            let outcome = if in_order {
                let size = self.models[&volume].size_blocks;
                let place = at.entry(volume.clone()).or_insert(0);
                let first = if *place >= size { 0 } else { *place };
                let count = most.min(size - first);
                *place = first + count;
                self.write(&volume, first, count)
            } else {
                self.random_write(&volume, most)
            };
            match outcome {
                Ok(()) => {}
                Err(Error::NoSpace) => most /= 2,
                Err(error) => panic!("a write to {volume}: {error}"),
            }
        }
        self.expect_full();
    }

    /// Asserts that no volume takes another block at a new place.
    fn expect_full(&mut self) {
        let writable: Vec<_> = self
            .models
            .iter()
            .filter(|(_, model)| !model.frozen)
            .map(|(name, _)| name.clone())
            .collect();
        for volume in writable {
            let model = &self.models[&volume];
            let free = (0..model.size_blocks).filter(|at| !model.blocks.contains_key(at));
            let free: Vec<_> = free.take(300).collect();
            // A volume with fewer free places may be unable to fill the pool.
            let mut refused = free.len() < 300;
            for index in free {
                // Zeros take no space, so blocks that happen to be zero may be accepted for ever.
                match self.write(&volume, index, 1) {
                    Ok(()) => {}
                    Err(Error::NoSpace) => {
                        refused = true;
                        break;
                    }
                    Err(error) => panic!("a write to {volume}: {error}"),
                }
            }
            assert!(refused, "{volume} takes 300 blocks of a full pool");
        }
    }
}
