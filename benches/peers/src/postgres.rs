//! PostgreSQL: a server on a folder, and pgbench, which measures it.
//!
//! The server refuses to run as root, so it runs as the user of its package. It listens only on a
//! socket in its folder. pgbench's output is parsed; a missing number is an error.

use crate::guards::{self, Process};
use crate::host::{self, text};
use anyhow::{Context, ensure};
use nix::unistd::{Gid, Uid, User};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Debian installs each version in its own folder here.
const INSTALLED: &str = "/usr/lib/postgresql";
const PROGRAMS: [&str; 5] = ["postgres", "initdb", "pg_isready", "pgbench", "psql"];
const PACKAGE: &str = "postgresql";
const USER: &str = "postgres";
/// The owner of the database, who can connect without a password.
const OWNER: &str = "bench";
const DATABASE: &str = "postgres";
/// The threads of pgbench, each of which serves some clients.
const THREADS_MAX: u32 = 2;
/// Returns the number of lines in the history, and whether all sums are equal: each transaction
/// changes the balance of an account, a teller and a branch, and adds a line to the history.
const AUDIT: &str = "SELECT count(*), \
    coalesce(sum(delta), 0) = (SELECT sum(abalance) FROM pgbench_accounts) AND \
    coalesce(sum(delta), 0) = (SELECT sum(tbalance) FROM pgbench_tellers) AND \
    coalesce(sum(delta), 0) = (SELECT sum(bbalance) FROM pgbench_branches) \
    FROM pgbench_history";

/// The programs of one version, and the user that runs the server.
pub(crate) struct Postgres {
    programs: PathBuf,
    user: Uid,
    group: Gid,
}

/// Returns the reason why there can be no server here.
pub(crate) fn missing() -> Option<String> {
    let needed = [("setpriv", "util-linux"), ("mke2fs", "e2fsprogs")];
    host::missing_programs(&needed)
        .or_else(|| host::missing_file_system("ext4"))
        .or_else(|| Postgres::find().err().map(|error| format!("{error:#}")))
}

/// Returns the version that is measured, if there is one.
pub(crate) fn version() -> Option<String> {
    let postgres = Postgres::find().ok()?;
    let program = postgres.programs.join("postgres");
    let ran = host::run(program, ["--version"]).ok()?;
    Some(ran.output.trim().to_owned())
}

impl Postgres {
    /// Finds the programs and the user.
    ///
    /// # Errors
    /// When one of them is missing.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let programs = newest(Path::new(INSTALLED))
            .or_else(|| host::find(PROGRAMS[0])?.parent().map(Path::to_owned))
            .filter(|folder| has_programs(folder))
            .with_context(|| format!("there is no {} (Debian's package {PACKAGE})", PROGRAMS[0]))?;
        let user = User::from_name(USER)?
            .with_context(|| format!("there is no user {USER} (Debian's package {PACKAGE})"))?;
        Ok(Self {
            programs,
            user: user.uid,
            group: user.gid,
        })
    }

    /// Creates an ext4 file system on a device, with a root folder that the server may write to.
    ///
    /// # Errors
    /// When it cannot be created.
    pub(crate) fn format(&self, device: &Path) -> anyhow::Result<()> {
        // The kernel has nothing left to write in the background.
        let options = format!(
            "lazy_itable_init=0,lazy_journal_init=0,root_owner={}:{}",
            self.user, self.group
        );
        let words = ["-q", "-F", "-t", "ext4", "-E", &options, text(device)?];
        host::run("mke2fs", words)?;
        Ok(())
    }

    /// Creates an empty database in a folder, and starts a server on it.
    ///
    /// # Errors
    /// When one of these fails.
    pub(crate) fn create(&self, folder: &Path) -> anyhow::Result<Server<'_>> {
        let mut initdb = self.as_user("initdb");
        initdb
            .arg("--pgdata")
            .arg(data(folder))
            .arg(format!("--username={OWNER}"))
            .args(["--auth=trust", "--no-locale", "--encoding=UTF8"]);
        host::wait(initdb)?;
        self.serve(folder)
    }

    /// Starts a server on a folder that has a database.
    ///
    /// # Errors
    /// When it does not start in time.
    pub(crate) fn serve(&self, folder: &Path) -> anyhow::Result<Server<'_>> {
        let log = folder.join("log");
        let output = File::create(&log)?;
        let mut command = self.as_user("postgres");
        command
            .arg("-D")
            .arg(data(folder))
            .arg("-k")
            .arg(folder)
            // It could start in the timed run of one peer and not of another.
            .args(["-c", "listen_addresses=", "-c", "autovacuum=off"])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let mut server = Server {
            process: Process::start(&mut command)?,
            postgres: self,
            folder: folder.to_owned(),
        };
        server.await_start().with_context(|| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let last = said.trim().lines().next_back().unwrap_or_default();
            format!("the database server did not start: {last}")
        })?;
        Ok(server)
    }

    /// Returns a command for one of its programs, without settings from environment variables.
    fn program(&self, name: &str) -> Command {
        plain(Command::new(self.programs.join(name)))
    }

    /// Returns a command for one of its programs that does not run as root.
    fn as_user(&self, name: &str) -> Command {
        let mut command = plain(Command::new("setpriv"));
        command
            .arg(format!("--reuid={}", self.user))
            .arg(format!("--regid={}", self.group))
            .arg("--clear-groups")
            .arg(self.programs.join(name));
        command
    }
}

