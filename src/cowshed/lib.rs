//! The `cowshed` command: it parses arguments, carries out commands and shows their results.
//!
//! A command that works on an open pool is a request (`cowshed_daemon::request`). If a daemon has
//! the pool open, the request is sent to it and the same code runs there (`daemon_program`); else
//! this process opens the pool (`remote`). What a daemon is, and how it goes on when it dies, is in
//! `cowshed_daemon`.
//!
//! # Where a new command goes
//! 1. Its request, with the meaning and default of each field, in `src/daemon/src/request`; a text
//!    of it in `tests.rs` there. A change of an existing one raises the protocol's version.
//! 2. Its arguments and help, and their conversion into the request, in `arguments`.
//! 3. What it does to images, containers or data volumes: a method of `cowshed_host`, which names no
//!    argument and prints nothing.
//! 4. What it shows, in the file of its group (`volume`, `image`, …), called by `remote`.
//! 5. Its test in `tests/cli`, docs/cli.md anew (`cargo run -p cowshed-manual -- --reference
//!    docs/cli.md`), and a line in CHANGELOG.md.
//!
//! A command that needs no open pool (`offline`, `quickstart`, `doctor`, `setup`) has neither request nor conversion.
//!
//! # Invariants
//! - Only `arguments`, `serve`, `command_line` and the commands without an open pool see the types of
//!   `clap`.
//! - Results go to the standard output, all other output to the standard error.
//! - A failure is one line on the standard error, or with `--json` one JSON document;
//!   `failure::Exit` says what each exit status means.
//!
//! # Modules
//! | what | modules |
//! |---|---|
//! | from arguments to a request, and where it runs | `arguments`, `open`, `remote`, `signals` |
//! | commands | `pool`, `mirror`, `scrub`, `create_pool`; `offline` with `check_sides`; `dump`; `volume`, `resize`, `import_volume`, `export_volume`; `transfer`; `attach`; `image` with `offer` and `migrate`; `registry`; `container`; `tree`; `gc`; `quickstart` |
//! | the daemon | `serve` with `full`, `fuse` and `containerd`; `daemon_program`; `upgrade`, `running` |
//! | streams and results | `console`, `output`, `progress`, `streams`, `part_file`, `failure`, `wrong_usage`, `command_log` |
//! | the host | `doctor` shows what works, `setup` changes its configuration |
//! | rules for names and contents | `kept_names`, `sectors`, `disk_image`, `removal` |

mod arguments;
mod attach;
mod check_sides;
mod command_log;
mod console;
mod container;
mod containerd;
mod create_pool;
mod daemon_process;
mod daemon_program;
mod disk_image;
mod doctor;
mod dump;
mod export_volume;
mod failure;
mod full;
mod fuse;
mod gc;
mod image;
mod import_volume;
mod in_time;
mod kept_names;
mod migrate;
mod mirror;
mod offer;
mod offline;
mod open;
mod output;
mod part_file;
mod pool;
mod progress;
mod quickstart;
mod registry;
mod remote;
mod removal;
mod resize;
mod running;
mod scrub;
mod scrub_schedule;
mod sectors;
mod serve;
mod setup;
mod signals;
mod streams;
mod transfer;
mod tree;
mod upgrade;
mod volume;
mod wrong_usage;

use anyhow::Context;
use arguments::image::ImageCommand;
use arguments::pool::{Mirror, Offline, PoolCommand};
use arguments::{Arguments, Command};
use clap::{CommandFactory, Parser};
use console::Console;
use cowshed_daemon::keeper::own_arguments;
use cowshed_daemon::request::{Command as Request, HostPath};
use cowshed_daemon::{log, panics};
use cowshed_format::base::Cancel;
use failure::Exit;
use open::Place;
use std::process::ExitCode;

/// Returns the command line as its parser knows it, for manuals and for tests of documents.
#[must_use]
pub fn command_line() -> clap::Command {
    Arguments::command()
}

/// Runs the command that this process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match own_arguments() {
        Ok(arguments) => Arguments::try_parse_from(arguments),
        Err(error) => Err(clap::Error::raw(
            clap::error::ErrorKind::InvalidValue,
            format!("--arguments: {error}\n"),
        )),
    };
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(error) => return ExitCode::from(wrong_usage::tell(error)),
    };
    let daemon = match &arguments.command {
        Command::Serve(serve) if serve.is_daemon() => Some(serve.is_awaited()),
        _ => None,
    };
    let style = console::on_this_terminal(arguments.global.style());
    let console = match Console::of_this_process(style, Cancel::default()) {
        Ok(console) => console,
        // Without the three streams there is nowhere to report the failure.
        Err(_) => return ExitCode::from(Exit::Failed.status()),
    };
    if let Err(error) = start_log(&arguments) {
        if let (Some(true), Some(line)) = (daemon, failure::line(&error)) {
            serve::tell_failure(&line, &console);
        }
        return ExitCode::from(finish(Err(error), &console));
    }
    let ran = run(arguments, &console);
    let status = match daemon {
        Some(is_awaited) => finish_daemon(ran, &console, is_awaited),
        None => finish(ran, &console),
    };
    log::flush();
    ExitCode::from(status)
}

