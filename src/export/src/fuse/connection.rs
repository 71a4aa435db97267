//! A mount with the descriptors that serve it, and the negotiated parameters of the protocol.
//!
//! A connection neither serves nor unmounts: dropping the last copy of its descriptors leaves a
//! dead mount, which `clean_stale` clears away. A connection can be made in one process and served
//! in another, so a mount can outlive the process that serves it.
//!
//! # Invariants
//! - INIT has been replied to: a serving thread never sees it.
//! - The kernel ties requests to the descriptor that they were read from, and ends them with an
//!   error when the last copy of that descriptor is closed. So a process that keeps a mount alive
//!   must hold all of its descriptors.

use super::abi::{self, InHeader, InitIn, InitOut, OutHeader, init};
use super::rings::BACKGROUND_RINGS;
use super::transport::{ANSWER_HEADER, BODY, REQUEST, REQUEST_BYTES_MAX};
use crate::error::ExportError;
use crate::stale::{Cleaned, clean_stale};
use cowshed_sys::aligned::AlignedBuffer;
use cowshed_sys::mount::{self, MountFlags};
use cowshed_sys::{descriptors, fuse_device, fuse_ring};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use zerocopy::{FromBytes, IntoBytes};

/// The type in the mount table; it also identifies a stale mount as cowshed's.
pub(crate) const FS_TYPE: &str = "fuse.cowshed";
/// With fewer threads, a request could wait behind a slow one.
const THREADS_MIN: usize = 2;
/// The maximum number of requests that the kernel keeps in flight for readahead and asynchronous
/// direct I/O.
const BACKGROUND_MAX: u16 = 256;
/// The flags to request. All are optional: an older kernel grants fewer, and works.
const WISHES: u64 = init::ASYNC_READ
    | init::BIG_WRITES
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::INIT_EXT
    | init::DIRECT_IO_ALLOW_MMAP
    | init::HAS_RESEND;
/// Number of mounts that this process has made.
static MOUNTS: AtomicU64 = AtomicU64::new(0);

/// The way in which requests come from the kernel, and replies go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Each thread reads from and writes to its own descriptor.
    #[default]
    Threads,
    /// FUSE over io_uring (Linux 6.14), with a ring per processor. Such a mount ends with the
    /// process that serves it.
    IoUring,
}

/// The parameters that were agreed on with the kernel when the mount was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// The protocol's minor version, 31 to 45.
    pub minor: u32,
    /// The INIT flags that both sides support.
    pub flags: u64,
    /// All INIT flags that the kernel offered.
    pub offered: u64,
    /// The maximum number of bytes in one write.
    pub max_write: u32,
}

impl Negotiated {
    /// Returns true if the kernel repeats requests to a successor of the process that read them
    /// (Linux 6.9). Otherwise they fail when their reader dies.
    #[must_use]
    pub fn has_resend(&self) -> bool {
        self.flags & init::HAS_RESEND != 0
    }

    /// Returns the transport.
    #[must_use]
    pub fn transport(&self) -> Transport {
        if self.flags & init::OVER_IO_URING != 0 {
            Transport::IoUring
        } else {
            Transport::Threads
        }
    }
}

/// A connection as plain values, to be passed to another process that inherits the descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionParts {
    /// The numbers of the descriptors: the mounted one, then its clones.
    pub descriptors: Vec<RawFd>,
    /// The parameters that were agreed on with the kernel.
    pub negotiated: Negotiated,
    /// The mount point: absolute and without symbolic links.
    pub dir: PathBuf,
    /// The source in the mount table; no two mounts have the same.
    pub source: String,
}

/// A mount of volumes that can be served.
pub struct Connection {
    /// The mounted descriptor, then its clones; one per serving thread.
    pub(super) descriptors: Vec<OwnedFd>,
    /// Descriptors that only the serving threads keep open.
    pub(super) witnesses: Vec<OwnedFd>,
    pub(super) negotiated: Negotiated,
    pub(super) dir: PathBuf,
    pub(super) source: String,
    pub(super) cleaned: Cleaned,
}

