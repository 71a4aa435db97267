//! Volumes whose import or receive has not ended.
//!
//! # Invariants
//! - A volume with [`LABEL`] belongs to a running command. When the pool is opened no command runs,
//!   so what has the label then was left by a killed one.
//! - What an interrupted receive keeps has no label, but a record: see `cowshed_stream::receive`.

use cowshed_engine::Pool;
use cowshed_format::base::Result;
use cowshed_stream::receive as stream;

/// The label of a volume that is not finished, and that nothing can finish any more once the
/// command that makes it has ended.
pub const LABEL: &str = stream::UNFINISHED;

/// Removes what killed imports left, and receives of which nothing is worth keeping. Only for a
/// caller that has just opened the pool.
///
/// # Errors
/// The engine's error.
pub fn remove(pool: &Pool) -> Result<()> {
    for info in pool.volumes() {
        if info.labels.contains_key(LABEL) {
            pool.remove(&pool.volume_by_id(info.id)?)?;
        }
    }
    stream::clean(pool)
}
