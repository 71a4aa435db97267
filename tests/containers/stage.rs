//! A pool in memory with a host on it, and images built by the tests.

use cowshed_check::{CheckOptions, check};
use cowshed_engine::{CreateOptions, OpenOptions, Pool};
use cowshed_export::{Export, ExportOptions};
use cowshed_format::base::Name;
use cowshed_format::device::MemoryDevice;
use cowshed_host::{Host, ImportOptions, ImportedImage, ImportedLayer};
use cowshed_oci::{Digest, SourceInput};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// A host with its own pool. The fields are dropped in this order: the host unmounts its
/// containers, the export its files, and then the folder is removed.
pub(crate) struct Stage {
    pub(crate) host: Host,
    pub(crate) export: Arc<Export>,
    pub(crate) pool: Pool,
    device: Arc<MemoryDevice>,
    folder: TempDir,
}

/// After every test, all remaining file systems are sound, and so is every block of the pool.
impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() || self.host.close().is_err() {
            return;
        }
        if !self.pool.volumes().is_empty() {
            self.check_file_systems();
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

impl Stage {
    pub(crate) fn new() -> Self {
        Self::on(new_pool())
    }

    pub(crate) fn on((device, pool): (Arc<MemoryDevice>, Pool)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = folder.path().join("files");
        let export = Export::mount(pool.clone(), &files, ExportOptions::default()).unwrap();
        let export = Arc::new(export);
        let state = folder.path().join("state");
        let host = Host::with_export(pool.clone(), &state, Arc::clone(&export)).unwrap();
        Self {
            host,
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

    pub(crate) fn import(&self, path: &Path, name: &str) -> ImportedImage {
        self.try_import(path, name).unwrap()
    }

    pub(crate) fn try_import(
        &self,
        path: &Path,
        name: &str,
    ) -> Result<ImportedImage, cowshed_host::Error> {
        let image = self
            .host
            .images()
            .open(SourceInput::Path(path.to_owned()), None)?;
        let options = ImportOptions {
            name: Some(Name::new(name).unwrap()),
            ..Default::default()
        };
        self.host.images().import(&image, &options, &mut |_| true)
    }

    /// Creates a container and mounts it.
    pub(crate) fn container(&self, image: &str, name: &str) -> PathBuf {
        let options = cowshed_host::CreateContainer {
            name: Some(Name::new(name).unwrap()),
            ..Default::default()
        };
        self.host.containers().create(image, &options).unwrap();
        self.host.containers().mount(name, None).unwrap().path
    }

    /// Returns the names of all volumes but recipes, which belong to their layers.
    pub(crate) fn volumes(&self) -> Vec<String> {
        let names = self.pool.volumes().into_iter();
        let names = names.map(|volume| volume.name.to_string());
        names.filter(|name| !name.starts_with("recipe/")).collect()
    }

    /// Asserts that there is a recipe for each of these layers, and no other.
    pub(crate) fn check_recipes(&self, layers: &[ImportedLayer]) {
        let names = self.pool.volumes().into_iter();
        let names = names.map(|volume| volume.name.to_string());
        let found: Vec<String> = names.filter(|name| name.starts_with("recipe/")).collect();
        let wanted = layers
            .iter()
            .map(|layer| format!("recipe/{}", layer.chain_id));
        let mut wanted: Vec<String> = wanted.collect();
        wanted.sort();
        assert_eq!(found, wanted);
    }

    /// Runs e2fsck on every volume but recipes, which have no file system; none may be mounted.
    pub(crate) fn check_file_systems(&self) {
        let volumes = self.volumes();
        assert!(!volumes.is_empty());
        for name in volumes {
            let volume = self.pool.volume(&name).unwrap();
            let path = self.export.file_path(&volume);
            let checked = Command::new("/usr/sbin/e2fsck")
                .arg("-fn")
                .arg(&path)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&checked.stdout);
            assert!(checked.status.success(), "{name}: {text}");
        }
        let scrubbed = self.pool.scrub(&mut |_, _| true).unwrap();
        assert!(scrubbed.bad.is_empty(), "{:?}", scrubbed.bad);
    }
}

/// Creates a pool in memory that is large enough for every test.
pub(crate) fn new_pool() -> (Arc<MemoryDevice>, Pool) {
    pool_of(4 << 30)
}

/// Creates a pool in memory of this size.
pub(crate) fn pool_of(size_bytes: u64) -> (Arc<MemoryDevice>, Pool) {
    let device = Arc::new(MemoryDevice::new(size_bytes));
    Pool::create(device.as_ref(), &CreateOptions::default()).unwrap();
    let pool = Pool::open(Arc::clone(&device) as _, &OpenOptions::default()).unwrap();
    (device, pool)
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

/// An image under construction: the layers as GNU tar wrote them.
pub(crate) struct ImageFolder {
    pub(crate) folder: PathBuf,
    pub(crate) layers: Vec<String>,
}

impl ImageFolder {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            layers: Vec::new(),
        }
    }

    /// Adds a layer with everything in the folder that `script` fills.
    pub(crate) fn layer(mut self, script: &str) -> Self {
        let number = self.layers.len() + 1;
        let content = self.folder.join(format!("content-{number}"));
        fs::create_dir(&content).unwrap();
        shell(&content, script);
        let name = format!("layer-{number}.tar");
        let tar = "tar --format=pax --xattrs --xattrs-include='*' --sparse --numeric-owner";
        shell(&content, &format!("{tar} -cf ../{name} --sort=name ."));
        self.layers.push(name);
        self
    }

    /// Writes the image as a docker-archive.
    pub(crate) fn archive(&self, tag: &str) -> PathBuf {
        let diff_ids: Vec<String> = self
            .layers
            .iter()
            .map(|layer| Digest::of(&fs::read(self.folder.join(layer)).unwrap()).to_string())
            .collect();
        let history: Vec<_> = (0..self.layers.len())
            .map(|index| serde_json::json!({"created_by": format!("step {index}")}))
            .collect();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "unknown": {"kept": [1, 2.50]},
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        });
        fs::write(self.folder.join("config.json"), config.to_string()).unwrap();
        let manifest = serde_json::json!([
            {"Config": "config.json", "RepoTags": [tag], "Layers": self.layers}
        ]);
        fs::write(self.folder.join("manifest.json"), manifest.to_string()).unwrap();
        let layers = self.layers.join(" ");
        shell(
            &self.folder,
            &format!("tar -cf image.tar manifest.json config.json {layers}"),
        );
        self.folder.join("image.tar")
    }

    /// Returns the tree that GNU tar makes of the layers, with whiteouts applied by the shell.
    pub(crate) fn expected_tree(&self) -> PathBuf {
        let root = self.folder.join("expected");
        fs::create_dir(&root).unwrap();
        for layer in &self.layers {
            // First the entries that a layer hides are removed; then its own entries are added,
            // without the whiteouts.
            let script = format!(
                "tar -tf ../{layer} | while read -r path; do
                   name=${{path##*/}}; above=${{path%\"$name\"}}
                   case $name in
                     .wh..wh..opq) find \"./$above\" -mindepth 1 -delete;;
                     .wh.*) rm -rf \"./$above${{name#.wh.}}\";;
                   esac
                 done
                 tar --xattrs --xattrs-include='*' --numeric-owner --exclude='.wh.*' -xpf ../{layer}"
            );
            shell(&root, &script);
        }
        root
    }
}

/// A small image of two layers with a shell in it.
pub(crate) fn small_image(folder: PathBuf) -> PathBuf {
    ImageFolder::new(folder)
        .layer(
            "mkdir -p bin etc var/lib tmp; cp \"$(command -v busybox)\" bin/busybox
             ln -s busybox bin/sh; echo root:x:0:0 > etc/passwd; echo one > etc/one
             echo two > etc/two; ln etc/one etc/one-again; chmod 1777 tmp",
        )
        .layer(
            "mkdir -p etc var/lib/data; echo second > etc/second; touch etc/.wh.two
                for n in $(seq 50); do echo $n > var/lib/data/$n; done",
        )
        .archive("small:1")
}
