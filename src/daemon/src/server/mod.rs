//! The daemon's end: listens, admits clients, runs each request on its own thread, and stops in
//! order.

use super::listening::Listening;
use super::protocol::{
    Answer, Message, ProtocolError, Received, STREAMS, VERSION, receive_request, send_answer,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use parking_lot::{Condvar, Mutex};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Number of commands that run at once; further ones are refused.
pub const SESSIONS_MAX: usize = 128;
/// The time within which a client must send its request.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// The time to wait after `accept` failed, for example for lack of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The part that runs the requests.
pub trait Handler: Send + Sync + 'static {
    /// A request as received over the socket.
    type Request: Message;
    /// A token that cancels one command; clones cancel the same one.
    type Cancel: Clone + Default + Send + Sync;

    /// Runs one command and returns its exit status.
    fn run(&self, session: Session<Self::Request, Self::Cancel>) -> u8;

    /// Tells a command that no client waits for it any longer.
    fn cancel(cancel: &Self::Cancel);
}

/// One command of one client.
#[derive(Debug)]
pub struct Session<R, C> {
    /// The command to run.
    pub request: R,
    /// Input, output, error.
    pub streams: [OwnedFd; STREAMS],
    /// Set when the client goes away or the daemon stops.
    pub cancel: C,
}

/// Serves a listening socket, which is closed when this is dropped.
pub struct Server<H: Handler> {
    shared: Arc<Shared<H>>,
    listening: Arc<Listening>,
    acceptor: Option<(thread::JoinHandle<()>, OwnedFd)>,
}

struct Shared<H: Handler> {
    handler: H,
    sessions: Mutex<Sessions<H::Cancel>>,
    ended: Condvar,
}

struct Sessions<C> {
    running: Vec<(u64, C)>,
    next: u64,
    stopping: bool,
}

impl<H: Handler> Server<H> {
    /// Starts to serve, until `stop` is called.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn start(listening: Listening, handler: H) -> io::Result<Self> {
        let listening = Arc::new(listening);
        let sessions = Sessions {
            running: Vec::new(),
            next: 0,
            stopping: false,
        };
        let shared = Arc::new(Shared {
            handler,
            sessions: Mutex::new(sessions),
            ended: Condvar::new(),
        });
        let (stop_reader, stop_writer) = io::pipe()?;
        let acceptor = thread::Builder::new().name("accept".to_owned()).spawn({
            let (shared, listening) = (Arc::clone(&shared), Arc::clone(&listening));
            move || accept_until_stopped(&shared, &listening.listener, &stop_reader)
        })?;
        let acceptor = Some((acceptor, OwnedFd::from(stop_writer)));
        Ok(Self {
            shared,
            listening,
            acceptor,
        })
    }

    /// Returns the handler.
    #[must_use]
    pub fn handler(&self) -> &H {
        &self.shared.handler
    }

    /// Makes this process the one that removes the socket's file, after `stop`.
    pub fn keep_file(&mut self) {
        // The acceptor, which held the other reference, has ended.
        if let Some(listening) = Arc::get_mut(&mut self.listening) {
            listening.keep_file(true);
        }
    }

    /// Takes no further request, and waits up to `patience` for running commands to end by
    /// themselves. Returns the number of commands that still run.
    pub fn drain(&mut self, patience: Duration) -> usize {
        self.end(patience, false)
    }

    /// Takes no further request, cancels running commands, and waits up to `patience` for them to
    /// end. Returns the number of commands that still run.
    pub fn stop(&mut self, patience: Duration) -> usize {
        self.end(patience, true)
    }

    fn end(&mut self, patience: Duration, cancel: bool) -> usize {
        if let Some((acceptor, stop_writer)) = self.acceptor.take() {
            drop(stop_writer);
            // It ends by itself; if it panicked, there is nothing to wait for.
            let _ = acceptor.join();
        }
        let deadline = Instant::now() + patience;
        let mut sessions = self.shared.sessions.lock();
        sessions.stopping = true;
        for (_, command) in sessions.running.iter().filter(|_| cancel) {
            H::cancel(command);
        }
        while !sessions.running.is_empty() {
            if self
                .shared
                .ended
                .wait_until(&mut sessions, deadline)
                .timed_out()
            {
                break;
            }
        }
        sessions.running.len()
    }
}

impl<H: Handler> Drop for Server<H> {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl<H: Handler> std::fmt::Debug for Server<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("listening", &self.listening)
            .finish_non_exhaustive()
    }
}

fn accept_until_stopped<H: Handler>(
    shared: &Arc<Shared<H>>,
    listener: &UnixListener,
    stop: &io::PipeReader,
) {
    loop {
        let mut fds = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for connections");
                thread::sleep(ACCEPT_RETRY);
            }
        }
        if fds[1].any().unwrap_or(true) {
            return;
        }
        match listener.accept() {
            Ok((socket, _)) => admit(shared, socket),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                thread::sleep(ACCEPT_RETRY);
            }
        }
    }
}

