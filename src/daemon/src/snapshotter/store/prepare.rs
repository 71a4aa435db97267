//! Creating snapshots: an active one is a clone of its parent's volume, or of an empty file system if
//! it is an overlay; a view uses the parent's volume itself.

use super::super::MountMode;
use super::super::convert;
use super::super::error::{Error, Result};
use super::super::record::{Index, Kind, Labels, REF_LABEL, Record};
use super::super::wire::{MountsResponse, PrepareRequest};
use super::Store;
use cowshed_engine::{Transaction, Volume};
use cowshed_format::base::VolumeId;
use std::sync::Arc;
use std::thread;

/// The prefix of the keys that containerd uses to unpack a layer (`UnpackKeyPrefix`).
const UNPACK_PREFIX: &str = "extract-";

/// The snapshot that a call asks for.
struct Wanted {
    kind: Kind,
    key: String,
    parent: Option<String>,
    labels: Labels,
    /// True if it is to be filled with a layer.
    fill: bool,
}

impl Wanted {
    /// Returns the form in which the snapshot is handed out: a folder, if it cannot or need not be
    /// an overlay.
    const fn possible(&self, mounts: MountMode) -> MountMode {
        let is_overlay = matches!(self.kind, Kind::Active) && !self.fill && self.parent.is_some();
        match mounts {
            MountMode::Overlay if !is_overlay => MountMode::Dir,
            mounts => mounts,
        }
    }
}

/// Returns true if the snapshot is to be filled with a layer, and committed or discarded after
/// that: it has the layer's label, or a key of the form that containerd uses for unpacking,
/// `extract-NUMBER DIGEST`. A container's key is its id, which has no blank.
fn is_to_be_filled(key: &str, labels: &Labels) -> bool {
    let last = key.rsplit_once('/').map_or(key, |(_, last)| last);
    let unpacks = last.strip_prefix(UNPACK_PREFIX);
    let unpacks = unpacks.and_then(|rest| rest.split_once(' '));
    labels.contains_key(REF_LABEL) || unpacks.is_some_and(|(_, digest)| digest.contains(':'))
}

/// The origin of a new snapshot's volume.
struct Source {
    origin: Origin,
    /// The parent's volume, if there is a parent.
    parent: Option<VolumeId>,
}

enum Origin {
    /// A clone of this volume.
    Clone(Volume),
    /// This volume, which has a name under `work/`.
    Ready(VolumeId),
    /// No volume of its own: it uses this one.
    Shared(Volume),
}

impl Store {
    pub(super) fn make(&self, kind: Kind, request: PrepareRequest) -> Result<MountsResponse> {
        convert::check_key("the key", &request.key)?;
        let labels = convert::labels(request.labels)?;
        let wanted = Wanted {
            kind,
            parent: convert::parent(request.parent)?,
            fill: kind == Kind::Active && is_to_be_filled(&request.key, &labels),
            key: request.key,
            labels,
        };
        let mounts = convert::wanted_mounts(&wanted.labels)?.unwrap_or(self.options.mounts);
        let mounts = wanted.possible(mounts);
        let _held = self.keys.lock(&wanted.key);
        self.check(&self.index.read(), &wanted)?;
        let source = self.source(&wanted, mounts)?;
        let begun = self.begin(&wanted, &source, |record| record.set_mounts(mounts));
        if let (Err(_), Origin::Ready(volume)) = (&begun, &source.origin) {
            self.reaper.volume(*volume);
        }
        let record = begun?;
        let shown = self.show_durably(&record, wanted.fill);
        if shown.is_err() {
            // The first failure is the one to report.
            let _ = self.withdraw(&wanted.key, &record);
        }
        shown
    }

    /// Returns an error for a snapshot that cannot be created, checked in containerd's order.
    fn check(&self, index: &Index, wanted: &Wanted) -> Result<()> {
        if let Some(parent) = &wanted.parent {
            let found = index.get(parent);
            let found = found.ok_or_else(|| Error::NotFound(parent.as_str().into()))?;
            if found.kind != Kind::Committed {
                return Err(Error::ParentNotCommitted(parent.as_str().into()));
            }
        }
        if index.get(&wanted.key).is_some() {
            return Err(Error::Exists(wanted.key.as_str().into()));
        }
        if wanted.fill
            && let Some(reference) = wanted.labels.get(REF_LABEL)
            && let Some((name, _)) = index
                .of_ref(reference)
                .find(|(_, record)| record.parent == wanted.parent)
        {
            // The caller finds that snapshot by the label, and need not fill another one.
            return Err(Error::Exists(name.as_str().into()));
        }
        Ok(())
    }

    fn source(&self, wanted: &Wanted, mounts: MountMode) -> Result<Source> {
        let size_bytes = convert::wanted_size(&wanted.labels)?;
        let Some(parent) = &wanted.parent else {
            let origin = if wanted.kind == Kind::View {
                // It is empty, whatever its size.
                Origin::Shared(self.host.roots().empty(self.options.size_bytes)?)
            } else {
                self.empty(size_bytes)?
            };
            return Ok(Source {
                origin,
                parent: None,
            });
        };
        let below = self.volume_of(&*self.record(parent)?)?;
        let parent_volume = Some(below.id());
        let origin = if mounts == MountMode::Overlay {
            self.empty(size_bytes)?
        } else {
            self.origin(wanted, parent, below, size_bytes, mounts)?
        };
        Ok(Source {
            origin,
            parent: parent_volume,
        })
    }

