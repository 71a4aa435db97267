//! The records of images and containers in the pool's catalogue, and finding them by name or id.
//!
//! A record is JSON with a version: 1, or 2 for what readers of version 1 must not take for something
//! else (a container with an overlay root). Data that can be derived is not stored twice: an image's names
//! are the references to it, and a container's use of an image is in the container's record.
//!
//! # Invariants
//! - A name is stored in its short form, one record for each [`Reference`]. Older versions stored
//!   names as they were given: these are also found by every form, and such a record is removed
//!   when the name is given again.
//! - A reference leads to an existing image; a container's image exists; each layer of an image has
//!   its volume `layer/<chain id>`. All changes keep this in single transactions.

use crate::error::{Error, Kind, RecordFault, Result};
use cowshed_engine::{Pool, RecordKind, Transaction, Volume};
use cowshed_format::base::{self, Name};
use cowshed_oci::{Digest, Reference, same_reference};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A container's name; the key is the name, the value the container's id.
const CONTAINER_NAME: RecordKind = RecordKind(16);
const VERSION: u32 = 1;
/// The version of the record of a container with another root than a block root.
const VERSION_WITH_ROOT: u32 = 2;
/// The minimum number of digits that may stand for a whole id.
const PREFIX_DIGITS_MIN: usize = 4;
/// Hexadecimal digits of an id.
const ID_DIGITS: usize = 64;

/// The stored data of an image; its id is the digest of `config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    version: u32,
    /// The configuration, byte by byte as it was imported.
    pub config: String,
    /// The layers, lowest first.
    pub layers: Vec<LayerRecord>,
    created_s: u64,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// The identity of the stack up to here; it names the volume.
    pub chain_id: Digest,
    /// The digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Bytes of the uncompressed layer, if known.
    pub size_bytes: Option<u64>,
}

/// The kind of a container's root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootKind {
    /// A clone of the image's top layer, mounted as it is.
    #[default]
    Block,
    /// An overlay of the image's top layer, which all containers of the image share, and an own
    /// volume with the changes.
    Overlay,
}

impl RootKind {
    const fn is_block(&self) -> bool {
        matches!(self, Self::Block)
    }

    /// Returns the kind's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Overlay => "overlay",
        }
    }
}

/// The text names no kind of root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write block or overlay")]
pub struct UnknownRootKind;

impl std::str::FromStr for RootKind {
    type Err = UnknownRootKind;

    fn from_str(text: &str) -> Result<Self, UnknownRootKind> {
        let all = [Self::Block, Self::Overlay];
        let found = all.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or(UnknownRootKind)
    }
}

/// The stored data of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    version: u32,
    /// 256 random bits in hexadecimal.
    pub id: String,
    /// The name.
    pub name: String,
    /// The id of the image.
    pub image: Digest,
    /// The image's name when the container was created.
    pub image_name: String,
    created_s: u64,
    /// The kind of its root.
    #[serde(default, skip_serializing_if = "RootKind::is_block")]
    pub root: RootKind,
}

/// The result of looking up an image.
#[derive(Clone, Debug)]
pub(crate) struct FoundImage {
    pub id: Digest,
    pub record: ImageRecord,
    /// The name that was matched, if it was a name.
    pub name: Option<StoredName>,
}

/// A name of an image as the pool has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredName {
    /// The key of its record.
    pub key: String,
    /// The readable form of the name.
    pub shown: String,
    /// The image that it leads to.
    pub image: Digest,
}

impl ImageRecord {
    pub(crate) fn new(config: String, layers: Vec<LayerRecord>) -> Self {
        Self {
            version: VERSION,
            config,
            layers,
            created_s: now_s(),
        }
    }

    pub(crate) fn created(&self) -> SystemTime {
        time(self.created_s)
    }
}

impl ContainerRecord {
    pub(crate) fn new(
        id: String,
        name: &Name,
        (image, image_name): (Digest, String),
        root: RootKind,
    ) -> Self {
        let name = name.as_str().to_owned();
        Self {
            version: match root {
                RootKind::Block => VERSION,
                RootKind::Overlay => VERSION_WITH_ROOT,
            },
            id,
            name,
            image,
            image_name,
            created_s: now_s(),
            root,
        }
    }

    pub(crate) fn created(&self) -> SystemTime {
        time(self.created_s)
    }

    /// Returns the container's own volume: its root, or what it changed in an overlay root.
    pub(crate) fn volume(&self, pool: &Pool) -> Result<Volume> {
        Ok(pool.volume(container_volume_name(&self.id)?.as_str())?)
    }
}

fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .unwrap_or(UNIX_EPOCH)
}

