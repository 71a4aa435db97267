//! Names of images as Docker parses them: `[DOMAIN/]PATH[:TAG][@DIGEST]`, see the grammar of
//! `distribution/reference`.
//!
//! `app`, `app:latest` and `docker.io/library/app:latest` are one reference. The short form is
//! shown to users and stored in the pool, the full form is containerd's name of an image.
//!
//! Invariant: parsing the short form or the full form of a reference gives the same reference.

use super::error::Printable;
use std::fmt;

const DEFAULT_DOMAIN: &str = "docker.io";
/// An older name of the default domain.
const INDEX_DOMAIN: &str = "index.docker.io";
const LIBRARY: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// The maximum length of a reference in its short form, in bytes: the limit of the key of a pool's
/// record.
const BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;
/// Digest algorithms with their number of hexadecimal digits.
const DIGESTS: [(&str, usize); 3] = [("sha256", 64), ("sha384", 96), ("sha512", 128)];

/// An image's name, with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// The reason why a text is not an image name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceFault {
    /// It is empty, or too long.
    #[error("it must have 1 to 255 characters")]
    Length,
    /// It consists of 64 hexadecimal digits.
    #[error("64 hexadecimal digits are an id; give it a name")]
    Id,
    /// The registry is not a host with an optional port.
    #[error("the part before the first / is not a registry's host; write HOST[:PORT]/PATH")]
    Domain,
    /// The path has an upper-case letter.
    #[error("only the host may have upper-case letters; write the rest in lower case")]
    UpperCase,
    /// The path has an unsuitable character.
    #[error(
        "each part between / is of a-z and 0-9, with . _ __ or - only between them; rename the image"
    )]
    Path,
    /// The tag has an unsuitable character or is too long.
    #[error("the tag after : is 1 to 128 of A-Za-z0-9_.- and begins with none of . and -")]
    Tag,
    /// The text after `@` is not a digest.
    #[error("the part after @ is not a digest, such as sha256: and 64 hexadecimal digits")]
    Digest,
    /// The name to give states a digest.
    #[error(
        "a digest cannot be given as a name, because it follows from the content; leave out @…"
    )]
    DigestGiven,
}

/// A text that is not an image name, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the image name {name} is not valid: {fault}")]
pub struct InvalidReference {
    /// The text.
    pub name: Printable,
    /// The fault.
    pub fault: ReferenceFault,
}

