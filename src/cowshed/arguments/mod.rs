//! The arguments of the command line, and the requests that they stand for.
//!
//! There is a module for each group of commands. It has the types that `clap` fills, and converts
//! them into the types of `cowshed_daemon::request`, which are all that the rest of this crate sees
//! of a command that works on an open pool. The arguments of `serve` and of the commands that need
//! no open pool are where these are carried out.

pub(super) mod attach;
pub(super) mod container;
pub(super) mod gc;
pub(super) mod image;
pub(super) mod place;
pub(super) mod pool;
pub(super) mod registry;
pub(super) mod size;
pub(super) mod stream;
pub(super) mod tree;
pub(super) mod volume;

use super::quickstart::Quickstart;
use super::serve::Serve;
use super::setup::Setup;
use attach::{Attach, Detach};
use clap::{Args, Parser, Subcommand};
use container::ContainerCommand;
use cowshed_daemon::request::{HostPath, Style};
use gc::Gc;
use image::ImageCommand;
use pool::PoolCommand;
use tree::Tree;
use volume::VolumeCommand;

/// Many container roots in one pool file, block by block copy-on-write
#[derive(Debug, Parser)]
#[command(
    name = "cowshed",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 the pool is damaged, \
    4 warnings (pool status --check, pool check).\n\n\
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
    /// The pool's file or block device; of a mirror any side, or with a daemon the one that it was
    /// started with [default as root: /var/lib/cowshed/pool]
    #[arg(long, global = true, env = "COWSHED_POOL", value_name = "PATH", hide_env_values = true,
        value_parser = place::path())]
    pub pool: Option<HostPath>,
    /// The daemon's socket [default: the pool's path with .sock at its end]
    #[arg(long, global = true, value_name = "PATH", value_parser = place::path())]
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
    /// Draw the volumes of a pool as a forest: images, containers, snapshots, and what each costs
    Tree(Tree),
    /// Remove volumes and layers that nothing uses, or explain why they are kept
    Gc(Gc),
    /// Show what of this host works, is slow or is missing, and what to do about it
    Doctor,
    /// Change this host's configuration so that containerd, Docker or systemd use cowshed
    #[command(subcommand)]
    Setup(Setup),
    /// Run the daemon: keep the pool open, present its volumes, and run commands
    Serve(Serve),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use cowshed_daemon::request::container::MountAt;
    use cowshed_daemon::request::{Command as Request, attach, container};
    use cowshed_host::RootKind;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    fn request(line: &str) -> Request {
        let all = ["cowshed"].into_iter().chain(line.split(' '));
        match Arguments::try_parse_from(all).unwrap().command {
            Command::Attach(attach) => Request::Attach(attach.into()),
            Command::Container(container) => Request::Container(container.into()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_that_choose_between_requests_do() {
        let list = Request::Attach(attach::Command::List);
        assert_eq!(request("attach --ls"), list);
        let create = |mount| {
            Request::Container(container::Command::Create(container::Create {
                image: "i".to_owned(),
                name: None,
                size_bytes: Some(1 << 30),
                root: RootKind::Block,
                mount,
            }))
        };
        let line = "container create i --size 1G";
        assert_eq!(request(line), create(None));
        let new = Some(MountAt::NewFolder);
        assert_eq!(request(&format!("{line} --mount")), create(new));
        let folder = Some(MountAt::Folder(HostPath::new("/mnt").unwrap()));
        assert_eq!(
            request(&format!("{line} --mount --dir /mnt")),
            create(folder)
        );
    }
}
