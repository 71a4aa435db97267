//! `cowshed setup …`: makes the changes to a host's configuration that the documents describe, and
//! undoes them.
//!
//! It changes files alone: it starts, stops and reloads nothing, because a restart of Docker or
//! containerd is its user's decision. What to do next is printed.
//!
//! | module | what |
//! |---|---|
//! | [`files`] | planning and making changes, keeping and restoring old files |
//! | [`containerd`], [`docker`], [`environment`] | what is set in the files of others, and taken out again |
//! | [`units`] | files and links of our own for systemd |
//! | [`json_text`], [`difference`] | changing JSON in its text; showing what differs |
//!
//! `setup docker` does what `setup containerd` does, too: Docker uses the containerd of the host.
//! A comment says for whom containerd's file was changed, so that undoing it for Docker leaves it
//! to whoever asked for it by itself.

pub(super) mod containerd;
mod difference;
pub(super) mod docker;
mod environment;
mod files;
mod json_text;
mod next;
pub(super) mod units;

use super::arguments::place;
use super::console::Console;
use super::failure::Usage;
use super::in_time::in_time;
use super::open::DEFAULT_POOL;
use anyhow::Context;
use clap::{Args, Subcommand};
use containerd::Version;
use cowshed_daemon::request::HostPath;
use cowshed_format::base::printable_path;
use cowshed_oci::Platform;
use cowshed_sys::program;
use files::{Action, Change, Content, Root, Wanted};
use std::path::Path;
use units::Units;

/// The usual socket of cowshed's services for containerd.
const SOCKET: &str = "/run/cowshed/containerd.sock";
/// containerd's usual socket.
const ADDRESS: &str = "/run/containerd/containerd.sock";
/// The usual folder of the volumes when containerd uses them.
const VOLUMES: &str = "/var/lib/cowshed/volumes";

/// What is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Containerd,
    Docker,
    Systemd,
}

impl Target {
    const fn word(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Docker => "docker",
            Self::Systemd => "systemd",
        }
    }
}

/// `cowshed setup …`
#[derive(Debug, Subcommand)]
pub(super) enum Setup {
    /// Have containerd keep snapshots in the pool
    #[command(
        after_help = "It changes /etc/containerd/config.toml, the daemon's options in \
        /etc/default/cowshed, and has systemd start the daemon before containerd. An old file is \
        kept as FILE.before-cowshed. Nothing is restarted.\n\nExamples:\n  \
        cowshed setup containerd --dry-run\n  cowshed setup containerd\n  \
        cowshed setup containerd --undo"
    )]
    Containerd(SetupContainerd),
    /// Have Docker keep images and containers in the pool
    #[command(
        after_help = "It does what `cowshed setup containerd` does, too, and changes \
        /etc/docker/daemon.json. Images and containers of another storage driver are not shown \
        while this one is in use, and not lost. An old file is kept as FILE.before-cowshed. \
        Nothing is restarted.\n\nExamples:\n  cowshed setup docker --dry-run\n  \
        cowshed setup docker\n  cowshed setup docker --undo"
    )]
    Docker(SetupDocker),
    /// Have systemd start the daemon at boot
    #[command(
        after_help = "It writes the units of the pool's daemon to /etc/systemd/system, \
        unless a package has brought them, and enables them. Nothing is started.\n\nExamples:\n  \
        cowshed setup systemd\n  cowshed --pool /srv/pools/a setup systemd\n  \
        cowshed setup systemd --undo"
    )]
    Systemd(How),
}

/// How files are changed.
#[derive(Clone, Debug, Args)]
pub(super) struct How {
    /// Change nothing; show what would be changed
    #[arg(long)]
    pub dry_run: bool,
    /// Take the changes back: restore the old files, or where one was edited since, take out only
    /// what was set
    #[arg(long)]
    pub undo: bool,
    /// Change the files below this directory instead of /, for images of hosts
    #[arg(long, value_name = "DIR", value_parser = place::path())]
    pub root: Option<HostPath>,
}

