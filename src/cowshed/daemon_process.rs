//! Which process is to be ended so that a pool's daemon stops.

use super::in_time::in_time;
use cowshed_daemon::Client;
use cowshed_daemon::keeper::Serving;
use cowshed_daemon::request::{Command, Request, Style, serving};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

/// Returns how to stop the daemon that has answered: with the number of its process, if it tells that
/// in time. Where a service manager listens for it, a killed daemon would be started again; and a
/// number from another process namespace means nothing here.
pub(super) fn how_to_stop(client: Client) -> String {
    const MANAGER: u32 = 1;
    let listener = client.listener().unwrap_or(0);
    if listener == MANAGER {
        return "systemctl stop cowshed.socket cowshed.service".to_owned();
    }
    match in_time(move || process(&client)).flatten() {
        Some(process) if process == listener => format!("kill {process}"),
        _ => "send SIGTERM to it".to_owned(),
    }
}

/// Asks the daemon for the process that stops it; `None` if it does not say.
fn process(client: &Client) -> Option<u32> {
    let nothing = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .ok()?;
    // The reply fits into a pipe.
    let (mut reader, writer) = io::pipe().ok()?;
    let request = Request {
        style: Style::default(),
        command: Command::Serving(serving::Command::Serving),
    };
    let streams = [nothing.as_fd(), writer.as_fd(), nothing.as_fd()];
    client.run(&request, streams).ok()?;
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).ok()?;
    let serving: Serving = serde_json::from_str(&text).ok()?;
    // Without its keeper, the worker stops in order, too.
    Some(match serving.keeper {
        0 => serving.worker,
        keeper => keeper,
    })
}
