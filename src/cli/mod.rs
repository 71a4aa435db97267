//! The `cowshed` command: what it can be asked, and how each answer is given.
//!
//! One file for each command or group of commands. Where a daemon has the pool open, the parsed
//! command goes to it and the same code runs there (`remote`); else the pool is opened here.
//!
//! # Invariants
//! - Results go to the standard output, everything else to the standard error.
//! - A failure is one line there; `failure::Exit` says what each exit status means.

mod arguments;
mod attach;
mod console;
mod container;
mod containerd;
mod disk_image;
mod empty_file;
mod export_volume;
mod failure;
mod full;
mod fuse;
mod gc;
mod image;
mod import_volume;
mod keep;
mod kept_names;
mod offline;
mod open;
mod output;
mod part_file;
mod place;
mod plugin;
mod pool;
mod progress;
mod quickstart;
mod remote;
mod removal;
mod resize;
mod scrub;
mod sectors;
mod serve;
mod shed;
mod signals;
mod size;
mod state;
mod upgrade;
mod volume;
mod work;

use arguments::{Arguments, Command, OnPool};
use clap::Parser;
use console::{Cancel, Console};
use failure::Exit;
use open::Place;
use pool::{Offline, PoolCommand};
use std::io::IsTerminal;
use std::process::ExitCode;

/// Runs the command that this process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way too, on the standard output and with status 0.
            let status = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            };
            let _ = error.print();
            return ExitCode::from(status.status());
        }
    };
    start_log(&arguments);
    let style = arguments.global.style().on_this_terminal();
    let console = match Console::of_this_process(style, Cancel::default()) {
        Ok(console) => console,
        // Without the three streams there is nobody to tell.
        Err(_) => return ExitCode::from(Exit::Failed.status()),
    };
    ExitCode::from(finish(run(arguments, &console), &console))
}

/// Logs to the standard error: what `COWSHED_LOG` asks for, else by `-v`. A command tells its own
/// failure in one line, so only the daemon logs without being asked.
fn start_log(arguments: &Arguments) {
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
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

fn run(arguments: Arguments, console: &Console) -> anyhow::Result<Exit> {
    let global = arguments.global;
    let place = || Place::new(global.pool.as_ref(), global.socket.as_ref());
    let on_pool = match arguments.command {
        Command::Pool(PoolCommand::Offline(Offline::Create(create))) => {
            return offline::create(&create, &place()?, console).map(|()| Exit::Done);
        }
        Command::Pool(PoolCommand::Offline(Offline::Check(check))) => {
            return offline::check(&check, &place()?, console).map(|()| Exit::Done);
        }
        Command::Pool(PoolCommand::Online(pool)) => OnPool::Pool(pool),
        Command::Quickstart(quickstart) => {
            return quickstart::run(&quickstart, console).map(|()| Exit::Done);
        }
        Command::Serve(serve) => {
            return serve::serve(&serve, &place()?, console);
        }
        Command::EmptyFile(empty) => {
            return empty_file::serve(&empty, console).map(|()| Exit::Done);
        }
        Command::Volume(volume) => OnPool::Volume(volume),
        Command::Attach(attach) => OnPool::Attach(attach),
        Command::Detach(detach) => OnPool::Detach(detach),
        Command::Image(image) => OnPool::Image(image),
        Command::Container(container) => OnPool::Container(container.into_request()),
        Command::Gc(gc) => OnPool::Gc(gc),
    };
    remote::run_anywhere(on_pool, &place()?, console)
}

/// Tells a failure on the console and answers the exit status.
fn finish(ended: anyhow::Result<Exit>, console: &Console) -> u8 {
    match ended {
        Ok(exit) => exit.status(),
        Err(error) => {
            if let Some(line) = failure::line(&error) {
                console.complain(&line);
            }
            Exit::of(&error).status()
        }
    }
}
