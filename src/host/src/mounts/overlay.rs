//! Overlay roots: an overlayfs over a frozen volume, whose changes are in a volume of the root's own.
//!
//! The frozen volume is mounted once for all roots over it and is the only lower layer, so all of
//! them share its pages in memory. The root's own volume began as a clone of an empty file system;
//! it holds the folders `upper` and `work`. This module makes these folders and the options of the
//! mount; it does not mount the two volumes: `lowers`, containers and roots do.
//!
//! # Invariants
//! - The lower layer is frozen: nobody changes it below the overlay.
//! - `upper` is made with the attributes of the lower root in one step, a rename: an overlay shows
//!   its upper folder's own attributes as those of its root.
//! - Every object in `upper` is whole and stands for its own name: no file is copied up without its
//!   content (`metacopy=off`), no folder is moved by reference (`redirect_dir=nofollow`).

use super::filesystem;
use super::work::WorkMount;
use super::{Mounts, random_hex};
use crate::error::{Error, Result};
use cowshed_engine::Volume;
use cowshed_format::base::cancel;
use cowshed_sys::mount::{self, MountFlags};
use cowshed_sys::xattr;
use filesystem::Mode;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, FileTimes, Permissions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The folder of a root's own volume with what it changed.
pub(crate) const UPPER: &str = "upper";
/// The folder in which overlayfs prepares changes.
const WORK: &str = "work";
/// The name of the upper folder until it has its attributes.
const NEW_UPPER: &str = "upper.new";
/// Attributes of the lower root that are not copied: those of the host's security module, and those
/// in which overlayfs keeps its state.
const NOT_COPIED: [&[u8]; 2] = [b"security.selinux", b"trusted.overlay."];

/// Makes the folders of an overlay root in its own file system, mounted at `own`, unless they are
/// there.
pub(crate) fn prepare(lower: &Path, own: &Path) -> Result<()> {
    let made = make_folder(&own.join(WORK));
    made.map_err(Error::io("create the directory", &own.join(WORK)))?;
    let upper = own.join(UPPER);
    if fs::symlink_metadata(&upper).is_ok() {
        return Ok(());
    }
    let new = own.join(NEW_UPPER);
    make_folder(&new)
        .and_then(|()| copy_attributes(lower, &new))
        .and_then(|()| fs::rename(&new, &upper))
        .map_err(Error::io("create the directory", &upper))
}

fn make_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (File::open(from)?, File::open(to)?);
    let found = from.metadata()?;
    std::os::unix::fs::fchown(&to, Some(found.uid()), Some(found.gid()))?;
    to.set_permissions(Permissions::from_mode(found.mode() & 0o7777))?;
    for name in xattr::list(&from)? {
        let bytes = name.as_bytes();
        if !NOT_COPIED.iter().any(|prefix| bytes.starts_with(prefix)) {
            xattr::set(&to, &name, &xattr::get(&from, &name)?)?;
        }
    }
    let times = FileTimes::new()
        .set_accessed(found.accessed()?)
        .set_modified(found.modified()?);
    to.set_times(times)
}

/// Returns the options of the overlay's mount.
pub(crate) fn options(lower: &Path, own: &Path) -> Vec<String> {
    let folder = |name: &str, path: &Path| format!("{name}={}", escaped(path));
    vec![
        // Hard links in the lower layer are copied up one by one, as everywhere.
        "index=off".to_owned(),
        "metacopy=off".to_owned(),
        "redirect_dir=nofollow".to_owned(),
        folder("workdir", &own.join(WORK)),
        folder("upperdir", &own.join(UPPER)),
        folder("lowerdir", lower),
    ]
}

/// Returns the folder in which the own volume of the overlay with these options is mounted.
pub(crate) fn own_folder(options: &[String]) -> Option<PathBuf> {
    let mut upper = options
        .iter()
        .filter_map(|option| option.strip_prefix("upperdir="));
    let upper = PathBuf::from(unescaped(upper.next()?));
    let is_ours = upper.file_name() == Some(OsStr::new(UPPER));
    is_ours
        .then(|| upper.parent().map(Path::to_owned))
        .flatten()
}

/// Writes a path as a value that overlayfs reads: with a backslash before a comma, a colon and a
/// backslash.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    // The state folder has a name in UTF-8: it is part of a unit's text or of a request.
    for c in path.to_string_lossy().chars() {
        if matches!(c, ',' | ':' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

fn unescaped(text: &str) -> std::ffi::OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let literal = if byte == b'\\' { rest.next() } else { None };
        bytes.push(literal.unwrap_or(byte));
    }
    std::ffi::OsString::from_vec(bytes)
}

