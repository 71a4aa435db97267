//! The data and the holes of a file, as the host's file system reports them (`SEEK_DATA`), so that
//! holes are not read.

use super::tarball::Segment;
use cowshed_format::base::cancel;
use cowshed_sys::extent;
use std::fs::File;
use std::io;

/// The data segments of a file of a given size, ascending and not adjacent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DataMap {
    segments: Vec<Segment>,
    size_bytes: u64,
    /// Holes shorter than this are ignored, so that there are not too many segments.
    least_hole_bytes: u64,
}

impl DataMap {
    /// The maximum number of segments of a map. As a PAX 1.0 map they take less than the 1 MiB that
    /// readers written in Go accept, since no file is larger than 16 TiB.
    pub(super) const SEGMENTS_MAX: usize = 1 << 15;
    /// The initial limit below which holes are ignored.
    const LEAST_HOLE_BYTES: u64 = 4096;

    /// Returns the map of a file that is all data.
    pub(super) fn dense(size_bytes: u64) -> Self {
        let mut map = Self::empty(size_bytes);
        map.push(0, size_bytes);
        map
    }

    /// Returns the map of the first `size_bytes` of `file`.
    ///
    /// # Errors
    /// Any error of the host; a cancelled call.
    pub(super) fn of(file: &File, size_bytes: u64) -> io::Result<Self> {
        let mut map = Self::empty(size_bytes);
        let mut at = 0;
        while at < size_bytes {
            cancel::check()?;
            let Some(data) = extent::next_data(file, at, size_bytes)? else {
                break;
            };
            map.push(data.start, data.end);
            at = data.end;
        }
        while map.segments.len() > Self::SEGMENTS_MAX {
            map.coarsen();
        }
        Ok(map)
    }

    /// Returns the segments; the ranges between and after them are holes.
    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Returns the number of bytes of data.
    pub(super) fn data_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len_bytes).sum()
    }

    /// Returns the number of bytes in holes.
    pub(super) fn hole_bytes(&self) -> u64 {
        self.size_bytes - self.data_bytes()
    }

    /// Returns the map as GNU tar's PAX format 1.0 puts it before the data, without the zeros that
    /// fill the last record.
    pub(super) fn to_pax(&self) -> Vec<u8> {
        // A file that ends in a hole has an empty segment there, as GNU tar writes it.
        let ends_in_hole = self
            .segments
            .last()
            .is_none_or(|last| last.offset_bytes + last.len_bytes < self.size_bytes);
        let end = ends_in_hole.then_some((self.size_bytes, 0));
        let pairs = self.segments.iter();
        let pairs = pairs.map(|segment| (segment.offset_bytes, segment.len_bytes));
        let mut text = format!("{}\n", self.segments.len() + usize::from(ends_in_hole));
        for (offset, len) in pairs.chain(end) {
            text.push_str(&format!("{offset}\n{len}\n"));
        }
        text.into_bytes()
    }

    const fn empty(size_bytes: u64) -> Self {
        Self {
            segments: Vec::new(),
            size_bytes,
            least_hole_bytes: 0,
        }
    }

    fn push(&mut self, start: u64, end: u64) {
        match self.segments.last_mut() {
            Some(last)
                if start - (last.offset_bytes + last.len_bytes) < self.least_hole_bytes.max(1) =>
            {
                last.len_bytes = end - last.offset_bytes;
            }
            _ => self.segments.push(Segment {
                offset_bytes: start,
                len_bytes: end - start,
            }),
        }
        if self.segments.len() > 2 * Self::SEGMENTS_MAX {
            self.coarsen();
        }
    }

    /// Ignores the holes that are shorter than twice the previous limit.
    fn coarsen(&mut self) {
        self.least_hole_bytes = (2 * self.least_hole_bytes).max(Self::LEAST_HOLE_BYTES);
        for segment in std::mem::take(&mut self.segments) {
            self.push(
                segment.offset_bytes,
                segment.offset_bytes + segment.len_bytes,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn pairs(map: &DataMap) -> Vec<(u64, u64)> {
        let segments = map.segments().iter();
        segments
            .map(|segment| (segment.offset_bytes, segment.len_bytes))
            .collect()
    }

    #[test]
    fn a_sparse_file_has_data_only_where_it_was_written() {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.set_len(1 << 40).unwrap();
        assert_eq!(pairs(&DataMap::of(&file, 1 << 40).unwrap()), []);
        file.write_all_at(&[7; 65536], 1 << 30).unwrap();
        let map = DataMap::of(&file, 1 << 40).unwrap();
        assert_eq!(pairs(&map), [(1 << 30, 65536)]);
        assert_eq!(map.hole_bytes(), (1 << 40) - 65536);
        let text = String::from_utf8(map.to_pax()).unwrap();
        assert_eq!(text, "2\n1073741824\n65536\n1099511627776\n0\n");
        let dense = DataMap::dense(5);
        assert_eq!(dense.to_pax(), b"1\n0\n5\n");
        assert_eq!(dense.hole_bytes(), 0);
    }

    #[test]
    fn a_file_with_very_many_holes_keeps_the_long_ones() {
        const LONG: u64 = 1 << 30;
        let many = 3 * DataMap::SEGMENTS_MAX as u64;
        let mut map = DataMap::empty(LONG + many * 8192 + 4096);
        map.push(0, 4096);
        for index in 0..many {
            map.push(LONG + index * 8192, LONG + index * 8192 + 4096);
        }
        while map.segments.len() > DataMap::SEGMENTS_MAX {
            map.coarsen();
        }
        let end = LONG + (many - 1) * 8192 + 4096;
        assert_eq!(pairs(&map), [(0, 4096), (LONG, end - LONG)]);
        assert!(map.to_pax().len() < 1 << 20);
    }
}
