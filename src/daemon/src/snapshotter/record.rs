//! The record of a snapshot in the pool's catalogue, and the index of all of them in memory.
//!
//! The record's key is the snapshot's key or name, as containerd gives it; the value is JSON with a
//! version: 1, or 2 for an overlay, which readers of version 1 must not take for a root of its own.
//! Data that follows from other records (the number of children, the views of a volume) is
//! not stored but counted here.
//!
//! # Invariants
//! - A parent is committed, and exists as long as it has children.
//! - An active or committed snapshot has a volume of its own; a view uses its parent's or, without
//!   a parent, the empty file system.
//! - Only an active snapshot with a parent is an overlay; it uses its parent's volume, too.

use super::MountMode;
use cowshed_engine::{Pool, RecordKind, Transaction};
use cowshed_format::base::VolumeId;
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

const VERSION: u32 = 1;
/// The version of the record of a snapshot that is an overlay.
const VERSION_OF_OVERLAYS: u32 = 2;

/// The label with a layer's chain id, by which the layer's snapshot is found.
pub(super) const REF_LABEL: &str = "containerd.io/snapshot.ref";

/// Labels of a snapshot.
pub(super) type Labels = BTreeMap<String, String>;

/// The kind of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// Can be written, and committed.
    Active,
    /// Shows a committed snapshot.
    View,
    /// Never changes, and can be a parent.
    Committed,
}

impl Kind {
    /// Returns the word that filters use for it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::View => "view",
            Self::Committed => "committed",
        }
    }
}

/// The stored data of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pub(super) kind: Kind,
    /// The name of the committed snapshot that is its parent.
    pub(super) parent: Option<String>,
    pub(super) labels: Labels,
    pub(super) created_ns: u64,
    pub(super) updated_ns: u64,
    volume: u64,
    /// The form in which it is handed out.
    pub(super) mounts: MountMode,
    /// True if it is being filled with a layer: its contents are worthless until it is committed.
    pub(super) fill: bool,
}

/// A record that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordFault {
    /// A newer version of cowshed wrote it.
    #[error("it has version {0}, which this cowshed does not know; use a newer one")]
    Version(u32),
    /// Its fields contradict each other.
    #[error("its version, its kind and the form in which it is handed out do not go together")]
    Contradiction,
    /// It is not JSON of the right form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Its key is not text.
    #[error("its key is not text")]
    Key,
}

impl Record {
    pub(super) fn new(
        kind: Kind,
        parent: Option<String>,
        labels: Labels,
        volume: VolumeId,
    ) -> Self {
        let now_ns = now_ns();
        Self {
            version: VERSION,
            kind,
            parent,
            labels,
            created_ns: now_ns,
            updated_ns: now_ns,
            volume: volume.0,
            mounts: MountMode::default(),
            fill: false,
        }
    }

    /// Sets the form in which it is handed out.
    pub(super) fn set_mounts(&mut self, mounts: MountMode) {
        self.mounts = mounts;
        self.version = if mounts == MountMode::Overlay {
            VERSION_OF_OVERLAYS
        } else {
            VERSION
        };
    }

    pub(super) const fn volume(&self) -> VolumeId {
        VolumeId(self.volume)
    }

    /// Returns true if it is an overlay: its volume holds only what it changes of its parent's.
    pub(super) fn is_overlay(&self) -> bool {
        self.mounts == MountMode::Overlay
    }

    /// Writes the record in `transaction`.
    pub(super) fn put(&self, transaction: &mut Transaction, key: &str) -> serde_json::Result<()> {
        let value = serde_json::to_vec(self)?;
        transaction.put_record(RecordKind::SNAPSHOT, key.as_bytes(), &value);
        Ok(())
    }

    pub(super) fn remove(transaction: &mut Transaction, key: &str) {
        transaction.remove_record(RecordKind::SNAPSHOT, key.as_bytes());
    }

    fn parse(value: &[u8]) -> Result<Self, RecordFault> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let head: Versioned = serde_json::from_slice(value)?;
        if !(VERSION..=VERSION_OF_OVERLAYS).contains(&head.version) {
            return Err(RecordFault::Version(head.version));
        }
        let record: Self = serde_json::from_slice(value)?;
        let can_be_overlay = record.kind == Kind::Active && record.parent.is_some();
        let is_right = if record.version == VERSION_OF_OVERLAYS {
            record.is_overlay() && can_be_overlay
        } else {
            !record.is_overlay()
        };
        is_right.then_some(record).ok_or(RecordFault::Contradiction)
    }
}

