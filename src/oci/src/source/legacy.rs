//! The docker-archive from before Docker 1.10: a folder for each layer with its description, and
//! `repositories` with the names. There is no configuration; it is created here as Docker does when
//! it loads such an archive.
//!
//! Such an archive states no digest of a layer, so each layer is read once to compute it.

use super::blobs::{Blobs, lexical};
use super::{Content, Image, LayerInfo, Select};
use crate::compression::Decoder;
use crate::config::ImageConfig;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Part, Printable, Result};
use crate::limits::{CONFIG_BYTES_MAX, COPY_BUFFER_BYTES, LAYERS_MAX, MANIFEST_BYTES_MAX};
use crate::reference::same_reference;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::sync::Arc;

/// Layers' ids by repository and tag.
type Repositories = BTreeMap<String, BTreeMap<String, String>>;

/// The fields of a layer's description that apply only to that layer.
const OF_THE_LAYER: [&str; 6] = ["id", "parent", "Size", "parent_id", "layer_id", "throwaway"];

/// Returns true if the folder `id` holds a layer as in these archives, or most of one.
pub(super) fn is_layer(blobs: &Blobs, id: &[u8]) -> Result<bool> {
    let has = |name: &[u8]| -> Result<bool> { Ok(blobs.find(&[id, name].concat())?.is_some()) };
    Ok(has(b"/json")? && (has(b"/layer.tar")? || has(b"/VERSION")?))
}

/// Returns true if `repositories` exists and names layers.
pub(super) fn has_repositories(blobs: &Blobs) -> Result<bool> {
    Ok(repositories(blobs)?.is_some_and(|names| names.values().any(|tags| !tags.is_empty())))
}

