//! Selects the snapshots that a List asks for, in containerd's filter language.
//!
//! A filter is a list of selectors separated by commas, all of which must hold; of several filters
//! one must match. A selector is a field with an operator and a value: `==` and `!=` compare, `~=`
//! matches a regular expression. A field alone tests whether the field is present. Source:
//! containerd's package `filters`.

use super::record::{Kind, Record};
use super::scan::{ScanFault, Scanner, Token};
use cowshed_format::base::VolumeId;
use regex::{Regex, RegexBuilder};

/// The longest filter.
const FILTER_BYTES_MAX: usize = 16 << 10;
/// The most filters of one call.
const FILTERS_MAX: usize = 1024;
/// The memory limit of a compiled regular expression.
const REGEX_BYTES_MAX: usize = 256 << 10;
/// The most regular expressions of one call: with `REGEX_BYTES_MAX`, the limit of their total
/// memory.
const REGEXES_MAX: usize = 64;

/// The fault of a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FilterError {
    #[error("{text} is wrong at byte {at}: {fault}")]
    Scan {
        text: Box<str>,
        at: usize,
        fault: ScanFault,
    },
    #[error("{text} is wrong at byte {at}: {wanted} is expected")]
    Expected {
        text: Box<str>,
        at: usize,
        wanted: &'static str,
    },
    #[error("is longer than {FILTER_BYTES_MAX} bytes")]
    TooLong,
    #[error("is one of more than {FILTERS_MAX}")]
    TooMany,
    #[error("has more than {REGEXES_MAX} regular expressions, with those before it")]
    TooManyRegexes,
}

/// The snapshots that a List asks for.
#[derive(Debug)]
pub(super) struct Filter {
    /// One of them must match; an empty list matches everything.
    any: Vec<Vec<Selector>>,
}

#[derive(Debug)]
struct Selector {
    field: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// An invalid expression matches nothing, as in containerd.
    Matches(Option<Regex>),
}

impl Filter {
    pub(super) fn parse(texts: &[String]) -> Result<Self, FilterError> {
        if texts.len() > FILTERS_MAX {
            return Err(FilterError::TooMany);
        }
        let mut regexes = 0;
        let any = texts
            .iter()
            .map(|text| parse_one(text, &mut regexes))
            .collect::<Result<_, _>>()?;
        Ok(Self { any })
    }

    pub(super) fn matches(&self, name: &str, record: &Record) -> bool {
        self.any.is_empty()
            || self
                .any
                .iter()
                .any(|all| all.iter().all(|selector| selector.matches(name, record)))
    }
}

/// Returns true if a List with these filters is accepted. Also runs the filters on a record, for
/// callers that try hostile ones.
#[must_use]
pub fn understands_filters(texts: &[String]) -> bool {
    let labels = [("containerd.io/gc.root".to_owned(), "x y".to_owned())];
    let parent = Some("parent".to_owned());
    let record = Record::new(Kind::Active, parent, labels.into(), VolumeId(1));
    let parsed = Filter::parse(texts);
    parsed.is_ok_and(|filter| {
        // The result of the match does not matter.
        let _ = filter.matches("name", &record);
        true
    })
}

impl Selector {
    fn matches(&self, name: &str, record: &Record) -> bool {
        let value = value_of(&self.field, name, record);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value == wanted),
            Test::NotEqual(other) => value.unwrap_or_default() != other,
            Test::Matches(regex) => regex
                .as_ref()
                .is_some_and(|regex| regex.is_match(value.unwrap_or_default())),
        }
    }
}

