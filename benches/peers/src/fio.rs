//! fio: its jobs and its results.
//!
//! Every job bypasses the page cache of its device. fio's output is parsed as JSON; a missing
//! number is an error, not a zero.

use crate::host;
use anyhow::{Context, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

const RAMP: &str = "--ramp_time=300ms";
const FRACTION: &str = "99.900000";

/// The target of fio.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Device(PathBuf),
    /// A unix socket at which an NBD server exports one image without a name.
    Nbd(PathBuf),
}

impl Target {
    /// Makes everything written to a device durable. An image behind a socket has no cache here.
    ///
    /// # Errors
    /// When the device reports an error.
    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        let Self::Device(path) = self else {
            return Ok(());
        };
        let device = File::options().write(true).open(path);
        let device = device.context("open the device")?;
        device.sync_data().context("make what was written durable")
    }
}

/// The pattern of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    RandomRead,
    RandomWrite,
    /// 70 % reads.
    RandomMixed,
    Read,
    Write,
}

impl Pattern {
    fn word(self) -> &'static str {
        match self {
            Self::RandomRead => "randread",
            Self::RandomWrite => "randwrite",
            Self::RandomMixed => "randrw",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// The end of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    After(Duration),
    /// Each block once, in this number of bytes; given up after a time.
    Pass(u64, Duration),
}

/// A job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) pattern: Pattern,
    pub(crate) block_bytes: u64,
    pub(crate) depth: u32,
    /// Flush after every write.
    pub(crate) fsync: bool,
    /// The maximum rate.
    pub(crate) per_second_max: Option<u32>,
    pub(crate) end: End,
    pub(crate) seed: u64,
}

/// The part of a device that is verified.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    pub(crate) len_bytes: u64,
    pub(crate) seed: u64,
}

/// The measured values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) reads: Direction,
    pub(crate) writes: Direction,
    /// The time within which 99.9 % of the flushes were done, if there were any.
    pub(crate) flush_seconds_p999: Option<f64>,
}

/// The values of the reads, or of the writes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Direction {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) per_second: f64,
    pub(crate) bytes_per_second: f64,
    /// The time within which 99.9 % were done.
    pub(crate) seconds_p999: f64,
}

impl Job {
    /// Runs the job.
    ///
    /// # Errors
    /// When fio fails, or did nothing.
    pub(crate) fn run(&self, target: &Target, size_bytes: u64) -> anyhow::Result<Outcome> {
        let mut arguments = base(target);
        arguments.extend([
            format!("--rw={}", self.pattern.word()),
            format!("--bs={}", self.block_bytes),
            format!("--iodepth={}", self.depth),
            format!("--randseed={}", self.seed + 1),
        ]);
        arguments.extend(match self.end {
            End::After(time) => vec![
                format!("--size={size_bytes}"),
                "--time_based".into(),
                format!("--runtime={}ms", time.as_millis()),
                "--norandommap".into(),
                RAMP.into(),
            ],
            End::Pass(bytes, limit) => vec![
                format!("--size={}", bytes.min(size_bytes)),
                format!("--runtime={}ms", limit.as_millis()),
                "--random_generator=lfsr".into(),
            ],
        });
        if self.pattern == Pattern::RandomMixed {
            arguments.push("--rwmixread=70".into());
        }
        if self.fsync {
            arguments.push("--fsync=1".into());
        }
        if let Some(number) = self.per_second_max {
            arguments.push(format!("--rate_iops={number}"));
        }
        let outcome = parse(&host::run("fio", arguments)?.output)?;
        ensure!(
            outcome.reads.count + outcome.writes.count > 0,
            "no request was finished in the time: give it more --seconds"
        );
        Ok(outcome)
    }
}

/// Writes `bytes` from `offset` on, at random and with a checksum and a number in each block, and
/// reads all of it back.
///
/// # Errors
/// When other data comes back than was written, or not all was verified.
pub(crate) fn verify(target: &Target, part: Part, depth: u32) -> anyhow::Result<()> {
    let mut arguments = base(target);
    arguments.extend([
        "--rw=randwrite".into(),
        "--bs=4096".into(),
        format!("--iodepth={depth}"),
        format!("--offset={}", part.offset),
        format!("--size={}", part.len_bytes),
        format!("--randseed={}", part.seed + 1),
        "--verify=crc32c".into(),
        "--verify_fatal=1".into(),
        "--do_verify=1".into(),
        // Else it leaves a file in its working folder.
        "--verify_state_save=0".into(),
    ]);
    let outcome = parse(&host::run("fio", arguments)?.output).context("verify")?;
    let blocks = part.len_bytes / 4096;
    ensure!(
        outcome.writes.count == blocks && outcome.reads.count == blocks,
        "fio wrote {} and verified {} of {blocks} blocks",
        outcome.writes.count,
        outcome.reads.count
    );
    Ok(())
}

