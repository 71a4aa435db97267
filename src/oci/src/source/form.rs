//! Detecting the form of an input: the kind of image, or a root file system.
//!
//! Invariant: an input that looks like an image is opened as one, or refused with the missing part;
//! anything else is a root file system. If everything lies below one folder, that folder is
//! examined as well.

use super::blobs::{Blobs, TopName, lexical};
use super::docker;
use crate::digest::Digest;
use crate::error::{Error, Part, PrintableList, Result};
use crate::limits::{MANIFEST_BYTES_MAX, WRAPPING_MAX};
use crate::tarball::TarReader;
use serde_json::Value;

/// The form of an input's files.
pub(super) enum Form {
    /// An OCI layout, with the entries of a docker-archive if it is one as well.
    Layout(Option<Vec<docker::Entry>>),
    /// A docker-archive.
    Docker(Vec<docker::Entry>),
    /// The folder that skopeo's `dir:` writes, with its manifest or index.
    Directory(Vec<u8>),
    /// A docker-archive from before Docker 1.10.
    Legacy,
    /// Anything else.
    Root,
}

const LAYOUT: &[u8] = b"oci-layout";
const INDEX: &[u8] = b"index.json";
const MANIFEST: &[u8] = b"manifest.json";
const REPOSITORIES: &[u8] = b"repositories";
const VERSION: &[u8] = b"version";
/// The start of the file `version` of skopeo's `dir:`.
const DIRECTORY_VERSION: &[u8] = b"Directory Transport Version";

/// Detects the form of `blobs`; returns them relative to the folder where the image begins.
pub(super) fn tell(mut blobs: Blobs) -> Result<(Blobs, Form)> {
    for _ in 0..WRAPPING_MAX {
        let names = blobs.top_names()?;
        match form_of(&blobs, &names)? {
            Form::Root => {}
            form => return Ok((blobs, form)),
        }
        match &*names {
            [only] if only.is_folder => blobs = blobs.below(&only.name),
            [_, _, ..] if names.iter().all(|name| name.is_folder) => {
                refuse_several(&blobs, &names)?;
                break;
            }
            _ => break,
        }
    }
    Ok((blobs, Form::Root))
}

/// Returns the form of the files at this level, without examining folders.
fn form_of(blobs: &Blobs, names: &[TopName]) -> Result<Form> {
    let docker = docker::read_manifest(blobs)?;
    if has_index(blobs)? {
        return Ok(Form::Layout(docker));
    }
    if let Some(entries) = docker {
        return Ok(Form::Docker(entries));
    }
    let is_directory = document(blobs, VERSION)?.is_some_and(|v| v.starts_with(DIRECTORY_VERSION));
    if let Some(manifest) = document(blobs, MANIFEST)?
        && is_manifest(&manifest)
    {
        return Ok(Form::Directory(manifest));
    }
    if is_directory {
        return Err(not_whole(
            "a directory of skopeo",
            "manifest.json is missing or damaged",
        ));
    }
    if has_layout_file(blobs)? || has_layout_blobs(blobs, names)? {
        return Err(not_whole(
            "an OCI layout",
            "index.json is missing or damaged",
        ));
    }
    if is_legacy(blobs, names)? {
        return Ok(Form::Legacy);
    }
    if has_archive_blobs(blobs, names)? {
        return Err(not_whole(
            "a docker-archive",
            "manifest.json is missing or damaged",
        ));
    }
    refuse_bundle(blobs, names)?;
    Ok(Form::Root)
}

const fn not_whole(form: &'static str, fault: &'static str) -> Error {
    Error::NotWhole { form, fault }
}

/// Returns a document at the top, unless it is larger than any document of an image.
fn document(blobs: &Blobs, path: &[u8]) -> Result<Option<Vec<u8>>> {
    match blobs.document(path, Part::Index, MANIFEST_BYTES_MAX) {
        Err(Error::Document { .. }) => Ok(None),
        found => found,
    }
}

