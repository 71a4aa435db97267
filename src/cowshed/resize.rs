//! `cowshed volume resize`: changes a volume's virtual size. Making a volume smaller discards the
//! data beyond the new end, so that is done only on request, and never while the volume is in use.

use super::kept_names;
use cowshed_daemon::open_pool::OpenPool;
use cowshed_daemon::request::volume::Resize;
use cowshed_engine::Volume;
use cowshed_format::base;
use cowshed_format::base::size::human;

/// The reason why a volume is not made smaller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    /// It was not requested.
    #[error(
        "it has {old}, and {lost} of data beyond {new} would be lost; shrink its content first (for example with resize2fs), then use --shrink"
    )]
    NotAsked {
        old: String,
        new: String,
        lost: String,
    },
    /// The volume is in use.
    #[error(
        "{0} is in use (attached, mounted, or its file is open) and cannot be shrunk; unmount and detach it first"
    )]
    InUse(base::Name),
}

/// Changes the volume's size.
///
/// # Errors
/// `Refused`, `KeptName`, and any error of the engine or the host.
pub(super) fn resize(resize: &Resize, volume: &Volume, open_pool: &OpenPool) -> anyhow::Result<()> {
    kept_names::refuse(&volume.name())?;
    let pool = open_pool.pool();
    let (old, new) = (volume.size_bytes(), resize.size_bytes);
    if new >= old {
        pool.resize(volume, new)?;
        // Users of the volume's block device should see the new size, too.
        return open_pool
            .export()
            .map_or(Ok(()), |export| Ok(export.resized(volume)?));
    }
    if volume.is_held() {
        return Err(Refused::InUse(volume.name()).into());
    }
    if !resize.shrink {
        return Err(Refused::NotAsked {
            old: human(old),
            new: human(new),
            lost: human(volume.data_bytes_from(new)?),
        }
        .into());
    }
    match pool.shrink(volume, new) {
        Err(base::Error::Busy(name)) => Err(Refused::InUse(name).into()),
        shrunk => Ok(shrunk?),
    }
}
