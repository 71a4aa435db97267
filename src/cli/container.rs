//! `cowshed container …`: thin writable roots of images.

use super::console::Console;
use super::image;
use super::output::{Column, time};
use super::place::{CopySide, HostPath};
use super::removal;
use super::shed::Shed;
use super::size::{Size, human};
use crate::base::Name;
use crate::container::{self, ContainerChange, CreateContainer, CreatedContainer};
use anyhow::Context;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `cowshed container …`
#[derive(Debug, Subcommand, Serialize, Deserialize)]
pub(super) enum ContainerCommand {
    /// Make a container: a writable root that begins as its image
    Create(Create),
    /// `create --mount` on its way to the daemon: an older one refuses it, where it would make a
    /// container and not mount it.
    #[command(skip)]
    CreateMounted(Create),
    /// Mount a container's root (needs the daemon)
    Mount(Mount),
    /// Unmount a container's root (needs the daemon)
    Unmount(One),
    /// List what a container added (A), changed (C) and deleted (D)
    Diff(One),
    /// Make an image of a container: its image and one layer more
    Commit(Commit),
    /// Copy files into or out of a container
    #[command(
        after_help = "Examples:\n  cowshed container cp web:/etc/nginx ./nginx\n  \
        cowshed container cp ./site web:/srv/site"
    )]
    Cp(Copy),
    /// List all containers
    Ls,
    /// Remove containers; those that are mounted are unmounted
    Rm(Remove),
}

/// `cowshed container create`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Create {
    /// The image, by name or id
    pub image: String,
    /// The container's name; otherwise one is made up
    #[arg(long)]
    pub name: Option<String>,
    /// The size of its file system; otherwise the image's
    #[arg(long)]
    pub size: Option<Size>,
    /// Mount it, too, and print the folder instead of the name (needs the daemon)
    #[arg(long)]
    #[serde(skip)]
    pub mount: bool,
    /// An existing folder to mount it at; otherwise one is made
    #[arg(long, requires = "mount", value_parser = HostPath::parser())]
    pub dir: Option<HostPath>,
}

/// `cowshed container mount`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Mount {
    /// The container, by name or id
    pub container: String,
    /// An existing folder to mount it at; otherwise one is made
    #[arg(value_parser = HostPath::parser())]
    pub dir: Option<HostPath>,
}

/// One container.
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct One {
    /// The container, by name or id
    pub container: String,
}

/// `cowshed container commit`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Commit {
    /// The container, by name or id
    pub container: String,
    /// The new image's name
    #[arg(value_name = "REF")]
    pub reference: String,
}

/// `cowshed container cp`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Copy {
    /// What to copy: CONTAINER:PATH, or a path here
    #[arg(value_name = "SRC", value_parser = CopySide::parser())]
    pub source: CopySide,
    /// Where to: CONTAINER:PATH, or a path here
    #[arg(value_name = "DST", value_parser = CopySide::parser())]
    pub target: CopySide,
}

/// `cowshed container rm`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Remove {
    /// The containers, by name or id
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// A container that was made and mounted.
#[derive(Serialize)]
struct CreatedMounted<'a> {
    id: String,
    name: String,
    path: &'a Path,
}

impl ContainerCommand {
    /// The command as it goes to where it is carried out, here or in the daemon.
    pub(super) fn into_request(self) -> Self {
        match self {
            Self::Create(new) if new.mount => Self::CreateMounted(new),
            command => command,
        }
    }
}

/// Runs a command on the open pool of `shed`.
///
/// # Errors
/// What the room of containers says.
pub(super) fn run(
    command: &ContainerCommand,
    shed: &Shed,
    console: &Console,
) -> anyhow::Result<()> {
    match command {
        ContainerCommand::Create(new) => {
            let created = create(new, shed)?;
            console.result(&created, || created.name.clone())
        }
        ContainerCommand::CreateMounted(new) => create_mounted(new, shed, console),
        ContainerCommand::Mount(mount) => {
            let what = || format!("mount container {}", mount.container);
            shed.daemon_export().with_context(what)?;
            let dir = mount.dir.as_ref().map(HostPath::as_path);
            let mounted = shed
                .containers()
                .and_then(|host| Ok(host.mount_container(&mount.container, dir)?))
                .with_context(what)?;
            console.result(&mounted, || mounted.path.display().to_string())
        }
        ContainerCommand::Unmount(one) => {
            let what = || format!("unmount container {}", one.container);
            shed.daemon_export().with_context(what)?;
            let unmounted = shed
                .containers()
                .and_then(|host| Ok(host.unmount_container(&one.container)?))
                .with_context(what)?;
            console.result(&unmounted, String::new)
        }
        ContainerCommand::Diff(one) => diff(one, shed, console),
        ContainerCommand::Commit(new) => commit(new, shed, console),
        ContainerCommand::Cp(copied) => copy(copied, shed, console),
        ContainerCommand::Ls => list(shed, console),
        ContainerCommand::Rm(remove) => {
            let host = shed.containers().context("remove containers")?;
            removal::each(&remove.containers, "container", |name| {
                host.remove_container(name)?;
                Ok(())
            })
            .show(console)
        }
    }
}

