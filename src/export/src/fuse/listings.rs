//! The content of a directory, line by line.
//!
//! The lines are in the order of volume ids, and a line's cookie is its inode number, so a reader
//! can continue from any line in any listing, also in one of a successor. The listing of a reader
//! is kept only so that it neither costs a new listing for each page nor changes under the reader.

use super::abi::{Dirent, ROOT};
use crate::entry::{file_name, inode};
use crate::target::TargetInfo;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// The alignment of names in a listing.
const ALIGN: usize = 8;
/// The cookies of `.` and `..`; those of volumes are larger.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// One line, with the data of the time when the listing was made.
struct Line {
    cookie: u64,
    inode: u64,
    /// `d_type` of dirent(3).
    kind: u8,
    name: String,
}

/// A directory's lines.
pub(super) struct Listing(Vec<Line>);

impl Listing {
    pub(super) fn new(mut targets: Vec<TargetInfo>) -> Self {
        targets.sort_unstable_by_key(|info| info.id);
        let dot = |cookie, name: &str| Line {
            cookie,
            inode: ROOT,
            kind: libc::DT_DIR,
            name: name.to_owned(),
        };
        let volumes = targets.iter().map(|info| Line {
            cookie: inode(info.id),
            inode: inode(info.id),
            kind: libc::DT_REG,
            name: file_name(&info.name),
        });
        let dots = [dot(DOT, "."), dot(DOT_DOT, "..")];
        Self(dots.into_iter().chain(volumes).collect())
    }

    /// Puts the lines after that of `cookie` into `room`, as many as fit; returns their number of
    /// bytes.
    pub(super) fn page(&self, cookie: u64, room: &mut [u8]) -> usize {
        let first = self.0.partition_point(|line| line.cookie <= cookie);
        let mut end = 0;
        for line in &self.0[first..] {
            let Some(len) = line.put(&mut room[end..]) else {
                break;
            };
            end += len;
        }
        end
    }
}

impl Line {
    /// Puts the line into `room`; `None` if it does not fit.
    fn put(&self, room: &mut [u8]) -> Option<usize> {
        let head = Dirent {
            ino: self.inode,
            off: self.cookie,
            namelen: u32::try_from(self.name.len()).ok()?,
            kind: self.kind.into(),
        };
        let start = size_of::<Dirent>();
        let name_end = start + self.name.len();
        let len = name_end.next_multiple_of(ALIGN);
        let place = room.get_mut(..len)?;
        place[..start].copy_from_slice(head.as_bytes());
        place[start..name_end].copy_from_slice(self.name.as_bytes());
        place[name_end..].fill(0);
        Some(len)
    }
}

/// The listings of readers, by handle. A handle of a predecessor is not among these, and gets a
/// listing when it is used.
pub(super) struct Listings {
    begun: Mutex<Begun>,
}

struct Begun {
    next: u64,
    by_handle: HashMap<u64, Arc<Listing>>,
}

impl Listings {
    pub(super) fn new() -> Self {
        // At random, so that no handle equals one of a predecessor.
        let begun = Begun {
            next: rand::random(),
            by_handle: HashMap::new(),
        };
        Self {
            begun: Mutex::new(begun),
        }
    }

    /// Returns a handle for a reader; its listing is made at the first read.
    pub(super) fn open(&self) -> u64 {
        let mut begun = self.begun.lock();
        begun.next = begun.next.wrapping_add(1);
        begun.next
    }

    /// Returns the listing of a handle. A reader that starts over gets a new one.
    pub(super) fn get(
        &self,
        handle: u64,
        starts_over: bool,
        make: impl FnOnce() -> Listing,
    ) -> Arc<Listing> {
        if !starts_over && let Some(listing) = self.begun.lock().by_handle.get(&handle) {
            return listing.clone();
        }
        // Made without the lock: this calls the pool.
        let listing = Arc::new(make());
        self.begun.lock().by_handle.insert(handle, listing.clone());
        listing
    }

    pub(super) fn close(&self, handle: u64) {
        let closed = self.begun.lock().by_handle.remove(&handle);
        drop(closed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowshed_format::base::{Name, VolumeId};
    use std::time::SystemTime;
    use zerocopy::FromBytes;

    fn targets(count: u64) -> Vec<TargetInfo> {
        let target = |id| TargetInfo {
            id: VolumeId(id),
            name: Name::new(&format!("volume/{id}")).unwrap(),
            size_bytes: 0,
            allocated_bytes: 0,
            is_read_only: false,
            created: SystemTime::UNIX_EPOCH,
        };
        (0..count).rev().map(target).collect()
    }

    /// Returns the names and the last cookie of a page.
    fn read(mut page: &[u8]) -> (Vec<String>, u64) {
        let (mut names, mut cookie) = (Vec::new(), 0);
        while !page.is_empty() {
            let (head, rest) = Dirent::read_from_prefix(page).unwrap();
            let len = head.namelen as usize;
            names.push(String::from_utf8(rest[..len].to_vec()).unwrap());
            cookie = head.off;
            page = &rest[(24 + len).next_multiple_of(8) - 24..];
        }
        (names, cookie)
    }

    #[test]
    fn every_line_comes_once_though_each_page_is_of_another_listing() {
        let mut room = [0; 200];
        let (mut all, mut cookie) = (Vec::new(), 0);
        loop {
            let len = Listing::new(targets(50)).page(cookie, &mut room);
            if len == 0 {
                break;
            }
            let (names, last) = read(&room[..len]);
            all.extend(names);
            cookie = last;
        }
        let volumes = (0..50).map(|id| format!("volume%2F{id}"));
        let wanted: Vec<_> = [".".to_owned(), "..".to_owned()]
            .into_iter()
            .chain(volumes)
            .collect();
        assert_eq!(all, wanted);
    }

    #[test]
    fn any_cookie_and_any_room_is_answered() {
        let listing = Listing::new(targets(3));
        assert_eq!(listing.page(u64::MAX, &mut [0; 100]), 0);
        assert_eq!(listing.page(0, &mut []), 0);
        assert_eq!(listing.page(0, &mut [0; 31]), 0);
        assert_eq!(listing.page(0, &mut [0; 32]), 32);
    }

    #[test]
    fn a_listing_stays_for_its_reader_until_it_starts_over() {
        let listings = Listings::new();
        let handle = listings.open();
        let few = || Listing::new(targets(1));
        let many = || Listing::new(targets(9));
        assert_eq!(listings.get(handle, true, few).0.len(), 3);
        assert_eq!(listings.get(handle, false, many).0.len(), 3);
        assert_eq!(listings.get(handle, true, many).0.len(), 11);
        listings.close(handle);
        assert_eq!(listings.get(handle, false, few).0.len(), 3);
    }
}