/// What containerd and the daemon are to know of each other.
#[derive(Clone, Debug, Args)]
pub(super) struct Link {
    /// The socket on which the daemon serves containerd [default: that of the daemon's options, or
    /// /run/cowshed/containerd.sock]
    #[arg(long, value_name = "PATH", value_parser = place::path())]
    pub containerd_socket: Option<HostPath>,
    /// The socket of containerd [default: that of the daemon's options, or
    /// /run/containerd/containerd.sock]
    #[arg(long, value_name = "PATH", value_parser = place::path())]
    pub containerd_address: Option<HostPath>,
    /// The directory of the volumes [default: that of the daemon's options, or
    /// /var/lib/cowshed/volumes]
    #[arg(long, value_name = "DIR", value_parser = place::path())]
    pub mount: Option<HostPath>,
    /// The version of containerd to configure [default: that of the installed one; with --root, what
    /// every version takes]
    #[arg(long, value_name = "VERSION", value_parser = version)]
    pub containerd_version: Option<Version>,
}

/// `cowshed setup containerd`
#[derive(Clone, Debug, Args)]
pub(super) struct SetupContainerd {
    #[command(flatten)]
    pub how: How,
    #[command(flatten)]
    pub link: Link,
    /// Have pods of Kubernetes use cowshed, too: make it the snapshotter of the CRI plugin
    #[arg(long)]
    pub pods: bool,
}

/// `cowshed setup docker`
#[derive(Clone, Debug, Args)]
pub(super) struct SetupDocker {
    #[command(flatten)]
    pub how: How,
    #[command(flatten)]
    pub link: Link,
}

/// The first version of Docker whose containerd image store takes other snapshotters well.
pub(super) const DOCKER_MIN: u32 = 26;

/// Parses a version such as `1.7.24` or `v2.1.0-rc.1`.
fn version(text: &str) -> Result<Version, String> {
    let mut numbers = text.trim_start_matches('v').split(['.', '~', '-', '+']);
    let mut number = || numbers.next().and_then(|it| it.parse().ok());
    match (number(), number()) {
        (Some(major), Some(minor)) => Ok((major, minor)),
        _ => Err("a version has two numbers at least, as 1.7".to_owned()),
    }
}

/// Returns the version of an installed program that prints it as this word of its first line;
/// `unknown` if it does not print anything in time.
pub(super) fn installed_version(name: &'static str, word: usize) -> Option<String> {
    let ask = move || program::command(name).arg("--version").output();
    let Some(output) = in_time(ask) else {
        return Some("unknown".to_owned());
    };
    let output = output.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = text.split_whitespace().nth(word)?;
    Some(found.trim_end_matches(',').to_owned())
}

/// Returns the version of the installed containerd as it prints it.
pub(super) fn installed_containerd() -> Option<String> {
    installed_version("containerd", 2)
}

/// Returns the first two numbers of a version that a program prints.
pub(super) fn numbers(version_text: &str) -> Option<Version> {
    version(version_text).ok()
}

/// Sets up, or undoes it.
///
/// # Errors
/// When a file cannot be changed; if planning fails, nothing was.
pub(super) fn run(setup: &Setup, pool: Option<&HostPath>, console: &Console) -> anyhow::Result<()> {
    let (target, how, link, pods) = match setup {
        Setup::Containerd(it) => (Target::Containerd, &it.how, Some(&it.link), it.pods),
        Setup::Docker(it) => (Target::Docker, &it.how, Some(&it.link), false),
        Setup::Systemd(how) => (Target::Systemd, how, None, false),
    };
    let usual = HostPath::new(DEFAULT_POOL)?;
    let host = Host {
        root: Root::new(how.root.as_ref().map_or(Path::new("/"), HostPath::as_path)),
        pool: pool.unwrap_or(&usual).clone(),
        units: Units::of(pool.unwrap_or(&usual), DEFAULT_POOL),
        target,
    };
    host.check(how)?;
    let wanted = host.wanted(link, pods, how.undo)?;
    let plans = wanted.iter().map(|wanted| host.root.plan(wanted, how.undo));
    let plans: Vec<Change> = plans
        .collect::<anyhow::Result<_>>()
        .with_context(|| format!("set up {}; nothing was changed", target.word()))?;
    if !how.dry_run {
        plans.iter().try_for_each(Change::make)?;
    }
    console.result(&plans, || shown(&plans, how.dry_run))?;
    let is_changed = plans.iter().any(|plan| plan.action != Action::Unchanged);
    for line in host.next(is_changed, how, link)? {
        console.message(&line);
    }
    Ok(())
}

