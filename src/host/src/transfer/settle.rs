//! Giving a received set its names and records.
//!
//! # Invariants
//! - A plan is made, and everything that can be refused is refused, before the data comes.
//! - Names and records come in one transaction, with the catalogue locked.

use super::gather::chain_id_of;
use super::{CONTAINER, LAYER, RECIPE, TEMPLATE, Transfers, is_reserved};
use crate::containers::CreatedContainer;
use crate::error::{Error, Kind, Result};
use crate::mounts::random_hex;
use crate::record::{self, ContainerRecord, ImageRecord};
use cowshed_engine::{Labels, Name, Transaction};
use cowshed_format::base::cancel;
use cowshed_oci::{Digest, ImageConfig, Reference};
use cowshed_stream::wire::{Entry, EntryKind, Member, MemberKind, SetHead};
use cowshed_stream::{Arrived, Fate, Identity};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The names and records that a set is to get.
pub struct Plan {
    /// The treatment of each member.
    pub fates: Vec<Fate>,
    images: BTreeMap<Digest, ImageRecord>,
    references: Vec<(Reference, Digest)>,
    /// The layers of the images.
    layers: HashSet<Digest>,
    /// The containers, by the names of their volumes in the stream.
    containers: HashMap<Name, ContainerRecord>,
    container_names: HashSet<Name>,
}

/// A set that was received.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReceivedSet {
    /// The names of the volumes and snapshots that came, but for those of images and containers.
    pub volumes: Vec<String>,
    /// The ids of the images.
    pub images: Vec<Digest>,
    /// The names that the images got.
    pub names: Vec<String>,
    /// The containers.
    pub containers: Vec<CreatedContainer>,
}

