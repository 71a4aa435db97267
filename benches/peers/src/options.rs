//! The command line.

use clap::Parser;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Measures cowshed beside what one would use instead: the same work on the same backing, in
/// interleaved rounds, with a table, a JSON file and a report with charts.
#[derive(Debug, Parser)]
#[command(
    name = "tools/bench",
    max_term_width = 100,
    after_help = "Exit status: 0 all of it was measured, 1 something failed (the report says what), \
        2 wrong usage,\n130 interrupted. What --only matches is shown by --list."
)]
pub(crate) struct Options {
    /// Where the subjects lie: a folder, or a block device with nothing on it [default: /dev/shm
    /// if that is in memory, and a folder on disk]
    #[arg(long, value_name = "FOLDER|DEVICE")]
    pub(crate) backing: Vec<PathBuf>,
    /// How often everything is done [default: 5, with --quick 3, with --against 7]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: Option<u32>,
    /// How long each of fio's timed jobs runs [default: 4, with --quick 1]
    #[arg(long, value_name = "N", value_parser = seconds)]
    pub(crate) seconds: Option<Duration>,
    /// Only work whose name has this in it (several: any of them)
    #[arg(long, value_name = "PATTERN")]
    pub(crate) only: Vec<String>,
    /// Only peers whose name has this in it (several: any of them)
    #[arg(long, value_name = "PATTERN")]
    pub(crate) peer: Vec<String>,
    /// Small subjects and short jobs: minutes, not hours
    #[arg(long)]
    pub(crate) quick: bool,
    /// Smaller still: shows that everything works, and measures nothing worth reading
    #[arg(long, hide = true)]
    pub(crate) tiny: bool,
    /// Compare this build with another one, A B A B: a revision of git, or a cowshed program
    #[arg(long, value_name = "REVISION|PROGRAM")]
    pub(crate) against: Option<String>,
    /// Where the results go [default: target/bench/<date>]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) output: Option<PathBuf>,
    /// Print the table in Markdown
    #[arg(long)]
    pub(crate) markdown: bool,
    /// Say what would be run, and nothing else
    #[arg(long)]
    pub(crate) list: bool,
    /// Be one of the neighbours of a run, by its process id, that keep the host busy
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) be_busy: Option<i32>,
    /// The program that is measured
    #[arg(
        long,
        hide = true,
        value_name = "PROGRAM",
        default_value = "target/release/cowshed"
    )]
    pub(crate) cowshed: PathBuf,
}

/// The request is invalid.
#[derive(Debug)]
pub(crate) struct WrongUsage(String);

impl fmt::Display for WrongUsage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for WrongUsage {}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if (0.1..=3600.0).contains(&number) {
        Ok(Duration::from_secs_f64(number))
    } else {
        Err("must be 0.1 to 3600".into())
    }
}

/// The scale of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) rounds: u32,
    /// Rounds of work that takes long and varies little.
    pub(crate) long_rounds_max: u32,
    pub(crate) seconds: Duration,
    /// The size of a block subject.
    pub(crate) subject_bytes: u64,
    /// The bytes of a subject that passes write.
    pub(crate) pass_bytes: u64,
    pub(crate) verify_bytes: u64,
    /// The size of a subject that is mapped at random before it is snapshotted.
    pub(crate) mapped_bytes: u64,
    /// pgbench's scale: each step is a branch with 100,000 accounts.
    pub(crate) database_scale: u32,
    /// Numbers of snapshots at which one more is timed.
    pub(crate) snapshot_counts: &'static [u32],
    /// The time after which a peer is given up that has not got there.
    pub(crate) patience: Duration,
    /// Number of files of the tree that is unpacked and diffed, and of the one for roots.
    pub(crate) tree_files: u32,
    pub(crate) root_files: u32,
    pub(crate) large_file_bytes: u64,
    pub(crate) roots: &'static [u32],
    /// Number of files of the package-manager-like and the build-like load.
    pub(crate) load_files: u32,
    /// Number of pairs of create and remove, of which the median counts.
    pub(crate) root_cycles: u32,
}

impl Scale {
    /// Returns the maximum space on a backing: of a volume that is mapped at random, or of the
    /// roots.
    pub(crate) fn space_bytes(&self) -> u64 {
        const SUBJECTS_MAX: u64 = 10;
        let subjects = self.subject_bytes * SUBJECTS_MAX * 3 / 2;
        let mapped = self.mapped_bytes * 3 / 2;
        let database = 2 * (self.database_bytes() + DATABASE_SPARE_BYTES);
        let roots = 4 * self.large_file_bytes
            + u64::from(self.root_files) * ROOT_FILE_BYTES * (self.most_roots() + 5)
            + u64::from(self.tree_files) * ROOT_FILE_BYTES * 5;
        subjects.max(mapped).max(database).max(roots)
    }

    /// Returns the size of a database before any load.
    pub(crate) fn database_bytes(&self) -> u64 {
        u64::from(self.database_scale) * 16 * MIB
    }

    fn most_roots(&self) -> u64 {
        u64::from(self.roots.iter().max().copied().unwrap_or(0))
    }
}

