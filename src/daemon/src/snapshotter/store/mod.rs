//! The implementation of the snapshot calls. `store/prepare` creates snapshots, `store/commit`
//! turns them into parents; the other calls are here.
//!
//! # Invariants
//! - A key's lock is held for the whole call. The index's write lock is held from the check to the
//!   transaction that relies on it, and never while a file system is touched.
//! - A failed call undoes what it has begun before it returns.

mod commit;
mod prepare;

use super::convert;
use super::error::{Error, Result};
use super::filter::Filter;
use super::key_locks::KeyLocks;
use super::reaper::Reaper;
use super::record::{self, Index, Kind, Labels, Record, RecordFault, now_ns};
use super::service::Snapshots;
use super::wire::{
    CleanupRequest, CommitRequest, Empty, InfoResponse, KeyRequest, ListRequest, ListResponse,
    MountsResponse, PrepareRequest, UpdateRequest, UsageResponse,
};
use super::{MountMode, Options};
use cowshed_engine::{Pool, Volume};
use cowshed_format::base::sync::RwLock;
use cowshed_format::base::{self, Cancel, VolumeId};
use cowshed_host::{Host, RootUse};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Status};

/// The time that a Cleanup waits for the reaper.
const CLEANUP_TIME: Duration = Duration::from_secs(30);
/// Number of inodes that an empty ext4 uses, apart from the root.
const RESERVED_INODES: u64 = 9;
/// Number of inodes that an overlay needs beside the upper folder: the root above that, and the two
/// folders in which overlayfs works.
const OVERLAY_INODES: u64 = 3;

/// The snapshots of one pool.
pub(super) struct Store {
    host: Arc<Host>,
    options: Options,
    keys: KeyLocks,
    index: Arc<RwLock<Index>>,
    reaper: Reaper,
    /// Cancels the commits of overlays.
    commits: Cancel,
}

