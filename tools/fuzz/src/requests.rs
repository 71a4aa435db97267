//! The messages that a client may send to the daemon, and a daemon to its client.

use cowshed_daemon::protocol::{VERSION, receive_answer, receive_request, send_answer};
use cowshed_daemon::{Answer, Request};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// Fits into a socket's buffer, so that the sender does not need a thread.
const BYTES_MAX: usize = 64 << 10;

/// Runs the bytes as a request and as a reply.
pub fn run(data: &[u8]) {
    let data = &data[..data.len().min(BYTES_MAX)];
    let sent = || {
        let (near, far) = UnixStream::pair().unwrap();
        (&near).write_all(data).unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        (near, far)
    };
    let (_near, far) = sent();
    let found = receive_request::<Request>(&far);
    assert!(found.is_err(), "a request without streams was taken");
    let (_near, far) = sent();
    if let Ok(answer) = receive_answer(&far, VERSION) {
        let (near, far) = UnixStream::pair().unwrap();
        send_answer(&near, VERSION, &answer).unwrap();
        let again = receive_answer(&far, VERSION).unwrap();
        assert_eq!(
            (again.status, again.refusal),
            (answer.status, answer.refusal)
        );
    }
}

/// Returns a reply as it is sent, and a header that claims a large length.
pub fn seeds() -> Vec<Vec<u8>> {
    let (near, far) = UnixStream::pair().unwrap();
    let answer = Answer {
        status: 3,
        refusal: Some("no".to_owned()),
    };
    send_answer(&near, VERSION, &answer).unwrap();
    drop(near);
    let mut bytes = Vec::new();
    (&far).read_to_end(&mut bytes).unwrap();
    let mut long = bytes.clone();
    long[..4.min(bytes.len())].fill(0xff);
    vec![bytes, long]
}
