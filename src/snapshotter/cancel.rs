//! Whether a call's client still waits for it.

use tokio::sync::watch;
use tonic::Status;

/// Held by the call: dropping it cancels.
#[derive(Debug)]
pub(super) struct Waiting {
    _alive: watch::Sender<()>,
}

/// Asked by what works for the call.
#[derive(Clone, Debug)]
pub(super) struct Cancel {
    call: watch::Receiver<()>,
}

/// A pair for one call.
pub(super) fn pair() -> (Waiting, Cancel) {
    let (_alive, call) = watch::channel(());
    (Waiting { _alive }, Cancel { call })
}

impl Cancel {
    /// Refuses to go on for nobody.
    pub(super) fn check(&self) -> Result<(), Status> {
        match self.call.has_changed() {
            Ok(_) => Ok(()),
            // Its sender is gone.
            Err(_) => Err(Self::status()),
        }
    }

    /// Waits until nobody waits any more.
    pub(super) async fn cancelled(&self) {
        let mut call = self.call.clone();
        while call.changed().await.is_ok() {}
    }

    /// What such a call answers.
    pub(super) fn status() -> Status {
        Status::cancelled("the client does not wait any more")
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
        drop(waiting);
        assert!(cancel.check().is_err() && other.check().is_err());
    }
}
