//! The machine of the measurements.

use crate::host::{self, run};
use crate::postgres;
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    pub(crate) programs: Vec<Program>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// Programs that print their version in their first line.
const ASKED: &[(&str, &str)] = &[
    ("fio", "--version"),
    ("qemu-storage-daemon", "--version"),
    ("mkfs.xfs", "-V"),
    ("mkfs.btrfs", "--version"),
    ("mke2fs", "-V"),
    ("losetup", "--version"),
    ("tar", "--version"),
    ("lvm", "version"),
    ("zfs", "version"),
];

impl Machine {
    pub(crate) fn this(cowshed: &Path) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let after_colon = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory_kib = after_colon(&read("/proc/meminfo"), "MemTotal")
            .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0);
        let unknown = || "unknown".to_owned();
        let mut programs = vec![Program {
            name: "cowshed".into(),
            version: cowshed_version(cowshed),
        }];
        programs.extend(ASKED.iter().filter_map(|(name, question)| {
            host::find(name)?;
            let version = first_line(name, question)?;
            Some(Program {
                name: (*name).into(),
                version,
            })
        }));
        programs.extend(postgres::version().map(|version| Program {
            name: "postgres".into(),
            version,
        }));
        Self {
            cpu: after_colon(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_kib * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            programs,
        }
    }
}

/// Returns the version, with the revision if the program is this checkout's.
fn cowshed_version(cowshed: &Path) -> String {
    let version = run(cowshed, ["--version"]).map_or_else(
        |_| "unknown".to_owned(),
        |ran| ran.output.trim().replace("cowshed ", ""),
    );
    match run("git", ["describe", "--always", "--dirty", "--exclude=*"]) {
        Ok(ran) => format!("{version} ({})", ran.output.trim()),
        Err(_) => version,
    }
}

/// Returns the first line that a program prints, on either stream.
fn first_line(program: &str, question: &str) -> Option<String> {
    let script = format!("{program} {question} 2>&1");
    let output = run("sh", ["-c", &script]).ok()?.output;
    let line = output.lines().find(|line| !line.trim().is_empty())?;
    Some(line.trim().to_owned())
}

/// Returns the current time in RFC 3339.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
