//! Databases of bbolt that are laid out here, whole and damaged.

use super::super::bolt::Bolt;
use super::*;

const PAGE: usize = 4096;

/// A value of a key.
pub(super) enum Item<'i> {
    Bytes(&'i [u8]),
    /// A bucket in its element.
    Inline(Vec<u8>),
    /// A bucket with a page of its own.
    Page(u64),
}

/// Returns the bytes of a leaf.
pub(super) fn leaf(number: u64, items: &[(&str, Item<'_>)]) -> Vec<u8> {
    let mut page = header(number, 2, items.len());
    let mut data = Vec::new();
    for (index, (key, item)) in items.iter().enumerate() {
        let (flags, value) = match item {
            Item::Bytes(bytes) => (0_u32, bytes.to_vec()),
            Item::Inline(page) => (1, [&[0; 16], &**page].concat()),
            Item::Page(page) => (1, [page.to_le_bytes(), [0; 8]].concat()),
        };
        let at = (items.len() - index) * 16 + data.len();
        page.extend_from_slice(&flags.to_le_bytes());
        for field in [at, key.len(), value.len()] {
            let field = u32::try_from(field).unwrap();
            page.extend_from_slice(&field.to_le_bytes());
        }
        data.extend_from_slice(key.as_bytes());
        data.extend_from_slice(&value);
    }
    page.extend_from_slice(&data);
    page
}

fn branch(number: u64, pages: &[u64]) -> Vec<u8> {
    let mut page = header(number, 1, pages.len());
    for child in pages {
        page.extend_from_slice(&[0; 8]);
        page.extend_from_slice(&child.to_le_bytes());
    }
    page
}

pub(super) fn header(number: u64, flags: u16, count: usize) -> Vec<u8> {
    let mut page = number.to_le_bytes().to_vec();
    page.extend_from_slice(&flags.to_le_bytes());
    page.extend_from_slice(&u16::try_from(count).unwrap().to_le_bytes());
    page.extend_from_slice(&0_u32.to_le_bytes());
    page
}

pub(super) fn meta(number: u64, root: u64, transaction: u64) -> Vec<u8> {
    let mut body = Vec::new();
    for field in [0xed0c_daed_u32, 2, 4096, 0] {
        body.extend_from_slice(&field.to_le_bytes());
    }
    for field in [root, 0, 2, 9, transaction] {
        body.extend_from_slice(&field.to_le_bytes());
    }
    let hash = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    body.extend_from_slice(&hash.to_le_bytes());
    [header(number, 4, 0), body].concat()
}

/// Returns a database in which the second meta page is the newer one.
fn database() -> Vec<Vec<u8>> {
    let inner = leaf(0, &[("key", Item::Bytes(b"value"))]);
    vec![
        meta(0, 3, 1),
        meta(1, 4, 2),
        header(2, 16, 0),
        leaf(3, &[]),
        branch(4, &[5, 6]),
        leaf(
            5,
            &[("a", Item::Inline(inner)), ("b", Item::Bytes(b"plain"))],
        ),
        leaf(6, &[("c", Item::Page(7))]),
        leaf(7, &[("x", Item::Bytes(b"y"))]),
    ]
}

pub(super) fn file_of(pages: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for page in pages {
        let mut page = page.clone();
        page.resize(PAGE, 0);
        file.extend_from_slice(&page);
    }
    file
}

fn open(bytes: &[u8]) -> Result<Bolt> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Bolt::open("meta.db", file)
}

/// Reads everything in a database.
fn all(bytes: &[u8]) -> Result<Vec<(String, Option<Vec<u8>>)>> {
    let bolt = open(bytes)?;
    let root = bolt.root();
    let mut found = vec![("b".to_owned(), root.value("b")?)];
    for (name, bucket) in root.buckets()? {
        let key = if name == b"a" { "key" } else { "x" };
        found.push((
            String::from_utf8(name).unwrap_or_default(),
            bucket.value(key)?,
        ));
    }
    Ok(found)
}

#[test]
fn buckets_are_found_in_pages_and_in_elements() {
    let found = all(&file_of(&database())).unwrap();
    let value = |bytes: &[u8]| Some(bytes.to_vec());
    let wanted = [
        ("b", value(b"plain")),
        ("a", value(b"value")),
        ("c", value(b"y")),
    ];
    assert_eq!(found, wanted.map(|(name, value)| (name.to_owned(), value)));
    let bytes = file_of(&database());
    let bolt = open(&bytes).unwrap();
    assert!(bolt.root().bucket("b").unwrap().is_none());
    assert!(bolt.root().bucket("nothing").unwrap().is_none());
}

#[test]
fn a_torn_meta_page_leaves_the_other() {
    let mut bytes = file_of(&database());
    bytes[PAGE + 20] ^= 1;
    assert!(open(&bytes).unwrap().root().buckets().unwrap().is_empty());
    let mut bytes = file_of(&database());
    bytes[20] ^= 1;
    assert_eq!(all(&bytes).unwrap().len(), 3);
    bytes[PAGE + 20] ^= 1;
    assert!(open(&bytes).is_err());
}

#[test]
fn a_damaged_database_is_an_error_and_never_more() {
    let mut pages = database();
    pages[4] = branch(4, &[5, 4]);
    let circle = all(&file_of(&pages)).unwrap_err().to_string();
    assert!(
        circle.ends_with("its pages form a circle, or are too large"),
        "{circle}"
    );
    let mut pages = database();
    let value = [1; 3000];
    pages[5] = leaf(5, &[("a", Item::Bytes(&value)), ("b", Item::Bytes(b""))]);
    // The second value is the first once more.
    pages[5][36..48].copy_from_slice(&[17_u32, 1, 3000].map(u32::to_le_bytes).concat());
    let overlap = all(&file_of(&pages)).unwrap_err().to_string();
    assert!(
        overlap.ends_with("the entries of a page overlap"),
        "{overlap}"
    );
    let bytes = file_of(&database());
    for len in (0..bytes.len()).step_by(64) {
        drop(all(&bytes[..len]));
    }
    let mut faults = 0;
    for at in PAGE..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0xff;
        faults += u32::from(all(&damaged).is_err());
    }
    assert!(faults > 50, "{faults}");
}

#[test]
fn content_that_looks_like_a_meta_page_is_not_taken_for_one() {
    // A meta page of larger pages is looked for at other places.
    for at in [2, 8] {
        let mut pages = database();
        pages.resize(12, header(9, 16, 0));
        pages[at] = meta(1, 3, 9);
        assert_eq!(all(&file_of(&pages)).unwrap().len(), 3);
        // The first is torn, and the second is at its place.
        pages[0][20] ^= 1;
        assert_eq!(all(&file_of(&pages)).unwrap().len(), 3);
        // Neither is whole.
        pages[1][20] ^= 1;
        assert!(open(&file_of(&pages)).is_err());
    }
}
