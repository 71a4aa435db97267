//! A database on each device: PostgreSQL on a mounted ext4, and pgbench's transactions, each of
//! which waits until it is durable.

use super::work::Stage;
use crate::fio::{Part, Target};
use crate::guards::{Folder, Mounted};
use crate::host::{self, text};
use crate::options::Scale;
use crate::postgres::Postgres;
use crate::results::Unit;
use crate::run::Run;
use crate::signals::Interrupted;
use anyhow::bail;
use std::path::Path;
use std::time::Duration;

const GROUP: &str = "PostgreSQL on ext4";
/// Not below the backing's folder, which only root can enter.
const POINTS: &str = "/run";
/// Space for the log of transactions, of which the server keeps about 1 GiB; the device is sparse.
const SPARE_BYTES: u64 = 2 << 30;

/// A run of pgbench.
struct Load {
    name: &'static str,
    clients: u32,
}

const LOADS: &[Load] = &[
    Load {
        name: "pgbench, 1 client",
        clients: 1,
    },
    Load {
        name: "pgbench, 8 clients",
        clients: 8,
    },
];

/// Returns the approximate duration of a peer's turn.
pub(super) fn expected_seconds(scale: &Scale) -> f64 {
    let gib = scale.database_bytes() as f64 / f64::from(1 << 30);
    8.0 + 30.0 * gib + LOADS.len() as f64 * time(scale).as_secs_f64()
}

/// Returns the duration of each load; pgbench counts in whole seconds.
fn time(scale: &Scale) -> Duration {
    (3 * scale.seconds).max(Duration::from_secs(1))
}

pub(super) fn round(run: &mut Run, stage: &Stage) -> Result<(), Interrupted> {
    let scale = run.scale;
    let size = SPARE_BYTES + 2 * scale.database_bytes();
    stage.each(run, |run, number, peer| {
        let postgres = Postgres::find()?;
        let mut subject = stage.prepare(number, size)?;
        let part = Part {
            offset: 0,
            len_bytes: scale.verify_bytes,
            seed: u64::from(stage.at.round),
        };
        stage.verify(run, peer, subject.as_ref(), part)?;
        if run.results.is_unsound(stage.at.backing, peer) {
            run.results.note(format!(
                "{peer} on {} loses data: no database was put on it",
                stage.at.backing
            ));
            return Ok(());
        }
        let Target::Device(device) = subject.target().clone() else {
            bail!("it is no block device")
        };
        postgres.format(&device)?;
        let point = Folder::new_in(Path::new(POINTS))?;
        let mount = || Mounted::new(&[], &device, point.path());
        let mut transactions = 0;
        {
            let mounted = mount()?;
            let server = postgres.create(mounted.path())?;
            server.fill(scale.database_scale)?;
            for load in LOADS {
                run.progress.step(&format!("{}: {peer}", load.name));
                server.settle()?;
                stage.rest(subject.as_ref())?;
                let outcome = server.bench(load.clients, time(&scale))?;
                transactions += outcome.transactions;
                let speed = (Unit::TransactionsPerSecond, outcome.per_second);
                run.add(stage.at, GROUP, load.name, peer, speed);
            }
            if stage.peers[number].has_snapshots() {
                server.settle()?;
                // The written data must reach the device with or without a snapshot.
                host::run("sync", ["--file-system", text(mounted.path())?])?;
                let took = subject.snapshot("idle")?.took;
                let work = "snapshot while the database is idle";
                let seconds = (Unit::Seconds, took.as_secs_f64());
                run.add(stage.at, GROUP, work, peer, seconds);
            }
        }
        // After a new mount, none of the data is in a cache of the file system.
        let mounted = mount()?;
        let server = postgres.serve(mounted.path())?;
        server.audit(transactions)
    })
}