/// The space that a small file takes, including overhead.
const ROOT_FILE_BYTES: u64 = 16 << 10;
/// The overhead of a database: its log, and the file system's own data.
const DATABASE_SPARE_BYTES: u64 = 512 * MIB;

impl Options {
    pub(crate) fn scale(&self) -> Scale {
        let mut scale = if self.tiny {
            TINY
        } else if self.quick {
            QUICK
        } else {
            FULL
        };
        if self.against.is_some() {
            scale.rounds = AGAINST_ROUNDS;
            scale.long_rounds_max = AGAINST_ROUNDS;
        }
        scale.rounds = self.rounds.unwrap_or(scale.rounds);
        scale.seconds = self.seconds.unwrap_or(scale.seconds);
        scale
    }

    /// Returns true if work of this name is asked for.
    pub(crate) fn wants(&self, work: &str) -> bool {
        matches(&self.only, work)
    }

    /// # Errors
    /// When work is asked for that is not among `works`.
    pub(crate) fn check_works(&self, works: &[&str]) -> anyhow::Result<()> {
        check("only", &self.only, works)
    }

    /// # Errors
    /// When a peer is asked for that is not among `peers`.
    pub(crate) fn check_peers(&self, peers: &[String]) -> anyhow::Result<()> {
        let peers: Vec<_> = peers.iter().map(String::as_str).collect();
        check("peer", &self.peer, &peers)
    }

    /// Returns true if this peer is asked for.
    pub(crate) fn wants_peer(&self, peer: &str) -> bool {
        matches(&self.peer, peer)
    }
}

fn matches(patterns: &[String], name: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| name.contains(pattern))
}

fn check(option: &str, patterns: &[String], names: &[&str]) -> anyhow::Result<()> {
    for pattern in patterns {
        if !names.iter().any(|name| name.contains(pattern.as_str())) {
            let there = names.join(", ");
            let said = format!("--{option} {pattern} names nothing; there is: {there}");
            return Err(WrongUsage(said).into());
        }
    }
    Ok(())
}

/// Enough to distinguish a change from noise.
const AGAINST_ROUNDS: u32 = 7;

const FULL: Scale = Scale {
    rounds: 5,
    long_rounds_max: 2,
    seconds: Duration::from_secs(4),
    subject_bytes: 512 * MIB,
    pass_bytes: 256 * MIB,
    verify_bytes: 64 * MIB,
    mapped_bytes: 10 * GIB,
    database_scale: 32,
    snapshot_counts: &[1, 100, 10_000],
    patience: Duration::from_secs(300),
    tree_files: 50_000,
    root_files: 5_000,
    large_file_bytes: GIB,
    roots: &[5, 50],
    load_files: 5_000,
    root_cycles: 21,
};

const QUICK: Scale = Scale {
    rounds: 3,
    long_rounds_max: 2,
    seconds: Duration::from_secs(1),
    subject_bytes: 256 * MIB,
    pass_bytes: 64 * MIB,
    verify_bytes: 16 * MIB,
    mapped_bytes: GIB,
    database_scale: 8,
    snapshot_counts: &[1, 100, 1_000],
    patience: Duration::from_secs(30),
    tree_files: 10_000,
    root_files: 1_000,
    large_file_bytes: 256 * MIB,
    roots: &[5],
    load_files: 1_000,
    root_cycles: 7,
};

const TINY: Scale = Scale {
    rounds: 1,
    long_rounds_max: 3,
    seconds: Duration::from_millis(200),
    subject_bytes: 32 * MIB,
    pass_bytes: 4 * MIB,
    verify_bytes: 4 * MIB,
    mapped_bytes: 8 * MIB,
    database_scale: 1,
    snapshot_counts: &[1, 10],
    patience: Duration::from_secs(10),
    tree_files: 200,
    root_files: 100,
    large_file_bytes: 4 * MIB,
    roots: &[2],
    load_files: 50,
    root_cycles: 2,
};

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn patterns_are_alternatives_and_none_is_all() {
        let options = Options::parse_from(["bench", "--only", "io", "--only", "roots"]);
        assert!(options.wants("block/io") && options.wants("roots/space"));
        assert!(!options.wants("block/snapshots"));
        assert!(options.wants_peer("anything"));
    }

    #[test]
    fn a_pattern_that_names_nothing_is_refused() {
        let options = Options::parse_from(["bench", "--only", "io", "--peer", "qcow3"]);
        assert!(options.check_works(&["block/io", "roots/space"]).is_ok());
        assert!(options.check_works(&["roots/space"]).is_err());
        let refused = options.check_peers(&["cowshed".into(), "qcow2".into()]);
        let said = "--peer qcow3 names nothing; there is: cowshed, qcow2";
        assert_eq!(refused.unwrap_err().to_string(), said);
    }

    #[test]
    fn what_is_said_goes_before_what_quick_means() {
        let options = Options::parse_from(["bench", "--quick", "--rounds", "7"]);
        let scale = options.scale();
        assert_eq!((scale.rounds, scale.seconds), (7, QUICK.seconds));
        let options = Options::parse_from(["bench", "--against", "main"]);
        assert_eq!(options.scale().rounds, AGAINST_ROUNDS);
        let options = Options::parse_from(["bench", "--against", "main", "--rounds", "5"]);
        assert_eq!(options.scale().rounds, 5);
    }
}
