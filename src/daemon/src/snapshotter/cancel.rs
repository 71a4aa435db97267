//! The cancellation of a call whose client went away, or which the stopping daemon gives up.
//!
//! The work of a call checks the token of [`base::Cancel`]; this module only lets asynchronous code
//! wait for it.

use cowshed_format::base;
use tokio::sync::watch;
use tonic::Status;

/// Held by the call: dropping it cancels the work.
#[derive(Debug)]
pub(super) struct Waiting {
    token: base::Cancel,
    _alive: watch::Sender<()>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

/// Checked by the work of the call.
#[derive(Clone, Debug)]
pub(super) struct Cancel {
    token: base::Cancel,
    call: watch::Receiver<()>,
}

/// Returns a pair for one call.
pub(super) fn pair() -> (Waiting, Cancel) {
    let (_alive, call) = watch::channel(());
    let token = base::Cancel::default();
    let waiting = Waiting {
        token: token.clone(),
        _alive,
    };
    (waiting, Cancel { token, call })
}

impl Cancel {
    /// Returns the token for the work.
    pub(super) const fn token(&self) -> &base::Cancel {
        &self.token
    }

    /// Returns an error if the call is cancelled.
    pub(super) fn check(&self) -> Result<(), Status> {
        self.token.check().map_err(|_| Self::status())
    }

    /// Waits until the call is cancelled.
    pub(super) async fn cancelled(&self) {
        let mut call = self.call.clone();
        while call.changed().await.is_ok() {}
    }

    /// Returns the status of a cancelled call.
    pub(super) fn status() -> Status {
        Status::cancelled("the client cancelled the call, or the daemon is stopping")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_cancelled_when_its_client_is_gone_and_not_before() {
        let (waiting, cancel) = pair();
        let other = cancel.clone();
        assert!(cancel.check().is_ok() && other.check().is_ok());
        assert!(cancel.token().during(base::cancel::check).is_ok());
        drop(waiting);
        assert!(cancel.check().is_err() && other.check().is_err());
        assert!(cancel.token().during(base::cancel::check).is_err());
    }
}