/// The host, or a folder that stands for one.
struct Host {
    root: Root,
    pool: HostPath,
    units: Units,
    target: Target,
}

impl Host {
    /// Returns an error for what cannot work.
    fn check(&self, how: &How) -> anyhow::Result<()> {
        if let Some(root) = how.root.as_ref().filter(|root| !root.as_path().is_dir()) {
            anyhow::bail!("--root {root}: there is no such directory");
        }
        let is_root = nix::unistd::geteuid().is_root();
        if self.root.is_host() && !is_root && !how.dry_run {
            let what = "setup changes files of the host: run it as root, or see what it would \
                        change with --dry-run";
            return Err(Usage(what.to_owned()).into());
        }
        if self.target == Target::Systemd && !units::has_systemd(&self.root) && !how.undo {
            anyhow::bail!("there is no systemd; have `cowshed serve` started in another way");
        }
        if let Some(found) = self.old_docker()
            && !how.undo
            && !how.dry_run
        {
            anyhow::bail!(
                "this is Docker {found}, which cannot use cowshed: {DOCKER_MIN} or later can; \
                 nothing was changed"
            );
        }
        let keeps_docker = self.target == Target::Containerd && how.undo;
        if keeps_docker && self.docker_is_set()? {
            anyhow::bail!("Docker keeps its images there: run `cowshed setup docker --undo` first");
        }
        Ok(())
    }

    /// Returns the version of the host's Docker, if that is to be set up and too old.
    fn old_docker(&self) -> Option<String> {
        if self.target != Target::Docker || !self.root.is_host() {
            return None;
        }
        installed_version("dockerd", 2)
            .filter(|found| numbers(found).is_some_and(|(major, _)| major < DOCKER_MIN))
    }

    fn docker_is_set(&self) -> anyhow::Result<bool> {
        let text = self.root.read(Path::new(docker::FILE))?;
        Ok(text.is_some_and(|text| docker::is_set(&text)))
    }