/// Mounts the overlay at `target`. `source` is the name that the table of mounts shows.
pub(crate) fn mount_overlay(source: &OsStr, lower: &Path, own: &Path, target: &Path) -> Result<()> {
    mount::mount(
        source,
        target,
        "overlay",
        MountFlags::MS_NOATIME,
        &options(lower, own).join(","),
    )
    .map_err(Error::io("mount the overlay at", target))
}

impl Mounts {
    /// Mounts an overlay root in the state folder, for the length of an operation.
    pub(crate) fn overlay_for_work(&self, lower: &Volume, own: &Volume) -> Result<WorkOverlay<'_>> {
        let below = self.hold_lower(lower)?;
        let held = HeldLower {
            mounts: self,
            volume: lower.clone(),
        };
        let mounted = self.mount_for_work(own, Mode::Container)?;
        prepare(&below, mounted.path())?;
        // Named so that a successor unmounts it.
        let path = self
            .work_dir()
            .join(format!("root-{}", random_hex::<16>()?));
        fs::create_dir(&path).map_err(Error::io("create the directory", &path))?;
        let overlay = mount_overlay(OsStr::new("cowshed"), &below, mounted.path(), &path);
        if let Err(error) = overlay {
            // At worst an empty folder remains.
            let _ = fs::remove_dir(&path);
            return Err(error);
        }
        Ok(WorkOverlay {
            path,
            is_mounted: true,
            own: Some(mounted),
            _lower: held,
        })
    }
}

/// A frozen volume that stays mounted while this lives.
struct HeldLower<'m> {
    mounts: &'m Mounts,
    volume: Volume,
}

impl Drop for HeldLower<'_> {
    fn drop(&mut self) {
        cancel::never(|| self.mounts.release_lower(&self.volume));
    }
}

/// An overlay root mounted for the length of an operation; dropping it unmounts it as far as
/// possible.
pub(crate) struct WorkOverlay<'m> {
    path: PathBuf,
    is_mounted: bool,
    // Unmounted after the overlay, and before the lower layer is given back.
    own: Option<WorkMount<'m>>,
    _lower: HeldLower<'m>,
}

impl WorkOverlay<'_> {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts and detaches; all written data is in the root's own volume then.
    pub(crate) fn unmount(mut self) -> Result<()> {
        filesystem::unmount(&self.path)?;
        self.is_mounted = false;
        // An empty folder that remains does no harm.
        let _ = fs::remove_dir(&self.path);
        self.own.take().map_or(Ok(()), WorkMount::unmount)
    }
}

impl Drop for WorkOverlay<'_> {
    fn drop(&mut self) {
        if self.is_mounted {
            // Its last user ends it, if it has any.
            if filesystem::unmount(&self.path).is_err() {
                let _ = mount::unmount_lazy(&self.path);
            }
            let _ = fs::remove_dir(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_folder_is_found_in_the_options_whatever_its_name() {
        for own in ["/run/x/roots/7", r"/a,b:c\d/roots/7"] {
            let options = options(Path::new("/lower"), Path::new(own));
            assert_eq!(own_folder(&options), Some(own.into()));
        }
        assert_eq!(own_folder(&["lowerdir=/a".to_owned()]), None);
        assert_eq!(own_folder(&["upperdir=/a/fs".to_owned()]), None);
        assert_eq!(own_folder(&["upperdir=".to_owned()]), None);
    }

    #[test]
    fn an_upper_folder_has_the_attributes_of_the_lower_root() {
        let folder = tempfile::tempdir().unwrap();
        let (lower, own) = (folder.path().join("lower"), folder.path().join("own"));
        fs::create_dir(&lower).unwrap();
        fs::create_dir(&own).unwrap();
        let at = File::open(&lower).unwrap();
        xattr::set(&at, c"user.mark", b"1").unwrap();
        fs::set_permissions(&lower, Permissions::from_mode(0o1751)).unwrap();
        std::os::unix::fs::chown(&lower, Some(12), Some(34)).unwrap();
        // An interruption left a new folder.
        fs::create_dir(own.join(NEW_UPPER)).unwrap();
        prepare(&lower, &own).unwrap();
        let upper = own.join(UPPER);
        let seen = |path: &Path| {
            let found = fs::metadata(path).unwrap();
            let times = (found.mtime(), found.mtime_nsec());
            (found.mode(), found.uid(), found.gid(), times)
        };
        assert_eq!(seen(&upper), seen(&lower));
        let mark = xattr::get(File::open(&upper).unwrap(), c"user.mark");
        assert_eq!(mark.unwrap(), b"1");
        // It is the container's from then on.
        fs::set_permissions(&upper, Permissions::from_mode(0o700)).unwrap();
        prepare(&lower, &own).unwrap();
        assert_eq!(fs::metadata(&upper).unwrap().mode() & 0o7777, 0o700);
    }
}
