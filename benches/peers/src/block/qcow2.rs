//! qcow2 images: exported by qemu-storage-daemon as a FUSE file with a loop device on it, and by
//! qemu-nbd to fio's own NBD client.

use super::qmp::Qmp;
use super::{Peer, Place, Subject};
use crate::fio::{self, Target};
use crate::guards::{self, Folder, LoopDevice, Process};
use crate::host::{self, Ran, run, text};
use serde_json::json;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

const NODE: &str = "image";

pub(crate) struct Qcow2 {
    nbd: bool,
}

impl Qcow2 {
    pub(crate) fn fuse() -> Self {
        Self { nbd: false }
    }

    pub(crate) fn nbd() -> Self {
        Self { nbd: true }
    }
}

impl Peer for Qcow2 {
    fn name(&self) -> &str {
        if self.nbd { "qcow2 (NBD)" } else { "qcow2" }
    }

    fn what(&self) -> String {
        if self.nbd {
            "a qcow2 image exported by qemu-nbd, to fio's NBD client, through the host's \
            page cache: no block device"
                .into()
        } else {
            "a qcow2 image exported over FUSE by qemu-storage-daemon, with a loop device on the \
            file; snapshots are internal ones, taken through its control socket; \
            through the host's page cache"
                .into()
        }
    }

    fn missing(&self) -> Option<String> {
        let image = ("qemu-img", "qemu-utils");
        if !self.nbd {
            let daemon = ("qemu-storage-daemon", "qemu-system-common");
            return host::missing_programs(&[image, daemon])
                .or_else(|| host::missing_file_system("fuse"))
                .or_else(lacks_fuse_export);
        }
        host::missing_programs(&[image, ("qemu-nbd", "qemu-utils")])
            .or_else(|| (!fio::has_engine("nbd")).then(|| "this fio has no engine nbd".into()))
    }

    fn has_snapshots(&self) -> bool {
        !self.nbd
    }

    fn prepare(&self, place: &Place) -> anyhow::Result<Box<dyn Subject>> {
        let folder = Folder::at(place.folder.join(place.name))?;
        let image = folder.join("disk.qcow2");
        let size = place.size_bytes.to_string();
        run(
            "qemu-img",
            ["create", "-q", "-f", "qcow2", text(&image)?, &size],
        )?;
        if self.nbd {
            nbd(folder, image)
        } else {
            fuse(folder, image)
        }
    }
}

fn lacks_fuse_export() -> Option<String> {
    let help = run("qemu-storage-daemon", ["--help"]).ok()?.output;
    (!help.contains("type=]fuse")).then(|| "this qemu-storage-daemon has no FUSE export".into())
}

/// Starts a server with its output in a file of the folder.
fn serve(program: &str, arguments: &[String], folder: &Folder) -> anyhow::Result<Process> {
    let log = File::create(folder.join("log"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Process::start(&mut command)
}

fn nbd(folder: Folder, image: PathBuf) -> anyhow::Result<Box<dyn Subject>> {
    let socket = folder.join("nbd");
    let arguments = [
        format!("--socket={}", socket.display()),
        "--format=qcow2".into(),
        "--persistent".into(),
        "--discard=unmap".into(),
        image.display().to_string(),
    ];
    let mut server = serve("qemu-nbd", &arguments, &folder)?;
    guards::eventually("qemu-nbd's socket", || {
        server.expect_running()?;
        Ok(socket.exists())
    })?;
    Ok(Box::new(Served {
        target: Target::Nbd(socket),
        control: None,
        _device: None,
        _server: server,
        image,
        _folder: folder,
    }))
}

fn fuse(folder: Folder, image: PathBuf) -> anyhow::Result<Box<dyn Subject>> {
    let (export, control) = (folder.join("export"), folder.join("control"));
    File::create(&export)?;
    let options = [
        (
            "--blockdev",
            format!(
                "driver=file,filename={},node-name=file,discard=unmap",
                image.display()
            ),
        ),
        (
            "--blockdev",
            format!("driver=qcow2,file=file,node-name={NODE},discard=unmap"),
        ),
        (
            "--export",
            format!(
                "type=fuse,id=export,node-name={NODE},mountpoint={},writable=on",
                export.display()
            ),
        ),
        (
            "--chardev",
            format!(
                "socket,id=control,server=on,wait=off,path={}",
                control.display()
            ),
        ),
        ("--monitor", "chardev=control".into()),
    ];
    let arguments: Vec<_> = options
        .into_iter()
        .flat_map(|(option, value)| [option.to_owned(), value])
        .collect();
    let mut server = serve("qemu-storage-daemon", &arguments, &folder)?;
    guards::eventually("qemu-storage-daemon's export", || {
        server.expect_running()?;
        Ok(export.metadata()?.len() > 0 && control.exists())
    })?;
    let device = LoopDevice::attach(&export, true)?;
    Ok(Box::new(Served {
        target: Target::Device(device.path().to_owned()),
        control: Some(Qmp::connect(&control)?),
        _device: Some(device),
        _server: server,
        image,
        _folder: folder,
    }))
}

struct Served {
    target: Target,
    control: Option<Qmp>,
    _device: Option<LoopDevice>,
    _server: Process,
    image: PathBuf,
    _folder: Folder,
}

impl Served {
    fn call(&mut self, command: &str, name: &str) -> anyhow::Result<Ran> {
        crate::signals::go_on()?;
        let Some(control) = &mut self.control else {
            anyhow::bail!("it has no snapshots")
        };
        let started = Instant::now();
        control.call(command, &json!({ "device": NODE, "name": name }))?;
        Ok(Ran {
            output: String::new(),
            took: started.elapsed(),
        })
    }
}

impl Subject for Served {
    fn target(&self) -> &Target {
        &self.target
    }

    fn snapshot(&mut self, name: &str) -> anyhow::Result<Ran> {
        self.call("blockdev-snapshot-internal-sync", name)
    }

    fn remove_snapshot(&mut self, name: &str) -> anyhow::Result<Ran> {
        self.call("blockdev-snapshot-delete-internal-sync", name)
    }

    fn host_bytes(&self) -> anyhow::Result<u64> {
        host::allocated_bytes(&self.image)
    }

    fn snapshot_unserved(self: Box<Self>, name: &str) -> Option<anyhow::Result<Ran>> {
        let Self {
            target: _,
            control,
            _device: device,
            _server: server,
            image,
            _folder: folder,
        } = *self;
        drop((control, device, server));
        let taken = text(&image).and_then(|image| run("qemu-img", ["snapshot", "-c", name, image]));
        drop(folder);
        Some(taken)
    }
}
