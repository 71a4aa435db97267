//! containerd's store: names and their manifests in the database `meta.db`, and the content, which is
//! laid out as the blobs of an OCI layout. Docker with the containerd image store has its images here.
//! Where layers were removed after they were unpacked (`discard_unpacked_layers`), the overlayfs
//! snapshotter has their files, by the chain id.
//!
//! Source: <https://github.com/containerd/containerd>, `core/metadata/buckets.go`,
//! `core/snapshots/storage/bolt.go`.

use super::bolt::{Bolt, Bucket};
use super::folder::{Folder, damaged, missing};
use super::in_use::Locks;
use super::layer::{Form, OldLayer};
use super::{Found, OldImage, without_steps};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::source::{Image, Target, Unpacked};
use cowshed_format::base::cancel;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

const DATABASE: &str = "io.containerd.metadata.v1.bolt/meta.db";
const CONTENT: &str = "io.containerd.content.v1.content";
const SNAPSHOTTER: &str = "overlayfs";
const SNAPSHOTS: &str = "io.containerd.snapshotter.v1.overlayfs";
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
    let mut faults = Found::new();
    let mut snapshots = Snapshots::open(store, locks)?;
    if let Some(form) = bolt.root().bucket(FORM)? {
        for (_, namespace) in form.buckets()? {
            snapshots.add_names(&namespace)?;
            let Some(stored) = namespace.bucket("images")? else {
                continue;
            };
            for (name, image) in stored.buckets()? {
                cancel::check()?;
                let name = String::from_utf8_lossy(&name).into_owned();
                let target = match target(&image) {
                    Ok(target) => target,
                    Err(error) => {
                        faults.push(OldImage::new(name.clone(), vec![name], Err(error)));
                        continue;
                    }
                };
                let names = images.entry(target).or_default();
                let is_name = !NOT_NAMES.iter().any(|start| name.starts_with(start));
                if is_name && !names.contains(&name) {
                    names.push(name);
                }
            }
        }
    }
    let snapshots: Arc<dyn Unpacked> = Arc::new(snapshots);
    let images = images.into_iter().map(|(target, names)| {
        let image = image(store, &snapshots, &target, names.clone());
        OldImage::new(target.digest.to_string(), names, image)
    });
    let mut found = without_steps(images.collect());
    found.extend(faults);
    Ok(Some(found))
}

fn image(
    store: &Folder,
    snapshots: &Arc<dyn Unpacked>,
    target: &Target,
    names: Vec<String>,
) -> Result<Image> {
    let content = store.folder(CONTENT)?;
    let content = content.ok_or_else(|| missing(CONTENT))?;
    let (folder, budget) = (content.to_owned_fd()?, content.budget());
    let opened = Image::open_content(folder, budget, snapshots, target, names);
    opened.map_err(|error| match error {
        // It is the store that lacks it, and not an export.
        Error::Missing { what, name } => missing(&format!("{what} ({name})")),
        error => error,
    })
}

/// The snapshots of layers.
struct Snapshots {
    store: Folder,
    /// The number of the folder of each snapshot, by the snapshotter's name for it.
    folders: HashMap<Vec<u8>, u64>,
    /// The snapshotter's names, by the chain id.
    names: HashMap<String, Vec<u8>>,
}

impl Snapshots {
    /// Reads the snapshotter's own database, if there is one.
    fn open(store: &Folder, locks: &mut Locks) -> Result<Self> {
        let mut folders = HashMap::new();
        let path = format!("{SNAPSHOTS}/metadata.db");
        if let Some(file) = store.file(&path)? {
            locks.database(store, &path, DAEMON)?;
            let bolt = Bolt::open(&path, file)?;
            let stored = match bolt.root().bucket(FORM)? {
                Some(form) => form.bucket("snapshots")?,
                None => None,
            };
            for (name, snapshot) in stored.map_or(Ok(Vec::new()), |stored| stored.buckets())? {
                if let Some(number) = snapshot.value("id")?.as_deref().and_then(uvarint) {
                    folders.insert(name, number);
                }
            }
        }
        Ok(Self {
            store: store.clone(),
            folders,
            names: HashMap::new(),
        })
    }

    /// Adds the names that a namespace has for its snapshots.
    fn add_names(&mut self, namespace: &Bucket<'_>) -> Result<()> {
        let of_snapshotter = match namespace.bucket("snapshots")? {
            Some(snapshots) => snapshots.bucket(SNAPSHOTTER)?,
            None => None,
        };
        let Some(snapshots) = of_snapshotter else {
            return Ok(());
        };
        for (key, snapshot) in snapshots.buckets()? {
            let key = String::from_utf8(key).ok();
            // Others are containers'.
            let key = key.filter(|key| key.parse::<Digest>().is_ok());
            if let (Some(key), Some(name)) = (key, snapshot.value("name")?) {
                self.names.insert(key, name);
            }
        }
        Ok(())
    }
}

impl Unpacked for Snapshots {
    fn layer(&self, chain_id: Digest) -> Result<Option<OldLayer>> {
        let name = self.names.get(&chain_id.to_string());
        let Some(number) = name.and_then(|name| self.folders.get(name)) else {
            return Ok(None);
        };
        Ok(Some(OldLayer {
            store: self.store.clone(),
            folder: format!("{SNAPSHOTS}/snapshots/{number}/fs"),
            form: Form::Overlay,
            split: None,
            verifies_files: false,
        }))
    }
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
    let value = uvarint(bytes)?;
    (value & 1 == 0).then_some(value >> 1)
}

/// Decodes a number as Go's `binary.PutUvarint` writes it; `None` if it is none.
fn uvarint(bytes: &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().enumerate() {
        let bits = u64::from(byte & 0x7f);
        let shift = u32::try_from(index).ok()?.checked_mul(7)?;
        let shifted = bits.checked_shl(shift)?;
        value |= (shifted >> shift == bits).then_some(shifted)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
