//! Conversion between messages and values: the only module that knows both, and the one that checks
//! every length.

use super::MountMode;
use super::error::{Error, Result};
use super::record::{Kind, Labels, Record};
use super::wire;
use cowshed_engine::MAX_KEY_BYTES;
use cowshed_host::{ERRORS_OPTION, MAX_SIZE_BYTES, MIN_SIZE_BYTES};
use std::path::Path;

/// The longest label, key and value together: containerd's limit.
const LABEL_BYTES_MAX: usize = 4096;
/// All labels of a snapshot together.
const LABELS_BYTES_MAX: usize = 128 << 10;
/// The label with the size of a snapshot's file system.
const SIZE_LABEL: &str = "containerd.io/snapshot/max-size";
/// The label with the form in which a snapshot is handed out.
const MOUNTS_LABEL: &str = "containerd.io/snapshot/cowshed.mounts";
/// The type of the mount of an overlay.
pub(super) const OVERLAY: &str = "overlay";
/// A message of a list is closed when it has this many snapshots, or this many bytes of them.
const PAGE_LEN_MAX: usize = 100;
const PAGE_BYTES_MAX: usize = 1 << 20;

/// Returns an error for a key or name that cannot be stored.
pub(super) fn check_key(what: &'static str, key: &str) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Error::Length {
            what,
            max_bytes: MAX_KEY_BYTES,
        });
    }
    Ok(())
}

/// Returns the parent, if there is one.
pub(super) fn parent(text: String) -> Result<Option<String>> {
    if text.is_empty() {
        return Ok(None);
    }
    check_key("the parent's name", &text)?;
    Ok(Some(text))
}

/// Returns the labels to keep: a label with an empty value is dropped, as in containerd's own
/// snapshotters.
pub(super) fn labels(mut labels: Labels) -> Result<Labels> {
    labels.retain(|_, value| !value.is_empty());
    let mut all = 0;
    for (key, value) in &labels {
        let bytes = key.len() + value.len();
        if key.is_empty() {
            return Err(Error::Length {
                what: "a label's key",
                max_bytes: LABEL_BYTES_MAX,
            });
        }
        if bytes > LABEL_BYTES_MAX {
            let key = key.chars().take(64).collect::<String>().into();
            return Err(Error::Label {
                key,
                max_bytes: LABEL_BYTES_MAX,
            });
        }
        all += bytes;
    }
    if all > LABELS_BYTES_MAX {
        return Err(Error::Labels(LABELS_BYTES_MAX));
    }
    Ok(labels)
}

