//! Taking a snapshot of a container to be sent.

use super::Containers;
use crate::error::Result;
use crate::mounts::{WorkVolumes, hold};
use crate::record::ContainerRecord;
use cowshed_engine::Volume;

impl Containers {
    /// Takes a snapshot of the container's root, which may be in use: its file system is frozen for
    /// that moment, and is one that was cleanly unmounted in the snapshot. `work` gets what is to be
    /// removed after use.
    ///
    /// # Errors
    /// `Incomplete`, and any error of the pool and the host.
    pub(crate) fn snapshot_to_send(
        &self,
        record: &ContainerRecord,
        work: &mut WorkVolumes<'_>,
    ) -> Result<Volume> {
        let lock = self.locks.of(&record.id);
        let _held = hold(&lock)?;
        let volume = record.volume(self.pool())?;
        // Checked both before and after: data whose write failed may not be written out any more.
        self.mounts.check_complete(&volume)?;
        let mut instant = self.instant(record)?;
        self.mounts.check_complete(&volume)?;
        instant.settle()?;
        let snapshot = instant.volume.clone();
        work.take_from(instant.work);
        Ok(snapshot)
    }
}
