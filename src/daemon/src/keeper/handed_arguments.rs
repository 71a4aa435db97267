//! The arguments of a worker or keeper that another process starts: they lie in memory that the new
//! process inherits, so that process lists show only a short line,
//! `cowshed worker --pool /srv/pool --arguments 7`.

use cowshed_sys::descriptors;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::OnceLock;

/// The role that a process's command line shows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    Worker,
    Keeper,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Keeper => "keeper",
        }
    }
}

/// The option that names the descriptor.
const OPTION: &str = "--arguments";
/// The maximum number of bytes read.
const BYTES_MAX: u64 = 1 << 20;

static OWN: OnceLock<Vec<OsString>> = OnceLock::new();

/// Returns the arguments of this process, its name first, from the command line or from inherited
/// memory.
///
/// # Errors
/// When the command line names inherited memory that this process did not inherit.
pub fn own() -> io::Result<&'static [OsString]> {
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let shown: Vec<OsString> = std::env::args_os().collect();
    let own = match inherited_from(&shown) {
        Some(number) => read(descriptors::inherited(number)?.into())?,
        None => shown,
    };
    Ok(OWN.get_or_init(|| own))
}

/// Returns the descriptor that a command line names; `None` if the command line has another form.
fn inherited_from(shown: &[OsString]) -> Option<i32> {
    let [_, role, pool, _, option, number] = shown else {
        return None;
    };
    let is_role = [Role::Worker, Role::Keeper]
        .iter()
        .any(|known| role == known.name());
    (is_role && pool == "--pool" && option == OPTION).then_some(())?;
    number.to_str()?.parse().ok()
}

fn read(mut file: File) -> io::Result<Vec<OsString>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    // Each argument ends with a zero byte, which no argument contains.
    let ends = bytes.split_inclusive(|byte| *byte == 0);
    let arguments = ends.map(|argument| argument.strip_suffix(&[0]).unwrap_or(argument).to_vec());
    Ok(arguments.map(OsString::from_vec).collect())
}

/// Arguments for another process.
pub(super) struct Handed {
    memory: File,
    shown: Vec<OsString>,
}

impl Handed {
    /// Stores `arguments` (without the program's name) for a process of the pool that is open as
    /// `pool`.
    pub(super) fn new(role: Role, pool: &File, arguments: &[OsString]) -> io::Result<Self> {
        let mut memory = File::from(memfd_create(c"cowshed-arguments", MFdFlags::MFD_CLOEXEC)?);
        let name = OsStr::new("cowshed");
        for argument in [name]
            .into_iter()
            .chain(arguments.iter().map(OsString::as_os_str))
        {
            memory.write_all(argument.as_bytes())?;
            memory.write_all(&[0])?;
        }
        // Only people read this path; the program does not use it.
        let path = fs::read_link(format!("/proc/self/fd/{}", pool.as_raw_fd()));
        let shown = [
            role.name().into(),
            "--pool".into(),
            path.map_or_else(|_| "?".into(), Into::into),
            OPTION.into(),
            memory.as_raw_fd().to_string().into(),
        ];
        Ok(Self {
            memory,
            shown: shown.into(),
        })
    }

    /// Returns the command line with which to start the other process.
    pub(super) fn shown(&self) -> &[OsString] {
        &self.shown
    }
}

impl AsFd for Handed {
    /// Returns the descriptor that the other process must inherit.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_they_were_handed_over_and_few_are_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a pool");
        let pool = File::create(&path).unwrap();
        let mut odd: Vec<OsString> = vec!["serve".into(), "".into(), "--worker={\"a\": 1}".into()];
        odd.push(OsString::from_vec(vec![0xff, b'\n']));
        let handed = Handed::new(Role::Worker, &pool, &odd).unwrap();
        let mut line = vec![OsString::from("cowshed")];
        line.extend_from_slice(handed.shown());
        assert_eq!(
            line[..4],
            ["cowshed", "worker", "--pool", path.to_str().unwrap()]
        );
        assert_eq!(inherited_from(&line), Some(handed.memory.as_raw_fd()));
        let read = read(handed.memory.try_clone().unwrap()).unwrap();
        assert_eq!(read[0], "cowshed");
        assert_eq!(read[1..], odd[..]);
        for other in [
            &["cowshed", "serve"][..],
            &["cowshed", "worker", "--pool", "x", "--arguments", "x"],
            &["cowshed", "workers", "--pool", "x", "--arguments", "7"],
        ] {
            let other: Vec<OsString> = other.iter().map(OsString::from).collect();
            assert_eq!(inherited_from(&other), None);
        }
    }
}
