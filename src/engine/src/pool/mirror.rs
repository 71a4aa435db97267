//! Which sides a mirrored pool has: adding, removing and replacing one, while the pool is in use.
//!
//! # Invariants
//! - A side that is replaced stays until the new one is good.
//! - Nothing is changed if the request is refused.

use super::create::refuse_unless_empty;
use super::handle::Pool;
use super::resync::CopyProgress;
use super::shared::Shared;
use cowshed_format::base::{BLOCK_BYTES, Error, MirrorError, Result};
use cowshed_format::device::mirror::{Found, SideReport, SideStanding, newest_label};
use cowshed_format::device::{Device, MirrorDevice};
use cowshed_format::side::PATH_BYTES_MAX;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A device that is to become a side.
pub struct NewSide<'a> {
    /// Its path, absolute.
    pub path: PathBuf,
    /// Opens or creates it, for a pool of this many bytes.
    pub open: Box<dyn FnOnce(u64) -> Result<Arc<dyn Device>> + 'a>,
    /// True if what it holds is overwritten.
    pub force: bool,
}

impl Pool {
    /// Returns the sides of the pool; `None` if it is not mirrored.
    #[must_use]
    pub fn sides(&self) -> Option<Vec<SideReport>> {
        self.shared.device.mirror().map(MirrorDevice::report)
    }

    /// Gives a pool without a mirror the label of a mirror whose only side is at `path`. It is one once
    /// it is opened again; false if it is one already.
    ///
    /// # Errors
    /// `Mirror` for a path that is too long; `Io`.
    pub fn begin_mirror(&self, path: &Path) -> Result<bool> {
        let shared = &self.shared;
        shared.check_open()?;
        if shared.device.mirror().is_some() {
            return Ok(false);
        }
        let device = Arc::clone(&shared.device) as Arc<dyn Device>;
        if newest_label(&*device).is_none() {
            let path = path.to_owned();
            MirrorDevice::new(vec![Found { path, device }])?.name_pool(shared.uuid)?;
        }
        Ok(true)
    }

    /// Adds a side, and copies everything to it; or brings a side back that was away. It counts as
    /// behind until all is copied. If `progress` stops it, it is continued by `resync`.
    ///
    /// # Errors
    /// `Mirror`, `DeviceNotEmpty` when the device cannot become a side; nothing is changed then.
    pub fn add_side(&self, new: NewSide<'_>, progress: CopyProgress<'_>) -> Result<()> {
        let shared = &self.shared;
        shared.check_open()?;
        let mirror = shared.mirror()?;
        let Some(one) = shared.begin_resync(mirror, progress) else {
            return Ok(());
        };
        let standing = mirror.report().into_iter();
        let mut standing = standing.filter(|side| side.path == new.path);
        if standing.any(|side| side.standing == SideStanding::Good) {
            return Err(MirrorError::AlreadySide { path: new.path }.into());
        }
        let path = new.path.clone();
        shared.take_in(mirror, new)?;
        drop(one);
        shared.resync_at(&path, progress)
    }

    /// Takes the side at `path` out of the mirror.
    ///
    /// # Errors
    /// `NoSuchSide`; `LastGood` when no other side has everything.
    pub fn remove_side(&self, path: &Path) -> Result<()> {
        let shared = &self.shared;
        shared.check_open()?;
        let mirror = shared.mirror()?;
        // Whoever copies to the side notices that it is away.
        shared.take_out(mirror, path)
    }

