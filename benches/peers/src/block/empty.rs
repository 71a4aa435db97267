//! A FUSE server that replies at once and stores nothing, under a loop device: the limit of any
//! userspace server that a loop device reaches through FUSE.

use super::{Peer, Place, Subject};
use crate::fio::Target;
use crate::guards::{self, Folder, LoopDevice, Process};
use crate::host;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The server, beside this program.
const SERVER: &str = "cowshed-bench-empty";

pub(crate) struct Empty {
    name: String,
    program: PathBuf,
    options: Vec<String>,
}

impl Empty {
    pub(crate) fn new(name: &str, options: &[&str]) -> Self {
        let own = std::env::current_exe().unwrap_or_default();
        Self {
            name: name.to_owned(),
            program: own.with_file_name(SERVER),
            options: options.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Peer for Empty {
    fn name(&self) -> &str {
        &self.name
    }

    fn what(&self) -> String {
        let mut what = "a loop device on a FUSE file of cowshed's own transport whose server \
            answers at once and keeps nothing, so that nothing can be verified: the limit of this \
            path"
            .to_owned();
        if !self.options.is_empty() {
            what.push_str("; ");
            what.push_str(&self.options.join(" "));
        }
        what
    }

    fn missing(&self) -> Option<String> {
        let Ok(asked) = host::run(&self.program, ["--help"]) else {
            return Some("there is no cowshed-bench-empty beside this program".into());
        };
        crate::service::missing_options(&self.options, &asked.output)
    }

    fn prepare(&self, place: &Place) -> anyhow::Result<Box<dyn Subject>> {
        let folder = Folder::at(place.folder.join(place.name))?;
        let (mount, output) = (folder.join("mount"), folder.join("output"));
        fs::create_dir(&mount)?;
        let mut command = Command::new(&self.program);
        command
            .arg(&mount)
            .args(["--size", &place.size_bytes.to_string()])
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(folder.join("log"))?);
        let mut server = Process::start(&mut command)?;
        let mut file = String::new();
        // The server prints the file's path once it exists.
        guards::eventually("the empty server's file", || {
            server.expect_running()?;
            file = fs::read_to_string(&output)?;
            Ok(file.ends_with('\n'))
        })?;
        let device = LoopDevice::attach(Path::new(file.trim()), true)?;
        Ok(Box::new(Answers {
            target: Target::Device(device.path().to_owned()),
            _device: device,
            _server: server,
            _folder: folder,
        }))
    }
}

struct Answers {
    target: Target,
    _device: LoopDevice,
    _server: Process,
    _folder: Folder,
}

impl Subject for Answers {
    fn target(&self) -> &Target {
        &self.target
    }

    fn host_bytes(&self) -> anyhow::Result<u64> {
        Ok(0)
    }

    fn keeps_what_is_written(&self) -> bool {
        false
    }
}
