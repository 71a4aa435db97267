//! Parsers of arguments that name a file or folder: they make every path absolute.

use clap::builder::{OsStringValueParser, TypedValueParser};
use cowshed_daemon::request::{CopySide, FileOrPipe, HostPath};
use cowshed_host as host;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Returns the parser of a path.
pub(crate) fn path() -> impl TypedValueParser<Value = HostPath> {
    OsStringValueParser::new().try_map(|text| parse_path(&text))
}

/// Returns the parser of a file, or `-` for a standard stream.
pub(crate) fn file() -> impl TypedValueParser<Value = FileOrPipe> {
    OsStringValueParser::new().try_map(|text| parse_file(&text))
}

/// Returns the parser of a side of `container cp`.
pub(super) fn side() -> impl TypedValueParser<Value = CopySide> {
    OsStringValueParser::new().try_map(|text| parse_side(&text))
}

/// Parses a path.
///
/// # Errors
/// Like those of `HostPath::new`, as text.
fn parse_path(text: &OsStr) -> Result<HostPath, String> {
    HostPath::new(Path::new(text)).map_err(|error| error.to_string())
}

/// Parses the path of a file, or `-` for a standard stream.
///
/// # Errors
/// Like those of `parse_path`.
pub(crate) fn parse_file(text: &OsStr) -> Result<FileOrPipe, String> {
    if text == "-" {
        Ok(FileOrPipe::Pipe)
    } else {
        parse_path(text).map(FileOrPipe::File)
    }
}

/// Parses `CONTAINER:PATH`, a path on the host, or `-`. A text that starts with `/` or `.` or has
/// no `:` is a path on the host.
///
/// # Errors
/// When the path is empty, or a path inside a container is not UTF-8.
fn parse_side(text: &OsStr) -> Result<CopySide, String> {
    if text == "-" {
        return Ok(CopySide::Pipe);
    }
    match host::CopySide::parse(text) {
        host::CopySide::Host(path) => {
            let absolute = parse_path(path.as_os_str())?;
            // A dot at the end selects the contents of a folder, but making the path absolute
            // removes it.
            let bytes = path.as_os_str().as_bytes();
            let has_dot = bytes == b"." || bytes.ends_with(b"/.");
            Ok(CopySide::Host(if has_dot {
                absolute.contents()
            } else {
                absolute
            }))
        }
        host::CopySide::Container { container, path } => {
            let path = path.into_os_string().into_string();
            let path = path.map_err(|_| "a path in a container must be UTF-8 here")?;
            if path.is_empty() {
                return Err("write CONTAINER:PATH with a path".to_owned());
            }
            Ok(CopySide::Container { container, path })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_absolute() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(
            parse_path(OsStr::new("x")).unwrap().as_path(),
            here.join("x")
        );
        assert!(parse_path(OsStr::new("")).is_err());
        assert_eq!(parse_file(OsStr::new("-")).unwrap(), FileOrPipe::Pipe);
    }

    #[test]
    fn a_copy_side_is_a_container_unless_it_looks_like_a_path() {
        let side = |text: &str| parse_side(OsStr::new(text)).unwrap();
        assert_eq!(
            side("web:/etc/a:b"),
            CopySide::Container {
                container: "web".to_owned(),
                path: "/etc/a:b".to_owned()
            }
        );
        assert!(matches!(side("./web:x"), CopySide::Host(_)));
        assert!(matches!(side("/srv/a:b"), CopySide::Host(_)));
        assert!(matches!(side(":x"), CopySide::Host(_)));
        assert!(parse_side(OsStr::new("web:")).is_err());
        assert_eq!(side("-"), CopySide::Pipe);
        assert!(matches!(side("./-"), CopySide::Host(_)));
    }

    #[test]
    fn a_dot_at_the_end_of_a_side_on_the_host_stays() {
        let side = |text: &str| match parse_side(OsStr::new(text)).unwrap() {
            CopySide::Host(path) => path.as_path().as_os_str().to_owned(),
            other => panic!("{other}"),
        };
        assert_eq!(side("/srv/site/."), "/srv/site/.");
        assert_eq!(side("/srv/site"), "/srv/site");
        assert_eq!(side("/srv/site/"), "/srv/site/");
        assert!(side(".").as_bytes().ends_with(b"/."));
    }
}
