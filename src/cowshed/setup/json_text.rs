//! Changes of members of a JSON object in its text: all other bytes stay as they are, in their
//! order and with their blanks.
//!
//! # Invariants
//! - [`Text`] holds valid JSON that is an object, so its scanner meets nothing else.
//! - What is inserted behind the last member of an object is removed again exactly.

use serde_json::{Map, Value};
use std::ops::Range;

/// The text of a JSON object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text(String);

/// A member of an object in the text.
struct Member {
    name: String,
    start: usize,
    value: Range<usize>,
}

/// A text that cannot be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// It is not JSON, or no object.
    #[error("line {line}: it is not a JSON object: {error}", line = .0.line(), error = .0)]
    Invalid(#[from] serde_json::Error),
    /// A value on the way to a member is no object.
    #[error("{0:?} is not an object")]
    NoObject(String),
    /// A member stands twice, and readers differ in which one counts.
    #[error("{0:?} stands twice")]
    Twice(String),
}

impl Text {
    /// Returns the text; a blank one stands for an object without members.
    ///
    /// # Errors
    /// `Invalid`.
    pub(super) fn new(text: &str) -> Result<Self, Fault> {
        if text.trim().is_empty() {
            return Ok(Self("{}\n".to_owned()));
        }
        serde_json::from_str::<Map<String, Value>>(text)?;
        Ok(Self(text.to_owned()))
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }

    /// Returns the value at `path`, one name for each level.
    ///
    /// # Errors
    /// `Twice`; `NoObject` for a level above the value.
    pub(super) fn get(&self, path: &[&str]) -> Result<Option<Value>, Fault> {
        let found = self.find(path)?;
        let value = found.map(|(members, place)| &self.0[members[place].value.clone()]);
        Ok(value.map(serde_json::from_str).transpose()?)
    }

    /// Sets the value at `path`, which must have a name.
    ///
    /// # Errors
    /// Like those of `get`.
    pub(super) fn set(&mut self, path: &[&str], value: &Value) -> Result<(), Fault> {
        let text = serde_json::to_string(value)?;
        if let Some((members, place)) = self.find(path)? {
            self.0.replace_range(members[place].value.clone(), &text);
            return Ok(());
        }
        // The innermost object that is there takes what is missing.
        let mut depth = path.len() - 1;
        while depth > 0 && self.find(&path[..depth])?.is_none() {
            depth -= 1;
        }
        let mut inner = text;
        for name in path[depth + 1..].iter().rev() {
            inner = format!("{{ {}: {inner} }}", Value::from(*name));
        }
        let member = format!("{}: {inner}", Value::from(path[depth]));
        self.insert(&path[..depth], &member)
    }

    /// Removes the value at `path`, if it is there.
    ///
    /// # Errors
    /// Like those of `get`.
    pub(super) fn remove(&mut self, path: &[&str]) -> Result<(), Fault> {
        let Some((members, place)) = self.find(path)? else {
            return Ok(());
        };
        let member = &members[place];
        let gone = match (place.checked_sub(1), members.get(place + 1)) {
            (_, Some(next)) => member.start..next.start,
            (Some(before), None) => members[before].value.end..member.value.end,
            (None, None) => {
                let object = self.object(&path[..path.len() - 1])?;
                object.start + 1..object.end - 1
            }
        };
        self.0.replace_range(gone, "");
        Ok(())
    }

    /// Inserts a member behind the last one of the object at `path`.
    fn insert(&mut self, path: &[&str], member: &str) -> Result<(), Fault> {
        let object = self.object(path)?;
        let members = self.members(object.clone());
        match members.last() {
            Some(last) => {
                let before = self.0[..last.start].trim_end().len();
                let blank = self.0[before..last.start].to_owned();
                let blank = if blank.is_empty() { " " } else { &blank };
                let at = last.value.end;
                self.0.insert_str(at, &format!(",{blank}{member}"));
            }
            None if path.is_empty() => {
                let inside = object.start + 1..object.end - 1;
                self.0.replace_range(inside, &format!("\n  {member}\n"));
            }
            None => {
                let inside = object.start + 1..object.end - 1;
                self.0.replace_range(inside, &format!(" {member} "));
            }
        }
        Ok(())
    }

    /// Returns the members of the object that has the value at `path`, and the value's place there.
    fn find(&self, path: &[&str]) -> Result<Option<(Vec<Member>, usize)>, Fault> {
        let Some((name, above)) = path.split_last() else {
            return Ok(None);
        };
        let mut object = self.whole();
        for name in above {
            let members = self.members(object);
            let Some(place) = place_of(&members, name)? else {
                return Ok(None);
            };
            object = members[place].value.clone();
            if !self.0[object.clone()].starts_with('{') {
                return Err(Fault::NoObject((*name).to_owned()));
            }
        }
        let members = self.members(object);
        Ok(place_of(&members, name)?.map(|place| (members, place)))
    }

    /// Returns the place of the object at `path`, which is there.
    fn object(&self, path: &[&str]) -> Result<Range<usize>, Fault> {
        let Some((members, place)) = self.find(path)? else {
            return Ok(self.whole());
        };
        let object = members[place].value.clone();
        if self.0[object.clone()].starts_with('{') {
            Ok(object)
        } else {
            Err(Fault::NoObject(path.join(".")))
        }
    }

    fn whole(&self) -> Range<usize> {
        let start = self.0.len() - self.0.trim_start().len();
        start..self.0.trim_end().len()
    }

