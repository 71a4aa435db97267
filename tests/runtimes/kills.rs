//! SIGKILL of cowshed's worker, of all of cowshed, and of containerd, in any order, in the middle
//! of their common work; afterwards both work as if nothing had happened.
//!
//! After an error the client does what a person would do: it repeats the command.

use crate::fixtures::run;
use crate::harness::{PATIENCE, eventually, noise};
use crate::images::{self, VERIFY};
use crate::world::{Setting, World};
use std::cmp::Reverse;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const NAME: &str = "test/varied";
const IMAGE: &str = "test/varied:latest";

/// The processes that are killed, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// cowshed's process that has the pool open; another one replaces it automatically.
    Worker,
    /// All of cowshed's processes.
    Cowshed,
    Containerd,
}

const ORDERS: [&[Victim]; 6] = [
    &[Victim::Worker],
    &[Victim::Containerd],
    &[Victim::Cowshed],
    &[Victim::Worker, Victim::Containerd],
    &[Victim::Containerd, Victim::Cowshed],
    &[Victim::Cowshed, Victim::Containerd],
];

/// The times of the kills.
struct Moments {
    seed: u64,
    drawn: u64,
}

impl Moments {
    fn of(setting: &Setting) -> Self {
        Self {
            seed: setting.seed,
            drawn: 0,
        }
    }

    /// Returns a time below `limit`.
    fn next(&mut self, limit: Duration) -> Duration {
        self.drawn += 1;
        let bytes = noise(4096, self.seed << 20 | self.drawn);
        let chosen = u32::from_le_bytes(bytes[4092..].try_into().unwrap());
        limit.mul_f64(f64::from(chosen) / f64::from(u32::MAX))
    }
}

/// Killing parts of a world, and what follows.
trait Kills {
    fn strike(&mut self, victims: &[Victim]);

    /// Restarts what a service manager would restart.
    fn recover(&mut self);

    /// Starts `action`, kills the victims `after` that time, waits for the action to end, and
    /// recovers.
    fn strike_during(&mut self, action: &mut Command, after: Duration, victims: &[Victim]);
}

impl Kills for World {
    fn strike(&mut self, victims: &[Victim]) {
        for victim in victims {
            match (victim, &mut self.service) {
                (Victim::Containerd, _) => self.containerd.kill(),
                (Victim::Worker, Some(service)) => service.kill_worker(),
                (Victim::Cowshed, Some(service)) => service.kill(),
                (Victim::Worker | Victim::Cowshed, None) => {}
            }
        }
    }

    fn recover(&mut self) {
        if let Some(service) = &mut self.service {
            service.restart();
            service.wait();
        }
        self.containerd.restart();
        // containerd takes up to three seconds to reconnect. Meanwhile it replies to what it knows
        // itself, but not to this.
        let mut number = 0;
        eventually("an answer by the snapshotter", || {
            number += 1;
            let key = format!("probe-{number}");
            let asked = |call: &str| {
                let answer = self.containerd.snapshot_command([call, &key]).output();
                answer.unwrap().status.success()
            };
            asked("prepare") && asked("rm")
        });
    }

    fn strike_during(&mut self, action: &mut Command, after: Duration, victims: &[Victim]) {
        let mut child = Running::start(action);
        sleep(after);
        self.strike(victims);
        child.wait();
        self.recover();
    }
}

/// A process that ends with its test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    /// Waits until it ends, whatever its status.
    fn wait(&mut self) {
        let started = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < PATIENCE, "a client waits for ever");
            sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Returns a client's command with its output in a file.
fn logged(mut command: Command, folder: &Path) -> Command {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("client.log"))
        .unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log);
    command
}

fn import(world: &World, archive: &Path) {
    let done = world.containerd.import(archive, NAME).output().unwrap();
    assert!(
        done.status.success(),
        "the import after a kill failed: {done:?}"
    );
}

/// Returns the duration of an action without kills.
fn time(action: impl FnOnce()) -> Duration {
    let started = Instant::now();
    action();
    started.elapsed()
}

