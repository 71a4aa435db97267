//! A record of what was made durable when, and so of what must be there after a power cut.
//!
//! Time is counted in epochs of the device below: a time is the number of epochs closed by then. A
//! cut contains all of the first `epochs` epochs and any part of the next one. What was
//! acknowledged at a time of at most `epochs` is there; what began later than that is not.

use crate::harness::noise;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(crate) const BLOCK: usize = 4096;

/// A file that is written once and synced with its folder, and perhaps removed.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) name: String,
    pub(crate) seed: u64,
    pub(crate) len: usize,
    /// The time when its syncs had returned.
    pub(crate) synced_at: usize,
    /// The time when its removal began.
    pub(crate) removed_from: Option<usize>,
}

impl Written {
    pub(crate) fn content(&self) -> Vec<u8> {
        noise(self.len, self.seed)
    }

    const fn must_be_there(&self, epochs: usize) -> bool {
        let is_removed = match self.removed_from {
            Some(moment) => moment <= epochs,
            None => false,
        };
        self.synced_at <= epochs && !is_removed
    }
}

/// One version of a block that is written in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    pub(crate) place: usize,
    pub(crate) number: u64,
    pub(crate) begun_at: usize,
    pub(crate) synced_at: Option<usize>,
}

/// All claims.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) files: Vec<Written>,
    /// The versions of the blocks of the file `blocks`, in the order of writing.
    pub(crate) versions: Vec<Version>,
}

/// Returns the contents of a version of a block.
pub(crate) fn block_of(place: usize, number: u64) -> Vec<u8> {
    let mut block = noise(BLOCK, number << 16 | place as u64);
    block[..8].copy_from_slice(&number.to_le_bytes());
    block
}

/// The extent of a comparison after a cut.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Compared {
    pub(crate) files: u64,
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
}

impl Ledger {
    /// Checks that everything that must be in the folder after a cut is there, and that no block
    /// holds anything else.
    pub(crate) fn compare(&self, folder: &Path, epochs: usize) -> Result<Compared, String> {
        let mut compared = Compared::default();
        for file in self.files.iter().filter(|file| file.must_be_there(epochs)) {
            let content = fs::read(folder.join(&file.name));
            let content = content.map_err(|error| format!("{file:?}: {error}"))?;
            if content != file.content() {
                return Err(format!("{file:?} holds something else"));
            }
            compared.files += 1;
            compared.bytes += content.len() as u64;
        }
        self.compare_blocks(folder, epochs, &mut compared)?;
        Ok(compared)
    }

    fn compare_blocks(
        &self,
        folder: &Path,
        epochs: usize,
        compared: &mut Compared,
    ) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("blocks: {error}");
        let file = fs::File::open(folder.join("blocks")).map_err(failed)?;
        let places = self.versions.iter().map(|version| version.place + 1).max();
        for place in 0..places.unwrap_or(0) {
            let mut found = vec![0; BLOCK];
            file.read_exact_at(&mut found, (place * BLOCK) as u64)
                .map_err(failed)?;
            let mut allowed = self.allowed(place, epochs);
            if !allowed.any(|version| found == block_of(place, version.number)) {
                let number = u64::from_le_bytes(found[..8].try_into().unwrap());
                let allowed: Vec<_> = self.allowed(place, epochs).collect();
                return Err(format!(
                    "block {place} is version {number}, or damaged; allowed is {allowed:?}"
                ));
            }
            compared.blocks += 1;
            compared.bytes += BLOCK as u64;
        }
        Ok(())
    }

    /// Returns the last version that was synced, and those after it that had begun.
    fn allowed(&self, place: usize, epochs: usize) -> impl Iterator<Item = &Version> {
        let of_place = move |version: &&Version| version.place == place;
        let is_synced = |version: &&Version| version.synced_at.is_some_and(|at| at <= epochs);
        let synced = self.versions.iter().filter(of_place).filter(is_synced);
        let last = synced.map(|version| version.number).max().unwrap_or(0);
        let begun = move |version: &&Version| version.number >= last && version.begun_at <= epochs;
        self.versions.iter().filter(of_place).filter(begun)
    }
}