/// Returns the size that the labels ask for.
pub(super) fn wanted_size(labels: &Labels) -> Result<Option<u64>> {
    let Some(text) = labels.get(SIZE_LABEL) else {
        return Ok(None);
    };
    let size_bytes = parse_size(text).filter(|size| {
        let all = MIN_SIZE_BYTES..=MAX_SIZE_BYTES;
        all.contains(size)
    });
    let size_bytes = size_bytes.ok_or_else(|| Error::LabelValue {
        key: SIZE_LABEL,
        value: text.as_str().into(),
        wanted: "write bytes, or a number with K, M, G or T: 64M to 16T",
    })?;
    Ok(Some(size_bytes))
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" | "ki" => 10,
        "m" | "mb" | "mib" | "mi" => 20,
        "g" | "gb" | "gib" | "gi" => 30,
        "t" | "tb" | "tib" | "ti" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Returns the form in which the labels ask to hand out the snapshot.
pub(super) fn wanted_mounts(labels: &Labels) -> Result<Option<MountMode>> {
    let Some(text) = labels.get(MOUNTS_LABEL) else {
        return Ok(None);
    };
    let mode = text.parse().map_err(|_| Error::LabelValue {
        key: MOUNTS_LABEL,
        value: text.as_str().into(),
        wanted: "write dir, loop, file or overlay",
    })?;
    Ok(Some(mode))
}

/// Returns the mounts with which a client accesses the snapshot.
pub(super) fn mounts(mode: MountMode, source: &Path, is_read_only: bool) -> wire::MountsResponse {
    let access = if is_read_only { "ro" } else { "rw" };
    let (kind, others): (_, &[&str]) = match mode {
        // The mount of an overlay is made by `overlay`.
        MountMode::Dir | MountMode::Overlay => ("bind", &["rbind"]),
        MountMode::Loop => ("ext4", &[ERRORS_OPTION]),
        MountMode::File => ("ext4", &["loop", ERRORS_OPTION]),
    };
    let mut options = vec![access.to_owned()];
    options.extend(others.iter().map(|&option| option.to_owned()));
    // The state folder and devices have ASCII names.
    one_mount(kind, source.to_string_lossy().into_owned(), options)
}

/// Returns the mount of an overlay with these options.
pub(super) fn overlay(options: Vec<String>) -> wire::MountsResponse {
    one_mount(OVERLAY, OVERLAY.to_owned(), options)
}

fn one_mount(kind: &str, source: String, options: Vec<String>) -> wire::MountsResponse {
    let mount = wire::Mount {
        r#type: kind.to_owned(),
        source,
        target: String::new(),
        options,
    };
    wire::MountsResponse {
        mounts: vec![mount],
    }
}

/// Returns the information about a snapshot.
pub(super) fn info(name: &str, record: &Record) -> wire::Info {
    let kind = match record.kind {
        Kind::Active => wire::Kind::Active,
        Kind::View => wire::Kind::View,
        Kind::Committed => wire::Kind::Committed,
    };
    wire::Info {
        name: name.to_owned(),
        parent: record.parent.clone().unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(timestamp(record.created_ns)),
        updated_at: Some(timestamp(record.updated_ns)),
        labels: record.labels.clone(),
    }
}

fn timestamp(nanos: u64) -> prost_types::Timestamp {
    const SECOND: u64 = 1_000_000_000;
    prost_types::Timestamp {
        seconds: i64::try_from(nanos / SECOND).unwrap_or(i64::MAX),
        nanos: i32::try_from(nanos % SECOND).unwrap_or(0),
    }
}

/// Splits snapshots into messages of a bounded size.
pub(super) fn pages(infos: impl Iterator<Item = wire::Info>) -> Vec<wire::ListResponse> {
    let mut pages = Vec::new();
    let mut page = wire::ListResponse::default();
    let mut bytes = 0;
    for info in infos {
        bytes += prost::Message::encoded_len(&info);
        page.info.push(info);
        if page.info.len() >= PAGE_LEN_MAX || bytes >= PAGE_BYTES_MAX {
            pages.push(std::mem::take(&mut page));
            bytes = 0;
        }
    }
    if !page.info.is_empty() {
        pages.push(page);
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::super::record::now_ns;
    use super::*;
    use cowshed_format::base::VolumeId;

    fn one(key: &str, value: &str) -> Labels {
        Labels::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn sizes_are_read_in_bytes_and_powers_of_1024() {
        let size = |text: &str| wanted_size(&one(SIZE_LABEL, text)).ok().flatten();
        assert_eq!(size("67108864"), Some(64 << 20));
        assert_eq!(size("1G"), Some(1 << 30));
        assert_eq!(size("2GiB"), Some(2 << 30));
        for bad in [
            "1",
            "17T",
            "G",
            "",
            "-1",
            "1X",
            "99999999999999999999",
            "9999999T",
        ] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn labels_that_are_too_long_are_refused_and_empty_ones_dropped() {
        assert!(labels(one("k", "")).unwrap().is_empty());
        assert!(labels(one("k", &"v".repeat(LABEL_BYTES_MAX - 1))).is_ok());
        assert!(labels(one("k", &"v".repeat(LABEL_BYTES_MAX))).is_err());
        assert!(labels(one("", "v")).is_err());
        let many = (0..100).map(|n| (format!("{n}"), "v".repeat(4000)));
        assert!(labels(many.collect()).is_err());
        assert!(check_key("k", "").is_err() && check_key("k", &"k".repeat(1025)).is_err());
    }

    #[test]
    fn long_lists_come_in_pages_and_times_keep_their_nanoseconds() {
        let mut record = Record::new(Kind::Active, None, one("k", &"v".repeat(4000)), VolumeId(1));
        record.created_ns = 1_700_000_000_123_456_789;
        let seen = info("n", &record);
        let created = seen.created_at.unwrap();
        assert_eq!(
            (created.seconds, created.nanos),
            (1_700_000_000, 123_456_789)
        );
        assert!(now_ns() > record.created_ns);
        let count = 1050;
        let pages = pages(std::iter::repeat_n(seen, count));
        assert_eq!(
            pages.iter().map(|page| page.info.len()).sum::<usize>(),
            count
        );
        assert!(
            pages
                .iter()
                .all(|page| prost::Message::encoded_len(page) < 2 << 20)
        );
    }
}
