//! The options of `serve` about scrubbing.

use super::arguments::size::Size;
use anyhow::Context;
use clap::Args;
use cowshed_daemon::ScrubSchedule;
use std::time::Duration;

/// The most that a scheduled scrub reads in a second, by default: a disk of the slowest kind can do
/// something else beside it.
const DEFAULT_LIMIT: u64 = 50 << 20;
/// The longest interval, ten years.
const DAYS_MAX: u64 = 3650;

/// Options about scrubbing.
#[derive(Clone, Debug, Args)]
pub(super) struct ScrubOptions {
    /// Read and verify everything in use so long after the last scrub: 12h, 30d. A scrub that a
    /// stop interrupts goes on after the next start [default: only on command]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub scrub_every: Option<Duration>,
    /// The most that such a scrub reads in a second [default: 50M]
    #[arg(long, value_name = "SIZE", requires = "scrub_every")]
    pub scrub_limit: Option<Size>,
}

impl ScrubOptions {
    /// Returns the daemon's schedule.
    pub(super) fn schedule(&self) -> Option<ScrubSchedule> {
        self.scrub_every.map(|every| ScrubSchedule {
            every,
            bytes_per_second: self.scrub_limit.map_or(DEFAULT_LIMIT, |size| size.0),
        })
    }

    /// Returns the same options as arguments for another process.
    pub(super) fn arguments(&self) -> Vec<String> {
        let every = self.scrub_every.map(|every| every.as_secs());
        let every = every.map(|seconds| format!("--scrub-every={seconds}s"));
        let limit = self
            .scrub_limit
            .map(|size| format!("--scrub-limit={}", size.0));
        every.into_iter().chain(limit).collect()
    }
}

fn parse_time(text: &str) -> anyhow::Result<Duration> {
    let units = [("s", 1), ("m", 60), ("h", 60 * 60), ("d", 24 * 60 * 60)];
    let found = units.into_iter().find_map(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(seconds)
    });
    found
        .filter(|seconds| (1..=DAYS_MAX * 24 * 60 * 60).contains(seconds))
        .map(Duration::from_secs)
        .with_context(|| format!("write a number and s, m, h or d, up to {DAYS_MAX}d: 12h, 30d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written_for_another_process() {
        let day = 24 * 60 * 60;
        for (text, seconds) in [
            ("90s", 90),
            ("5m", 300),
            ("12h", day / 2),
            ("30d", 30 * day),
        ] {
            let options = ScrubOptions {
                scrub_every: Some(parse_time(text).unwrap()),
                scrub_limit: Some(Size(1 << 20)),
            };
            let schedule = options.schedule().unwrap();
            assert_eq!(schedule.every, Duration::from_secs(seconds));
            let wanted = [
                format!("--scrub-every={seconds}s"),
                "--scrub-limit=1048576".into(),
            ];
            assert_eq!(options.arguments(), wanted);
            assert_eq!(parse_time(&format!("{seconds}s")).unwrap(), schedule.every);
        }
        for text in [
            "",
            "0d",
            "-1d",
            "30",
            "d",
            "3651d",
            "1w",
            "1.5h",
            "99999999999999999999d",
        ] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
