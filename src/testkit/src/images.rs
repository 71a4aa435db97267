//! Images built by the tests, as OCI archives.

use crate::fixtures::run;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The image of a pod's sandbox container, as containerd's configuration names it.
pub const PAUSE: &str = "docker.io/test/pause:1";

/// Returns the machine's architecture, as images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Returns the path of the host's static busybox.
pub fn busybox() -> PathBuf {
    PathBuf::from(run("which", ["busybox"]).trim())
}

/// Fills a folder with the files that a shell needs.
pub fn shell_root(root: &Path) {
    for folder in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "var"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy(busybox(), root.join("bin/busybox")).unwrap();
    // Links, so that a build's RUN and `docker exec` find the programs.
    for name in [
        "sh",
        "ls",
        "cat",
        "cp",
        "mkdir",
        "rm",
        "chmod",
        "sleep",
        "dd",
        "tar",
        "sha256sum",
        "sync",
        "test",
        "mv",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
}

/// Packs a folder as a plain layer.
pub fn pack(folder: &Path, tar: &Path) {
    let (folder, tar) = (folder.to_str().unwrap(), tar.to_str().unwrap());
    run(
        "tar",
        [
            "--create",
            "--format=posix",
            "--sort=name",
            "--numeric-owner",
            "--file",
            tar,
            "--directory",
            folder,
            ".",
        ],
    );
}

/// An image under construction: a layout as a folder.
pub struct Image {
    folder: PathBuf,
    layers: Vec<(String, u64)>,
    /// Docker's name for it.
    name: Option<String>,
    command: Vec<String>,
}

impl Image {
    pub fn new(folder: PathBuf) -> Self {
        fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        Self {
            folder,
            layers: Vec::new(),
            name: None,
            command: vec!["/bin/sh".to_owned()],
        }
    }

    /// Gives it a full name, for clients that do not choose one when they load it.
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Sets the command of its containers.
    pub fn running(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Adds a plain tar as the next layer; the file is moved into the layout.
    pub fn layer(mut self, tar: &Path) -> Self {
        let (digest, size) = digest_of(tar);
        let blob = self.folder.join("blobs/sha256").join(&digest);
        if fs::rename(tar, &blob).is_err() {
            fs::copy(tar, &blob).unwrap();
        }
        self.layers.push((digest, size));
        self
    }

    /// Adds a layer with the files that `fill` puts into a folder.
    pub fn filled(self, fill: impl FnOnce(&Path)) -> Self {
        let work = self.folder.join("work");
        fs::create_dir(&work).unwrap();
        fill(&work);
        let tar = self.folder.join("layer.tar");
        pack(&work, &tar);
        fs::remove_dir_all(&work).unwrap();
        self.layer(&tar)
    }

    /// Writes the archive, in which the image is named `latest` below any base name.
    pub fn write(self) -> PathBuf {
        let diff_ids: Vec<_> = self
            .layers
            .iter()
            .map(|(digest, _)| format!("sha256:{digest}"))
            .collect();
        let history: Vec<_> = (0..self.layers.len())
            .map(|number| json!({"created_by": format!("layer {number}")}))
            .collect();
        let config = json!({
            "architecture": architecture(), "os": "linux", "created": "2024-01-02T03:04:05Z",
            "config": {"Cmd": self.command, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history,
        });
        let layers: Vec<_> = self.layers.iter().map(|(digest, size)| {
            json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": format!("sha256:{digest}"), "size": size})
        }).collect();
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type,
            "config": self.put(&config, "application/vnd.oci.image.config.v1+json"), "layers": layers,
        });
        let mut manifest = self.put(&manifest, manifest_type);
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        if let Some(name) = &self.name {
            manifest["annotations"]["io.containerd.image.name"] = json!(name);
        }
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(self.folder.join("index.json"), index.to_string()).unwrap();
        fs::write(
            self.folder.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        let archive = self.folder.with_extension("tar");
        pack(&self.folder, &archive);
        fs::remove_dir_all(&self.folder).unwrap();
        archive
    }

    fn put(&self, document: &Value, media_type: &str) -> Value {
        let bytes = document.to_string();
        let digest = crate::fixtures::listing::hex(&Sha256::digest(&bytes));
        fs::write(self.folder.join("blobs/sha256").join(&digest), &bytes).unwrap();
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    }
}

fn digest_of(file: &Path) -> (String, u64) {
    let mut file = File::open(file).unwrap();
    let (mut hash, mut buffer, mut size) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        let len = file.read(&mut buffer).unwrap();
        if len == 0 {
            return (crate::fixtures::listing::hex(&hash.finalize()), size);
        }
        hash.update(&buffer[..len]);
        size += len as u64;
    }
}

/// Creates an image of a shell, many small files, and a few large ones; `seed` determines its
/// contents, and `sums` in it lists their checksums.
pub fn varied(folder: &Path, seed: u64) -> PathBuf {
    const LAYERS: u64 = 4;
    const FILES: u64 = 400;
    let mut image = Image::new(folder.join(format!("image-{seed}"))).filled(shell_root);
    for layer in 0..LAYERS {
        image = image.filled(|root| {
            let data = root.join(format!("data/{layer}"));
            fs::create_dir_all(&data).unwrap();
            let mut sums = String::new();
            for number in 0..=FILES {
                let len = if number == 0 { 4 << 20 } else { 3000 };
                let bytes = crate::harness::noise(len, seed << 32 | layer << 16 | number);
                let name = format!("data/{layer}/{number}");
                let sum = crate::fixtures::listing::hex(&Sha256::digest(&bytes));
                sums += &format!("{sum}  /{name}\n");
                File::create(root.join(name))
                    .unwrap()
                    .write_all(&bytes)
                    .unwrap();
            }
            fs::write(data.join("sums"), sums).unwrap();
        });
    }
    image.write()
}

/// The command with which a container of a varied image verifies its contents.
pub const VERIFY: &str =
    "for n in 0 1 2 3; do sha256sum -c /data/$n/sums >/dev/null || exit 1; done; echo whole";
