//! The second transport: FUSE over io_uring. The kernel puts a request into a buffer of this
//! process, called a place. One system call returns the replies to all the requests that have come
//! meanwhile and asks for the next ones.
//!
//! Each processor has a queue in the kernel with many places; one thread per processor serves one
//! request after another. A request that waits for space in a full pool is left to a helper, which
//! is a thread of its own, and so are requests while a disk is at work; meanwhile another place is
//! added to the queue.
//!
//! The kernel still sends some requests to the device (it forgets inodes there): each mount with
//! rings also has a thread with `transport` that reads them.
//!
//! # Why this is not the default
//! The kernel repeats a dead process's requests to its successor only if they were read from the
//! device. Requests in a ring's places, or on the way there, belong to the dead process: for the
//! latter, no other process knows even the number that a reply needs. So a mount with rings ends
//! with the process that serves it.
//!
//! # Why so many places
//! A request that finds no free place waits in its queue until a reply is given there: a place that
//! is added later takes only new requests. If all places were held by writes that wait for space, a
//! read behind them would wait, too. So a queue has more places than the kernel sends background
//! requests at once (`BACKGROUND_RINGS`), and more are added for those that are held. Then a queue
//! fills up only if hundreds of threads on one processor write at once to a full pool.
//!
//! # Invariants
//! - A thread of a ring never waits in a request: if `WAITING_MAX` helpers are at work already, a
//!   request that would have to wait fails.
//! - A queue always has as many places for requests that do not wait as it began with.
//! - If a ring fails, the mount is ended: the requests in its queue would wait for ever.

use super::abi::{InHeader, OutHeader, opcode};
use super::disk_pressure::Timed;
use super::dispatch::{self, Reply, Request, RequestServer};
use super::files::VolumeFiles;
use super::serve_threads::{DISK_HELPERS_MAX, ServeThreads, WAITING_MAX};
use super::transport::{End, REQUEST_BYTES_MAX, is_timed};
use cowshed_engine::{WaitFreely, Waiter};
use cowshed_sys::fuse_ring::{self, Event, FuseRing, Parts, Place, Waker};
use nix::errno::Errno;
use parking_lot::Mutex;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use zerocopy::{FromBytes, IntoBytes};

/// The number of places of all queues, then the limits for one queue. The kernel first takes the
/// places that it got last, so few of them ever have memory; see "Why so many places".
const PLACES: usize = 4096;
const DEPTH_MIN: usize = 64;
const DEPTH_MAX: usize = 256;
/// The maximum length of a name from the kernel, with its terminator.
const NAME_BYTES_MAX: usize = 1025;

/// The number of queues of a mount, and of threads that serve them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queues {
    pub(super) count: u16,
    pub(super) threads: u16,
}

/// The maximum number of background requests that the kernel sends at once.
pub(super) const BACKGROUND_RINGS: u16 = 128;

impl Queues {
    /// Returns the queues of this host; `threads` is the number of threads, `None` for one per
    /// online processor.
    ///
    /// # Errors
    /// If the kernel does not report the number of possible processors.
    pub(super) fn of_host(threads: Option<usize>) -> io::Result<Self> {
        let count = fuse_ring::possible_processors()?;
        let online = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.unwrap_or(online).clamp(1, count.into());
        Ok(Self {
            count,
            threads: u16::try_from(threads).unwrap_or(count),
        })
    }

    /// Returns the number of places of each queue for requests that do not wait.
    fn depth(self) -> usize {
        (PLACES / usize::from(self.count).max(1)).clamp(DEPTH_MIN, DEPTH_MAX)
    }

    /// Returns the queues of one thread.
    fn of_thread(self, thread: u16) -> impl Iterator<Item = u16> {
        (thread..self.count).step_by(self.threads.max(1).into())
    }
}

/// The places that helpers return to a ring.
struct Returned {
    places: Mutex<Vec<Place>>,
    waker: Waker,
}

/// Refuses a request that is about to wait, and remembers the refusal: a helper, which may wait,
/// then starts the request anew.
#[derive(Default)]
struct Postponing {
    is_postponed: AtomicBool,
    /// True if there is no helper, so the refusal is final.
    is_final: AtomicBool,
}

impl Postponing {
    fn reset(&self, is_final: bool) {
        self.is_postponed.store(false, Ordering::Relaxed);
        self.is_final.store(is_final, Ordering::Relaxed);
    }
}

impl Waiter for Postponing {
    fn may_begin(&self) -> bool {
        if !self.is_final.load(Ordering::Relaxed) {
            self.is_postponed.store(true, Ordering::Relaxed);
        }
        false
    }