/// Returns true if `verify` found wrong data, as opposed to a failing device.
pub(crate) fn is_mismatch(error: &anyhow::Error) -> bool {
    let said = format!("{error:#}");
    ["verify: bad", "verify failed"]
        .iter()
        .any(|words| said.contains(words))
}

/// Writes the whole device once, sequentially.
///
/// # Errors
/// When fio fails.
pub(crate) fn fill(target: &Target, size_bytes: u64) -> anyhow::Result<()> {
    let mut arguments = base(target);
    arguments.extend([
        "--rw=write".into(),
        "--bs=1M".into(),
        "--iodepth=4".into(),
        format!("--size={size_bytes}"),
        "--refill_buffers".into(),
        "--end_fsync=1".into(),
    ]);
    let outcome = parse(&host::run("fio", arguments)?.output).context("fill")?;
    ensure!(
        outcome.writes.bytes == size_bytes,
        "fio wrote {} of {size_bytes} bytes",
        outcome.writes.bytes
    );
    Ok(())
}

fn base(target: &Target) -> Vec<String> {
    let mut arguments = vec![
        "--name=job".into(),
        "--output-format=json".into(),
        "--percentile_list=50:99:99.9".into(),
    ];
    arguments.extend(match target {
        Target::Device(path) => vec![
            format!("--filename={}", path.display()),
            "--direct=1".into(),
            format!("--ioengine={}", engine()),
        ],
        Target::Nbd(socket) => vec![
            "--ioengine=nbd".into(),
            format!("--uri=nbd+unix:///?socket={}", socket.display()),
        ],
    });
    arguments
}

/// Returns fio's engine for requests: io_uring if this fio and kernel support it.
fn engine() -> &'static str {
    static ENGINE: OnceLock<&str> = OnceLock::new();
    ENGINE.get_or_init(|| {
        if has_engine("io_uring") && io_uring_works() {
            "io_uring"
        } else {
            "libaio"
        }
    })
}

fn io_uring_works() -> bool {
    let words = [
        "--name=job",
        "--ioengine=io_uring",
        "--filename=/dev/zero",
        "--rw=read",
        "--size=4k",
    ];
    host::run("fio", words).is_ok()
}

/// Returns true if fio has an engine.
pub(crate) fn has_engine(name: &str) -> bool {
    host::run("fio", ["--enghelp"])
        .is_ok_and(|ran| ran.output.lines().any(|line| line.trim() == name))
}

/// Returns true if a path can be used unchanged: fio takes a colon as the end of a file's name.
pub(crate) fn can_name(path: &Path) -> bool {
    !path.to_string_lossy().contains([':', '\\'])
}

#[derive(Deserialize)]
struct Document {
    jobs: Vec<JobResult>,
}

#[derive(Deserialize)]
struct JobResult {
    error: i64,
    read: Side,
    write: Side,
    #[serde(default)]
    sync: Flushes,
}

#[derive(Default, Deserialize)]
struct Flushes {
    total_ios: u64,
    lat_ns: Latency,
}

#[derive(Deserialize)]
struct Side {
    io_bytes: u64,
    total_ios: u64,
    iops: f64,
    bw_bytes: f64,
    clat_ns: Latency,
}

#[derive(Default, Deserialize)]
struct Latency {
    #[serde(default)]
    percentile: BTreeMap<String, u64>,
}

impl Latency {
    fn seconds_p999(&self) -> anyhow::Result<f64> {
        let nanoseconds = self.percentile.get(FRACTION);
        let nanoseconds = nanoseconds.context("fio gave no 99.9th percentile")?;
        Ok(Duration::from_nanos(*nanoseconds).as_secs_f64())
    }
}

impl Side {
    fn direction(&self) -> anyhow::Result<Direction> {
        if self.total_ios == 0 {
            return Ok(Direction::default());
        }
        Ok(Direction {
            count: self.total_ios,
            bytes: self.io_bytes,
            per_second: self.iops,
            bytes_per_second: self.bw_bytes,
            seconds_p999: self.clat_ns.seconds_p999()?,
        })
    }
}

