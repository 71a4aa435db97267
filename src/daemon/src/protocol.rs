//! The messages on the socket: a header of 12 bytes (magic, version, length), then JSON.
//!
//! The client's three streams come with the header's first byte.

use cowshed_sys::descriptors;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The first bytes of each message.
const MAGIC: [u8; 4] = *b"COWS";
/// Raised when the meaning of a message changes; both sides must have the same version.
pub const VERSION: u32 = 3;
/// The version of the requests with which one program takes over from another, which may have
/// another `VERSION`. It never changes.
pub const HANDOVER_VERSION: u32 = 1;
const HEADER_BYTES: usize = 12;
/// The longest request: a command line cannot be longer than the kernel's 2 MiB, but JSON may need
/// up to six bytes for one.
pub const REQUEST_BYTES_MAX: u32 = 16 << 20;
/// The longest reply.
const ANSWER_BYTES_MAX: u32 = 64 << 10;
/// Input, output, error.
pub const STREAMS: usize = 3;

/// The reason why a message could not be exchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The socket failed or ended in the middle of a message.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The other side does not speak this protocol.
    #[error("the peer does not use cowshed's protocol")]
    Foreign,
    /// The other side speaks another version of the protocol.
    #[error(
        "the peer uses version {theirs} of the protocol, not {VERSION}; use the daemon's version of cowshed, or stop the daemon and start it with this version"
    )]
    Version {
        /// The other side's version.
        theirs: u32,
    },
    /// The message is longer than the limit.
    #[error("a message of {len_bytes} bytes is longer than the limit of {max_bytes} bytes")]
    TooLong {
        /// Its length.
        len_bytes: u32,
        /// The limit.
        max_bytes: u32,
    },
    /// The message is not the expected JSON.
    #[error("a message is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// The request came without the three streams.
    #[error("a request came with {0} streams instead of {STREAMS}")]
    Streams(usize),
}

/// A request in its form on the socket.
pub trait Message: Sized {
    /// Returns the version to whose form the body belongs, and the body.
    ///
    /// # Errors
    /// When a value has no form in JSON.
    fn encode(&self) -> serde_json::Result<(u32, Vec<u8>)>;

    /// Returns the request with this body.
    ///
    /// # Errors
    /// `Version` if this program does not know the form of that version; `Json`.
    fn decode(version: u32, body: &[u8]) -> Result<Self, ProtocolError>;
}

/// A request with what came along.
#[derive(Debug)]
pub struct Received<T> {
    /// The request.
    pub request: T,
    /// The version to whose form the request belongs, and so must the reply.
    pub version: u32,
    /// Input, output, error.
    pub streams: [OwnedFd; STREAMS],
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The exit status.
    pub status: u8,
    /// The reason why the command was not run; `None` if it was run.
    pub refusal: Option<String>,
}

