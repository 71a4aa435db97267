//! The first transport: requests are read from the FUSE device, and replies are written to it.
//!
//! Each thread has one buffer for both directions. A request is read so that the data of a write,
//! which comes after 80 bytes of headers, starts at a page; the data of a read is put at that same
//! offset and leaves in one piece with its header, which comes before it:
//!
//! ```text
//!   REQUEST                      ANSWER_HEADER    BODY = one page, where data lies both ways
//!      | header 40 | arguments 40 ...      | 16 |  data, up to REQUEST_BYTES_MAX
//! ```
//!
//! # Invariants
//! - The buffer's pages are all in memory: if one were missing when the thread is killed while the
//!   kernel copies a request, the request would be lost to a successor, and fail.

use super::abi::{InHeader, OutHeader, WriteIn, opcode};
use super::disk_pressure::Timed;
use super::dispatch::{self, Reply, Request, RequestServer};
use super::files::VolumeFiles;
use cowshed_sys::aligned::AlignedBuffer;
use cowshed_sys::fuse_device;
use nix::errno::Errno;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// The maximum number of bytes in one read or write request; the kernel's limit without tuning.
pub(super) const REQUEST_BYTES_MAX: usize = 1 << 20;
/// The offset of the data of requests and replies in the buffer.
pub(super) const BODY: usize = 4096;
/// The offset of a reply, so that its body follows its header.
pub(super) const ANSWER_HEADER: usize = BODY - size_of::<OutHeader>();
/// The offset of a request, so that a write's data is at `BODY`.
pub(super) const REQUEST: usize = BODY - size_of::<InHeader>() - size_of::<WriteIn>();
/// The maximum number of argument bytes; names are shorter, and longer requests are not served.
const ARGUMENTS_MAX: usize = 8192;

/// The buffers into which a thread reads requests and from which it replies.
pub(super) struct Frame {
    buffer: AlignedBuffer,
    /// A copy of arguments that extend into the body, where the reply will be.
    arguments: Box<[u8]>,
}

/// The reason why a thread stops serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The thread was told to stop.
    Told,
    /// The mount is gone.
    Gone,
}

impl Frame {
    pub(super) fn new() -> Self {
        let mut buffer = AlignedBuffer::zeroed(BODY + REQUEST_BYTES_MAX);
        // Brings every page into memory, which zeros alone would not.
        buffer.fill(0xC0);
        Self {
            buffer,
            arguments: vec![0; ARGUMENTS_MAX].into(),
        }
    }

    /// Serves the request of `len` bytes in the buffer. Returns the length of the reply, which
    /// starts at `ANSWER_HEADER`, or `None` if there is none.
    pub(super) fn answer(
        &mut self,
        files: &VolumeFiles,
        len: usize,
        server: &dyn RequestServer,
    ) -> Option<usize> {
        let (head, payload) = self.buffer.split_at_mut(BODY);
        let whole = REQUEST + len;
        let header = match InHeader::read_from_prefix(&head[REQUEST..whole.min(BODY)]) {
            Ok((header, _)) if header.len as usize == len => header,
            _ => {
                tracing::error!(len, "the kernel sent an incomplete FUSE request");
                return None;
            }
        };
        let start = REQUEST + size_of::<InHeader>();
        let beyond = whole.saturating_sub(BODY);
        let arguments = if header.opcode == opcode::WRITE || beyond == 0 {
            &head[start..whole.min(BODY)]
        } else {
            let inside = BODY - start;
            let more = beyond.min(ARGUMENTS_MAX - inside);
            self.arguments[..inside].copy_from_slice(&head[start..]);
            self.arguments[inside..inside + more].copy_from_slice(&payload[..more]);
            &self.arguments[..inside + more]
        };
        let request = Request {
            header,
            arguments,
            payload,
            data_len: beyond,
            server,
        };
        let reply = dispatch::answer(files, request);
        if reply == Reply::None {
            return None;
        }
        let (error, body) = reply.code_and_bytes();
        Some(self.finish(header.unique, error, body))
    }

    /// Returns the opcode of the request in the buffer.
    fn opcode(&self) -> u32 {
        let header = InHeader::read_from_prefix(&self.buffer[REQUEST..BODY]);
        header.map_or(0, |(header, _)| header.opcode)
    }

