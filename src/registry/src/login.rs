//! Credentials and certificates in the files that Docker and containers (Podman, skopeo) keep.
//!
//! The first file that has the registry decides. Without one, everything is asked for anonymously.

use crate::access::Credentials;
use crate::error::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cowshed_format::base::Cancel;
use cowshed_oci::Reference;
use cowshed_sys::program;
use nix::unistd::geteuid;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The largest such file.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The names of Docker's own registry in these files.
const DOCKER_NAMES: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// The name by which helpers know Docker's own registry.
const DOCKER_HELPED: &str = "https://index.docker.io/v1/";
/// The user's name by which a helper says that the secret is an identity token.
const IS_TOKEN: &str = "<token>";
/// The longest time for a helper, which may ask its user for a password.
const HELPER_TIME: Duration = Duration::from_secs(60);
const HELPER_POLL: Duration = Duration::from_millis(20);
/// The most that is read of a helper's answer.
const HELPED_BYTES_MAX: u64 = 64 << 10;
/// Folders with a folder of certificates for each registry.
const CERTIFICATES: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// Returns the files in which credentials are looked for, the first ones first. `variable` returns
/// the value of an environment variable.
#[must_use]
pub fn files(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let get = |name: &str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    // Who names a file means that one alone.
    if let Some(file) = get("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = get("HOME");
    let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
    let runtime = get("XDG_RUNTIME_DIR").map_or_else(
        || PathBuf::from(format!("/run/containers/{}", geteuid())),
        |folder| folder.join("containers"),
    );
    let config = get("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
    [
        get("DOCKER_CONFIG").map(|folder| folder.join("config.json")),
        Some(runtime.join("auth.json")),
        config.map(|folder| folder.join("containers/auth.json")),
        in_home(".docker/config.json"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Returns the credentials for the registry of `reference` in the first of `files` that has some.
///
/// A helper that fails is told to `unusable`, and counts as one that has none: most images are
/// public, and the helper may be another host's.
///
/// # Errors
/// `Credentials` if a file is damaged.
pub fn credentials(
    reference: &Reference,
    files: &[PathBuf],
    unusable: &mut dyn FnMut(Error),
) -> Result<Option<Credentials>> {
    for path in files {
        let Some(file) = read(path)? else { continue };
        if let Some(found) = file.credentials(reference, path, unusable)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Returns the files with certificates of authorities for the registry of `reference`.
#[must_use]
pub fn authorities(reference: &Reference) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in CERTIFICATES {
        let folder = Path::new(folder).join(reference.domain());
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        let files = entries.flatten().map(|entry| entry.path());
        found.extend(files.filter(|path| path.extension().is_some_and(|end| end == "crt")));
    }
    found.sort();
    found
}

/// The part of the files that matters here.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LoginFile {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    /// Name and password with a colon between them, as base64.
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// What a helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

fn read(path: &Path) -> Result<Option<LoginFile>> {
    let fault = |fault: String| Error::Credentials {
        path: path.to_owned(),
        fault,
    };
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    match read {
        Ok(_) => {}
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(fault(error.to_string())),
    }
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    // The parser's own words could hold a part of a secret.
    let parsed = serde_json::from_slice(&bytes)
        .map_err(|error| fault(format!("it is not valid in line {}", error.line())));
    parsed.map(Some)
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

impl LoginFile {
    fn credentials(
        &self,
        reference: &Reference,
        path: &Path,
        unusable: &mut dyn FnMut(Error),
    ) -> Result<Option<Credentials>> {
        let names = names(reference);
        let helper = self
            .cred_helpers
            .iter()
            .find(|(key, _)| names.contains(&host_of(key).to_owned()))
            .map_or(&*self.creds_store, |(_, helper)| helper.as_str());
        // An empty name means none.
        if !helper.is_empty() {
            match ask(helper, reference) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => unusable(error),
            }
        }
        // The one that names the most of the repository is meant.
        let fits = |key: &&String| names.contains(&host_of(key).to_owned());
        let entry = self
            .auths
            .keys()
            .filter(fits)
            .max_by_key(|key| key_path(key).len());
        match entry.and_then(|key| self.auths.get(key)) {
            Some(entry) => entry.credentials(path),
            None => Ok(None),
        }
    }
}

/// Returns the names under which credentials for the repository may be: the registry's, and those of
/// the folders of repositories.
fn names(reference: &Reference) -> Vec<String> {
    let domain = reference.domain();
    let mut hosts = vec![domain];
    if DOCKER_NAMES.contains(&domain) {
        hosts.extend(DOCKER_NAMES);
    }
    let mut names: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut path = reference.path();
    loop {
        names.extend(hosts.iter().map(|host| format!("{host}/{path}")));
        match path.rsplit_once('/') {
            Some((folder, _)) => path = folder,
            None => return names,
        }
    }
}

/// Returns the key without what older versions wrote around the host.
fn host_of(key: &str) -> &str {
    let key = key.strip_prefix("https://").unwrap_or(key);
    let key = key.strip_prefix("http://").unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or(key.strip_suffix("/v2"))
        .unwrap_or(key);
    key.trim_end_matches('/')
}

/// Returns the part of a key after the host.
fn key_path(key: &str) -> &str {
    host_of(key).split_once('/').map_or("", |(_, path)| path)
}

impl Entry {
    fn credentials(&self, path: &Path) -> Result<Option<Credentials>> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credentials::RegistryToken(self.registrytoken.clone())));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identitytoken.clone())));
        }
        if !self.username.is_empty() {
            return Ok(Some(Credentials::Password {
                user: self.username.clone(),
                password: self.password.clone(),
            }));
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        let fault = || Error::Credentials {
            path: path.to_owned(),
            fault: "an entry is not a name and a password in base64".to_owned(),
        };
        let bytes = STANDARD.decode(&self.auth).map_err(|_| fault())?;
        let text = String::from_utf8(bytes).map_err(|_| fault())?;
        let (user, password) = text.split_once(':').ok_or_else(fault)?;
        Ok(Some(Credentials::Password {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        }))
    }
}

