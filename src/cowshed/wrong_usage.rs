//! Messages about arguments that cannot be parsed: those of the parser, but without hidden options,
//! and as JSON on request.

use super::arguments::Arguments;
use super::failure::{self, Exit};
use clap::error::{ContextKind, ContextValue};
use clap::{Command, CommandFactory};

/// Prints the message, or the help or version that was asked for; returns the exit status.
pub(super) fn tell(mut error: clap::Error) -> u8 {
    if !error.use_stderr() {
        // Help and version come this way, too; if they cannot be printed, that is not a failure.
        let _ = error.print();
        return Exit::Done.status();
    }
    leave_out_hidden(&mut error);
    let is_json = std::env::args_os()
        .take_while(|argument| argument != "--")
        .any(|argument| argument == "--json");
    if is_json {
        let text = error.render().to_string();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        // The rest is the usage and where to find help.
        let told: Vec<_> = lines
            .take_while(|line| !line.starts_with("Usage:"))
            .collect();
        let told = told.join("; ");
        let told = told.strip_prefix("error: ").unwrap_or(&told);
        eprint_lossy(&failure::document(told, Exit::Usage));
    } else {
        let _ = error.print();
    }
    Exit::Usage.status()
}

fn eprint_lossy(line: &str) {
    use std::io::Write;
    // Without a reader the message is dropped.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Removes hidden options from suggestions.
fn leave_out_hidden(error: &mut clap::Error) {
    let mut hidden = Vec::new();
    collect_hidden(&Arguments::command(), &mut hidden);
    let names = |text: &str| {
        text.split(|c: char| c.is_whitespace() || c == '\'' || c == '=')
            .any(|word| hidden.iter().any(|name| name == word))
    };
    for kind in [ContextKind::SuggestedArg, ContextKind::Suggested] {
        let kept = match error.remove(kind) {
            Some(ContextValue::Strings(mut list)) => {
                list.retain(|text| !names(text));
                (!list.is_empty()).then_some(ContextValue::Strings(list))
            }
            Some(ContextValue::String(text)) => {
                (!names(&text)).then_some(ContextValue::String(text))
            }
            Some(ContextValue::StyledStrs(mut list)) => {
                list.retain(|text| !names(&text.to_string()));
                (!list.is_empty()).then_some(ContextValue::StyledStrs(list))
            }
            other => other,
        };
        if let Some(kept) = kept {
            error.insert(kind, kept);
        }
    }
}

fn collect_hidden(command: &Command, hidden: &mut Vec<String>) {
    let options = command
        .get_arguments()
        .filter(|option| option.is_hide_set());
    hidden.extend(options.filter_map(|option| Some(format!("--{}", option.get_long()?))));
    for part in command.get_subcommands() {
        collect_hidden(part, hidden);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn hidden_options_are_in_no_suggestion() {
        let mut hidden = Vec::new();
        collect_hidden(&Arguments::command(), &mut hidden);
        assert!(hidden.contains(&"--worker".to_owned()), "{hidden:?}");
        for arguments in [
            &["cowshed", "--json"][..],
            &["cowshed", "serve", "--worke"],
            &["cowshed", "serve", "--keepe={}"],
            &["cowshed", "--detache"],
        ] {
            let mut error = Arguments::try_parse_from(arguments).unwrap_err();
            leave_out_hidden(&mut error);
            let text = error.render().to_string();
            for name in &hidden {
                let is_named = text
                    .lines()
                    .skip(1)
                    .any(|line| line.contains(name.as_str()));
                assert!(!is_named, "{arguments:?}: {text}");
            }
        }
        // Commands that are not hidden are still suggested.
        let mut error = Arguments::try_parse_from(["cowshed", "volum"]).unwrap_err();
        leave_out_hidden(&mut error);
        assert!(error.render().to_string().contains("'volume'"));
    }
}
