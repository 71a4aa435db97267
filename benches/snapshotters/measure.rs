//! One round with one snapshotter.

use crate::calls::Client;
use crate::containerd::Containerd;
use crate::docker::Docker;
use crate::engine;
use crate::fixtures::run;
use crate::service::Service;
use crate::subjects::{Archives, LARGE, OwnFileSystem, small_file};
use crate::table::{Table, Value};
use crate::world::{Setting, Snapshotter, World};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Number of calls of a kind of which the median is taken.
const CALLS: u32 = 41;
const CONTAINERS: u32 = 50;
/// The same for diffs.
const DIFFS: usize = 3;

pub(crate) struct Measurement<'a> {
    setting: &'a Setting,
    world: &'a World,
    table: &'a mut Table,
}

impl Measurement<'_> {
    pub(crate) fn all(setting: &Setting, archives: &Archives, table: &mut Table) {
        let _own = OwnFileSystem::mount(setting);
        let world = World::open(setting);
        let mut measurement = Measurement {
            setting,
            world: &world,
            table,
        };
        measurement.unpack("unpack a Debian root", &archives.debian, "debian");
        measurement.calls("debian");
        measurement.unpack(
            "unpack many small files",
            &archives.many_files,
            "many-files",
        );
        measurement.changes("many-files", archives);
        measurement.unpack("unpack a large file", &archives.large_file, "large-file");
        measurement.first_write("large-file", archives.large_bytes);
        measurement.unpack("unpack 60 layers", &archives.many_layers, "many-layers");
        measurement.containers(&archives.shell);
        for name in ["debian", "many-files", "large-file", "many-layers", "shell"] {
            world
                .containerd
                .ok(["images", "rm", "--sync", &reference(name)]);
        }
        measurement.docker(archives);
        world.close();
    }

    fn add(&mut self, row: &'static str, value: Value) {
        self.table.add(row, self.setting.snapshotter, value);
    }

    fn ctr(&self) -> &Containerd {
        &self.world.containerd
    }

    /// Unpacks an image whose blobs exist: its layers become snapshots, and the uppermost is
    /// mounted.
    fn unpack(&mut self, row: &'static str, archive: &Path, name: &str) {
        let ctr = &self.world.containerd;
        let archive = archive.to_str().unwrap();
        ctr.ok(["images", "import", "--local", "--no-unpack", archive]);
        run("sync", [""; 0]);
        let target = self.setting.folder.join("view");
        fs::create_dir_all(&target).unwrap();
        let target = target.to_str().unwrap();
        let started = Instant::now();
        ctr.ok([
            "images",
            "mount",
            "--snapshotter",
            ctr.snapshotter,
            &reference(name),
            target,
        ]);
        let took = started.elapsed();
        run("sync", [""; 0]);
        let with_sync = started.elapsed();
        ctr.ok([
            "images",
            "unmount",
            "--rm",
            "--snapshotter",
            ctr.snapshotter,
            target,
        ]);
        self.add(row, Value::Time(took));
        self.add(synced(row), Value::Time(with_sync));
    }

    /// Times calls of the service, through containerd, and directly if the snapshotter is ours.
    fn calls(&mut self, name: &str) {
        let ctr = self.ctr();
        let key = "calls";
        ctr.ok([
            "run",
            "--detach",
            "--null-io",
            "--snapshotter",
            ctr.snapshotter,
            &reference(name),
            key,
            "/bin/sleep",
            "1000",
        ]);
        let info: serde_json::Value = serde_json::from_str(&ctr.snapshot(["info", key])).unwrap();
        let parent = info["Parent"].as_str().unwrap().to_owned();
        ctr.remove_container(key);
        let socket = Containerd::socket(&self.setting.folder);
        let client = Client::connect(&socket, ctr.snapshotter, &ctr.namespace);
        self.timed(
            client,
            &parent,
            [
                "Prepare and Mounts, through containerd",
                "Usage, through containerd",
                "Remove, through containerd",
            ],
        );
        if self.world.service.is_some() {
            let client = Client::connect(&Service::socket(&self.setting.folder), "", "");
            // The name that containerd uses in its calls.
            let below = inner_name(&self.setting.folder, &parent);
            self.timed(
                client,
                &below,
                [
                    "Prepare and Mounts, the snapshotter's part",
                    "Usage, the snapshotter's part",
                    "Remove, the snapshotter's part",
                ],
            );
        }
    }

    fn timed(&mut self, mut client: Client, parent: &str, rows: [&'static str; 3]) {
        let mut times: [Vec<Duration>; 3] = Default::default();
        let calls = match self.setting.snapshotter {
            // Each copies a whole root.
            Snapshotter::Native => 1,
            _ => CALLS,
        };
        for number in 0..calls {
            let key = format!("timed-{number}");
            for (times, took) in times
                .iter_mut()
                .zip(client.all(&key, parent).into_iter().flatten())
            {
                times.push(took);
            }
        }
        for (row, mut times) in rows.into_iter().zip(times) {
            times.sort_unstable();
            self.add(row, Value::Time(times[times.len() / 2]));
        }
    }

    /// Writes one byte in the middle of a large file of the image, in a new container's root.
    fn first_write(&mut self, name: &str, large_bytes: u64) {
        let ctr = self.ctr();
        let target = self.setting.folder.join("written");
        fs::create_dir_all(&target).unwrap();
        let path = target.to_str().unwrap();
        ctr.ok([
            "images",
            "mount",
            "--rw",
            "--snapshotter",
            ctr.snapshotter,
            &reference(name),
            path,
        ]);
        let started = Instant::now();
        let file = File::options()
            .write(true)
            .open(target.join(LARGE))
            .unwrap();
        file.write_all_at(b"x", large_bytes / 2).unwrap();
        let took = started.elapsed();
        drop(file);
        ctr.ok([
            "images",
            "unmount",
            "--rm",
            "--snapshotter",
            ctr.snapshotter,
            path,
        ]);
        self.add("first write to a large file", Value::Time(took));
    }

    /// Makes a layer of the changes of a running container, with containerd's diff service.
    fn changes(&mut self, name: &str, archives: &Archives) {
        let ctr = self.ctr();
        let key = "changes";
        ctr.start_container(&reference(name), key);
        let path = small_file(archives.files / 2);
        ctr.exec(
            key,
            "change",
            &format!("echo changed > /{}; sync", path.display()),
        );
        let mut times: Vec<_> = (0..DIFFS)
            .map(|_| {
                let mut diff = ctr.snapshot_command(["diff", key]);
                let started = Instant::now();
                let said = diff.output().unwrap();
                let took = started.elapsed();
                // blockfile cannot: its second, read-only mount of a device in use is refused.
                let works = said.status.success() && !said.stdout.is_empty();
                assert!(
                    works || self.setting.snapshotter == Snapshotter::Blockfile,
                    "{said:?}"
                );
                works.then_some(took)
            })
            .collect();
        ctr.remove_container(key);
        times.sort_unstable();
        if let Some(took) = times[times.len() / 2] {
            self.add("layer of one file among many, by ctr", Value::Time(took));
        }
    }

    /// Measures the space of containers that have run once and changed nothing.
    fn containers(&mut self, archive: &Path) {
        let ctr = &self.world.containerd;
        let image = reference("shell");
        ctr.ok([
            "images",
            "import",
            "--local",
            "--snapshotter",
            ctr.snapshotter,
            archive.to_str().unwrap(),
        ]);
        let run_one = |id: &str| {
            ctr.ok([
                "run",
                "--snapshotter",
                ctr.snapshotter,
                &image,
                id,
                "/bin/busybox",
                "true",
            ]);
        };
        run_one("first");
        let before = self.space();
        for number in 0..CONTAINERS {
            run_one(&format!("c-{number}"));
        }
        let each = self.space().saturating_sub(before) / u64::from(CONTAINERS);
        self.add("each of 50 containers", Value::Bytes(each));
        for id in ctr.ok(["containers", "ls", "-q"]).lines() {
            ctr.ok(["containers", "rm", id]);
        }
    }

    /// Returns the space of the disk that the snapshotter takes.
    fn space(&self) -> u64 {
        if let Some(service) = &self.world.service {
            return service.used_bytes();
        }
        run("sync", [""; 0]);
        let root = self.setting.snapshotter.root(&self.setting.folder);
        if matches!(
            self.setting.snapshotter,
            Snapshotter::Blockfile | Snapshotter::Btrfs
        ) {
            let answer = nix::sys::statvfs::statvfs(&root).unwrap();
            return (answer.blocks() - answer.blocks_free()) * answer.fragment_size();
        }
        let said = run(
            "du",
            ["--summarize", "--block-size=1", root.to_str().unwrap()],
        );
        said.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Runs `docker diff` and `docker commit` after one of many files was changed.
    fn docker(&mut self, archives: &Archives) {
        let docker = Docker::start(self.setting);
        docker.ok(["load", "--input", archives.many_files.to_str().unwrap()]);
        docker.run_waiting("changed", &[], "bench/many-files:1");
        let path = small_file(archives.files / 2);
        docker.exec(
            "changed",
            &format!("echo changed > /{}; sync", path.display()),
        );
        let socket = Docker::socket(&self.setting.folder);
        let (changes, took) = engine::ask(&socket, "GET", "/containers/changed/changes");
        let changes = changes.unwrap().to_string();
        assert!(changes.contains(path.to_str().unwrap()), "{changes}");
        self.add("Docker's diff of one file among many", Value::Time(took));
        for number in 0..DIFFS {
            let target = format!("/commit?container=changed&pause=0&repo=bench/out&tag={number}");
            let (done, took) = engine::ask(&socket, "POST", &target);
            match done {
                Ok(_) => self.add("Docker's commit of one file among many", Value::Time(took)),
                // It cannot: its second, read-only mount of a device in use is refused.
                Err(answer) => {
                    assert_eq!(self.setting.snapshotter, Snapshotter::Blockfile, "{answer}")
                }
            }
        }
        docker.ok(["rm", "--force", "changed"]);
        docker.ok(["system", "prune", "--all", "--force"]);
        docker.stop();
    }
}

/// Returns all snapshotters that can be measured here.
pub(crate) fn measured() -> Vec<Snapshotter> {
    let mut all = vec![
        Snapshotter::Cowshed,
        Snapshotter::Overlayfs,
        Snapshotter::Native,
        Snapshotter::Blockfile,
    ];
    if Path::new("/sbin/mkfs.btrfs").exists() {
        all.push(Snapshotter::Btrfs);
    }
    all
}

fn reference(name: &str) -> String {
    format!("docker.io/bench/{name}:1")
}

fn synced(row: &'static str) -> &'static str {
    match row {
        "unpack a Debian root" => "the same, and sync",
        "unpack many small files" => "the same, and sync ",
        "unpack a large file" => "the same, and sync  ",
        _ => "the same, and sync   ",
    }
}

/// Returns cowshed's name of a committed snapshot: containerd adds a namespace and a number as a
/// prefix.
fn inner_name(folder: &Path, name: &str) -> String {
    let mut client = Client::connect(&Service::socket(folder), "", "");
    let names = client.names();
    let found = names.into_iter().find(|inner| inner.ends_with(name));
    found.expect("cowshed knows the image's uppermost layer")
}
