//! The parts of an object besides its inode's fields: extended attributes and the target of a
//! symbolic link. Source: `Documentation/filesystems/ext4/attributes.rst`.

use super::fault::{Fault, Result};
use super::inode::{BLOCK_FIELD_BYTES, CLASSIC_BYTES, INODE_BYTES, Inode, InodeKind};
use super::reader::FileSystem;
use super::{BLOCK_BYTES, BLOCK_LEN, le16, le32};
use std::collections::BTreeMap;

const MAGIC: u32 = 0xEA02_0000;
/// Length of the header of a block of attributes.
const BLOCK_HEADER_BYTES: usize = 32;
/// An entry without its name.
const ENTRY_BYTES: usize = 16;

/// The number for `security.`.
const SECURITY: u8 = 6;

/// Attributes by the number of their prefix and the rest of their name.
pub(crate) type Attributes = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

impl Inode {
    /// Returns the target of a symbolic link that is short enough to lie in the inode.
    pub(super) fn short_target(&self) -> Option<&[u8]> {
        let len = usize::try_from(self.size_bytes()).ok()?;
        let fits = self.kind() == InodeKind::Symlink && (1..BLOCK_FIELD_BYTES).contains(&len);
        fits.then(|| &self.block_field()[..len])
    }
}

impl FileSystem<'_> {
    /// Returns all extended attributes of an inode, except those of the host's security module.
    pub(crate) fn attributes(&self, inode: &Inode) -> Result<Attributes> {
        let mut attributes = Attributes::new();
        let start = CLASSIC_BYTES + inode.extra_bytes()?;
        if start + 8 <= INODE_BYTES && le32(&inode.bytes, start) == MAGIC {
            let body = &inode.bytes[start + 4..];
            collect(body, body, &mut attributes)?;
        }
        if let Some(number) = inode.attribute_block() {
            let block = self.block(number)?;
            if le32(block.as_slice(), 0) != MAGIC || le32(block.as_slice(), 8) != 1 {
                return Err(Fault::Corrupt("a block of attributes"));
            }
            collect(
                &block[BLOCK_HEADER_BYTES..],
                block.as_slice(),
                &mut attributes,
            )?;
        }
        attributes.remove(&(SECURITY, b"selinux".to_vec()));
        Ok(attributes)
    }

    /// Returns the target of a symbolic link.
    pub(crate) fn link_target(&self, inode: &Inode) -> Result<Vec<u8>> {
        if let Some(target) = inode.short_target() {
            return Ok(target.to_vec());
        }
        let damaged = Fault::Corrupt("a symbolic link");
        let extents = self.extents(inode)?;
        let len = usize::try_from(inode.size_bytes()).unwrap_or(usize::MAX);
        match extents.runs.as_slice() {
            [run] if run.logical == 0 && run.blocks == 1 && len < BLOCK_LEN && len > 0 => {
                Ok(self.block(run.physical)?[..len].to_vec())
            }
            _ => Err(damaged),
        }
    }
}

const _: () = assert!(BLOCK_BYTES == BLOCK_LEN as u64);

/// Adds the attributes whose entries start `list`; the offsets of their values count from `values`.
fn collect(list: &[u8], values: &[u8], into: &mut Attributes) -> Result<()> {
    let mut rest = list;
    loop {
        let damaged = Fault::Corrupt("an attribute");
        match rest.first_chunk::<4>() {
            Some([0, 0, 0, 0]) => return Ok(()),
            Some(_) if rest.len() >= ENTRY_BYTES => {}
            _ => return Err(damaged),
        }
        let name_len = usize::from(rest[0]);
        let index = rest[1];
        let (offset, len) = (usize::from(le16(rest, 2)), le32(rest, 8));
        if le32(rest, 4) != 0 {
            return Err(Fault::Unsupported("attributes in files of their own"));
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let end = offset.saturating_add(len);
        let name = rest.get(ENTRY_BYTES..ENTRY_BYTES + name_len);
        let value = if len == 0 {
            Some([].as_slice())
        } else {
            values.get(offset..end)
        };
        let (Some(name), Some(value)) = (name, value) else {
            return Err(damaged);
        };
        into.entry((index, name.to_vec()))
            .or_insert_with(|| value.to_vec());
        let step = (ENTRY_BYTES + name_len).next_multiple_of(4);
        rest = rest.get(step..).ok_or(damaged)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns two attributes as they lie in an inode with 92 bytes for them.
    fn body() -> Vec<u8> {
        let mut body = vec![0; 92];
        for (at, name, offset, value) in [
            (0, b"mark", 80_u16, b"one".as_slice()),
            (20, b"kind", 84, b"other".as_slice()),
        ] {
            body[at] = 4;
            body[at + 1] = 1;
            body[at + 2..at + 4].copy_from_slice(&offset.to_le_bytes());
            body[at + 8] = u8::try_from(value.len()).unwrap();
            body[at + 16..at + 20].copy_from_slice(name);
            let offset = usize::from(offset);
            body[offset..offset + value.len()].copy_from_slice(value);
        }
        body
    }

    fn collected(body: &[u8]) -> Result<Attributes> {
        let mut attributes = Attributes::new();
        collect(body, body, &mut attributes)?;
        Ok(attributes)
    }

    #[test]
    fn names_and_values_are_found() {
        let expected = Attributes::from([
            ((1, b"mark".to_vec()), b"one".to_vec()),
            ((1, b"kind".to_vec()), b"other".to_vec()),
        ]);
        assert_eq!(collected(&body()).unwrap(), expected);
    }

    #[test]
    fn values_and_names_outside_are_refused() {
        let breaks: [fn(&mut [u8]); 5] = [
            |body| body[2] = 91,
            |body| body[8..12].copy_from_slice(&u32::MAX.to_le_bytes()),
            |body| body[20] = 255,
            |body| body[40] = 1,
            |body| body[4] = 1,
        ];
        for (index, change) in breaks.iter().enumerate() {
            let mut body = body();
            change(&mut body);
            // The bytes after the last entry would have to be zeros.
            body[44..80].fill(if index == 3 { 1 } else { 0 });
            assert!(collected(&body).is_err(), "{index}");
        }
    }
}
