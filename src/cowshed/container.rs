//! `cowshed container …`: thin writable roots of images.

use super::console::{Console, output_error};
use super::failure::Usage;
use super::image;
use super::output::{Column, time};
use super::removal;
use super::streams::Output;
use super::transfer;
use anyhow::Context;
use cowshed_daemon::open_pool::OpenPool;
use cowshed_daemon::request::CopySide;
use cowshed_daemon::request::container::{Command, Copy, Create, MountAt};
use cowshed_format::base::size::human;
use cowshed_format::base::{Name, printable_path};
use cowshed_host::transfer::Chosen;
use cowshed_host::{
    self as container, ContainerChange, CopyOptions, CreateContainer, CreatedContainer, Host,
};
use serde::Serialize;
use std::io::{BufWriter, IsTerminal};
use std::path::Path;

/// A container that was created and mounted.
#[derive(Serialize)]
struct CreatedMounted<'a> {
    id: String,
    name: String,
    path: &'a Path,
}

/// Runs a command on `open_pool`.
///
/// # Errors
/// Any error of `cowshed-host`.
pub(super) fn run(
    command: &Command,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    match command {
        Command::Create(new) => match &new.mount {
            Some(at) => create_mounted(new, at, open_pool, console),
            None => {
                let created = create(new, open_pool)?;
                console.result(&created, || created.name.clone())
            }
        },
        Command::Mount { container, at } => {
            let what = || format!("mount container {container}");
            open_pool.daemon_export().with_context(what)?;
            let mounted = open_pool
                .containers()
                .and_then(|host| Ok(host.containers().mount(container, at.folder())?))
                .with_context(what)?;
            console.result(&mounted, || mounted.path.display().to_string())
        }
        Command::Unmount { container } => {
            let what = || format!("unmount container {container}");
            open_pool.daemon_export().with_context(what)?;
            let unmounted = open_pool
                .containers()
                .and_then(|host| Ok(host.containers().unmount(container)?))
                .with_context(what)?;
            console.result(&unmounted, String::new)
        }
        Command::Diff { container } => diff(container, open_pool, console),
        Command::Commit { container, image } => commit(container, image, open_pool, console),
        Command::Send {
            containers,
            options,
        } => transfer::send_set(Chosen::Containers(containers), options, open_pool, console),
        Command::Receive(receive) => transfer::receive(receive, open_pool, console),
        Command::Copy(copied) => copy(copied, open_pool, console),
        Command::List => list(open_pool, console),
        Command::Remove { containers } => {
            let host = open_pool.containers().context("remove containers")?;
            removal::each(containers, "container", |name| {
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
        size_bytes: new.size_bytes,
        root: new.root,
    };
    open_pool
        .containers()
        .and_then(|host| Ok(host.containers().create(&new.image, &options)?))
        .with_context(what)
}

fn create_mounted(
    new: &Create,
    at: &MountAt,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    let what = || format!("create a container of {} and mount it", new.image);
    open_pool.daemon_export().with_context(what)?;
    let host = open_pool.containers().with_context(what)?;
    let CreatedContainer { id, name } = create(new, open_pool)?;
    let path = match host.containers().mount(&id, at.folder()) {
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
            Column::Text("ROOT"),
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
                container.root.as_str().to_owned(),
                human(container.own_bytes),
                human(container.virtual_bytes),
                time(container.created),
                mounted.unwrap_or_default(),
            ]
        });
        console.table(&columns, rows)
    })
}

fn diff(name: &str, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let what = || format!("compare container {name} with its image");
    let host = open_pool.containers().with_context(what)?;
    let changes = host.containers().diff(name).with_context(what)?;
    console.result(&changes, || {
        let line = |change: &ContainerChange| {
            format!("{} {}\n", change.kind, printable_path(&change.path))
        };
        changes.iter().map(line).collect()
    })
}

fn commit(
    container: &str,
    image: &str,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    let what = || format!("commit container {container}");
    let name = Name::new(image).with_context(what)?;
    let host = open_pool.containers().with_context(what)?;
    let created_by = format!("cowshed container commit {container}");
    let image = host
        .containers()
        .commit(container, &name, Some(&created_by))
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
        (source, target) => match (source.on_host(), target.on_host()) {
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