/// The reason why the snapshots cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("the record of the snapshot {key} in the pool is unreadable: {fault}")]
    Record { key: String, fault: RecordFault },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Store {
    pub(super) fn open(host: Arc<Host>, options: Options) -> Result<Self, OpenError> {
        let records = record::all(host.pool());
        let records = records.map_err(|(key, fault)| OpenError::Record { key, fault })?;
        let index = Arc::new(RwLock::new(Index::of(records)));
        // The successor of a daemon has their mounts, and not what it knew of them.
        for lower in index.read().read_by_overlays() {
            if let Ok(volume) = host.pool().volume_by_id(lower) {
                host.roots().keep(&volume);
            }
        }
        let reaper = Reaper::start(Arc::clone(&host), Arc::clone(&index), options.size_bytes)?;
        Ok(Self {
            host,
            options,
            keys: KeyLocks::default(),
            index,
            reaper,
            commits: Cancel::default(),
        })
    }

    /// Cancels the commits of overlays that are running.
    pub(super) fn cancel_commits(&self) {
        self.commits.cancel();
    }

    /// Stops the reaper; returns true if it has ended within `patience`.
    pub(super) fn stop(&self, patience: Duration) -> bool {
        self.reaper.stop(patience)
    }

    /// Returns the index of all snapshots.
    pub(super) fn index(&self) -> &Arc<RwLock<Index>> {
        &self.index
    }

    fn pool(&self) -> &Pool {
        self.host.pool()
    }

    fn record(&self, key: &str) -> Result<Arc<Record>> {
        let found = self.index.read().get(key).cloned();
        found.ok_or_else(|| Error::NotFound(key.into()))
    }

    fn volume_of(&self, record: &Record) -> Result<Volume> {
        Ok(self.pool().volume_by_id(record.volume())?)
    }

    /// Returns the volume of an overlay's parent.
    fn lower_of(&self, overlay: &Record) -> Result<Volume> {
        let parent = overlay.parent.as_deref().unwrap_or_default();
        self.volume_of(&*self.record(parent)?)
    }

    /// Shows the snapshot, and returns the mounts with which a client accesses it.
    ///
    /// # Errors
    /// Any error of the pool or the host.
    fn show(&self, record: &Record) -> Result<MountsResponse> {
        let volume = self.volume_of(record)?;
        let purpose = match (record.kind, record.fill) {
            (Kind::Active, true) => RootUse::Fill,
            (Kind::Active, false) => RootUse::Container,
            (Kind::View | Kind::Committed, _) => RootUse::View,
        };
        let source = match record.mounts {
            MountMode::Overlay => {
                let lower = self.lower_of(record)?;
                let options = self.host.roots().overlay(&volume, &lower)?;
                return Ok(convert::overlay(options));
            }
            MountMode::Dir => self.host.roots().mount(&volume, purpose)?,
            MountMode::Loop => self.host.roots().attach(&volume)?,
            MountMode::File => self.host.roots().file(&volume)?,
        };
        let is_read_only = record.kind != Kind::Active;
        Ok(convert::mounts(record.mounts, &source, is_read_only))
    }

    fn mounts_of(&self, key: &str) -> Result<MountsResponse> {
        let _held = self.keys.lock(key);
        let record = self.record(key)?;
        if record.kind == Kind::Committed {
            return Err(Error::NoMounts(key.into()));
        }
        if record.fill
            && self
                .host
                .roots()
                .was_interrupted(&self.volume_of(&record)?)?
        {
            // It was mounted for speed, and not to survive a restart.
            return Err(Error::HalfFilled(key.into()));
        }
        self.show(&record)
    }

    fn remove_key(&self, key: &str) -> Result<()> {
        let _held = self.keys.lock(key);
        let (record, read) = {
            let mut index = self.index.write();
            let record = index.get(key).cloned();
            let record = record.ok_or_else(|| Error::NotFound(key.into()))?;
            if index.children(key) > 0 {
                return Err(Error::HasChildren(key.into()));
            }
            self.give_up(key, &record)?;
            let read = index.read_by(&record);
            index.remove(key);
            (record, read)
        };
        // What is shown of it, or its leftover, is removed in the background.
        if let Some(leftover) = self.reaper.take_leftover(key) {
            self.reaper.volume(leftover);
        }
        self.clear_away(&record, read);
        Ok(())
    }

    /// Has the reaper clear away what is left of a removed snapshot: its own volume, and what is
    /// shown of the one that it read.
    fn clear_away(&self, record: &Record, read: Option<VolumeId>) {
        if record.kind != Kind::View {
            self.reaper.volume(record.volume());
        }
        if let Some(read) = read {
            self.reaper.view(read);
        }
    }

    /// Removes the record, and its volume unless that is in use: then the volume gets a name under
    /// `work/`.
    fn give_up(&self, key: &str, record: &Record) -> Result<()> {
        let volume = record.volume();
        let mut transaction = self.pool().transaction();
        Record::remove(&mut transaction, key);
        if record.kind == Kind::View {
            return Ok(transaction.commit()?);
        }
        transaction.remove(volume);
        match transaction.commit() {
            Err(base::Error::Busy(_)) => {}
            // The volume is missing, so only the record is left to remove.
            Err(base::Error::NoSuchVolume(_)) => {
                let mut transaction = self.pool().transaction();
                Record::remove(&mut transaction, key);
                return Ok(transaction.commit()?);
            }
            done => return Ok(done?),
        }
        let mut transaction = self.pool().transaction();
        Record::remove(&mut transaction, key);
        transaction.rename(volume, &self.host.roots().passing_name()?);
        Ok(transaction.commit()?)
    }

    fn change_labels(&self, request: UpdateRequest) -> Result<InfoResponse> {
        let info = request.info.ok_or(Error::Missing("info"))?;
        let mut paths = request.update_mask.unwrap_or_default().paths;
        if paths.is_empty() {
            paths.push("labels".to_owned());
        }
        let _held = self.keys.lock(&info.name);
        let changed = {
            let mut index = self.index.write();
            let found = index.get(&info.name);
            let found = found.ok_or_else(|| Error::NotFound(info.name.as_str().into()))?;
            let mut changed = Record::clone(found);
            changed.labels = masked(&changed.labels, &info.labels, &paths)?;
            changed.updated_ns = now_ns();
            let mut transaction = self.pool().transaction();
            changed.put(&mut transaction, &info.name)?;
            transaction.commit()?;
            index.put(info.name.clone(), changed.clone());
            changed
        };
        self.pool().flush()?;
        Ok(InfoResponse {
            info: Some(convert::info(&info.name, &changed)),
        })
    }

    fn usage_of(&self, key: &str) -> Result<UsageResponse> {
        let record = self.record(key)?;
        if record.kind == Kind::View {
            return Ok(UsageResponse { size: 0, inodes: 0 });
        }
        let volume = self.volume_of(&record)?;
        let below = match &record.parent {
            Some(_) if record.is_overlay() => RESERVED_INODES + OVERLAY_INODES,
            Some(parent) => {
                let below = self.volume_of(&*self.record(parent)?)?;
                self.host.roots().inodes(&below)?
            }
            None => RESERVED_INODES,
        };
        let inodes = self.host.roots().inodes(&volume)?.saturating_sub(below);
        let size_bytes = self.host.roots().bytes(&volume)?;
        Ok(UsageResponse {
            size: i64::try_from(size_bytes).unwrap_or(i64::MAX),
            inodes: i64::try_from(inodes).unwrap_or(i64::MAX),
        })
    }

    fn all(&self, filters: &[String]) -> Result<Vec<ListResponse>> {
        let filter = Filter::parse(filters)?;
        let index = self.index.read();
        let matching = index
            .iter()
            .filter(|(name, record)| filter.matches(name, record));
        Ok(convert::pages(
            matching.map(|(name, record)| convert::info(name, record)),
        ))
    }
}