fn value_of<'r>(field: &[String], name: &'r str, record: &'r Record) -> Option<&'r str> {
    let (first, rest) = field.split_first()?;
    match first.as_str() {
        "kind" => Some(record.kind.as_str()),
        "name" => Some(name),
        "parent" => Some(record.parent.as_deref().unwrap_or_default()),
        "labels" => record.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

/// Parses one filter.
struct Parser<'t, 'c> {
    text: &'t str,
    scanner: Scanner<'t>,
    /// Number of regular expressions so far, including those of earlier filters.
    regexes: &'c mut usize,
}

fn parse_one(text: &str, regexes: &mut usize) -> Result<Vec<Selector>, FilterError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if text.len() > FILTER_BYTES_MAX {
        return Err(FilterError::TooLong);
    }
    let scanner = Scanner::new(text);
    let parser = Parser {
        text,
        scanner,
        regexes,
    };
    parser.selectors()
}

impl Parser<'_, '_> {
    fn next(&mut self, after_operator: bool) -> Result<Token, FilterError> {
        self.scanner
            .next(after_operator)
            .map_err(|fault| FilterError::Scan {
                text: self.text.into(),
                at: self.scanner.at(),
                fault,
            })
    }

    fn expected(&self, wanted: &'static str) -> FilterError {
        FilterError::Expected {
            text: self.text.into(),
            at: self.scanner.at(),
            wanted,
        }
    }

    fn selectors(mut self) -> Result<Vec<Selector>, FilterError> {
        let mut selectors = Vec::new();
        loop {
            let (selector, after) = self.selector()?;
            selectors.push(selector);
            match after {
                Token::End => return Ok(selectors),
                Token::Separator(',') => {}
                _ => return Err(self.expected("a comma")),
            }
        }
    }

    /// Parses a selector, and returns it with the next word.
    fn selector(&mut self) -> Result<(Selector, Token), FilterError> {
        let mut field = vec![self.field()?];
        let operator = loop {
            match self.next(false)? {
                Token::Separator('.') => field.push(self.field()?),
                Token::Operator(operator) => break operator,
                after @ (Token::End | Token::Separator(_)) => {
                    let test = Test::Present;
                    return Ok((Selector { field, test }, after));
                }
                _ => return Err(self.expected("an operator (==, != or ~=)")),
            }
        };
        let may_be_regex = operator == "~=";
        let value = match self.next(true)? {
            Token::Word(text) => text,
            Token::Quoted { quote, text } if quote == '"' || may_be_regex => text,
            _ => return Err(self.expected("a value")),
        };
        let test = match operator.as_str() {
            "==" => Test::Equal(value),
            "!=" => Test::NotEqual(value),
            "~=" => Test::Matches(self.regex(&value)?),
            _ => return Err(self.expected("one of the operators ==, != and ~=")),
        };
        let after = self.next(false)?;
        Ok((Selector { field, test }, after))
    }

    fn regex(&mut self, text: &str) -> Result<Option<Regex>, FilterError> {
        *self.regexes += 1;
        if *self.regexes > REGEXES_MAX {
            return Err(FilterError::TooManyRegexes);
        }
        let mut builder = RegexBuilder::new(text);
        builder
            .size_limit(REGEX_BYTES_MAX)
            .dfa_size_limit(REGEX_BYTES_MAX);
        Ok(builder.build().ok())
    }

    fn field(&mut self) -> Result<String, FilterError> {
        match self.next(false)? {
            Token::Word(text) | Token::Quoted { quote: '"', text } => Ok(text),
            _ => Err(self.expected("a field")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Labels;
    use super::*;

    fn record(kind: Kind, parent: Option<&str>, labels: &[(&str, &str)]) -> Record {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let labels: Labels = labels.collect();
        Record::new(kind, parent.map(str::to_owned), labels, VolumeId(1))
    }

    fn matches(filters: &[&str], name: &str, record: &Record) -> bool {
        let filters: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
        Filter::parse(&filters).unwrap().matches(name, record)
    }

    #[test]
    fn fields_operators_and_quotes_mean_what_they_mean_in_containerd() {
        let labels = [("l", "1"), ("containerd.io/gc.root", "x y"), ("a.b", "c")];
        let active = record(Kind::Active, Some("p/q:1"), &labels);
        for (filter, wanted) in [
            ("", true),
            ("name==n", true),
            ("name==m", false),
            ("name!=m", true),
            ("kind==active", true),
            ("kind==view", false),
            ("parent==p/q:1", true),
            ("parent==\"p/q:1\"", true),
            ("parent!=\"\"", true),
            ("labels.l", true),
            ("labels.m", false),
            ("labels.m!=1", true),
            ("labels.l==1,kind==active", true),
            ("labels.l==1,kind==view", false),
            ("labels.a.b==c", true),
            (r#"labels."containerd.io/gc.root"=="x y""#, true),
            (r#"labels."containerd.io/gc.root"=="x\x20\171""#, true),
            ("name~=^n$", true),
            ("parent~=/^p\\/q/", true),
            ("parent~=|^p/|", true),
            ("name~=(", false),
            ("odd", false),
            ("odd!=x", true),
        ] {
            assert_eq!(matches(&[filter], "n", &active), wanted, "{filter}");
        }
        assert!(matches(&["name==m", "labels.l==1"], "n", &active));
        assert!(matches(&[], "n", &active));
    }

    #[test]
    fn nonsense_is_refused_and_never_panics() {
        for text in [
            ",",
            "name==",
            "name=x",
            "name==a b",
            "==x",
            "labels.",
            "name==\"x",
            "name==\"\\q\"",
            "name==|x|",
            "name\u{0}",
            "näme==x",
            "name===x",
            "labels.\"\\xff\"",
        ] {
            let parsed = Filter::parse(&[text.to_owned()]);
            assert!(parsed.is_err(), "{text:?} gave {parsed:?}");
        }
        let regexes = |count: usize| vec!["name~=a,kind~=b".to_owned(); count];
        assert!(Filter::parse(&regexes(REGEXES_MAX / 2)).is_ok());
        let many = Filter::parse(&regexes(REGEXES_MAX / 2 + 1));
        assert_eq!(many.unwrap_err(), FilterError::TooManyRegexes);
        assert!(Filter::parse(&["a".repeat(FILTER_BYTES_MAX + 1)]).is_err());
        assert!(Filter::parse(&vec![String::new(); FILTERS_MAX + 1]).is_err());
    }
}