/// Kills during an import, like a pull whose blobs exist already.
pub(crate) fn importing(setting: &Setting) {
    let mut world = World::open(setting);
    let mut moments = Moments::of(setting);
    let archive = images::varied(&setting.folder, setting.seed);
    let usual = time(|| import(&world, &archive));
    world.clear();
    for round in 0..setting.rounds {
        let victims = ORDERS[index(round)];
        let after = moments.next(usual);
        println!("round {round}: {victims:?} after {after:.0?} of {usual:.0?}");
        let action = world.containerd.import(&archive, NAME);
        world.strike_during(&mut logged(action, &setting.folder), after, victims);
        import(&world, &archive);
        let seen = world
            .containerd
            .run(IMAGE, "verify", ["/bin/sh", "-c", VERIFY]);
        assert_eq!(seen, "whole\n");
        world.clear();
    }
    world.close();
}

/// Kills while an image's snapshots are being removed.
pub(crate) fn removing(setting: &Setting) {
    let mut world = World::open(setting);
    let mut moments = Moments::of(setting);
    let archive = images::varied(&setting.folder, setting.seed);
    import(&world, &archive);
    let removal = |world: &World| world.containerd.ctr(["images", "rm", "--sync", IMAGE]);
    let mut first = logged(removal(&world), &setting.folder);
    let usual = time(|| assert!(first.status().unwrap().success())) * 2;
    for round in 0..setting.rounds {
        let victims = ORDERS[index(round)];
        let after = moments.next(usual);
        println!("round {round}: {victims:?} after {after:.0?} of {usual:.0?}");
        import(&world, &archive);
        let action = removal(&world);
        world.strike_during(&mut logged(action, &setting.folder), after, victims);
        if round % 2 == 0 {
            world.clear();
        }
        import(&world, &archive);
        let seen = world
            .containerd
            .run(IMAGE, "verify", ["/bin/sh", "-c", VERIFY]);
        assert_eq!(seen, "whole\n");
    }
    world.clear();
    world.close();
}

/// A client that makes a chain of committed snapshots, each with one more file, until it fails.
const CHAIN: &str = r#"
    i=$START
    while [ "$i" -lt "$END" ]; do
        key=work-$i-$ROUND
        parent=
        [ "$i" -eq 0 ] || parent=done-$((i - 1))
        "$@" prepare "$key" $parent
        eval "$("$@" mounts "$MOUNT" "$key")"
        echo "$i" >"$MOUNT/$i"
        umount "$MOUNT"
        echo "$key" >"$COMMITTING"
        "$@" commit "done-$i" "$key"
        i=$((i + 1))
    done
"#;
/// The minimum number of snapshots that each round adds to the chain.
const STEP: u64 = 6;

pub(crate) fn committing(setting: &Setting) {
    let mut world = World::open(setting);
    let mut moments = Moments::of(setting);
    let mount = setting.folder.join("m");
    fs::create_dir(&mount).unwrap();
    let mut count = 0;
    let mut interrupted = Vec::new();
    let mut usual = Duration::from_secs(1);
    for round in 0..setting.rounds {
        let victims = ORDERS[index(round)];
        let after = moments.next(usual);
        println!("round {round}: {victims:?} after {after:.0?} of {usual:.0?}");
        let action = chain(&world, &mount, count..count + STEP, round * 2);
        world.strike_during(&mut logged(action, &setting.folder), after, victims);
        // The client may have died between mounting and unmounting.
        drop(Command::new("umount").arg("--quiet").arg(&mount).status());
        let known = world.containerd.snapshots();
        while known.contains(&format!("done-{count}")) {
            count += 1;
        }
        let key = format!("work-{count}-{}", round * 2);
        let committing = fs::read_to_string(committing_note(&mount)).unwrap_or_default();
        interrupted.push((committing.trim() == key, key));
        // The rest, with new keys: interrupted snapshots are left to be removed.
        let end = count + STEP;
        let mut rest = chain(&world, &mount, count..end, round * 2 + 1);
        usual = time(|| {
            assert!(
                rest.status().unwrap().success(),
                "commits after a kill fail"
            )
        });
        count = end;
        verify_chain(&world, &setting.folder, count - STEP..count);
    }
    verify_chain(&world, &setting.folder, 0..count);
    // If one of them dies after ours has committed and before containerd has heard or recorded it,
    // containerd keeps the old key, which no list shows because nothing is behind it any more, and
    // refuses to remove its parent.
    let shown = world.containerd.snapshots();
    for (committing, key) in &interrupted {
        let removal = world.containerd.snapshot_command(["rm", key]).output();
        assert!(
            *committing || shown.contains(key) || !removal.unwrap().status.success(),
            "{key} was prepared, and nothing is behind it"
        );
    }
    remove_all(&world);
    world.clear();
    world.close();
}

