//! The filters that a client may send to the snapshotter.

use cowshed_daemon::snapshotter::understands_filters;

/// Longer ones are refused because of their length.
const BYTES_MAX: usize = 32 << 10;

/// Runs the input, in which each line is a filter.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(&data[..data.len().min(BYTES_MAX)]);
    let filters: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let understood = understands_filters(&filters);
    // Several filters are accepted if each of them is, as long as there are few.
    let each = filters
        .iter()
        .all(|filter| understands_filters(std::slice::from_ref(filter)));
    assert!(each || !understood, "{filters:?}");
    assert!(understood || !each || filters.len() > 1, "{filters:?}");
}

/// Returns a seed for each form of a filter.
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
