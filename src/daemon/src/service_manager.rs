//! The exchange between the daemon and a service manager such as systemd: the socket that the
//! service manager may have opened (`sd_listen_fds(3)`), and notices of the daemon's state
//! (`sd_notify(3)`).

use cowshed_sys::descriptors;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::str::FromStr;
use std::time::Duration;

/// Environment variables that are meant only for the daemon's main process.
pub const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];
/// The number of the first descriptor that a service manager passes.
const FIRST: i32 = 3;

/// Returns the socket that the service manager listens on for this process.
///
/// # Errors
/// `InvalidInput` when there are several; else the kernel's error.
pub fn listening_socket() -> io::Result<Option<OwnedFd>> {
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    match number::<u32>("LISTEN_FDS") {
        None | Some(0) => Ok(None),
        Some(1) => descriptors::inherited(FIRST).map(Some),
        Some(count) => {
            let what = format!("the service manager passed {count} sockets instead of one");
            Err(io::Error::new(io::ErrorKind::InvalidInput, what))
        }
    }
}

/// Returns the time after which the service manager considers this process dead without a
/// `WATCHDOG=1` (`sd_watchdog_enabled(3)`); `None` if it sets no such limit.
#[must_use]
pub fn watchdog_time() -> Option<Duration> {
    let is_ours = number("WATCHDOG_PID").is_none_or(|pid: u32| pid == std::process::id());
    let time = number("WATCHDOG_USEC").filter(|usec| is_ours && *usec > 0);
    time.map(Duration::from_micros)
}

fn number<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

/// Sends lines of `NAME=value` to the service manager, if there is one.
pub fn notify(news: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, news) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

fn send(socket: &OsStr, news: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(news.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_reaches_a_socket_with_a_path_and_one_without() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("cowshed-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (receiver, shown) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&abstract_address).unwrap(),
                format!("@{name}").into(),
            ),
        ] {
            send(&shown, "READY=1").unwrap();
            let mut text = [0; 16];
            let len = receiver.recv(&mut text).unwrap();
            assert_eq!(&text[..len], b"READY=1");
        }
    }
}
