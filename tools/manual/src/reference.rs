//! The reference of all commands in Markdown.

use clap::builder::{StyledStr, ValueRange};
use clap::{Arg, ArgAction, Command};
use std::fmt::Write;

const HEAD: &str = "# Commands

<!-- `cargo run -p cowshed-manual -- --reference docs/cli.md` makes this file from the arguments of
the program. Do not edit it. -->

All commands of cowshed and their options, as `cowshed COMMAND --help` describes them.
";

/// Returns `docs/cli.md`.
#[must_use]
pub fn reference() -> String {
    let mut root = super::built();
    root.build();
    let mut text = HEAD.to_owned();
    text.push_str("\n## Options of every command\n");
    options(&mut text, &root, true);
    if let Some(after) = root.get_after_help() {
        block(&mut text, &plain(after));
    }
    for command in root.get_subcommands() {
        section(&mut text, command, "cowshed");
    }
    text
}

fn section(text: &mut String, command: &Command, above: &str) {
    if command.is_hide_set() {
        return;
    }
    let name = format!("{above} {}", command.get_name());
    let about = command.get_long_about().or_else(|| command.get_about());
    let about = about.map(plain).unwrap_or_default();
    push(text, &format!("\n## {name}\n\n{}\n", escaped(&about)));
    if !command.has_subcommands() {
        let usage = plain(&command.clone().render_usage());
        block(text, usage.trim_start_matches("Usage: "));
        options(text, command, false);
        if let Some(after) = command.get_after_help() {
            block(text, &plain(after));
        }
    }
    for inner in command.get_subcommands() {
        section(text, inner, &name);
    }
}

/// Writes a table of the command's options, those of every command or all others.
fn options(text: &mut String, command: &Command, global: bool) {
    let shown: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && arg.is_global_set() == global)
        .filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version"))
        .collect();
    if shown.is_empty() {
        return;
    }
    push(text, "\n| option | |\n|---|---|\n");
    for arg in shown {
        let help = arg.get_long_help().or_else(|| arg.get_help());
        let mut meaning = escaped(&help.map(plain).unwrap_or_default());
        meaning.push_str(&values(arg));
        push(text, &format!("| `{}` | {meaning} |\n", written(arg)));
    }
}

/// Returns an argument as one writes it.
fn written(arg: &Arg) -> String {
    let mut names = Vec::new();
    names.extend(arg.get_short().map(|short| format!("-{short}")));
    names.extend(arg.get_long().map(|long| format!("--{long}")));
    let mut text = names.join(", ");
    if matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) {
        let value = arg.get_value_names().unwrap_or_default().join(" ");
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&value);
        let more = arg
            .get_num_args()
            .is_some_and(|range| range.max_values() > 1);
        if more && arg.get_num_args() != Some(ValueRange::new(2)) {
            text.push('…');
        }
    }
    // In a table the bar ends a cell, also in code.
    text.replace('|', "\\|")
}

/// Returns the possible values, the default and the variable of an argument.
fn values(arg: &Arg) -> String {
    let mut text = String::new();
    let possible = arg.get_possible_values();
    if matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
        && !possible.is_empty()
        && !arg.is_hide_possible_values_set()
    {
        let names: Vec<String> = possible
            .iter()
            .map(|value| match value.get_help() {
                Some(help) => format!("`{}` ({})", value.get_name(), escaped(&plain(help))),
                None => format!("`{}`", value.get_name()),
            })
            .collect();
        push(&mut text, &format!("; one of {}", names.join(", ")));
    }
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|v| v.to_string_lossy())
        .collect();
    if !defaults.is_empty() && matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) {
        push(&mut text, &format!("; default `{}`", defaults.join(" ")));
    }
    if let Some(variable) = arg.get_env() {
        push(&mut text, &format!("; or `{}`", variable.to_string_lossy()));
    }
    text
}

fn block(text: &mut String, inside: &str) {
    push(text, &format!("\n```text\n{}\n```\n", inside.trim()));
}

fn push(text: &mut String, more: &str) {
    text.write_str(more).expect("a string takes all");
}

/// Returns the text without styles.
fn plain(text: &StyledStr) -> String {
    text.to_string()
}

/// Returns help as one line of Markdown.
fn escaped(help: &str) -> String {
    let line = help.split_whitespace().collect::<Vec<_>>().join(" ");
    line.replace('|', "\\|")
        .replace('<', "&lt;")
        .replace('*', "\\*")
}
