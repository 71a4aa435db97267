//! The handles that other crates use.

use super::forest::KeyAndValue;
use super::info::{Extent, ExtentKind, Labels, RecordKind, RemovedVolume, VolumeInfo, VolumeKind};
use super::shared::Shared;
use super::volume::{Counted, VolumeCore};
use crate::map::{Sought, find};
use cowshed_format::base::units::blocks_for;
use cowshed_format::base::{BLOCK_BYTES, Error, Name, Result, VolumeId};
use cowshed_format::device::Device;
use std::collections::HashSet;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

/// An open pool. Clones are the same pool, and all calls may run concurrently on any threads.
///
/// Dropping the last handle without `close` is harmless: the next open replays the log.
#[derive(Clone)]
pub struct Pool {
    pub(super) shared: Arc<Shared>,
}

/// A volume of an open pool. Clones are the same volume. After its removal, calls return
/// `NoSuchVolume`.
#[derive(Clone)]
pub struct Volume {
    pub(super) shared: Arc<Shared>,
    pub(super) core: Arc<VolumeCore>,
}

/// Keeps a volume from being removed or rolled back while it is attached or mounted.
#[must_use = "the volume is held for as long as this lives"]
pub struct Hold {
    _counted: Counted,
}

impl Pool {
    /// Returns the pool's identity.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.shared.uuid
    }

    /// Returns the descriptors that the pool uses to reach its device, for a thread that gives up
    /// all others.
    #[must_use]
    pub fn device_descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.shared.device.descriptors()
    }

    /// Returns true if it bypasses the host's page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.shared.device.is_direct()
    }

    /// Returns true if it was opened for reading only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.shared.is_read_only()
    }

    /// Makes everything durable that was acknowledged before: one barrier, shared with all callers
    /// that wait for one.
    ///
    /// # Errors
    /// `Io` when the barrier fails; the pool has then stopped.
    pub fn flush(&self) -> Result<()> {
        if self.shared.has_nothing_to_flush()? {
            return Ok(());
        }
        self.shared.log.flush()
    }

    /// Writes a checkpoint of the present state, so that the log starts anew.
    ///
    /// # Errors
    /// `Io`; the pool has then stopped.
    pub fn checkpoint(&self) -> Result<()> {
        self.shared.check_open()?;
        self.shared.checkpoint()
    }

    fn handle(&self, core: &Arc<VolumeCore>) -> Volume {
        Volume {
            shared: Arc::clone(&self.shared),
            core: Arc::clone(core),
        }
    }

    /// Returns the volume of this name, or of this id in decimal.
    ///
    /// # Errors
    /// `NotFound`, `InvalidName`.
    pub fn volume(&self, name_or_id: &str) -> Result<Volume> {
        let name = Name::new(name_or_id)?;
        if let Some(found) = self.shared.forest.read().by_name(name.as_str()) {
            return Ok(self.handle(&found.core));
        }
        let by_id = name_or_id
            .parse()
            .ok()
            .map(|id| self.volume_by_id(VolumeId(id)));
        by_id.and_then(Result::ok).ok_or(Error::NotFound(name))
    }

    /// Returns the volume of this id.
    ///
    /// # Errors
    /// `NoSuchVolume`.
    pub fn volume_by_id(&self, id: VolumeId) -> Result<Volume> {
        let forest = self.shared.forest.read();
        let found = forest
            .volumes
            .get(&id)
            .filter(|volume| volume.name.is_some());
        found
            .map(|volume| self.handle(&volume.core))
            .ok_or(Error::NoSuchVolume(id))
    }

    /// Returns all volumes and snapshots, by name.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let forest = self.shared.forest.read();
        let infos = forest.names.values().filter_map(|id| info(&forest, *id));
        infos.collect()
    }

    /// Returns the removed volumes that still exist in part, by id.
    #[must_use]
    pub fn removed_volumes(&self) -> Vec<RemovedVolume> {
        let forest = self.shared.forest.read();
        let unneeded: HashSet<_> = forest.unneeded().into_iter().collect();
        let block = BLOCK_BYTES as u64;
        let describe = |id: &VolumeId| {
            let it = &forest.volumes[id];
            RemovedVolume {
                id: *id,
                parent: it.parent,
                size_bytes: it.core.size_bytes(),
                own_bytes: it.core.own_blocks() * block,
                referenced_bytes: it.core.mapped_blocks() * block,
                created: UNIX_EPOCH + Duration::from_nanos(it.created_ns),
                children: it.children.iter().copied().collect(),
                is_needed: !unneeded.contains(id),
            }
        };
        forest.removed.iter().map(describe).collect()
    }

    /// Makes an empty volume.
    ///
    /// # Errors
    /// `Exists`, `InvalidSize`, `NoSpace`.
    pub fn create_volume(&self, name: &Name, size_bytes: u64) -> Result<Volume> {
        let mut transaction = self.transaction();
        let id = transaction.create_volume(name, size_bytes);
        transaction.commit()?;
        self.volume_by_id(id)
    }

    /// Freezes a volume's present state under a new name. The snapshot takes the volume's place
    /// in the forest, and the volume becomes its child.
    ///
    /// # Errors
    /// `Exists`, `Frozen`, `NoSuchVolume`, `NoSpace`.
    pub fn snapshot(&self, volume: &Volume, name: &Name) -> Result<Volume> {
        let mut transaction = self.transaction();
        let id = transaction.snapshot(volume.id(), name);
        transaction.commit()?;
        self.volume_by_id(id)
    }

    /// Makes a writable clone of a snapshot.
    ///
    /// # Errors
    /// `Exists`, `NotFrozen`, `NoSuchVolume`, `NoSpace`.
    pub fn clone_volume(&self, snapshot: &Volume, name: &Name) -> Result<Volume> {
        let mut transaction = self.transaction();
        let id = transaction.clone_volume(snapshot.id(), name);
        transaction.commit()?;
        self.volume_by_id(id)
    }

    /// Makes a volume a snapshot permanently.
    ///
    /// # Errors
    /// `NoSuchVolume`, `NoSpace`.
    pub fn freeze(&self, volume: &Volume) -> Result<()> {
        let mut transaction = self.transaction();
        transaction.freeze(volume.id());
        transaction.commit()
    }

    /// Restores a volume to the state of its ancestor `snapshot`; later contents are discarded.
    ///
    /// # Errors
    /// `NotAncestor`, `Frozen`, `Busy` while the volume is held, `NoSuchVolume`, `NoSpace`.
    pub fn rollback(&self, volume: &Volume, snapshot: &Volume) -> Result<()> {
        let mut transaction = self.transaction();
        transaction.rollback(volume.id(), snapshot.id());
        transaction.commit()
    }

    /// Changes a volume's size. Data beyond a smaller size is discarded; the part that a larger
    /// size adds reads as zeros.
    ///
    /// # Errors
    /// `InvalidSize`, `Frozen`, `NoSuchVolume`, `NoSpace`, `Io`.
    pub fn resize(&self, volume: &Volume, size_bytes: u64) -> Result<()> {
        let commit = |size_bytes| {
            let mut transaction = self.transaction();
            transaction.resize(volume.id(), size_bytes);
            transaction.commit()
        };
        let old = volume.size_bytes();
        if size_bytes < old {
            if size_bytes > 0 {
                volume.discard(size_bytes, old - size_bytes)?;
            }
            return commit(size_bytes);
        }
        // A write that raced with an earlier shrinking may have left data beyond the end.
        let whole = blocks_for(old);
        volume.check_unfrozen()?;
        volume.discard_blocks(whole, u64::MAX)?;
        // Before any write can reach that part.
        volume.zero_part(old, whole * BLOCK_BYTES as u64)?;
        commit(size_bytes)
    }

    /// Makes a volume smaller that is not held, and discards the data beyond its new end. A larger
    /// size is refused.
    ///
    /// # Errors
    /// `Busy` while the volume is held, `InvalidSize`, `Frozen`, `NoSuchVolume`, `NoSpace`, `Io`.
    pub fn shrink(&self, volume: &Volume, size_bytes: u64) -> Result<()> {
        let old = volume.size_bytes();
        if size_bytes > old {
            return Err(Error::InvalidSize {
                what: "a volume that is to shrink",
                min_bytes: 1,
                max_bytes: old,
            });
        }
        let mut transaction = self.transaction();
        transaction
            .require_idle(volume.id())
            .resize(volume.id(), size_bytes);
        transaction.commit()?;
        // If this is interrupted, the next growth of the volume does it.
        let whole = blocks_for(size_bytes);
        volume.discard_blocks(whole, u64::MAX)?;
        volume.zero_part(size_bytes, whole * BLOCK_BYTES as u64)
    }

    /// Changes a volume's name.
    ///
    /// # Errors
    /// `Exists`, `NoSuchVolume`, `NoSpace`.
    pub fn rename(&self, volume: &Volume, name: &Name) -> Result<()> {
        let mut transaction = self.transaction();
        transaction.rename(volume.id(), name);
        transaction.commit()
    }

    /// Replaces a volume's labels: at most 16 KiB together.
    ///
    /// # Errors
    /// `TooLarge`, `NoSuchVolume`, `NoSpace`.
    pub fn set_labels(&self, volume: &Volume, labels: Labels) -> Result<()> {
        let mut transaction = self.transaction();
        transaction.set_labels(volume.id(), labels);
        transaction.commit()
    }

    /// Removes a volume. It is gone at once; its space is freed in the background. Its children
    /// stay as they are.
    ///
    /// # Errors
    /// `Busy` while the volume is held, `NoSuchVolume`.
    pub fn remove(&self, volume: &Volume) -> Result<()> {
        let mut transaction = self.transaction();
        transaction.remove(volume.id());
        transaction.commit()
    }

    /// Returns the ranges in which `b` differs from `a`, in order, with the kind of each in `b`;
    /// takes time proportional to the difference.
    ///
    /// # Errors
    /// `NoSuchVolume` when one of them was removed; `Corrupt` or `Io` when a map node cannot be
    /// read.
    pub fn diff(&self, a: &Volume, b: &Volume) -> Result<Vec<Extent>> {
        self.diff_within(a, b, &(0..u64::MAX))
    }

    /// Returns the value of a record.
    #[must_use]
    pub fn record(&self, kind: RecordKind, key: &[u8]) -> Option<Arc<[u8]>> {
        self.shared.forest.read().record(kind.0, key)
    }

    /// Returns all records of a kind as keys and values, by key.
    #[must_use]
    pub fn records(&self, kind: RecordKind) -> Vec<KeyAndValue> {
        self.shared.forest.read().records(kind.0)
    }
}

