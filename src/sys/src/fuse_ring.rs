//! A ring through which the kernel delivers the requests of a FUSE mount and takes the answers:
//! FUSE over io_uring (Linux 6.14, fs/fuse/dev_uring.c).
//!
//! A *place* is memory for one request at a time: its header, its arguments and its data, and the
//! answer to it in the same bytes. Places are registered with one of the mount's queues. A mount
//! has one queue for each possible processor, and a processor's requests go to its queue. This
//! module does not interpret the bytes.
//!
//! ```text
//!   0        128         256                         1024           4096
//!   | header | arguments | commit id, length of data | io vectors   | data
//! ```
//!
//! # Invariants
//! - A place belongs to the kernel from its registration, or the commit of its answer, until its
//!   completion is taken. Meanwhile no code here can access its memory, and it is not unmapped: if
//!   the ring is dropped then, the memory is leaked.
//! - One thread makes a ring and uses it. When that thread ends, the kernel takes the places back.

use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use memmap2::MmapMut;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

/// Maximum length of a request's header, and of its arguments.
pub const HEADER_BYTES: usize = 128;
/// Offset of a place's data.
const DATA: usize = 4096;
const ARGUMENTS: usize = HEADER_BYTES;
/// struct `fuse_uring_ent_in_out`: flags, commit id, length of the data, padding, reserved.
const COMMIT_ID: usize = 2 * HEADER_BYTES + 8;
const DATA_BYTES: usize = COMMIT_ID + 8;
/// The length of struct `fuse_uring_req_header`.
const HEAD_BYTES: usize = 2 * HEADER_BYTES + 32;
/// Offset of the io vectors that describe the place to the kernel.
const VECTORS: usize = 1024;

/// `FUSE_IO_URING_CMD_REGISTER` and `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
/// Offset of the length in a submission: `len` of struct `io_uring_sqe`.
const SUBMISSION_LEN: usize = 24;
/// The device's index among the ring's registered files.
const DEVICE: types::Fixed = types::Fixed(0);
/// Marks the completions of the waker.
const WAKE: u64 = u64::MAX;
/// Capacity of the submission queue; further submissions are handed to the kernel earlier.
const SUBMISSIONS: u32 = 64;

/// Memory for one request.
pub struct Place {
    memory: MmapMut,
    queue: u16,
    index: usize,
}

/// The parts of a place.
pub struct Parts<'a> {
    /// The request's header, and then the answer's.
    pub header: &'a mut [u8],
    /// The fixed arguments of the request; bytes that the request leaves out keep their old values.
    pub arguments: &'a [u8],
    /// The request's data at its start, and then the answer's.
    pub data: &'a mut [u8],
    /// Length of the request's data.
    pub data_bytes: usize,
}

impl Place {
    /// Returns the queue whose requests the place takes.
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// Returns the place's parts.
    pub fn parts(&mut self) -> Parts<'_> {
        let (head, data) = self.memory.split_at_mut(DATA);
        let (header, rest) = head.split_at_mut(ARGUMENTS);
        let arguments = &rest[..HEADER_BYTES];
        let told = &rest[DATA_BYTES - ARGUMENTS..][..4];
        let told = u32::from_ne_bytes([told[0], told[1], told[2], told[3]]) as usize;
        Parts {
            header,
            arguments,
            data_bytes: told.min(data.len()),
            data,
        }
    }

    /// Sets the length of the answer's data.
    pub fn set_answer_bytes(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.memory[DATA_BYTES..DATA_BYTES + 4].copy_from_slice(&bytes.to_ne_bytes());
    }

    fn commit_id(&self) -> [u8; 8] {
        let mut id = [0; 8];
        id.copy_from_slice(&self.memory[COMMIT_ID..COMMIT_ID + 8]);
        id
    }

    /// Writes io vectors for the place's two parts, for the kernel; returns the address of the
    /// vectors.
    fn write_vectors(&mut self) -> u64 {
        let start = self.memory.as_ptr().expose_provenance() as u64;
        let data_bytes = (self.memory.len() - DATA) as u64;
        let words = [start, HEAD_BYTES as u64, start + DATA as u64, data_bytes];
        for (index, word) in words.into_iter().enumerate() {
            let at = VECTORS + index * 8;
            self.memory[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }
        start + VECTORS as u64
    }
}

/// Ends the wait of a ring's thread, from any thread that shares its descriptor table.
#[derive(Clone)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// Makes the ring return `Event::Woken` soon, once for any number of calls before that.
    pub fn wake(&self) {
        // It fails only if the counter would exceed 64 bits: then the ring is about to wake anyway.
        let _ = self.0.write(1);
    }
}