fn plain(mut command: Command) -> Command {
    // The user may be unable to enter the current working folder.
    command.env_clear().env("LC_ALL", "C").current_dir("/");
    command
}

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn has_programs(folder: &Path) -> bool {
    PROGRAMS.iter().all(|name| folder.join(name).is_file())
}

/// Returns the programs of the newest version that has all of them.
fn newest(installed: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(installed).ok()?;
    let versions = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name();
        let numbers = name.to_str()?.split('.').map(str::parse::<u32>);
        let version: Vec<_> = numbers.collect::<Result<_, _>>().ok()?;
        let programs = entry.path().join("bin");
        has_programs(&programs).then_some((version, programs))
    });
    versions.max().map(|(_, programs)| programs)
}

/// A server that stops when it is dropped.
pub(crate) struct Server<'a> {
    process: Process,
    postgres: &'a Postgres,
    folder: PathBuf,
}

impl Server<'_> {
    /// Creates pgbench's tables; each step of `scale` is about 16 MB.
    ///
    /// # Errors
    /// When pgbench fails.
    pub(crate) fn fill(&self, scale: u32) -> anyhow::Result<()> {
        let mut pgbench = self.client("pgbench");
        pgbench
            .args(["--initialize", "--quiet"])
            .arg(format!("--scale={scale}"))
            .arg(DATABASE);
        host::wait(pgbench)?;
        Ok(())
    }

    /// Removes dead rows, and writes everything to its place.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        for statement in ["VACUUM", "CHECKPOINT"] {
            self.query(statement)?;
        }
        Ok(())
    }

    /// Lets this number of clients run transactions for some time, at least a second.
    ///
    /// # Errors
    /// When a transaction fails.
    pub(crate) fn bench(&self, clients: u32, time: Duration) -> anyhow::Result<Outcome> {
        let mut pgbench = self.client("pgbench");
        pgbench
            .arg("--no-vacuum")
            .arg(format!("--client={clients}"))
            .arg(format!("--jobs={}", clients.min(THREADS_MAX)))
            .arg(format!("--time={}", time.as_secs().max(1)))
            .arg(DATABASE);
        parse(&host::wait(pgbench)?.output)
    }

    /// Checks that all `transactions` are there, and are complete.
    ///
    /// # Errors
    /// When they are not.
    pub(crate) fn audit(&self, transactions: u64) -> anyhow::Result<()> {
        let found = self.query(AUDIT)?;
        ensure!(
            found == format!("{transactions}|t"),
            "{transactions} transactions were made, and then the database had \"{found}\": their \
            number, and whether their sums are the same (t or f)"
        );
        Ok(())
    }

    fn query(&self, statement: &str) -> anyhow::Result<String> {
        let mut psql = self.client("psql");
        psql.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only"])
            .arg(format!("--command={statement}"))
            .arg(DATABASE);
        Ok(host::wait(psql)?.output.trim().to_owned())
    }

    fn client(&self, name: &str) -> Command {
        let mut command = self.postgres.program(name);
        command
            .arg("--host")
            .arg(&self.folder)
            .arg(format!("--username={OWNER}"));
        command
    }

    fn await_start(&mut self) -> anyhow::Result<()> {
        guards::eventually("the server's first answer", || {
            self.process.expect_running()?;
            Ok(host::wait(self.client("pg_isready")).is_ok())
        })
    }
}