/// Adds a block to the ranges of a difference; calls come in block order.
pub(super) fn push_block(extents: &mut Vec<Extent>, block: u64, mapped: bool) {
    push_range(extents, &(block..block + 1), mapped);
}

/// Adds blocks to the ranges of a difference; calls come in block order.
pub(super) fn push_range(extents: &mut Vec<Extent>, blocks: &Range<u64>, mapped: bool) {
    let kind = if mapped {
        ExtentKind::Data
    } else {
        ExtentKind::Zero
    };
    let offset_bytes = blocks.start * BLOCK_BYTES as u64;
    let len_bytes = (blocks.end - blocks.start) * BLOCK_BYTES as u64;
    match extents.last_mut() {
        Some(last) if last.kind == kind && last.offset_bytes + last.len_bytes == offset_bytes => {
            last.len_bytes += len_bytes;
        }
        _ => extents.push(Extent {
            offset_bytes,
            len_bytes,
            kind,
        }),
    }
}

fn info(forest: &super::forest::Forest, id: VolumeId) -> Option<VolumeInfo> {
    let volume_node = forest.volumes.get(&id)?;
    let core = &volume_node.core;
    let block = BLOCK_BYTES as u64;
    let frozen = core.frozen.load(Ordering::Acquire);
    Some(VolumeInfo {
        id,
        name: volume_node.name.clone()?,
        parent: volume_node.parent,
        kind: if frozen {
            VolumeKind::Snapshot
        } else {
            VolumeKind::Volume
        },
        size_bytes: core.size_bytes(),
        own_bytes: core.own_blocks() * block,
        referenced_bytes: core.mapped_blocks() * block,
        created: UNIX_EPOCH + Duration::from_nanos(volume_node.created_ns),
        labels: volume_node.labels.clone(),
        children: u32::try_from(volume_node.children.len()).unwrap_or(u32::MAX),
    })
}

