//! Reading an archive entry by entry from a stream that is neither trusted nor seekable.

pub(crate) use super::header::looks_like_header;
use super::header::{
    DUMP_DIRECTORY, SOLARIS_PAX, bytes_after, checksum_holds, fault, header_number, kind_of,
    lost_kind, own_fields, path_bytes, refused_kind, stored_bytes,
};
use super::number;
use super::pax::{Overrides, SparseRecords};
use super::sparse::{self, LeadingMap};
use super::{Entry, Kind, RECORD_BYTES, Segment};
use crate::dropped::{Dropped, Loss};
use crate::error::{Error, HeaderFault, Printable, Result};
use crate::limits::{COPY_BUFFER_BYTES, PATH_BYTES_MAX, PAX_BYTES_MAX};
use std::io::{self, Read, Seek};
use tar::{EntryType, Header};

const RECORD: u64 = 512;
pub(super) const ZERO_RECORD: [u8; RECORD_BYTES] = [0; RECORD_BYTES];
/// The entries of an archive, and the data of the current one.
pub(crate) struct TarReader<R> {
    inner: R,
    global: Overrides,
    /// Unread data of the current entry, and the padding after it.
    data_left: u64,
    padding_left: u64,
    state: State,
    position_bytes: u64,
    /// A record that was read ahead.
    ahead: Option<[u8; RECORD_BYTES]>,
    dropped: Dropped,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Entries,
    /// The stream ended where an entry could have begun.
    EndWithoutMarker,
    EndMarker,
}

/// The data of the headers before an entry's own header.
#[derive(Default)]
struct Announced {
    pax: Option<Overrides>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Announced {
    const fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_path.is_none() && self.long_link.is_none()
    }
}

