//! The arguments of `cowshed tree`.

use clap::Args;
use cowshed_daemon::request::tree as request;
use std::ffi::OsStr;

/// `cowshed tree`
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "OWN is data and map that only this volume owns, SHARED the data that it reads \
    from volumes above it. A layer that an image ends with is shown as that image.\n\nExamples:\n  \
    cowshed tree\n  cowshed tree --format svg >pool.svg\n  cowshed tree --format dot | dot -Tpng \
    >pool.png\n  cowshed tree --all --json | jq '.. | objects | select(.kind == \"removed\")'"
)]
pub(crate) struct Tree {
    /// Show volumes that only cowshed itself uses, too: templates of new file systems, work in
    /// progress, removed volumes that others share
    #[arg(long)]
    pub all: bool,
    /// The form of the drawing
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Draw lines with ASCII characters [default unless the locale is UTF-8]
    #[arg(long)]
    pub ascii: bool,
}

/// The form of the drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A line for each volume
    Text,
    /// A graph for Graphviz
    Dot,
    /// A picture
    Svg,
}

impl From<Tree> for request::Tree {
    fn from(Tree { all, format, ascii }: Tree) -> Self {
        Self {
            all,
            format: match format {
                Format::Text => request::Format::Text,
                Format::Dot => request::Format::Dot,
                Format::Svg => request::Format::Svg,
            },
            ascii: ascii || !is_utf8(|name| std::env::var_os(name)),
        }
    }
}

/// Returns true if the locale of the caller has UTF-8: the first of the variables that is set says.
fn is_utf8<T: AsRef<OsStr>>(variable: impl Fn(&str) -> Option<T>) -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| variable(name).filter(|value| !value.as_ref().is_empty()));
    set.is_some_and(|value| {
        let value = value.as_ref().to_string_lossy().to_ascii_lowercase();
        value.ends_with("utf-8") || value.ends_with("utf8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_variable_that_is_set_says_what_characters_there_are() {
        let says = |set: &[(&str, &'static str)]| {
            is_utf8(|name| {
                let found = set.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| OsStr::new(*value))
            })
        };
        assert!(says(&[("LANG", "C.UTF-8")]) && says(&[("LC_ALL", "de_DE.utf8")]));
        assert!(says(&[("LC_ALL", ""), ("LANG", "en_US.UTF-8")]));
        assert!(!says(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]));
        assert!(!says(&[]) && !says(&[("LANG", "POSIX")]));
    }
}