impl Transfers<'_> {
    /// Decides what becomes of a set whose names get `prefix`.
    ///
    /// # Errors
    /// `SetFault`, `Record`, and others for a stream that breaks a rule; `ContainerExists`,
    /// `ReservedVolume`; `InvalidName` for a name that gets too long.
    pub fn plan(&self, head: &SetHead, prefix: &str) -> Result<Plan> {
        let mut plan = Plan {
            fates: Vec::with_capacity(head.members.len()),
            images: BTreeMap::new(),
            references: Vec::new(),
            layers: HashSet::new(),
            containers: HashMap::new(),
            container_names: HashSet::new(),
        };
        for entry in &head.entries {
            if entry.kind == EntryKind::Image {
                let (id, image) = image_of(entry)?;
                plan.layers
                    .extend(image.layers.iter().map(|layer| layer.chain_id));
                plan.images.insert(id, image);
            }
        }
        for entry in &head.entries {
            match entry.kind {
                EntryKind::Image => {}
                EntryKind::Reference => {
                    let reference = reference_of(entry, prefix)?;
                    plan.references.push(reference);
                }
                EntryKind::Container => self.plan_container(entry, prefix, &mut plan)?,
            }
        }
        for member in &head.members {
            cancel::check().map_err(cowshed_engine::Error::from)?;
            let fate = self.fate(member, prefix, &plan)?;
            plan.fates.push(fate);
        }
        let comes: HashSet<Name> = head.members.iter().map(|it| it.name.clone()).collect();
        self.check_whole(&plan, &comes, |sent_as, _| comes.contains(sent_as))?;
        Ok(plan)
    }

    fn plan_container(&self, entry: &Entry, prefix: &str, plan: &mut Plan) -> Result<()> {
        let mut container: ContainerRecord =
            record::parse(Kind::Container, &entry.key, &entry.value)?;
        // The id becomes part of the names of a volume and of a directory.
        if Digest::from_hex(&container.id).is_none() || container.id.as_bytes() != entry.key {
            return Err(Error::SetFault(
                "a container's id is not 64 hexadecimal digits",
            ));
        }
        let sent_as = record::container_volume_name(&container.id)?;
        let name = Name::new(&format!("{prefix}{}", container.name))?;
        if record::is_container_name_taken(self.pool, &name) {
            return Err(Error::ContainerExists(name));
        }
        if !plan.container_names.insert(name.clone()) {
            return Err(Error::SetFault("two of its containers have one name"));
        }
        container.name = name.to_string();
        if self.pool.volume(sent_as.as_str()).is_ok() {
            // It is a second copy of the container.
            container.id = random_hex::<32>()?;
        }
        plan.containers.insert(sent_as, container);
        Ok(())
    }

    fn fate(&self, member: &Member, prefix: &str, plan: &Plan) -> Result<Fate> {
        let name = member.name.as_str();
        if name.starts_with(LAYER) || name.starts_with(TEMPLATE) {
            if member.kind != MemberKind::Snapshot {
                return Err(Error::SetFault("a layer is listed as a writable volume"));
            }
            let chain_id = chain_id_of(&member.name);
            let Some(chain_id) = chain_id.filter(|id| plan.layers.contains(id)) else {
                return Ok(Fate::Base);
            };
            return match record::layer_volume(self.pool, chain_id)? {
                Some(theirs) if Identity::of(self.pool, &theirs)? != member.identity => {
                    Ok(Fate::Base)
                }
                _ => Ok(Fate::Named(member.name.clone())),
            };
        }
        if name.starts_with(CONTAINER) {
            let container = plan.containers.get(&member.name);
            let container = container.filter(|_| member.kind == MemberKind::Volume);
            let container = container.ok_or(Error::SetFault("a container has no record"))?;
            return Ok(Fate::Named(record::container_volume_name(&container.id)?));
        }
        if name.starts_with(RECIPE) {
            return Ok(Fate::Base);
        }
        let named = Name::new(&format!("{prefix}{name}"))?;
        if is_reserved(name) || is_reserved(named.as_str()) {
            return Err(Error::ReservedVolume(named));
        }
        Ok(Fate::Named(named))
    }

    /// Checks that no image lacks a layer, no container its root or its image, and no name its
    /// image, if volumes of the names `comes` are added to the pool. `has_root` tells it of a
    /// container, by the name of its volume in the stream.
    fn check_whole(
        &self,
        plan: &Plan,
        comes: &HashSet<Name>,
        has_root: impl Fn(&Name, &ContainerRecord) -> bool,
    ) -> Result<()> {
        let has_image = |image: Digest| -> Result<bool> {
            Ok(plan.images.contains_key(&image) || record::image(self.pool, image)?.is_some())
        };
        for image in plan.images.values() {
            for layer in &image.layers {
                let name = record::layer_volume_name(layer.chain_id)?;
                let is_there = comes.contains(&name)
                    || record::layer_volume(self.pool, layer.chain_id)?.is_some();
                if !is_there {
                    return Err(Error::SetFault("an image lacks a layer"));
                }
            }
        }
        for (sent_as, container) in &plan.containers {
            if !has_root(sent_as, container) {
                return Err(Error::SetFault("a container has no root"));
            }
            if !has_image(container.image)? {
                let image = container.image.to_string();
                return Err(Error::not_found(Kind::Image, &image));
            }
        }
        for (_, image) in &plan.references {
            if !has_image(*image)? {
                return Err(Error::SetFault("an image name refers to no image"));
            }
        }
        Ok(())
    }

    /// Gives the members their names and writes the records. Durable when it returns.
    ///
    /// # Errors
    /// As `plan`, for what has changed since; any error of the pool. What came is kept then.
    pub fn settle(&self, mut arrived: Arrived<'_>, plan: Plan) -> Result<ReceivedSet> {
        {
            let _held = self.host.map(|host| host.images().lock_catalogue());
            // Other commands may have brought layers, or removed some, meanwhile.
            for arrived in arrived.members.iter_mut().filter(|arrived| arrived.is_new) {
                let chain_id = chain_id_of(&arrived.member.name);
                if let Some(chain_id) = chain_id.filter(|id| plan.layers.contains(id)) {
                    arrived.fate = match record::layer_volume(self.pool, chain_id)? {
                        Some(_) => Fate::Base,
                        None => Fate::Named(arrived.member.name.clone()),
                    };
                }
            }
            self.check_arrived(&arrived, &plan)?;
            let mut transaction = self.pool.transaction();
            arrived.settle(&mut transaction)?;
            self.put_records(&mut transaction, &arrived, &plan)?;
            transaction.commit()?;
        }
        self.pool.flush()?;
        Ok(report(&arrived, plan))
    }

    /// Checks what has arrived, under the lock of the catalogue, as `check_whole` does.
    fn check_arrived(&self, arrived: &Arrived<'_>, plan: &Plan) -> Result<()> {
        let new = arrived.members.iter().filter(|arrived| arrived.is_new);
        let comes: HashSet<Name> = new
            .filter_map(|arrived| match &arrived.fate {
                Fate::Named(name) => Some(name.clone()),
                Fate::Base => None,
            })
            .collect();
        self.check_whole(plan, &comes, |_, container| {
            record::container_volume_name(&container.id).is_ok_and(|name| comes.contains(&name))
        })
    }

    fn put_records(
        &self,
        transaction: &mut Transaction,
        arrived: &Arrived<'_>,
        plan: &Plan,
    ) -> Result<()> {
        for (id, image) in &plan.images {
            if record::image(self.pool, *id)?.is_none() {
                record::put_image(transaction, *id, image)?;
            }
        }
        let names = record::names(self.pool)?;
        for (reference, image) in &plan.references {
            record::put_reference(transaction, &names, reference, *image);
        }
        for arrived in arrived.members.iter().filter(|arrived| arrived.is_new) {
            let Some(container) = plan.containers.get(&arrived.member.name) else {
                continue;
            };
            let name = Name::new(&container.name)?;
            if record::is_container_name_taken(self.pool, &name) {
                return Err(Error::ContainerExists(name));
            }
            let label = ("cowshed.container".to_owned(), container.name.clone());
            transaction.set_labels(arrived.volume.id(), Labels::from([label]));
            record::put_container(transaction, container)?;
        }
        Ok(())
    }
}

