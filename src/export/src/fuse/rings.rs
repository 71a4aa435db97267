//! The second way for requests to arrive and answers to leave: FUSE over io_uring. The kernel puts
//! a request into a place of this process, and the answer and the wish for the next request go back
//! in one call, for all the requests that have come meanwhile.
//!
//! Each processor has a queue in the kernel, with many places; a thread for each of them answers
//! one request after another. What waits for room in a full pool is left to a helper, a thread of
//! its own, and so are requests while a disk is at work; another place takes its place meanwhile.
//!
//! What the kernel still sends to the device (it forgets inodes there) is read there: a thread with
//! `transport` belongs to each mount with rings.
//!
//! # Why this is not what is used without being asked for
//! The kernel sends a dead process's requests again to its successor only where they were read from
//! the device. Those that lie in a ring's places, or on the way there, belong to the dead process: of
//! the latter nobody else knows even the number by which to answer. So a mount with rings ends
//! with the process that serves it.
//!
//! # Why so many places
//! A request that finds no place waits in its queue until an answer is given there: a place that is
//! added later takes new ones only. Were all places held by writes that wait for room, a read behind
//! them would wait for that, too. So a queue has more places than the kernel sends requests in the
//! background at once (`BACKGROUND_RINGS`), and more come for those that are held. Beyond that only
//! hundreds of threads that write at once, on one processor and to a full pool, can fill it.
//!
//! # Invariants
//! - A thread of a ring never waits in a request, unless `WAITING_MAX` others do so.
//! - As many places of a queue as it began with are there for requests that do not wait.
//! - If a ring fails, the mount is ended: its queue's requests would wait for ever.

use super::abi::{InHeader, OutHeader, opcode};
use super::disk_pressure::Timed;
use super::dispatch::{self, Reply, Request};
use super::files::VolumeFiles;
use super::serve_threads::{DISK_HELPERS_MAX, ServeThreads, WAITING_MAX};
use super::transport::{End, REQUEST_BYTES_MAX, is_timed};
use cowshed_format::base::waiting::{self, Owner};
use cowshed_sys::fuse_ring::{self, Event, FuseRing, Parts, Place, Waker};
use nix::errno::Errno;
use parking_lot::Mutex;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use zerocopy::{FromBytes, IntoBytes};

/// The places of all queues, and of one. The kernel takes those that it got last first, so few of
/// them ever have memory; see "Why so many places".
const PLACES: usize = 4096;
const DEPTH_MIN: usize = 64;
const DEPTH_MAX: usize = 256;
/// The longest name that the kernel sends, with its end.
const NAME_BYTES_MAX: usize = 1025;

/// How many queues a mount has, and how many threads serve them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queues {
    pub(super) count: u16,
    pub(super) threads: u16,
}

/// How many requests the kernel sends in the background at once.
pub(super) const BACKGROUND_RINGS: u16 = 128;

impl Queues {
    /// Those of this host; `threads` says how many threads are wanted, `None` for one each.
    ///
    /// # Errors
    /// When the kernel does not tell how many processors there can be.
    pub(super) fn of_host(threads: Option<usize>) -> io::Result<Self> {
        let count = fuse_ring::possible_processors()?;
        let online = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.unwrap_or(online).clamp(1, count.into());
        Ok(Self {
            count,
            threads: u16::try_from(threads).unwrap_or(count),
        })
    }

    /// How many places each queue has for requests that do not wait.
    fn depth(self) -> usize {
        (PLACES / usize::from(self.count).max(1)).clamp(DEPTH_MIN, DEPTH_MAX)
    }

    /// The queues of one thread.
    fn of_thread(self, thread: u16) -> impl Iterator<Item = u16> {
        (thread..self.count).step_by(self.threads.max(1).into())
    }
}

/// What helpers give back to a ring.
struct Returned {
    places: Mutex<Vec<Place>>,
    waker: Waker,
}

/// Has a request that is about to wait refused, and remembers that: it is then begun anew by a
/// helper, which may wait.
#[derive(Default)]
struct Postponing {
    is_postponed: AtomicBool,
    /// There is no helper, so the refusal stands.
    is_final: AtomicBool,
}