fn json(blobs: &Blobs, path: &[u8]) -> Result<Option<Value>> {
    Ok(document(blobs, path)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

fn has_layout_file(blobs: &Blobs) -> Result<bool> {
    Ok(json(blobs, LAYOUT)?.is_some_and(|layout| layout["imageLayoutVersion"].is_string()))
}

/// Returns true for a layout: it has both documents, or an index of images without the layout file,
/// which containerd and podman do not require either.
fn has_index(blobs: &Blobs) -> Result<bool> {
    if blobs.find(INDEX)?.is_none() {
        return Ok(false);
    }
    if blobs.find(LAYOUT)?.is_some() {
        return Ok(true);
    }
    let index = json(blobs, INDEX)?.unwrap_or_default();
    Ok(is_descriptor_list(&index["manifests"]) && index["schemaVersion"].is_u64())
}

/// Returns true for a list that is not empty and whose elements have a digest.
fn is_descriptor_list(list: &Value) -> bool {
    let digests = list.as_array().filter(|list| !list.is_empty());
    digests.is_some_and(|list| list.iter().all(|one| one["digest"].is_string()))
}

/// Returns true for a registry's manifest or index, which skopeo stores as `manifest.json`.
fn is_manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = serde_json::from_slice::<Value>(bytes) else {
        return false;
    };
    let is_image = manifest["config"]["digest"].is_string() && manifest["layers"].is_array();
    let is_old = manifest["fsLayers"].is_array() && manifest["history"].is_array();
    manifest["schemaVersion"].is_u64()
        && (is_image || is_old || is_descriptor_list(&manifest["manifests"]))
}

/// Returns true if the top has only a folder of blobs, perhaps with documents.
fn has_layout_blobs(blobs: &Blobs, names: &[TopName]) -> Result<bool> {
    let parts = [b"blobs".as_slice(), LAYOUT, INDEX, MANIFEST, REPOSITORIES];
    let is_layout = |name: &TopName| parts.contains(&&*name.name);
    if names.is_empty() || !names.iter().all(is_layout) {
        return Ok(false);
    }
    blobs.has_name_below(b"blobs/sha256/", is_digest)
}

/// Returns true for folders with a layer each, as Docker wrote them before 1.10 and, beside other
/// files, for years after.
fn is_legacy(blobs: &Blobs, names: &[TopName]) -> Result<bool> {
    if super::legacy::has_repositories(blobs)? {
        return Ok(true);
    }
    let mut layers = 0;
    for folder in names.iter().filter(|name| name.is_folder) {
        if !super::legacy::is_layer(blobs, &folder.name)? {
            return Ok(false);
        }
        layers += 1;
    }
    let mut others = names.iter().filter(|name| !name.is_folder);
    // A newer archive without its manifest has configurations beside the folders, and is read
    // according to the folders.
    Ok(layers > 0 && others.all(|name| is_digest(stem(&name.name))))
}

/// Returns true if the top has a configuration and layers of a docker-archive.
fn has_archive_blobs(blobs: &Blobs, names: &[TopName]) -> Result<bool> {
    let is_config = |name: &TopName| name.name.ends_with(b".json") && is_digest(stem(&name.name));
    if !names.iter().any(is_config) {
        return Ok(false);
    }
    for name in names {
        let layer = [&*name.name, b"/layer.tar"].concat();
        let is_layer = !name.is_folder && !is_config(name) && is_digest(stem(&name.name));
        if is_layer || name.is_folder && blobs.find(&layer)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns a name up to its first dot, without the name of a digest's algorithm.
fn stem(name: &[u8]) -> &[u8] {
    let name = name.strip_prefix(b"sha256:").unwrap_or(name);
    name.split(|byte| *byte == b'.').next().unwrap_or(name)
}

fn is_digest(name: &[u8]) -> bool {
    str::from_utf8(name).is_ok_and(|name| Digest::from_hex(name).is_some())
}

/// Returns an error if the root file system is in a folder `rootfs`.
fn refuse_bundle(blobs: &Blobs, names: &[TopName]) -> Result<()> {
    let has = |wanted: &[u8], is_folder| {
        let mut names = names.iter();
        names.any(|name| name.name == wanted && name.is_folder == is_folder)
    };
    if !has(b"rootfs", true) {
        return Ok(());
    }
    let is_bundle = has(b"config.json", false)
        && json(blobs, b"config.json")?.is_some_and(|config| {
            config["ociVersion"].is_string() || config["interface"].is_object()
        });
    let form = if is_bundle {
        "a bundle for a container runtime or a plugin"
    } else if has(b"metadata.yaml", false) {
        "an image of LXD or Incus"
    } else if json(blobs, b"manifest")?.is_some_and(|manifest| manifest["acKind"].is_string()) {
        "an image of rkt"
    } else {
        return Ok(());
    };
    Err(Error::RootInside { form })
}

/// Returns an error if there are several folders with an image each.
fn refuse_several(blobs: &Blobs, names: &[TopName]) -> Result<()> {
    for folder in names {
        let inside = |file: &[u8]| blobs.find(&[&*folder.name, b"/", file].concat());
        let is_layout = inside(LAYOUT)?.is_some() && inside(INDEX)?.is_some();
        let is_directory = inside(VERSION)?.is_some() && inside(MANIFEST)?.is_some();
        if !is_layout && !is_directory {
            return Ok(());
        }
    }
    let folders = names.iter().map(|name| String::from_utf8_lossy(&name.name));
    let available: PrintableList = folders.collect();
    Err(Error::SeveralFolders { available })
}

/// Returns true if the entries in an archive's first part look like those of an image. If that is
/// wrong, the archive is spooled unnecessarily, but still read correctly.
pub(super) fn may_be_image(head: &[u8]) -> bool {
    let mut reader = TarReader::new(head);
    let mut top: Option<Vec<u8>> = None;
    let mut is_wrapped = true;
    // An error means that `head` ends here, or the reader of the whole archive will meet it again.
    while let Ok(Some(entry)) = reader.next_entry() {
        let path = lexical(&[], &entry.path).unwrap_or_default();
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        if path.is_empty() {
            continue;
        }
        is_wrapped &= *top.get_or_insert_with(|| parts[0].to_vec()) == parts[0];
        // Skips a folder only if everything lies below it.
        let depth = if is_wrapped { WRAPPING_MAX } else { 1 };
        if (0..depth).any(|skipped| is_of_image(parts.get(skipped..).unwrap_or_default())) {
            return true;
        }
    }
    false
}

/// Returns true for a path that images have, without the folders around the image.
fn is_of_image(parts: &[&[u8]]) -> bool {
    match parts {
        [name] => [LAYOUT, INDEX, MANIFEST, REPOSITORIES].contains(name) || is_digest(stem(name)),
        [b"blobs", b"sha256", ..] => true,
        // Part of a bundle, which is refused.
        [b"rootfs", ..] => true,
        [folder, b"layer.tar" | b"json" | b"VERSION"] => !folder.is_empty(),
        [folder, ..] => is_digest(stem(folder)),
        [] => false,
    }
}