impl<R: Read> TarReader<R> {
    /// Reads the archive that starts at the position of `inner`.
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            global: Overrides::default(),
            data_left: 0,
            padding_left: 0,
            state: State::Entries,
            position_bytes: 0,
            ahead: None,
            dropped: Dropped::default(),
        }
    }

    /// Returns the underlying stream.
    pub(crate) const fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Returns the omissions so far.
    pub(crate) fn into_dropped(self) -> Dropped {
        self.dropped
    }

    /// Reads to the end of the stream, and notes data after the end of the archive.
    ///
    /// # Errors
    /// As [`TarReader::next_entry`].
    pub(crate) fn read_rest(&mut self) -> Result<()> {
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        let mut is_noted = false;
        loop {
            match self.inner.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(len) if !is_noted && buffer[..len].iter().any(|byte| *byte != 0) => {
                    is_noted = true;
                    self.dropped.note(Loss::AfterEnd, b"");
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::archive(error)),
            }
        }
    }

    /// Returns the next entry; unread data of the current one is skipped.
    ///
    /// # Errors
    /// `Archive` if the stream ends or fails in the middle, `Header` if a header is wrong.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.skip_data()?;
        let mut announced = Announced::default();
        loop {
            let Some(block) = self.header_block()? else {
                if announced.is_empty() {
                    return Ok(None);
                }
                return Err(fault(b"its end", HeaderFault::Dangling));
            };
            let header = Header::from_byte_slice(&block);
            let size = header_number(header, &header.as_old().size, "size")?;
            match header.entry_type() {
                EntryType::XHeader => announced.pax = Some(self.pax(header, size)?),
                EntryType::XGlobalHeader => self.global_pax(header, size)?,
                EntryType::GNULongName => announced.long_path = Some(self.long(header, size)?),
                EntryType::GNULongLink => announced.long_link = Some(self.long(header, size)?),
                kind if kind.as_byte() == SOLARIS_PAX => {
                    announced.pax = Some(self.pax(header, size)?);
                }
                kind if lost_kind(kind).is_some() => {
                    if let Some(loss) = lost_kind(kind) {
                        self.dropped.note(loss, &path_bytes(header));
                    }
                    self.begin_data(bytes_after(kind, size))?;
                    self.skip_data()?;
                }
                kind if refused_kind(kind).is_some() => {
                    return Err(Error::Unsupported {
                        entry: Printable::from(&*path_bytes(header)),
                        why: refused_kind(kind).unwrap_or_default(),
                    });
                }
                _ => return self.entry(header, size, announced).map(Some),
            }
        }
    }

    /// Reads data of the current entry; returns 0 at its end.
    ///
    /// # Errors
    /// `UnexpectedEof` if the stream ends within the data, else the stream's error.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.data_left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let len = self.inner.read(&mut buffer[..want])?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len_bytes = u64::try_from(len).map_err(io::Error::other)?;
        self.data_left -= len_bytes;
        self.position_bytes = self.position_bytes.saturating_add(len_bytes);
        Ok(len)
    }

    /// Fills `buffer` with data of the current entry.
    ///
    /// # Errors
    /// As [`TarReader::read_data`].
    pub(crate) fn read_data_exact(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let len = match self.read_data(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            buffer = &mut buffer[len..];
        }
        Ok(())
    }

    /// Returns true if the archive ended with its marker and not just with the stream.
    pub(crate) fn saw_end_marker(&self) -> bool {
        self.state == State::EndMarker
    }

    /// Returns the offset of the current entry's data in the archive and the number of its stored
    /// bytes; valid only before any of it is read.
    pub(crate) const fn data_place(&self) -> (u64, u64) {
        (self.position_bytes, self.data_left)
    }

    fn skip_data(&mut self) -> Result<()> {
        let left = self.data_left.saturating_add(self.padding_left);
        (self.data_left, self.padding_left) = (0, 0);
        let passed =
            io::copy(&mut (&mut self.inner).take(left), &mut io::sink()).map_err(Error::archive)?;
        self.position_bytes = self.position_bytes.saturating_add(passed);
        if passed < left {
            return Err(Error::Archive(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    fn begin_data(&mut self, len_bytes: u64) -> Result<()> {
        self.data_left = len_bytes;
        self.padding_left = len_bytes.wrapping_neg() % RECORD;
        if len_bytes > i64::MAX.unsigned_abs() {
            return Err(fault(b"", HeaderFault::Number("size")));
        }
        Ok(())
    }

    /// Returns the next header, or `None` at the end of the archive.
    fn header_block(&mut self) -> Result<Option<[u8; RECORD_BYTES]>> {
        if self.state != State::Entries {
            return Ok(None);
        }
        let Some(block) = self.record()? else {
            self.state = State::EndWithoutMarker;
            return Ok(None);
        };
        if block == ZERO_RECORD {
            self.state = State::EndMarker;
            return match self.record()? {
                None | Some(ZERO_RECORD) => Ok(None),
                Some(_) => Err(fault(b"its end marker", HeaderFault::NoEnd)),
            };
        }
        if !checksum_holds(&block) {
            let name = Header::from_byte_slice(&block).path_bytes();
            return Err(fault(&name, HeaderFault::Checksum));
        }
        Ok(Some(block))
    }

    /// Returns the next record, or `None` if the stream ends before it.
    fn record(&mut self) -> Result<Option<[u8; RECORD_BYTES]>> {
        if let Some(block) = self.ahead.take() {
            return Ok(Some(block));
        }
        let mut block = ZERO_RECORD;
        let mut filled = 0;
        while filled < RECORD_BYTES {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(Error::Archive(io::ErrorKind::UnexpectedEof.into())),
                Ok(len) => filled += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::archive(error)),
            }
        }
        self.position_bytes = self.position_bytes.saturating_add(RECORD);
        Ok(Some(block))
    }

    /// Reads all of a small special entry.
    fn special(&mut self, header: &Header, size: u64, max: u64) -> Result<Vec<u8>> {
        let too_large = || fault(&header.path_bytes(), HeaderFault::PaxSize);
        if size > max {
            return Err(too_large());
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| too_large())?];
        self.begin_data(size)?;
        self.read_data_exact(&mut bytes).map_err(Error::archive)?;
        self.skip_data()?;
        Ok(bytes)
    }

    fn pax(&mut self, header: &Header, size: u64) -> Result<Overrides> {
        let bytes = self.special(header, size, PAX_BYTES_MAX)?;
        let mut overrides = self.global.clone();
        overrides
            .add(&bytes)
            .map_err(|what| fault(&header.path_bytes(), what))?;
        Ok(overrides)
    }

    fn global_pax(&mut self, header: &Header, size: u64) -> Result<()> {
        let bytes = self.special(header, size, PAX_BYTES_MAX)?;
        self.global
            .add(&bytes)
            .map_err(|what| fault(&header.path_bytes(), what))
    }

    fn long(&mut self, header: &Header, size: u64) -> Result<Vec<u8>> {
        let max = u64::try_from(PATH_BYTES_MAX + 1).unwrap_or(u64::MAX);
        let mut name = self.special(header, size, max)?;
        let end = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn entry(&mut self, header: &Header, size: u64, announced: Announced) -> Result<Entry> {
        let mut pax = announced.pax.unwrap_or_else(|| self.global.clone());
        let sparse_name = pax.sparse.as_mut().and_then(|records| records.name.take());
        let path = sparse_name
            .or(pax.path.take())
            .or(announced.long_path)
            .unwrap_or_else(|| path_bytes(header));
        let link = pax.link.take().or(announced.long_link).unwrap_or_else(|| {
            header
                .link_name_bytes()
                .map(std::borrow::Cow::into_owned)
                .unwrap_or_default()
        });
        let kind = kind_of(header, &path)?;
        let mut entry = own_fields(header, path, kind, pax.uid, pax.gid)?;
        if matches!(kind, Kind::HardLink | Kind::Symlink) {
            if link.is_empty() || link.len() > PATH_BYTES_MAX || link.contains(&0) {
                return Err(fault(&entry.path, HeaderFault::Link));
            }
            entry.link = link;
        }
        if let Some(mtime) = pax.mtime {
            entry.mtime = mtime;
        }
        entry.atime = pax.atime;
        if let Some(why) = pax.unsupported {
            let entry = Printable::from(&*entry.path);
            return Err(Error::Unsupported { entry, why });
        }
        for loss in &pax.lost {
            self.dropped.note(*loss, &entry.path);
        }
        entry.xattrs = pax.take_xattrs();
        (entry.acl_access, entry.acl_default) = (pax.acl_access.take(), pax.acl_default.take());
        if self.has_body(header, kind, pax.size_bytes.unwrap_or(size))? {
            self.pass_over(header, &entry, pax.size_bytes.unwrap_or(size))?;
        }
        let stored = stored_bytes(kind, pax.size_bytes.unwrap_or(size));
        self.begin_data(stored)?;
        self.content(header, &mut entry, stored, pax.sparse)?;
        Ok(entry)
    }

    /// Returns true if data follows an entry that is not a file. POSIX allows data after hard
    /// links, and many writers state a size without any data: then a header or the end comes next.
    fn has_body(&mut self, header: &Header, kind: Kind, size: u64) -> Result<bool> {
        if size == 0 {
            return Ok(false);
        }
        match kind {
            Kind::Directory => Ok(header.entry_type().as_byte() == DUMP_DIRECTORY),
            Kind::HardLink => {
                let Some(next) = self.record()? else {
                    return Ok(false);
                };
                self.ahead = Some(next);
                Ok(next != ZERO_RECORD && !checksum_holds(&next))
            }
            _ => Ok(false),
        }
    }

    /// Skips data that has no meaning here.
    fn pass_over(&mut self, header: &Header, entry: &Entry, size: u64) -> Result<()> {
        let is_list = header.entry_type().as_byte() == DUMP_DIRECTORY;
        let loss = if is_list {
            Loss::DirectoryList
        } else {
            Loss::LinkContent
        };
        self.dropped.note(loss, &entry.path);
        // The record that was read ahead is the first one of the data.
        let seen = if self.ahead.take().is_some() {
            RECORD
        } else {
            0
        };
        self.begin_data(size)?;
        self.padding_left = size.saturating_add(self.padding_left).saturating_sub(seen);
        self.data_left = 0;
        self.skip_data()
    }

    /// Determines the ranges of the stored data; reads the map if it precedes the data.
    fn content(
        &mut self,
        header: &Header,
        entry: &mut Entry,
        stored: u64,
        records: Option<SparseRecords>,
    ) -> Result<()> {
        let sparse = |path: &[u8]| fault(path, HeaderFault::Sparse);
        if header.entry_type() == EntryType::GNUSparse {
            (entry.size_bytes, entry.segments) = self.gnu_map(header, &entry.path)?;
        } else if let Some(records) = records.filter(|_| entry.kind == Kind::File) {
            entry.size_bytes = records.size_bytes.ok_or_else(|| sparse(&entry.path))?;
            entry.segments = records.segments;
            if records.map_leads_data {
                entry.segments = self.leading_map(&entry.path)?;
            }
        } else {
            entry.size_bytes = stored;
            entry.segments = vec![Segment {
                offset_bytes: 0,
                len_bytes: stored,
            }];
        }
        sparse::validate(&mut entry.segments, entry.size_bytes, self.data_left)
            .map_err(|what| fault(&entry.path, what))
    }

    fn gnu_map(&mut self, header: &Header, path: &[u8]) -> Result<(u64, Vec<Segment>)> {
        let sparse = || fault(path, HeaderFault::Sparse);
        let gnu = header.as_gnu().ok_or_else(sparse)?;
        let size = number::unsigned(&gnu.realsize).ok_or_else(sparse)?;
        let mut segments = Vec::new();
        for pair in &gnu.sparse {
            let pair = [pair.offset, pair.numbytes].concat();
            sparse::gnu_pairs(&pair, &mut segments).map_err(|what| fault(path, what))?;
        }
        let mut more = gnu.is_extended();
        while more {
            let block = self.record()?.ok_or_else(sparse)?;
            // 21 pairs, then the flag for whether another such record follows.
            sparse::gnu_pairs(&block[..504], &mut segments).map_err(|what| fault(path, what))?;
            more = block[504] != 0;
        }
        Ok((size, segments))
    }

    fn leading_map(&mut self, path: &[u8]) -> Result<Vec<Segment>> {
        let mut map = LeadingMap::default();
        let mut record = ZERO_RECORD;
        loop {
            self.read_data_exact(&mut record).map_err(|error| {
                if self.data_left < RECORD {
                    fault(path, HeaderFault::Sparse)
                } else {
                    Error::archive(error)
                }
            })?;
            if map.take(&record).map_err(|what| fault(path, what))? {
                return Ok(map.into_segments());
            }
        }
    }
}

impl<R: Read + Seek> TarReader<R> {
    /// As [`TarReader::next_entry`], but skips data by seeking. The caller must check that the data
    /// is complete.
    ///
    /// # Errors
    /// As [`TarReader::next_entry`].
    pub(crate) fn next_entry_seeking(&mut self) -> Result<Option<Entry>> {
        let left = self.data_left.saturating_add(self.padding_left);
        (self.data_left, self.padding_left) = (0, 0);
        let step = i64::try_from(left).map_err(|_| fault(b"", HeaderFault::Number("size")))?;
        self.inner.seek_relative(step).map_err(Error::archive)?;
        self.position_bytes = self.position_bytes.saturating_add(left);
        self.next_entry()
    }
}
