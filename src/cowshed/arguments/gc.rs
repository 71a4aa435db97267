//! The arguments of `cowshed gc`.

use clap::Args;
use cowshed_daemon::request::gc as request;

/// `cowshed gc`
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  cowshed gc --explain\n  cowshed gc --explain --json | jq \
    '.volumes[] | select(.garbage)'\n  cowshed gc"
)]
pub(crate) struct Gc {
    /// Remove nothing; list each volume with the reason why it is kept
    #[arg(long)]
    pub explain: bool,
}

impl From<Gc> for request::Gc {
    fn from(Gc { explain }: Gc) -> Self {
        Self { explain }
    }
}