impl Postponing {
    fn reset(&self, is_final: bool) {
        self.is_postponed.store(false, Ordering::Relaxed);
        self.is_final.store(is_final, Ordering::Relaxed);
    }
}

impl Owner for Postponing {
    fn may_begin(&self) -> bool {
        if !self.is_final.load(Ordering::Relaxed) {
            self.is_postponed.store(true, Ordering::Relaxed);
        }
        false
    }

    fn ended(&self) {}

    fn begins_anew(&self) -> bool {
        self.is_postponed.load(Ordering::Relaxed)
    }
}

/// A thread's ring.
struct Server<'a> {
    serve_threads: &'a Arc<ServeThreads>,
    ring: FuseRing,
    returned: Arc<Returned>,
    postponing: Arc<Postponing>,
    /// For each queue, how many of its places are not with another thread.
    ready: Vec<usize>,
    /// How many places there are.
    places: usize,
    /// Counts requests.
    number: u32,
    first_queue: u16,
    threads: u16,
    depth: usize,
}

/// Serves the queues of one of the threads until the mount is gone.
///
/// # Errors
/// What the kernel answers when it does not take the ring; the mount must be ended then.
pub(super) fn serve(
    serve_threads: &Arc<ServeThreads>,
    device: BorrowedFd<'_>,
    queues: Queues,
    thread: u16,
) -> io::Result<End> {
    if queues.threads == queues.count
        && let Err(error) = fuse_ring::stay_on(thread)
    {
        tracing::debug!(%error, thread, "a FUSE thread is not kept on its processor");
    }
    let ring = FuseRing::new(device)?;
    let returned = Returned {
        places: Mutex::default(),
        waker: ring.waker(),
    };
    let postponing = Arc::new(Postponing::default());
    waiting::own_thread(postponing.clone());
    let mut server = Server {
        serve_threads,
        ring,
        returned: Arc::new(returned),
        postponing,
        ready: Vec::new(),
        places: 0,
        number: 0,
        first_queue: thread,
        threads: queues.threads,
        depth: queues.depth(),
    };
    for queue in queues.of_thread(thread) {
        server.ready.push(0);
        for _ in 0..queues.depth() {
            server.add_place(queue)?;
        }
    }
    server.run()
}

impl Server<'_> {
    fn run(&mut self) -> io::Result<End> {
        loop {
            self.ring.wait()?;
            if self.serve_threads.is_stopping() {
                return Ok(End::Told);
            }
            while let Some(event) = self.ring.next_event() {
                match event {
                    Event::Request(place) => self.take(place)?,
                    Event::Woken => self.take_back()?,
                    Event::Ended(Errno::ENOTCONN | Errno::ECONNABORTED | Errno::ENODEV) => {
                        self.places -= 1;
                    }
                    Event::Ended(error) => return Err(error.into()),
                }
            }
            if self.places == 0 {
                return Ok(End::Gone);
            }
        }
    }

    fn add_place(&mut self, queue: u16) -> io::Result<()> {
        self.ring.register(queue, REQUEST_BYTES_MAX)?;
        self.places += 1;
        *self.ready_of(queue) += 1;
        Ok(())
    }

    fn ready_of(&mut self, queue: u16) -> &mut usize {
        let index = (queue - self.first_queue) / self.threads;
        &mut self.ready[usize::from(index)]
    }

    fn take(&mut self, mut place: Place) -> io::Result<()> {
        let header = header_of(&mut place);
        if self.serve_threads.is_slow() {
            let Some(back) = self.leave_to_helper(place, DISK_HELPERS_MAX)? else {
                return Ok(());
            };
            place = back;
        }
        self.postponing.reset(false);
        self.number = self.number.wrapping_add(1);
        let is_timed = is_timed(self.number, header.opcode);
        let mut reply = answer(self.serve_threads, header, &mut place, is_timed);
        // What was done after all has its answer where its data was.
        if self.postponing.begins_anew() && !matches!(reply, Reply::Body(_)) {
            let Some(back) = self.leave_to_helper(place, WAITING_MAX)? else {
                return Ok(());
            };
            place = back;
            self.postponing.reset(true);
            reply = answer(self.serve_threads, header, &mut place, false);
        }
        finish(&header, &reply, &mut place);
        self.ring.commit(place)
    }

    /// Has the request answered by a helper, unless `most` are at work; then gives the place back.
    fn leave_to_helper(&mut self, place: Place, most: usize) -> io::Result<Option<Place>> {
        let queue = place.queue();
        let returned = Arc::clone(&self.returned);
        let errand = move |serve_threads: &ServeThreads, mut place: Place| {
            waiting::own_freely();
            let header = header_of(&mut place);
            let reply = answer(serve_threads, header, &mut place, true);
            finish(&header, &reply, &mut place);
            returned.places.lock().push(place);
            returned.waker.wake();
        };
        if let Err(place) = self.serve_threads.leave_to_helper(place, most, errand) {
            return Ok(Some(place));
        }
        let depth = self.depth;
        let ready = self.ready_of(queue);
        *ready -= 1;
        let left = *ready;
        if left < depth
            && let Err(error) = self.add_place(queue)
        {
            if left == 0 {
                return Err(error);
            }
            tracing::warn!(%error, queue, left, "a ring gets no place for one that waits");
        }
        Ok(None)
    }

    fn take_back(&mut self) -> io::Result<()> {
        let places = std::mem::take(&mut *self.returned.places.lock());
        for place in places {
            *self.ready_of(place.queue()) += 1;
            self.ring.commit(place)?;
        }
        Ok(())
    }
}