    /// Returns the files with what is to be in them.
    fn wanted(
        &self,
        link: Option<&Link>,
        pods: bool,
        undo: bool,
    ) -> anyhow::Result<Vec<Wanted<'static>>> {
        let Some(link) = link else {
            return Ok(self.units.wanted(&self.root));
        };
        let has_systemd = units::has_systemd(&self.root);
        let mut of_docker = Vec::new();
        if self.target == Target::Docker {
            of_docker.push(Wanted {
                path: docker::FILE.into(),
                content: Content::Settings(
                    Box::new(|text| Ok(docker::set(text)?)),
                    Box::new(|text, before| Ok(docker::unset(text, before)?)),
                    |_| false,
                ),
            });
            if has_systemd {
                of_docker.push(self.units.before_docker());
            }
        }
        let config = self.root.read(Path::new(containerd::FILE))?;
        let changed_for = config.and_then(|text| containerd::changed_for(&text));
        if undo && self.target == Target::Docker && changed_for != Some(Target::Docker) {
            // It was asked for by itself.
            return Ok(of_docker);
        }
        let of_containerd = self.wanted_of_containerd(link, pods, has_systemd)?;
        // Docker's configuration needs containerd's: it comes last, and goes first.
        let (first, last) = if undo {
            (of_docker, of_containerd)
        } else {
            (of_containerd, of_docker)
        };
        Ok(first.into_iter().chain(last).collect())
    }

    fn wanted_of_containerd(
        &self,
        link: &Link,
        pods: bool,
        has_systemd: bool,
    ) -> anyhow::Result<Vec<Wanted<'static>>> {
        let environment = self.units.environment();
        let present = self.root.read(&environment)?.unwrap_or_default();
        let path = |given: &Option<HostPath>, name: &str, usual: &str| {
            let given = given.as_ref().map(ToString::to_string);
            let known = match &given {
                Some(_) => given,
                None => environment::option(&present, name)
                    .with_context(|| printable_path(&environment))?,
            };
            anyhow::Ok(known.unwrap_or_else(|| usual.to_owned()))
        };
        let socket = path(&link.containerd_socket, "--containerd-socket", SOCKET)?;
        let address = path(&link.containerd_address, "--containerd-address", ADDRESS)?;
        let volumes = path(&link.mount, "--mount", VOLUMES)?;
        for path in [&socket, &address, &volumes] {
            if path.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\')) {
                let what = format!(
                    "{path} has a blank or a quote, which the daemon's options cannot have"
                );
                return Err(Usage(what).into());
            }
        }
        let options = containerd::Options {
            version: self.containerd_version(link),
            socket: socket.clone(),
            volumes: volumes.clone(),
            platform: platform(),
            pods,
            target: self.target,
        };
        let mut all = vec![Wanted {
            path: containerd::FILE.into(),
            content: Content::Settings(
                Box::new(move |text| Ok(containerd::set(text, &options)?)),
                Box::new(|text, before| Ok(containerd::unset(text, before)?)),
                |text| containerd::changed_for(text).is_some(),
            ),
        }];
        if has_systemd {
            let options = [
                ("--containerd-socket", socket),
                ("--containerd-address", address),
                ("--mount", volumes),
            ];
            let names = ["--containerd-socket", "--containerd-address", "--mount"];
            all.push(Wanted {
                path: environment,
                content: Content::Settings(
                    Box::new(move |text| Ok(environment::set(text, &options)?)),
                    Box::new(move |text, before| Ok(environment::unset(text, before, &names)?)),
                    |_| false,
                ),
            });
            all.push(self.units.before_containerd());
        }
        Ok(all)
    }

    /// Returns the version of containerd that will read its file, if it is known.
    fn containerd_version(&self, link: &Link) -> Option<Version> {
        // A program below another root is not this host's to run.
        let installed = || {
            let text = installed_containerd().filter(|_| self.root.is_host())?;
            numbers(&text)
        };
        link.containerd_version.or_else(installed)
    }
}

/// Returns this host's platform as containerd's configuration names it. What processors have beyond
/// the base of their architecture makes a difference to images of arm alone.
fn platform() -> String {
    let whole = Platform::host().to_string();
    let names: Vec<&str> = whole.split('/').collect();
    match *names {
        [_, "arm", _] => whole,
        [system, architecture, ..] => format!("{system}/{architecture}"),
        _ => whole,
    }
}

/// Returns a line for each file, and before a change the lines that would differ.
fn shown(plans: &[Change], dry_run: bool) -> String {
    let mut lines = Vec::new();
    if dry_run && !plans.is_empty() {
        lines.push("nothing is changed; without --dry-run:".to_owned());
    }
    for plan in plans {
        let file = printable_path(&plan.file);
        let action = plan.action.word();
        let kept = plan.kept.as_ref().map(|kept| printable_path(kept));
        let kept = kept.map_or(String::new(), |kept| format!(" (the old one: {kept})"));
        lines.push(format!("{action:<9}  {file}{kept}"));
        if dry_run {
            let differing = difference::difference(&plan.old, &plan.new);
            lines.extend(differing.into_iter().map(|line| format!("    {line}")));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_programs_print_them() {
        assert_eq!(version("1.7.24~ds1"), Ok((1, 7)));
        assert_eq!(version("v2.1.0-rc.1"), Ok((2, 1)));
        assert_eq!(version("26.1.5+dfsg1"), Ok((26, 1)));
        assert_eq!(version("1.6"), Ok((1, 6)));
        assert!(version("2").is_err() && version("new").is_err());
    }
}