/// Returns the volume name of the layer that completes the stack `chain_id`.
pub(crate) fn layer_volume_name(chain_id: Digest) -> Result<Name> {
    Ok(Name::new(&format!("layer/{chain_id}"))?)
}

/// Returns the volume name of the recipe of that layer.
pub(crate) fn recipe_volume_name(chain_id: Digest) -> Result<Name> {
    Ok(Name::new(&format!("recipe/{chain_id}"))?)
}

pub(crate) fn container_volume_name(id: &str) -> Result<Name> {
    Ok(Name::new(&format!("container/{id}"))?)
}

/// Returns the volume of the layer that completes the stack `chain_id`, if it is in the pool.
pub(crate) fn layer_volume(pool: &Pool, chain_id: Digest) -> Result<Option<Volume>> {
    volume(pool, &layer_volume_name(chain_id)?)
}

/// Returns the volume with the recipe of that layer, if there is one.
pub(crate) fn recipe_volume(pool: &Pool, chain_id: Digest) -> Result<Option<Volume>> {
    volume(pool, &recipe_volume_name(chain_id)?)
}

fn volume(pool: &Pool, name: &Name) -> Result<Option<Volume>> {
    match pool.volume(name.as_str()) {
        Ok(volume) => Ok(Some(volume)),
        Err(base::Error::NotFound(_) | base::Error::NoSuchVolume(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn put_image(
    transaction: &mut Transaction,
    id: Digest,
    record: &ImageRecord,
) -> Result<()> {
    put(
        transaction,
        RecordKind::IMAGE,
        Kind::Image,
        &id.to_string(),
        record,
    )
}

/// Gives the name to the image `id`; `names` are all existing names.
pub(crate) fn put_reference(
    transaction: &mut Transaction,
    names: &[StoredName],
    reference: &Reference,
    id: Digest,
) {
    let short = reference.short();
    let others = names.iter().filter(|name| name.key != short);
    for other in others.filter(|name| same_reference(&name.key, &short)) {
        transaction.remove_record(RecordKind::REFERENCE, other.key.as_bytes());
    }
    let id = id.to_string();
    transaction.put_record(RecordKind::REFERENCE, short.as_bytes(), id.as_bytes());
}

pub(crate) fn put_container(transaction: &mut Transaction, record: &ContainerRecord) -> Result<()> {
    transaction.put_record(CONTAINER_NAME, record.name.as_bytes(), record.id.as_bytes());
    put(
        transaction,
        RecordKind::CONTAINER,
        Kind::Container,
        &record.id,
        record,
    )
}

pub(crate) fn remove_container(transaction: &mut Transaction, record: &ContainerRecord) {
    transaction.remove_record(CONTAINER_NAME, record.name.as_bytes());
    transaction.remove_record(RecordKind::CONTAINER, record.id.as_bytes());
}

fn put<T: Serialize>(
    transaction: &mut Transaction,
    record_kind: RecordKind,
    kind: Kind,
    key: &str,
    record: &T,
) -> Result<()> {
    let fault = |error| Error::Record {
        kind,
        key: key.into(),
        fault: RecordFault::Json(error),
    };
    let value = serde_json::to_vec(record).map_err(fault)?;
    transaction.put_record(record_kind, key.as_bytes(), &value);
    Ok(())
}

/// Returns all images by id.
pub(crate) fn images(pool: &Pool) -> Result<BTreeMap<Digest, ImageRecord>> {
    let records = pool.records(RecordKind::IMAGE);
    records
        .iter()
        .map(|(key, value)| {
            let id = digest(Kind::Image, key)?;
            Ok((id, parse::<ImageRecord>(Kind::Image, key, value)?))
        })
        .collect()
}

/// Returns the image with this id.
pub(crate) fn image(pool: &Pool, id: Digest) -> Result<Option<ImageRecord>> {
    let key = id.to_string();
    let value = pool.record(RecordKind::IMAGE, key.as_bytes());
    value
        .map(|value| parse(Kind::Image, key.as_bytes(), &value))
        .transpose()
}

/// Returns all names of images.
pub(crate) fn names(pool: &Pool) -> Result<Vec<StoredName>> {
    let mut names = Vec::new();
    for (key, value) in pool.records(RecordKind::REFERENCE).iter() {
        let key = text(Kind::Reference, key)?;
        let image = digest(Kind::Reference, value)?;
        names.push(StoredName {
            shown: shown_name(pool, &key),
            key,
            image,
        });
    }
    Ok(names)
}

/// Returns the short form of a stored name, unless that leads to another record.
fn shown_name(pool: &Pool, key: &str) -> String {
    let short = short_name(key);
    let is_taken = short != key
        && pool
            .record(RecordKind::REFERENCE, short.as_bytes())
            .is_some();
    if is_taken { key.to_owned() } else { short }
}

/// Returns the short form of a name; a text that is not a valid name is returned unchanged.
pub(crate) fn short_name(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.short())
}

/// Finds the record of a name: in the given form, in its short form, or in another form in which an
/// older version stored it.
fn find_name(pool: &Pool, wanted: &str) -> Result<Option<StoredName>> {
    let with_tag = format!("{wanted}:latest");
    for key in [wanted, &*short_name(wanted), &*with_tag] {
        if let Some(value) = pool.record(RecordKind::REFERENCE, key.as_bytes()) {
            return Ok(Some(StoredName {
                key: key.to_owned(),
                shown: shown_name(pool, key),
                image: digest(Kind::Reference, &value)?,
            }));
        }
    }
    let mut names = names(pool)?.into_iter();
    Ok(names.find(|name| same_reference(&name.key, wanted)))
}

/// Returns true if an image has this name, in any form; a name that cannot be read is none.
#[must_use]
pub fn is_image_name(pool: &Pool, name: &str) -> bool {
    matches!(find_name(pool, name), Ok(Some(_)))
}

/// Returns all containers, sorted by id.
pub(crate) fn containers(pool: &Pool) -> Result<Vec<ContainerRecord>> {
    let records = pool.records(RecordKind::CONTAINER);
    records
        .iter()
        .map(|(key, value)| parse(Kind::Container, key, value))
        .collect()
}

/// Returns true if a container has this name.
pub(crate) fn is_container_name_taken(pool: &Pool, name: &Name) -> bool {
    pool.record(CONTAINER_NAME, name.as_str().as_bytes())
        .is_some()
}

/// Finds an image by any form of its name, by id, or by the start of an id.
pub(crate) fn find_image(pool: &Pool, wanted: &str) -> Result<FoundImage> {
    if let Some(name) = find_name(pool, wanted)? {
        let id = name.image;
        let record = image(pool, id)?.ok_or_else(|| Error::Record {
            kind: Kind::Reference,
            key: name.key.as_str().into(),
            fault: RecordFault::Contradiction("it refers to an image that is missing"),
        })?;
        return Ok(FoundImage {
            id,
            record,
            name: Some(name),
        });
    }
    let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let keys = pool.records(RecordKind::IMAGE);
    let (key, value) = find_by_digits(&keys, digits, |key| key.strip_prefix(b"sha256:"))
        .map_err(|fits| missing(Kind::Image, wanted, fits))?;
    let record = parse(Kind::Image, key, value)?;
    Ok(FoundImage {
        id: digest(Kind::Image, key)?,
        record,
        name: None,
    })
}

/// Finds a container by name, by id, or by the start of an id.
pub(crate) fn find_container(pool: &Pool, wanted: &str) -> Result<ContainerRecord> {
    if let Some(id) = pool.record(CONTAINER_NAME, wanted.as_bytes()) {
        let value = pool.record(RecordKind::CONTAINER, &id);
        let value = value.ok_or_else(|| Error::not_found(Kind::Container, wanted))?;
        return parse(Kind::Container, &id, &value);
    }
    if wanted.len() == ID_DIGITS
        && let Some(value) = pool.record(RecordKind::CONTAINER, wanted.as_bytes())
    {
        return parse(Kind::Container, wanted.as_bytes(), &value);
    }
    let keys = pool.records(RecordKind::CONTAINER);
    let (key, value) = find_by_digits(&keys, wanted, Some)
        .map_err(|fits| missing(Kind::Container, wanted, fits))?;
    parse(Kind::Container, key, value)
}

type Stored = (std::sync::Arc<[u8]>, std::sync::Arc<[u8]>);

/// Returns the only record whose id starts with `digits`, or the number of such records.
fn find_by_digits<'r>(
    records: &'r [Stored],
    digits: &str,
    id: impl Fn(&'r [u8]) -> Option<&'r [u8]>,
) -> Result<(&'r [u8], &'r [u8]), usize> {
    if digits.len() < PREFIX_DIGITS_MIN {
        return Err(0);
    }
    let fits = |key: &'r [u8]| id(key).is_some_and(|id| id.starts_with(digits.as_bytes()));
    let mut found = records.iter().filter(|(key, _)| fits(key));
    match (found.next(), found.count()) {
        (Some((key, value)), 0) => Ok((key, value)),
        (first, more) => Err(usize::from(first.is_some()) + more),
    }
}

fn missing(kind: Kind, wanted: &str, fits: usize) -> Error {
    if fits == 0 {
        Error::not_found(kind, wanted)
    } else {
        Error::Ambiguous {
            kind,
            prefix: wanted.into(),
        }
    }
}

/// The start of every record.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

pub(crate) fn parse<T: DeserializeOwned>(kind: Kind, key: &[u8], value: &[u8]) -> Result<T> {
    let fault = |fault| Error::Record {
        kind,
        key: String::from_utf8_lossy(key).into(),
        fault,
    };
    let head: Versioned = serde_json::from_slice(value).map_err(|error| fault(error.into()))?;
    let known = match kind {
        Kind::Container => VERSION..=VERSION_WITH_ROOT,
        _ => VERSION..=VERSION,
    };
    if !known.contains(&head.version) {
        return Err(fault(RecordFault::Version(head.version)));
    }
    serde_json::from_slice(value).map_err(|error| fault(error.into()))
}

fn text(kind: Kind, bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|error| Error::Record {
        kind,
        key: String::from_utf8_lossy(error.as_bytes()).into(),
        fault: RecordFault::Contradiction("it is not text"),
    })
}

fn digest(kind: Kind, bytes: &[u8]) -> Result<Digest> {
    str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::Record {
            kind,
            key: String::from_utf8_lossy(bytes).into(),
            fault: RecordFault::Contradiction("it is not an image id"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn stored(keys: &[&str]) -> Vec<Stored> {
        let row = |key: &&str| (Arc::from(key.as_bytes()), Arc::from(&b"value"[..]));
        keys.iter().map(row).collect()
    }

    #[test]
    fn an_id_is_found_by_a_unique_start_of_four_digits() {
        let rows = stored(&["abcd1", "abcd2", "beef0"]);
        let find = |digits| find_by_digits(&rows, digits, Some).map(|(key, _)| key.to_vec());
        assert_eq!(find("beef"), Ok(b"beef0".to_vec()));
        assert_eq!(find("abcd2"), Ok(b"abcd2".to_vec()));
        assert_eq!(find("abcd"), Err(2));
        assert_eq!(find("bee"), Err(0));
        assert_eq!(find("feed"), Err(0));
    }

    #[test]
    fn a_record_of_a_newer_version_is_refused() {
        let parsed = parse::<ImageRecord>(Kind::Image, b"k", br#"{"version":2,"odd":true}"#);
        let Err(Error::Record {
            fault: RecordFault::Version(2),
            ..
        }) = parsed
        else {
            panic!("{parsed:?}");
        };
        assert!(parse::<ImageRecord>(Kind::Image, b"k", b"{\"version\":1").is_err());
    }

    #[test]
    fn a_container_with_an_overlay_root_is_refused_by_readers_that_know_only_block_roots() {
        let name = Name::new("one").unwrap();
        let made = |root| {
            let image = (Digest::of(b"image"), "image:1".to_owned());
            let record = ContainerRecord::new("1".repeat(64), &name, image, root);
            let value = serde_json::to_vec(&record).unwrap();
            let back: ContainerRecord = parse(Kind::Container, b"k", &value).unwrap();
            assert_eq!(back, record);
            serde_json::from_slice::<serde_json::Value>(&value).unwrap()
        };
        let (block, overlay) = (made(RootKind::Block), made(RootKind::Overlay));
        // An older cowshed reads version 1 only, and wrote no kind of root.
        assert_eq!((&block["version"], block.get("root")), (&1.into(), None));
        assert_eq!(
            (&overlay["version"], &overlay["root"]),
            (&2.into(), &"overlay".into())
        );
        let mut newer = overlay;
        newer["version"] = 3.into();
        let parsed = parse::<ContainerRecord>(Kind::Container, b"k", newer.to_string().as_bytes());
        let fault = RecordFault::Version(3).to_string();
        assert!(parsed.unwrap_err().to_string().contains(&fault));
    }

    #[test]
    fn a_configuration_is_kept_byte_by_byte() {
        let config = "{ \"a\":\t\"\\u00e9\u{1F600}\" ,\n\"b\":1.50}\n".to_owned();
        let diff_id = Digest::of(b"layer");
        let layer = LayerRecord {
            chain_id: diff_id,
            diff_id,
            size_bytes: Some(5),
        };
        let record = ImageRecord::new(config.clone(), vec![layer]);
        let value = serde_json::to_vec(&record).unwrap();
        let back: ImageRecord = parse(Kind::Image, b"k", &value).unwrap();
        assert_eq!(back, record);
        assert_eq!(back.config, config);
    }
}
