//! The end of a call for which nobody waits: its client went away, or the daemon stops.
//!
//! The work of a call asks the token of [`base::Cancel`]; here is only what lets asynchronous code
//! wait for it.

use cowshed_format::base;
use tokio::sync::watch;
use tonic::Status;

/// Held by the call: dropping it cancels.
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

/// Asked by what works for the call.
#[derive(Clone, Debug)]
pub(super) struct Cancel {
    token: base::Cancel,
    call: watch::Receiver<()>,
}

/// A pair for one call.
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
    /// The token of the work.
    pub(super) const fn token(&self) -> &base::Cancel {
        &self.token
    }

    /// Refuses to go on for nobody.
    pub(super) fn check(&self) -> Result<(), Status> {
        self.token.check().map_err(|_| Self::status())
    }

    /// Waits until nobody waits any more.
    pub(super) async fn cancelled(&self) {
        let mut call = self.call.clone();
        while call.changed().await.is_ok() {}
    }

    /// What such a call answers.
    pub(super) fn status() -> Status {
        Status::cancelled("the client does not wait any more, or the daemon stops")
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