impl Reference {
    /// Parses a name in any of its forms.
    ///
    /// # Errors
    /// If Docker refuses it, or if it is longer than 255 bytes.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        Self::read(text).map_err(|fault| InvalidReference {
            name: Printable::from(text),
            fault,
        })
    }

    /// Parses a name that is to be given to an image: one without a digest.
    ///
    /// # Errors
    /// As [`Reference::parse`], and if there is a digest.
    pub fn parse_given(text: &str) -> Result<Self, InvalidReference> {
        let reference = Self::parse(text)?;
        if reference.digest.is_some() {
            return Err(InvalidReference {
                name: Printable::from(text),
                fault: ReferenceFault::DigestGiven,
            });
        }
        Ok(reference)
    }

    fn read(text: &str) -> Result<Self, ReferenceFault> {
        if text.is_empty() {
            return Err(ReferenceFault::Length);
        }
        if text.len() == 64 && text.bytes().all(is_lower_hex) {
            return Err(ReferenceFault::Id);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].split_once(':') {
            Some((end, tag)) => (&rest[..last + end.len()], Some(tag)),
            None => (rest, None),
        };
        let (domain, path) = split_domain(name);
        if !is_domain(&domain) {
            return Err(ReferenceFault::Domain);
        }
        if !path.split('/').all(is_component) {
            let lower = path.to_lowercase();
            return Err(if lower != path && lower.split('/').all(is_component) {
                ReferenceFault::UpperCase
            } else {
                ReferenceFault::Path
            });
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceFault::Tag);
        }
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(ReferenceFault::Digest);
        }
        let tag = tag.or(digest.is_none().then_some(DEFAULT_TAG));
        let reference = Self {
            domain,
            path,
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        };
        if reference.short().len() > BYTES_MAX {
            return Err(ReferenceFault::Length);
        }
        Ok(reference)
    }

    /// Returns the form for users: without Docker's own registry, always with tag or digest.
    #[must_use]
    pub fn short(&self) -> String {
        let whole = (self.domain.clone(), self.path.clone());
        let library = self.path.strip_prefix(LIBRARY);
        let candidates = [library, Some(&self.path)].into_iter().flatten();
        // A path such as `localhost/app` on Docker's registry keeps its domain: it would be parsed
        // as another registry's.
        let mut fitting = candidates.filter(|short| split_domain(short) == whole);
        match fitting.next() {
            Some(short) => format!("{short}{}", self.suffix()),
            None => self.full(),
        }
    }

    /// Returns the form with all parts, as containerd names images.
    #[must_use]
    pub fn full(&self) -> String {
        format!("{}/{}{}", self.domain, self.path, self.suffix())
    }

    /// Returns the registry: a host with an optional port.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Returns the path of the repository in the registry.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the digest, if one is stated.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// Returns the tag; `None` for a reference by digest alone.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns true if it states a digest.
    #[must_use]
    pub const fn has_digest(&self) -> bool {
        self.digest.is_some()
    }

    fn suffix(&self) -> String {
        let tag = self.tag.iter().map(|tag| format!(":{tag}"));
        let digest = self.digest.iter().map(|digest| format!("@{digest}"));
        tag.chain(digest).collect()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.short())
    }
}

/// Returns true if two names mean the same image; an invalid name means only itself.
#[must_use]
pub fn same_reference(one: &str, other: &str) -> bool {
    one == other
        || matches!((Reference::parse(one), Reference::parse(other)), (Ok(a), Ok(b)) if a == b)
}

/// Returns the registry and the path of a name without tag and digest, with Docker's defaults.
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == INDEX_DOMAIN {
        DEFAULT_DOMAIN
    } else {
        domain
    };
    let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
        format!("{LIBRARY}{path}")
    } else {
        path.to_owned()
    };
    (domain.to_owned(), path)
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        // The colons of an IPv6 address are between brackets.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let port_fits =
        port.is_none_or(|port| !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit()));
    let address = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let host_fits = match address {
        Some(address) => {
            !address.is_empty() && address.bytes().all(|c| c.is_ascii_hexdigit() || c == b':')
        }
        None => host.split('.').all(is_label),
    };
    port_fits && host_fits
}

/// Returns true for a part of a host's name.
fn is_label(label: &str) -> bool {
    let ends = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    ends(label.bytes().next())
        && ends(label.bytes().last())
        && label
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || c == b'-')
}

/// Returns true for a part of a path: runs of letters and digits with separators between them.
fn is_component(component: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut separators = component.split(is_plain);
    let is_separator =
        |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|c| c == b'-');
    component.starts_with(is_plain) && component.ends_with(is_plain) && separators.all(is_separator)
}

fn is_tag(tag: &str) -> bool {
    let is_word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|c| is_word(c) || c == b'.' || c == b'-')
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, digits)) = digest.split_once(':') else {
        return false;
    };
    DIGESTS.contains(&(algorithm, digits.len())) && digits.bytes().all(is_lower_hex)
}

