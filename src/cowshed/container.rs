//! `cowshed container …`: thin writable roots of images.

use super::console::{Console, output_error};
use super::failure::Usage;
use super::image;
use super::open_pool::OpenPool;
use super::output::{Column, time};
use super::place::{CopySide, HostPath};
use super::removal;
use super::size::{Size, human};
use super::streams::Output;
use anyhow::Context;
use clap::{Args, Subcommand};
use cowshed_format::base::{Name, printable_path};
use cowshed_host::{
    self as container, ContainerChange, CopyOptions, CreateContainer, CreatedContainer, Host,
};
use serde::{Deserialize, Serialize};
use std::io::{BufWriter, IsTerminal};
use std::path::Path;

/// `cowshed container …`
#[derive(Debug, Subcommand, Serialize, Deserialize)]
pub(super) enum ContainerCommand {
    /// Create a container: a writable root, cloned from an image
    Create(Create),
    /// `create --mount` as it is sent to the daemon: an older daemon refuses it, instead of
    /// creating a container without mounting it.
    #[command(skip)]
    CreateMounted(Create),
    /// Mount a container's root (needs the daemon)
    Mount(Mount),
    /// Unmount a container's root (needs the daemon)
    Unmount(One),
    /// List what a container added (A), changed (C) and deleted (D)
    Diff(One),
    /// Create an image from a container: its image plus one layer
    Commit(Commit),
    /// Copy files into or out of a container
    #[command(
        after_help = "With - the other side is a tar archive on the standard input or output.\n\n\
        Examples:\n  cowshed container cp web:/etc/nginx ./nginx\n  \
        cowshed container cp ./site web:/srv/site\n  \
        tar -c site | cowshed container cp - web:/srv"
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
    /// Mount it, too, and print the directory instead of the name (needs the daemon)
    #[arg(long)]
    #[serde(skip)]
    pub mount: bool,
    /// An existing directory to mount it at; otherwise one is made
    #[arg(long, requires = "mount", value_parser = HostPath::parser())]
    pub dir: Option<HostPath>,
}

/// `cowshed container mount`
#[derive(Debug, Args, Serialize, Deserialize)]
pub(super) struct Mount {
    /// The container, by name or id
    pub container: String,
    /// An existing directory to mount it at; otherwise one is made
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
    /// Copy what a symbolic link at the end of SRC leads to, and not the link
    #[arg(short = 'L', long)]
    #[serde(default)]
    pub follow_link: bool,
    /// Keep owners and modes, which is always done: for those who know the option of docker cp
    #[arg(short, long)]
    #[serde(skip)]
    pub archive: bool,
    /// What to copy: CONTAINER:PATH, a path here, or - for a tar archive on the standard input
    #[arg(value_name = "SRC", value_parser = CopySide::parser())]
    pub source: CopySide,
    /// Where to: CONTAINER:PATH, a path here, or - for a tar archive on the standard output
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

/// A container that was created and mounted.
#[derive(Serialize)]
struct CreatedMounted<'a> {
    id: String,
    name: String,
    path: &'a Path,
}

impl ContainerCommand {
    /// Returns the command in the form in which it is carried out, here or in the daemon.
    pub(super) fn into_request(self) -> Self {
        match self {
            Self::Create(new) if new.mount => Self::CreateMounted(new),
            command => command,
        }
    }
}

/// Runs a command on `open_pool`.
///
/// # Errors
/// Any error of `cowshed-host`.
pub(super) fn run(
    command: &ContainerCommand,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    match command {
        ContainerCommand::Create(new) => {
            let created = create(new, open_pool)?;
            console.result(&created, || created.name.clone())
        }
        ContainerCommand::CreateMounted(new) => create_mounted(new, open_pool, console),
        ContainerCommand::Mount(mount) => {
            let what = || format!("mount container {}", mount.container);
            open_pool.daemon_export().with_context(what)?;
            let dir = mount.dir.as_ref().map(HostPath::as_path);
            let mounted = open_pool
                .containers()
                .and_then(|host| Ok(host.containers().mount(&mount.container, dir)?))
                .with_context(what)?;
            console.result(&mounted, || mounted.path.display().to_string())
        }
        ContainerCommand::Unmount(one) => {
            let what = || format!("unmount container {}", one.container);
            open_pool.daemon_export().with_context(what)?;
            let unmounted = open_pool
                .containers()
                .and_then(|host| Ok(host.containers().unmount(&one.container)?))
                .with_context(what)?;
            console.result(&unmounted, String::new)
        }
        ContainerCommand::Diff(one) => diff(one, open_pool, console),
        ContainerCommand::Commit(new) => commit(new, open_pool, console),
        ContainerCommand::Cp(copied) => copy(copied, open_pool, console),
        ContainerCommand::Ls => list(open_pool, console),
        ContainerCommand::Rm(remove) => {
            let host = open_pool.containers().context("remove containers")?;
            removal::each(&remove.containers, "container", |name| {
                host.containers().remove(name)?;
                Ok(())
            })
            .show(console)
        }
    }
}

