//! Waiting between attempts: twice as long each time, or as long as the registry wants.

use crate::error::{Error, Result};
use rand::Rng;
use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_millis(250);
/// Number of attempts after the first one, as long as none has made progress.
const ATTEMPTS_MAX: u32 = 5;
/// As `ATTEMPTS_MAX`, if no connection was ever made: a wrong name is told soon.
const CONNECTS_MAX: u32 = 2;
/// The longest wait that a registry may ask for.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The attempts at one thing.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    failed: u32,
    /// True if the registry was reached.
    reached: bool,
}

impl Attempts {
    /// Forgets what failed, since there was progress.
    pub(crate) const fn progress(&mut self) {
        self.failed = 0;
        self.reached = true;
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// `error` itself, if another attempt is of no use, or there were enough.
    pub(crate) async fn wait(&mut self, error: Error) -> Result<()> {
        self.reached |= !matches!(error, Error::Unreachable { .. });
        let most = if self.reached {
            ATTEMPTS_MAX
        } else {
            CONNECTS_MAX
        };
        let asked = error.retry_after().unwrap_or_default();
        if !error.is_transient() || self.failed >= most || asked > WAIT_MAX {
            return Err(error);
        }
        let usual = FIRST * 2_u32.saturating_pow(self.failed);
        // Clients that failed together do not come back together.
        let usual = usual.mul_f64(rand::rng().random_range(0.75..1.25));
        self.failed += 1;
        tokio::time::sleep(usual.max(asked)).await;
        Ok(())
    }
}
