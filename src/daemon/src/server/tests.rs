//! Tests a server with a fake command through a real socket.

use super::*;
use crate::protocol::{receive_answer, send_request};
use crate::{Client, Connection};
use std::fs;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Copies its input to its output, waits to be cancelled, or panics, as the request says.
struct Fake {
    cancelled: Arc<AtomicBool>,
}

#[derive(Clone, Default)]
struct Flag(Arc<AtomicBool>);

impl Handler for Fake {
    type Request = String;
    type Cancel = Flag;

    fn run(&self, session: Session<String, Flag>) -> u8 {
        let [input, output, _] = session.streams.map(File::from);
        match session.request.as_str() {
            "copy" => {
                io::copy(&mut &input, &mut &output).unwrap();
                0
            }
            "print" => u8::from((&output).write_all(&[b'x'; 1 << 20]).is_err()),
            "wait" => {
                while !session.cancel.0.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(5));
                }
                self.cancelled.store(true, Ordering::Relaxed);
                7
            }
            _ => panic!("a defect"),
        }
    }

    fn cancel(cancel: &Flag) {
        cancel.0.store(true, Ordering::Relaxed);
    }
}

struct Fixture {
    server: Server<Fake>,
    cancelled: Arc<AtomicBool>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn start() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.sock");
    let cancelled = Arc::new(AtomicBool::new(false));
    let server = Server::start(
        Listening::bind(&path).unwrap(),
        Fake {
            cancelled: Arc::clone(&cancelled),
        },
    )
    .unwrap();
    Fixture {
        server,
        cancelled,
        path,
        _folder: folder,
    }
}

fn client(path: &Path) -> Client {
    match Client::connect(path).unwrap() {
        Connection::Daemon(client) => client,
        Connection::Nobody => panic!("nobody listens"),
    }
}

fn null() -> File {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_command_reads_and_writes_the_clients_streams() {
    let fixture = start();
    let (input, mut to_input) = io::pipe().unwrap();
    let (mut from_output, output) = io::pipe().unwrap();
    to_input.write_all(b"bytes").unwrap();
    drop(to_input);
    let null = null();
    let answer = client(&fixture.path)
        .run(
            &"copy".to_owned(),
            [input.as_fd(), output.as_fd(), null.as_fd()],
        )
        .unwrap();
    assert_eq!(
        answer,
        Answer {
            status: 0,
            refusal: None
        }
    );
    drop(output);
    let mut text = String::new();
    from_output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "bytes");
}

#[test]
fn a_client_that_goes_away_cancels_its_command_and_nothing_else() {
    let fixture = start();
    let null = null();
    let streams = [null.as_fd(), null.as_fd(), null.as_fd()];
    let socket = UnixStream::connect(&fixture.path).unwrap();
    send_request(&socket, &"wait".to_owned(), streams).unwrap();
    drop(socket);
    eventually("cancelling", || fixture.cancelled.load(Ordering::Relaxed));
    assert_eq!(
        client(&fixture.path)
            .run(&"copy".to_owned(), streams)
            .unwrap()
            .status,
        0
    );
}

#[test]
fn a_closed_output_fails_the_command_but_not_the_server() {
    let fixture = start();
    let (reader, output) = io::pipe().unwrap();
    drop(reader);
    let null = null();
    let broken = [null.as_fd(), output.as_fd(), null.as_fd()];
    assert_eq!(
        client(&fixture.path)
            .run(&"print".to_owned(), broken)
            .unwrap()
            .status,
        1
    );
    let whole = [null.as_fd(), null.as_fd(), null.as_fd()];
    assert_eq!(
        client(&fixture.path)
            .run(&"print".to_owned(), whole)
            .unwrap()
            .status,
        0
    );
}

#[test]
fn a_defect_in_a_command_is_answered_and_survived() {
    let fixture = start();
    let null = null();
    let streams = [null.as_fd(), null.as_fd(), null.as_fd()];
    let answer = client(&fixture.path)
        .run(&"panic".to_owned(), streams)
        .unwrap();
    assert_eq!(answer.status, 1);
    assert!(answer.refusal.unwrap().contains("defect"));
    assert_eq!(
        client(&fixture.path)
            .run(&"copy".to_owned(), streams)
            .unwrap()
            .status,
        0
    );
}

#[test]
fn hostile_bytes_are_answered_with_a_refusal() {
    let fixture = start();
    let socket = UnixStream::connect(&fixture.path).unwrap();
    (&socket).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let answer = receive_answer(&socket, VERSION).unwrap();
    assert_eq!(answer.status, 1);
    assert!(answer.refusal.unwrap().contains("does not use"));
}

#[test]
fn stopping_cancels_what_runs_and_removes_the_socket() {
    let mut fixture = start();
    let path = fixture.path.clone();
    let waiting = thread::spawn({
        let path = path.clone();
        move || {
            let null = null();
            client(&path)
                .run(
                    &"wait".to_owned(),
                    [null.as_fd(), null.as_fd(), null.as_fd()],
                )
                .unwrap()
        }
    });
    eventually("the command", || {
        !fixture.server.shared.sessions.lock().running.is_empty()
    });
    assert_eq!(fixture.server.stop(Duration::from_secs(10)), 0);
    assert_eq!(
        waiting.join().unwrap(),
        Answer {
            status: 7,
            refusal: None
        }
    );
    drop(fixture.server);
    assert!(!path.exists());
    assert!(matches!(
        Client::connect(&path).unwrap(),
        Connection::Nobody
    ));
}

#[test]
fn a_stale_socket_is_replaced_but_a_live_one_and_a_plain_file_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(
        Client::connect(&path).unwrap(),
        Connection::Nobody
    ));
    let fake = || Fake {
        cancelled: Arc::default(),
    };
    let server = Server::start(Listening::bind(&path).unwrap(), fake()).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        Listening::bind(&path).unwrap_err().kind(),
        io::ErrorKind::AddrInUse
    );
    drop(server);
    fs::write(&path, b"mine").unwrap();
    assert_eq!(
        Listening::bind(&path).unwrap_err().kind(),
        io::ErrorKind::AddrInUse
    );
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}