    /// Returns the reply to `request`, as it would be written to the device.
    #[cfg(test)]
    pub(super) fn ask(&mut self, files: &VolumeFiles, request: &[u8]) -> Option<Vec<u8>> {
        self.buffer[REQUEST..REQUEST + request.len()].copy_from_slice(request);
        let len = self.answer(files, request.len(), &cowshed_engine::WaitFreely)?;
        Some(self.buffer[ANSWER_HEADER..ANSWER_HEADER + len].to_vec())
    }

    /// Puts the header before a body of `body` bytes.
    fn finish(&mut self, unique: u64, error: i32, body: usize) -> usize {
        let len = size_of::<OutHeader>() + body;
        let header = OutHeader {
            // The body is at most REQUEST_BYTES_MAX, like the buffer.
            len: u32::try_from(len).unwrap_or(u32::MAX),
            error,
            unique,
        };
        self.buffer[ANSWER_HEADER..BODY].copy_from_slice(header.as_bytes());
        len
    }
}

/// One in this number of requests is timed.
const TIMED: u32 = 8;
/// The maximum number of consecutive errors of the device; after that many it cannot be used.
const ERRORS_MAX: u32 = 8;

/// Returns true if a request is timed; `number` counts the requests. Flushes are always timed: they
/// are few, and take longest.
pub(super) const fn is_timed(number: u32, opcode: u32) -> bool {
    number.is_multiple_of(TIMED) || opcode == opcode::FSYNC
}

/// Serves requests of `device` until the mount is gone or `goes_on`, which is called before each,
/// returns false; `server` decides for each whether it may wait. `took` gets the duration of some
/// of them, and the number of bytes that they moved.
///
/// # Errors
/// The device's error, if reading fails repeatedly while the mount exists.
pub(super) fn serve(
    device: BorrowedFd<'_>,
    files: &VolumeFiles,
    server: &dyn RequestServer,
    goes_on: impl Fn() -> bool,
    took: impl Fn(Duration, usize),
) -> io::Result<End> {
    let mut frame = Frame::new();
    let (mut number, mut errors) = (0_u32, 0);
    while goes_on() {
        let len = match fuse_device::read(device, &mut frame.buffer[REQUEST..]) {
            Ok(len) => len,
            // The kernel withdrew the request, or a signal came.
            Err(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => continue,
            Err(Errno::ENODEV | Errno::ECONNABORTED) => return Ok(End::Gone),
            // The kernel has ended that request.
            Err(error) if errors < ERRORS_MAX => {
                tracing::warn!(%error, "cannot read a FUSE request");
                errors += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        errors = 0;
        number = number.wrapping_add(1);
        let opcode = frame.opcode();
        let timed = is_timed(number, opcode).then(|| Timed::begin(opcode, files.writes_wait()));
        let Some(answer) = frame.answer(files, len, server) else {
            continue;
        };
        let time = timed.map(Timed::end);
        match fuse_device::write(device, &frame.buffer[ANSWER_HEADER..ANSWER_HEADER + answer]) {
            // Nobody waits for the reply any more.
            Ok(()) | Err(Errno::ENOENT | Errno::EINTR) => {}
            Err(Errno::ENODEV | Errno::ECONNABORTED) => return Ok(End::Gone),
            Err(error) => tracing::error!(%error, "the kernel refused the reply to a FUSE request"),
        }
        if let Some(time) = time {
            took(time, len + answer);
        }
    }
    Ok(End::Told)
}

/// Asks the kernel to repeat every request that was read and not replied to. A thread that reads
/// requests meanwhile would be sent its own requests again; so none may read.
///
/// # Errors
/// EINVAL if the kernel cannot do that.
pub(super) fn ask_again(device: BorrowedFd<'_>) -> io::Result<()> {
    let notification = OutHeader {
        len: u32::try_from(size_of::<OutHeader>()).map_err(io::Error::other)?,
        error: super::abi::NOTIFY_RESEND,
        unique: 0,
    };
    Ok(fuse_device::write(device, notification.as_bytes())?)
}