/// Returns the time in nanoseconds since 1970.
pub(super) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// Returns all records of the pool.
///
/// # Errors
/// The first record that cannot be understood, with its key.
pub(super) fn all(pool: &Pool) -> Result<Vec<(String, Record)>, (String, RecordFault)> {
    let records = pool.records(RecordKind::SNAPSHOT);
    let parse = |(key, value): &(Arc<[u8]>, Arc<[u8]>)| {
        let fault = |fault| (String::from_utf8_lossy(key).into_owned(), fault);
        let text = str::from_utf8(key).map_err(|_| fault(RecordFault::Key))?;
        let record = Record::parse(value).map_err(fault)?;
        Ok((text.to_owned(), record))
    };
    records.iter().map(parse).collect()
}

/// All records by key, with the counts that follow from them.
#[derive(Default)]
pub(super) struct Index {
    records: BTreeMap<String, Arc<Record>>,
    children: HashMap<String, usize>,
    readers: HashMap<VolumeId, usize>,
    by_ref: HashMap<String, Vec<String>>,
}

impl Index {
    /// Returns the index of all records.
    pub(super) fn of(records: Vec<(String, Record)>) -> Self {
        let mut index = Self::default();
        let is_committed = |(_, record): &(String, Record)| record.kind == Kind::Committed;
        // What an overlay reads is found by its parent, which is committed.
        let (parents, others): (Vec<_>, Vec<_>) = records.into_iter().partition(is_committed);
        for (key, record) in parents.into_iter().chain(others) {
            index.put(key, record);
        }
        index
    }

    pub(super) fn get(&self, key: &str) -> Option<&Arc<Record>> {
        self.records.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Arc<Record>)> {
        self.records.iter()
    }

    /// Returns the number of snapshots whose parent is `name`.
    pub(super) fn children(&self, name: &str) -> usize {
        self.children.get(name).copied().unwrap_or(0)
    }

    /// Returns the number of views and overlays that use the volume of the snapshot below them.
    pub(super) fn readers(&self, volume: VolumeId) -> usize {
        self.readers.get(&volume).copied().unwrap_or(0)
    }

    /// Returns the volume of another snapshot that this one shows: all of it in a view, the lower
    /// layer of an overlay.
    pub(super) fn read_by(&self, record: &Record) -> Option<VolumeId> {
        if record.kind == Kind::View {
            return Some(record.volume());
        }
        let parent = record.parent.as_ref().filter(|_| record.is_overlay())?;
        self.get(parent).map(|parent| parent.volume())
    }

    /// Returns the volumes below overlays.
    pub(super) fn read_by_overlays(&self) -> BTreeSet<VolumeId> {
        let overlays = self.records.values().filter(|record| record.is_overlay());
        overlays.filter_map(|record| self.read_by(record)).collect()
    }

    /// Returns true if the volume is an overlay's own.
    pub(super) fn is_own_of_overlay(&self, volume: VolumeId) -> bool {
        let mut overlays = self.records.values().filter(|record| record.is_overlay());
        overlays.any(|record| record.volume() == volume)
    }

    /// Returns the committed snapshots of this layer.
    pub(super) fn of_ref(&self, reference: &str) -> impl Iterator<Item = (&String, &Arc<Record>)> {
        let names = self.by_ref.get(reference).into_iter().flatten();
        names.filter_map(|name| self.records.get_key_value(name))
    }

    /// Adds a record, or replaces the one with this key.
    pub(super) fn put(&mut self, key: String, record: Record) {
        self.remove(&key);
        if let Some(parent) = &record.parent {
            *self.children.entry(parent.clone()).or_default() += 1;
        }
        if let Some(read) = self.read_by(&record) {
            *self.readers.entry(read).or_default() += 1;
        }
        if let Some(reference) = committed_ref(&record) {
            let names = self.by_ref.entry(reference.clone()).or_default();
            names.push(key.clone());
        }
        self.records.insert(key, Arc::new(record));
    }