fn admit<H: Handler>(shared: &Arc<Shared<H>>, socket: UnixStream) {
    if let Err(refusal) = check_peer(&socket).and_then(|()| limit_time(&socket)) {
        refuse(&socket, refusal.to_string());
        return;
    }
    let cancel = H::Cancel::default();
    let id = {
        let mut sessions = shared.sessions.lock();
        if sessions.stopping || sessions.running.len() >= SESSIONS_MAX {
            drop(sessions);
            refuse(
                &socket,
                format!("the daemon is stopping, or runs the maximum of {SESSIONS_MAX} commands"),
            );
            return;
        }
        let id = sessions.next;
        sessions.next += 1;
        sessions.running.push((id, cancel.clone()));
        id
    };
    let entry = Running {
        shared: Arc::clone(shared),
        id,
    };
    let spawned = thread::Builder::new()
        .name("command".to_owned())
        .spawn(move || {
            serve(&entry.shared.handler, &socket, &cancel);
            // The client must have its reply before the daemon counts the command as ended.
            drop(socket);
            drop(entry);
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "cannot start a thread for a client");
    }
}

/// A session's entry in the list of running ones.
struct Running<H: Handler> {
    shared: Arc<Shared<H>>,
    id: u64,
}

impl<H: Handler> Drop for Running<H> {
    fn drop(&mut self) {
        self.shared
            .sessions
            .lock()
            .running
            .retain(|(id, _)| *id != self.id);
        self.shared.ended.notify_all();
    }
}

fn check_peer(socket: &UnixStream) -> io::Result<()> {
    let peer = getsockopt(socket, sockopt::PeerCredentials)?.uid();
    if peer == 0 || peer == nix::unistd::geteuid().as_raw() {
        Ok(())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

fn limit_time(socket: &UnixStream) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(REQUEST_TIME))?;
    socket.set_write_timeout(Some(REQUEST_TIME))
}

fn refuse(socket: &UnixStream, refusal: String) {
    // A client that is refused may be gone already.
    let _ = send_answer(
        socket,
        VERSION,
        &Answer {
            status: 1,
            refusal: Some(refusal),
        },
    );
}

fn serve<H: Handler>(handler: &H, socket: &UnixStream, cancel: &H::Cancel) {
    let received = match receive_request(socket) {
        Ok(received) => received,
        // A client only checked whether a daemon is here.
        Err(ProtocolError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return,
        Err(error) => {
            tracing::warn!(%error, "a request was refused");
            return refuse(socket, error.to_string());
        }
    };
    let Received {
        request,
        version,
        streams,
    } = received;
    let session = Session {
        request,
        streams,
        cancel: cancel.clone(),
    };
    let ran = while_watching::<H, _>(socket, cancel, || {
        catch_unwind(AssertUnwindSafe(|| handler.run(session)))
    });
    let answer = match ran {
        Ok(status) => Answer {
            status,
            refusal: None,
        },
        Err(_) => {
            let refusal = "the command failed because of a defect in cowshed; see the daemon's log";
            Answer {
                status: 1,
                refusal: Some(refusal.to_owned()),
            }
        }
    };
    if let Err(error) = send_answer(socket, version, &answer) {
        tracing::debug!(%error, "a client closed its connection before its command ended");
    }
}

/// Runs `act`, and cancels it when the client closes its end meanwhile.
fn while_watching<H: Handler, T>(
    socket: &UnixStream,
    cancel: &H::Cancel,
    act: impl FnOnce() -> T,
) -> T {
    let Ok((done_reader, done_writer)) = io::pipe() else {
        return act();
    };
    thread::scope(|scope| {
        let watching = thread::Builder::new().name("client".to_owned());
        let watching = watching.spawn_scoped(scope, || {
            let done_reader = done_reader;
            // No events are requested: poll always reports that the other end is closed.
            let mut fds = [
                PollFd::new(socket.as_fd(), PollFlags::empty()),
                PollFd::new(done_reader.as_fd(), PollFlags::POLLIN),
            ];
            loop {
                match poll(&mut fds, PollTimeout::NONE) {
                    Err(nix::errno::Errno::EINTR) => {}
                    Err(_) => return,
                    Ok(_) => break,
                }
            }
            if fds[0].any().unwrap_or(false) {
                H::cancel(cancel);
            }
        });
        if let Err(error) = watching {
            tracing::warn!(
                %error,
                "cannot start a thread that watches a client: its command continues without it"
            );
        }
        let answer = act();
        drop(done_writer);
        answer
    })
}

#[cfg(test)]
mod tests;
