//! What the user is to do once files were changed, in the order in which it works.

use super::docker;
use super::units::{self, PROGRAMS};
use super::{DOCKER_MIN, Host, How, Link, Target, installed_containerd, installed_version};
use cowshed_daemon::request::HostPath;
use std::path::Path;

impl Host {
    /// Returns the lines to print.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn next(
        &self,
        is_changed: bool,
        how: &How,
        link: Option<&Link>,
    ) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        if !how.undo {
            lines.extend(self.notes()?);
        }
        if !is_changed || how.dry_run {
            return Ok(lines);
        }
        if !self.root.is_host() {
            return Ok(lines);
        }
        lines.extend(self.left_behind(how.undo).map(str::to_owned));
        let commands = if how.undo {
            self.after_undo()
        } else {
            self.after(link)
        };
        let mut steps = Vec::new();
        if !commands.is_empty() {
            steps.push(commands.join(" && "));
        }
        if !units::has_running_systemd(&self.root) {
            steps.extend(self.restarts().map(str::to_owned));
        }
        if !steps.is_empty() {
            lines.push(format!("Next: {}", steps.join(", and then ")));
        }
        Ok(lines)
    }

    /// Returns what is not shown any more once the changes take effect, and what to do before.
    const fn left_behind(&self, undo: bool) -> Option<&'static str> {
        match (self.target, undo) {
            (Target::Docker, false) => Some(
                "Docker does not show images and containers of its present storage driver while \
                 cowshed is in use. To take images along, first: docker save -o images.tar $(docker \
                 image ls --filter dangling=false --format '{{.Repository}}:{{.Tag}}'); afterwards: \
                 docker load -i images.tar. Of a container, make an image first: docker commit",
            ),
            (Target::Docker, true) => Some(
                "Docker's images and containers stay in the pool and are not shown after the \
                 restart. To give their space back, first: stop the containers, and run `docker \
                 system prune --all`",
            ),
            (Target::Containerd, false) => Some(
                "Images that containerd has are not unpacked in cowshed: pull them again. One that is \
                 in no registry: `ctr images export FILE IMAGE`, and afterwards `ctr images import \
                 --snapshotter cowshed FILE`",
            ),
            (Target::Containerd, true) => Some(
                "containerd's snapshots stay in the pool. To give their space back, first remove \
                 the containers and images that use them",
            ),
            (Target::Systemd, _) => None,
        }
    }

    /// Returns which daemons are to be restarted.
    const fn restarts(&self) -> Option<&'static str> {
        match self.target {
            Target::Docker => Some("restart containerd and Docker"),
            Target::Containerd => Some("restart containerd"),
            Target::Systemd => None,
        }
    }

    /// Returns what the user should know of this host.
    fn notes(&self) -> anyhow::Result<Vec<String>> {
        let mut notes = Vec::new();
        let is_docker = self.target == Target::Docker;
        let text = self.root.read(Path::new(docker::FILE))?.unwrap_or_default();
        if is_docker && docker::maps_users(&text) {
            notes.push(
                "warning: Docker maps users (userns-remap): an image with hard links does not run \
                 then"
                    .to_owned(),
            );
        }
        let runs_containerd = self.target != Target::Systemd && self.root.is_host();
        if is_docker && self.root.is_host() && installed_version("dockerd", 2).is_none() {
            notes.push("warning: Docker (dockerd) is not installed on this host".to_owned());
        }
        if runs_containerd && installed_containerd().is_none() {
            notes.push("warning: containerd is not installed on this host".to_owned());
        }
        if let Some(found) = self.old_docker() {
            notes.push(format!(
                "warning: this is Docker {found}, and {DOCKER_MIN} or later is needed"
            ));
        }
        if self.root.is_host()
            && self.target == Target::Systemd
            && units::has_systemd(&self.root)
            && !units::has_running_systemd(&self.root)
        {
            notes.push(
                "warning: systemd is installed but does not run this host, so nothing starts the \
                 units"
                    .to_owned(),
            );
        }
        let is_installed = |folder: &&str| self.root.has(&format!("{folder}/cowshed"));
        if self.target == Target::Systemd && !PROGRAMS.iter().any(is_installed) {
            let folders = PROGRAMS.join(" or ");
            notes.push(format!(
                "warning: the units look for the program in {folders}, and it is not there: `cargo \
                 install --path . --root /usr/local` puts it there"
            ));
        }
        Ok(notes)
    }

    /// Returns the commands with which the changes take effect.
    fn after(&self, link: Option<&Link>) -> Vec<String> {
        let mut commands = Vec::new();
        let pool = self.pool.as_path();
        let option = match pool == Path::new(super::DEFAULT_POOL) {
            true => String::new(),
            false => format!(" --pool {}", self.pool),
        };
        if !pool.exists() {
            commands.push(format!("cowshed{option} pool create --size 100G"));
        }
        let name = self.units.name();
        if !units::has_running_systemd(&self.root) {
            if self.target == Target::Systemd {
                return commands;
            }
            let given = |path: fn(&Link) -> &Option<HostPath>, usual: &str| {
                let path = link.and_then(|link| path(link).as_ref());
                path.map_or_else(|| usual.to_owned(), ToString::to_string)
            };
            commands.push(format!(
                "cowshed{option} serve --containerd-socket {} --containerd-address {} --mount {}",
                given(|link| &link.containerd_socket, super::SOCKET),
                given(|link| &link.containerd_address, super::ADDRESS),
                given(|link| &link.mount, super::VOLUMES)
            ));
            return commands;
        }
        if self.target != Target::Systemd && !self.units.are_in(&self.root) {
            commands.push("cowshed setup systemd".to_owned());
        }
        commands.push("systemctl daemon-reload".to_owned());
        commands.push(match self.target {
            Target::Systemd => format!("systemctl start {name}.socket {name}.service"),
            Target::Containerd => format!("systemctl restart {name}.service containerd"),
            Target::Docker => format!("systemctl restart {name}.service containerd docker"),
        });
        commands.push("cowshed doctor".to_owned());
        commands
    }

    /// Returns the commands with which the changes are gone.
    fn after_undo(&self) -> Vec<String> {
        if !units::has_running_systemd(&self.root) {
            return Vec::new();
        }
        let name = self.units.name();
        let mut commands = vec!["systemctl daemon-reload".to_owned()];
        commands.push(match self.target {
            Target::Systemd => format!("systemctl stop {name}.socket {name}.service"),
            Target::Containerd => "systemctl restart containerd".to_owned(),
            Target::Docker => "systemctl restart containerd docker".to_owned(),
        });
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::super::units::Units;
    use super::*;
    use crate::setup::files::Root;

    #[test]
    fn what_is_not_shown_any_more_is_told_with_what_to_do_before() {
        let pool = HostPath::new("/pools/a").unwrap();
        let host = |target| Host {
            root: Root::new(Path::new("/")),
            units: Units::of(&pool, "/pools/a"),
            pool: pool.clone(),
            target,
        };
        for (target, undo, wanted) in [
            (Target::Docker, false, "docker save"),
            (Target::Docker, true, "docker system prune --all"),
            (Target::Containerd, false, "ctr images export"),
            (Target::Containerd, true, "stay in the pool"),
        ] {
            let told = host(target).left_behind(undo).unwrap();
            assert!(told.contains(wanted), "{told}");
            assert!(host(target).restarts().unwrap().contains("containerd"));
        }
        assert_eq!(host(Target::Systemd).left_behind(true), None);
    }
}