fn repositories(blobs: &Blobs) -> Result<Option<Repositories>> {
    let what = Part::Repositories;
    let document = match blobs.document(b"repositories", what, MANIFEST_BYTES_MAX) {
        // Larger than any such document: a file of a root file system.
        Err(Error::Document { .. }) => None,
        found => found?,
    };
    Ok(document.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// An image by its highest layer.
struct Head {
    layer: String,
    names: Vec<String>,
}

/// Opens the selected images.
pub(super) fn open(blobs: &Arc<Blobs>, select: &Select) -> Result<Vec<Image>> {
    let heads = choose(heads(blobs)?, select)?;
    let mut layers = HashMap::new();
    heads
        .into_iter()
        .map(|head| open_head(blobs, head, &mut layers))
        .collect()
}

/// Returns the images by their names; if there are no names, the layers below no other layer.
fn heads(blobs: &Blobs) -> Result<Vec<Head>> {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (repository, tags) in repositories(blobs)?.unwrap_or_default() {
        for (tag, layer) in tags {
            let all = names.entry(layer).or_default();
            all.push(format!("{repository}:{tag}"));
        }
    }
    if names.is_empty() {
        let mut parents = BTreeSet::new();
        for top in blobs.top_names()?.iter().filter(|top| top.is_folder) {
            let id = String::from_utf8_lossy(&top.name).into_owned();
            parents.extend(parent(&describe(blobs, &id)?));
            names.insert(id, Vec::new());
        }
        names.retain(|id, _| !parents.contains(id));
    }
    let heads = names.into_iter();
    Ok(heads.map(|(layer, names)| Head { layer, names }).collect())
}

fn choose(mut heads: Vec<Head>, select: &Select) -> Result<Vec<Head>> {
    if heads.is_empty() {
        return Err(Error::NotAnImage("its layers form a cycle"));
    }
    let Some(wanted) = select.reference.as_deref().filter(|_| heads.len() > 1) else {
        return Ok(heads);
    };
    let is_wanted = |head: &Head| head.names.iter().any(|name| same_reference(name, wanted));
    let Some(found) = heads.iter().position(is_wanted) else {
        return Err(Error::NoSuchReference {
            wanted: Printable::from(wanted),
            available: heads.iter().flat_map(|head| &head.names).collect(),
        });
    };
    Ok(vec![heads.swap_remove(found)])
}

/// Returns the description of a layer.
fn describe(blobs: &Blobs, id: &str) -> Result<Map<String, Value>> {
    let what = Part::LayerDescription;
    let path = format!("{id}/json");
    let missing = || Error::Missing {
        what,
        name: Printable::from(&*path),
    };
    let place = lexical(&[], path.as_bytes()).ok_or_else(missing)?;
    let bytes = blobs
        .document(&place, what, CONFIG_BYTES_MAX)?
        .ok_or_else(missing)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { what, source })
}

/// Returns the id of the layer below, as a description states it.
pub(crate) fn parent(description: &Map<String, Value>) -> Option<String> {
    let parent = description.get("parent")?.as_str()?;
    (!parent.is_empty()).then(|| parent.to_owned())
}

fn open_head(
    blobs: &Arc<Blobs>,
    head: Head,
    known: &mut HashMap<Vec<u8>, LayerInfo>,
) -> Result<Image> {
    let mut chain = Vec::new();
    let mut next = Some(head.layer);
    while let Some(id) = next {
        if chain.len() == LAYERS_MAX {
            return Err(Error::Document {
                what: Part::LayerDescription,
                fault: "it has more than 1024 layers below it, or is its own ancestor",
            });
        }
        let description = describe(blobs, &id)?;
        next = parent(&description);
        chain.push((id, description));
    }
    chain.reverse();
    let (mut layers, mut contents) = (Vec::new(), Vec::new());
    for (index, (id, _)) in chain.iter().enumerate() {
        let what = Part::layer(index);
        let path = format!("{id}/layer.tar");
        let place = lexical(&[], path.as_bytes()).ok_or_else(|| Error::Missing {
            what,
            name: Printable::from(&*path),
        })?;
        let info = match known.get(&place) {
            Some(info) => info.clone(),
            None => read_layer(blobs, &place, what)?,
        };
        known.insert(place.clone(), info.clone());
        layers.push(info);
        contents.push(Content::Blob(Arc::clone(blobs), place));
    }
    let descriptions = chain.into_iter().map(|(_, description)| description);
    let diff_ids: Vec<Digest> = layers.iter().filter_map(|layer| layer.diff_id).collect();
    let config = config_of(descriptions.collect(), &diff_ids)?;
    Ok(Image {
        config: Some(config),
        names: head.names,
        manifest: None,
        stated_platform: None,
        other_platform: None,
        layers,
        contents,
    })
}

/// Reads a layer to compute its diff id.
fn read_layer(blobs: &Blobs, place: &[u8], what: Part) -> Result<LayerInfo> {
    let blob = blobs.open(place, what)?;
    let size_bytes = blob.size_bytes;
    let mut content = Decoder::new(blob.content).map_err(Error::archive)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    loop {
        let len = content.read(&mut buffer).map_err(Error::archive)?;
        if len == 0 {
            break;
        }
        hasher.update(&buffer[..len]);
    }
    Ok(LayerInfo {
        diff_id: Some(hasher.digest()),
        size_bytes: Some(size_bytes),
        ..LayerInfo::of_plain_tar()
    })
}

/// Returns the configuration: the description of the highest layer, with all layers and their
/// history.
pub(crate) fn config_of(
    descriptions: Vec<Map<String, Value>>,
    diff_ids: &[Digest],
) -> Result<ImageConfig> {
    let history: Vec<Value> = descriptions.iter().map(history_of).collect();
    let mut config = descriptions.into_iter().next_back().unwrap_or_default();
    for key in OF_THE_LAYER {
        config.remove(key);
    }
    config.entry("os").or_insert_with(|| json!("linux"));
    config.insert("history".to_owned(), Value::Array(history));
    let root = json!({"type": "layers", "diff_ids": diff_ids});
    config.insert("rootfs".to_owned(), root);
    let what = Part::Config;
    let raw = serde_json::to_vec(&config).map_err(|source| Error::Json { what, source })?;
    ImageConfig::parse(raw)
}

fn history_of(description: &Map<String, Value>) -> Value {
    let mut step = Map::new();
    for key in ["created", "author", "comment"] {
        let value = description.get(key).filter(|value| value.is_string());
        step.extend(value.map(|value| (key.to_owned(), value.clone())));
    }
    let command = description
        .get("container_config")
        .and_then(|config| config["Cmd"].as_array());
    let words: Vec<&str> = command
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !words.is_empty() {
        step.insert("created_by".to_owned(), json!(words.join(" ")));
    }
    Value::Object(step)
}
