//! From a request to its reply, independent of the transport.
//!
//! # Invariants
//! - No request, however short or malformed, causes a panic here, and a panic below gives the reply
//!   EIO.

use super::abi::{
    self, FallocateIn, FsyncIn, InHeader, LseekIn, LseekOut, OpenIn, OpenOut, ReadIn, ReleaseIn,
    SetattrIn, WriteIn, WriteOut, opcode,
};
use super::files::VolumeFiles;
use crate::file_io::Answer;
use cowshed_engine::{WaitFreely, Waiter};
use libc::c_int;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A request, and the buffer for its reply.
pub(super) struct Request<'a> {
    pub(super) header: InHeader,
    /// The bytes after the header, without the data of a write.
    pub(super) arguments: &'a [u8],
    /// The data of a write; also the buffer for the reply's body.
    pub(super) payload: &'a mut [u8],
    /// The length of a write's data.
    pub(super) data_len: usize,
    /// The thread that serves it.
    pub(super) server: &'a dyn RequestServer,
}

/// A thread that serves requests: it decides whether one may wait for space.
pub(super) trait RequestServer: Waiter {
    /// Returns true if the request may not wait here and will be started anew elsewhere: then its
    /// failure here does not count.
    fn begins_anew(&self) -> bool {
        false
    }
}

impl RequestServer for WaitFreely {}

/// The reply to a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// No reply: the kernel does not wait.
    None,
    /// An errno.
    Error(c_int),
    /// The number of bytes of the payload.
    Body(usize),
}

/// The kernel accepts replies with errors below this.
const ERRNO_END: i32 = 512;

impl Reply {
    /// Returns the error as the reply's header has it, and the length of the body.
    pub(super) fn code_and_bytes(&self) -> (i32, usize) {
        match *self {
            Self::Body(bytes) => (0, bytes),
            Self::Error(code) if (1..ERRNO_END).contains(&code) => (-code, 0),
            Self::Error(_) => (-libc::EIO, 0),
            Self::None => (-libc::ENOSYS, 0),
        }
    }
}

/// Serves a request and returns the reply.
pub(super) fn answer(files: &VolumeFiles, request: Request<'_>) -> Reply {
    let opcode = request.header.opcode;
    match opcode {
        opcode::FORGET | opcode::BATCH_FORGET => return Reply::None,
        _ => {}
    }
    // State that the panic broke is behind locks that do not poison and values that are checked;
    // this thread keeps none of it.
    match catch_unwind(AssertUnwindSafe(|| route(files, request))) {
        Ok(Ok(len)) => Reply::Body(len),
        Ok(Err(code)) => Reply::Error(code),
        Err(_) => {
            tracing::error!(
                opcode,
                "the handler of a FUSE request panicked, and the request failed with EIO"
            );
            Reply::Error(libc::EIO)
        }
    }
}

/// Serves a request; returns the length of the body that it wrote into the payload.
fn route(files: &VolumeFiles, request: Request<'_>) -> Answer<usize> {
    let Request {
        header,
        arguments,
        payload,
        data_len,
        server,
    } = request;
    match header.opcode {
        opcode::READ => {
            let wanted: ReadIn = parse(arguments)?;
            let room = payload.len().min(wanted.size as usize);
            files.read(wanted.fh, wanted.offset, &mut payload[..room])
        }
        opcode::WRITE => {
            let wanted: WriteIn = parse(arguments)?;
            let data = payload.get(..data_len).ok_or(libc::EINVAL)?;
            let data = data.get(..wanted.size as usize).ok_or(libc::EINVAL)?;
            let durable = wanted.flags & libc::O_DSYNC.cast_unsigned() != 0;
            let written = files.write(wanted.fh, wanted.offset, data, durable, server)?;
            let size = u32::try_from(written).map_err(|_| libc::EIO)?;
            put(payload, &WriteOut { size, padding: 0 })
        }
        opcode::FSYNC => done(files.fsync(parse::<FsyncIn>(arguments)?.fh)),
        opcode::FALLOCATE => {
            let wanted: FallocateIn = parse(arguments)?;
            let mode = wanted.mode.cast_signed();
            done(files.fallocate(wanted.fh, wanted.offset, wanted.length, mode))
        }
        opcode::LSEEK => {
            let wanted: LseekIn = parse(arguments)?;
            let (offset, whence) = (wanted.offset.cast_signed(), wanted.whence.cast_signed());
            let offset = files.seek(wanted.fh, offset, whence)?.cast_unsigned();
            put(payload, &LseekOut { offset })
        }
        opcode::OPEN => {
            let wanted: OpenIn = parse(arguments)?;
            let (fh, open_flags) = files.open(&header, wanted.flags.cast_signed())?;
            put_handle(payload, fh, open_flags)
        }
        opcode::RELEASE => {
            files.release(parse::<ReleaseIn>(arguments)?.fh);
            Ok(0)
        }
        // Sent at close by kernels that do not know FOPEN_NOFLUSH. No written data is pending here:
        // close(2) does not promise durability, fsync(2) does.
        opcode::FLUSH | opcode::DESTROY => Ok(0),
        opcode => route_names(files, opcode, &header, arguments, payload),
    }
}

