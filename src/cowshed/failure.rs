//! The end of a command that failed: one line on the error stream, and an exit status.

use super::console::OutputClosed;
use cowshed_daemon::open_pool::NeedsDaemon;
use cowshed_daemon::protocol::{ProtocolError, VERSION};
use cowshed_engine::Pool;
use cowshed_export::ExportError;
use cowshed_format::base::{self, BLOCK_SHIFT, CorruptKind, MirrorError, printable};
use cowshed_host as container;
use cowshed_stream as stream;
use std::borrow::Cow;
use std::fmt;

/// The result of a command, as the shell sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// It succeeded.
    Done,
    /// It failed.
    Failed,
    /// It was called with wrong arguments.
    Usage,
    /// The pool is damaged.
    Damaged,
    /// Nothing has failed yet, but the user should act before it is too late.
    Warned,
}

impl Exit {
    /// Returns the exit status.
    #[must_use]
    pub(super) const fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Damaged => 3,
            Self::Warned => 4,
        }
    }

    /// Returns the exit for the exit status in a daemon's reply.
    #[must_use]
    pub(super) const fn from_status(status: u8) -> Self {
        match status {
            0 => Self::Done,
            2 => Self::Usage,
            3 => Self::Damaged,
            4 => Self::Warned,
            _ => Self::Failed,
        }
    }

    /// Returns the exit for `error`.
    #[must_use]
    pub(super) fn of(error: &anyhow::Error) -> Self {
        if let Some(Told(exit)) = error.downcast_ref() {
            *exit
        } else if error.chain().any(is_damage) {
            Self::Damaged
        } else if error.chain().any(|cause| cause.is::<Usage>()) {
            Self::Usage
        } else if error.chain().any(|cause| cause.is::<Warning>()) {
            Self::Warned
        } else {
            Self::Failed
        }
    }
}

/// The command was called with arguments that the parser accepts but that are wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub String);

/// Nothing has failed yet, but the user should act.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Warning(pub String);

/// The daemon has told the reason itself, and ended with this.
#[derive(Debug, thiserror::Error)]
#[error("the daemon could not do it")]
pub(super) struct Told(pub Exit);

/// A receive failed, and what came is kept.
#[derive(Debug)]
pub(super) struct Kept {
    /// What failed.
    pub what: String,
    /// The name or prefix that was received into.
    pub name: String,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Kept {
    fn hint(&self) -> Cow<'static, str> {
        let name = &self.name;
        let hint = format!(
            "; what came is kept, and `cowshed volume receive --token {name}` says where to go on"
        );
        hint.into()
    }
}

/// There is no such volume, but an image of that name.
#[derive(Debug)]
struct NameOfImage {
    error: anyhow::Error,
    /// The name, and the command of `cowshed image` for it.
    name: base::Name,
    command: &'static str,
}

impl fmt::Display for NameOfImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for NameOfImage {
    fn source(&self) -> Option<&Cause> {
        self.error.source()
    }
}

/// Adds to `error`, if it says that there is no volume of a name that an image has, that it does, and
/// the command of `cowshed image` to use.
pub(super) fn or_image(error: anyhow::Error, pool: &Pool, command: &'static str) -> anyhow::Error {
    if error.chain().any(|cause| cause.is::<NameOfImage>()) {
        return error;
    }
    let mut missing = error.chain().filter_map(|cause| match of_engine(cause) {
        Some(base::Error::NotFound(name)) => Some(name.clone()),
        _ => None,
    });
    match missing.next() {
        Some(name) if container::is_image_name(pool, name.as_str()) => NameOfImage {
            error,
            name,
            command,
        }
        .into(),
        _ => error,
    }
}

/// A check or a scrub found damage.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Damage(pub String);

type Cause = dyn std::error::Error + 'static;

/// Returns the engine's error that the cause is or wraps.
fn of_engine(cause: &Cause) -> Option<&base::Error> {
    let of_host = match cause.downcast_ref() {
        Some(container::Error::Stream(error)) => Some(error),
        _ => None,
    };
    if let Some(stream::Error::Pool(error)) = of_host.or_else(|| cause.downcast_ref()) {
        return Some(error);
    }
    match (cause.downcast_ref(), of_export(cause)) {
        (Some(container::Error::Pool(error)), _) | (_, Some(ExportError::Pool(error))) => {
            Some(error)
        }
        _ => cause.downcast_ref(),
    }
}

