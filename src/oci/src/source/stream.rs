//! Images in unseekable streams: pipes and compressed archives.

use super::{Content, Image, Select, form};
use crate::compression::Decoder;
use crate::error::{Error, Result};
use crate::limits::PROBE_BYTES;
use crate::tarball::{RECORD_BYTES, looks_like_header};
use cowshed_format::base::cancel::Cancellable;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::Mutex;

/// Opens the images in `stream`: an archive is spooled, a root file system streamed.
pub(super) fn open(
    stream: Box<dyn Read + Send>,
    spool_folder: &Path,
    select: &Select,
) -> Result<Vec<Image>> {
    let stream = Box::new(Cancellable::new(stream));
    let mut content = Decoder::new(stream).map_err(Error::archive)?;
    let limit = u64::try_from(PROBE_BYTES).unwrap_or(u64::MAX);
    let mut head = Vec::new();
    (&mut content)
        .take(limit)
        .read_to_end(&mut head)
        .map_err(Error::archive)?;
    if head.is_empty() {
        return Err(Error::NotAnImage("it is empty"));
    }
    // An archive without entries consists only of its end marker.
    let has_no_entries = head.len() >= RECORD_BYTES && head.iter().all(|byte| *byte == 0);
    if !looks_like_header(&head) && !has_no_entries {
        return Err(Error::NotAnImage("it does not begin like a tar archive"));
    }
    let may_be_image = !select.root_only && form::may_be_image(&head);
    let mut whole = Cursor::new(head).chain(content);
    if !may_be_image {
        let content = Content::Stream(Mutex::new(Some(Box::new(whole))));
        return Ok(vec![Image::root_file_system(content, None)]);
    }
    // It has no name, and so vanishes however the process ends.
    let mut file = tempfile::tempfile_in(spool_folder)
        .map_err(|source| Error::io("create a temporary file for the archive", source))?;
    io::copy(&mut whole, &mut file).map_err(|error| {
        if error.raw_os_error().is_some() {
            Error::io("write the archive to a temporary file", error)
        } else {
            Error::archive(error)
        }
    })?;
    Image::open_archive(file, select)
}
