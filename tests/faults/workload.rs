//! The operations of a run: each changes the pool, and the model accordingly.

use crate::model::{Model, PART, PARTS, Tag, Volume, bytes_of};
use cowshed_engine::{Pool, RecordKind};
use cowshed_format::base::{Error, Name, Result};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// The pool's initial size, and its size after it has grown.
pub(crate) const POOL_BYTES: [u64; 2] = [10 << 20, 13 << 20];
/// Number of parts in a volume: two leaves, so that maps have two levels.
const VOLUME_PARTS: u64 = 300 * PARTS;

/// One operation. Ranges are in parts.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create(String),
    Write(String, u64, u64, Tag),
    Discard(String, u64, u64),
    Snapshot(String, String),
    Clone(String, String),
    Remove(String),
    Rename(String, String),
    Resize(String, u64),
    Rollback(String, String),
    Record(u8, Tag),
    Flush,
    Checkpoint,
    Reclaim,
    Trim,
    Grow,
    /// Reopens the pool, after closing it in order or not.
    Reopen(bool),
}

/// Returns the operations of `seed`: deterministic, with every kind at several points.
pub(crate) fn operations(seed: u64) -> Vec<Op> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut ops = vec![Op::Create("a".into()), Op::Create("b".into())];
    let mut tag = 0;
    let mut writes = |ops: &mut Vec<Op>, random: &mut StdRng, names: &[&str], count: usize| {
        for _ in 0..count {
            tag += 1;
            let name = (*names.choose(random).expect("a name")).to_owned();
            let at = random.random_range(0..VOLUME_PARTS - 120);
            let aligned = random.random_ratio(1, 2);
            let (at, len) = if aligned {
                (at / PARTS * PARTS, random.random_range(1..20) * PARTS)
            } else {
                (at, random.random_range(1..40))
            };
            ops.push(if random.random_ratio(1, 7) {
                Op::Discard(name, at, len * 3)
            } else {
                Op::Write(name, at, len, tag)
            });
        }
    };
    writes(&mut ops, &mut random, &["a", "b"], 5);
    ops.extend([Op::Flush, Op::Snapshot("a".into(), "s".into())]);
    writes(&mut ops, &mut random, &["a", "b"], 3);
    ops.extend([Op::Checkpoint, Op::Clone("s".into(), "c".into())]);
    writes(&mut ops, &mut random, &["a", "c"], 4);
    ops.extend([Op::Record(1, 7), Op::Flush, Op::Reopen(false)]);
    writes(&mut ops, &mut random, &["b", "c"], 3);
    ops.extend([Op::Remove("b".into()), Op::Grow, Op::Reclaim, Op::Trim]);
    writes(&mut ops, &mut random, &["a", "c"], 3);
    ops.extend([Op::Snapshot("c".into(), "t".into()), Op::Remove("s".into())]);
    writes(&mut ops, &mut random, &["a", "c"], 3);
    ops.extend([Op::Rename("a".into(), "z".into()), Op::Flush, Op::Reclaim]);
    ops.extend([Op::Resize("z".into(), 401 * PARTS / 2), Op::Reopen(true)]);
    writes(&mut ops, &mut random, &["z", "c"], 3);
    ops.extend([Op::Rollback("c".into(), "t".into()), Op::Record(2, 9)]);
    writes(&mut ops, &mut random, &["z", "c"], 3);
    ops.extend([Op::Checkpoint, Op::Reopen(false), Op::Flush]);
    ops
}

impl Op {
    /// Returns true if a success makes everything before it durable.
    pub(crate) const fn is_barrier(&self) -> bool {
        matches!(
            self,
            Self::Flush | Self::Checkpoint | Self::Reclaim | Self::Grow | Self::Reopen(_)
        )
    }

