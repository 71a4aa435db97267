//! A pool in memory with the snapshots and diff services on it, and a content store beside it.

use crate::client::Client;
use crate::diff_wire::Descriptor;
use crate::differ::{Differ, descriptor};
use crate::store::Store;
use crate::wire::Mount;
use cowshed_check::{CheckOptions, check};
use cowshed_daemon::snapshotter::{MountMode, Options, Server};
use cowshed_engine::{CreateOptions, OpenOptions, Pool};
use cowshed_export::{Export, ExportOptions};
use cowshed_format::device::MemoryDevice;
use cowshed_host::Host;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The time after which a test gives up on any operation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Stage {
    pub(crate) client: Client,
    pub(crate) differ: Differ,
    pub(crate) store: Store,
    server: Option<Server>,
    pub(crate) host: Option<Arc<Host>>,
    pub(crate) export: Arc<Export>,
    pub(crate) pool: Pool,
    pub(crate) device: Arc<MemoryDevice>,
    folder: TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with_mounts(MountMode::Dir)
    }

    pub(crate) fn with_mounts(mounts: MountMode) -> Self {
        Self::start(mounts, 6 << 30, 1 << 30)
    }

    pub(crate) fn of_size(size_bytes: u64) -> Self {
        Self::start(MountMode::Dir, size_bytes, 1 << 30)
    }

    /// Starts with snapshots of this size.
    pub(crate) fn with_snapshots_of(size_bytes: u64) -> Self {
        Self::start(MountMode::Dir, 6 << 30, size_bytes)
    }

    fn start(mounts: MountMode, size_bytes: u64, snapshot_bytes: u64) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cowshed-diff-")
            .tempdir()
            .unwrap();
        let device = Arc::new(MemoryDevice::new(size_bytes));
        Pool::create(device.as_ref(), &CreateOptions::default()).unwrap();
        let pool = Pool::open(Arc::clone(&device) as _, &OpenOptions::default()).unwrap();
        let files = folder.path().join("files");
        let export = Export::mount(pool.clone(), &files, ExportOptions::default()).unwrap();
        let export = Arc::new(export);
        let state = folder.path().join("state");
        let host = Host::with_export(pool.clone(), &state, Arc::clone(&export)).unwrap();
        let host = Arc::new(host);
        let store = Store::start(folder.path());
        let socket = folder.path().join("snapshots.sock");
        let options = Options {
            mounts,
            size_bytes: snapshot_bytes,
            containerd_address: Some(store.socket.clone()),
        };
        let listener = UnixListener::bind(&socket).unwrap();
        let server = Server::start(listener, Arc::clone(&host), options).unwrap();
        Self {
            client: Client::connect(&socket),
            differ: Differ::connect(&socket),
            store,
            server: Some(server),
            host: Some(host),
            export,
            pool,
            device,
            folder,
        }
    }

    /// Creates a folder that is removed with the stage.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn host(&self) -> &Host {
        self.host.as_ref().unwrap()
    }

    /// Puts a blob into the store, and returns its descriptor.
    pub(crate) fn blob(&self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let size = i64::try_from(bytes.len()).unwrap();
        Descriptor {
            size,
            ..descriptor(media_type, &self.store.put(bytes))
        }
    }

    /// Commits a snapshot of a folder that `script` fills, on `parent`.
    pub(crate) fn commit(&mut self, name: &str, parent: &str, script: &str) {
        let mount = self.client.prepare(&format!("{name}-key"), parent).unwrap();
        shell(Path::new(&mount.source), script);
        self.client.commit(name, &format!("{name}-key")).unwrap();
    }

    /// Returns the names of volumes under `work/`.
    pub(crate) fn in_work(&self) -> Vec<String> {
        let volumes = self.pool.volumes().into_iter();
        let names = volumes.map(|volume| volume.name.to_string());
        names.filter(|name| name.starts_with("work/")).collect()
    }
}

/// After every test, every file system is sound, and so is every block of the pool.
impl Drop for Stage {
    fn drop(&mut self) {
        let ended = self
            .server
            .take()
            .is_none_or(|mut server| server.stop(PATIENCE));
        let host = self.host.take();
        if std::thread::panicking() {
            return;
        }
        assert!(ended, "calls did not end");
        if let Some(host) = host {
            // A program that another test is about to start has this process's files open for a
            // moment.
            eventually("an end of all mounts", || host.close().is_ok());
        }
        let volumes = self.pool.volumes().into_iter();
        // A recipe of a layer is no file system.
        for info in volumes.filter(|info| !info.name.as_str().starts_with("recipe/")) {
            let volume = self.pool.volume_by_id(info.id).unwrap();
            let path = self.export.file_path(&volume);
            let checked = Command::new("/usr/sbin/e2fsck")
                .arg("-fn")
                .arg(&path)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&checked.stdout);
            assert!(checked.status.success(), "{}: {text}", info.name);
        }
        self.export.unmount().unwrap();
        self.pool.close().unwrap();
        let options = CheckOptions {
            deep: true,
            repair: false,
            forget: false,
        };
        let report = check(&*self.device, options, &mut |_| {}).unwrap();
        assert!(report.clean(), "{:?}", report.findings);
    }
}

/// Returns the folder that a mount of ours shows.
pub(crate) fn place(mount: &Mount) -> &Path {
    assert_eq!(mount.r#type, "bind");
    Path::new(&mount.source)
}

/// Runs a shell script, which must succeed.
pub(crate) fn shell(folder: &Path, script: &str) {
    let done = Command::new("bash")
        .args(["-euc", script])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn gzipped(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns the uncompressed content of a blob, however it was compressed.
pub(crate) fn uncompressed(media_type: &str, bytes: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut plain = Vec::new();
    match media_type.rsplit_once('+').map(|(_, suffix)| suffix) {
        Some("gzip") => {
            let mut decoder = flate2::read::GzDecoder::new(bytes);
            decoder.read_to_end(&mut plain).unwrap();
        }
        Some("zstd") => plain = zstd::decode_all(bytes).unwrap(),
        _ => plain.extend_from_slice(bytes),
    }
    plain
}
