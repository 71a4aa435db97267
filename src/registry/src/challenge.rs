//! The header `WWW-Authenticate`, in which a registry says how it wants to know who asks.

/// How a registry wants to know who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A name and a password with each request.
    Basic,
    /// A token, which a server gives out.
    Bearer {
        /// The address of that server.
        realm: String,
        /// The name of the registry there.
        service: Option<String>,
    },
}

/// Returns the best of the ways that the values of the header offer: tokens, else a password.
pub(crate) fn best<'a>(values: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut all: Vec<Challenge> = values.flat_map(parse).collect();
    let token = all
        .iter()
        .position(|one| matches!(one, Challenge::Bearer { .. }));
    match token {
        Some(place) => Some(all.swap_remove(place)),
        None => all.pop(),
    }
}

/// Parses one value, which may hold several challenges (RFC 9110, 11.6.1).
fn parse(value: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = value.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let (scheme, after) = rest.split_once(' ').unwrap_or((rest, ""));
        let (parameters, behind) = parameters(after);
        let get = |wanted: &str| {
            let mut all = parameters.iter();
            all.find(|(key, _)| key.eq_ignore_ascii_case(wanted))
                .map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            let service = get("service");
            found.push(Challenge::Bearer { realm, service });
        }
        if behind.len() == rest.len() {
            break;
        }
        rest = behind.trim_start_matches([' ', ',']);
    }
    found
}

/// Parses `key=value` pairs; returns the text from which on there are none.
fn parameters(text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while let Some((key, value)) = rest.split_once('=') {
        // A space before the sign belongs to the next scheme.
        if key.is_empty() || key.contains([' ', ',', '"']) {
            break;
        }
        let (value, behind) = match value.strip_prefix('"') {
            Some(quoted) => unquoted(quoted),
            None => {
                let end = value.find([',', ' ']).unwrap_or(value.len());
                (value[..end].to_owned(), &value[end..])
            }
        };
        found.push((key.to_owned(), value));
        rest = behind.trim_start_matches([' ', ',']);
    }
    (found, rest)
}

/// Returns the text up to the closing quote, and what follows that.
fn unquoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((place, letter)) = letters.next() {
        match letter {
            '"' => return (value, &text[place + 1..]),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            letter => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        })
    }

    #[test]
    fn challenges_are_read_in_all_their_forms() {
        let of = |values: &[&str]| best(values.iter().copied());
        assert_eq!(
            of(&[r#"Bearer realm="https://a.b/token",service="a.b",scope="repository:x:pull""#]),
            bearer("https://a.b/token", Some("a.b"))
        );
        assert_eq!(of(&[r#"Basic realm="x, Bearer""#]), Some(Challenge::Basic));
        assert_eq!(of(&["basic"]), Some(Challenge::Basic));
        let both = r#"Basic realm="a", bearer Realm=http://t/, service = "s\"t""#;
        assert_eq!(of(&[both]), bearer("http://t/", None));
        assert_eq!(
            of(&["Basic realm=a", r#"Bearer realm="r",service="s\"t""#]),
            bearer("r", Some("s\"t"))
        );
        for nothing in [
            "",
            ",",
            "Bearer",
            "Bearer service=\"a\"",
            "Negotiate abc==",
            "Bearer realm",
        ] {
            assert_eq!(of(&[nothing]), None, "{nothing}");
        }
        assert_eq!(of(&["Bearer realm=\"open"]), bearer("open", None));
    }
}