/// Sends a request with the streams that the command is to use, and returns the version to whose
/// form it belongs.
///
/// # Errors
/// `Io`, `TooLong`.
pub fn send_request<T: Message>(
    socket: &UnixStream,
    request: &T,
    streams: [BorrowedFd<'_>; STREAMS],
) -> Result<u32, ProtocolError> {
    let (version, body) = request.encode()?;
    send(socket, version, &body, REQUEST_BYTES_MAX, &streams)?;
    Ok(version)
}

/// Receives a request and its streams.
///
/// # Errors
/// Any `ProtocolError`. The caller should set a read timeout on the socket.
pub fn receive_request<T: Message>(socket: &UnixStream) -> Result<Received<T>, ProtocolError> {
    let mut header = [0; HEADER_BYTES];
    let (mut filled, streams) = descriptors::receive(socket, &mut header)?;
    if filled == 0 {
        return Err(ProtocolError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    while filled < HEADER_BYTES {
        // Descriptors that do not arrive with the first byte are closed again.
        let (len, _) = descriptors::receive(socket, &mut header[filled..])?;
        if len == 0 {
            return Err(ProtocolError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        filled += len;
    }
    let header = Header::parse(header)?;
    let body = header.read_body(socket, &[VERSION, HANDOVER_VERSION], REQUEST_BYTES_MAX)?;
    let request = T::decode(header.version, &body)?;
    let streams = streams
        .try_into()
        .map_err(|got: Vec<_>| ProtocolError::Streams(got.len()))?;
    Ok(Received {
        request,
        version: header.version,
        streams,
    })
}

/// Sends a reply to a request of this version. The form of a reply is the same in all versions.
///
/// # Errors
/// `Io`.
pub fn send_answer(
    socket: &UnixStream,
    version: u32,
    answer: &Answer,
) -> Result<(), ProtocolError> {
    let body = serde_json::to_vec(answer)?;
    send(socket, version, &body, ANSWER_BYTES_MAX, &[])
}

/// Receives the reply to a request of this version, however long the command takes.
///
/// # Errors
/// Any `ProtocolError`.
pub fn receive_answer(socket: &UnixStream, version: u32) -> Result<Answer, ProtocolError> {
    let mut header = [0; HEADER_BYTES];
    (&mut &*socket).read_exact(&mut header)?;
    // A daemon that refuses a client before it has read the request does not know its version.
    let versions = [version, VERSION];
    let body = Header::parse(header)?.read_body(socket, &versions, ANSWER_BYTES_MAX)?;
    Ok(serde_json::from_slice(&body)?)
}

fn send(
    socket: &UnixStream,
    version: u32,
    body: &[u8],
    max_bytes: u32,
    streams: &[BorrowedFd<'_>],
) -> Result<(), ProtocolError> {
    let message = with_header(version, body, max_bytes)?;
    let sent = descriptors::send(socket, &message, streams)?;
    (&mut &*socket).write_all(&message[sent..])?;
    Ok(())
}

fn with_header(version: u32, body: &[u8], max_bytes: u32) -> Result<Vec<u8>, ProtocolError> {
    let len_bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if len_bytes > max_bytes {
        return Err(ProtocolError::TooLong {
            len_bytes,
            max_bytes,
        });
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&len_bytes.to_le_bytes());
    bytes.extend_from_slice(body);
    Ok(bytes)
}

/// The beginning of a message, after the magic bytes.
#[derive(Clone, Copy, Debug)]
struct Header {
    version: u32,
    len_bytes: u32,
}

impl Header {
    fn parse(header: [u8; HEADER_BYTES]) -> Result<Self, ProtocolError> {
        let [m0, m1, m2, m3, v0, v1, v2, v3, l0, l1, l2, l3] = header;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(ProtocolError::Foreign);
        }
        Ok(Self {
            version: u32::from_le_bytes([v0, v1, v2, v3]),
            len_bytes: u32::from_le_bytes([l0, l1, l2, l3]),
        })
    }

    /// Reads the body if the version is one of `versions`.
    fn read_body(
        self,
        socket: &UnixStream,
        versions: &[u32],
        max_bytes: u32,
    ) -> Result<Vec<u8>, ProtocolError> {
        let Self { version, len_bytes } = self;
        if !versions.contains(&version) {
            return Err(ProtocolError::Version { theirs: version });
        }
        if len_bytes > max_bytes {
            return Err(ProtocolError::TooLong {
                len_bytes,
                max_bytes,
            });
        }
        // Memory grows with the bytes received, not with the length in the header.
        let mut body = Vec::new();
        let len = socket.take(u64::from(len_bytes)).read_to_end(&mut body)?;
        if len as u64 != u64::from(len_bytes) {
            return Err(ProtocolError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::time::Duration;

    /// The request of the tests here and of those of the server.
    impl Message for String {
        fn encode(&self) -> serde_json::Result<(u32, Vec<u8>)> {
            Ok((VERSION, serde_json::to_vec(self)?))
        }

        fn decode(_: u32, body: &[u8]) -> Result<Self, ProtocolError> {
            Ok(serde_json::from_slice(body)?)
        }
    }

    fn pair() -> (UnixStream, UnixStream) {
        let (client, server) = UnixStream::pair().unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        (client, server)
    }

    #[test]
    fn a_request_brings_its_streams() {
        let (client, server) = pair();
        let (mut reader, writer) = io::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        let long = "x".repeat(1 << 20);
        let sender = std::thread::spawn({
            let long = long.clone();
            move || send_request(&client, &long, [null.as_fd(), writer.as_fd(), null.as_fd()])
        });
        let received = receive_request::<String>(&server).unwrap();
        assert_eq!((received.request, received.version), (long, VERSION));
        let [_, output, _] = received.streams;
        sender.join().unwrap().unwrap();
        File::from(output).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn hostile_bytes_are_errors_each_with_its_reason() {
        let header = |version: u32, len: u32| {
            [&MAGIC[..], &version.to_le_bytes(), &len.to_le_bytes()].concat()
        };
        let send = |bytes: &[u8]| {
            let (client, server) = pair();
            (&client).write_all(bytes).unwrap();
            drop(client);
            receive_request::<String>(&server).map(drop).unwrap_err()
        };
        assert!(matches!(send(b""), ProtocolError::Io(_)));
        assert!(matches!(
            send(b"GET / HTTP/1.1\r\n"),
            ProtocolError::Foreign
        ));
        assert!(matches!(
            send(&header(VERSION, 8)[..7]),
            ProtocolError::Io(_)
        ));
        assert!(matches!(
            send(&header(9, 8)),
            ProtocolError::Version { theirs: 9 }
        ));
        assert!(matches!(
            send(&header(VERSION, u32::MAX)),
            ProtocolError::TooLong { .. }
        ));
        assert!(matches!(
            send(&header(VERSION, 1 << 20)),
            ProtocolError::Io(_)
        ));
        let garbage = [header(VERSION, 3), b"\xff{\0".to_vec()].concat();
        assert!(matches!(send(&garbage), ProtocolError::Json(_)));
        let without_streams = [header(VERSION, 3), b"\"x\"".to_vec()].concat();
        assert!(matches!(send(&without_streams), ProtocolError::Streams(0)));
    }

    #[test]
    fn a_client_that_sends_too_many_streams_is_refused_and_leaks_none() {
        const TRIES: usize = 500;
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let message = with_header(VERSION, b"\"x\"", REQUEST_BYTES_MAX).unwrap();
        let null = File::open("/dev/null").unwrap();
        let before = open();
        for count in (4..=253).cycle().take(TRIES) {
            let (client, server) = pair();
            descriptors::send(&client, &message, &vec![null.as_fd(); count]).unwrap();
            let error = receive_request::<String>(&server).unwrap_err();
            assert!(
                matches!(error, ProtocolError::Streams(got) if got == count),
                "{error}"
            );
        }
        // Other tests open and close descriptors at the same time, but fewer than that.
        assert!(open() < before + TRIES);
    }

    #[test]
    fn an_answer_comes_back_as_it_was() {
        let (client, server) = pair();
        let answer = Answer {
            status: 3,
            refusal: Some("no".to_owned()),
        };
        for version in [HANDOVER_VERSION, VERSION] {
            send_answer(&server, version, &answer).unwrap();
            assert_eq!(receive_answer(&client, version).unwrap(), answer);
        }
        // A daemon that refuses before it has read the request.
        send_answer(&server, VERSION, &answer).unwrap();
        assert_eq!(receive_answer(&client, HANDOVER_VERSION).unwrap(), answer);
        send_answer(&server, HANDOVER_VERSION, &answer).unwrap();
        assert!(matches!(
            receive_answer(&client, VERSION),
            Err(ProtocolError::Version {
                theirs: HANDOVER_VERSION
            })
        ));
    }
}