impl Connection {
    /// Mounts at `dir`, which is created if it is missing, with a descriptor for each of `threads`
    /// serving threads: `None` for one per processor, at least two. With rings there is one
    /// descriptor. First clears away what a killed daemon left there.
    ///
    /// # Errors
    /// `NotRoot`, `NoFuse`, `NoRings`, `Served` if a live cowshed is mounted there, `Io`.
    pub fn mount(
        dir: &Path,
        threads: Option<usize>,
        transport: Transport,
    ) -> Result<Self, ExportError> {
        if transport == Transport::IoUring {
            check_rings()?;
        }
        let cleaned = clean_stale(dir)?;
        for stale in &cleaned.busy {
            tracing::warn!(
                device = %stale.device.display(), by = %stale.by,
                "a loop device of a killed daemon is still in use; end that use"
            );
        }
        fs::create_dir_all(dir).map_err(ExportError::io("create the directory", dir))?;
        let dir = mount::resolve(dir).map_err(ExportError::io("resolve", dir))?;
        if fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
            tracing::warn!(
                folder = %dir.display(),
                "the folder of the volumes holds files, which are not seen while the volumes are \
                 mounted over them"
            );
        }
        let threads = threads
            .unwrap_or_else(|| thread::available_parallelism().map_or(THREADS_MIN, usize::from))
            .max(THREADS_MIN);
        let descriptors = match transport {
            Transport::Threads => threads,
            Transport::IoUring => 1,
        };
        let number = MOUNTS.fetch_add(1, Ordering::Relaxed);
        let source = format!("cowshed-{}-{number}", std::process::id());
        let device = open_device()?;
        mount_device(device.as_fd(), &dir, &source)?;
        let opened = shake_hands(device.as_fd(), transport)
            .and_then(|negotiated| Ok((negotiated, with_clones(device, descriptors)?)));
        let (negotiated, descriptors) = opened.map_err(|error| {
            // Nobody serves the mount: leave no dead mount behind.
            let _ = mount::unmount_lazy(&dir);
            ExportError::io("serve volumes at", &dir)(error)
        })?;
        if negotiated.transport() != transport {
            let _ = mount::unmount_lazy(&dir);
            return Err(ExportError::NoRings);
        }
        Ok(Self {
            descriptors,
            witnesses: Vec::new(),
            negotiated,
            dir,
            source,
            cleaned,
        })
    }

    /// Returns the connection whose descriptors this process inherited, with the numbers in
    /// `parts`. From now on the connection owns them, and they are closed on `exec`.
    ///
    /// # Errors
    /// EBADF if one is not open, `InvalidInput` if there is none.
    pub fn adopt(parts: ConnectionParts) -> io::Result<Self> {
        if parts.descriptors.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            descriptors: descriptors::inherit(&parts.descriptors)?,
            witnesses: Vec::new(),
            negotiated: parts.negotiated,
            dir: parts.dir,
            source: parts.source,
            cleaned: Cleaned::default(),
        })
    }

    /// Returns the values that another process needs to adopt the connection. This connection still
    /// owns the descriptors.
    #[must_use]
    pub fn parts(&self) -> ConnectionParts {
        ConnectionParts {
            descriptors: self.descriptors.iter().map(AsRawFd::as_raw_fd).collect(),
            negotiated: self.negotiated,
            dir: self.dir.clone(),
            source: self.source.clone(),
        }
    }

    /// Returns the descriptors: the mounted one, then its clones.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.descriptors.iter().map(AsFd::as_fd)
    }

    /// Passes `descriptor` to the threads that will serve: it is closed when they have all ended,
    /// in whatever way, even if other threads of their process still wait. So the other end of a
    /// pipe shows that nobody serves any more.
    pub fn keep_while_served(&mut self, descriptor: OwnedFd) {
        self.witnesses.push(descriptor);
    }

    /// Returns the mount point.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the parameters that were agreed on with the kernel.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// Returns what a killed daemon had left and was cleared away before mounting.
    #[must_use]
    pub fn cleaned(&self) -> &Cleaned {
        &self.cleaned
    }
}