/// Starts the log with the filter of `COWSHED_LOG`, else that of `-v`. A command reports its own
/// failure in one line, so only the daemon logs by default.
fn start_log(arguments: &Arguments) -> anyhow::Result<()> {
    let usual = match (&arguments.command, arguments.global.verbose) {
        (Command::Serve(_), 0) if arguments.global.quiet => "error",
        (Command::Serve(_), 0) => "info",
        (_, 0) => "off",
        (Command::Serve(_), 1) | (_, 2) => "debug",
        (_, 1) => "info",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("COWSHED_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    match &arguments.command {
        Command::Serve(serve) if serve.is_daemon() => {
            let path = serve.log.as_ref();
            log::start(
                filter,
                path.map(HostPath::as_path),
                console::takes_escapes(),
            )
            .with_context(|| path.map_or("start the log".into(), |path| format!("log {path}")))?;
            panics::end_the_process();
        }
        _ => command_log::start(filter),
    }
    Ok(())
}

fn run(arguments: Arguments, console: &Console) -> anyhow::Result<Exit> {
    let global = arguments.global;
    let place = || Place::new(global.pool.as_ref(), global.socket.as_ref());
    let request = match arguments.command {
        Command::Pool(PoolCommand::Offline(Offline::Create(create))) => {
            return create_pool::create(&create, &place()?, console).map(|()| Exit::Done);
        }
        Command::Pool(PoolCommand::Offline(Offline::Check(check))) => {
            return offline::check(&check, &place()?, console).map(|()| Exit::Done);
        }
        Command::Pool(PoolCommand::Offline(Offline::Upgrade(upgrade))) => {
            return offline::upgrade(&upgrade, &place()?, console).map(|()| Exit::Done);
        }
        Command::Pool(PoolCommand::Offline(Offline::Dump(dump))) => {
            return dump::dump(&dump, &place()?, console).map(|()| Exit::Done);
        }
        Command::Pool(PoolCommand::Mirror(Mirror::Keep(keep))) => {
            return mirror::keep(&keep, &place()?, console).map(|()| Exit::Done);
        }
        Command::Pool(PoolCommand::Mirror(Mirror::Online(request))) => {
            return mirror::on_open_pool(&request.into(), &place()?, console);
        }
        Command::Pool(PoolCommand::Online(pool)) => Request::Pool(pool.into()),
        Command::Quickstart(quickstart) => {
            return quickstart::run(&quickstart, console).map(|()| Exit::Done);
        }
        Command::Doctor => {
            return doctor::run(global.pool.as_ref(), global.socket.as_ref(), console);
        }
        Command::Setup(setup) => {
            return setup::run(&setup, global.pool.as_ref(), console).map(|()| Exit::Done);
        }
        Command::Serve(serve) => {
            return serve::serve(&serve, &place()?, console);
        }
        Command::Volume(volume) if volume.is_of_one_side() => {
            return remote::run_on_one_side(&Request::Volume(volume.into()), &place()?, console);
        }
        Command::Volume(volume) => Request::Volume(volume.into()),
        Command::Attach(attach) => Request::Attach(attach.into()),
        Command::Detach(detach) => Request::Attach(detach.into()),
        Command::Image(ImageCommand::Registry(command)) => {
            return registry::run(&command, &place()?, console);
        }
        Command::Image(ImageCommand::Local(image)) => Request::Image(image.into()),
        Command::Container(container) => Request::Container(container.into()),
        Command::Gc(gc) => Request::Gc(gc.into()),
        Command::Tree(tree) => Request::Tree(tree.into()),
    };
    remote::run_anywhere(request, &place()?, console)
}

/// Reports a failure on the console and returns the exit status.
fn finish(ended: anyhow::Result<Exit>, console: &Console) -> u8 {
    match ended {
        Ok(exit) => exit.status(),
        Err(error) => {
            if let Some(line) = failure::line(&error) {
                let exit = Exit::of(&error);
                console.complain(&failure::shown(&line, exit, console.style().json));
            }
            Exit::of(&error).status()
        }
    }
}

/// Reports a failure of the daemon in its log, and to the process that waits for it; returns the
/// exit status.
fn finish_daemon(ended: anyhow::Result<Exit>, console: &Console, is_awaited: bool) -> u8 {
    if let Err(error) = &ended
        && let Some(line) = failure::line(error)
    {
        log::complain(&failure::shown(
            &line,
            Exit::of(error),
            console.style().json,
        ));
        if is_awaited {
            serve::tell_failure(&line, console);
        }
    }
    ended.map_or_else(|error| Exit::of(&error).status(), Exit::status)
}
