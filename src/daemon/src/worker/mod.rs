//! The worker: the process that has the pool open and serves it with the descriptors of its keeper.
//!
//! A successor serves the volumes first, because everything else may wait for them: kernel
//! operations that its predecessor had begun (a mount, for example) end only then. It takes over
//! what is mounted, and removes what was interrupted once no thread of the predecessor is left.
//!
//! The requests that a killed worker had not answered are answered here: `Export::resume`, which
//! `services` calls first, receives them from the kernel again.

mod events;
mod inherited;
mod scrubbing;
mod services;

use super::keeper::{self, HANDOVER, InheritedFds, Serving, ToKeeper, ToWorker, Told};
use super::open_pool::uuid_on;
use super::panics;
use super::program::Program;
use super::serve_options::ServeOptions;
use anyhow::Context;
use cowshed_format::device::FileOptions;
use cowshed_sys as sys;
use events::Event;
use inherited::{Inherited, hear_keeper};
use services::Services;
use std::sync::Arc;

/// Serves until a signal, or until another program is to serve. `told` is what the keeper says
/// about its descriptors; a worker on `standby` waits until it may serve.
///
/// # Errors
/// Any reason why it cannot serve or stop cleanly.
pub fn run(
    options: &ServeOptions,
    told: &str,
    standby: bool,
    program: &impl Program,
) -> anyhow::Result<()> {
    // From here on signals are queued until everything is ready to be undone.
    let (events, queue) = events::catch().context("catch signals")?;
    sys::process::set_name(c"cowshed");
    let told: Told = serde_json::from_str(told).context("parse the keeper's message")?;
    if !keeper::is_understood(told.handover) {
        let theirs = told.handover;
        anyhow::bail!("the keeper's hand-over has version {theirs}, not {HANDOVER}");
    }
    keeper::restore_oom_score(told.oom_score);
    if let Err(error) = sys::mount::set_io_flusher() {
        // The export reports it too, with the consequences.
        tracing::debug!(%error, "cannot set PR_SET_IO_FLUSHER");
    }
    let mut inherited = Inherited::take(told).context("take the keeper's descriptors")?;
    let control = Arc::clone(&inherited.control);
    panics::tell(&control);
    if standby {
        prove(options, &inherited.inherited_fds, program)?;
        match wait_for_start(&control) {
            Some(serving) => inherited.know(serving),
            // This process is not needed any more.
            None => return Ok(()),
        }
    }
    hear_keeper(&inherited, events).context("listen to the keeper")?;
    let services = Services::start(options, program, inherited).inspect_err(|error| {
        if let Some(line) = program.line(error) {
            control.failed(&line);
        }
    })?;
    if control.ready().is_err() {
        tracing::warn!("the keeper is gone");
    }
    let ended = match queue.recv().context("wait for a signal")? {
        Event::Stop => services.stop(&queue, program),
        Event::HandOver => {
            services.hand_over();
            return control.handed_over().context("hand over to the keeper");
        }
    };
    // If the keeper is gone, there is no process to report to.
    let _ = control.ended();
    ended
}

/// Proves that this program could serve the pool, without changing anything. That the options are
/// possible was seen when they were made.
fn prove(
    options: &ServeOptions,
    inherited_fds: &InheritedFds,
    program: &impl Program,
) -> anyhow::Result<()> {
    let file_options = FileOptions {
        direct: options.direct,
        read_only: true,
    };
    inherited_fds
        .device(options.pool.as_path(), file_options, |_, _| {})
        .and_then(|device| uuid_on(&*device))
        .map_err(|error| program.explain(error))?;
    Ok(())
}

/// Waits until no other worker serves; `None` when the keeper has ended.
fn wait_for_start(control: &ToKeeper) -> Option<Serving> {
    control.prepared().ok()?;
    loop {
        if let ToWorker::Start(serving) = control.hear()? {
            return Some(serving);
        }
    }
}