fn create(new: &Create, open_pool: &OpenPool) -> anyhow::Result<CreatedContainer> {
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
    open_pool
        .containers()
        .and_then(|host| Ok(host.containers().create(&new.image, &options)?))
        .with_context(what)
}

fn create_mounted(new: &Create, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let what = || format!("create a container of {} and mount it", new.image);
    open_pool.daemon_export().with_context(what)?;
    let host = open_pool.containers().with_context(what)?;
    let CreatedContainer { id, name } = create(new, open_pool)?;
    let dir = new.dir.as_ref().map(HostPath::as_path);
    let path = match host.containers().mount(&id, dir) {
        Ok(mounted) => mounted.path,
        // Another command has mounted it in the meantime.
        Err(error @ container::Error::MountedElsewhere { .. }) => return Err(error.into()),
        // A user who gets the error should have no container left to remove.
        Err(error) => {
            let failure = anyhow::Error::from(error).context(format!("mount container {name}"));
            return Err(match host.containers().remove(&id) {
                Ok(_) => failure,
                Err(left) => {
                    failure.context(format!("cannot remove container {name} again: {left}"))
                }
            });
        }
    };
    let path = path.as_path();
    let mounted = CreatedMounted { id, name, path };
    console.result(&mounted, || path.display().to_string())
}

fn list(open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let what = "list the containers";
    let containers = open_pool
        .containers()
        .and_then(|host| Ok(host.containers().list()?))
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

fn diff(one: &One, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let what = || format!("compare container {} with its image", one.container);
    let host = open_pool.containers().with_context(what)?;
    let changes = host.containers().diff(&one.container).with_context(what)?;
    console.result(&changes, || {
        let line = |change: &ContainerChange| {
            format!("{} {}\n", change.kind, printable_path(&change.path))
        };
        changes.iter().map(line).collect()
    })
}

fn commit(new: &Commit, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let what = || format!("commit container {}", new.container);
    let name = Name::new(&new.reference).with_context(what)?;
    let host = open_pool.containers().with_context(what)?;
    let created_by = format!("cowshed container commit {}", new.container);
    let image = host
        .containers()
        .commit(&new.container, &name, Some(&created_by))
        .map_err(|error| host.mounts().explain(error))
        .with_context(what)?;
    image::show_imported(&image, console)
}

fn copy(copied: &Copy, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let what = || format!("copy {} to {}", copied.source, copied.target);
    let host = open_pool.containers().with_context(what)?;
    let options = CopyOptions {
        follow_link: copied.follow_link,
    };
    let report = match (&copied.source, &copied.target) {
        (CopySide::Pipe, CopySide::Container { container, path }) => {
            let input = console.input().with_context(what)?;
            host.containers()
                .copy_in(Box::new(input), container, Path::new(path))
        }
        (CopySide::Container { container, path }, CopySide::Pipe) => {
            return copy_to_pipe(&host, container, path, options, console).with_context(what);
        }
        (source, target) => match (source.to_room(), target.to_room()) {
            (Some(source), Some(target)) => host.containers().copy_with(&source, &target, options),
            _ => Err(container::Error::CopySides),
        },
    };
    let report = report
        .map_err(|error| host.mounts().explain(error))
        .with_context(what)?;
    console.result(&report, String::new)
}

fn copy_to_pipe(
    host: &Host,
    container: &str,
    path: &str,
    options: CopyOptions,
    console: &Console,
) -> anyhow::Result<()> {
    if console.style().json {
        return Err(Usage("--json and - cannot both use the standard output".to_owned()).into());
    }
    let output = console.output();
    if output.is_terminal() {
        let why = "a tar archive cannot be written to a terminal; redirect the output to a file \
                   or a pipe";
        return Err(Usage(why.to_owned()).into());
    }
    let output = Output::new(output, console.cancel()).map_err(output_error)?;
    let output = BufWriter::new(output);
    let (output, _) = host
        .containers()
        .copy_out(container, Path::new(path), options, output)?;
    output
        .into_inner()
        .map_err(|error| output_error(error.into_error()))?;
    Ok(())
}
