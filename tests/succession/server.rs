//! The process that serves, and the state kept for it.

use super::stalling::{STALLS, Stalling};
use cowshed_check::{CheckOptions, check};
use cowshed_engine::{CreateOptions, OpenOptions, Pool};
use cowshed_export::{
    Connection, ConnectionParts, Directory, Export, ExportOptions, HandoverState, Transport,
    clean_stale,
};
use cowshed_format::base::Name;
use cowshed_format::device::{CreateFile, FileDevice, FileOptions};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

const ORDER: &str = "COWSHED_TEST_SUCCESSION";
const POOL_BYTES: u64 = 1 << 30;
/// Held while descriptors are inheritable, so that only the intended process gets them.
static SPAWNING: Mutex<()> = Mutex::new(());

/// The parameters of the process.
#[derive(Serialize, Deserialize)]
struct Order {
    parts: ConnectionParts,
    handover_state: RawFd,
    pool: PathBuf,
    is_successor: bool,
    can_stall: bool,
}

fn answer(text: &str) {
    println!("answer: {text}");
}

/// Runs the process's work.
pub(crate) fn serve_as_told() {
    let Some(order) = std::env::var_os(ORDER) else {
        return;
    };
    let order: Order = serde_json::from_str(order.to_str().unwrap()).unwrap();
    let connection = Connection::adopt(order.parts).unwrap();
    let handover_state = HandoverState::adopt(inherited(order.handover_state)).unwrap();
    let device = FileDevice::open(&order.pool, FileOptions::default()).unwrap();
    let pool = Pool::open(Arc::new(device), &OpenOptions::default()).unwrap();
    let directory: Arc<dyn Directory> = if order.can_stall {
        Arc::new(Stalling(pool.clone()))
    } else {
        Arc::new(pool.clone())
    };
    let options = ExportOptions::default();
    let export = Export::resume(
        directory,
        connection,
        handover_state,
        options,
        order.is_successor,
    )
    .unwrap();
    answer("serves");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (verb, name) = line.split_once(' ').unwrap_or((&line, ""));
        match verb {
            "stall" => {
                STALLS.store(true, SeqCst);
                answer("stalls");
            }
            "remove" => {
                let removed = pool.volume(name).and_then(|volume| pool.remove(&volume));
                answer(&removed.map_or_else(|error| error.to_string(), |()| "done".to_owned()));
            }
            "attach" => {
                let volume = pool.volume(name).unwrap();
                answer(
                    export
                        .attach_loop(&volume, false)
                        .unwrap()
                        .to_str()
                        .unwrap(),
                );
            }
            "detach" => {
                export.detach(&pool.volume(name).unwrap()).unwrap();
                answer("done");
            }
            "attachments" => {
                let list = export.attachments();
                let line =
                    |it: &cowshed_export::Attachment| format!("{} {}", it.name, it.path.display());
                answer(&list.iter().map(line).collect::<Vec<_>>().join(","));
            }
            "hand-over" => {
                export.hand_over().unwrap();
                break;
            }
            "end" => {
                export.unmount().unwrap();
                break;
            }
            other => panic!("what is {other}?"),
        }
    }
    drop(export);
    pool.close().unwrap();
    answer("gone");
}

/// Returns the memory behind a descriptor that the parent left to this process.
fn inherited(number: RawFd) -> OwnedFd {
    let path = format!("/proc/self/fd/{number}");
    let file = fs::File::options().read(true).write(true).open(path);
    file.unwrap().into()
}

/// A process that serves.
struct Server {
    process: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Server {
    fn answer(&mut self) -> String {
        loop {
            let line = self.answers.next().expect("the server answers").unwrap();
            // The test runner may have printed the test's name on the same line.
            if let Some((_, answer)) = line.split_once("answer: ") {
                return answer.to_owned();
            }
        }
    }
}

/// The state that outlives the serving processes, and the current process.
pub(crate) struct Kept {
    connection: Option<Connection>,
    parts: ConnectionParts,
    handover_state: HandoverState,
    server: Option<Server>,
    ext4: Option<PathBuf>,
    place: TempDir,
}

impl Kept {
    /// Mounts a pool with these volumes, without serving it yet.
    pub(crate) fn with(volumes: &[(&str, u64)], threads: usize) -> Self {
        let place = TempDir::with_prefix("cowshed-succession-").unwrap();
        let device =
            FileDevice::create(place.path().join("pool"), POOL_BYTES, CreateFile::default());
        let device = Arc::new(device.unwrap());
        Pool::create(&*device, &CreateOptions::default()).unwrap();
        let pool = Pool::open(device, &OpenOptions::default()).unwrap();
        for (name, size) in volumes {
            pool.create_volume(&Name::new(name).unwrap(), *size)
                .unwrap();
        }
        pool.close().unwrap();
        drop(pool);
        let connection = Connection::mount(
            &place.path().join("volumes"),
            Some(threads),
            Transport::Threads,
        )
        .unwrap();
        assert!(connection.negotiated().has_resend(), "Linux 6.9 is needed");
        Self {
            parts: connection.parts(),
            connection: Some(connection),
            handover_state: HandoverState::create().unwrap(),
            server: None,
            ext4: None,
            place,
        }
    }

