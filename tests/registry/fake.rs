//! A server on this host that answers HTTP as a test says, and notes what it was asked.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What the server was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Returns the first byte that is wanted.
    pub(crate) fn from(&self) -> usize {
        let range = self
            .header("range")
            .and_then(|range| range.strip_prefix("bytes="));
        range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap())
    }
}

/// What it answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// The connection is cut after so many bytes of the body.
    pub(crate) cut_after: Option<usize>,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: body.into(),
            ..Self::default()
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn cut_after(mut self, bytes: usize) -> Self {
        self.cut_after = Some(bytes);
        self
    }

    /// Returns the part of `bytes` that the request asks for.
    pub(crate) fn part(request: &Request, bytes: &[u8]) -> Self {
        match request.from() {
            0 => Self::new(200, bytes),
            from => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Self::new(206, &bytes[from..]).with("content-range", range)
            }
        }
    }
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;
/// Returns the number of bytes of a request's body after which the connection is cut.
type Limit = dyn Fn(&Request) -> Option<usize> + Send + Sync;

/// A running server, which ends with this value.
pub(crate) struct Server {
    /// Its host and port.
    pub(crate) name: String,
    asked: Arc<Mutex<Vec<Request>>>,
    address: std::net::SocketAddr,
    is_over: Arc<Mutex<bool>>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_cutting(|_| None, handler)
    }

    /// As `start`; connections are cut within the bodies for which `limit` says so. The handler sees
    /// what came of these.
    pub(crate) fn start_cutting(
        limit: impl Fn(&Request) -> Option<usize> + Send + Sync + 'static,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let limit: Arc<Limit> = Arc::new(limit);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Request>>> = Arc::default();
        let is_over: Arc<Mutex<bool>> = Arc::default();
        let handler: Arc<Handler> = Arc::new(handler);
        let (noted, over) = (Arc::clone(&asked), Arc::clone(&is_over));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if *over.lock().unwrap() {
                    return;
                }
                let (noted, handler) = (Arc::clone(&noted), Arc::clone(&handler));
                let limit = Arc::clone(&limit);
                thread::spawn(move || {
                    // A client that goes away ends its connection.
                    let _ = stream.and_then(|stream| serve(&stream, &noted, &*limit, &*handler));
                });
            }
        });
        Self {
            name: address.to_string(),
            asked,
            address,
            is_over,
        }
    }

    pub(crate) fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    /// Returns the number of requests for a path with this text.
    pub(crate) fn count(&self, text: &str) -> usize {
        let asked = self.asked();
        asked.iter().filter(|one| one.path.contains(text)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        *self.is_over.lock().unwrap() = true;
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    stream: &TcpStream,
    asked: &Mutex<Vec<Request>>,
    limit: &Limit,
    handler: &Handler,
) -> std::io::Result<()> {
    let mut input = BufReader::new(stream);
    loop {
        let Some((request, is_cut)) = read(&mut input, limit)? else {
            return Ok(());
        };
        asked.lock().unwrap().push(request.clone());
        let answer = handler(&request);
        if is_cut {
            return stream.shutdown(Shutdown::Both);
        }
        let mut head = format!("HTTP/1.1 {} x\r\n", answer.status);
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let stated = answer.body.len();
        head.push_str(&format!("content-length: {stated}\r\n\r\n"));
        let mut output = stream;
        output.write_all(head.as_bytes())?;
        if request.method == "HEAD" {
            continue;
        }
        let body = &answer.body[..answer.cut_after.unwrap_or(answer.body.len())];
        output.write_all(body)?;
        if body.len() != stated {
            return stream.shutdown(Shutdown::Both);
        }
    }
}

/// Reads a request; returns true with it if its connection is to be cut.
fn read(
    input: &mut BufReader<&TcpStream>,
    limit: &Limit,
) -> std::io::Result<Option<(Request, bool)>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let mut request = Request {
        method: words.next().unwrap_or_default().to_owned(),
        path: words.next().unwrap_or_default().to_owned(),
        ..Request::default()
    };
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        let name = name.to_ascii_lowercase();
        request.headers.insert(name, value.trim().to_owned());
    }
    let len: usize = request
        .header("content-length")
        .unwrap_or("0")
        .parse()
        .unwrap();
    let limit = limit(&request).filter(|limit| *limit < len);
    request.body = vec![0; limit.unwrap_or(len)];
    input.read_exact(&mut request.body)?;
    Ok(Some((request, limit.is_some())))
}
