//! The behaviour of Docker: one HTTP request for each call, repeated until there is a reply.

use crate::harness::{Bench, Daemon, PATIENCE};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A pool with a daemon that is Docker's volume driver.
pub(crate) struct Driver {
    pub(crate) bench: Bench,
    pub(crate) daemon: Option<Daemon>,
}

/// A status and a JSON document.
pub(crate) type Reply = (u16, Value);

impl Driver {
    pub(crate) fn start(size: &str) -> Self {
        let bench = Bench::with_pool(size);
        let mut driver = Self {
            bench,
            daemon: None,
        };
        driver.serve();
        driver
    }

    pub(crate) fn serve(&mut self) {
        let socket = self.socket();
        let options = ["--docker-plugin-socket", socket.to_str().unwrap()];
        self.daemon = Some(self.bench.serve_with(options));
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.bench.path("plugins/cowshed.sock")
    }

    /// Makes a call once, whatever the result.
    pub(crate) fn attempt(&self, call: &str, body: &Value) -> io::Result<Reply> {
        request(&self.socket(), "POST", call, body.to_string().as_bytes())
    }

    /// Makes a call, and repeats it until there is a reply.
    pub(crate) fn call(&self, call: &str, body: &Value) -> Reply {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.attempt(call, body) {
                Ok(reply) => return reply,
                Err(error) => assert!(Instant::now() < deadline, "{call}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes a call that must succeed.
    pub(crate) fn ok(&self, call: &str, body: &Value) -> Value {
        let (status, answer) = self.call(&format!("/VolumeDriver.{call}"), body);
        assert_eq!(
            (status, &answer["Err"]),
            (200, &json!("")),
            "{call} {body}: {answer}"
        );
        answer
    }

    /// Makes a call that must be refused with a reason that contains `why`.
    pub(crate) fn refused(&self, call: &str, body: &Value, why: &str) {
        let (status, answer) = self.call(&format!("/VolumeDriver.{call}"), body);
        let text = answer["Err"].as_str().unwrap();
        assert_eq!(status, 500, "{call} {body}: {answer}");
        assert!(
            text.starts_with("cowshed: ") && text.contains(why),
            "{call} {body}: {answer}"
        );
    }

    pub(crate) fn create(&self, name: &str, options: &Value) {
        self.ok("Create", &json!({"Name": name, "Opts": options}));
    }

    pub(crate) fn mount(&self, name: &str, id: &str) -> PathBuf {
        let answer = self.ok("Mount", &json!({"Name": name, "ID": id}));
        PathBuf::from(answer["Mountpoint"].as_str().unwrap())
    }

    pub(crate) fn unmount(&self, name: &str, id: &str) {
        self.ok("Unmount", &json!({"Name": name, "ID": id}));
    }

    /// Returns the names of all volumes that Docker sees.
    pub(crate) fn names(&self) -> Vec<String> {
        let answer = self.ok("List", &json!({}));
        let all = answer["Volumes"].as_array().unwrap().iter();
        all.map(|volume| volume["Name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Stops the daemon, after which nothing may be left and the pool must be sound.
    pub(crate) fn finish(mut self) {
        let daemon = self.daemon.take().unwrap();
        let volumes = daemon.mount.clone();
        daemon.stop();
        assert!(!self.socket().exists(), "the socket was left");
        let state = volumes.parent().unwrap();
        assert!(!state.exists(), "{} was left", state.display());
        let names = self.bench.volumes();
        assert!(
            names.iter().all(|name| !name.starts_with("work/")),
            "{names:?}"
        );
        self.bench.expect_sound();
    }
}

/// Makes one HTTP request over its own connection.
pub(crate) fn request(socket: &Path, method: &str, path: &str, body: &[u8]) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: plugin\r\nConnection: close\r\n\
         Accept: application/vnd.docker.plugins.v1.2+json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    // A server that refuses a long body may not read all of it.
    let sent = stream.write_all(body);
    let mut text = Vec::new();
    let read = stream.read_to_end(&mut text);
    if text.is_empty() {
        sent.and(read)?;
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = serde_json::from_str(body).map_err(|_| io::ErrorKind::UnexpectedEof)?;
    Ok((status, body))
}
