//! containerd's store: names and their manifests in the database `meta.db`, and the content, which is
//! laid out as the blobs of an OCI layout. Docker with the containerd image store has its images here.
//!
//! Source: <https://github.com/containerd/containerd>, `core/metadata/buckets.go`.

use super::bolt::{Bolt, Bucket};
use super::folder::{Folder, damaged};
use super::in_use::Locks;
use super::{Found, OldImage, without_steps};
use crate::digest::Digest;
use crate::error::Result;
use crate::source::{Image, Target};
use std::collections::BTreeMap;
use std::os::fd::AsFd;

const DATABASE: &str = "io.containerd.metadata.v1.bolt/meta.db";
const CONTENT: &str = "io.containerd.content.v1.content";
const DAEMON: &str = "containerd";
/// The version of the database's form, which is its highest bucket.
const FORM: &str = "v1";
/// The starts of names that are no names of images: those of Kubernetes for ids, and those of Docker
/// for images without a name.
const NOT_NAMES: [&str; 2] = ["sha256:", "moby-dangling@"];

/// Returns the images of all namespaces; `None` if this is not such a store.
pub(super) fn read(store: &Folder, locks: &mut Locks) -> Result<Option<Found>> {
    let Some(file) = store.file(DATABASE)? else {
        return Ok(None);
    };
    locks.database(store, DATABASE, DAEMON)?;
    let bolt = Bolt::open(DATABASE, file)?;
    let mut images: BTreeMap<Target, Vec<String>> = BTreeMap::new();
    if let Some(form) = bolt.root().bucket(FORM)? {
        for (_, namespace) in form.buckets()? {
            let Some(stored) = namespace.bucket("images")? else {
                continue;
            };
            for (name, image) in stored.buckets()? {
                let names = images.entry(target(&image)?).or_default();
                let name = String::from_utf8_lossy(&name).into_owned();
                let is_name = !NOT_NAMES.iter().any(|start| name.starts_with(start));
                if is_name && !names.contains(&name) {
                    names.push(name);
                }
            }
        }
    }
    let images = images.into_iter().map(|(target, names)| {
        let image = image(store, &target, names.clone());
        OldImage::new(target.digest.to_string(), names, image)
    });
    Ok(Some(without_steps(images.collect())))
}

fn image(store: &Folder, target: &Target, names: Vec<String>) -> Result<Image> {
    let content = store.folder(CONTENT)?;
    let content = content.ok_or_else(|| super::folder::missing(CONTENT))?;
    let content = content.as_fd().try_clone_to_owned();
    let content = content.map_err(|e| crate::error::Error::io("open the content", e))?;
    Image::open_content(content, target, names)
}

/// Returns what an image's record refers to.
fn target(image: &Bucket<'_>) -> Result<Target> {
    let fault = || damaged(DATABASE, "the record of an image is not whole");
    let target = image.bucket("target")?.ok_or_else(fault)?;
    let text = |key| -> Result<String> {
        let value = target.value(key)?.ok_or_else(fault)?;
        String::from_utf8(value).map_err(|_| fault())
    };
    let digest: Digest = text("digest")?.parse()?;
    let size = target.value("size")?.ok_or_else(fault)?;
    Ok(Target {
        digest,
        media_type: text("mediatype")?,
        size_bytes: varint(&size).ok_or_else(fault)?,
    })
}

/// Decodes a number as Go's `binary.PutVarint` writes it; `None` if it is none, or negative.
fn varint(bytes: &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().enumerate() {
        let bits = u64::from(byte & 0x7f);
        let shift = u32::try_from(index).ok()?.checked_mul(7)?;
        let shifted = bits.checked_shl(shift)?;
        value |= (shifted >> shift == bits).then_some(shifted)?;
        if byte & 0x80 == 0 {
            return (value & 1 == 0).then_some(value >> 1);
        }
    }
    None
}