/// Asks the helper program for the registry's credentials.
fn ask(helper: &str, reference: &Reference) -> Result<Option<Credentials>> {
    let name = format!("docker-credential-{helper}");
    let fault = |fault: String| Error::Credentials {
        path: PathBuf::from(&name),
        fault,
    };
    if helper.contains('/') {
        return Err(fault("a helper is named without a path".to_owned()));
    }
    let domain = reference.domain();
    let server = if DOCKER_NAMES.contains(&domain) {
        DOCKER_HELPED
    } else {
        domain
    };
    let started = program::command(&name)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return Err(fault(error.to_string())),
    };
    if let Some(mut input) = child.stdin.take() {
        // One that does not read its input says below what it wants instead.
        let _ = input.write_all(server.as_bytes());
    }
    let (status, output) = wait(&mut child).map_err(|error| fault(error.to_string()))?;
    if !status.success() {
        let text = String::from_utf8_lossy(&output);
        return if text.contains("credentials not found") {
            Ok(None)
        } else {
            Err(fault(format!("it ended with {status}")))
        };
    }
    let helped: Helped = serde_json::from_slice(&output)
        .map_err(|_| fault("it did not print a name and a secret".to_owned()))?;
    Ok(Some(if helped.username == IS_TOKEN {
        Credentials::IdentityToken(helped.secret)
    } else {
        Credentials::Password {
            user: helped.username,
            password: helped.secret,
        }
    }))
}

