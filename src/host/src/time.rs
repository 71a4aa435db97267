//! Times as the documents of images and the command line have them: RFC 3339 in UTC.

use serde::Serializer;
use std::time::SystemTime;

/// For `#[serde(serialize_with)]`.
pub(super) fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
}

/// Now.
pub(super) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