/// Returns the export's error that the cause is or wraps.
fn of_export(cause: &Cause) -> Option<&ExportError> {
    match cause.downcast_ref() {
        Some(container::Error::Export(error)) => Some(error),
        _ => cause.downcast_ref(),
    }
}

fn is_damage(cause: &Cause) -> bool {
    cause.is::<Damage>() || matches!(of_engine(cause), Some(base::Error::Corrupt(_)))
}

/// Returns the option of the command line that helps against the cause, if there is one: the crates
/// below know no options.
fn hint(cause: &Cause) -> Option<Cow<'static, str>> {
    if let Some(NeedsDaemon(pool)) = cause.downcast_ref() {
        return Some(format!("; run `cowshed --pool {pool} serve` first").into());
    }
    if let Some(NameOfImage { name, command, .. }) = cause.downcast_ref() {
        return Some(format!("; an image has that name (`cowshed image {command} {name}`)").into());
    }
    if let Some(base::Error::Corrupt(CorruptKind::Truncated { pool_blocks, .. })) = of_engine(cause)
    {
        let bytes = u128::from(*pool_blocks) << BLOCK_SHIFT;
        return Some(
            format!("; make it {bytes} bytes long again, and then run `cowshed pool check --deep`")
                .into(),
        );
    }
    let hint = match (of_engine(cause), of_export(cause)) {
        (Some(base::Error::Mirror(MirrorError::Copies { .. })), _) => {
            Some(", or look into the one at --pool with --this-side")
        }
        (Some(base::Error::Mirror(MirrorError::Diverged { .. })), _) => Some(
            "; look at each with `volume ls --this-side`, and decide with `cowshed --pool PATH pool \
             mirror keep`",
        ),
        (
            Some(
                base::Error::DeviceNotEmpty { .. }
                | base::Error::Mirror(MirrorError::OtherPool { .. }),
            ),
            _,
        ) => Some("; use --force to overwrite it"),
        (Some(base::Error::Mirror(MirrorError::LacksSome { .. })), _) => {
            Some("; with --force it counts all the same, and what it lacks is lost")
        }
        (Some(base::Error::Mirror(MirrorError::NoLabel { .. })), _) => Some(
            "; give the path of another side with --pool, or if there is none, use --force: then \
             this is the only side",
        ),
        (Some(base::Error::Corrupt(CorruptKind::LogRecord(_))), _) => Some(
            "; `cowshed pool check --repair` ends it before that record; without a daemon the pool \
             can be read as it was then",
        ),
        // Others are about other files.
        (Some(error @ base::Error::Io { action, .. }), _)
            if error.is_host_full() && action.contains("the pool") =>
        {
            Some(
                "; the file system that the pool's file is on is full, or a quota is reached: free \
                 some space there",
            )
        }
        (_, Some(ExportError::NoRings)) => Some("; use --fuse threads"),
        (_, Some(ExportError::RingsDisabled)) => Some(", or use --fuse threads"),
        (_, Some(ExportError::Attached { .. })) => {
            Some(", or attach each with --shared if its users share it knowingly")
        }
        _ if is_layer_without_space(cause) => Some("; free some space there"),
        _ => hint_on_protocol(cause.downcast_ref()?),
    };
    hint.map(Cow::Borrowed)
}

/// Returns true if the folder for layers on their way has no space.
fn is_layer_without_space(cause: &Cause) -> bool {
    let Some(container::Error::Io { action, source, .. }) = cause.downcast_ref() else {
        return false;
    };
    *action == "write a layer to the folder" && source.raw_os_error() == Some(libc::ENOSPC)
}

/// Returns the way to replace an older daemon, which understands the request to hand over.
fn hint_on_protocol(error: &ProtocolError) -> Option<&'static str> {
    match error {
        ProtocolError::Version { theirs } if *theirs < VERSION => {
            Some("; `cowshed serve --upgrade` starts it while the volumes stay in use")
        }
        _ => None,
    }
}

