//! The use of a pool by one thread, and every state that it went through.

use cowshed_check::{CheckOptions, check};
use cowshed_engine::{CreateOptions, Name, OpenOptions, Pool, Volume};
use cowshed_format::base::Result;
use cowshed_format::device::mirror::Found;
use cowshed_format::device::{Device, MirrorDevice};
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) const POOL_BYTES: u64 = 16 << 20;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 600;
/// Maximum number of volumes.
const VOLUMES_MAX: usize = 6;

/// The contents of each volume: the fill word of each block that is not zero.
pub(crate) type State = BTreeMap<String, BTreeMap<u64, u32>>;

pub(crate) fn options() -> OpenOptions {
    OpenOptions {
        background: false,
        ..OpenOptions::default()
    }
}

/// Makes a pool on these devices.
pub(crate) fn create(devices: Vec<(usize, Arc<dyn Device>)>) -> Result<()> {
    let found = |(number, device)| Found {
        path: super::world::path(number),
        device,
    };
    let mirror = MirrorDevice::new(devices.into_iter().map(found).collect())?;
    let options = CreateOptions {
        log_bytes: Some(64 << 10),
        ..CreateOptions::default()
    };
    Pool::create(&mirror, &options)
}

/// A pool in use.
pub(crate) struct Life {
    pub(crate) pool: Pool,
    pub(crate) rng: StdRng,
    /// The states after each operation, the present one last.
    pub(crate) states: Vec<State>,
    /// The index of the last state that a flush has covered.
    pub(crate) flushed: usize,
    /// The state that the operation would have led to that failed.
    pub(crate) attempted: Option<State>,
    next: u32,
    /// True while a side is copied to, which keeps removed volumes from being settled.
    pub(crate) is_copying: bool,
}

impl Life {
    pub(crate) fn new(pool: Pool, mut rng: StdRng, state: State) -> Self {
        Self {
            pool,
            next: rng.random(),
            rng,
            states: vec![state],
            flushed: 0,
            attempted: None,
            is_copying: false,
        }
    }

    pub(crate) fn state(&self) -> &State {
        self.states.last().unwrap()
    }

    fn any_volume(&mut self) -> Option<(String, Volume)> {
        let names: Vec<_> = self.state().keys().cloned().collect();
        let name = names.get(self.rng.random_range(0..names.len().max(1)))?;
        Some((name.clone(), self.pool.volume(name).unwrap()))
    }

    /// Runs one operation at random.
    pub(crate) fn step(&mut self) -> Result<()> {
        let mut state = self.state().clone();
        match self.change(&mut state) {
            Ok(true) => self.states.push(state),
            Ok(false) => {}
            Err(error) => {
                self.attempted = Some(state);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Changes the state and then the pool; false if nothing is changed.
    fn change(&mut self, state: &mut State) -> Result<bool> {
        match (self.rng.random_range(0..100), self.any_volume()) {
            (0..4, _) | (_, None) => {
                if state.len() < VOLUMES_MAX {
                    let name = format!("v{:08x}", self.rng.random::<u32>());
                    let size = BLOCKS * BLOCK as u64;
                    state.insert(name.clone(), BTreeMap::new());
                    self.pool.create_volume(&Name::new(&name)?, size)?;
                }
            }
            (4..8, Some((from, volume))) if !volume.is_frozen() => {
                if state.len() < VOLUMES_MAX {
                    let name = format!("s{:08x}", self.rng.random::<u32>());
                    let contents = state[&from].clone();
                    state.insert(name.clone(), contents);
                    self.pool.snapshot(&volume, &Name::new(&name)?)?;
                }
            }
            (8..12, Some((name, volume))) => {
                state.remove(&name);
                self.pool.remove(&volume)?;
            }
            (12..18, volume) => {
                match volume.filter(|_| self.rng.random_ratio(3, 4)) {
                    Some((_, volume)) => volume.flush()?,
                    None => self.pool.flush()?,
                }
                self.flushed = self.states.len() - 1;
                return Ok(false);
            }
            (18..21, _) => {
                self.pool.checkpoint()?;
                self.flushed = self.states.len() - 1;
                return Ok(false);
            }
            (21..23, _) if !self.is_copying => self.pool.reclaim()?,
            (23..30, Some((name, volume))) if !volume.is_frozen() => {
                let first = self.rng.random_range(0..BLOCKS);
                let count = self.rng.random_range(1..=(BLOCKS - first).min(64));
                let contents = state.get_mut(&name).unwrap();
                contents.retain(|block, _| !(first..first + count).contains(block));
                volume.discard(first * BLOCK as u64, count * BLOCK as u64)?;
            }
            (_, Some((name, volume))) if !volume.is_frozen() => {
                let first = self.rng.random_range(0..BLOCKS);
                let count = self.rng.random_range(1..=(BLOCKS - first).min(6));
                let mut bytes = Vec::new();
                for block in first..first + count {
                    self.next = self.next.wrapping_add(1).max(1);
                    bytes.extend(self.next.to_le_bytes().repeat(BLOCK / 4));
                    state.get_mut(&name).unwrap().insert(block, self.next);
                }
                volume.write_at(&bytes, first * BLOCK as u64)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Returns the state of a pool; every block is read.
pub(crate) fn read_state(pool: &Pool) -> Result<State> {
    let mut state = State::new();
    for info in pool.volumes() {
        let volume = pool.volume(info.name.as_str())?;
        let mut bytes = vec![0; usize::try_from(info.size_bytes).unwrap()];
        volume.read_at(&mut bytes, 0)?;
        let mut contents = BTreeMap::new();
        for (number, block) in (0..).zip(bytes.chunks(BLOCK)) {
            let (first, rest) = block.split_first_chunk::<4>().unwrap();
            assert!(*rest == block[..rest.len()], "mixed block");
            let word = u32::from_le_bytes(*first);
            if word != 0 {
                contents.insert(number, word);
            }
        }
        state.insert(info.name.to_string(), contents);
    }
    Ok(state)
}

/// Checks one device of a closed pool by itself.
pub(crate) fn expect_sound(device: &dyn Device, what: &str) {
    let options = CheckOptions {
        deep: true,
        ..CheckOptions::default()
    };
    let report = check(device, options, &mut |_| {}).unwrap();
    assert!(report.clean(), "{what}: {:?}", report.findings);
}