fn chain(world: &World, mount: &Path, numbers: Range<u64>, round: u64) -> Command {
    let client = world.containerd.snapshot_command([]);
    let mut command = Command::new("sh");
    command
        .args(["-euc", CHAIN, "chain"])
        .arg(client.get_program())
        .args(client.get_args())
        .env("START", numbers.start.to_string())
        .env("END", numbers.end.to_string())
        .env("ROUND", round.to_string())
        .env("MOUNT", mount)
        .env("COMMITTING", committing_note(mount));
    command
}

/// Returns the file in which a client records what it is about to commit.
fn committing_note(mount: &Path) -> PathBuf {
    mount.with_extension("committing")
}

/// Asserts that every committed snapshot has the data of all before it.
fn verify_chain(world: &World, folder: &Path, numbers: Range<u64>) {
    let root = folder.join("looked-at");
    fs::create_dir_all(&root).unwrap();
    for number in numbers {
        let key = format!("look-{number}");
        let ctr = &world.containerd;
        ctr.snapshot(["prepare", &key, &format!("done-{number}")]);
        run(
            "sh",
            [
                "-euc",
                &ctr.snapshot(["mounts", root.to_str().unwrap(), &key]),
            ],
        );
        let files: Vec<PathBuf> = (0..=number)
            .map(|file| root.join(file.to_string()))
            .collect();
        let missing: Vec<_> = (0..)
            .zip(&files)
            .filter(|(file, path)| {
                fs::read_to_string(path).unwrap_or_default() != format!("{file}\n")
            })
            .collect();
        let next = root.join((number + 1).to_string()).exists();
        run("umount", [&root]);
        assert!(missing.is_empty(), "done-{number} lacks {missing:?}");
        assert!(!next, "done-{number} has what was written after it");
        ctr.snapshot(["rm", &key]);
    }
}

/// Removes what can be removed until nothing is left.
fn remove_all(world: &World) {
    eventually("the removal of all snapshots", || {
        let mut keys = world.containerd.snapshots();
        // Numbered snapshots are children of the previous number.
        keys.sort_by_key(|key| Reverse((key.len(), key.clone())));
        for key in &keys {
            // A snapshot with children is refused, and removed later.
            drop(world.containerd.snapshot_command(["rm", key]).output());
        }
        keys.is_empty()
    });
}

/// Kills daemons while containers run.
pub(crate) fn running(setting: &Setting) {
    let mut world = World::open(setting);
    let archive = images::varied(&setting.folder, setting.seed);
    import(&world, &archive);
    world.containerd.start_container(IMAGE, "c");
    let order: [&[Victim]; 4] = [
        &[Victim::Worker],
        &[Victim::Containerd],
        &[Victim::Worker, Victim::Containerd],
        &[Victim::Containerd, Victim::Worker],
    ];
    for (number, victims) in order.into_iter().enumerate() {
        let id = number.to_string();
        world.containerd.exec(
            "c",
            &format!("before-{id}"),
            &format!("echo {id} >> /said; sync"),
        );
        world.strike(victims);
        world.recover();
        let seen = world
            .containerd
            .exec("c", &format!("after-{id}"), "cat /said");
        let wanted: String = (0..=number).map(|number| format!("{number}\n")).collect();
        assert_eq!(seen, wanted, "after {victims:?}");
    }
    // With all of cowshed killed, the container has lost its file system; synced data is there for
    // the next container that uses its snapshot.
    world.strike(&[Victim::Cowshed]);
    world.recover();
    world
        .containerd
        .attempt(["tasks", "kill", "--signal", "KILL", "c"]);
    eventually("the task's removal", || {
        let removed = world.containerd.attempt(["tasks", "rm", "--force", "c"]);
        removed.status.success() || String::from_utf8_lossy(&removed.stderr).contains("not found")
    });
    let started = world
        .containerd
        .attempt(["tasks", "start", "--detach", "--null-io", "c"]);
    assert!(started.status.success(), "{started:?}");
    assert_eq!(
        world.containerd.exec("c", "last", "cat /said"),
        "0\n1\n2\n3\n"
    );
    let seen = world.containerd.exec("c", "whole", VERIFY);
    assert_eq!(seen, "whole\n");
    world.containerd.remove_container("c");
    world.clear();
    world.close();
}

fn index(round: u64) -> usize {
    usize::try_from(round).unwrap() % ORDERS.len()
}