    fn ended(&self) {}
}

impl RequestServer for Postponing {
    fn begins_anew(&self) -> bool {
        self.is_postponed.load(Ordering::Relaxed)
    }
}

/// A thread's ring.
struct Server<'a> {
    serve_threads: &'a Arc<ServeThreads>,
    ring: FuseRing,
    returned: Arc<Returned>,
    postponing: Postponing,
    /// For each queue, the number of places that no helper holds.
    ready: Vec<usize>,
    /// Number of places.
    places: usize,
    /// Number of requests so far.
    number: u32,
    first_queue: u16,
    threads: u16,
    depth: usize,
}

/// Serves the queues of one of the threads until the mount is gone.
///
/// # Errors
/// The kernel's error if it refuses the ring; the caller must then end the mount.
pub(super) fn serve(
    serve_threads: &Arc<ServeThreads>,
    device: BorrowedFd<'_>,
    queues: Queues,
    thread: u16,
) -> io::Result<End> {
    if queues.threads == queues.count
        && let Err(error) = fuse_ring::stay_on(thread)
    {
        tracing::debug!(%error, thread, "cannot pin a FUSE thread to its processor");
    }
    let ring = FuseRing::new(device)?;
    let returned = Returned {
        places: Mutex::default(),
        waker: ring.waker(),
    };
    let mut server = Server {
        serve_threads,
        ring,
        returned: Arc::new(returned),
        postponing: Postponing::default(),
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
        let mut reply = answer(
            self.serve_threads,
            header,
            &mut place,
            is_timed,
            &self.postponing,
        );
        // A request that succeeded after all has its reply where its data was.
        if self.postponing.begins_anew() && !matches!(reply, Reply::Body(_)) {
            let Some(back) = self.leave_to_helper(place, WAITING_MAX)? else {
                return Ok(());
            };
            place = back;
            self.postponing.reset(true);
            reply = answer(
                self.serve_threads,
                header,
                &mut place,
                false,
                &self.postponing,
            );
        }
        finish(&header, &reply, &mut place);
        self.ring.commit(place)
    }

    /// Leaves the request to a helper, unless `most` helpers are at work; then returns the place.
    fn leave_to_helper(&mut self, place: Place, most: usize) -> io::Result<Option<Place>> {
        let queue = place.queue();
        let returned = Arc::clone(&self.returned);
        let errand = move |serve_threads: &ServeThreads, mut place: Place| {
            let header = header_of(&mut place);
            let reply = answer(serve_threads, header, &mut place, true, &WaitFreely);
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
            tracing::warn!(
                %error, queue, left,
                "cannot replace the ring entry of a request that waits"
            );
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
    // The buffer is large enough for three headers.
    InHeader::read_from_prefix(header)
        .map(|(header, _)| header)
        .unwrap_or_default()
}

fn answer(
    serve_threads: &ServeThreads,
    header: InHeader,
    place: &mut Place,
    is_timed: bool,
    server: &dyn RequestServer,
) -> Reply {
    let timed = is_timed.then(|| Timed::begin(header.opcode, serve_threads.files().writes_wait()));
    let reply = answer_in(serve_threads.files(), header, place, server);
    if let Some(timed) = timed {
        let answered = match reply {
            Reply::Body(bytes) => bytes,
            Reply::None | Reply::Error(_) => 0,
        };
        // A write's reply does not overwrite the length of its data.
        serve_threads.note(timed.end(), answered + place.parts().data_bytes);
    }
    reply
}

fn answer_in(
    files: &VolumeFiles,
    header: InHeader,
    place: &mut Place,
    server: &dyn RequestServer,
) -> Reply {
    let Parts {
        arguments,
        data,
        data_bytes,
        ..
    } = place.parts();
    if header.opcode == opcode::LOOKUP {
        return answer_name(files, header, data, data_bytes, server);
    }
    let request = Request {
        header,
        arguments,
        payload: data,
        data_len: data_bytes,
        server,
    };
    dispatch::answer(files, request)
}

/// Serves a request whose arguments are a name, which lies in the reply's buffer.
fn answer_name(
    files: &VolumeFiles,
    header: InHeader,
    data: &mut [u8],
    data_bytes: usize,
    server: &dyn RequestServer,
) -> Reply {
    let mut name = [0; NAME_BYTES_MAX];
    let len = data_bytes.min(name.len());
    name[..len].copy_from_slice(&data[..len]);
    let request = Request {
        header,
        arguments: &name[..len],
        payload: data,
        data_len: 0,
        server,
    };
    dispatch::answer(files, request)
}

/// Puts the reply's header into the place.
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
