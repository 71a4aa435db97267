//! What the volumes of a pool are to images and containers, for showing the pool as a whole.

use crate::error::Result;
use crate::record;
use cowshed_engine::Pool;
use cowshed_oci::Digest;
use std::collections::{BTreeMap, BTreeSet};

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeRole {
    /// The topmost layer of images with these names.
    Image {
        /// The names, sorted; the id of an image without a name.
        names: BTreeSet<String>,
    },
    /// A layer below the topmost one.
    Layer {
        /// Its place in an image, from 1 for the lowest.
        number: usize,
        /// A name of that image, or its id.
        image: String,
    },
    /// The root of a container.
    Container {
        /// The container's name.
        name: String,
    },
}

/// The roles of the volumes of a pool, by the volumes' names.
#[derive(Clone, Debug, Default)]
pub struct VolumeRoles {
    by_volume: BTreeMap<String, VolumeRole>,
}

impl VolumeRoles {
    /// Returns the roles of the pool's volumes.
    ///
    /// # Errors
    /// `Record` if a record is unreadable.
    pub fn of(pool: &Pool) -> Result<Self> {
        let mut roles = Self::default();
        let mut names: BTreeMap<Digest, BTreeSet<String>> = BTreeMap::new();
        for name in record::names(pool)? {
            names.entry(name.image).or_default().insert(name.shown);
        }
        for (id, image) in record::images(pool)? {
            let names = names
                .remove(&id)
                .unwrap_or_else(|| BTreeSet::from([id.to_string()]));
            let Some((top, lower)) = image.layers.split_last() else {
                continue;
            };
            for (index, layer) in lower.iter().enumerate() {
                let volume = record::layer_volume_name(layer.chain_id)?.to_string();
                let image = names.first().cloned().unwrap_or_default();
                let number = index + 1;
                let layer = VolumeRole::Layer { number, image };
                roles.by_volume.entry(volume).or_insert(layer);
            }
            roles.add_image(record::layer_volume_name(top.chain_id)?.to_string(), names);
        }
        for container in record::containers(pool)? {
            let volume = record::container_volume_name(&container.id)?.to_string();
            let name = container.name;
            let role = VolumeRole::Container { name };
            roles.by_volume.insert(volume, role);
        }
        Ok(roles)
    }

    /// Images that differ in their configuration alone have one topmost layer.
    fn add_image(&mut self, volume: String, names: BTreeSet<String>) {
        match self.by_volume.get_mut(&volume) {
            Some(VolumeRole::Image { names: known }) => known.extend(names),
            _ => {
                self.by_volume.insert(volume, VolumeRole::Image { names });
            }
        }
    }

    /// Returns the role of the volume of this name, if it has one.
    #[must_use]
    pub fn of_volume(&self, name: &str) -> Option<&VolumeRole> {
        self.by_volume.get(name)
    }
}
