//! Volumes whose import has not ended.
//!
//! # Invariants
//! - A volume with [`LABEL`] belongs to a running import. When the pool is opened no import runs,
//!   so what has the label then was left by a killed one.

use cowshed_engine::Pool;
use cowshed_format::base::Result;

/// The label of a volume whose import has not ended.
pub const LABEL: &str = "cowshed.unfinished";

/// Removes what killed imports left. Only for a caller that has just opened the pool.
///
/// # Errors
/// The engine's error.
pub fn remove(pool: &Pool) -> Result<()> {
    for info in pool.volumes() {
        if info.labels.contains_key(LABEL) {
            pool.remove(&pool.volume_by_id(info.id)?)?;
        }
    }
    Ok(())
}
