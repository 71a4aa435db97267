//! The options of `serve` about a full pool.

use super::arguments::size::Size;
use super::open::Place;
use anyhow::Context;
use clap::Args;
use cowshed_engine::{FullOptions, FullPolicy};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

/// The longest time that a write is held (a day): the kernel and its callers wait that long.
const WAIT_SECONDS_MAX: u64 = 24 * 60 * 60;

/// The same time for which dm-thin holds writes: enough to free space, and shorter than the
/// kernel's own limits for a hung task.
const DEFAULT_POLICY: FullPolicy = FullPolicy::WaitAttached(Duration::from_secs(60));

/// Options about a full pool.
#[derive(Clone, Debug, Args)]
pub(super) struct Full {
    /// The policy for writes to a full pool. `error` refuses them. `wait=SECONDS` holds them for up
    /// to that time, while someone grows the pool or frees space. `attached=SECONDS` holds only
    /// writes to mounted and attached volumes, and refuses writes of commands
    /// [default: attached=60]
    #[arg(long, value_name = "POLICY", value_parser = parse_policy)]
    pub full_policy: Option<FullPolicy>,
    /// Let the pool's file grow by itself as it fills up, to this size at most
    #[arg(long, value_name = "SIZE")]
    pub max_size: Option<Size>,
}

impl Full {
    /// Returns the engine's options.
    ///
    /// # Errors
    /// When the pool cannot grow.
    pub(super) fn options(&self, place: &Place) -> anyhow::Result<FullOptions> {
        let path = place.pool.as_path();
        let is_device = fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
        if self.max_size.is_some() && is_device {
            anyhow::bail!(
                "pool {}: a block device does not grow by itself; omit --max-size, and use \
                 `cowshed pool grow` once the device is larger",
                place.pool
            );
        }
        Ok(FullOptions {
            policy: self.full_policy.unwrap_or(DEFAULT_POLICY),
            max_size_bytes: self.max_size.map(|size| size.0),
        })
    }

    /// Returns the same options as arguments for another process.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        arguments.extend(self.full_policy.map(|policy| match policy {
            FullPolicy::Error => "--full-policy=error".to_owned(),
            FullPolicy::Wait(time) => format!("--full-policy=wait={}", time.as_secs()),
            FullPolicy::WaitAttached(time) => format!("--full-policy=attached={}", time.as_secs()),
        }));
        if let Some(size) = self.max_size {
            arguments.push(format!("--max-size={}", size.0));
        }
        arguments
    }
}

fn parse_policy(text: &str) -> anyhow::Result<FullPolicy> {
    if text == "error" {
        return Ok(FullPolicy::Error);
    }
    let parts = text.split_once('=');
    let make = match parts {
        Some(("wait", _)) => FullPolicy::Wait,
        _ => FullPolicy::WaitAttached,
    };
    let seconds = parts
        .filter(|(word, _)| matches!(*word, "wait" | "attached"))
        .and_then(|(_, seconds)| seconds.parse().ok())
        .filter(|seconds| (1..=WAIT_SECONDS_MAX).contains(seconds));
    let seconds = seconds.with_context(|| {
        format!(
            "write error, wait=SECONDS or attached=SECONDS with 1 to {WAIT_SECONDS_MAX} seconds"
        )
    })?;
    Ok(make(Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_as_they_are_written_for_another_process() {
        for text in ["error", "wait=1", "wait=86400", "attached=60"] {
            let full = Full {
                full_policy: Some(parse_policy(text).unwrap()),
                max_size: Some(Size(1 << 30)),
            };
            let wanted = [
                format!("--full-policy={text}"),
                "--max-size=1073741824".into(),
            ];
            assert_eq!(full.arguments(), wanted);
        }
        assert_eq!(parse_policy("error").unwrap(), FullPolicy::Error);
        for text in [
            "",
            "wait",
            "wait=",
            "wait=0",
            "wait=86401",
            "wait=-1",
            "wait=1s",
            "attached",
            "attached=0",
            "error=1",
            "Error",
        ] {
            assert!(parse_policy(text).is_err(), "{text}");
        }
    }
}