fn header_of(place: &mut Place) -> InHeader {
    let Parts { header, .. } = place.parts();
    // There is room for three of them.
    InHeader::read_from_prefix(header)
        .map(|(header, _)| header)
        .unwrap_or_default()
}

fn answer(
    serve_threads: &ServeThreads,
    header: InHeader,
    place: &mut Place,
    is_timed: bool,
) -> Reply {
    let timed = is_timed.then(|| Timed::begin(header.opcode, serve_threads.files().writes_wait()));
    let reply = answer_in(serve_threads.files(), header, place);
    if let Some(timed) = timed {
        let answered = match reply {
            Reply::Body(bytes) => bytes,
            Reply::None | Reply::Error(_) => 0,
        };
        // A write's answer has overwritten nothing that tells its length.
        serve_threads.note(timed.end(), answered + place.parts().data_bytes);
    }
    reply
}

fn answer_in(files: &VolumeFiles, header: InHeader, place: &mut Place) -> Reply {
    let Parts {
        arguments,
        data,
        data_bytes,
        ..
    } = place.parts();
    if header.opcode == opcode::LOOKUP {
        return answer_name(files, header, data, data_bytes);
    }
    let request = Request {
        header,
        arguments,
        payload: data,
        data_len: data_bytes,
    };
    dispatch::answer(files, request)
}

/// Answers a request whose arguments are a name: that lies where the answer goes.
fn answer_name(files: &VolumeFiles, header: InHeader, data: &mut [u8], data_bytes: usize) -> Reply {
    let mut name = [0; NAME_BYTES_MAX];
    let len = data_bytes.min(name.len());
    name[..len].copy_from_slice(&data[..len]);
    let request = Request {
        header,
        arguments: &name[..len],
        payload: data,
        data_len: 0,
    };
    dispatch::answer(files, request)
}

/// Puts the answer's header into the place.
fn finish(header: &InHeader, reply: &Reply, place: &mut Place) {
    let (error, body) = reply.code_and_bytes();
    let out = OutHeader {
        len: u32::try_from(size_of::<OutHeader>() + body).unwrap_or(u32::MAX),
        error,
        unique: header.unique,
    };
    place.parts().header[..size_of::<OutHeader>()].copy_from_slice(out.as_bytes());
    place.set_answer_bytes(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_queue_has_one_thread() {
        for (count, threads) in [(1, 1), (2, 2), (5, 2), (8, 3), (4, 4)] {
            let queues = Queues { count, threads };
            let mut all: Vec<u16> = (0..threads)
                .flat_map(|thread| queues.of_thread(thread))
                .collect();
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }
}
