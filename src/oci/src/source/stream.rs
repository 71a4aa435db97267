//! Images in unseekable streams: pipes and compressed archives.

use super::{Content, Image, Select, form};
use crate::compression::Decoder;
use crate::error::{Error, Result};
use crate::limits::PROBE_BYTES;
use crate::tarball::{RECORD_BYTES, looks_like_header};
use cowshed_format::base::cancel::Cancellable;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

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
    let mut file = unnamed_file(spool_folder)
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

/// Creates an unnamed file, which vanishes when it is closed, however the process ends.
fn unnamed_file(folder: &Path) -> io::Result<File> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match openat(AT_FDCWD, folder, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(fd) => Ok(fd.into()),
        // Not every file system supports unnamed files; remove the name at once then.
        Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::EISDIR) => {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!(".spool-{}-{number}", std::process::id()));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        Err(errno) => Err(errno.into()),
    }
}
