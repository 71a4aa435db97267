//! POSIX access control lists, converted from the text form in which tar programs write them
//! (`SCHILY.acl.access`, `SCHILY.acl.default`) to the kernel's attributes.
//!
//! The text is that of acl(5), with commas (star, bsdtar) or newlines (GNU tar) between entries,
//! and with star's extension: a fourth field that holds the number of the user or group. Names
//! without one are looked up in the image's own `/etc/passwd` and `/etc/group`, as far as it is
//! unpacked.

use crate::limits::{ACCOUNTS_BYTES_MAX, ACL_ENTRIES_MAX};
use cowshed_sys::beneath;
use nix::fcntl::OFlag;
use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;

/// `POSIX_ACL_XATTR_VERSION` (linux/posix_acl_xattr.h).
const VERSION: u32 = 2;
/// `ACL_UNDEFINED_ID`.
const NO_ID: u32 = u32::MAX;

// The tags of linux/posix_acl.h, in the order that the kernel requires.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The reason why a list cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The text is not an access control list.
    Syntax,
    /// It names a user or group whose number is not known.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct AclEntry {
    tag: u16,
    id: u32,
    permissions: u16,
}

/// Returns the attribute for the list in `text`; `id_of` returns the number of a user (or of a
/// group).
pub(super) fn attribute(
    text: &[u8],
    id_of: &mut dyn FnMut(&[u8], bool) -> Option<u32>,
) -> Result<Vec<u8>, Fault> {
    let mut entries = Vec::new();
    for part in text.split(|byte| matches!(byte, b',' | b'\n')) {
        let part = part.split(|byte| *byte == b'#').next().unwrap_or_default();
        let part = part.trim_ascii();
        if part.is_empty() {
            continue;
        }
        if entries.len() == ACL_ENTRIES_MAX {
            return Err(Fault::Syntax);
        }
        entries.push(entry(part, id_of)?);
    }
    let with = |tags: u16| entries.iter().filter(move |entry| entry.tag & tags != 0);
    let has = |tag: u16| with(tag).next().is_some();
    if !has(USER_OBJ) || !has(GROUP_OBJ) || !has(OTHER) {
        return Err(Fault::Syntax);
    }
    if has(USER | GROUP) && !has(MASK) {
        // As acl_calc_mask(3) computes it: all permissions of the entries under the mask.
        let all = with(USER | GROUP_OBJ | GROUP).fold(0, |all, entry| all | entry.permissions);
        entries.push(AclEntry {
            tag: MASK,
            id: NO_ID,
            permissions: all,
        });
    }
    entries.sort_unstable();
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for entry in &entries {
        bytes.extend_from_slice(&entry.tag.to_le_bytes());
        bytes.extend_from_slice(&entry.permissions.to_le_bytes());
        bytes.extend_from_slice(&entry.id.to_le_bytes());
    }
    Ok(bytes)
}

fn entry(
    text: &[u8],
    id_of: &mut dyn FnMut(&[u8], bool) -> Option<u32>,
) -> Result<AclEntry, Fault> {
    let fields: Vec<&[u8]> = text.splitn(5, |byte| *byte == b':').collect();
    let (tag, name, rest) = match fields.as_slice() {
        // `other:r--` and `mask:r--` may leave the empty name out.
        [tag @ (b"o" | b"other" | b"m" | b"mask"), permissions] => {
            (*tag, &[][..], [*permissions].to_vec())
        }
        [tag, name, rest @ ..] if !rest.is_empty() => (*tag, *name, rest.to_vec()),
        _ => return Err(Fault::Syntax),
    };
    let (tag, is_group) = match (tag, name.is_empty()) {
        (b"user" | b"u", true) => (USER_OBJ, false),
        (b"user" | b"u", false) => (USER, false),
        (b"group" | b"g", true) => (GROUP_OBJ, true),
        (b"group" | b"g", false) => (GROUP, true),
        (b"mask" | b"m", true) => (MASK, false),
        (b"other" | b"o", true) => (OTHER, false),
        _ => return Err(Fault::Syntax),
    };
    let id = if matches!(tag, USER | GROUP) {
        let stated = rest.get(1).copied().filter(|field| !field.is_empty());
        match stated.or(Some(name)).and_then(number) {
            Some(id) => id,
            None if stated.is_some() => return Err(Fault::Syntax),
            None => id_of(name, is_group).ok_or(Fault::Unknown)?,
        }
    } else {
        NO_ID
    };
    Ok(AclEntry {
        tag,
        id,
        permissions: permissions(rest[0].trim_ascii())?,
    })
}