/// Checks before mounting that nothing keeps the kernel from offering rings.
fn check_rings() -> Result<(), ExportError> {
    match fuse_ring::is_enabled() {
        Some(true) => Ok(()),
        Some(false) => Err(ExportError::RingsDisabled),
        None => Err(ExportError::NoRings),
    }
}

fn open_device() -> Result<OwnedFd, ExportError> {
    fuse_device::open().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => ExportError::NoFuse,
        Some(libc::EPERM | libc::EACCES) => refused(),
        _ => ExportError::io("open", Path::new("/dev/fuse"))(error),
    })
}

/// Returns the error for a caller without the right to mount: root can be refused, too.
fn refused() -> ExportError {
    if nix::unistd::geteuid().is_root() {
        ExportError::Confined
    } else {
        ExportError::NotRoot
    }
}

/// Mounts with mount(2) directly: `fusermount` is not needed, as only root mounts here.
fn mount_device(device: BorrowedFd<'_>, dir: &Path, source: &str) -> Result<(), ExportError> {
    let descriptor = device.as_raw_fd();
    let options =
        format!("fd={descriptor},rootmode=40700,user_id=0,group_id=0,default_permissions");
    let flags = MountFlags::MS_NOSUID | MountFlags::MS_NODEV | MountFlags::MS_NOEXEC;
    mount::mount(OsStr::new(source), dir, FS_TYPE, flags, &options).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::ENODEV) => ExportError::NoFuse,
            Some(libc::EPERM | libc::EACCES) => refused(),
            _ => ExportError::io("mount volumes at", dir)(error),
        }
    })
}

fn with_clones(device: OwnedFd, threads: usize) -> io::Result<Vec<OwnedFd>> {
    let mut descriptors = vec![device];
    while descriptors.len() < threads {
        descriptors.push(fuse_device::clone(descriptors[0].as_fd())?);
    }
    Ok(descriptors)
}

/// Replies to INIT, the kernel's first request.
fn shake_hands(device: BorrowedFd<'_>, transport: Transport) -> io::Result<Negotiated> {
    let mut buffer = AlignedBuffer::zeroed(BODY + REQUEST_BYTES_MAX);
    loop {
        let len = match fuse_device::read(device, &mut buffer[REQUEST..]) {
            Ok(len) => len,
            Err(nix::Error::EINTR | nix::Error::ENOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let (header, offer) = parse_init(&buffer[REQUEST..REQUEST + len])?;
        if offer.major > abi::MAJOR {
            // The kernel sends INIT again, with the version in this reply.
            let answer = InitOut {
                major: abi::MAJOR,
                minor: abi::MINOR,
                ..InitOut::default()
            };
            send(device, &mut buffer, header.unique, &answer)?;
            continue;
        }
        if offer.major < abi::MAJOR || offer.minor < abi::MINOR_MIN {
            let have = format!(
                "the kernel's FUSE is {}.{}, and at least {}.{} is needed (Linux 5.4)",
                offer.major,
                offer.minor,
                abi::MAJOR,
                abi::MINOR_MIN
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, have));
        }
        let (negotiated, answer) = agree(&offer, transport);
        send(device, &mut buffer, header.unique, &answer)?;
        return Ok(negotiated);
    }
}

/// Parses INIT, with zeros for the fields that older kernels omit.
fn parse_init(request: &[u8]) -> io::Result<(InHeader, InitIn)> {
    let wrong = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's first FUSE request was not INIT",
        )
    };
    let (header, body) = InHeader::read_from_prefix(request).map_err(|_| wrong())?;
    if header.opcode != abi::opcode::INIT {
        return Err(wrong());
    }
    let mut offer = InitIn::default();
    let known = body.len().min(size_of::<InitIn>());
    offer.as_mut_bytes()[..known].copy_from_slice(&body[..known]);
    Ok((header, offer))
}

