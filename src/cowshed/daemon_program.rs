//! What this program brings along as the daemon: it carries out the requests of clients with the
//! same code as a command that opens the pool itself (`remote`), and says in the words of the
//! command line what fails.

use super::console::Console;
use super::failure::{self, Exit};
use super::open::Place;
use super::remote::run;
use super::serve::{Ready, Serve, tell_failure, tell_ready};
use super::{finish, running};
use cowshed_daemon::keeper::{self, ToKeeper};
use cowshed_daemon::request::serving::{self, Running};
use cowshed_daemon::request::{Command, HostPath, Request};
use cowshed_daemon::{Handler, OpenPool, Program, Session, Started, takeover};
use cowshed_format::base::{self, Cancel};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

/// The time to wait for the reader of the output.
const READER_TIME_MS: u16 = 1000;

/// This program as a daemon.
pub(super) struct DaemonProgram<'a> {
    serve: &'a Serve,
    place: &'a Place,
    console: &'a Console,
}

impl<'a> DaemonProgram<'a> {
    /// Returns the program that was started with these arguments.
    pub(super) const fn new(serve: &'a Serve, place: &'a Place, console: &'a Console) -> Self {
        Self {
            serve,
            place,
            console,
        }
    }

    /// Returns true if the output takes a line without blocking the keeper: a pipe may be full
    /// without a reader.
    fn takes_a_line(&self) -> bool {
        let output = self.console.output();
        let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::from(READER_TIME_MS)).is_ok_and(|ready| ready > 0)
    }
}

impl Program for DaemonProgram<'_> {
    type Commands = Commands;

    fn commands(
        &self,
        open_pool: &Arc<OpenPool>,
        keeper: &Arc<ToKeeper>,
    ) -> anyhow::Result<Commands> {
        let mount = open_pool.daemon_export()?.mount_point();
        let style = self.console.style();
        Ok(Commands {
            open_pool: Arc::clone(open_pool),
            keeper: Arc::clone(keeper),
            running: running::of_this_process(self.serve, self.place, style, mount)?,
        })
    }

    fn explain(&self, error: base::Error) -> anyhow::Error {
        self.place.explain(error)
    }

    fn wrong_socket(&self, found: &HostPath) -> anyhow::Error {
        let Place { pool, socket } = self.place;
        anyhow::anyhow!(
            "the service manager listens on {found}, but commands on the pool {pool} look for the \
             daemon at {socket}; make ListenStream= and COWSHED_POOL= agree, or use \
             cowshed@.service, where both follow from its name"
        )
    }

    fn line(&self, error: &anyhow::Error) -> Option<String> {
        failure::line(error)
    }

    fn serves(&self, started: &Started) {
        if !self.takes_a_line() {
            tracing::warn!("cannot report that the daemon is ready: no process reads the report");
            return;
        }
        let ready = Ready {
            pool: self.place.pool.clone(),
            socket: started.socket.clone(),
            mount: started.mount.clone(),
            containerd_socket: self.serve.containerd.containerd_socket.clone(),
            pid: std::process::id(),
            worker: started.worker,
            log: None,
        };
        let told = if self.serve.detached {
            tell_ready(ready, self.console)
        } else {
            ready.show(self.console)
        };
        if let Err(error) = told {
            tracing::warn!(%error, "cannot report that the daemon is ready");
        }
    }

    fn does_not_serve(&self, why: &str) {
        if self.serve.detached {
            tell_failure(why, self.console);
        }
    }
}

/// Runs the commands that the daemon receives.
pub(super) struct Commands {
    open_pool: Arc<OpenPool>,
    keeper: Arc<ToKeeper>,
    running: Running,
}

impl Handler for Commands {
    type Request = Request;
    type Cancel = Cancel;

    fn run(&self, session: Session<Self::Request, Cancel>) -> u8 {
        let Request { style, command } = session.request;
        let file = session.streams[0].try_clone();
        let console = Console::new(session.streams, style, session.cancel);
        let hand_over = |arguments: &[OsString], file: &OwnedFd| {
            takeover::hand_over(&self.open_pool, &self.keeper, file, arguments)
        };
        let ran = match (command, file) {
            // The client passes its program as the input.
            (Command::Serving(serving::Command::Upgrade), Ok(file)) => {
                hand_over(&keeper::plain_arguments(), &file)
            }
            (Command::Serving(serving::Command::UpgradeWith { arguments }), Ok(file)) => {
                let arguments = arguments.into_iter().map(OsString::from_vec);
                hand_over(&arguments.collect::<Vec<_>>(), &file)
            }
            (Command::Serving(serving::Command::Running), _) => {
                let text = serde_json::to_string(&self.running);
                text.map_err(Into::into)
                    .and_then(|text| console.print(&text))
            }
            (command, _) => run(&command, &self.open_pool, &console),
        };
        finish(ran.map(|()| Exit::Done), &console)
    }

    fn cancel(cancel: &Cancel) {
        cancel.cancel();
    }
}