    /// Returns the origin of a volume with an empty file system.
    fn empty(&self, size_bytes: Option<u64>) -> Result<Origin> {
        let usual_bytes = self.options.size_bytes;
        let roots = self.host.roots();
        Ok(match size_bytes.filter(|wanted| *wanted != usual_bytes) {
            Some(size_bytes) => Origin::Ready(roots.fresh(size_bytes)?.id()),
            None => Origin::Clone(roots.empty(usual_bytes)?),
        })
    }

    fn origin(
        &self,
        wanted: &Wanted,
        parent: &str,
        below: Volume,
        size_bytes: Option<u64>,
        mounts: MountMode,
    ) -> Result<Origin> {
        if wanted.kind == Kind::View {
            return Ok(Origin::Shared(below));
        }
        let size_bytes = match size_bytes {
            Some(size_bytes) => size_bytes,
            // The writer need not be our differ, which would grow the file system.
            None => {
                let usual_bytes = self.options.size_bytes;
                let roomy = self.host.layers().size_with_room(&below, usual_bytes)?;
                let default = if wanted.fill { 0 } else { usual_bytes };
                roomy.unwrap_or(default)
            }
        };
        if size_bytes > below.size_bytes() {
            let grown = self.host.roots().grown(&below, size_bytes)?;
            return Ok(Origin::Ready(grown.id()));
        }
        // A device is handed out as it is; we do not mount it.
        if wanted.fill
            && mounts == MountMode::Dir
            && let Some(leftover) = self.leftover_on(parent)
        {
            return Ok(Origin::Ready(leftover));
        }
        Ok(Origin::Clone(below))
    }

    /// Returns the volume that the commit of the parent has left, if no process uses it any more:
    /// it is mounted, and holds exactly what the parent holds.
    fn leftover_on(&self, parent: &str) -> Option<VolumeId> {
        let id = self.reaper.take_leftover(parent)?;
        let volume = self.pool().volume_by_id(id).ok()?;
        let is_alone = self.host.mounts().check_complete(&volume);
        match is_alone.and_then(|()| self.host.roots().is_alone(&volume)) {
            Ok(true) => Some(id),
            Ok(false) => {
                self.reaper.volume(id);
                None
            }
            Err(error) => {
                tracing::warn!(%error, "cannot continue with a mounted layer");
                self.reaper.volume(id);
                None
            }
        }
    }

    /// Commits the record together with its volume.
    fn begin(
        &self,
        wanted: &Wanted,
        source: &Source,
        finish: impl FnOnce(&mut Record),
    ) -> Result<Arc<Record>> {
        let name = self.host.roots().new_name()?;
        let mut index = self.index.write();
        // Another call may have changed the index meanwhile.
        self.check(&index, wanted)?;
        if let Some(parent) = &wanted.parent
            && index.get(parent).map(|found| found.volume()) != source.parent
        {
            // Another snapshot has its name by now.
            return Err(Error::NotFound(parent.as_str().into()));
        }
        let mut transaction: Transaction = self.pool().transaction();
        let volume = match &source.origin {
            Origin::Clone(below) => transaction.clone_volume(below.id(), &name),
            Origin::Ready(volume) => {
                transaction.rename(*volume, &name);
                *volume
            }
            Origin::Shared(volume) => volume.id(),
        };
        let (parent, labels) = (wanted.parent.clone(), wanted.labels.clone());
        let mut record = Record::new(wanted.kind, parent, labels, volume);
        record.fill = wanted.fill;
        finish(&mut record);
        record.put(&mut transaction, &wanted.key)?;
        transaction.commit()?;
        index.put(wanted.key.clone(), record.clone());
        Ok(Arc::new(record))
    }

    /// Shows the snapshot while making it durable. A snapshot that is being filled need not be
    /// durable: if it is lost, so is the data filled in, and containerd fills a new one.
    fn show_durably(&self, record: &Record, fill: bool) -> Result<MountsResponse> {
        if fill {
            return self.show(record);
        }
        thread::scope(|scope| {
            let flush = || self.pool().flush();
            let flushing = thread::Builder::new().spawn_scoped(scope, flush);
            let shown = self.show(record);
            let Ok(flushing) = flushing else {
                // The host cannot start another thread.
                self.pool().flush()?;
                return shown;
            };
            match flushing.join() {
                Ok(flushed) => flushed?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
            shown
        })
    }

    /// Undoes `begin`.
    fn withdraw(&self, key: &str, record: &Record) -> Result<()> {
        let read = {
            let mut index = self.index.write();
            self.give_up(key, record)?;
            let read = index.read_by(record);
            index.remove(key);
            read
        };
        self.clear_away(record, read);
        Ok(())
    }
}
