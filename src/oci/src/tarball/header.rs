//! The content of one header record: kind, fields, checksum.

use super::number;
use super::reader::ZERO_RECORD;
use super::{Entry, Kind, MULTI_VOLUME, RECORD_BYTES, Time};
use crate::dropped::Loss;
use crate::error::{Error, HeaderFault, Printable, Result};
use crate::limits::PATH_BYTES_MAX;
use tar::{EntryType, Header};

/// GNU tar's volume label, which creates nothing.
const VOLUME_LABEL: u8 = b'V';
/// The continuation of a file from the previous volume.
const CONTINUATION: u8 = b'M';
/// GNU tar's directory with the list of its files at the time of an incremental backup.
pub(super) const DUMP_DIRECTORY: u8 = b'D';
/// Long names in GNU tar's format from before 1990.
const OLD_LONG_NAMES: u8 = b'N';
/// The PAX header of Solaris, the same as `x`.
pub(super) const SOLARIS_PAX: u8 = b'X';
/// Solaris: an access control list; extended attributes as files.
const SOLARIS_ACL: u8 = b'A';
const SOLARIS_ATTRIBUTES: u8 = b'E';
/// star: metadata without the file.
const STAR_INODE: u8 = b'I';

/// Returns the fields of the entry's own header, checked.
pub(super) fn own_fields(
    header: &Header,
    path: Vec<u8>,
    kind: Kind,
    uid: Option<u64>,
    gid: Option<u64>,
) -> Result<Entry> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX || path.contains(&0) {
        return Err(fault(&path, HeaderFault::Path));
    }
    let old = header.as_old();
    let number =
        |value: Option<u64>, what| value.ok_or_else(|| fault(&path, HeaderFault::Number(what)));
    let owner = |stated: Option<u64>, field: &[u8], what| {
        let id = number(stated.or_else(|| number::unsigned(field)), what)?;
        // The highest id means "leave it" to chown(2).
        u32::try_from(id)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| fault(&path, HeaderFault::Number(what)))
    };
    let seconds = number::field(&old.mtime);
    let mode = number(number::unsigned(&old.mode), "mode")? & 0o7777;
    let (device_major, device_minor) = device(header, kind, &path)?;
    Ok(Entry {
        kind,
        mode: u32::try_from(mode).unwrap_or_default(),
        uid: owner(uid, &old.uid, "owner")?,
        gid: owner(gid, &old.gid, "group")?,
        mtime: Time {
            seconds: seconds.ok_or_else(|| fault(&path, HeaderFault::Number("time")))?,
            nanoseconds: 0,
        },
        atime: None,
        link: Vec::new(),
        size_bytes: 0,
        segments: Vec::new(),
        device_major,
        device_minor,
        xattrs: Vec::new(),
        acl_access: None,
        acl_default: None,
        path,
    })
}

fn device(header: &Header, kind: Kind, path: &[u8]) -> Result<(u32, u32)> {
    if !matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
        return Ok((0, 0));
    }
    // The fields have the same offset in ustar and GNU headers; v7 has no devices.
    let bytes = header.as_bytes();
    let number = |field: &[u8]| {
        number::unsigned(field)
            .and_then(|value| u32::try_from(value).ok())
            .ok_or_else(|| fault(path, HeaderFault::Number("device number")))
    };
    Ok((number(&bytes[329..337])?, number(&bytes[337..345])?))
}

pub(super) fn kind_of(header: &Header, path: &[u8]) -> Result<Kind> {
    Ok(match header.entry_type() {
        // Before ustar, a directory was a file whose name ends in a slash.
        EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Link => Kind::HardLink,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Char => Kind::CharDevice,
        EntryType::Block => Kind::BlockDevice,
        EntryType::Directory => Kind::Directory,
        kind if kind.as_byte() == DUMP_DIRECTORY => Kind::Directory,
        EntryType::Fifo => Kind::Fifo,
        _ => return Err(fault(path, HeaderFault::Kind)),
    })
}

/// Returns the loss for an entry that creates nothing.
pub(super) fn lost_kind(kind: EntryType) -> Option<Loss> {
    match kind.as_byte() {
        VOLUME_LABEL => Some(Loss::VolumeLabel),
        SOLARIS_ACL => Some(Loss::OtherAcl),
        SOLARIS_ATTRIBUTES | STAR_INODE => Some(Loss::OtherMetadata),
        _ => None,
    }
}

/// Returns the number of bytes after an entry that creates nothing: star states the size of a file
/// that is stored elsewhere.
pub(super) fn bytes_after(kind: EntryType, size: u64) -> u64 {
    if kind.as_byte() == STAR_INODE {
        0
    } else {
        size
    }
}

/// Returns the reason why an entry of this kind cannot be read.
pub(super) fn refused_kind(kind: EntryType) -> Option<&'static str> {
    match kind.as_byte() {
        CONTINUATION => Some(MULTI_VOLUME),
        OLD_LONG_NAMES => Some(
            "it has a format that GNU tar has not written since 1990; extract the archive with tar \
             and import the directory",
        ),
        _ => None,
    }
}

/// Returns the path in the header itself. The prefix of star's headers is shorter, since times
/// follow it.
pub(super) fn path_bytes(header: &Header) -> Vec<u8> {
    const PREFIX: std::ops::Range<usize> = 345..476;
    let bytes = header.as_bytes();
    let is_star = &bytes[508..512] == b"tar\0" && header.as_ustar().is_some();
    if !is_star {
        return header.path_bytes().into_owned();
    }
    let text = |field: &[u8]| -> Vec<u8> {
        field
            .iter()
            .copied()
            .take_while(|byte| *byte != 0)
            .collect()
    };
    let (prefix, name) = (text(&bytes[PREFIX]), text(&bytes[..100]));
    if prefix.is_empty() {
        name
    } else {
        [prefix, name].join(&b'/')
    }
}

/// Returns the number of bytes that follow: some writers state a size for entries without content.
pub(super) fn stored_bytes(kind: Kind, size: u64) -> u64 {
    match kind {
        Kind::File => size,
        _ => 0,
    }
}

pub(super) fn header_number(header: &Header, field: &[u8], what: &'static str) -> Result<u64> {
    number::unsigned(field).ok_or_else(|| fault(&header.path_bytes(), HeaderFault::Number(what)))
}

pub(super) fn fault(entry: &[u8], fault: HeaderFault) -> Error {
    Error::Header {
        entry: Printable::from(entry),
        fault,
    }
}

/// Returns true if `block` begins like a tar header: its checksum matches.
pub(crate) fn looks_like_header(block: &[u8]) -> bool {
    block
        .first_chunk::<RECORD_BYTES>()
        .is_some_and(|block| *block != ZERO_RECORD && checksum_holds(block))
}

/// Returns true if the checksum matches: the sum of all bytes with the checksum's own field as
/// spaces; some old writers treated the bytes as signed.
pub(super) fn checksum_holds(block: &[u8; RECORD_BYTES]) -> bool {
    const FIELD: std::ops::Range<usize> = 148..156;
    let Some(stated) = number::field(&block[FIELD]) else {
        return false;
    };
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (place, byte) in block.iter().enumerate() {
        let byte = if FIELD.contains(&place) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    stated == unsigned || stated == signed
}