impl Volume {
    /// Returns the volume's id.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.core.id
    }

    /// Returns the volume's name; for a removed volume, its id.
    ///
    /// # Panics
    /// Never: an id in decimal is a valid name.
    #[must_use]
    pub fn name(&self) -> Name {
        let forest = self.shared.forest.read();
        let name = forest
            .volumes
            .get(&self.core.id)
            .and_then(|volume| volume.name.clone());
        name.unwrap_or_else(|| Name::new(&self.core.id.to_string()).expect("digits are a name"))
    }

    /// Returns the volume's properties, in constant time.
    ///
    /// # Errors
    /// `NoSuchVolume`.
    pub fn info(&self) -> Result<VolumeInfo> {
        info(&self.shared.forest.read(), self.core.id).ok_or(Error::NoSuchVolume(self.core.id))
    }

    /// Returns the virtual size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.core.size_bytes()
    }

    /// Returns true if the volume is a snapshot.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.core.frozen.load(Ordering::Acquire)
    }

    /// Returns the range of one kind that begins at `offset_bytes`; `None` at the volume's end.
    ///
    /// # Errors
    /// `NoSuchVolume` when it was removed; `Corrupt` or `Io` when a map node cannot be read.
    pub fn extent_at(&self, offset_bytes: u64) -> Result<Option<Extent>> {
        let size = self.size_bytes();
        if offset_bytes >= size {
            return Ok(None);
        }
        let (block, store) = (offset_bytes / BLOCK_BYTES as u64, &self.shared.store);
        let (kind, until) = self.look(|| {
            self.core.tree.walk(|root| {
                let data = find(store, root, block, Sought::Data)?;
                Ok(if data == Some(block) {
                    let hole = find(store, root, block, Sought::Hole)?;
                    (ExtentKind::Data, hole.unwrap_or(root.capacity()))
                } else {
                    (ExtentKind::Zero, data.unwrap_or(blocks_for(size)))
                })
            })
        })?;
        let end = until.saturating_mul(BLOCK_BYTES as u64).min(size);
        Ok(Some(Extent {
            offset_bytes,
            len_bytes: end - offset_bytes,
            kind,
        }))
    }

    /// Returns the number of bytes from `offset_bytes` on that hold data.
    ///
    /// # Errors
    /// As `extent_at`.
    pub fn data_bytes_from(&self, offset_bytes: u64) -> Result<u64> {
        let (mut at, mut data_bytes) = (offset_bytes, 0);
        while let Some(extent) = self.extent_at(at)? {
            if extent.kind == ExtentKind::Data {
                data_bytes += extent.len_bytes;
            }
            if extent.len_bytes == 0 {
                break;
            }
            at += extent.len_bytes;
        }
        Ok(data_bytes)
    }

    /// Holds the volume: it can be neither removed nor rolled back until the hold is dropped.
    ///
    /// # Errors
    /// `NoSuchVolume`.
    pub fn hold(&self) -> Result<Hold> {
        let _forest = self.shared.forest.read();
        if self.core.removed.load(Ordering::Acquire) {
            return Err(Error::NoSuchVolume(self.core.id));
        }
        Ok(Hold {
            _counted: Counted::new(&self.core, |core| &core.holds),
        })
    }

    /// Returns true if the volume is held.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.core.holds.load(Ordering::Acquire) > 0
    }

    pub(super) fn check_range(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        if self.core.removed.load(Ordering::Acquire) {
            return Err(Error::NoSuchVolume(self.core.id));
        }
        let size_bytes = self.core.size_bytes();
        match offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= size_bytes => Ok(()),
            _ => Err(Error::OutOfRange {
                offset_bytes,
                len_bytes,
                size_bytes,
            }),
        }
    }

    /// Returns the error of a call on the volume that met `error`. If the volume was removed during
    /// the call, its blocks may have been reused; apparent damage then becomes `NoSuchVolume`.
    pub(super) fn unless_removed(&self, error: Error) -> Error {
        match error {
            Error::Corrupt(_) if self.core.removed.load(Ordering::Acquire) => {
                Error::NoSuchVolume(self.core.id)
            }
            error => error,
        }
    }

    /// Returns the result of `look` on the volume without a lock. Blocks and map nodes that the
    /// volume gave up meanwhile may belong to another volume by then, even if they verify: so the
    /// result is refused if the volume was removed, and `look` is repeated if it was rolled back.
    pub(super) fn look<T>(&self, mut look: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            let rollbacks = self.core.rollbacks.load(Ordering::Acquire);
            let outcome = look();
            if self.core.rollbacks.load(Ordering::Acquire) != rollbacks {
                continue;
            }
            let found = outcome.map_err(|error| self.unless_removed(error))?;
            if self.core.removed.load(Ordering::Acquire) {
                return Err(Error::NoSuchVolume(self.core.id));
            }
            return Ok(found);
        }
    }

    pub(super) fn check_unfrozen(&self) -> Result<()> {
        if self.core.removed.load(Ordering::Acquire) {
            Err(Error::NoSuchVolume(self.core.id))
        } else if self.is_frozen() {
            Err(Error::Frozen(self.name()))
        } else {
            Ok(())
        }
    }
}
