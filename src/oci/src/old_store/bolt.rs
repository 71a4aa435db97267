//! Reading a database of bbolt, in which containerd keeps its records: buckets of keys and values in a
//! B+ tree of pages. No library reads one without trusting it.
//!
//! Every offset is checked against the page and every page against the file, and no more is read for a
//! bucket than the file has. Numbers are those of the processor that wrote the file; only little-endian
//! ones are read. Source: <https://github.com/etcd-io/bbolt>, `internal/common/page.go`.

use super::folder::damaged;
use crate::error::{Error, Result};
use crate::limits::STORE_LIST_BYTES_MAX;
use cowshed_format::base::cancel;
use std::fs::File;
use std::os::unix::fs::FileExt;

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
/// The number of bytes before the elements of a page.
const HEADER_BYTES: usize = 16;
/// The number of bytes of a meta page after the header, with their checksum at the end.
const META_BYTES: usize = 64;
/// The sizes that a page can have: powers of two.
const PAGE_BYTES: std::ops::RangeInclusive<u32> = 10..=24;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const META: u16 = 4;
/// The number of bytes of an element of a branch or a leaf.
const ELEMENT_BYTES: usize = 16;
/// The flag of an element that is a bucket.
const IS_BUCKET: u32 = 1;
/// The number of bytes before the page of a bucket that is stored in its element.
const BUCKET_BYTES: usize = 16;
/// The maximum depth of a tree: a database of this depth would be larger than any file.
const DEPTH_MAX: usize = 64;
/// The largest page with those that continue it, in bytes.
const NODE_BYTES_MAX: u64 = 64 << 20;

/// An open database.
pub(super) struct Bolt {
    name: String,
    file: File,
    file_bytes: u64,
    page_bytes: u64,
    root: u64,
}

/// What a meta page says.
struct Meta {
    /// The number of the page itself.
    number: u64,
    page_bytes: u64,
    /// The page of the root bucket.
    root: u64,
    transaction: u64,
}

/// A bucket: where its tree begins.
pub(super) struct Bucket<'b> {
    bolt: &'b Bolt,
    start: Start,
}

enum Start {
    Page(u64),
    /// A page in the element of the bucket.
    Inline(Vec<u8>),
}

/// The value of a key.
enum Value<'b> {
    Bytes(Vec<u8>),
    Bucket(Bucket<'b>),
}

/// A bucket's keys with their values.
struct Entries<'b> {
    found: Vec<(Vec<u8>, Value<'b>)>,
    /// Number of bytes of pages that may still be read: a sound tree has no page twice.
    left_bytes: u64,
}

impl Bolt {
    /// Opens the database in `file`, which has this name in messages.
    pub(super) fn open(name: &str, file: File) -> Result<Self> {
        let failed = |source| Error::entry("read", name.as_bytes(), source);
        let file_bytes = file.metadata().map_err(failed)?.len();
        let look = |at: u64| -> Result<Option<Meta>> {
            let mut bytes = [0; HEADER_BYTES + META_BYTES];
            let end = at.checked_add(bytes.len() as u64);
            if end.is_none_or(|end| end > file_bytes) {
                return Ok(None);
            }
            file.read_exact_at(&mut bytes, at).map_err(failed)?;
            Ok(meta(&bytes))
        };
        // What looks like a meta page at another place is content that somebody stored.
        let second = |at: u64| -> Result<Option<Meta>> {
            Ok(look(at)?.filter(|meta| meta.number == 1 && meta.page_bytes == at))
        };
        let newest = match look(0)?.filter(|meta| meta.number == 0) {
            Some(first) => Some(match second(first.page_bytes)? {
                Some(second) if second.transaction > first.transaction => second,
                _ => first,
            }),
            None => {
                let mut found = None;
                for power in PAGE_BYTES {
                    found = found.or(second(1 << power)?);
                }
                found
            }
        };
        let newest = newest.ok_or_else(|| damaged(name, "it is no database of bbolt"))?;
        Ok(Self {
            name: name.to_owned(),
            file,
            file_bytes,
            page_bytes: newest.page_bytes,
            root: newest.root,
        })
    }

    /// Returns the bucket with all others.
    pub(super) const fn root(&self) -> Bucket<'_> {
        Bucket {
            bolt: self,
            start: Start::Page(self.root),
        }
    }

    fn fault(&self, fault: &'static str) -> Error {
        damaged(&self.name, fault)
    }

    /// Returns a page with those that continue it.
    fn page(&self, number: u64) -> Result<Vec<u8>> {
        let outside = || self.fault("a page is outside of the file");
        let at = number.checked_mul(self.page_bytes).ok_or_else(outside)?;
        let within = |len: u64| {
            at.checked_add(len)
                .is_some_and(|end| end <= self.file_bytes)
        };
        if !within(self.page_bytes) {
            return Err(outside());
        }
        let failed = |source| Error::entry("read", self.name.as_bytes(), source);
        let mut header = [0; HEADER_BYTES];
        self.file.read_exact_at(&mut header, at).map_err(failed)?;
        if u64_at(&header, 0) != Some(number) {
            return Err(self.fault("a page has another number"));
        }
        let more = u64::from(u32_at(&header, 12).unwrap_or_default());
        let len_bytes = self.page_bytes.saturating_mul(more.saturating_add(1));
        if len_bytes > NODE_BYTES_MAX || !within(len_bytes) {
            return Err(outside());
        }
        let mut page = vec![0; usize::try_from(len_bytes).map_err(|_| outside())?];
        self.file.read_exact_at(&mut page, at).map_err(failed)?;
        Ok(page)
    }
}