/// Parses fio's output: one document, perhaps after lines of warnings.
fn parse(text: &str) -> anyhow::Result<Outcome> {
    let start = text
        .lines()
        .scan(0, |at, line| {
            let here = *at;
            *at += line.len() + 1;
            Some((here, line))
        })
        .find(|(_, line)| line.starts_with('{'))
        .context("fio printed no JSON")?
        .0;
    let document: Document = serde_json::from_str(&text[start..]).context("read fio's JSON")?;
    ensure!(document.jobs.len() == 1, "fio did not run one job");
    let job = &document.jobs[0];
    ensure!(job.error == 0, "fio's job failed with error {}", job.error);
    let flushes = (job.sync.total_ios > 0).then(|| job.sync.lat_ns.seconds_p999());
    Ok(Outcome {
        reads: job.read.direction()?,
        writes: job.write.direction()?,
        flush_seconds_p999: flushes.transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output in the form of fio 3.33, without fields that are not read.
    fn printed(error: i64, percentiles: &str) -> String {
        printed_with_flushes(error, percentiles, 0)
    }

    fn printed_with_flushes(error: i64, percentiles: &str, flushes: u64) -> String {
        format!(
            r#"{{
  "fio version" : "fio-3.33",
  "jobs" : [ {{
    "jobname" : "job",
    "error" : {error},
    "read" : {{
      "io_bytes" : 409600, "total_ios" : 100, "iops" : 50.5, "bw_bytes" : 204800,
      "clat_ns" : {{ "min" : 1, "max" : 9, "N" : 100, {percentiles} }}
    }},
    "write" : {{
      "io_bytes" : 0, "total_ios" : 0, "iops" : 0.0, "bw_bytes" : 0,
      "clat_ns" : {{ "min" : 0, "max" : 0, "N" : 0 }}
    }},
    "sync" : {{
      "total_ios" : {flushes},
      "lat_ns" : {{ "min" : 0, "max" : 0, "N" : {flushes}, {percentiles} }}
    }}
  }} ]
}}"#
        )
    }

    const GOOD: &str = r#""percentile" : { "50.000000" : 1000, "99.900000" : 2500000 }"#;

    #[test]
    fn numbers_are_read_from_where_fio_puts_them() {
        let outcome = parse(&printed(0, GOOD)).unwrap();
        let expected = Direction {
            count: 100,
            bytes: 409_600,
            per_second: 50.5,
            bytes_per_second: 204_800.0,
            seconds_p999: 0.0025,
        };
        assert_eq!(outcome.reads, expected);
        assert_eq!(outcome.writes, Direction::default());
        assert_eq!(outcome.flush_seconds_p999, None);
        let outcome = parse(&printed_with_flushes(0, GOOD, 7)).unwrap();
        assert_eq!(outcome.flush_seconds_p999, Some(0.0025));
    }

    #[test]
    fn what_came_back_wrong_is_told_from_a_device_that_failed() {
        let is_mismatch = |said: &'static str| {
            let failed = anyhow::anyhow!("fio --verify=crc32c failed (exit status: 1): {said}");
            is_mismatch(&failed.context("verify"))
        };
        assert!(is_mismatch(
            "verify: bad magic header 584f, wanted acca at file /dev/loop0 offset 28672"
        ));
        assert!(is_mismatch(
            "crc32c: verify failed at file /dev/loop0 offset 0"
        ));
        assert!(!is_mismatch(
            "fio: io_u error on file /dev/loop0: Input/output error"
        ));
    }

    #[test]
    fn warnings_before_the_document_are_passed_over() {
        let text = format!("fio: a {{warning}}\nnote: another\n{}", printed(0, GOOD));
        assert_eq!(parse(&text).unwrap(), parse(&printed(0, GOOD)).unwrap());
    }

    #[test]
    fn a_job_that_failed_is_an_error_though_fio_measured_something() {
        let error = parse(&printed(84, GOOD)).unwrap_err().to_string();
        assert!(error.contains("84"), "{error}");
    }

    #[test]
    fn a_missing_number_is_an_error_and_no_zero() {
        let other = r#""percentile" : { "50.000000" : 1000 }"#;
        assert!(parse(&printed(0, other)).is_err());
        assert!(parse(&printed(0, GOOD).replace("\"iops\" : 50.5,", "")).is_err());
        assert!(parse("").is_err());
        assert!(parse("{}").is_err());
        assert!(parse(&printed(0, GOOD)[..200]).is_err());
    }
}