const fn is_lower_hex(c: u8) -> bool {
    matches!(c, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGITS: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn fault(text: &str) -> ReferenceFault {
        Reference::parse(text).unwrap_err().fault
    }

    #[test]
    fn every_form_of_a_name_is_one_reference() {
        for forms in [
            &["app", "app:latest", "library/app", "docker.io/app:latest"][..],
            &[
                "docker.io/library/app",
                "index.docker.io/library/app:latest",
                "app",
            ],
            &["me/app:1", "docker.io/me/app:1"],
        ] {
            let first = Reference::parse(forms[0]).unwrap();
            for form in forms {
                assert_eq!(Reference::parse(form).unwrap(), first, "{form}");
            }
        }
        assert_ne!(Reference::parse("app"), Reference::parse("app:1"));
        assert_ne!(Reference::parse("app"), Reference::parse("localhost/app"));
    }

    #[test]
    fn names_are_shown_short_and_written_in_full() {
        let by_digest = format!("me/app@sha256:{DIGITS}");
        for (text, short, full) in [
            ("app", "app:latest", "docker.io/library/app:latest"),
            (
                "docker.io/library/a_b__c-d:V1.0_x",
                "a_b__c-d:V1.0_x",
                "docker.io/library/a_b__c-d:V1.0_x",
            ),
            (
                "localhost/app",
                "localhost/app:latest",
                "localhost/app:latest",
            ),
            (
                "localhost:5000/app:1",
                "localhost:5000/app:1",
                "localhost:5000/app:1",
            ),
            // Without a slash it is a tag, as in Docker.
            (
                "localhost:5000",
                "localhost:5000",
                "docker.io/library/localhost:5000",
            ),
            (
                "[::1]:5000/a/b",
                "[::1]:5000/a/b:latest",
                "[::1]:5000/a/b:latest",
            ),
            ("Registry/app", "Registry/app:latest", "Registry/app:latest"),
            (
                "quay.io/library/app",
                "quay.io/library/app:latest",
                "quay.io/library/app:latest",
            ),
            // Its short form would be parsed as another registry's.
            (
                "docker.io/localhost/app",
                "docker.io/localhost/app:latest",
                "docker.io/localhost/app:latest",
            ),
            (
                "docker.io/library/a/b",
                "library/a/b:latest",
                "docker.io/library/a/b:latest",
            ),
            (&*by_digest, &*by_digest, &format!("docker.io/{by_digest}")),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.short(), short);
            assert_eq!(reference.full(), full);
        }
    }

    #[test]
    fn what_docker_refuses_is_refused_with_the_reason() {
        assert_eq!(fault(""), ReferenceFault::Length);
        assert_eq!(fault(&"a".repeat(300)), ReferenceFault::Length);
        assert_eq!(fault(DIGITS), ReferenceFault::Id);
        assert_eq!(fault("App"), ReferenceFault::UpperCase);
        assert_eq!(fault("quay.io/Me/app:1"), ReferenceFault::UpperCase);
        for path in [
            "-a", "a-", "a..b", "a___b", "a//b", "/a", "a b", "a/", "a\u{1b}", "ä",
        ] {
            assert_eq!(fault(path), ReferenceFault::Path, "{path:?}");
        }
        for domain in ["-.x/a", "a.b:/c", "a.b:x/c", "a..b/c", "[::1/a"] {
            assert_eq!(fault(domain), ReferenceFault::Domain, "{domain:?}");
        }
        for tag in [
            "a:",
            "a:.1",
            "a:b:c",
            "a:-",
            &format!("a:{}", "x".repeat(129)),
        ] {
            assert_eq!(fault(tag), ReferenceFault::Tag, "{tag:?}");
        }
        for digest in [
            "a@",
            "a@sha256:00",
            "a@md5:0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(fault(digest), ReferenceFault::Digest, "{digest:?}");
        }
        let given = Reference::parse_given(&format!("a@sha256:{DIGITS}"));
        assert_eq!(given.unwrap_err().fault, ReferenceFault::DigestGiven);
    }

    proptest! {
        #[test]
        fn both_forms_read_back_as_the_same_reference(
            text in "([A-Za-z.:0-9-]{1,12}/)?(library/|localhost/|a.b/)?[a-z0-9._/-]{1,20}(:[a-zA-Z0-9._-]{1,8})?"
        ) {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.short()), Ok(reference.clone()));
                prop_assert_eq!(Reference::parse(&reference.full()), Ok(reference));
            }
        }
    }
}
