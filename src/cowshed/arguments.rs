//! The command line as a whole.

use super::attach::{Attach, Detach};
use super::console::Style;
use super::container::ContainerCommand;
use super::gc::Gc;
use super::image::ImageCommand;
use super::place::HostPath;
use super::pool::{self, PoolCommand};
use super::quickstart::Quickstart;
use super::serve::Serve;
use super::volume::VolumeCommand;
use clap::{Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};

/// Many container roots in one pool file, block by block copy-on-write
#[derive(Debug, Parser)]
#[command(
    name = "cowshed",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 the pool is damaged, \
    4 warnings (pool status --check).\n\n\
        Try `cowshed quickstart` as root: it shows everything and removes it again."
)]
pub(super) struct Arguments {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// The pool's file or block device [default as root: /var/lib/cowshed/pool]
    #[arg(long, global = true, env = "COWSHED_POOL", value_name = "PATH", hide_env_values = true,
        value_parser = HostPath::parser())]
    pub pool: Option<HostPath>,
    /// The daemon's socket [default: the pool's path with .sock at its end]
    #[arg(long, global = true, value_name = "PATH", value_parser = HostPath::parser())]
    pub socket: Option<HostPath>,
    /// Print results as one JSON document: sizes in bytes, times in RFC 3339. A failure is a JSON
    /// document too, on the standard error: {"error": "…", "status": 1}
    #[arg(long, global = true)]
    pub json: bool,
    /// Do not shorten ids, names and paths in tables to fit 80 columns
    #[arg(long, global = true)]
    pub no_trunc: bool,
    /// Print no progress and no messages
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Log more; -vv logs still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Global {
    /// Returns how results are to be shown.
    #[must_use]
    pub(super) fn style(&self) -> Style {
        Style {
            json: self.json,
            quiet: self.quiet,
            no_trunc: self.no_trunc,
            verbose: self.verbose,
            terminal_columns: None,
        }
    }
}

/// A command.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// See it all in one go: an image, five containers of it, what each costs
    Quickstart(Quickstart),
    /// Create, inspect, check and repair a pool
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Thin volumes, snapshots and clones
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Present a volume as a file or block device of this host (needs the daemon)
    Attach(Attach),
    /// Undo an attach (needs the daemon)
    Detach(Detach),
    /// Images and their layers
    #[command(subcommand)]
    Image(ImageCommand),
    /// Writable roots of images
    #[command(subcommand)]
    Container(ContainerCommand),
    /// Remove volumes and layers that nothing uses, or explain why they are kept
    Gc(Gc),
    /// Run the daemon: keep the pool open, present its volumes, and run commands
    Serve(Serve),
}

/// A command that works on an open pool, here or in the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum OnPool {
    /// `pool …`
    Pool(pool::Online),
    /// `volume …`
    Volume(VolumeCommand),
    /// `attach`
    Attach(Attach),
    /// `detach`
    Detach(Detach),
    /// `image …`
    Image(ImageCommand),
    /// `container …`
    Container(ContainerCommand),
    /// `gc`
    Gc(Gc),
    /// The processes that serve; for `serve --upgrade`.
    Serving,
    /// The options that the daemon was started with; for `serve --upgrade` with options.
    Running,
    /// Tells the daemon to hand over to the program that it receives as the input, with the
    /// daemon's own options.
    Upgrade,
    /// Like `Upgrade`, but with other options.
    UpgradeWith {
        /// All arguments of that program, as bytes.
        arguments: Vec<Vec<u8>>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
