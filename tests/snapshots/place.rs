//! A daemon that is a snapshotter, and folders where its snapshots are mounted.

use crate::client::Client;
use crate::harness::{Bench, Daemon, eventually, host};
use crate::wire::Mount;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A pool of `size` with its daemon.
pub(crate) struct Snapshotter {
    pub(crate) daemon: Daemon,
    pub(crate) bench: Bench,
    pub(crate) options: Vec<String>,
}

impl Snapshotter {
    pub(crate) fn start(size: &str) -> Self {
        Self::start_with(size, &[])
    }

    pub(crate) fn start_with(size: &str, options: &[&str]) -> Self {
        let bench = Bench::with_pool(size);
        let options: Vec<_> = options.iter().map(|text| (*text).to_owned()).collect();
        let daemon = serve(&bench, &options);
        Self {
            daemon,
            bench,
            options,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.bench.path("containerd.sock"))
    }

    /// Stops the daemon in order and starts it again.
    pub(crate) fn restart(self) -> Self {
        self.daemon.stop();
        let daemon = serve(&self.bench, &self.options);
        Self { daemon, ..self }
    }

    /// Kills the whole daemon and starts it again, as after a crash of the host.
    pub(crate) fn crash(self) -> Self {
        self.daemon.kill();
        let daemon = serve(&self.bench, &self.options);
        Self { daemon, ..self }
    }

    /// Stops the daemon: nothing may be left of it, and the pool must be sound and hold no more
    /// than `snapshots` volumes besides empty file systems.
    pub(crate) fn end(self, snapshots: usize) {
        let mut client = self.client();
        client.cleanup().unwrap();
        self.daemon.stop();
        assert!(!self.bench.path("containerd.sock").exists());
        self.bench.expect_sound();
        let volumes = self.bench.volumes();
        let own = volumes.iter().filter(|name| !name.starts_with("template/"));
        assert_eq!(own.count(), snapshots, "{volumes:?}");
    }
}

fn serve(bench: &Bench, options: &[String]) -> Daemon {
    let socket = bench.path("containerd.sock");
    let mut all = vec![
        "--containerd-socket".to_owned(),
        socket.to_str().unwrap().to_owned(),
    ];
    all.extend_from_slice(options);
    bench.serve_with(all)
}

/// A snapshot mounted where a client wants it, until this is dropped.
pub(crate) struct Place(PathBuf);

impl Place {
    pub(crate) fn mount(bench: &Bench, mount: &Mount, name: &str) -> Self {
        let path = bench.path(&format!("place-{name}"));
        fs::create_dir_all(&path).unwrap();
        let output = Command::new("mount")
            .args(["-t", &mount.r#type, "-o", &mount.options.join(",")])
            .arg(&mount.source)
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{mount:?}: {output:?}");
        if mount.r#type == "bind" && mount.options.iter().any(|option| option == "ro") {
            // Some versions of mount(8) need the option twice.
            host("mount", ["-o", "remount,bind,ro", path.to_str().unwrap()]);
        }
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        names_in(&self.0)
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.0).unwrap();
        found.blocks() * found.fragment_size()
    }

    /// Unmounts. A program that another thread is about to start holds this process's open files
    /// for a moment.
    pub(crate) fn unmount(self) {
        eventually("an idle mount", || {
            let status = Command::new("umount")
                .arg(&self.0)
                .stderr(std::process::Stdio::null())
                .status();
            status.unwrap().success()
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It is unmounted already unless the test has failed.
        let _ = Command::new("umount")
            .arg("-lq")
            .arg(&self.0)
            .stderr(std::process::Stdio::null())
            .status();
        let _ = fs::remove_dir(&self.0);
    }
}

pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Prepares, fills and commits a layer that adds one file.
pub(crate) fn layer(
    snapshotter: &Snapshotter,
    client: &mut Client,
    name: &str,
    parent: &str,
    file: &str,
) {
    let key = format!("{name}-key");
    let mount = client.prepare(&key, parent).unwrap();
    let place = Place::mount(&snapshotter.bench, &mount, &name.replace('/', "-"));
    place.write(file, name);
    place.unmount();
    client.commit(name, &key).unwrap();
}
