//! Overlay roots: an active snapshot whose own volume holds only what it changes of a frozen one.
//!
//! The frozen volume is shown as for a View, so that all Views and overlays of it share one mount;
//! the own volume is shown as any root. The overlay itself is mounted by whoever gets its options,
//! often in another mount namespace, where this process does not see it: what this module makes of
//! an overlay root, it makes of a snapshot of the own volume.
//!
//! # Invariants
//! - The frozen volume stays shown as long as the caller knows an overlay of it (`Roots::release`).

use super::{LayerOptions, RootUse, Roots, Sealed};
use crate::error::Result;
use crate::layers::{Sizing, Upper};
use crate::mounts::{WorkVolumes, overlay};
use cowshed_engine::Volume;
use cowshed_format::base::VolumeId;
use cowshed_oci::{LayerSummary, LayerWriter};
use std::io::Write;

impl Roots {
    /// Shows the overlay of `lower`, which is frozen, with the changes in `volume`; returns the
    /// options with which it is mounted.
    ///
    /// # Errors
    /// Any error of the pool and the host.
    pub fn overlay(&self, volume: &Volume, lower: &Volume) -> Result<Vec<String>> {
        let below = self.mount(lower, RootUse::View)?;
        self.keep(lower);
        let own = self.mount(volume, RootUse::Container)?;
        let prepared = overlay::prepare(&below, &own);
        prepared.map_err(|error| self.mounts.explain(error))?;
        Ok(overlay::options(&below, &own))
    }

    /// Has the host keep one copy of what is read from `lower`, if that is mounted: the file
    /// system's, which the overlays over it share.
    pub fn keep(&self, lower: &Volume) {
        if let Some(mounted) = &mut self.of(lower.id()).lock().mounted {
            mounted.kept.get_or_insert_with(|| lower.kept_by_reader());
        }
    }

    /// Returns the own volume that the options of an overlay's mount name. They may name other
    /// folders, too: see [`is_overlay_of`](Self::is_overlay_of).
    #[must_use]
    pub fn overlay_at(&self, options: &[String]) -> Option<VolumeId> {
        self.at(&overlay::own_folder(options)?)
    }

    /// Returns true if the options name the folders of these volumes and no others.
    #[must_use]
    pub fn is_overlay_of(&self, options: &[String], own: VolumeId, lower: VolumeId) -> bool {
        let folders = |options: &[String]| -> Vec<String> {
            let named = |option: &&String| {
                let name = option.split_once('=').map_or("", |(name, _)| name);
                name.ends_with("dir") || name.starts_with("lowerdir")
            };
            let mut named: Vec<_> = options.iter().filter(named).cloned().collect();
            named.sort_unstable();
            named
        };
        folders(options) == folders(&overlay::options(&self.path(lower), &self.path(own)))
    }

    /// Makes a frozen volume of an overlay root as it is now: a clone of `lower` with the changes
    /// applied. The caller must flush the pool before it reports success.
    ///
    /// # Errors
    /// As [`seal`](Self::seal).
    pub fn seal_overlay(&self, volume: &Volume, lower: &Volume, sizing: Sizing) -> Result<Sealed> {
        let upper = self.upper(volume, lower)?;
        let committed = upper.commit(sizing);
        let committed = committed.map_err(|error| self.mounts.explain(error))?;
        Ok(Sealed::Copy(committed.into_volume()))
    }

    /// Writes the changes of an overlay root to `out` as a layer. It may be in use.
    ///
    /// # Errors
    /// Any error of the pool and the host, and `Oci` with errors of `out`.
    pub fn write_overlay_changes<W: Write>(
        &self,
        lower: &Volume,
        volume: &Volume,
        out: W,
        options: LayerOptions,
    ) -> Result<(W, LayerSummary)> {
        let layer = LayerWriter::new(out, options.compression)?.not_after(options.latest);
        self.upper(volume, lower)?.write(layer)
    }

    /// Takes the changes of an overlay root at one instant.
    fn upper(&self, volume: &Volume, lower: &Volume) -> Result<Upper<'_>> {
        {
            let root = self.of(volume.id());
            // A file system that somebody has unmounted is written out through a mount that is seen.
            self.show_again(volume, &mut root.lock())?;
        }
        let mut work = WorkVolumes::new(self.pool());
        let snapshot = self.root_at_an_instant(volume, &mut work)?;
        Upper::of_snapshot(&self.layers, lower.clone(), snapshot, work)
    }
}
