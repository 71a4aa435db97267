//! PAX extended headers: what they say about the entry that follows.

use super::number;
use super::sparse;
use super::{Segment, Time, Xattr};
use crate::oci::error::HeaderFault;
use crate::oci::limits::PAX_BYTES_MAX;

/// What extended headers override. Records without meaning for a root file system are passed over.
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
            // An empty value takes a global record back (POSIX, pax, "Extended Header").
            b"size" => self.size_bytes = number_or_none(value, "size")?,
            b"uid" => self.uid = number_or_none(value, "owner")?,
            b"gid" => self.gid = number_or_none(value, "group")?,
            b"mtime" => self.mtime = time_or_none(value)?,
            b"atime" => self.atime = time_or_none(value)?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(name, value)?;
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.get_or_insert_default().record(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), HeaderFault> {
        if name.is_empty() || name.contains(&0) {
            return Err(HeaderFault::Pax);
        }
        self.xattrs.retain(|(known, _)| known != name);
        let held: usize = self
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        // Global headers could otherwise pile attributes up without end.
        if u64::try_from(held + name.len() + value.len()).map_or(true, |all| all > PAX_BYTES_MAX) {
            return Err(HeaderFault::PaxSize);
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
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

/// The first record `LEN KEY=VALUE\n`, where LEN counts all of it, and what follows.
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
    // A longer number can make one digit more necessary, so this settles in two rounds.
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
