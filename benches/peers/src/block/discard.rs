//! Discards half of a full device.

use super::work::Stage;
use crate::fio::Target;
use crate::host::{run as execute, text};
use crate::results::Unit;
use crate::run::Run;
use crate::signals::Interrupted;
use anyhow::{bail, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;

const GROUP: &str = "discard";
const LOOKED_AT_BYTES: usize = 1 << 20;

pub(super) fn round(run: &mut Run, stage: &Stage) -> Result<(), Interrupted> {
    let size = run.scale.subject_bytes;
    let half = size / 2;
    stage.each(run, |run, number, peer| {
        let mut subject = stage.filled(number, size)?;
        let Target::Device(path) = subject.target().clone() else {
            bail!("it is no block device")
        };
        subject.settle()?;
        let before = subject.host_bytes()?;
        let words = [format!("--offset={half}"), format!("--length={half}")];
        let words = words.iter().map(String::as_str);
        let took = execute("blkdiscard", words.chain([text(&path)?]))?.took;
        subject.settle()?;
        let after = subject.host_bytes()?;
        let mut bytes = vec![1; LOOKED_AT_BYTES];
        File::open(&path)?.read_exact_at(&mut bytes, half)?;
        ensure!(
            bytes.iter().all(|byte| *byte == 0),
            "what was discarded does not read as zeros"
        );
        let back = before.saturating_sub(after) as f64 / half as f64;
        let mut add = |work, unit, value| run.add(stage.at, GROUP, work, peer, (unit, value));
        add("discard of half of it", Unit::Seconds, took.as_secs_f64());
        add("of the discarded is back at the host", Unit::Ratio, back);
        Ok(())
    })
}
