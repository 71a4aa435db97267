//! Docker's Engine API as programs use it, without the overhead of its command line.

use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Requests `target`; returns the result on success, and the duration.
pub(crate) fn ask(socket: &Path, method: &str, target: &str) -> (Result<Value, String>, Duration) {
    let started = Instant::now();
    let mut stream = UnixStream::connect(socket).unwrap();
    let request = format!(
        "{method} {target} HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json\r\n\
         Content-Length: 2\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let took = started.elapsed();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let is_done = head.split(' ').nth(1).unwrap().starts_with('2');
    let said = if is_done {
        Ok(serde_json::from_str(body).unwrap())
    } else {
        Err(answer)
    };
    (said, took)
}
