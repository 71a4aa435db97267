//! File systems whose bytes an attacker changed: any result is allowed, except a panic or an
//! endless run.

use super::mutations::Mutator;
use super::stage::Stage;
use crate::mounts::ext4;
use cowshed_engine::Volume;
use cowshed_ext4diff::{Fault, Indexes, ROOT_INODE, Sides};
use cowshed_format::base::BLOCK_BYTES;
use cowshed_format::base::Name;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::env;
use std::time::{Duration, Instant};

/// The default duration of the damage, unless `COWSHED_TEST_SECONDS` is set.
const DEFAULT_SECONDS: u64 = 4;

#[test]
fn damaged_file_systems_are_refused_or_compared_but_never_panic() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse().unwrap());
    let seconds = Duration::from_secs(number("COWSHED_TEST_SECONDS").unwrap_or(DEFAULT_SECONDS));
    let seed = number("COWSHED_TEST_SEED").unwrap_or_else(|| rand::rng().random::<u32>().into());
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let stage = Stage::new();
    stage.image("base:0", |root| {
        Mutator::new(root, StdRng::seed_from_u64(seed)).fill();
    });
    let root = stage.container("base:0", "one");
    Mutator::new(&root, StdRng::seed_from_u64(random.random())).mutate(60);
    stage.host.containers().unmount("one").unwrap();
    let (base, now) = stage.volumes_of("one");
    let blocks = stage.with_sides(&base, &now, Blocks::of);
    let started = Instant::now();
    let (mut refused, mut compared) = (0_u32, 0_u32);
    while started.elapsed() < seconds {
        let damaged_side = random.random_bool(0.5);
        let side = if damaged_side { &base } else { &now };
        let snapshot;
        let origin = if side.is_frozen() {
            side
        } else {
            snapshot = stage.pool.snapshot(side, &name("origin")).unwrap();
            &snapshot
        };
        let damaged = stage.pool.clone_volume(origin, &name("damaged")).unwrap();
        for _ in 0..random.random_range(1..6) {
            blocks.damage(&damaged, &mut random);
        }
        let answer = if damaged_side {
            ext4::changes(&stage.pool, &damaged, &now, &Indexes::default())
        } else {
            ext4::changes(&stage.pool, &base, &damaged, &Indexes::default())
        };
        match answer {
            Ok(_) => compared += 1,
            Err(Fault::Read(error)) => panic!("{error}"),
            Err(_) => refused += 1,
        }
        stage.pool.remove(&damaged).unwrap();
        if !side.is_frozen() {
            stage.pool.remove(origin).unwrap();
        }
    }
    println!("{refused} refused, {compared} compared");
    assert!(refused > 0 && compared > 0);
}

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

/// The blocks that are worth damaging.
struct Blocks {
    metadata: Vec<u64>,
}

impl Blocks {
    fn of(sides: &Sides<'_>) -> Self {
        let mut metadata = vec![0, 1];
        for side in [&sides.base, &sides.now] {
            for number in 0..side.groups() {
                let group = side.group(number).unwrap().unwrap();
                let used = u64::from(group.used_inodes.div_ceil(16));
                metadata.extend(group.inode_table.start..group.inode_table.start + used);
                metadata.push(group.block_bitmap);
                let first = number * side.inodes_per_group() + 1;
                for inode in first..first + group.used_inodes {
                    let inode = side.inode(inode).unwrap();
                    let extents = side.extents(&inode).unwrap_or_default();
                    metadata.extend(extents.nodes);
                    metadata.extend(inode.attribute_block());
                    if inode.is_live_directory() {
                        metadata.extend(side.directory_blocks(&inode).unwrap());
                    }
                }
            }
        }
        Self { metadata }
    }

    /// Changes some bytes of one structure.
    fn damage(&self, volume: &Volume, random: &mut StdRng) {
        let block = *self.metadata.choose(random).unwrap();
        let at = block * BLOCK_BYTES as u64;
        let mut bytes = [0; BLOCK_BYTES];
        volume.read_at(&mut bytes, at).unwrap();
        match random.random_range(0..4) {
            // The bytes of another structure.
            0 => {
                let other = *self.metadata.choose(random).unwrap();
                volume
                    .read_at(&mut bytes, other * BLOCK_BYTES as u64)
                    .unwrap();
            }
            1 => {
                let start = random.random_range(0..BLOCK_BYTES - 64);
                random.fill(&mut bytes[start..start + 64]);
            }
            // A number that refers to another existing object.
            2 => {
                let start = random.random_range(0..BLOCK_BYTES / 4) * 4;
                let number = u32::try_from(*self.metadata.choose(random).unwrap()).unwrap();
                let number = *[number, ROOT_INODE, 11, 0, u32::MAX]
                    .choose(random)
                    .unwrap();
                bytes[start..start + 4].copy_from_slice(&number.to_le_bytes());
            }
            _ => {
                for _ in 0..random.random_range(1..20) {
                    let start = random.random_range(0..BLOCK_BYTES);
                    bytes[start] ^= 1 << random.random_range(0..8);
                }
            }
        }
        volume.write_at(&bytes, at).unwrap();
    }
}
