//! cowshed as its users run it: a pool in a file, its own daemon, and the command line.

use crate::guards::{self, Folder, Process};
use crate::host::{self, Ran, command};
use crate::signals::{self, Registered};
use anyhow::{Context, bail};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The word for FUSE over io_uring, and the file in which the kernel tells whether it is allowed.
pub(crate) const RINGS: &str = "io-uring";
const RINGS_ALLOWED: &str = "/sys/module/fuse/parameters/enable_uring";
/// A pool is sparse, and takes more space than is written to it until a checkpoint.
const POOL_SPARE_BYTES: u64 = 4 << 30;

/// A build of cowshed, and its options for serving.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) program: PathBuf,
    pub(crate) options: Vec<String>,
}

impl Build {
    pub(crate) fn new(program: &Path, options: &[&str]) -> Self {
        Self {
            program: program.to_owned(),
            options: options.iter().map(ToString::to_string).collect(),
        }
    }

    /// Returns the description of what is measured, with the options of its daemon.
    pub(crate) fn described(&self, what: &str) -> String {
        if self.options.is_empty() {
            return what.to_owned();
        }
        format!("{what}; serve {}", self.options.join(" "))
    }

    /// Returns two builds that are compared, with their names.
    pub(crate) fn compared(before: &Path, after: &Path) -> [(&'static str, Self); 2] {
        [
            (crate::against::BEFORE, Self::new(before, &[])),
            (crate::against::AFTER, Self::new(after, &[])),
        ]
    }

    /// Reports that the program does not know its options, if so.
    pub(crate) fn missing(&self) -> Option<String> {
        let help = host::run(&self.program, ["serve", "--help"]);
        let help = match help {
            Ok(ran) => ran.output,
            Err(error) => return Some(format!("{error:#}")),
        };
        missing_options(&self.options, &help)
    }
}

/// Reports an option that a program's help does not know, or that the kernel does not support.
pub(crate) fn missing_options(options: &[String], help: &str) -> Option<String> {
    let unknown = options
        .iter()
        .find(|option| option.starts_with("--") && !help.contains(*option));
    if let Some(unknown) = unknown {
        return Some(format!("this cowshed has no {unknown}"));
    }
    let rings = options.iter().any(|option| option == RINGS);
    let allowed = || fs::read_to_string(RINGS_ALLOWED).is_ok_and(|text| text.trim() == "Y");
    (rings && !allowed()).then(|| {
        format!("this kernel has no FUSE over io_uring, or it is off (echo Y >{RINGS_ALLOWED})")
    })
}

/// A pool that is served. The daemon is dropped before its folder.
pub(crate) struct Service {
    daemon: Daemon,
    build: Build,
    pool: PathBuf,
    _folder: Folder,
}

/// The daemon; the leftovers of a killed one are removed after it.
struct Daemon {
    process: Process,
    _leftovers: Leftovers,
}

/// The mounts and loop devices below a daemon's state folder.
struct Leftovers(PathBuf);

impl Service {
    /// Creates a pool for `bytes` of data in a new folder, and serves it.
    pub(crate) fn open(build: &Build, folder: PathBuf, bytes: u64) -> anyhow::Result<Self> {
        let folder = Folder::at(folder)?;
        let pool = folder.join("pool");
        let size = (bytes * 2 + POOL_SPARE_BYTES).to_string();
        host::wait(pool_command(
            build,
            &pool,
            ["pool", "create", "--size", &size],
        ))?;
        let daemon = Daemon::start(build, &pool, &folder)?;
        Ok(Self {
            daemon,
            build: build.clone(),
            pool,
            _folder: folder,
        })
    }

    /// Runs a command on it.
    pub(crate) fn run<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<Ran> {
        host::wait(self.command(arguments))
    }

    /// Returns a command on it.
    pub(crate) fn command<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        pool_command(&self.build, &self.pool, arguments)
    }

    /// Writes out pending data, so that freed space is free, and returns it to the host.
    pub(crate) fn settle(&mut self) -> anyhow::Result<()> {
        self.daemon.process.expect_running()?;
        let pending = || -> anyhow::Result<bool> {
            self.run(["pool", "checkpoint"])?;
            let status = self.run(["pool", "status", "--json"])?.output;
            let status: Value = serde_json::from_str(&status)?;
            let bytes = status["pending_free_bytes"].as_u64();
            Ok(bytes.context("read the pool's status")? == 0)
        };
        guards::eventually("that all that was freed is free", pending)?;
        self.run(["pool", "trim"])?;
        Ok(())
    }

    /// Returns the space of the host that the pool takes.
    pub(crate) fn host_bytes(&self) -> anyhow::Result<u64> {
        host::allocated_bytes(&self.pool)
    }
}

fn pool_command<S: AsRef<OsStr>>(
    build: &Build,
    pool: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = command(&build.program, ["--quiet", "--pool"]);
    command.arg(pool).args(arguments).env_remove("COWSHED_POOL");
    command
}

impl Daemon {
    fn start(build: &Build, pool: &Path, folder: &Folder) -> anyhow::Result<Self> {
        let log = folder.join("log");
        let mut command = pool_command(build, pool, ["serve", "--foreground", "--json"]);
        command
            .args(&build.options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?);
        let mut process = Process::start(&mut command)?;
        let output = process.child().stdout.take();
        let output = output.context("the daemon has no output")?;
        // A signal also ends a daemon that hangs here.
        let registered = Registered::new(process.child().id());
        let ready = read_ready(output);
        drop(registered);
        signals::go_on()?;
        let Some(ready) = ready else {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("the daemon did not start: {}", said.trim());
        };
        // Its state folder, in which it also mounts containers.
        let state = ready["mount"]
            .as_str()
            .and_then(|mount| Path::new(mount).parent())
            .context("the daemon did not say where it mounts")?;
        Ok(Self {
            process,
            _leftovers: Leftovers(state.to_owned()),
        })
    }
}

/// Reads until a document is complete; returns `None` if the output ends first.
fn read_ready(output: impl Read) -> Option<Value> {
    let mut output = BufReader::new(output);
    let mut document = String::new();
    while output.read_line(&mut document).ok()? > 0 {
        if let Ok(ready) = serde_json::from_str(&document) {
            return Some(ready);
        }
    }
    None
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        // Listed first: once a mount is gone, the file of a device can no longer be determined.
        let devices = guards::loops_below(&self.0);
        for point in guards::mounts_below(&self.0) {
            guards::unmount(&point);
        }
        for device in devices {
            guards::detach(&device);
        }
    }
}
