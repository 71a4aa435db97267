//! The storage drivers of Docker and of containers/storage: where each keeps the files of a layer.

use super::folder::Folder;
use super::layer::Form;
use crate::error::{Error, Printable, Result};

/// The drivers of Docker whose layers are folders, and what says that a store has layers of each.
const OF_DOCKER: [(&str, &str); 6] = [
    ("overlay2", "overlay2"),
    ("fuse-overlayfs", "fuse-overlayfs"),
    ("aufs", "aufs/diff"),
    ("vfs", "vfs/dir"),
    ("btrfs", "btrfs/subvolumes"),
    ("overlay", "overlay"),
];

/// Returns the folder of a layer's files in a store of Docker, and their form; `below` is the folder
/// of the layer below.
pub(super) fn of_docker(driver: &str, id: &str, below: Option<String>) -> Result<(String, Form)> {
    Ok(match driver {
        "overlay2" | "fuse-overlayfs" => (format!("{driver}/{id}/diff"), Form::Overlay),
        "overlay" => (format!("overlay/{id}/root"), Form::Tree { below }),
        _ => return of_both(driver, id, below),
    })
}

/// As `of_docker`, in a store of containers/storage.
pub(super) fn of_containers(
    driver: &str,
    id: &str,
    below: Option<String>,
) -> Result<(String, Form)> {
    Ok(match driver {
        "overlay" => (format!("overlay/{id}/diff"), Form::Overlay),
        _ => return of_both(driver, id, below),
    })
}

fn of_both(driver: &str, id: &str, below: Option<String>) -> Result<(String, Form)> {
    Ok(match driver {
        "aufs" => (format!("aufs/diff/{id}"), Form::Aufs),
        "vfs" => (format!("vfs/dir/{id}"), Form::Tree { below }),
        "btrfs" => (format!("btrfs/subvolumes/{id}"), Form::Tree { below }),
        other => return Err(Error::StorageDriver(Printable::from(other))),
    })
}

/// Returns the drivers of which a store of Docker has layers.
pub(super) fn present(store: &Folder) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for (driver, path) in OF_DOCKER {
        if store.folder(path)?.is_some() {
            found.push(driver);
        }
    }
    Ok(found)
}