/// Serves the requests that concern names and attributes rather than data.
fn route_names(
    files: &VolumeFiles,
    opcode: u32,
    header: &InHeader,
    arguments: &[u8],
    payload: &mut [u8],
) -> Answer<usize> {
    match opcode {
        opcode::LOOKUP => put(payload, &files.find(header.nodeid, name(arguments)?)?),
        opcode::GETATTR => put(payload, &files.attributes_out(header.nodeid)?),
        opcode::SETATTR => {
            let wanted: SetattrIn = parse(arguments)?;
            put(payload, &files.refuse_change(header.nodeid, &wanted)?)
        }
        opcode::OPENDIR => {
            let fh = files.open_directory(header.nodeid)?;
            put_handle(payload, fh, 0)
        }
        opcode::READDIR => {
            let wanted: ReadIn = parse(arguments)?;
            let room = payload.len().min(wanted.size as usize);
            files.read_directory(
                header.nodeid,
                wanted.fh,
                wanted.offset,
                &mut payload[..room],
            )
        }
        opcode::RELEASEDIR => {
            files.release_directory(parse::<ReleaseIn>(arguments)?.fh);
            Ok(0)
        }
        opcode::FSYNCDIR => done(files.flush_all()),
        opcode::STATFS => put(payload, &files.space()?),
        // Volumes are created, named and removed through the pool.
        opcode::MKNOD
        | opcode::MKDIR
        | opcode::CREATE
        | opcode::UNLINK
        | opcode::RMDIR
        | opcode::RENAME
        | opcode::RENAME2
        | opcode::LINK
        | opcode::SYMLINK => Err(libc::EPERM),
        // INIT came earlier, and `connection` replied to it.
        opcode::INIT => Err(libc::EIO),
        // The kernel takes ENOSYS for "never supported", and sends no more of these: extended
        // attributes, locks, interrupts, …
        _ => Err(libc::ENOSYS),
    }
}

fn parse<T: FromBytes>(arguments: &[u8]) -> Answer<T> {
    T::read_from_prefix(arguments)
        .map(|(value, _)| value)
        .map_err(|_| libc::EINVAL)
}

fn name(arguments: &[u8]) -> Answer<&OsStr> {
    CStr::from_bytes_until_nul(arguments)
        .map(|name| OsStr::from_bytes(name.to_bytes()))
        .map_err(|_| libc::EINVAL)
}

fn done(answer: Answer<()>) -> Answer<usize> {
    answer.map(|()| 0)
}

fn put<T: IntoBytes + Immutable>(payload: &mut [u8], value: &T) -> Answer<usize> {
    let bytes = value.as_bytes();
    payload
        .get_mut(..bytes.len())
        .ok_or(libc::EIO)?
        .copy_from_slice(bytes);
    Ok(bytes.len())
}

fn put_handle(payload: &mut [u8], fh: u64, open_flags: u32) -> Answer<usize> {
    let answer = OpenOut {
        fh,
        open_flags,
        backing_id: 0,
    };
    put(payload, &answer)
}

/// Returns true if the kernel repeats the request, and the request's original number.
pub(super) fn first_unique(header: &InHeader) -> (bool, u64) {
    let is_again = header.unique & abi::UNIQUE_RESEND != 0;
    (is_again, header.unique & !abi::UNIQUE_RESEND)
}