    /// Runs the operation on the pool; the caller handles `Reopen`.
    pub(crate) fn run(&self, pool: &Pool) -> Result<()> {
        let name = |text: &str| Name::new(text);
        match self {
            Self::Create(volume) => pool
                .create_volume(&name(volume)?, VOLUME_PARTS * PART)
                .map(drop),
            Self::Write(volume, at, len, tag) => {
                let bytes = bytes_of(*tag).repeat(usize::try_from(*len).expect("small"));
                pool.volume(volume)?.write_at(&bytes, at * PART)
            }
            Self::Discard(volume, at, len) => pool.volume(volume)?.discard(at * PART, len * PART),
            Self::Snapshot(volume, snapshot) => {
                let volume = pool.volume(volume)?;
                pool.snapshot(&volume, &name(snapshot)?).map(drop)
            }
            Self::Clone(snapshot, volume) => {
                let snapshot = pool.volume(snapshot)?;
                pool.clone_volume(&snapshot, &name(volume)?).map(drop)
            }
            Self::Remove(volume) => pool.remove(&pool.volume(volume)?),
            Self::Rename(volume, to) => pool.rename(&pool.volume(volume)?, &name(to)?),
            Self::Resize(volume, parts) => pool.resize(&pool.volume(volume)?, parts * PART),
            Self::Rollback(volume, snapshot) => {
                pool.rollback(&pool.volume(volume)?, &pool.volume(snapshot)?)
            }
            Self::Record(key, tag) => {
                let mut transaction = pool.transaction();
                transaction.put_record(RecordKind::IMAGE, &[*key], &tag.to_le_bytes());
                transaction.commit()
            }
            Self::Flush => pool.flush(),
            Self::Checkpoint => pool.checkpoint(),
            Self::Reclaim => pool.reclaim(),
            Self::Trim => pool.trim().map(drop),
            Self::Grow => pool.grow(POOL_BYTES[1]),
            Self::Reopen(_) => Ok(()),
        }
    }

    /// Applies a successful operation to the model.
    pub(crate) fn apply(&self, model: &mut Model) {
        match self {
            Self::Create(volume) => {
                let parts = VOLUME_PARTS;
                let made = Volume {
                    parts,
                    ..Volume::default()
                };
                model.volumes.insert(volume.clone(), made);
            }
            Self::Snapshot(volume, snapshot) => {
                let taken = Volume {
                    frozen: true,
                    ..model.volumes[volume].clone()
                };
                model.volumes.insert(snapshot.clone(), taken);
            }
            Self::Clone(snapshot, volume) => {
                let made = Volume {
                    frozen: false,
                    ..model.volumes[snapshot].clone()
                };
                model.volumes.insert(volume.clone(), made);
            }
            Self::Remove(volume) => drop(model.volumes.remove(volume)),
            Self::Rename(volume, to) => {
                if let Some(volume) = model.volumes.remove(volume) {
                    model.volumes.insert(to.clone(), volume);
                }
            }
            Self::Rollback(volume, snapshot) => {
                let old = Volume {
                    frozen: false,
                    ..model.volumes[snapshot].clone()
                };
                model.volumes.insert(volume.clone(), old);
            }
            Self::Record(key, tag) => drop(model.records.insert(*key, *tag)),
            Self::Resize(volume, parts) => {
                let Some(volume) = model.volumes.get_mut(volume) else {
                    return;
                };
                volume.held.retain(|part, _| part < parts);
                volume.parts = *parts;
            }
            Self::Write(..) | Self::Discard(..) => self.touch(model, Volume::put),
            _ => {}
        }
    }

    /// Adds to the model what a failed operation may have done.
    pub(crate) fn blur(&self, model: &mut Model) {
        self.touch(model, Volume::may_hold);
    }

    fn touch(&self, model: &mut Model, put: fn(&mut Volume, u64, Tag)) {
        let (volume, range, tag) = match self {
            Self::Write(volume, at, len, tag) => (volume, *at..at + len, *tag),
            Self::Discard(volume, at, len) => (volume, *at..at + len, 0),
            Self::Resize(volume, parts) => (volume, *parts..VOLUME_PARTS, 0),
            _ => return,
        };
        if let Some(volume) = model.volumes.get_mut(volume) {
            for part in range {
                put(volume, part, tag);
            }
        }
    }

    /// Returns true if the model has what the operation needs. An earlier operation may have
    /// failed.
    pub(crate) fn makes_sense(&self, model: &Model) -> bool {
        let writable = |name: &String| model.volumes.get(name).is_some_and(|volume| !volume.frozen);
        let free = |name: &String| !model.volumes.contains_key(name);
        match self {
            Self::Create(name) => free(name),
            Self::Write(name, at, len, _) | Self::Discard(name, at, len) => {
                writable(name) && at + len <= model.volumes[name].parts
            }
            Self::Snapshot(from, to) => writable(from) && free(to),
            Self::Clone(from, to) => model.volumes.contains_key(from) && free(to),
            Self::Rename(from, to) => model.volumes.contains_key(from) && free(to),
            Self::Remove(name) => model.volumes.contains_key(name),
            Self::Resize(name, _) => writable(name),
            Self::Rollback(name, to) => writable(name) && model.volumes.contains_key(to),
            _ => true,
        }
    }
}

/// Returns true for refusals that a fault cannot cause.
pub(crate) fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::Exists(_)
            | Error::NotFound(_)
            | Error::NoSuchVolume(_)
            | Error::Frozen(_)
            | Error::NotFrozen(_)
            | Error::OutOfRange { .. }
            | Error::InvalidSize { .. }
            | Error::Closed
            | Error::NotAPool
            | Error::Corrupt(_)
    )
}
