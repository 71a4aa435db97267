//! QEMU's control protocol: one JSON document per line, with replies among events.

use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Removing a large internal snapshot takes long.
const PATIENCE: Duration = Duration::from_secs(600);
const EVENTS_MAX: usize = 1000;

pub(crate) struct Qmp {
    input: BufReader<UnixStream>,
    output: UnixStream,
}

impl Qmp {
    /// # Errors
    /// When no process accepts at the socket.
    pub(crate) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let output = UnixStream::connect(socket).context("reach qemu-storage-daemon")?;
        output.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self {
            input: BufReader::new(output.try_clone()?),
            output,
        };
        qmp.read()?;
        qmp.call("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// # Errors
    /// The daemon's error.
    pub(crate) fn call(&mut self, name: &str, arguments: &Value) -> anyhow::Result<()> {
        let mut line = json!({ "execute": name, "arguments": arguments }).to_string();
        line.push('\n');
        self.output.write_all(line.as_bytes())?;
        for _ in 0..EVENTS_MAX {
            let answer = self.read()?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                bail!("{name}: {}", error["desc"].as_str().unwrap_or("unknown"));
            }
        }
        bail!("{name}: no answer")
    }

    fn read(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.input.read_line(&mut line)? == 0 {
            bail!("qemu-storage-daemon has ended");
        }
        serde_json::from_str(&line).context("read what qemu-storage-daemon answers")
    }
}
