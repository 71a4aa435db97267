//! The options of `serve` about containerd.

use super::arguments::size::Size;
use super::failure::Usage;
use clap::Args;
use cowshed_daemon::request::HostPath;
use cowshed_daemon::snapshotter::{MountMode, Options};
use cowshed_host as container;
use std::ffi::OsString;

/// Options about containerd.
#[derive(Clone, Debug, Args)]
pub(super) struct Containerd {
    /// Be a snapshotter for containerd on this socket
    #[arg(long, value_name = "PATH", value_parser = super::arguments::place::path())]
    pub containerd_socket: Option<HostPath>,
    /// The socket of containerd. With it, the daemon serves containerd's diff service too: it reads and
    /// writes layers in containerd's content store
    #[arg(long, value_name = "PATH", value_parser = super::arguments::place::path())]
    pub containerd_address: Option<HostPath>,
    /// The form in which containerd gets snapshots: `dir` mounts them here; `loop` and `file` give a
    /// device or a file, for virtual machines; with `overlay`, containers of one image share it in
    /// memory [default: dir]
    #[arg(long, value_name = "dir|loop|file|overlay")]
    pub snapshot_mounts: Option<MountMode>,
    /// The size of a snapshot's file system [default: 10G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub snapshot_size: Option<Size>,
}

impl Containerd {
    /// Returns an error for options of a service that is not enabled.
    ///
    /// # Errors
    /// `Usage`.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let given = [
            ("--containerd-address", self.containerd_address.is_some()),
            ("--snapshot-mounts", self.snapshot_mounts.is_some()),
            ("--snapshot-size", self.snapshot_size.is_some()),
        ];
        let alone = given.into_iter().find(|(_, is_given)| *is_given);
        match (alone, &self.containerd_socket) {
            (Some((name, _)), None) => {
                let what = format!("{name} has an effect only with --containerd-socket PATH");
                Err(Usage(what).into())
            }
            _ => Ok(()),
        }
    }

    /// Returns the services' options.
    pub(super) fn options(&self) -> Options {
        let size_bytes = self.snapshot_size.map(|size| size.0);
        let address = self.containerd_address.as_ref();
        Options {
            mounts: self.snapshot_mounts.unwrap_or_default(),
            size_bytes: size_bytes.unwrap_or(container::DEFAULT_SIZE_BYTES),
            containerd_address: address.map(|path| path.as_path().to_owned()),
        }
    }

    /// Returns the same options as arguments for another process.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        let mut add = |name: &str, value: OsString| arguments.extend([OsString::from(name), value]);
        for (name, path) in [
            ("--containerd-socket", &self.containerd_socket),
            ("--containerd-address", &self.containerd_address),
        ] {
            if let Some(path) = path {
                add(name, path.as_path().as_os_str().to_owned());
            }
        }
        if let Some(mode) = self.snapshot_mounts {
            add("--snapshot-mounts", mode.as_str().into());
        }
        if let Some(size) = self.snapshot_size {
            add("--snapshot-size", size.0.to_string().into());
        }
        arguments
    }
}

fn parse_size(text: &str) -> anyhow::Result<Size> {
    let size: Size = text.parse()?;
    let (min, max) = (container::MIN_SIZE_BYTES, container::MAX_SIZE_BYTES);
    if !(min..=max).contains(&size.0) {
        anyhow::bail!("a file system has {} to {}", Size(min), Size(max));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_written_for_another_process_as_they_were_read() {
        let options = Containerd {
            containerd_socket: Some(HostPath::new("/run/c.sock").unwrap()),
            containerd_address: None,
            snapshot_mounts: Some("loop".parse().unwrap()),
            snapshot_size: Some(parse_size("1G").unwrap()),
        };
        let wanted = [
            "--containerd-socket",
            "/run/c.sock",
            "--snapshot-mounts",
            "loop",
            "--snapshot-size",
            "1073741824",
        ];
        assert_eq!(options.arguments(), wanted);
        assert!(parse_size("1K").is_err() && parse_size("17T").is_err());
    }
}
