//! Signals in a command that has the pool open itself: the first one cancels the command, which
//! undoes its work, and a second one ends the process at once.

use anyhow::Context;
use cowshed_format::base::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, Ordering};

/// Makes the first of these signals cancel.
///
/// # Errors
/// The kernel's error.
pub(super) fn cancel_on_signals(cancel: &Cancel) -> anyhow::Result<()> {
    static ARE_CAUGHT: AtomicBool = AtomicBool::new(false);
    // A second time, the first signal would find the flag set by the first registration.
    if ARE_CAUGHT.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the first signal only sets the flag, the second one finds it set.
        flag::register_conditional_shutdown(signal, 128 + signal, cancel.flag())
            .and_then(|_| flag::register(signal, cancel.flag()))
            .context("catch signals")?;
    }
    Ok(())
}