impl<'b> Bucket<'b> {
    /// Returns the bucket with this key in this bucket; `None` if there is none.
    pub(super) fn bucket(&self, key: &str) -> Result<Option<Self>> {
        let mut buckets = self.buckets()?.into_iter();
        let found = buckets.find(|(name, _)| name == key.as_bytes());
        Ok(found.map(|(_, bucket)| bucket))
    }

    /// Returns the buckets in this bucket, with their keys, in the order of the keys.
    pub(super) fn buckets(&self) -> Result<Vec<(Vec<u8>, Self)>> {
        let buckets = self.entries()?.into_iter().filter_map(|(key, value)| {
            let Value::Bucket(bucket) = value else {
                return None;
            };
            Some((key, bucket))
        });
        Ok(buckets.collect())
    }

    /// Returns the value of this key; `None` if there is none.
    pub(super) fn value(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let mut entries = self.entries()?.into_iter();
        Ok(entries.find_map(|(name, value)| match value {
            Value::Bytes(bytes) if name == key.as_bytes() => Some(bytes),
            _ => None,
        }))
    }

    fn entries(&self) -> Result<Vec<(Vec<u8>, Value<'b>)>> {
        let mut entries = Entries {
            found: Vec::new(),
            left_bytes: self.bolt.file_bytes.min(STORE_LIST_BYTES_MAX),
        };
        match &self.start {
            Start::Page(page) => self.bolt.collect(*page, &mut entries, 0)?,
            Start::Inline(page) => self.bolt.collect_leaf(page, &mut entries)?,
        }
        Ok(entries.found)
    }
}

impl Bolt {
    /// Adds the entries of the tree that begins at a page.
    fn collect<'b>(&'b self, page: u64, entries: &mut Entries<'b>, depth: usize) -> Result<()> {
        cancel::check()?;
        let page = self.page(page)?;
        let left = entries.left_bytes.checked_sub(page.len() as u64);
        entries.left_bytes = left
            .filter(|_| depth < DEPTH_MAX)
            .ok_or_else(|| self.fault("its pages form a circle, or are too large"))?;
        match u16_at(&page, 8) {
            Some(BRANCH) => {
                for element in self.elements(&page)? {
                    let next = u64_at(element, 8).unwrap_or_default();
                    self.collect(next, entries, depth + 1)?;
                }
                Ok(())
            }
            Some(LEAF) => self.collect_leaf(&page, entries),
            _ => Err(self.fault("a page is of another kind")),
        }
    }

    fn collect_leaf<'b>(&'b self, page: &[u8], entries: &mut Entries<'b>) -> Result<()> {
        if u16_at(page, 8) != Some(LEAF) {
            return Err(self.fault("a page is of another kind"));
        }
        let mut left_bytes = page.len();
        for (index, element) in self.elements(page)?.enumerate() {
            let flags = u32_at(element, 0).unwrap_or_default();
            let len = |at| u32_at(element, at).unwrap_or_default() as usize;
            let start = HEADER_BYTES + index * ELEMENT_BYTES;
            let (at, key_bytes, value_bytes) = (len(4), len(8), len(12));
            let parts = start.checked_add(at).and_then(|key| {
                let value = key.checked_add(key_bytes)?;
                let end = value.checked_add(value_bytes)?;
                Some((page.get(key..value)?, page.get(value..end)?))
            });
            let (key, value) =
                parts.ok_or_else(|| self.fault("an entry is outside of its page"))?;
            left_bytes = left_bytes
                .checked_sub(key.len() + value.len())
                .ok_or_else(|| self.fault("the entries of a page overlap"))?;
            let value = if flags & IS_BUCKET == 0 {
                Value::Bytes(value.to_vec())
            } else {
                Value::Bucket(self.bucket_of(value)?)
            };
            entries.found.push((key.to_vec(), value));
        }
        Ok(())
    }

    fn bucket_of<'b>(&'b self, value: &[u8]) -> Result<Bucket<'b>> {
        let short = || self.fault("a bucket is too short");
        let root = u64_at(value, 0).ok_or_else(short)?;
        let start = match root {
            0 => Start::Inline(value.get(BUCKET_BYTES..).ok_or_else(short)?.to_vec()),
            page => Start::Page(page),
        };
        Ok(Bucket { bolt: self, start })
    }

    /// Returns the elements of a page.
    fn elements<'p>(&self, page: &'p [u8]) -> Result<std::slice::ChunksExact<'p, u8>> {
        let count = usize::from(u16_at(page, 10).unwrap_or_default());
        let end = HEADER_BYTES + count * ELEMENT_BYTES;
        let elements = page.get(HEADER_BYTES..end);
        let elements = elements.ok_or_else(|| self.fault("a page has more entries than fit"))?;
        Ok(elements.chunks_exact(ELEMENT_BYTES))
    }
}

/// Returns what a meta page says; `None` if it is none.
fn meta(page: &[u8]) -> Option<Meta> {
    let body = page.get(HEADER_BYTES..)?;
    let is_meta = u16_at(page, 8)? & META != 0
        && u32_at(body, 0)? == MAGIC
        && u32_at(body, 4)? == VERSION
        && u64_at(body, META_BYTES - 8)? == fnv_1a(body.get(..META_BYTES - 8)?);
    let page_bytes = u32_at(body, 8)?;
    let is_sound =
        page_bytes.is_power_of_two() && PAGE_BYTES.contains(&page_bytes.trailing_zeros());
    let found = Meta {
        number: u64_at(page, 0)?,
        page_bytes: u64::from(page_bytes),
        root: u64_at(body, 16)?,
        transaction: u64_at(body, 48)?,
    };
    (is_meta && is_sound).then_some(found)
}

fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
