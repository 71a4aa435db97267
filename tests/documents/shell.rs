//! The commands in a piece of shell script, each as a list of words.
//!
//! It knows what the documents use: quotes, comments, continued lines, pipes, lists, redirections
//! and substitutions, whose commands it returns as well. It expands nothing.

use std::iter::Peekable;
use std::str::Chars;

/// Returns the commands of a script, without variables that are set before them.
pub(crate) fn commands(script: &str) -> Vec<Vec<String>> {
    let mut reader = Reader {
        rest: script.chars().peekable(),
        found: Vec::new(),
    };
    reader.list(false);
    reader.found
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    found: Vec<Vec<String>>,
}

/// The command that is being read.
#[derive(Default)]
struct Present {
    words: Vec<String>,
    word: Option<String>,
    /// The next word names the file of a redirection.
    is_redirected: bool,
}

impl Present {
    fn push(&mut self, c: char) {
        self.word.get_or_insert_default().push(c);
    }

    fn end_word(&mut self) {
        if let Some(word) = self.word.take()
            && !std::mem::take(&mut self.is_redirected)
        {
            self.words.push(word);
        }
    }

    fn end(&mut self) -> Option<Vec<String>> {
        self.end_word();
        let mut words = std::mem::take(&mut self.words);
        while words.first().is_some_and(|word| is_assignment(word)) {
            words.remove(0);
        }
        (!words.is_empty()).then_some(words)
    }
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_')
    })
}

impl Reader<'_> {
    /// Reads up to the end, or to the `)` of a substitution.
    fn list(&mut self, is_inner: bool) {
        let mut present = Present::default();
        while let Some(c) = self.rest.next() {
            match c {
                '\\' => match self.rest.next() {
                    Some('\n') | None => {}
                    Some(next) => present.push(next),
                },
                '#' if present.word.is_none() => {
                    while self.rest.next_if(|c| *c != '\n').is_some() {}
                }
                ' ' | '\t' => present.end_word(),
                ')' if is_inner => break,
                '\n' | ';' | '|' | '&' | '(' | ')' => self.found.extend(present.end()),
                '<' | '>' => {
                    // A number before it is a descriptor.
                    if present
                        .word
                        .as_ref()
                        .is_none_or(|word| word.parse::<u8>().is_err())
                    {
                        present.end_word();
                    }
                    present.word = None;
                    while self
                        .rest
                        .next_if(|c| matches!(c, '<' | '>' | '&'))
                        .is_some()
                    {}
                    present.is_redirected = true;
                }
                '\'' => {
                    present.word.get_or_insert_default();
                    while let Some(c) = self.rest.next_if(|c| *c != '\'') {
                        present.push(c);
                    }
                    self.rest.next();
                }
                '"' => self.double_quoted(&mut present),
                '$' => self.dollar(&mut present),
                other => present.push(other),
            }
        }
        self.found.extend(present.end());
    }

    fn double_quoted(&mut self, present: &mut Present) {
        present.word.get_or_insert_default();
        while let Some(c) = self.rest.next() {
            match c {
                '"' => return,
                '$' => self.dollar(present),
                '\\' => present
                    .word
                    .get_or_insert_default()
                    .extend(self.rest.next()),
                other => present.push(other),
            }
        }
    }

    fn dollar(&mut self, present: &mut Present) {
        present.push('$');
        if self.rest.next_if_eq(&'(').is_some() {
            self.list(true);
        }
    }
}

#[test]
fn commands_are_found_in_scripts() {
    let script = "export A=b   # a comment\nB=1 c 'd e' \\\n  --f \"$(g --h)\" | i <j >k 2>l\n\
                  m=$(n o) && p q\n";
    let found = commands(script);
    let found: Vec<String> = found.iter().map(|words| words.join(" ")).collect();
    assert_eq!(
        found,
        ["export A=b", "g --h", "c d e --f $", "i", "n o", "p q"]
    );
}
