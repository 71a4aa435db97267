//! Copying between a container and a tar stream, as `docker cp` with `-` does.

use super::{CopyOptions, CopyReport, CopySide, Side, is_dot, split};
use crate::containers::Containers;
use crate::error::{Error, Result};
use cowshed_oci::{self as oci, ApplyOptions, Compression, LayerInfo, LayerReader, LayerWriter};
use nix::errno::Errno;
use nix::sys::stat::SFlag;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

impl Containers {
    /// Writes the object at `path` in the container, with everything in it, as a tar stream; its
    /// entries begin with the last name of the path, or with `.` if the path ends in that. Returns
    /// the writer and the length of the stream.
    ///
    /// # Errors
    /// As [`Containers::copy`], and any error of `out`.
    pub fn copy_out<W: Write>(
        &self,
        container: &str,
        path: &Path,
        options: CopyOptions,
        out: W,
    ) -> Result<(W, u64)> {
        self.within(container, |root| {
            let side = side(container, path, root)?;
            let source = side.source(options)?;
            if source.kind().map_err(side.failed("inspect"))? == SFlag::S_IFSOCK {
                let path = path.to_owned();
                return Err(Error::CopySocket { path });
            }
            let (_, last) = split(path.as_os_str().as_bytes());
            let name = if is_dot(last) { b"." } else { last };
            let found = match source.name.as_bytes() {
                b"." => b"".as_slice(),
                name => name,
            };
            let mut tar = LayerWriter::new(out, Compression::None)?.with_any_names();
            oci::add_tree(&mut tar, source.directory.as_fd(), found, name)?;
            let (out, summary) = tar.finish()?;
            Ok((out, summary.size_bytes))
        })
    }

    /// Unpacks the tar stream `input`, which may be compressed, into the directory `path` of the
    /// container. A directory is not replaced by anything else, nor is a device, FIFO or socket.
    ///
    /// # Errors
    /// `NotADirectory`, `NotFound`; `Oci` if the stream is not a complete tar archive, or an entry
    /// leads out of the directory or cannot be created. Objects that were unpacked before an error
    /// stay.
    pub fn copy_in(
        &self,
        input: Box<dyn Read + Send>,
        container: &str,
        path: &Path,
    ) -> Result<CopyReport> {
        self.within(container, |root| {
            let side = side(container, path, root)?;
            let directory = match side.directory(path.as_os_str().as_bytes()) {
                Err(Errno::ENOTDIR) => {
                    let path = path.to_owned();
                    return Err(Error::NotADirectory { path });
                }
                opened => opened.map_err(side.failed("find"))?,
            };
            let mut tar = LayerReader::over(input, &LayerInfo::of_plain_tar())?;
            let options = ApplyOptions {
                require_end_marker: true,
                is_plain_tar: true,
            };
            let applied = oci::apply(directory.as_fd(), &mut tar, options)?;
            tar.finish()?;
            Ok(CopyReport {
                objects: applied.entries,
                copied_bytes: applied.written_bytes,
            })
        })
    }
}

fn side(container: &str, path: &Path, root: &Path) -> Result<Side> {
    let side = CopySide::Container {
        container: container.to_owned(),
        path: path.to_owned(),
    };
    Side::open(&side, root)
}