/// Returns the labels after an update of the fields `paths`.
fn masked(old: &Labels, new: &Labels, paths: &[String]) -> Result<Labels> {
    let mut labels = old.clone();
    for path in paths {
        if path == "labels" {
            labels.clone_from(new);
        } else if let Some(key) = path.strip_prefix("labels.") {
            // An empty value removes the label below.
            let value = new.get(key).cloned().unwrap_or_default();
            labels.insert(key.to_owned(), value);
        } else {
            return Err(Error::Immutable(path.as_str().into()));
        }
    }
    convert::labels(labels)
}

/// Logs failures that are not the client's fault.
fn told<T>(call: &'static str, key: &str, answer: Result<T>) -> Result<T, Status> {
    answer.map_err(|error| {
        let status = Status::from(error);
        match status.code() {
            tonic::Code::Unknown | tonic::Code::DataLoss | tonic::Code::ResourceExhausted => {
                tracing::error!(call, key, error = status.message(), "a call failed");
            }
            code => {
                tracing::debug!(call, key, %code, error = status.message(), "a call was refused")
            }
        }
        status
    })
}

impl Snapshots for Store {
    fn prepare(&self, request: Request<PrepareRequest>) -> Result<MountsResponse, Status> {
        let request = request.into_inner();
        let key = request.key.clone();
        told("Prepare", &key, self.make(Kind::Active, request))
    }

    fn view(&self, request: Request<PrepareRequest>) -> Result<MountsResponse, Status> {
        let request = request.into_inner();
        let key = request.key.clone();
        told("View", &key, self.make(Kind::View, request))
    }

    fn mounts(&self, request: Request<KeyRequest>) -> Result<MountsResponse, Status> {
        let key = request.into_inner().key;
        told("Mounts", &key, self.mounts_of(&key))
    }

    fn commit(&self, request: Request<CommitRequest>) -> Result<Empty, Status> {
        let request = request.into_inner();
        let key = request.key.clone();
        told("Commit", &key, self.commit_key(request)).map(|()| Empty {})
    }

    fn remove(&self, request: Request<KeyRequest>) -> Result<Empty, Status> {
        let key = request.into_inner().key;
        told("Remove", &key, self.remove_key(&key)).map(|()| Empty {})
    }

    fn stat(&self, request: Request<KeyRequest>) -> Result<InfoResponse, Status> {
        let key = request.into_inner().key;
        let found = self.record(&key).map(|record| InfoResponse {
            info: Some(convert::info(&key, &record)),
        });
        told("Stat", &key, found)
    }

    fn update(&self, request: Request<UpdateRequest>) -> Result<InfoResponse, Status> {
        let request = request.into_inner();
        let key = request.info.as_ref().map(|info| info.name.clone());
        let key = key.unwrap_or_default();
        told("Update", &key, self.change_labels(request))
    }

    fn list(&self, request: Request<ListRequest>) -> Result<Vec<ListResponse>, Status> {
        told("List", "", self.all(&request.into_inner().filters))
    }

    fn usage(&self, request: Request<KeyRequest>) -> Result<UsageResponse, Status> {
        let key = request.into_inner().key;
        told("Usage", &key, self.usage_of(&key))
    }

    fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Empty, Status> {
        self.reaper.drain(CLEANUP_TIME);
        Ok(Empty {})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_changes_what_its_mask_says_and_nothing_else() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            let pairs = pairs.iter();
            pairs
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        let old = labels(&[("a", "1"), ("b", "2"), ("x.y/z", "3")]);
        let new = labels(&[("a", "9"), ("c", "4")]);
        let update = |paths: &[&str]| {
            let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
            masked(&old, &new, &paths)
        };
        assert_eq!(update(&["labels"]).unwrap(), new);
        let some = update(&["labels.a", "labels.b", "labels.x.y/z"]).unwrap();
        assert_eq!(some, labels(&[("a", "9")]));
        for path in ["parent", "name", "kind", "label.a", "created_at", ""] {
            assert!(
                matches!(update(&[path]), Err(Error::Immutable(_))),
                "{path}"
            );
        }
    }
}
