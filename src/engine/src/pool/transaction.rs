//! Changes of names, volumes and records that commit as one.

use super::change::promises_for;
use super::handle::Pool;
use super::info::{Labels, RecordKind};
use super::plan::Plan;
use super::shared::Shared;
use crate::space::Demand;
use cowshed_format::base::codec::Writer;
use cowshed_format::base::{Error, Name, Result, VolumeId};
use cowshed_format::operation::Operation;
use cowshed_format::record::{self, HEADER_BYTES};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

/// Several changes that commit as one log record. Dropped without `commit`, it changes nothing.
///
/// Like everything else, they are durable after the next [`Pool::flush`].
#[must_use = "a transaction does nothing until it is committed"]
pub struct Transaction {
    shared: Arc<Shared>,
    operations: Vec<Operation>,
    /// The volumes that must not be held when it commits.
    idle: Vec<VolumeId>,
}

impl Transaction {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            operations: Vec::new(),
            idle: Vec::new(),
        }
    }

    fn add(&mut self, operation: Operation) -> &mut Self {
        self.operations.push(operation);
        self
    }

    fn new_id(&self) -> VolumeId {
        VolumeId(self.shared.next_volume_id.fetch_add(1, Ordering::AcqRel))
    }

    /// Stores a record: a key of at most 1 KiB, and a value of at most 1 MiB that also fits the
    /// longest log record (an eighth of the log).
    pub fn put_record(&mut self, kind: RecordKind, key: &[u8], value: &[u8]) -> &mut Self {
        let (key, value) = (key.to_vec(), value.to_vec());
        self.add(Operation::PutRecord {
            kind: kind.0,
            key,
            value,
        })
    }

    /// Removes a record, if it exists.
    pub fn remove_record(&mut self, kind: RecordKind, key: &[u8]) -> &mut Self {
        self.add(Operation::RemoveRecord {
            kind: kind.0,
            key: key.to_vec(),
        })
    }

    /// Makes an empty volume. The id is final; the volume exists once the transaction commits.
    pub fn create_volume(&mut self, name: &Name, size_bytes: u64) -> VolumeId {
        let (volume, name, created_ns) = (self.new_id(), name.clone(), now_ns());
        self.add(Operation::Create {
            volume,
            name,
            size_bytes,
            created_ns,
        });
        volume
    }

    /// Freezes the state that a volume has at the commit under a new name.
    pub fn snapshot(&mut self, volume: VolumeId, name: &Name) -> VolumeId {
        let (snapshot, name, created_ns) = (self.new_id(), name.clone(), now_ns());
        self.add(Operation::Snapshot {
            volume,
            snapshot,
            name,
            created_ns,
        });
        snapshot
    }

    /// Makes a writable clone of a snapshot.
    pub fn clone_volume(&mut self, snapshot: VolumeId, name: &Name) -> VolumeId {
        let (volume, name, created_ns) = (self.new_id(), name.clone(), now_ns());
        self.add(Operation::Clone {
            snapshot,
            volume,
            name,
            created_ns,
        });
        volume
    }

    /// Makes a volume a snapshot permanently.
    pub fn freeze(&mut self, volume: VolumeId) -> &mut Self {
        self.add(Operation::Freeze { volume })
    }

    /// Changes a volume's name.
    pub fn rename(&mut self, volume: VolumeId, name: &Name) -> &mut Self {
        self.add(Operation::Rename {
            volume,
            name: name.clone(),
        })
    }

    /// Replaces a volume's labels.
    pub fn set_labels(&mut self, volume: VolumeId, labels: Labels) -> &mut Self {
        self.add(Operation::Label { volume, labels })
    }

    /// Removes a volume.
    pub fn remove(&mut self, volume: VolumeId) -> &mut Self {
        self.add(Operation::Remove { volume })
    }

    /// Changes a volume's size. To make it smaller, use [`Pool::resize`], which discards the data
    /// beyond.
    pub fn resize(&mut self, volume: VolumeId, size_bytes: u64) -> &mut Self {
        self.add(Operation::Resize { volume, size_bytes })
    }

    /// Makes the commit refuse with `Busy` while the volume is held.
    pub(super) fn require_idle(&mut self, volume: VolumeId) -> &mut Self {
        self.idle.push(volume);
        self
    }

    pub(super) fn rollback(&mut self, volume: VolumeId, snapshot: VolumeId) -> &mut Self {
        let discarded = self.new_id();
        self.add(Operation::Rollback {
            volume,
            snapshot,
            discarded,
        })
    }

    /// Applies all changes, or, on an error, none.
    ///
    /// # Errors
    /// The error that the first invalid operation would return by itself; `NoSpace`, `TooLarge`.
    pub fn commit(self) -> Result<()> {
        let shared = &*self.shared;
        let mut record = self.encode()?;
        if self.operations.is_empty() {
            return Ok(());
        }
        let promise = self.operations.iter().map(promises_for).sum();
        let demand = self.demand();
        let mut using = shared.host_reserve_use();
        loop {
            shared.check_open()?;
            if demand == Demand::Create {
                let room = shared.check_host_room();
                room.inspect_err(|error| shared.note_refused_write(error))?;
            }
            shared.promise(promise, demand)?;
            let seen = shared.checkpoints.load(Ordering::Acquire);
            match self.try_commit(&mut record) {
                Ok(true) => break,
                Ok(false) => {
                    shared.space.void_promise(promise);
                    shared.make_log_room(seen)?;
                }
                Err(error) => {
                    shared.space.void_promise(promise);
                    shared.host_reserve.note_refusal(&error);
                    if demand != Demand::Create && error.is_host_full() && using.release_slice() {
                        continue;
                    }
                    return Err(error);
                }
            }
        }
        if demand == Demand::Remove {
            shared.ask(|wanted| &mut wanted.reclaim);
            shared.space_wait.tell();
        }
        Ok(())
    }

    /// Tries to commit; returns true if the log had space.
    fn try_commit(&self, record: &mut [u8]) -> Result<bool> {
        let shared = &*self.shared;
        let mut forest = shared.forest.write();
        let mut plan = Plan::new(&forest);
        self.idle
            .iter()
            .try_for_each(|volume| plan.idle(*volume).map(drop))?;
        self.operations
            .iter()
            .try_for_each(|operation| plan.add(operation))?;
        let _cut = shared.cut.write();
        shared.check_open()?;
        if shared.log.append(record, shared.generation())?.is_none() {
            return Ok(false);
        }
        for operation in &self.operations {
            shared.apply(&mut forest, operation);
        }
        Ok(true)
    }

    fn demand(&self) -> Demand {
        let frees = |operation: &Operation| {
            matches!(
                operation,
                Operation::Remove { .. } | Operation::RemoveRecord { .. }
            ) || matches!(operation, Operation::Rollback { .. })
        };
        let changes = |operation: &Operation| {
            matches!(
                operation,
                Operation::Rename { .. } | Operation::Freeze { .. } | Operation::Resize { .. }
            )
        };
        if self.operations.iter().any(frees) {
            Demand::Remove
        } else if self.operations.iter().all(changes) {
            Demand::Change
        } else {
            Demand::Create
        }
    }

    fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Writer::new();
        out.bytes(&[0; HEADER_BYTES]);
        for operation in &self.operations {
            if let Operation::Label { labels, .. } = operation {
                check_labels(labels)?;
            }
            if let Operation::PutRecord { key, .. } | Operation::RemoveRecord { key, .. } =
                operation
                && key.len() > super::MAX_KEY_BYTES
            {
                let max_bytes = super::MAX_KEY_BYTES as u64;
                return Err(Error::TooLarge {
                    what: "a record's key",
                    max_bytes,
                });
            }
            operation.encode(&mut out);
        }
        let mut record = out.into_bytes();
        let max = self.shared.log.max_record_bytes();
        record.resize(record::record_bytes(record.len() - HEADER_BYTES), 0);
        if record.len() > max {
            return Err(Error::TooLarge {
                what: "a transaction",
                max_bytes: max as u64,
            });
        }
        Ok(record)
    }
}

/// Checks the size of labels before they are encoded, since the format counts their lengths in 16
/// bits.
fn check_labels(labels: &Labels) -> Result<()> {
    let bytes = labels
        .iter()
        .map(|(key, value)| key.len() + value.len() + 4)
        .sum::<usize>();
    if bytes > super::MAX_LABELS_BYTES {
        let max_bytes = super::MAX_LABELS_BYTES as u64;
        return Err(Error::TooLarge {
            what: "a volume's labels",
            max_bytes,
        });
    }
    Ok(())
}

impl Pool {
    /// Returns a new transaction.
    pub fn transaction(&self) -> Transaction {
        Transaction::new(Arc::clone(&self.shared))
    }

    /// Returns the maximum number of bytes of a transaction, and so of a record in it.
    #[must_use]
    pub fn max_transaction_bytes(&self) -> usize {
        self.shared.log.max_record_bytes()
    }
}

/// Returns the time in nanoseconds since 1970.
pub(super) fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