fn create(new: &Create, shed: &Shed) -> anyhow::Result<CreatedContainer> {
    let what = || format!("create a container of {}", new.image);
    let name = new
        .name
        .as_deref()
        .map(Name::new)
        .transpose()
        .with_context(what)?;
    let options = CreateContainer {
        name,
        size_bytes: new.size.map(|size| size.0),
    };
    shed.containers()
        .and_then(|host| Ok(host.create_container(&new.image, &options)?))
        .with_context(what)
}

fn create_mounted(new: &Create, shed: &Shed, console: &Console) -> anyhow::Result<()> {
    let what = || format!("create a container of {} and mount it", new.image);
    shed.daemon_export().with_context(what)?;
    let host = shed.containers().with_context(what)?;
    let CreatedContainer { id, name } = create(new, shed)?;
    let dir = new.dir.as_ref().map(HostPath::as_path);
    let path = match host.mount_container(&id, dir) {
        Ok(mounted) => mounted.path,
        // Somebody else was quicker, and has it now.
        Err(error @ container::Error::MountedElsewhere { .. }) => return Err(error.into()),
        // Whoever is told that it failed has nothing to remove.
        Err(error) => {
            let failure = anyhow::Error::from(error).context(format!("mount container {name}"));
            return Err(match host.remove_container(&id) {
                Ok(_) => failure,
                Err(left) => failure.context(format!("container {name} is left: {left}")),
            });
        }
    };
    let path = path.as_path();
    let mounted = CreatedMounted { id, name, path };
    console.result(&mounted, || path.display().to_string())
}

fn list(shed: &Shed, console: &Console) -> anyhow::Result<()> {
    let what = "list the containers";
    let containers = shed
        .containers()
        .and_then(|host| Ok(host.containers()?))
        .context(what)?;
    console.result(&containers, || {
        let columns = [
            Column::Text("NAME"),
            Column::Text("ID"),
            Column::Text("IMAGE"),
            Column::Number("OWN"),
            Column::Number("VIRTUAL"),
            Column::Text("CREATED"),
            Column::Text("MOUNTED"),
        ];
        let rows = containers.iter().map(|container| {
            let mounted = container
                .mounted
                .as_ref()
                .map(|path| path.display().to_string());
            vec![
                container.name.clone(),
                image::short(&container.id),
                image::short(&container.image),
                human(container.own_bytes),
                human(container.virtual_bytes),
                time(container.created),
                mounted.unwrap_or_default(),
            ]
        });
        console.table(&columns, rows)
    })
}

fn diff(one: &One, shed: &Shed, console: &Console) -> anyhow::Result<()> {
    let what = || format!("compare container {} with its image", one.container);
    let host = shed.containers().with_context(what)?;
    let changes = host.diff_container(&one.container).with_context(what)?;
    console.result(&changes, || {
        let line =
            |change: &ContainerChange| format!("{} {}\n", change.kind, change.path.display());
        changes.iter().map(line).collect()
    })
}

fn commit(new: &Commit, shed: &Shed, console: &Console) -> anyhow::Result<()> {
    let what = || format!("commit container {}", new.container);
    let name = Name::new(&new.reference).with_context(what)?;
    let host = shed.containers().with_context(what)?;
    let created_by = format!("cowshed container commit {}", new.container);
    let image = host
        .commit_container(&new.container, &name, Some(&created_by))
        .map_err(|error| host.explain(error))
        .with_context(what)?;
    image::show_imported(&image, console)
}

fn copy(copied: &Copy, shed: &Shed, console: &Console) -> anyhow::Result<()> {
    let what = || format!("copy {} to {}", copied.source, copied.target);
    let (source, target) = (copied.source.to_room(), copied.target.to_room());
    let host = shed.containers().with_context(what)?;
    let report = host
        .copy(&source, &target)
        .map_err(|error| host.explain(error))
        .with_context(what)?;
    console.result(&report, String::new)
}