/// An event of a ring.
pub enum Event {
    /// A place holds a request, to be answered by `FuseRing::commit`.
    Request(Place),
    /// The ring was woken.
    Woken,
    /// The kernel has given a place back without a request, for good.
    Ended(Errno),
}

/// A ring of one thread for one FUSE mount.
pub struct FuseRing {
    ring: IoUring<Entry128>,
    /// The places that the kernel holds, by index.
    lent: Vec<Option<Place>>,
    waker: Waker,
}

impl FuseRing {
    /// Makes a ring of this thread for the mount that `device` serves.
    ///
    /// # Errors
    /// Errors of `io_uring_setup` and `io_uring_register`; EPERM where the host forbids rings.
    pub fn new(device: BorrowedFd<'_>) -> io::Result<Self> {
        let ring: IoUring<Entry128> = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .build(SUBMISSIONS)?;
        ring.submitter().register_files(&[device.as_raw_fd()])?;
        let waker = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let mut ring = Self {
            ring,
            lent: Vec::new(),
            waker: Waker(Arc::new(waker)),
        };
        ring.watch_waker()?;
        Ok(ring)
    }

    /// Returns the waker of this ring.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Lends the kernel a new place for requests of `queue`, with space for `data_bytes` of data:
    /// at least the maximum that was negotiated with the kernel. An event tells if the kernel
    /// refuses the place.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn register(&mut self, queue: u16, data_bytes: usize) -> io::Result<()> {
        let mut place = Place {
            memory: MmapMut::map_anon(DATA + data_bytes)?,
            queue,
            index: self.lent.len(),
        };
        let vectors = place.write_vectors();
        let command = command(queue, [0; 8]);
        let mut submission = opcode::UringCmd80::new(DEVICE, REGISTER)
            .cmd(command)
            .addr(Some(vectors))
            .build()
            .user_data(place.index as u64);
        set_vectors(&mut submission, 2);
        self.lent.push(None);
        self.lend(&submission, place)
    }

    /// Gives the kernel the answer in `place`, and the place for another request.
    ///
    /// # Errors
    /// Errors of `io_uring_enter`.
    pub fn commit(&mut self, place: Place) -> io::Result<()> {
        let submission = opcode::UringCmd80::new(DEVICE, COMMIT_AND_FETCH)
            .cmd(command(place.queue, place.commit_id()))
            .build()
            .user_data(place.index as u64);
        self.lend(&submission, place)
    }

    fn lend(&mut self, submission: &Entry128, place: Place) -> io::Result<()> {
        let index = place.index;
        self.lent[index] = Some(place);
        self.push(submission)
    }

    fn push(&mut self, submission: &Entry128) -> io::Result<()> {
        loop {
            // SAFETY: the memory that the submission points to is a place in `lent`, where it stays
            // until the completion, or is leaked with it; the waker's descriptor lives as long as
            // the ring.
            if unsafe { self.ring.submission().push(submission) }.is_ok() {
                return Ok(());
            }
            self.enter(0)?;
        }
    }

    /// Submits what was committed, and waits until there is an event or a signal arrives.
    ///
    /// # Errors
    /// Errors of `io_uring_enter`.
    pub fn wait(&mut self) -> io::Result<()> {
        self.enter(1)
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        match self.ring.submitter().submit_and_wait(want) {
            Ok(_) => Ok(()),
            // EBUSY: completions must be taken first.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the next event, without waiting.
    pub fn next_event(&mut self) -> Option<Event> {
        let completion: cqueue::Entry = self.ring.completion().next()?;
        if completion.user_data() == WAKE {
            // The counter's value does not matter.
            let _ = self.waker.0.read();
            return match self.watch_waker() {
                Ok(()) => Some(Event::Woken),
                Err(error) => Some(Event::Ended(Errno::from_raw(
                    error.raw_os_error().unwrap_or(libc::EIO),
                ))),
            };
        }
        let index = usize::try_from(completion.user_data()).ok()?;
        let place = self.lent.get_mut(index).and_then(Option::take)?;
        match completion.result() {
            0 => Some(Event::Request(place)),
            error => Some(Event::Ended(Errno::from_raw(-error))),
        }
    }

    fn watch_waker(&mut self) -> io::Result<()> {
        let descriptor = types::Fd(self.waker.0.as_fd().as_raw_fd());
        let events = u32::try_from(libc::POLLIN).map_err(io::Error::other)?;
        let submission = opcode::PollAdd::new(descriptor, events).build();
        self.push(&Entry128::from(submission.user_data(WAKE)))
    }
}

impl Drop for FuseRing {
    fn drop(&mut self) {
        // The kernel may write to the places until it has released the ring, which happens some
        // time later.
        for place in self.lent.drain(..).flatten() {
            let _ = ManuallyDrop::new(place);
        }
    }
}

/// Returns a struct `fuse_uring_cmd_req`: flags, commit id, queue.
fn command(queue: u16, commit_id: [u8; 8]) -> [u8; 80] {
    let mut command = [0; 80];
    command[8..16].copy_from_slice(&commit_id);
    command[16..18].copy_from_slice(&queue.to_ne_bytes());
    command
}

/// Sets the number of io vectors, which the command builder has no method for.
fn set_vectors(submission: &mut Entry128, count: u32) {
    const { assert!(size_of::<Entry128>() == 128) };
    let start = std::ptr::from_mut(submission).cast::<u8>();
    // SAFETY: an entry is, as `repr(C)` says, the kernel's struct io_uring_sqe, in which the 32-bit
    // `len` lies at this offset, inside the 128 bytes that were just asserted and aligned to 4.
    unsafe { start.add(SUBMISSION_LEN).cast::<u32>().write(count) };
}

/// Returns true if the kernel lets FUSE servers use rings; `None` where it does not know of that.
pub fn is_enabled() -> Option<bool> {
    let text = std::fs::read_to_string("/sys/module/fuse/parameters/enable_uring").ok()?;
    Some(text.starts_with('Y'))
}

/// Makes a ring and drops it again, to find out whether this process may.
///
/// # Errors
/// EPERM where io_uring is disabled, ENOSYS where the kernel has none.
pub fn probe() -> io::Result<()> {
    <IoUring>::new(1).map(drop)
}

/// Returns the number of possible processors: a mount has as many queues.
///
/// # Errors
/// If the kernel does not tell.
pub fn possible_processors() -> io::Result<u16> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    count_processors(text.trim()).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's list of processors is malformed",
        )
    })
}

