//! The keeper's replacement by another program, the one that its worker already runs: the process
//! executes that program, which takes over as the keeper of the worker, in the same process with
//! the same descriptors.

use super::handed_arguments::{Handed, Role};
use super::inherited_fds::{HANDOVER, InheritedFds, LeftOpen, Succession, is_understood};
use super::worker_process::{KEEPER_ARGUMENT, Program, Worker};
use super::{Keeper, KeeperSignals, Owner, State};
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

impl<O: Owner> Keeper<O> {
    /// Executes the next program, now that a worker of it serves. If that fails, the current
    /// program goes on.
    pub(super) fn become_next(&mut self, worker: &Worker) {
        let Some(program) = self.next.take() else {
            return;
        };
        self.owner.flush_log();
        let Err(error) = self.exec(&program, worker);
        tracing::error!(%error, "the keeper cannot execute the new program, which its worker runs");
    }

    /// Executes the program; returns only on failure.
    fn exec(&self, program: &Program, worker: &Worker) -> io::Result<Infallible> {
        let succession = Succession {
            handover: HANDOVER,
            serving: self.serving.clone(),
            inherited_fds: self.inherited_fds.parts(),
            worker: worker.parts(),
            oom_score: self.oom_score,
            stops: self.stops,
            usual_time: self.usual_time,
        };
        let mut all = program.arguments();
        all.push(format!("{KEEPER_ARGUMENT}{}", serde_json::to_string(&succession)?).into());
        let handed = Handed::new(Role::Keeper, self.inherited_fds.pool(), &all)?;
        let mut arguments = vec![CString::new("cowshed")?];
        for argument in handed.shown() {
            arguments.push(CString::new(argument.as_bytes())?);
        }
        let path = CString::new(program.path())?;
        let mut left = self.inherited_fds.descriptors();
        left.extend([
            worker.control.as_fd(),
            worker.pulse.as_fd(),
            worker.life.as_fd(),
            handed.as_fd(),
        ]);
        let _left = LeftOpen::new(left)?;
        // Signals stay blocked, and pending signals wait for the new program.
        Ok(nix::unistd::execv(&path, &arguments)?)
    }
}

/// Takes over from the program that this process ran before, with the state `told` by it, and goes
/// on as the keeper; returns the exit status.
///
/// # Errors
/// When the state makes no sense to this program; the worker then goes on by itself.
pub(super) fn resume<O: Owner>(
    told: &str,
    signals: KeeperSignals,
    owner: impl FnOnce(&InheritedFds) -> io::Result<O>,
) -> io::Result<u8> {
    let told: Succession = serde_json::from_str(told)?;
    if !is_understood(told.handover) {
        let theirs = told.handover;
        let what = format!("the hand-over has version {theirs}, not {HANDOVER}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let keeps_socket_file = told.inherited_fds.keeps_socket_file();
    let mut inherited_fds = InheritedFds::take(told.inherited_fds)?;
    inherited_fds.listening.keep_file(keeps_socket_file);
    // These sockets never come from a service manager.
    for socket in [&mut inherited_fds.containerd, &mut inherited_fds.plugin] {
        socket.iter_mut().for_each(|socket| socket.keep_file(true));
    }
    let worker = Worker::take(&told.worker)?;
    let owner = owner(&inherited_fds)?;
    let mut keeper = Keeper::new(owner, signals, inherited_fds)?;
    keeper.serving = told.serving;
    keeper.oom_score = told.oom_score;
    keeper.stops = told.stops;
    keeper.usual_time = told.usual_time;
    keeper.has_served = true;
    tracing::info!(worker = worker.pid, "the keeper runs the new program");
    Ok(keeper.run_from(State::Runs(worker, None)))
}
