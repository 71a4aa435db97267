//! Extended attributes and access control lists of one entry.

use super::{Applier, acl};
use crate::dropped::Loss;
use crate::error::{Error, HeaderFault, Printable, Result};
use crate::tarball::{Entry, Kind, Xattr};
use cowshed_sys::xattr;
use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

impl Applier {
    /// Sets all attributes and access control lists of the entry.
    pub(super) fn attributes(&mut self, fd: impl AsFd, entry: &Entry) -> Result<()> {
        let mut all = entry.xattrs.clone();
        for (text, name) in [(&entry.acl_access, ACCESS), (&entry.acl_default, DEFAULT)] {
            let is_there = all.iter().any(|(known, _)| known == name);
            if let Some(text) = text.as_ref().filter(|_| !is_there)
                && let Some(value) = self.acl(text, entry)?
            {
                all.push((name.to_vec(), value));
            }
        }
        if let Err(error) = self.set_all(&fd, entry, &all) {
            // In another order they may fit: a small one in the inode leaves the block to others.
            if !matches!(error, Error::Attributes { .. }) || all.len() < 2 {
                return Err(error);
            }
            super::create::clear(&fd, &entry.path)?;
            all.sort_by_key(|(name, value)| std::cmp::Reverse(name.len() + value.len()));
            self.set_all(&fd, entry, &all)?;
        }
        Ok(())
    }

    /// Returns the attribute of a list; `None` if it names an unknown user or group.
    fn acl(&mut self, text: &[u8], entry: &Entry) -> Result<Option<Vec<u8>>> {
        let root = self.parents.root();
        let mut id_of = |name: &[u8], is_group| acl::id_in_image(root, name, is_group);
        match acl::attribute(text, &mut id_of) {
            Ok(value) => Ok(Some(value)),
            Err(acl::Fault::Unknown) => {
                self.applied.dropped.note(Loss::NamedAcl, &entry.path);
                Ok(None)
            }
            Err(acl::Fault::Syntax) => Err(Error::Header {
                entry: Printable::from(&*entry.path),
                fault: HeaderFault::Acl,
            }),
        }
    }

    fn set_all(&mut self, fd: &impl AsFd, entry: &Entry, all: &[Xattr]) -> Result<()> {
        for (name, value) in all {
            if name == DEFAULT && entry.kind != Kind::Directory {
                self.applied.dropped.note(Loss::DefaultAcl, &entry.path);
                continue;
            }
            let failed =
                |source: io::Error| Error::entry("set an attribute of", &entry.path, source);
            let c_name = CString::new(name.as_slice()).map_err(|error| failed(error.into()))?;
            let Err(error) = xattr::set(fd, &c_name, value) else {
                continue;
            };
            match error.raw_os_error() {
                // Links and devices do not support user attributes, and some names mean nothing
                // here.
                Some(libc::EOPNOTSUPP) => {
                    self.applied.dropped.note(Loss::Attribute, &entry.path);
                }
                Some(libc::EPERM) if is_users(name) && is_special(entry.kind) => {
                    self.applied.dropped.note(Loss::Attribute, &entry.path);
                }
                // The name or the value alone is too large, or all attributes for the file, or for
                // the file system's block.
                Some(libc::ENOSPC | libc::E2BIG | libc::ERANGE) => {
                    return Err(too_large(entry, all, name, value, error));
                }
                _ => return Err(failed(error)),
            }
        }
        Ok(())
    }
}

/// Returns the error for ENOSPC. ext4 returns ENOSPC both if a file's attributes do not fit the one
/// block that they may use, and if no block is free for them; if they would fit, the block is
/// missing.
fn too_large(entry: &Entry, all: &[Xattr], name: &[u8], value: &[u8], error: io::Error) -> Error {
    /// The size of the block without its header.
    const BLOCK_BYTES: usize = 4096 - 32;
    /// The bytes of a descriptor, and the loss from rounding.
    const EACH_BYTES: usize = 16 + 6;
    let bytes = |(name, value): &Xattr| name.len() + value.len() + EACH_BYTES;
    let fits = all.iter().map(bytes).sum::<usize>() <= BLOCK_BYTES;
    if error.raw_os_error() == Some(libc::ENOSPC) && fits {
        return Error::entry("set an attribute of", &entry.path, error);
    }
    Error::Attributes {
        entry: Printable::from(&*entry.path),
        name: Printable::from(name),
        len_bytes: value.len(),
    }
}

fn is_users(name: &[u8]) -> bool {
    name.starts_with(b"user.")
}

const fn is_special(kind: Kind) -> bool {
    !matches!(kind, Kind::File | Kind::Directory)
}
