//! The host's programs that this one runs. They are looked for in absolute folders only, never
//! relative to this process's current folder.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Folders in which programs are looked for after those that `PATH` names.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Returns the folders in which programs are looked for, in this order: the absolute ones of
/// `PATH`, then the system's own.
pub fn folders() -> Vec<PathBuf> {
    folders_of(&env::var_os("PATH").unwrap_or_default())
}

fn folders_of(search_path: &OsStr) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    let named = env::split_paths(search_path).filter(|folder| folder.is_absolute());
    for folder in named.chain(SYSTEM_FOLDERS.map(PathBuf::from)) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// Returns the path of the program `name`, if the host has it.
pub fn find(name: &str) -> Option<PathBuf> {
    folders()
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// Returns a command that runs the program `name`, and that looks for further programs in the same
/// folders. Where the host has no such program, running it fails with `NotFound`.
pub fn command(name: &str) -> Command {
    // Never the bare name, for which the search would differ.
    let program = find(name).unwrap_or_else(|| Path::new(SYSTEM_FOLDERS[0]).join(name));
    let mut command = Command::new(program);
    if let Ok(search_path) = env::join_paths(folders()) {
        command.env("PATH", search_path);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_are_not_absolute_are_left_out() {
        for search_path in ["", ".", ":", "bin:./x", "."] {
            assert_eq!(
                folders_of(OsStr::new(search_path)),
                SYSTEM_FOLDERS.map(PathBuf::from)
            );
        }
        let folders = folders_of(OsStr::new("/opt/bin::/usr/bin:x"));
        let wanted = ["/opt/bin", "/usr/bin", "/usr/sbin", "/sbin", "/bin"];
        assert_eq!(folders, wanted.map(PathBuf::from));
    }

    #[test]
    fn a_program_that_the_host_lacks_is_not_found() {
        let error = command("no-such-program").output().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        assert!(
            command("sh")
                .args(["-c", "exit 0"])
                .status()
                .unwrap()
                .success()
        );
    }
}