/// Returns the parameters that both sides support, and the reply that states them.
fn agree(offer: &InitIn, transport: Transport) -> (Negotiated, InitOut) {
    let mut offered = u64::from(offer.flags);
    if offered & init::INIT_EXT != 0 {
        offered |= u64::from(offer.flags2) << 32;
    }
    // Once rings are agreed on, the kernel waits for them before it sends any request.
    let rings = match transport {
        Transport::Threads => 0,
        Transport::IoUring => init::OVER_IO_URING,
    };
    let flags = offered & (WISHES | rings);
    let halves: [u32; 2] = zerocopy::transmute!(flags.to_le_bytes());
    let [low, high] = halves.map(u32::from_le);
    let max_write = u32::try_from(REQUEST_BYTES_MAX).unwrap_or(u32::MAX);
    let max_background = match transport {
        Transport::Threads => BACKGROUND_MAX,
        Transport::IoUring => BACKGROUND_RINGS,
    };
    let minor = offer.minor.min(abi::MINOR);
    let answer = InitOut {
        major: abi::MAJOR,
        minor,
        max_readahead: offer.max_readahead.min(max_write),
        flags: low,
        flags2: high,
        max_background,
        congestion_threshold: max_background / 4 * 3,
        max_write,
        time_gran: 1,
        max_pages: u16::try_from(REQUEST_BYTES_MAX / 4096).unwrap_or(u16::MAX),
        ..InitOut::default()
    };
    let negotiated = Negotiated {
        minor,
        flags,
        offered,
        max_write,
    };
    (negotiated, answer)
}

fn send(
    device: BorrowedFd<'_>,
    buffer: &mut [u8],
    unique: u64,
    answer: &InitOut,
) -> io::Result<()> {
    let end = BODY + size_of::<InitOut>();
    let header = OutHeader {
        len: u32::try_from(end - ANSWER_HEADER).map_err(io::Error::other)?,
        error: 0,
        unique,
    };
    buffer[ANSWER_HEADER..BODY].copy_from_slice(header.as_bytes());
    buffer[BODY..end].copy_from_slice(answer.as_bytes());
    Ok(fuse_device::write(device, &buffer[ANSWER_HEADER..end])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_both_sides_have_is_agreed() {
        let offer = InitIn {
            major: 7,
            minor: 99,
            max_readahead: 131_072,
            flags: u32::MAX,
            flags2: 1 << 7 | 1 << 4,
            ..InitIn::default()
        };
        let (negotiated, answer) = agree(&offer, Transport::Threads);
        assert_eq!(negotiated.minor, abi::MINOR);
        assert_eq!(negotiated.flags, WISHES);
        assert!(negotiated.has_resend());
        let flags2 = 1 << 7 | 1 << 4;
        assert_eq!((answer.flags2, answer.max_write), (flags2, 1 << 20));
        assert_eq!((answer.max_pages, answer.max_readahead), (256, 131_072));
        assert_eq!(negotiated.transport(), Transport::Threads);
        // First not offered, so not agreed on; then offered and requested.
        let (negotiated, _) = agree(&offer, Transport::IoUring);
        assert_eq!(negotiated.transport(), Transport::Threads);
        let offer = InitIn {
            flags2: 1 << 9 | 1 << 7,
            ..offer
        };
        let (negotiated, answer) = agree(&offer, Transport::IoUring);
        assert_eq!(negotiated.transport(), Transport::IoUring);
        assert_eq!(answer.flags2, 1 << 9 | 1 << 7);
        let (negotiated, _) = agree(&offer, Transport::Threads);
        assert_eq!(negotiated.transport(), Transport::Threads);
    }

    #[test]
    fn an_old_kernels_short_init_has_no_second_flags() {
        let header = InHeader {
            opcode: abi::opcode::INIT,
            ..InHeader::default()
        };
        let mut request = header.as_bytes().to_vec();
        request.extend([7_u32, 31, 4096, !(1 << 30)].as_bytes());
        let (_, offer) = parse_init(&request).unwrap();
        let (negotiated, answer) = agree(&offer, Transport::Threads);
        assert_eq!((negotiated.minor, answer.flags2), (31, 0));
        assert!(!negotiated.has_resend());
        assert!(parse_init(&request[..39]).is_err());
        request[4] = 1;
        assert!(parse_init(&request).is_err());
    }
}
