//! Reading a block of which there may be two copies, and noting the damaged ones.
//!
//! A block that verifies is read once. Where the first copy cannot be read or does not verify, the
//! second is read in its place, and the damage is noted for `pool::heal`, which writes the damaged
//! copy anew. It is not written here: a reader holds no lock, and what looks damaged to it may be a
//! node that was freed, and whose block belongs to something else by now.

use super::store::NodeStore;
use cowshed_format::Pointer;
use cowshed_format::base::checksum::crc32;
use cowshed_format::base::sync::atomic::Ordering;
use cowshed_format::base::{BLOCK_BYTES, BlockAddr, CorruptKind, Error, Result};

/// Maximum number of damaged copies noted at a time; a later read finds the others again.
const DAMAGE_MAX: usize = 1024;

type Block = [u8; BLOCK_BYTES];

/// A copy that could not be read or did not verify, while the other one did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    /// The pointer to the block.
    pub pointer: Pointer,
    /// The damaged copy.
    pub addr: BlockAddr,
    /// The state of `NodeStore::frees` before the block was read.
    pub frees: u64,
}

impl NodeStore {
    /// Reads the block that `pointer` leads to, and returns what `parse` makes of its bytes. Where
    /// a copy does not have the pointer's checksum, `corrupt` says what is damaged. Also returns
    /// true if every copy that was read is good.
    ///
    /// # Errors
    /// If no copy is good: `Io` where one could not be read, as it may be good another time;
    /// otherwise `corrupt`, or the error of `parse`.
    pub(crate) fn read_copies<T>(
        &self,
        pointer: Pointer,
        corrupt: CorruptKind,
        parse: impl Fn(&Block) -> Result<T>,
    ) -> Result<(T, bool)> {
        let frees = self.frees.load(Ordering::Acquire);
        let mut failure: Option<Error> = None;
        let mut found = None;
        let mut damaged = None;
        for addr in pointer.places(self.groups_start()) {
            let outcome = self
                .read_copy(pointer, addr, corrupt)
                .and_then(|block| parse(&block));
            match outcome {
                Ok(parsed) => {
                    found = found.or(Some(parsed));
                    if !self.reads_all {
                        break;
                    }
                }
                Err(error) => {
                    damaged = Some(addr);
                    if !matches!(failure, Some(Error::Io { .. })) {
                        failure = Some(error);
                    }
                }
            }
        }
        let Some(found) = found else {
            return Err(failure.unwrap_or_else(|| corrupt.into()));
        };
        if let Some(addr) = damaged {
            self.note_damage(Damage {
                pointer,
                addr,
                frees,
            });
        }
        Ok((found, damaged.is_none()))
    }

    /// Returns the bytes of one copy, if they have the pointer's checksum.
    pub(crate) fn read_copy(
        &self,
        pointer: Pointer,
        addr: BlockAddr,
        corrupt: CorruptKind,
    ) -> Result<Box<Block>> {
        let mut block = Box::new([0; BLOCK_BYTES]);
        let (at, all) = (addr.offset_bytes(), self.reads_all);
        let is_right = |block: &[u8]| crc32(block) == pointer.crc();
        if self.device.read_accepted(&mut *block, at, all, &is_right)? {
            Ok(block)
        } else {
            Err(corrupt.into())
        }
    }

    /// Notes a damaged copy, in place of an older note.
    fn note_damage(&self, damage: Damage) {
        if self.given_up.lock().contains(&damage.addr) {
            return;
        }
        let mut noted = self.damage.lock();
        noted.retain(|known| known.addr != damage.addr);
        if noted.len() < DAMAGE_MAX {
            noted.push(damage);
        }
        self.is_damaged.store(true, Ordering::Release);
    }

    /// Returns true if damaged copies are noted.
    #[must_use]
    pub(crate) fn has_damage(&self) -> bool {
        self.is_damaged.load(Ordering::Relaxed)
    }

    /// Takes up to `most` of the notes of damaged copies.
    #[must_use]
    pub(crate) fn take_damage(&self, most: usize) -> Vec<Damage> {
        let mut noted = self.damage.lock();
        let most = most.min(noted.len());
        let taken = noted.drain(..most).collect();
        self.is_damaged.store(!noted.is_empty(), Ordering::Release);
        taken
    }

    /// Stops noting a copy that cannot be written.
    pub(crate) fn give_up_copy(&self, addr: BlockAddr) {
        let mut given_up = self.given_up.lock();
        if given_up.len() < DAMAGE_MAX {
            given_up.push(addr);
        }
    }

    /// Returns a number that changes before any block of metadata becomes free for other use.
    #[must_use]
    pub(crate) fn frees(&self) -> u64 {
        self.frees.load(Ordering::Acquire)
    }

    /// Notes that blocks become free.
    pub(crate) fn note_frees(&self) {
        self.frees.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes over the number of another store of the same pool.
    pub(crate) fn set_frees(&self, frees: u64) {
        self.frees.store(frees, Ordering::Release);
    }
}