/// Returns the line that reports `error`; `None` if no reader is left, or it has been reported.
#[must_use]
pub(super) fn line(error: &anyhow::Error) -> Option<String> {
    if error.is::<OutputClosed>() || error.is::<Told>() {
        return None;
    }
    let mut line = String::from("cowshed");
    let mut last = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // The errors of the lower crates already contain the text of their source.
        if !last.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
            last = text;
        }
    }
    let kept = error.downcast_ref::<Kept>().map(Kept::hint);
    if let Some(hint) = kept.or_else(|| error.chain().find_map(hint)) {
        line.push_str(&hint);
    }
    Some(OneLine(&line).to_string())
}

/// Formats a failure: the line, or a JSON document on one line.
#[must_use]
pub(super) fn shown(line: &str, exit: Exit, json: bool) -> String {
    if json {
        document(line.strip_prefix("cowshed: ").unwrap_or(line), exit)
    } else {
        line.to_owned()
    }
}

/// Returns a failure as JSON.
#[must_use]
pub(super) fn document(why: &str, exit: Exit) -> String {
    serde_json::json!({ "error": why, "status": exit.status() }).to_string()
}

/// Text on one line, without characters that could move a terminal's cursor.
pub(super) struct OneLine<'a>(pub &'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self
            .0
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .enumerate()
        {
            if index > 0 {
                f.write_str("; ")?;
            }
            f.write_str(&printable(line))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use base::{CorruptKind, Error};
    use std::io;

    #[test]
    fn a_failure_is_one_line_that_says_no_cause_twice() {
        let source = io::Error::from_raw_os_error(libc::ENOENT);
        let error =
            anyhow::Error::new(Error::io("open the pool", source)).context("pool /x\ny\x1b[2J");
        assert_eq!(
            line(&error).unwrap(),
            "cowshed: pool /x; y\\u{1b}[2J: open the pool: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_failure_names_the_option_that_helps() {
        let taken = Error::DeviceNotEmpty { found: "data" };
        let error = anyhow::Error::new(taken).context("pool /x");
        assert_eq!(
            line(&error).unwrap(),
            "cowshed: pool /x: it already holds data; use --force to overwrite it"
        );
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let error = container::Error::Pool(Error::io("write the pool", full)).into();
        assert!(line(&error).unwrap().ends_with("free some space there"));
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let error = Error::io("make it a side", full).into();
        assert!(!line(&error).unwrap().contains("free some space"));
        let error = container::Error::Export(ExportError::NoRings).into();
        assert!(line(&error).unwrap().ends_with("; use --fuse threads"));
        let (device_blocks, pool_blocks) = (5, 65_536);
        let short = CorruptKind::Truncated {
            device_blocks,
            pool_blocks,
        };
        let error = anyhow::Error::from(Error::from(short));
        assert!(
            line(&error)
                .unwrap()
                .contains("make it 268435456 bytes long again")
        );
        let hints = |theirs| {
            let error = ProtocolError::Version { theirs }.into();
            line(&error).unwrap().contains("serve --upgrade")
        };
        assert!(hints(VERSION - 1) && !hints(VERSION + 1));
    }

    #[test]
    fn damage_below_any_context_is_status_3() {
        let damaged: anyhow::Result<()> = Err(Error::Corrupt(CorruptKind::NoSuperblock).into());
        let damaged = damaged.context("volume x").unwrap_err();
        assert_eq!(Exit::of(&damaged).status(), 3);
        let through_rooms = container::Error::Pool(CorruptKind::NoSuperblock.into());
        assert_eq!(Exit::of(&through_rooms.into()).status(), 3);
        let through_rooms = ExportError::Pool(CorruptKind::NoSuperblock.into());
        assert_eq!(
            Exit::of(&container::Error::Export(through_rooms).into()).status(),
            3
        );
        assert_eq!(Exit::of(&Error::NotAPool.into()).status(), 1);
        assert_eq!(Exit::of(&Usage("x".to_owned()).into()).status(), 2);
        assert_eq!(Exit::of(&Warning("x".to_owned()).into()).status(), 4);
        assert_eq!(Exit::from_status(4), Exit::Warned);
    }
}
