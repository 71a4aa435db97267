//! The units of systemd: those of the daemon, what enables them, and what has others start after
//! it.

use super::files::{Content, MARK, Root, Wanted};
use cowshed_daemon::request::HostPath;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where the administrator's units are.
pub(crate) const OWN: &str = "/etc/systemd/system";
/// Where packages put theirs.
pub(crate) const OF_PACKAGES: [&str; 2] = ["/usr/lib/systemd/system", "/lib/systemd/system"];
/// Where the program of a unit is looked for.
pub(super) const PROGRAMS: [&str; 2] = ["/usr/local/bin", "/usr/bin"];
/// The programs of systemd itself.
const SYSTEMD: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];

/// What is there while systemd runs the host.
const RUNS: &str = "/run/systemd/system";

const SERVICE: &str = include_str!("../../../tools/systemd/cowshed.service");
const SOCKET: &str = include_str!("../../../tools/systemd/cowshed.socket");
const SERVICE_OF: &str = include_str!("../../../tools/systemd/cowshed@.service");
const SOCKET_OF: &str = include_str!("../../../tools/systemd/cowshed@.socket");
const OF_CONTAINERD: &str =
    include_str!("../../../tools/systemd/containerd.service.d/cowshed.conf");
const OF_DOCKER: &str = include_str!("../../../tools/systemd/docker.service.d/cowshed.conf");

/// The units of the daemon of one pool.
#[derive(Clone, Debug)]
pub(super) struct Units {
    /// The part after `@`; `None` for the usual pool.
    instance: Option<String>,
}

impl Units {
    /// Returns the units of the pool's daemon; `usual` is the pool that needs no instance.
    pub(super) fn of(pool: &HostPath, usual: &str) -> Self {
        let path = pool.as_path();
        Self {
            instance: (path != Path::new(usual)).then(|| escaped(path)),
        }
    }

    /// Returns the name of the service without its ending.
    pub(super) fn name(&self) -> String {
        match &self.instance {
            None => "cowshed".to_owned(),
            Some(instance) => format!("cowshed@{instance}"),
        }
    }

    /// Returns the file with the daemon's options.
    pub(super) fn environment(&self) -> PathBuf {
        Path::new("/etc/default").join(self.name())
    }

    /// Returns the files of the units, with their texts.
    fn files(&self) -> [(&'static str, &'static str); 2] {
        match self.instance {
            None => [("cowshed.service", SERVICE), ("cowshed.socket", SOCKET)],
            Some(_) => [
                ("cowshed@.service", SERVICE_OF),
                ("cowshed@.socket", SOCKET_OF),
            ],
        }
    }

    /// Returns true if the units are there.
    pub(super) fn are_in(&self, root: &Root) -> bool {
        self.files().iter().all(|(file, _)| {
            let mut folders = [OWN].into_iter().chain(OF_PACKAGES);
            folders.any(|folder| root.has(&format!("{folder}/{file}")))
        })
    }

    /// Returns the files and links that have systemd start the daemon at boot. Units of a package
    /// are used as they are.
    pub(super) fn wanted(&self, root: &Root) -> Vec<Wanted<'static>> {
        let mut all = Vec::new();
        let targets = ["multi-user.target", "sockets.target"];
        for ((file, text), target) in self.files().into_iter().zip(targets) {
            let of_package = OF_PACKAGES
                .into_iter()
                .find(|folder| root.has(&format!("{folder}/{file}")));
            if of_package.is_none() {
                all.push(Wanted {
                    path: Path::new(OWN).join(file),
                    content: Content::Whole(format!("{MARK}{text}")),
                });
            }
            let unit = Path::new(of_package.unwrap_or(OWN)).join(file);
            let ending = file.rsplit('.').next().unwrap_or_default();
            all.push(Wanted {
                path: Path::new(OWN).join(format!("{target}.wants/{}.{ending}", self.name())),
                content: Content::Link(unit),
            });
        }
        all
    }

    /// Returns the drop-in that has containerd start after the daemon.
    pub(super) fn before_containerd(&self) -> Wanted<'static> {
        self.drop_in("containerd", OF_CONTAINERD)
    }

    /// Returns the drop-in that has Docker start after the daemon.
    pub(super) fn before_docker(&self) -> Wanted<'static> {
        self.drop_in("docker", OF_DOCKER)
    }

    fn drop_in(&self, other: &str, text: &str) -> Wanted<'static> {
        let settings = text.lines().filter(|line| !line.starts_with('#'));
        let settings: Vec<&str> = settings.collect();
        let own = settings
            .join("\n")
            .replace("cowshed.service", &format!("{}.service", self.name()));
        Wanted {
            path: Path::new(OWN).join(format!("{other}.service.d/cowshed.conf")),
            content: Content::Whole(format!("{MARK}{own}\n")),
        }
    }
}

/// Returns true if the root has systemd.
pub(super) fn has_systemd(root: &Root) -> bool {
    SYSTEMD.iter().any(|program| root.has(program))
}

/// Returns true if systemd is to be asked to do something: it runs this host, or is to run another
/// root.
pub(super) fn has_running_systemd(root: &Root) -> bool {
    has_systemd(root) && (!root.is_host() || root.has(RUNS))
}

/// Returns a path as `systemd-escape --path` writes it.
fn escaped(path: &Path) -> String {
    let names = path.as_os_str().as_bytes().split(|byte| *byte == b'/');
    let names: Vec<&[u8]> = names.filter(|name| !name.is_empty()).collect();
    if names.is_empty() {
        return "-".to_owned();
    }
    let mut text = String::new();
    for (index, byte) in names.join(&b'/').into_iter().enumerate() {
        match byte {
            b'/' => text.push('-'),
            b'.' if index > 0 => text.push('.'),
            b':' | b'_' => text.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => text.push(char::from(byte)),
            _ => {
                // Writing to a string never fails.
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_as_systemd_does() {
        for (path, wanted) in [
            ("/srv/pools/a", "srv-pools-a"),
            ("//srv//a-b/", "srv-a\\x2db"),
            ("/.x/y.z", "\\x2ex-y.z"),
            ("/dev/vg 0/p:1_ä", "dev-vg\\x200-p:1_\\xc3\\xa4"),
            ("/", "-"),
        ] {
            assert_eq!(escaped(Path::new(path)), wanted);
        }
    }

    #[test]
    fn a_pool_elsewhere_has_units_by_its_path() {
        let units = |pool: &str| Units::of(&HostPath::new(pool).unwrap(), "/var/lib/cowshed/pool");
        assert_eq!(units("/var/lib/cowshed/pool").name(), "cowshed");
        let other = units("/srv/a");
        assert_eq!(other.name(), "cowshed@srv-a");
        let folder = tempfile::tempdir().unwrap();
        let wanted = other.wanted(&Root::new(folder.path()));
        let paths: Vec<_> = wanted.iter().map(|it| it.path.to_str().unwrap()).collect();
        assert_eq!(
            paths,
            [
                "/etc/systemd/system/cowshed@.service",
                "/etc/systemd/system/multi-user.target.wants/cowshed@srv-a.service",
                "/etc/systemd/system/cowshed@.socket",
                "/etc/systemd/system/sockets.target.wants/cowshed@srv-a.socket",
            ]
        );
        let Content::Whole(text) = other.before_docker().content else {
            panic!("a text");
        };
        assert!(text.contains("After=cowshed@srv-a.service\n"), "{text}");
    }
}