    pub(super) fn remove(&mut self, key: &str) {
        let Some(record) = self.records.remove(key) else {
            return;
        };
        if let Some(parent) = &record.parent {
            count_down(&mut self.children, parent);
        }
        if let Some(read) = self.read_by(&record) {
            count_down(&mut self.readers, &read);
        }
        if let Some(reference) = committed_ref(&record)
            && let Some(names) = self.by_ref.get_mut(reference)
        {
            names.retain(|name| name != key);
            if names.is_empty() {
                self.by_ref.remove(reference);
            }
        }
    }
}

fn committed_ref(record: &Record) -> Option<&String> {
    let is_committed = record.kind == Kind::Committed;
    is_committed.then(|| record.labels.get(REF_LABEL)).flatten()
}

fn count_down<K, Q>(counts: &mut HashMap<K, usize>, key: &Q)
where
    K: Hash + Eq + Borrow<Q>,
    Q: Hash + Eq + ?Sized,
{
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind, parent: Option<&str>, volume: u64) -> Record {
        let labels = Labels::from([(REF_LABEL.to_owned(), "sha256:1".to_owned())]);
        Record::new(kind, parent.map(str::to_owned), labels, VolumeId(volume))
    }

    #[test]
    fn a_record_survives_being_stored_and_a_newer_one_is_refused() {
        let stored = record(Kind::Active, Some("below"), 7);
        let value = serde_json::to_vec(&stored).unwrap();
        assert_eq!(Record::parse(&value).unwrap(), stored);
        assert!(matches!(
            Record::parse(br#"{"version":3,"odd":[]}"#),
            Err(RecordFault::Version(3))
        ));
        assert!(matches!(Record::parse(b"{"), Err(RecordFault::Json(_))));
        let contradicts = |change: &dyn Fn(&mut Record)| {
            let mut wrong = stored.clone();
            change(&mut wrong);
            let value = serde_json::to_vec(&wrong).unwrap();
            let parsed = Record::parse(&value);
            assert!(
                matches!(parsed, Err(RecordFault::Contradiction)),
                "{parsed:?}"
            );
        };
        contradicts(&|record| record.mounts = MountMode::Overlay);
        contradicts(&|record| record.version = VERSION_OF_OVERLAYS);
        contradicts(&|record| {
            record.set_mounts(MountMode::Overlay);
            record.kind = Kind::Committed;
        });
    }

    #[test]
    fn an_overlay_is_refused_by_readers_that_do_not_know_it_and_reads_its_parent() {
        let mut overlay = record(Kind::Active, Some("z"), 7);
        overlay.set_mounts(MountMode::Overlay);
        let value = serde_json::to_vec(&overlay).unwrap();
        assert_eq!(Record::parse(&value).unwrap(), overlay);
        let stored: serde_json::Value = serde_json::from_slice(&value).unwrap();
        assert_eq!(stored["version"], VERSION_OF_OVERLAYS);
        // The parent's record comes later.
        let parent = record(Kind::Committed, None, 1);
        let mut index = Index::of(vec![("a".into(), overlay.clone()), ("z".into(), parent)]);
        assert_eq!(index.readers(VolumeId(1)), 1);
        assert_eq!(index.read_by(&overlay), Some(VolumeId(1)));
        index.remove("a");
        assert_eq!(index.readers(VolumeId(1)), 0);
        overlay.set_mounts(MountMode::Dir);
        assert_eq!((overlay.version, index.read_by(&overlay)), (VERSION, None));
    }

    #[test]
    fn the_index_counts_children_views_and_layers_and_forgets_them() {
        let mut index = Index::default();
        index.put("p".into(), record(Kind::Committed, None, 1));
        index.put("a".into(), record(Kind::Active, Some("p"), 2));
        index.put("v".into(), record(Kind::View, Some("p"), 1));
        // An update replaces the record, and counts nothing twice.
        index.put("v".into(), record(Kind::View, Some("p"), 1));
        assert_eq!(index.children("p"), 2);
        assert_eq!(index.readers(VolumeId(1)), 1);
        let of_ref: Vec<_> = index.of_ref("sha256:1").map(|(name, _)| name).collect();
        assert_eq!(of_ref, ["p"]);
        for key in ["a", "v", "p", "p"] {
            index.remove(key);
        }
        assert_eq!(index.children("p") + index.readers(VolumeId(1)), 0);
        assert_eq!(index.of_ref("sha256:1").count(), 0);
    }
}