/// The measured values of pgbench.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) transactions: u64,
    pub(crate) per_second: f64,
}

/// Parses pgbench's output. Until version 13, it printed two speeds; the one that includes the time
/// for connections is ignored.
fn parse(text: &str) -> anyhow::Result<Outcome> {
    let after = |start: &str| {
        let mut lines = text.lines();
        let rest = lines.find_map(|line| line.strip_prefix(start));
        rest.and_then(|rest| rest.split([' ', '/']).next())
    };
    let transactions = after("number of transactions actually processed: ")
        .and_then(|number| number.parse().ok())
        .context("pgbench gave no number of transactions")?;
    if let Some(failed) = after("number of failed transactions: ") {
        ensure!(failed == "0", "{failed} transactions failed");
    }
    let per_second = text
        .lines()
        .filter(|line| !line.contains("including connections"))
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
        .filter(|speed: &f64| speed.is_finite())
        .context("pgbench gave no transactions per second")?;
    ensure!(
        transactions > 0,
        "no transaction was finished in the time: give it more --seconds"
    );
    Ok(Outcome {
        transactions,
        per_second,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output of pgbench 15.
    const PRINTED: &str = "pgbench (15.14 (Debian 15.14-0+deb12u1))
transaction type: <builtin: TPC-B (sort of)>
scaling factor: 8
query mode: simple
number of clients: 8
number of threads: 2
maximum number of tries: 1
duration: 3 s
number of transactions actually processed: 9312
number of failed transactions: 0 (0.000%)
latency average = 2.576 ms
initial connection time = 9.713 ms
tps = 3105.613451 (without initial connection time)
";

    #[test]
    fn numbers_are_read_from_where_pgbench_puts_them() {
        let outcome = parse(PRINTED).unwrap();
        let expected = Outcome {
            transactions: 9312,
            per_second: 3_105.613_451,
        };
        assert_eq!(outcome, expected);
    }

    #[test]
    fn of_the_two_speeds_of_older_versions_the_one_without_connecting_counts() {
        let older = "number of transactions actually processed: 20/20
tps = 90.500000 (including connections establishing)
tps = 99.250000 (excluding connections establishing)
";
        let outcome = parse(older).unwrap();
        assert_eq!((outcome.transactions, outcome.per_second), (20, 99.25));
    }

    #[test]
    fn a_transaction_that_failed_is_an_error() {
        let failed = "failed transactions: 3 (0.032%)";
        let text = PRINTED.replace("failed transactions: 0 (0.000%)", failed);
        let error = parse(&text).unwrap_err().to_string();
        assert_eq!(error, "3 transactions failed");
    }

    #[test]
    fn a_missing_number_is_an_error_and_no_zero() {
        assert!(parse("").is_err());
        assert!(parse(&PRINTED.replace("tps = ", "")).is_err());
        assert!(parse(&PRINTED.replace("3105.613451", "nan")).is_err());
        assert!(parse(&PRINTED.replace("actually processed", "")).is_err());
        assert!(parse(&PRINTED.replace(": 9312", ": 0")).is_err());
    }

    #[test]
    fn the_newest_version_that_is_whole_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["9.6", "15", "17", "common"] {
            let programs = folder.path().join(version).join("bin");
            fs::create_dir_all(&programs).unwrap();
            for name in PROGRAMS {
                // Of the newest version, only a client is installed.
                if version != "17" || name == "psql" {
                    File::create(programs.join(name)).unwrap();
                }
            }
        }
        let expected = folder.path().join("15/bin");
        assert_eq!(newest(folder.path()), Some(expected));
        assert_eq!(newest(&folder.path().join("none")), None);
    }
}
