//! `--fuse`: the way by which the kernel's requests reach the daemon.

use clap::ValueEnum;
use cowshed_export::Transport;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Fuse {
    /// Threads, as only they outlive a killed worker
    #[default]
    Auto,
    /// A thread for each processor reads from the FUSE device
    Threads,
    /// A ring for each processor (Linux 6.14): quicker, but a killed worker ends the mount
    IoUring,
}

impl Fuse {
    /// Returns the option's value.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Threads => "threads",
            Self::IoUring => "io-uring",
        }
    }

    /// Returns the transport to use. By default, a killed worker must only cause a pause, and the
    /// kernel resends a dead process's requests only if they came through the device.
    pub(super) const fn transport(self) -> Transport {
        match self {
            Self::Auto | Self::Threads => Transport::Threads,
            Self::IoUring => Transport::IoUring,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for fuse in Fuse::value_variants() {
            assert_eq!(Fuse::from_str(fuse.name(), false).as_ref(), Ok(fuse));
        }
    }
}
