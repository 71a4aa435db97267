//! The members and records of a set that is sent.
//!
//! A volume that can be written is sent as a snapshot of it, which goes when the set does. If its
//! file system is mounted, it is frozen for that moment.

use super::{CONTAINER, LAYER, NOT_SENT, TEMPLATE, Transfers};
use crate::error::{Error, Kind, Result};
use crate::mounts::{WorkVolumes, random_hex};
use crate::record::{self, ContainerRecord, ImageRecord};
use cowshed_engine::{Labels, Name, RecordKind, Volume, VolumeId, VolumeInfo, VolumeKind};
use cowshed_oci::Digest;
use cowshed_stream::receive::UNFINISHED;
use cowshed_stream::wire::{Entry, EntryKind, MemberKind};
use cowshed_stream::{SetMember, bookmark, send_set};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen<'a> {
    /// Everything in the pool.
    All,
    /// These volumes and snapshots, what they descend from, and what descends from them, with the
    /// images and containers that these are.
    Volumes(&'a [String]),
    /// These images.
    Images(&'a [String]),
    /// These containers and their images.
    Containers(&'a [String]),
}

/// A set that is ready to be sent. The snapshots that were taken for it go when this does.
pub struct Gathered<'a> {
    /// The members.
    pub members: Vec<SetMember>,
    /// The records that belong to them.
    pub entries: Vec<Entry>,
    _work: WorkVolumes<'a>,
}

/// The volumes and records of a set, by id.
#[derive(Default)]
struct Set {
    volumes: BTreeSet<VolumeId>,
    images: BTreeMap<Digest, ImageRecord>,
    containers: Vec<ContainerRecord>,
}

/// The forest of the pool.
struct Forest {
    parents: HashMap<VolumeId, Option<VolumeId>>,
    infos: HashMap<VolumeId, VolumeInfo>,
}

impl<'a> Transfers<'a> {
    /// Finds what belongs to a set, and takes snapshots of what can be written. The receiver has
    /// `from`, a snapshot or an image, with all that it stands on.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`; `NotSent` for a volume that only this host has a use for;
    /// `NothingInCommon`; any error of taking the snapshots.
    pub fn gather(&self, chosen: Chosen<'_>, from: Option<&str>) -> Result<Gathered<'a>> {
        let forest = Forest::of(self);
        let mut set = self.choose(chosen, &forest)?;
        let is_open = matches!(chosen, Chosen::All | Chosen::Volumes(_));
        self.add_images(&mut set, is_open, &forest)?;
        let there = match from {
            Some(from) => self.there(chosen, from, &set, &forest)?,
            None => BTreeSet::new(),
        };
        self.leave_out(&mut set, &there, &forest);
        let mut work = WorkVolumes::new(self.pool);
        let mut members = Vec::with_capacity(set.volumes.len());
        for id in &set.volumes {
            let Some(info) = forest.infos.get(id) else {
                continue;
            };
            members.push(self.member(info, &set, there.contains(id), &mut work)?);
        }
        Ok(Gathered {
            members,
            entries: self.entries(&set)?,
            _work: work,
        })
    }

    fn choose(&self, chosen: Chosen<'_>, forest: &Forest) -> Result<Set> {
        let mut set = Set::default();
        match chosen {
            Chosen::All => set.volumes.extend(forest.infos.keys()),
            Chosen::Volumes(names) => {
                for name in names {
                    let volume = self.pool.volume(name)?;
                    bookmark::refuse(self.pool, &volume)?;
                    let called = volume.name();
                    if is_not_sent(&called) {
                        return Err(Error::NotSent(called));
                    }
                    set.volumes.extend(forest.line(volume.id()));
                    set.volumes.extend(forest.descendants(volume.id()));
                }
            }
            Chosen::Images(names) => {
                for name in names {
                    let found = record::find_image(self.pool, name)?;
                    set.images.insert(found.id, found.record);
                }
            }
            Chosen::Containers(names) => {
                for name in names {
                    let container = record::find_container(self.pool, name)?;
                    set.volumes
                        .extend(forest.line(container.volume(self.pool)?.id()));
                }
            }
        }
        Ok(set)
    }

    /// Adds the containers whose roots are in the set, their images, and the layers of all images;
    /// if the set `is_open`, also the images whose layers are all in it.
    fn add_images(&self, set: &mut Set, is_open: bool, forest: &Forest) -> Result<()> {
        let images = record::images(self.pool)?;
        for container in record::containers(self.pool)? {
            let volume = container.volume(self.pool).map(|volume| volume.id());
            if volume.is_ok_and(|id| set.volumes.contains(&id)) {
                let image = images
                    .get(&container.image)
                    .ok_or_else(|| Error::not_found(Kind::Image, &container.image.to_string()))?;
                set.images.insert(container.image, image.clone());
                set.containers.push(container);
            }
        }
        let chosen = set.volumes.clone();
        for (id, image) in images {
            let mut volumes = Vec::with_capacity(image.layers.len());
            for layer in &image.layers {
                let volume = record::layer_volume(self.pool, layer.chain_id)?;
                volumes.extend(volume.map(|volume| volume.id()));
            }
            let is_there = volumes.len() == image.layers.len()
                && !volumes.is_empty()
                && volumes.iter().all(|id| chosen.contains(id));
            if is_there && is_open || set.images.contains_key(&id) {
                if volumes.len() < image.layers.len() {
                    return Err(Error::not_found(Kind::Layer, &id.to_string()));
                }
                let lines = volumes.into_iter().flat_map(|id| forest.line(id));
                set.volumes.extend(lines.collect::<Vec<_>>());
                set.images.insert(id, image);
            }
        }
        Ok(())
    }

    /// Returns the members that the receiver has.
    fn there(
        &self,
        chosen: Chosen<'_>,
        from: &str,
        set: &Set,
        forest: &Forest,
    ) -> Result<BTreeSet<VolumeId>> {
        let mut there = BTreeSet::new();
        match chosen {
            Chosen::Images(_) | Chosen::Containers(_) => {
                for layer in record::find_image(self.pool, from)?.record.layers {
                    let volume = record::layer_volume(self.pool, layer.chain_id)?;
                    there.extend(volume.map(|volume| volume.id()));
                }
            }
            Chosen::All | Chosen::Volumes(_) => {
                let volume = self.pool.volume(from)?;
                bookmark::refuse(self.pool, &volume)?;
                there.extend(forest.line(volume.id()));
            }
        }
        there.retain(|id| {
            let info = forest.infos.get(id);
            let is_snapshot = info.is_some_and(|info| {
                info.kind == VolumeKind::Snapshot && !info.name.as_str().starts_with(TEMPLATE)
            });
            is_snapshot && set.volumes.contains(id)
        });
        if there.is_empty() {
            return Err(Error::NothingInCommon(from.into()));
        }
        Ok(there)
    }

    /// Leaves out what is not sent, and what the receiver has or gives no name if it is the base of
    /// nothing that is sent: the receiver need not have more than that.
    fn leave_out(&self, set: &mut Set, there: &BTreeSet<VolumeId>, forest: &Forest) {
        let containers: BTreeSet<String> = set
            .containers
            .iter()
            .map(|container| format!("{CONTAINER}{}", container.id))
            .collect();
        set.volumes.retain(|id| {
            let Some(info) = forest.infos.get(id) else {
                return false;
            };
            let name = info.name.as_str();
            let is_bookmark = self
                .pool
                .volume_by_id(*id)
                .is_ok_and(|volume| bookmark::refuse(self.pool, &volume).is_err());
            let is_lost = name.starts_with(CONTAINER) && !containers.contains(name);
            !is_not_sent(&info.name) && !is_bookmark && !is_lost
        });
        let bases: BTreeSet<VolumeId> = set
            .volumes
            .iter()
            .filter(|id| !there.contains(id) && !forest.is_template(**id))
            .filter_map(|id| forest.line(*id).skip(1).find(|id| set.volumes.contains(id)))
            .collect();
        let is_only_a_base = |id: &VolumeId| there.contains(id) || forest.is_template(*id);
        set.volumes
            .retain(|id| !is_only_a_base(id) || bases.contains(id));
    }

    fn member(
        &self,
        info: &VolumeInfo,
        set: &Set,
        is_there: bool,
        work: &mut WorkVolumes<'a>,
    ) -> Result<SetMember> {
        let volume = self.pool.volume_by_id(info.id)?;
        let (volume, kind) = if info.kind == VolumeKind::Snapshot {
            (volume, MemberKind::Snapshot)
        } else {
            let id = info.name.as_str().strip_prefix(CONTAINER);
            let container = id.and_then(|id| set.containers.iter().find(|it| it.id == id));
            let snapshot = match (self.host, container) {
                (Some(host), Some(container)) => {
                    host.containers().snapshot_to_send(container, work)?
                }
                (Some(host), None) => {
                    let name = host.mounts().work_name()?;
                    let snapshot = host.mounts().snapshot(&volume, &name)?;
                    work.push(snapshot.clone());
                    snapshot
                }
                (None, _) => self.plain_snapshot(&volume, work)?,
            };
            (snapshot, MemberKind::Volume)
        };
        let mut labels = info.labels.clone();
        labels.remove(UNFINISHED);
        Ok(SetMember {
            volume,
            name: info.name.clone(),
            labels,
            kind,
            is_there,
        })
    }

    /// Takes a snapshot of a volume that is not mounted; if this process is killed, the next start
    /// removes it.
    fn plain_snapshot(&self, volume: &Volume, work: &mut WorkVolumes<'a>) -> Result<Volume> {
        let name = Name::new(&format!("unfinished/{}", random_hex::<16>()?))?;
        let mut transaction = self.pool.transaction();
        let id = transaction.snapshot(volume.id(), &name);
        let label = (UNFINISHED.to_owned(), "send".to_owned());
        transaction.set_labels(id, Labels::from([label]));
        transaction.commit()?;
        let snapshot = self.pool.volume_by_id(id)?;
        work.push(snapshot.clone());
        Ok(snapshot)
    }

    fn entries(&self, set: &Set) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut add = |what, kind, stored, key: &str| {
            // Another command may have removed it meanwhile; its volume would be of no use.
            let value = self.pool.record(stored, key.as_bytes());
            let value = value.ok_or_else(|| Error::not_found(what, key))?;
            entries.push(Entry {
                kind,
                key: key.as_bytes().to_vec(),
                value: value.to_vec(),
            });
            Ok::<_, Error>(())
        };
        for id in set.images.keys() {
            let id = id.to_string();
            add(Kind::Image, EntryKind::Image, RecordKind::IMAGE, &id)?;
        }
        for container in &set.containers {
            let (kind, stored) = (EntryKind::Container, RecordKind::CONTAINER);
            add(Kind::Container, kind, stored, &container.id)?;
        }
        for name in record::names(self.pool)? {
            if set.images.contains_key(&name.image) {
                entries.push(Entry {
                    kind: EntryKind::Reference,
                    key: name.shown.into_bytes(),
                    value: name.image.to_string().into_bytes(),
                });
            }
        }
        Ok(entries)
    }
}

impl Forest {
    fn of(transfers: &Transfers<'_>) -> Self {
        let infos = transfers.pool.volumes();
        Self {
            parents: send_set::parents(transfers.pool),
            infos: infos.into_iter().map(|info| (info.id, info)).collect(),
        }
    }

    /// Returns a volume and what it descends from.
    fn line(&self, volume: VolumeId) -> impl Iterator<Item = VolumeId> + '_ {
        let parent = |id: &VolumeId| self.parents.get(id).copied().flatten();
        std::iter::successors(Some(volume), parent)
    }

    /// Returns what descends from a volume.
    fn descendants(&self, volume: VolumeId) -> Vec<VolumeId> {
        let all = self.infos.keys().copied();
        all.filter(|id| self.line(*id).any(|above| above == volume))
            .collect()
    }

    fn is_template(&self, volume: VolumeId) -> bool {
        let info = self.infos.get(&volume);
        info.is_some_and(|info| info.name.as_str().starts_with(TEMPLATE))
    }
}

fn is_not_sent(name: &Name) -> bool {
    NOT_SENT
        .iter()
        .any(|start| name.as_str().starts_with(start))
}

/// Returns the chain id in the name of a layer's volume.
pub(super) fn chain_id_of(name: &Name) -> Option<Digest> {
    name.as_str().strip_prefix(LAYER)?.parse().ok()
}
