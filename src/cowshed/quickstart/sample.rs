//! The image that the quickstart creates by default: this host's own shell and tools with the
//! libraries that they need in one layer, and a large file of the host in a second one.
//!
//! It is an OCI layout of two plain tar layers; nothing is downloaded and nothing is installed.

use anyhow::Context;
use cowshed_sys::program;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The name of the image.
pub(super) const NAME: &str = "quickstart";
/// The programs of the sample root; those that the host lacks are left out, except for the shell.
const PROGRAMS: [&str; 24] = [
    "sh",
    "ls",
    "cat",
    "cp",
    "mv",
    "rm",
    "mkdir",
    "rmdir",
    "ln",
    "touch",
    "chmod",
    "chown",
    "head",
    "tail",
    "wc",
    "sort",
    "cut",
    "tr",
    "date",
    "env",
    "id",
    "uname",
    "sha256sum",
    "dd",
];
/// The folders that are searched for programs.
const PROGRAM_FOLDERS: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
/// The folders that are searched for the large file of the second layer, not recursively.
const LARGE_FILE_FOLDERS: [&str; 5] = [
    "/usr/lib/locale",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/bin",
];
/// A larger file is not taken: it would make the quickstart slow.
const LARGE_FILE_BYTES_MAX: u64 = 128 << 20;
/// The folder of the large file in the image.
const LARGE_FILE_FOLDER: &str = "opt/large";
/// The symbolic links of the root: name and target.
const LINKS: [(&str, &str); 4] = [
    ("bin", "usr/bin"),
    ("sbin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
];

/// Writes the sample image as an OCI layout into the new folder `layout`.
pub(super) fn write(layout: &Path) -> anyhow::Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).context("make the sample image")?;
    let base = write_layer(&blobs, &base_files()?).context("write the sample image's base")?;
    let large = write_layer(&blobs, &large_files()?).context("write the sample image's top")?;
    write_documents(layout, &blobs, &[base, large]).context("write the sample image")
}

/// The source of an entry's bytes.
enum Content {
    Host(PathBuf),
    Text(String),
    Link(&'static str),
}

/// The files of a layer by their paths in the image.
type Files = BTreeMap<PathBuf, Content>;

fn base_files() -> anyhow::Result<Files> {
    let mut files = Files::new();
    for (link, target) in LINKS {
        files.insert(link.into(), Content::Link(target));
    }
    for program in PROGRAMS {
        let Some(path) = find_program(program) else {
            anyhow::ensure!(
                program != "sh",
                "this host has no shell to make a sample image of"
            );
            continue;
        };
        for library in libraries(&path)? {
            files.insert(place_in_image(&library), Content::Host(library));
        }
        files.insert(Path::new("usr/bin").join(program), Content::Host(path));
    }
    let release = Path::new("/etc/os-release");
    if release.exists() {
        files.insert("etc/os-release".into(), Content::Host(release.to_owned()));
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\n";
    files.insert("etc/passwd".into(), Content::Text(passwd.to_owned()));
    files.insert("etc/group".into(), Content::Text("root:x:0:\n".to_owned()));
    Ok(files)
}

fn large_files() -> anyhow::Result<Files> {
    let large = LARGE_FILE_FOLDERS
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.metadata().ok()?, entry.path())))
        .filter(|(metadata, _)| metadata.is_file() && metadata.len() <= LARGE_FILE_BYTES_MAX)
        .max_by_key(|(metadata, _)| metadata.len());
    let (_, path) = large.context("this host has no file to put into the sample image")?;
    let name = path.file_name().context("a file without a name")?;
    let inside = Path::new(LARGE_FILE_FOLDER).join(name);
    let greeting = "This root was made of files of its host.\n".to_owned();
    Ok(Files::from([
        ("etc/motd".into(), Content::Text(greeting)),
        (inside, Content::Host(path)),
    ]))
}

fn find_program(name: &str) -> Option<PathBuf> {
    PROGRAM_FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
}

/// Returns a host's path as it is in the image, where `/lib` and `/lib64` are links into `/usr`.
fn place_in_image(path: &Path) -> PathBuf {
    let inside = path.strip_prefix("/").unwrap_or(path);
    if inside.starts_with("usr") {
        inside.to_owned()
    } else {
        Path::new("usr").join(inside)
    }
}

/// Returns the libraries and the loader that `program` needs; none for a static program.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = program::command("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .context("run ldd, which lists a program's libraries; or give an image with --image")?;
    Ok(parse_ldd(&String::from_utf8_lossy(&output.stdout)))
}

/// Parses the paths in lines such as `libc.so.6 => /lib/libc.so.6 (0x7f…)` and
/// `/lib64/ld.so (0x7f…)`.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let named = line.split_once("=>").map_or(line, |(_, path)| path).trim();
        let path = named.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    text.lines().filter_map(path).collect()
}

/// A blob that was written.
struct Blob {
    digest: String,
    len_bytes: u64,
}

impl Blob {
    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.len_bytes })
    }
}