/// Returns the image in an entry, whose parts agree with each other.
fn image_of(entry: &Entry) -> Result<(Digest, ImageRecord)> {
    let image: ImageRecord = record::parse(Kind::Image, &entry.key, &entry.value)?;
    let config = ImageConfig::parse(image.config.clone().into_bytes())?;
    let id = config.digest();
    if id.to_string().as_bytes() != entry.key {
        return Err(Error::SetFault(
            "an image's id is not that of its configuration",
        ));
    }
    let diff_ids = image.layers.iter().map(|layer| layer.diff_id);
    let chain_ids = image.layers.iter().map(|layer| layer.chain_id);
    if !diff_ids.eq(config.diff_ids().iter().copied()) || !chain_ids.eq(config.chain_ids()) {
        return Err(Error::SetFault(
            "an image's layers are not those of its configuration",
        ));
    }
    Ok((id, image))
}

/// Returns the name in an entry with the prefix, and the image that it leads to.
fn reference_of(entry: &Entry, prefix: &str) -> Result<(Reference, Digest)> {
    let not_text = |_| Error::SetFault("a name of an image is not text");
    let name = std::str::from_utf8(&entry.key).map_err(not_text)?;
    let image = std::str::from_utf8(&entry.value).map_err(not_text)?;
    let reference = Reference::parse(&format!("{prefix}{name}"))?;
    Ok((reference, image.parse()?))
}

fn report(arrived: &Arrived<'_>, plan: Plan) -> ReceivedSet {
    let mut set = ReceivedSet {
        images: plan.images.keys().copied().collect(),
        names: plan
            .references
            .iter()
            .map(|(reference, _)| reference.short())
            .collect(),
        ..ReceivedSet::default()
    };
    for arrived in arrived.members.iter().filter(|arrived| arrived.is_new) {
        if let Fate::Named(name) = &arrived.fate
            && !is_reserved(name.as_str())
        {
            set.volumes.push(name.to_string());
        }
    }
    let containers = plan
        .containers
        .into_values()
        .map(|container| CreatedContainer {
            id: container.id,
            name: container.name,
        });
    set.containers.extend(containers);
    set.containers.sort_by(|a, b| a.name.cmp(&b.name));
    set
}