    pub(crate) fn parts(&self) -> ConnectionParts {
        self.parts.clone()
    }

    /// Makes the kernel look like one that does not resend requests.
    pub(crate) fn forget_resending(&mut self) {
        self.parts.negotiated.flags &= !(1 << 39);
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.parts.dir
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Starts a process that serves, and waits until it does.
    pub(crate) fn serve(&mut self, is_successor: bool, can_stall: bool) {
        let order = Order {
            parts: self.parts(),
            handover_state: self.handover_state.descriptor().as_raw_fd(),
            pool: self.place.path().join("pool"),
            is_successor,
            can_stall,
        };
        let spawning = SPAWNING.lock().unwrap();
        self.inherit(FdFlag::empty());
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "--test-threads=1"])
            .arg("serve_as_told")
            .env(ORDER, serde_json::to_string(&order).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        self.inherit(FdFlag::FD_CLOEXEC);
        drop(spawning);
        let mut process = process.unwrap();
        let server = Server {
            orders: process.stdin.take().unwrap(),
            answers: BufReader::new(process.stdout.take().unwrap()).lines(),
            process,
        };
        let server = self.server.insert(server);
        assert_eq!(server.answer(), "serves");
    }

    fn inherit(&self, flag: FdFlag) {
        let set = |descriptor: BorrowedFd<'_>| fcntl(descriptor, FcntlArg::F_SETFD(flag)).unwrap();
        for descriptor in self.connection.as_ref().unwrap().descriptors() {
            set(descriptor);
        }
        set(self.handover_state.descriptor());
    }

    fn order(&mut self, order: &str) {
        let server = self.server.as_mut().unwrap();
        writeln!(server.orders, "{order}").unwrap();
    }

    /// Sends the server an order and returns its reply.
    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.order(order);
        self.server.as_mut().unwrap().answer()
    }

    /// Waits until this many requests have stalled.
    pub(crate) fn await_arrivals(&mut self, count: usize) {
        for _ in 0..count {
            assert_eq!(self.server.as_mut().unwrap().answer(), "arrived");
        }
    }

    /// Kills the server, and waits until nothing is left of it.
    pub(crate) fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.process.kill().unwrap();
        server.process.wait().unwrap();
    }

    pub(crate) fn hand_over(&mut self) {
        assert_eq!(self.ask("hand-over"), "gone");
        let mut server = self.server.take().unwrap();
        assert!(server.process.wait().unwrap().success());
    }

    /// Ends in order, and asserts that the pool is sound.
    pub(crate) fn end(mut self) {
        assert_eq!(self.ask("end"), "gone");
        let mut server = self.server.take().unwrap();
        assert!(server.process.wait().unwrap().success());
        let device = FileDevice::open(self.place.path().join("pool"), FileOptions::default());
        let options = CheckOptions {
            deep: true,
            repair: false,
            forget: false,
        };
        let report = check(&device.unwrap(), options, &mut |_| {}).unwrap();
        assert!(report.clean(), "{:?}", report.findings);
    }

    pub(crate) fn mount_ext4(&mut self, device: &Path) -> PathBuf {
        let place = self.place.path().join("ext4");
        fs::create_dir_all(&place).unwrap();
        let none: Option<&str> = None;
        mount(Some(device), &place, Some("ext4"), MsFlags::empty(), none).unwrap();
        self.ext4 = Some(place.clone());
        place
    }

    pub(crate) fn unmount_ext4(&mut self) {
        let place = self.ext4.take().unwrap();
        umount2(&place, MntFlags::empty()).unwrap();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.process.kill();
            let _ = server.process.wait();
        }
        // Ends the requests that still wait for a reply, with an error.
        self.connection = None;
        if let Some(place) = self.ext4.take() {
            let _ = umount2(&place, MntFlags::MNT_DETACH);
        }
        let _ = clean_stale(&self.parts.dir);
    }
}

/// Runs a command, which must succeed.
pub(crate) fn run(program: &str, arguments: &[&Path]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let (out, err) = (&output.stdout, &output.stderr);
    let text = String::from_utf8_lossy(out) + String::from_utf8_lossy(err);
    assert!(output.status.success(), "{program}: {text}");
}
