//! PAX extended headers: the records about the entry that follows.

use super::number;
use super::sparse;
use super::{Segment, Time, Xattr};
use crate::dropped::Loss;
use crate::error::HeaderFault;
use crate::limits::PAX_BYTES_MAX;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// libarchive omits the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
const SOLARIS_SPARSE: &str = "its holes are described in the format of Solaris, which is not \
                              supported; write the archive without holes";

/// The fields that extended headers override. Records without meaning for a root file system are
/// skipped.
#[derive(Clone, Debug, Default)]
pub(super) struct Overrides {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size_bytes: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) atime: Option<Time>,
    pub(super) xattrs: Vec<Xattr>,
    /// Attributes in libarchive's encoding, beside or instead of the others.
    coded_xattrs: Vec<Xattr>,
    pub(super) acl_access: Option<Vec<u8>>,
    pub(super) acl_default: Option<Vec<u8>>,
    /// The omitted data of records that have no meaning here.
    pub(super) lost: Vec<Loss>,
    /// The reason why the file's content is stored in an unsupported way, if it is.
    pub(super) unsupported: Option<&'static str>,
    pub(super) sparse: Option<SparseRecords>,
}

/// The `GNU.sparse.*` records.
#[derive(Clone, Debug, Default)]
pub(super) struct SparseRecords {
    /// The version: 1.0 puts the map before the data.
    pub(super) map_leads_data: bool,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size_bytes: Option<u64>,
    pub(super) segments: Vec<Segment>,
    pending_offset: Option<u64>,
}

