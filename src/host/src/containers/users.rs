//! The containers and images that use a volume, for messages about volumes.

use crate::error::Result;
use crate::record;
use cowshed_engine::Pool;
use std::collections::BTreeMap;

/// Containers and images by the name of the volume that they use.
#[derive(Clone, Debug, Default)]
pub struct VolumeUsers {
    by_volume: BTreeMap<String, Vec<String>>,
}

impl VolumeUsers {
    /// Returns all users of the pool's volumes.
    ///
    /// # Errors
    /// `Record` if a record is unreadable.
    pub fn of(pool: &Pool) -> Result<Self> {
        let mut users = Self::default();
        for container in record::containers(pool)? {
            let volume = record::container_volume_name(&container.id)?;
            users.add(volume.as_str(), format!("container {}", container.name));
        }
        let stored = record::names(pool)?;
        for (id, image) in record::images(pool)? {
            let names = stored.iter().filter(|name| name.image == id);
            let mut names: Vec<String> = names.map(|name| name.shown.clone()).collect();
            if names.is_empty() {
                names.push(id.to_string());
            }
            for layer in &image.layers {
                for volume in [
                    record::layer_volume_name(layer.chain_id)?,
                    record::recipe_volume_name(layer.chain_id)?,
                ] {
                    for name in &names {
                        users.add(volume.as_str(), format!("image {name}"));
                    }
                }
            }
        }
        Ok(users)
    }

    /// Adds a user that only another crate knows.
    pub fn add(&mut self, volume: &str, user: String) {
        self.by_volume
            .entry(volume.to_owned())
            .or_default()
            .push(user);
    }

    /// Returns the users of the volume of this name, as `container NAME` or `image NAME`.
    #[must_use]
    pub fn of_volume(&self, name: &str) -> &[String] {
        self.by_volume.get(name).map_or(&[], Vec::as_slice)
    }
}