/// Waits for a helper to end; returns its status and what it has printed. One that takes too long,
/// or prints too much, is killed, and so is one of cancelled work.
fn wait(child: &mut Child) -> io::Result<(ExitStatus, Vec<u8>)> {
    let output = child.stdout.take();
    let (cancel, deadline) = (Cancel::current(), Instant::now() + HELPER_TIME);
    thread::scope(|scope| {
        let read = scope.spawn(|| -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            let output = output.map(|output| output.take(HELPED_BYTES_MAX));
            output.map_or(Ok(0), |mut output| output.read_to_end(&mut bytes))?;
            Ok(bytes)
        });
        let waited = loop {
            if let Some(status) = child.try_wait()? {
                break Ok(status);
            }
            if let Err(cancelled) = cancel.check() {
                break Err(cancelled.into());
            }
            if Instant::now() >= deadline {
                break Err(io::Error::new(io::ErrorKind::TimedOut, "it does not end"));
            }
            thread::sleep(HELPER_POLL);
        };
        if waited.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let bytes = read
            .join()
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        Ok((waited?, bytes?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    fn find(text: &str, reference: &str) -> Result<Option<Credentials>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let missing = PathBuf::from("/nonexistent/config.json");
        let files = [missing, file.path().to_owned()];
        let mut fault = None;
        let found = credentials(
            &Reference::parse(reference).unwrap(),
            &files,
            &mut |error| {
                fault = Some(error);
            },
        );
        // A failed helper is none, and is told.
        fault.map_or(found, Err)
    }

    #[test]
    fn every_form_of_a_key_is_found_and_the_longest_decides() {
        let pair = STANDARD.encode("me:se:cret");
        for key in [
            "docker.io",
            "https://index.docker.io/v1/",
            "registry-1.docker.io",
        ] {
            let text = format!(r#"{{"auths": {{"{key}": {{"auth": "{pair}"}}}}, "other": 1}}"#);
            assert_eq!(
                find(&text, "app").unwrap(),
                password("me", "se:cret"),
                "{key}"
            );
            assert_eq!(find(&text, "quay.io/app").unwrap(), None);
        }
        let text = r#"{"auths": {
            "http://h:5000": {"username": "whole", "password": "1"},
            "h:5000/a/b": {"username": "folder", "password": "2"},
            "h:5000/a": {"identitytoken": "t"},
            "h:5000/x": {"registrytoken": "r"}}}"#;
        assert_eq!(find(text, "h:5000/c").unwrap(), password("whole", "1"));
        assert_eq!(find(text, "h:5000/a/b/c").unwrap(), password("folder", "2"));
        let token = Credentials::IdentityToken("t".to_owned());
        assert_eq!(find(text, "h:5000/a/c").unwrap(), Some(token));
        let token = Credentials::RegistryToken("r".to_owned());
        assert_eq!(find(text, "h:5000/x").unwrap(), Some(token));
        assert_eq!(find(text, "h/c").unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_an_error_without_a_secret_in_it() {
        for text in [
            r#"{"auths": {"h.x": {"auth": "bm9jb2xvbg=="}}}"#,
            r#"{"auths": {"h.x": {"auth": "s3cret!"}}}"#,
            r#"{"auths": {"h.x": {"auth": "s3cret}"#,
            r#"{"auths": "s3cret"}"#,
        ] {
            let error = find(text, "h.x/app").unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
        assert_eq!(find("", "h.x/app").unwrap(), None);
        let error = find(r#"{"credsStore": "../x"}"#, "h.x/app").unwrap_err();
        assert!(error.to_string().contains("without a path"), "{error}");
        let error = find(r#"{"credHelpers": {"h.x": "cowshed-none"}}"#, "h.x/app").unwrap_err();
        assert!(
            error.to_string().contains("docker-credential-cowshed-none"),
            "{error}"
        );
    }

    #[test]
    fn the_files_are_those_of_the_environment() {
        let none = files(|_| None);
        let own = PathBuf::from(format!("/run/containers/{}/auth.json", geteuid()));
        assert_eq!(none, [own]);
        let home = files(|name| match name {
            "HOME" => Some("/h".into()),
            "XDG_RUNTIME_DIR" => Some("/r".into()),
            "DOCKER_CONFIG" => Some("/d".into()),
            _ => None,
        });
        assert_eq!(
            home,
            [
                "/d/config.json",
                "/r/containers/auth.json",
                "/h/.config/containers/auth.json",
                "/h/.docker/config.json"
            ]
            .map(PathBuf::from)
        );
        let one = files(|name| (name == "REGISTRY_AUTH_FILE").then(|| "/a".into()));
        assert_eq!(one, [PathBuf::from("/a")]);
    }
}