/// Returns how many numbers a list such as `0-3,6` names.
fn count_processors(list: &str) -> Option<u16> {
    list.split(',').try_fold(0_u16, |count, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// Keeps this thread on one processor, where that is possible.
///
/// # Errors
/// Errors of sched_setaffinity(2): EINVAL where this process may not run there.
pub fn stay_on(processor: u16) -> io::Result<()> {
    let mut processors = nix::sched::CpuSet::new();
    processors.set(processor.into())?;
    Ok(nix::sched::sched_setaffinity(
        nix::unistd::Pid::from_raw(0),
        &processors,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_over_gaps() {
        assert_eq!(count_processors("0"), Some(1));
        assert_eq!(count_processors("0-1"), Some(2));
        assert_eq!(count_processors("0-3,6,8-9"), Some(7));
        for wrong in ["", "-", "3-1", "0-", "x", "0-65535"] {
            assert_eq!(count_processors(wrong), None, "{wrong}");
        }
        assert!(possible_processors().unwrap() >= 1);
    }

    #[test]
    fn a_place_has_its_parts_where_the_kernel_has_them() {
        let mut place = Place {
            memory: MmapMut::map_anon(DATA + 8192).unwrap(),
            queue: 0,
            index: 0,
        };
        let start = place.memory.as_ptr().addr() as u64;
        assert_eq!(place.write_vectors(), start + 1024);
        let words: Vec<u64> = place.memory[1024..1056]
            .chunks(8)
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [start, 288, start + 4096, 8192]);
        place.memory[264..272].copy_from_slice(&7_u64.to_ne_bytes());
        assert_eq!(u64::from_ne_bytes(place.commit_id()), 7);
        place.set_answer_bytes(4096);
        assert_eq!(place.memory[272..276], 4096_u32.to_ne_bytes());
        place.memory[128] = 9;
        let parts = place.parts();
        assert_eq!((parts.arguments[0], parts.data_bytes), (9, 4096));
        assert_eq!((parts.header.len(), parts.data.len()), (128, 8192));
        // A length beyond the place's space is cut to it.
        place.set_answer_bytes(1 << 20);
        assert_eq!(place.parts().data_bytes, 8192);
    }

    #[test]
    fn a_woken_ring_says_so_once_and_can_be_woken_again() {
        let device = super::super::fuse_device::open().unwrap();
        let Ok(mut ring) = FuseRing::new(device.as_fd()) else {
            println!("skipped: this host forbids io_uring");
            return;
        };
        for _ in 0..2 {
            let waker = ring.waker();
            waker.wake();
            waker.wake();
            ring.wait().unwrap();
            assert!(matches!(ring.next_event(), Some(Event::Woken)));
            assert!(ring.next_event().is_none());
        }
    }
}
