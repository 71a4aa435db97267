//! The events in the middle of a checkpoint: a write, a flush, a snapshot.

use crate::history::Moment;
use crate::oracle::BLOCK;
use crate::workload::Run;
use cowshed_format::base::Name;
use rand::Rng;
use rand::seq::IndexedRandom;
use std::sync::{Arc, Mutex};

/// The maximum number of writes of a checkpoint before the event.
const CALLS_MAX: u32 = 12;
/// The free space that is needed so that nothing has to wait for the checkpoint itself.
const FREE_BYTES: u64 = 128 * BLOCK;

/// An event that happened, with its start and end.
struct Done {
    what: What,
    begun: Moment,
    ended: Moment,
}

enum What {
    Write,
    Snapshot(u64),
    Flush,
}

/// The prepared event, and those that happened.
pub(crate) struct Meddling {
    id: u64,
    offset: u64,
    bytes: Vec<u8>,
    name: String,
    done: Arc<Mutex<Vec<Done>>>,
}

impl Run {
    /// Prepares an event in the middle of the next operation.
    pub(crate) fn prepare_meddling(&mut self) -> Option<Meddling> {
        let meddler = self.ground.meddler.clone()?;
        let status = self.pool().status().expect("status");
        if status.free_bytes < FREE_BYTES || status.log_used_bytes * 2 > status.log_bytes {
            return None;
        }
        let mut writable = self.oracle.all_named();
        writable.retain(|id| self.oracle.check_writable(*id).is_ok());
        let id = *writable.choose(&mut self.rng)?;
        let blocks = self.oracle.volumes[&id].size_bytes / BLOCK;
        let first = self.rng.random_range(0..blocks.min(40));
        let mut bytes = vec![0; usize::try_from(BLOCK).expect("a block") * 2];
        bytes.truncate(usize::try_from((blocks - first) * BLOCK).unwrap_or(usize::MAX));
        self.rng.fill(&mut bytes[..]);
        self.names += 1;
        let snapshot = self.rng.random_ratio(1, 3) && self.oracle.all_named().len() < 8;
        let flush = self.rng.random_ratio(1, 3);
        let meddling = Meddling {
            id,
            offset: first * BLOCK,
            bytes,
            name: format!("between/{:x}", self.names),
            done: Arc::default(),
        };
        let (pool, volume) = (self.pool(), self.handle(id));
        let (device, done) = (Arc::clone(&self.ground.device), Arc::clone(&meddling.done));
        let (offset, bytes, name) = (
            meddling.offset,
            meddling.bytes.clone(),
            meddling.name.clone(),
        );
        let calls = self.rng.random_range(0..CALLS_MAX);
        let work = move || {
            let moment = || device.moment().expect("the device records");
            let note = |what, begun| {
                let ended = moment();
                let mut done = done.lock().expect("no panic while it is held");
                done.push(Done { what, begun, ended });
            };
            if snapshot {
                let begun = moment();
                let name = Name::new(&name).expect("a good name");
                let snapshot = pool.snapshot(&volume, &name).expect("snapshot");
                note(What::Snapshot(snapshot.id().0), begun);
            }
            let begun = moment();
            volume.write_at(&bytes, offset).expect("write");
            note(What::Write, begun);
            if flush {
                let begun = moment();
                pool.flush().expect("flush");
                note(What::Flush, begun);
            }
        };
        meddler.arm(calls, Box::new(work));
        Some(meddling)
    }

    /// Takes over the events that happened meanwhile. Returns the branches and barriers that they
    /// took.
    pub(crate) fn take_over(&mut self, meddling: Option<Meddling>) -> (u64, u64) {
        let (mut branches, mut barriers) = (0, 0);
        let Some(meddling) = meddling else {
            return (branches, barriers);
        };
        if let Some(meddler) = &self.ground.meddler {
            meddler.disarm();
        }
        let Meddling {
            id,
            offset,
            bytes,
            name,
            done,
        } = meddling;
        let done = std::mem::take(&mut *done.lock().expect("no panic while it is held"));
        for Done { what, begun, ended } in done {
            match what {
                What::Write => {
                    self.oracle.write(id, offset, &bytes);
                    self.push_between(format!("write {offset} of {id} meanwhile"), begun, ended);
                }
                What::Snapshot(snapshot) => {
                    self.oracle.snapshot(id, snapshot, &name);
                    self.note_created(snapshot);
                    self.push_between(format!("snapshot {id} meanwhile"), begun, ended);
                    branches += 1;
                }
                What::Flush => {
                    self.note_flushed(ended);
                    barriers += 1;
                }
            }
        }
        (branches, barriers)
    }
}