fn number(text: &[u8]) -> Option<u32> {
    let text = str::from_utf8(text).ok()?;
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let id: u32 = is_number.then(|| text.parse().ok()).flatten()?;
    (id != NO_ID).then_some(id)
}

fn permissions(text: &[u8]) -> Result<u16, Fault> {
    if let [digit @ b'0'..=b'7'] = text {
        return Ok(u16::from(digit - b'0'));
    }
    text.iter().try_fold(0, |all, letter| {
        Ok(all
            | match letter {
                b'r' => 4,
                b'w' => 2,
                b'x' => 1,
                b'-' => 0,
                _ => return Err(Fault::Syntax),
            })
    })
}

/// Returns the number of `name` in the image's list of users or groups.
pub(super) fn id_in_image(root: BorrowedFd<'_>, name: &[u8], is_group: bool) -> Option<u32> {
    if name == b"root" {
        return Some(0);
    }
    let path: &[u8] = if is_group {
        b"etc/group"
    } else {
        b"etc/passwd"
    };
    let file = beneath::open_in_root(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok()?;
    let mut text = Vec::new();
    File::from(file)
        .take(ACCOUNTS_BYTES_MAX)
        .read_to_end(&mut text)
        .ok()?;
    let mut lines = text.split(|byte| *byte == b'\n');
    lines.find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        (fields.next()? == name).then(|| fields.nth(1).and_then(number))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<u8>, Fault> {
        attribute(text.as_bytes(), &mut |name, is_group| {
            (name == b"lisa").then_some(if is_group { 2000 } else { 1000 })
        })
    }

    fn bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0];
        for (tag, permissions, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn every_way_of_writing_a_list_gives_the_same_attribute() {
        let wanted = bytes(&[
            (USER_OBJ, 7, NO_ID),
            (USER, 5, 1000),
            (GROUP_OBJ, 4, NO_ID),
            (MASK, 5, NO_ID),
            (OTHER, 0, NO_ID),
        ]);
        for text in [
            "user::rwx,user:lisa:r-x:1000,group::r--,mask::r-x,other::---",
            "user::rwx,user:other-name:r-x:1000,group::r--,mask::r-x,other::---",
            "user::rwx\nuser:lisa:r-x\t#effective:r-x\ngroup::r--\nmask::r-x\nother::---\n",
            "u::7,u:1000:5,g::4,m::5,o::0",
            "other:---,mask:r-x,group::r--,user:1000:r-x,user::rwx",
            "user::rwx,user:lisa:r-x,group::r--,other::---",
        ] {
            assert_eq!(of(text), Ok(wanted.clone()), "{text}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused_and_strangers_are_told_apart() {
        assert_eq!(
            of("user::rwx,user:bob:r--,group::r--,other::---"),
            Err(Fault::Unknown)
        );
        for text in [
            "",
            "user::rwx",
            "user::rwx,group::r--,other::q--",
            "user::rwx,group::r--,other::---,what:x:r--",
            "user::rwx,user:lisa:r--:x,group::r--,other::---",
            "user::rwx,user:4294967295:r--:4294967295,group::r--,other::---",
        ] {
            assert_eq!(of(text), Err(Fault::Syntax), "{text}");
        }
    }
}
