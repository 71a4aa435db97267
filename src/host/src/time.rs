//! Times in the format of image documents and of the command line: RFC 3339 in UTC.

use serde::Serializer;
use std::time::SystemTime;

/// Serializes a time, for `#[serde(serialize_with)]`.
pub(crate) fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
}

/// Returns the present time.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