    /// Returns the members of the object at `object`.
    fn members(&self, object: Range<usize>) -> Vec<Member> {
        let mut scanner = Scanner {
            text: self.0.as_bytes(),
            at: object.start + 1,
        };
        let mut members = Vec::new();
        while let Some(start) = scanner.next_member(object.end) {
            let name = scanner.value();
            scanner.skip(b':');
            let value = scanner.value();
            let name = serde_json::from_str(&self.0[name]).unwrap_or_default();
            members.push(Member { name, start, value });
        }
        members
    }
}

fn place_of(members: &[Member], name: &str) -> Result<Option<usize>, Fault> {
    let mut found = members.iter().enumerate().filter(|(_, it)| it.name == name);
    match (found.next(), found.next()) {
        (first, None) => Ok(first.map(|(place, _)| place)),
        _ => Err(Fault::Twice(name.to_owned())),
    }
}

/// Finds the ends of values in valid JSON.
struct Scanner<'t> {
    text: &'t [u8],
    at: usize,
}

impl Scanner<'_> {
    fn byte(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip_blanks(&mut self) {
        while self.byte().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// Skips a character with the blanks around it.
    fn skip(&mut self, wanted: u8) {
        self.skip_blanks();
        if self.byte() == Some(wanted) {
            self.at += 1;
        }
        self.skip_blanks();
    }

    /// Returns the start of the next member of an object that ends at `end`.
    fn next_member(&mut self, end: usize) -> Option<usize> {
        self.skip(b',');
        (self.at < end && self.byte() == Some(b'"')).then_some(self.at)
    }

    /// Returns the place of the value that begins here, and goes behind it.
    fn value(&mut self) -> Range<usize> {
        let start = self.at;
        let mut depth = 0_usize;
        while let Some(byte) = self.byte() {
            match byte {
                b'"' => self.string(),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                b'}' | b']' | b',' | b':' if depth == 0 => break,
                _ => self.at += 1,
            }
            if depth == 0 && matches!(byte, b'"' | b'}' | b']') {
                return start..self.at;
            }
        }
        // A number or a word, which a blank may follow.
        let value = self.text[start..self.at].trim_ascii_end();
        start..start + value.len()
    }

    /// Goes behind the string that begins here.
    fn string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.byte() {
            self.at += match byte {
                b'\\' => 2,
                _ => 1,
            };
            if byte == b'"' {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(text: &str, path: &[&str], value: &Value) -> String {
        let mut text = Text::new(text).unwrap();
        text.set(path, value).unwrap();
        text.into_string()
    }

    fn remove(text: &str, path: &[&str]) -> String {
        let mut text = Text::new(text).unwrap();
        text.remove(path).unwrap();
        text.into_string()
    }

    #[test]
    fn a_member_is_added_in_the_manner_of_the_others_and_taken_out_again() {
        for (before, after) in [
            (
                "{\n    \"a\": [1, {\"x\": \"}\"}],\n    \"b\" : true\n}\n",
                "{\n    \"a\": [1, {\"x\": \"}\"}],\n    \"b\" : true,\n    \"c\": \"d\"\n}\n",
            ),
            ("{\"a\":1}", "{\"a\":1, \"c\": \"d\"}"),
            ("{ \"a\": -1.5e3 }", "{ \"a\": -1.5e3, \"c\": \"d\" }"),
        ] {
            assert_eq!(set(before, &["c"], &json!("d")), after);
            assert_eq!(remove(after, &["c"]), before);
        }
        assert_eq!(set("", &["c"], &json!("d")), "{\n  \"c\": \"d\"\n}\n");
        assert_eq!(remove("{\n  \"c\": \"d\"\n}\n", &["c"]), "{}\n");
    }

    #[test]
    fn a_member_of_a_member_is_set_wherever_it_is_missing() {
        let path = ["features", "x"];
        let wanted = json!({"features": {"x": true}, "a": 1});
        let valued = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        for before in [
            "{\"a\":1}",
            "{\"features\":{},\"a\":1}",
            "{\"features\":{\"x\":false},\"a\":1}",
        ] {
            assert_eq!(
                valued(&set(before, &path, &json!(true))),
                wanted,
                "{before}"
            );
        }
        let more = set("{\"features\": {\"y\": 2}}", &path, &json!(true));
        assert_eq!(more, "{\"features\": {\"y\": 2, \"x\": true}}");
        assert_eq!(remove(&more, &path), "{\"features\": {\"y\": 2}}");
        assert_eq!(
            remove("{\"b\": 1, \"a\": 2 ,\"c\": 3}", &["b"]),
            "{\"a\": 2 ,\"c\": 3}"
        );
    }

    #[test]
    fn what_is_no_object_is_refused_with_its_line() {
        let line = Text::new("{\n\"a\": 1,\n}").unwrap_err().to_string();
        assert!(
            line.starts_with("line 3: it is not a JSON object"),
            "{line}"
        );
        assert!(Text::new("[]").is_err() && Text::new("{} x").is_err());
        let mut text = Text::new("{\"features\": 1, \"a\": 1, \"\\u0061\": 2}").unwrap();
        let deep = text.set(&["features", "x"], &json!(true));
        assert!(matches!(deep, Err(Fault::NoObject(_))));
        assert!(matches!(text.get(&["a"]), Err(Fault::Twice(_))));
    }

    #[test]
    fn strings_with_escapes_end_where_they_end() {
        let text = r#"{"a\"b": "\\", "c": "\"}{"}"#;
        let found = Text::new(text).unwrap();
        assert_eq!(found.get(&["a\"b"]).unwrap(), Some(json!("\\")));
        assert_eq!(found.get(&["c"]).unwrap(), Some(json!("\"}{")));
    }
}