    /// Copies everything to a new side, and then takes the one at `old` out. A call that was
    /// interrupted is continued by the same call.
    ///
    /// # Errors
    /// `Degraded` when another side than `old` is not good; as `add_side` and `remove_side`.
    pub fn replace_side(
        &self,
        old: &Path,
        new: NewSide<'_>,
        progress: CopyProgress<'_>,
    ) -> Result<()> {
        let shared = &self.shared;
        shared.check_open()?;
        let mirror = shared.mirror()?;
        let Some(one) = shared.begin_resync(mirror, progress) else {
            return Ok(());
        };
        let (sides, new_path) = (mirror.report(), new.path.clone());
        if !sides.iter().any(|side| side.path == old) {
            let path = old.to_owned();
            return Err(MirrorError::NoSuchSide { path }.into());
        }
        if old == new_path {
            return Err(MirrorError::AlreadySide { path: new_path }.into());
        }
        let is_other_bad = |side: &&SideReport| {
            side.path != old && side.path != new_path && side.standing != SideStanding::Good
        };
        if let Some(other) = sides.iter().find(is_other_bad) {
            let path = other.path.clone();
            return Err(MirrorError::Degraded { path }.into());
        }
        let is_good =
            |side: &SideReport| side.path == new_path && side.standing == SideStanding::Good;
        if !sides.iter().any(is_good) {
            shared.take_in(mirror, new)?;
        }
        drop(one);
        shared.resync_at(&new_path, progress)?;
        if mirror.report().iter().any(is_good) {
            shared.take_out(mirror, old)?;
        }
        Ok(())
    }
}

impl Shared {
    pub(super) fn mirror(&self) -> Result<&MirrorDevice> {
        let mirror = self.device.mirror();
        mirror.ok_or_else(|| MirrorError::NotMirrored.into())
    }

    /// Takes a device in as a side that is behind.
    fn take_in(&self, mirror: &MirrorDevice, new: NewSide<'_>) -> Result<()> {
        let NewSide { path, open, force } = new;
        let sides = mirror.open_sides();
        if path.as_os_str().len() > PATH_BYTES_MAX {
            let max = PATH_BYTES_MAX;
            return Err(MirrorError::PathTooLong { max }.into());
        }
        if !path.exists() {
            // A file would be made for nothing.
            mirror.check_addition(&path)?;
        }
        let pool_bytes = self.space.layout().block_count() * BLOCK_BYTES as u64;
        let device = match open(pool_bytes) {
            Ok(device) => device,
            Err(Error::InUse | Error::Mirror(MirrorError::SideInUse { .. })) => {
                // The device that failed is still there.
                let same = sides.iter().find(|side| side.path() == path);
                let in_use = MirrorError::SideInUse { path };
                same.ok_or(in_use)?.try_again();
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let label = newest_label(&*device).map(|(label, _)| label);
        let label = label.filter(|label| Some(label.pool) == mirror.pool_uuid());
        let present = label.as_ref().and_then(|label| mirror.side(label.side));
        if present.is_some_and(|side| !side.is_away()) {
            // A copy of a side that is there.
            return Err(MirrorError::AlreadySide { path }.into());
        }
        if label.is_some_and(|label| mirror.state_of(label.side).is_some()) {
            let first = sides.first().map(|side| side.path().to_owned());
            let second = path.clone();
            let again = mirror.found_again(Found { path, device });
            return again.map(drop).ok_or_else(|| {
                let first = first.unwrap_or_default();
                MirrorError::Diverged { first, second }.into()
            });
        }
        let device_bytes = device.len_bytes();
        if device_bytes < pool_bytes {
            return Err(MirrorError::TooSmall {
                path,
                device_bytes,
                pool_bytes,
            }
            .into());
        }
        if !force {
            refuse_unless_empty(&*device, device_bytes)?;
        }
        mirror.add(Found { path, device }).map(drop)
    }

    /// Takes a side out, and makes its device no pool any more.
    fn take_out(&self, mirror: &MirrorDevice, path: &Path) -> Result<()> {
        let known = mirror.report().into_iter().find(|side| side.path == path);
        let Some(known) = known else {
            let path = path.to_owned();
            return Err(MirrorError::NoSuchSide { path }.into());
        };
        let Some(side) = mirror.remove(known.id, path)? else {
            return Ok(());
        };
        let layout = self.space.layout();
        let places = [0, 1].map(|slot| layout.superblock_slots(slot));
        if let Err(error) = side.wipe(places.as_flattened()) {
            let path = path.display();
            tracing::warn!(%path, %error, "a side that was taken out keeps what it has");
        }
        Ok(())
    }
}
