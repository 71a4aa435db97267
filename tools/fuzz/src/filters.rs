//! What a client may ask the snapshotter to list.

use cowshed_daemon::snapshotter::understands_filters;

/// Longer ones are refused by their length alone.
const BYTES_MAX: usize = 32 << 10;

/// Each line is a filter.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(&data[..data.len().min(BYTES_MAX)]);
    let filters: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let understood = understands_filters(&filters);
    // Several are understood if each of them is, as long as they are few.
    let each = filters
        .iter()
        .all(|filter| understands_filters(std::slice::from_ref(filter)));
    assert!(each || !understood, "{filters:?}");
    assert!(understood || !each || filters.len() > 1, "{filters:?}");
}

/// One of each form that there is.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "name==a,kind==active\nparent!=\"\"",
        "labels.\"containerd.io/gc.root\"==\"x\\x20\\171\\u00e9\"",
        "name~=/^a\\/b[0-9]+$/\nparent~=|(a|b)*|,labels.l",
        "labels.a.b.c",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
