//! Debian's docker-registry on this host, with TLS and a password, in a folder of its own.

use cowshed_testkit::fixtures;
use cowshed_testkit::harness::eventually;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub(crate) const USER: &str = "user";
pub(crate) const PASSWORD: &str = "pass:word";

/// A running registry, which ends with this value.
pub(crate) struct Registry {
    folder: tempfile::TempDir,
    process: Child,
    /// Its host and port.
    pub(crate) server: String,
}

impl Registry {
    pub(crate) fn start() -> Self {
        Self::start_with(make_certificates)
    }

    /// Starts a registry whose certificate no authority has signed: it is for `names` alone.
    pub(crate) fn self_signed(names: &str) -> Self {
        Self::start_with(|folder| make_certificate(folder, names))
    }

    /// Starts a registry whose certificate was signed with the one of another server.
    pub(crate) fn signed_by_a_server() -> Self {
        Self::start_with(|folder| make_certificates_of(folder, false))
    }

    fn start_with(certify: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cowshed-registry-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let path = |name: &str| folder.path().join(name);
        certify(folder.path());
        let entry = fixtures::run("htpasswd", ["-Bbn", USER, PASSWORD]);
        fs::write(path("htpasswd"), entry.trim()).unwrap();
        // The port is free at least until it is closed again.
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("127.0.0.1:{}", port.local_addr().unwrap().port());
        drop(port);
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\n\
             storage: {{filesystem: {{rootdirectory: {0}/data}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '{server}', tls: {{certificate: {0}/server.crt, key: {0}/server.key}}}}\n\
             auth: {{htpasswd: {{realm: test, path: {0}/htpasswd}}}}\n",
            folder.path().display()
        );
        fs::write(path("config.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(path("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log")).unwrap())
            .spawn()
            .unwrap();
        let registry = Self {
            folder,
            process,
            server,
        };
        eventually("the registry's start", || {
            TcpStream::connect(&registry.server).is_ok()
        });
        registry
    }

    /// Returns the certificate of its authority.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.path().join("certificates/ca.crt")
    }

    /// Returns the server's own certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("server.crt")
    }

    /// Returns a file with the password.
    pub(crate) fn login(&self) -> PathBuf {
        let file = self.folder.path().join("auth.json");
        let pair = format!("{USER}:{PASSWORD}");
        let output = Command::new("sh")
            .args(["-c", "printf %s \"$1\" | base64 -w0", "sh", &pair])
            .output()
            .unwrap();
        let auth = String::from_utf8(output.stdout).unwrap();
        let text = format!(
            r#"{{"auths": {{"{}": {{"auth": "{auth}"}}}}}}"#,
            self.server
        );
        fs::write(&file, text).unwrap();
        file
    }

    /// Runs `skopeo copy`, with the password and the certificate.
    pub(crate) fn skopeo_copy(&self, from: &str, to: &str) {
        let credentials = format!("{USER}:{PASSWORD}");
        let certificates = self.folder.path().join("certificates");
        let certificates = certificates.to_str().unwrap();
        let side = if to.starts_with("docker:") {
            "dest"
        } else {
            "src"
        };
        fixtures::run(
            "skopeo",
            [
                "--insecure-policy",
                "copy",
                "--quiet",
                "--all",
                "--preserve-digests",
                &format!("--{side}-creds"),
                &credentials,
                &format!("--{side}-cert-dir"),
                certificates,
                from,
                to,
            ],
        );
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const KEY: [&str; 5] = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
];

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Makes a certificate that signs itself, as registries' manuals say: openssl marks it as an authority.
fn make_certificate(folder: &Path, names: &str) {
    let names = format!("subjectAltName={names}");
    let request = ["req", "-x509", "-days", "2", "-subj", "/CN=registry"];
    let files = ["-keyout", "server.key", "-out", "server.crt"];
    let names = ["-addext", &names];
    openssl(folder, &[&request[..], &KEY, &names, &files].concat());
}

/// Makes an authority, and a certificate of it for this host.
fn make_certificates(folder: &Path) {
    make_certificates_of(folder, true);
}

/// Makes the certificate of an authority, or of a server, and another one for this host that it has
/// signed.
fn make_certificates_of(folder: &Path, is_authority: bool) {
    let openssl = |arguments: &[&str]| openssl(folder, arguments);
    fs::create_dir(folder.join("certificates")).unwrap();
    let mut request = vec!["req", "-x509", "-days", "2", "-subj", "/CN=authority"];
    if !is_authority {
        request.extend(["-addext", "basicConstraints=critical,CA:FALSE"]);
    }
    request.extend(KEY);
    request.extend(["-keyout", "ca.key", "-out", "certificates/ca.crt"]);
    openssl(&request);
    openssl(
        &[
            &["req", "-subj", "/CN=registry"],
            &KEY[..],
            &["-keyout", "server.key", "-out", "server.csr"],
        ]
        .concat(),
    );
    fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        "server.csr",
        "-CA",
        "certificates/ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-extfile",
        "names",
        "-out",
        "server.crt",
    ]);
}