fn write_layer(blobs: &Path, files: &Files) -> anyhow::Result<Blob> {
    let part = blobs.join("part");
    let mut tar = tar::Builder::new(io::BufWriter::new(File::create_new(&part)?));
    for folder in folders(files) {
        tar.append_data(
            &mut header(tar::EntryType::Directory, 0, 0o755),
            folder,
            io::empty(),
        )?;
    }
    for (path, content) in files {
        append(&mut tar, path, content).with_context(|| format!("add {}", path.display()))?;
    }
    tar.into_inner()?
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    adopt(blobs, &part)
}

/// Returns all folders above the files, the outer ones first.
fn folders(files: &Files) -> Vec<PathBuf> {
    let above = files.keys().flat_map(|path| path.ancestors().skip(1));
    let mut folders: Vec<_> = above
        .filter(|path| !path.as_os_str().is_empty())
        .map(Path::to_owned)
        .collect();
    folders.sort();
    folders.dedup();
    folders
}

fn append(
    tar: &mut tar::Builder<io::BufWriter<File>>,
    path: &Path,
    content: &Content,
) -> anyhow::Result<()> {
    match content {
        Content::Link(target) => {
            let mut header = header(tar::EntryType::Symlink, 0, 0o777);
            tar.append_link(&mut header, path, target)?;
        }
        Content::Text(text) => {
            let mut header = header(tar::EntryType::Regular, text.len() as u64, 0o644);
            tar.append_data(&mut header, path, text.as_bytes())?;
        }
        Content::Host(source) => {
            let file = File::open(source)?;
            let metadata = file.metadata()?;
            let mode = metadata.permissions().mode() & 0o755;
            let mut header = header(tar::EntryType::Regular, metadata.len(), mode);
            tar.append_data(&mut header, path, file)?;
        }
    }
    Ok(())
}

fn header(kind: tar::EntryType, len_bytes: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(len_bytes);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Renames the file `part` to its digest among the blobs.
fn adopt(blobs: &Path, part: &Path) -> anyhow::Result<Blob> {
    let mut hasher = Sha256::new();
    let len_bytes = io::copy(&mut File::open(part)?, &mut Hashing(&mut hasher))?;
    let hex: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    fs::rename(part, blobs.join(&hex))?;
    Ok(Blob {
        digest: format!("sha256:{hex}"),
        len_bytes,
    })
}

struct Hashing<'a>(&'a mut Sha256);

impl io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_documents(layout: &Path, blobs: &Path, layers: &[Blob]) -> anyhow::Result<()> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.digest.as_str()).collect();
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": { "Cmd": ["/bin/sh"], "Env": ["PATH=/usr/bin"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [
            { "created_by": "the host's shell and tools" },
            { "created_by": "a large file of the host" },
        ],
    });
    let config = write_blob(blobs, &config)?;
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| layer.descriptor(layer_type))
        .collect();
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    });
    let mut manifest = write_blob(blobs, &manifest)?.descriptor(manifest_type);
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": NAME });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(
        layout.join("oci-layout"),
        json!({ "imageLayoutVersion": "1.0.0" }).to_string(),
    )?;
    Ok(())
}

fn write_blob(blobs: &Path, document: &Value) -> anyhow::Result<Blob> {
    let part = blobs.join("part");
    fs::write(&part, document.to_string())?;
    adopt(blobs, &part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \tlibgone.so => not found\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(parse_ldd(text), expected.map(PathBuf::from));
        assert!(parse_ldd("\tnot a dynamic executable\n").is_empty());
        assert_eq!(
            place_in_image(Path::new("/lib64/ld.so")),
            Path::new("usr/lib64/ld.so")
        );
        assert_eq!(
            place_in_image(Path::new("/usr/lib/x.so")),
            Path::new("usr/lib/x.so")
        );
    }

    #[test]
    fn the_sample_root_runs_its_shell_when_unpacked_and_every_digest_is_true() {
        let folder = tempfile::tempdir().unwrap();
        let layout = folder.path().join("layout");
        write(&layout).unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        let read = |digest: &str| {
            let hex = digest.strip_prefix("sha256:").unwrap();
            let bytes = fs::read(layout.join("blobs/sha256").join(hex)).unwrap();
            let actual: String = Sha256::digest(&bytes)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert_eq!(actual, hex);
            bytes
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let index = json(&fs::read(layout.join("index.json")).unwrap());
        let manifest = json(&read(index["manifests"][0]["digest"].as_str().unwrap()));
        read(manifest["config"]["digest"].as_str().unwrap());
        for layer in manifest["layers"].as_array().unwrap() {
            let bytes = read(layer["digest"].as_str().unwrap());
            assert_eq!(bytes.len() as u64, layer["size"].as_u64().unwrap());
            tar::Archive::new(bytes.as_slice()).unpack(&root).unwrap();
        }
        let output = Command::new("chroot")
            .arg(&root)
            .args(["/bin/sh", "-c", "ls /opt/large && cat /etc/motd"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("made of files"),
            "{output:?}"
        );
    }
}
