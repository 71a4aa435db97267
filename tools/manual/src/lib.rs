//! What describes the command line of `cowshed`, made from the arguments that its parser knows:
//! [`reference()`] is `docs/cli.md`, [`write_package`] makes man pages and shell completions.
//!
//! It writes no word of its own about a command: all texts are those of `--help`.

mod reference;

pub use reference::reference;

use clap::Command;
use clap_complete::Shell;
use std::fs;
use std::io;
use std::path::Path;

/// Writes the man pages to `folder/man1` and the completions to `folder/completions`.
///
/// # Errors
/// When a file cannot be written.
pub fn write_package(folder: &Path) -> io::Result<()> {
    let man = folder.join("man1");
    fs::create_dir_all(&man)?;
    clap_mangen::generate_to(built(), &man)?;
    let completions = folder.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut built(), "cowshed", &completions)?;
    }
    Ok(())
}

/// Returns the command line without the list of subcommands that `help` would repeat at each level.
fn built() -> Command {
    cowshed::command_line().disable_help_subcommand(true)
}

#[cfg(test)]
mod tests;
