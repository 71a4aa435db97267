//! `/etc/default/cowshed`: the options of the daemon that systemd starts, in one variable.
//!
//! Only its last assignment counts, and only that is changed. systemd takes the value as words that
//! blanks separate; quotes around the whole value are kept.

use std::ops::Range;

const VARIABLE: &str = "COWSHED_OPTIONS";

/// The assignment cannot be changed safely.
#[derive(Debug, thiserror::Error)]
#[error(
    "line {line}: {VARIABLE} has quotes inside or goes on in the next line; write it on one line"
)]
pub(super) struct Fault {
    line: usize,
}

/// Returns the place of the value in the text, without quotes around it.
fn value(text: &str) -> Result<Option<Range<usize>>, Fault> {
    let (mut start, mut found) = (0, None);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        let lead = bare.len() - bare.trim_start().len();
        let assigned = bare.trim_start().strip_prefix(VARIABLE);
        if let Some(value) = assigned.and_then(|rest| rest.strip_prefix('=')) {
            let at = start + lead + VARIABLE.len() + 1;
            let quote = ['"', '\''].into_iter().find(|quote| {
                value.len() > 1 && value.starts_with(*quote) && value.ends_with(*quote)
            });
            let (at, value) = match quote {
                Some(_) => (at + 1, &value[1..value.len() - 1]),
                None => (at, value),
            };
            if value.contains(['"', '\'', '\\']) {
                return Err(Fault { line: index + 1 });
            }
            found = Some(at..at + value.len());
        }
        start += line.len();
    }
    Ok(found)
}

/// Returns the value of an option in the file.
///
/// # Errors
/// `Fault`.
pub(super) fn option(text: &str, name: &str) -> Result<Option<String>, Fault> {
    let Some(value) = value(text)? else {
        return Ok(None);
    };
    Ok(option_of(&text[value], name))
}

fn option_of(options: &str, name: &str) -> Option<String> {
    let mut words = options.split_whitespace();
    while let Some(word) = words.next() {
        if word == name {
            return words.next().map(str::to_owned);
        }
        if let Some(value) = word.strip_prefix(name).and_then(|it| it.strip_prefix('=')) {
            return Some(value.to_owned());
        }
    }
    None
}

/// Returns the text with each of these options that it lacks.
///
/// # Errors
/// `Fault`.
pub(super) fn set(text: &str, options: &[(&str, String)]) -> Result<String, Fault> {
    let found = value(text)?;
    let present = found.clone().map_or("", |value| &text[value]);
    let mut wanted = present.trim_end().to_owned();
    for (name, value) in options {
        if option_of(present, name).is_none() {
            let gap = if wanted.is_empty() { "" } else { " " };
            wanted.push_str(&format!("{gap}{name} {value}"));
        }
    }
    if wanted == present.trim_end() {
        return Ok(text.to_owned());
    }
    let mut changed = text.to_owned();
    match found {
        Some(value) => changed.replace_range(value, &wanted),
        None => {
            let gap = if text.is_empty() || text.ends_with('\n') {
                ""
            } else {
                "\n"
            };
            changed.push_str(&format!("{gap}{VARIABLE}={wanted}\n"));
        }
    }
    Ok(changed)
}

/// Returns the text without those of the options that `before` lacks.
///
/// # Errors
/// `Fault`.
pub(super) fn unset(text: &str, before: &str, names: &[&str]) -> Result<String, Fault> {
    let Some(found) = value(text)? else {
        return Ok(text.to_owned());
    };
    let mut words: Vec<&str> = text[found.clone()].split_whitespace().collect();
    let count = words.len();
    for name in names {
        if option(before, name)?.is_some() {
            continue;
        }
        if let Some(place) = words.iter().position(|word| word == name) {
            words.drain(place..(place + 2).min(words.len()));
        }
        let joined = format!("{name}=");
        words.retain(|word| !word.starts_with(&joined));
    }
    if words.len() == count {
        return Ok(text.to_owned());
    }
    let mut changed = text.to_owned();
    if words.is_empty() && value(before)?.is_none() {
        let start = text[..found.start].rfind('\n').map_or(0, |at| at + 1);
        let end = text[found.end..].find('\n');
        changed.replace_range(start..end.map_or(text.len(), |at| found.end + at + 1), "");
    } else {
        changed.replace_range(found, &words.join(" "));
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Vec<(&'static str, String)> {
        vec![("--a", "/x".to_owned()), ("--b", "/y".to_owned())]
    }

    #[test]
    fn options_are_added_to_those_there_and_taken_out_again() {
        for (before, after) in [
            ("", "COWSHED_OPTIONS=--a /x --b /y\n"),
            ("# x\nA=1", "# x\nA=1\nCOWSHED_OPTIONS=--a /x --b /y\n"),
            (
                "COWSHED_OPTIONS=\"--max-size 5G\" \nA=1\n",
                "COWSHED_OPTIONS=\"--max-size 5G --a /x --b /y\" \nA=1\n",
            ),
            (
                "COWSHED_OPTIONS=--b=/z\n",
                "COWSHED_OPTIONS=--b=/z --a /x\n",
            ),
            ("COWSHED_OPTIONS=\n", "COWSHED_OPTIONS=--a /x --b /y\n"),
        ] {
            assert_eq!(set(before, &ours()).unwrap(), after);
            assert_eq!(set(after, &ours()).unwrap(), after);
            let back = unset(after, before, &["--a", "--b"]).unwrap();
            assert_eq!(back.trim_end(), before.trim_end(), "{after}");
        }
        let edited = "COWSHED_OPTIONS=--a /x --direct --b=/other\n";
        let back = unset(edited, "", &["--a", "--b"]).unwrap();
        assert_eq!(back, "COWSHED_OPTIONS=--direct\n");
        assert_eq!(option(edited, "--b").unwrap().as_deref(), Some("/other"));
        assert_eq!(option(edited, "--c").unwrap(), None);
    }

    #[test]
    fn an_assignment_that_is_more_than_words_is_refused_with_its_line() {
        for odd in ["COWSHED_OPTIONS=--a \"x y\"", "COWSHED_OPTIONS=--a \\\n--b"] {
            let text = format!("# x\n{odd}\n");
            let fault = set(&text, &ours()).unwrap_err().to_string();
            assert!(fault.starts_with("line 2:"), "{fault}");
        }
        assert!(set("#COWSHED_OPTIONS=\"\\\n", &ours()).is_ok());
    }
}