impl Overrides {
    /// Adds the records of one extended header.
    pub(super) fn add(&mut self, mut bytes: &[u8]) -> Result<(), HeaderFault> {
        while !bytes.is_empty() {
            let (key, value, rest) = split_record(bytes).ok_or(HeaderFault::Pax)?;
            self.record(key, value)?;
            bytes = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), HeaderFault> {
        let text = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            // An empty value cancels a global record (POSIX, pax, "Extended Header").
            b"size" => self.size_bytes = number_or_none(value, "size")?,
            b"uid" => self.uid = number_or_none(value, "owner")?,
            b"gid" => self.gid = number_or_none(value, "group")?,
            b"mtime" => self.mtime = time_or_none(value)?,
            b"atime" => self.atime = time_or_none(value)?,
            b"SCHILY.acl.access" => self.acl_access = text(),
            b"SCHILY.acl.default" => self.acl_default = text(),
            b"SCHILY.acl.ace" => self.lose(Loss::OtherAcl, value),
            b"SCHILY.fflags" => self.lose(Loss::FileFlags, value),
            b"RHT.security.selinux" => self.lose(Loss::SecurityLabel, value),
            b"GNU.dumpdir" => self.lose(Loss::DirectoryList, value),
            b"SUN.holesdata" => self.unsupported = text().map(|_| SOLARIS_SPARSE),
            b"GNU.volume.offset" => {
                let is_later = number_or_none(value, "offset")?.is_some_and(|offset| offset > 0);
                self.unsupported = is_later.then_some(super::MULTI_VOLUME);
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    add_xattr(&mut self.xattrs, name, value.to_vec())?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = percent_decoded(name).ok_or(HeaderFault::Pax)?;
                    let value = BASE64.decode(value).map_err(|_| HeaderFault::Pax)?;
                    add_xattr(&mut self.coded_xattrs, &name, value)?;
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.get_or_insert_default().record(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn lose(&mut self, kind: Loss, value: &[u8]) {
        self.lost.retain(|known| *known != kind);
        // An empty value cancels a global record.
        if !value.is_empty() {
            self.lost.push(kind);
        }
    }

    /// Takes all extended attributes; if one has two forms, the plain one counts.
    pub(super) fn take_xattrs(&mut self) -> Vec<Xattr> {
        let mut all = std::mem::take(&mut self.xattrs);
        for (name, value) in std::mem::take(&mut self.coded_xattrs) {
            if !all.iter().any(|(known, _)| *known == name) {
                all.push((name, value));
            }
        }
        all
    }
}

fn add_xattr(xattrs: &mut Vec<Xattr>, name: &[u8], value: Vec<u8>) -> Result<(), HeaderFault> {
    if name.is_empty() || name.contains(&0) {
        return Err(HeaderFault::Pax);
    }
    xattrs.retain(|(known, _)| known != name);
    let held: usize = xattrs
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    // Otherwise, global headers could accumulate attributes without limit.
    if u64::try_from(held + name.len() + value.len()).map_or(true, |all| all > PAX_BYTES_MAX) {
        return Err(HeaderFault::PaxSize);
    }
    xattrs.push((name.to_vec(), value));
    Ok(())
}

/// Decodes a name in which `%` and two hexadecimal digits stand for a byte.
fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let digits = str::from_utf8(after.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    Some(bytes)
}

impl SparseRecords {
    fn record(&mut self, name: &[u8], value: &[u8]) -> Result<(), HeaderFault> {
        let number = || number::decimal(value).ok_or(HeaderFault::Sparse);
        match name {
            b"major" => match value {
                b"1" => self.map_leads_data = true,
                b"0" => {}
                _ => return Err(HeaderFault::Sparse),
            },
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size_bytes = Some(number()?),
            b"offset" => self.pending_offset = Some(number()?),
            b"numbytes" => {
                let offset = self.pending_offset.take().ok_or(HeaderFault::Sparse)?;
                sparse::push(&mut self.segments, offset, number()?)?;
            }
            b"map" => self.segments = sparse::comma_list(value)?,
            _ => {}
        }
        Ok(())
    }
}

fn number_or_none(value: &[u8], what: &'static str) -> Result<Option<u64>, HeaderFault> {
    if value.is_empty() {
        return Ok(None);
    }
    number::decimal(value)
        .map(Some)
        .ok_or(HeaderFault::Number(what))
}

fn time_or_none(value: &[u8]) -> Result<Option<Time>, HeaderFault> {
    if value.is_empty() {
        return Ok(None);
    }
    number::time(value)
        .map(Some)
        .ok_or(HeaderFault::Number("time"))
}

/// Returns the key and value of the first record `LEN KEY=VALUE\n`, where LEN counts all of it, and
/// the rest.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let len = usize::try_from(number::decimal(&bytes[..space])?).ok()?;
    let record = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &bytes[len..]))
}

/// Appends `LEN KEY=VALUE\n`, where LEN counts itself as well.
pub(crate) fn put_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let without_len = key.len() + value.len() + 3;
    let mut len = without_len;
    // A longer number may need one more digit, so this takes at most two rounds.
    while len != without_len + len.to_string().len() {
        len = without_len + len.to_string().len();
    }
    records.extend_from_slice(len.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_any_byte() {
        let mut overrides = Overrides::default();
        let mut records = Vec::new();
        put_record(&mut records, b"SCHILY.xattr.user.x", b"a=\n\0b 9 =\n");
        overrides.add(&records).unwrap();
        assert_eq!(
            overrides.xattrs,
            [(b"user.x".to_vec(), b"a=\n\0b 9 =\n".to_vec())]
        );
    }

    #[test]
    fn attributes_of_libarchive_are_decoded_and_yield_to_plain_ones() {
        let mut overrides = Overrides::default();
        let mut records = Vec::new();
        put_record(&mut records, b"LIBARCHIVE.xattr.user.a%3db", b"AAECAw");
        put_record(&mut records, b"LIBARCHIVE.xattr.user.x", b"b2xk");
        put_record(&mut records, b"SCHILY.xattr.user.x", b"new");
        overrides.add(&records).unwrap();
        let wanted = [
            (b"user.x".to_vec(), b"new".to_vec()),
            (b"user.a=b".to_vec(), vec![0, 1, 2, 3]),
        ];
        assert_eq!(overrides.take_xattrs(), wanted);
        let mut wrong = Vec::new();
        put_record(&mut wrong, b"LIBARCHIVE.xattr.user.a%zz", b"AA");
        assert_eq!(Overrides::default().add(&wrong), Err(HeaderFault::Pax));
    }

    #[test]
    fn records_that_lie_about_their_length_are_refused() {
        for wrong in [
            &b"99 path=a\n"[..],
            b"9 path=a\n9",
            b"3 path=a\n",
            b"0 path=a\n",
            b" path=a\n",
            b"99999999999999999999999 a=b\n",
            b"9 path=ab",
            b"8 patha\n",
        ] {
            assert_eq!(
                Overrides::default().add(wrong),
                Err(HeaderFault::Pax),
                "{wrong:?}"
            );
        }
    }
}
