//! The results as written to `results.json`.
//!
//! The document's shape, version 1; every time is in seconds, every size in bytes:
//!
//! | field | |
//! |---|---|
//! | `format_version` | 1; raised when a field changes its meaning or goes |
//! | `started`, `seconds` | when (RFC 3339), and how long it took |
//! | `machine` | `cpu`, `cores`, `memory_bytes`, `kernel`, `programs` (name and version) |
//! | `settings` | what the command line asked for, `quick`, `rounds`, `job_seconds`, sizes |
//! | `backings` | `name`, `file_system`, `path` |
//! | `peers` | `name`, `what` it is, `missing` (why it was left out, or null) |
//! | `series` | `backing`, `group`, `work`, `peer`, `unit`, `higher_is_better`, `samples` of rounds, `summary` |
//! | `failures` | `backing`, `work`, `peer`, `why` |
//! | `unsound` | `backing`, `peer`, `why`: who did not give back what was written to it |
//! | `notes` | what a reader has to know of single results |
//! | `comparison` | with `--against`: `before`, `after` and for each series a `verdict` |

use crate::machine::Machine;
use crate::statistics::{Sample, Summary, Verdict};
use serde::Serialize;

pub(crate) const FORMAT_VERSION: u32 = 1;

/// The unit of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    /// Requests per second.
    Iops,
    TransactionsPerSecond,
    BytesPerSecond,
    Seconds,
    Bytes,
    /// A ratio; more is better.
    Ratio,
    /// Bytes that the host allocates for each byte written.
    Amplification,
}

impl Unit {
    pub(crate) fn higher_is_better(self) -> bool {
        matches!(
            self,
            Self::Iops | Self::TransactionsPerSecond | Self::BytesPerSecond | Self::Ratio
        )
    }
}

/// The identity of a measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key<'a> {
    pub(crate) backing: &'a str,
    pub(crate) group: &'a str,
    pub(crate) work: &'a str,
    pub(crate) peer: &'a str,
}

/// All rounds of one measurement.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Series {
    pub(crate) backing: String,
    pub(crate) group: String,
    pub(crate) work: String,
    pub(crate) peer: String,
    pub(crate) unit: Unit,
    pub(crate) higher_is_better: bool,
    pub(crate) samples: Vec<Sample>,
    pub(crate) summary: Option<Summary>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct BackingRecord {
    pub(crate) name: String,
    pub(crate) file_system: String,
    pub(crate) path: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PeerRecord {
    pub(crate) name: String,
    pub(crate) what: String,
    pub(crate) missing: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Failure {
    pub(crate) backing: String,
    pub(crate) work: String,
    pub(crate) peer: String,
    pub(crate) why: String,
}

/// A peer whose numbers must be read with this in mind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Unsound {
    pub(crate) backing: String,
    pub(crate) peer: String,
    pub(crate) why: String,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) arguments: Vec<String>,
    pub(crate) quick: bool,
    pub(crate) rounds: u32,
    pub(crate) job_seconds: f64,
    pub(crate) subject_bytes: u64,
    pub(crate) pass_bytes: u64,
    pub(crate) mapped_bytes: u64,
    pub(crate) database_scale: u32,
    pub(crate) tree_files: u32,
    pub(crate) large_file_bytes: u64,
}

/// The comparison of two builds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) before: String,
    pub(crate) after: String,
    pub(crate) changes: Vec<Change>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Change {
    pub(crate) backing: String,
    pub(crate) group: String,
    pub(crate) work: String,
    pub(crate) unit: Unit,
    pub(crate) before: Summary,
    pub(crate) after: Summary,
    pub(crate) verdict: Verdict,
}

/// The document.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) format_version: u32,
    pub(crate) started: String,
    pub(crate) seconds: f64,
    pub(crate) machine: Machine,
    pub(crate) settings: Settings,
    pub(crate) backings: Vec<BackingRecord>,
    pub(crate) peers: Vec<PeerRecord>,
    pub(crate) series: Vec<Series>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) unsound: Vec<Unsound>,
    pub(crate) notes: Vec<String>,
    pub(crate) comparison: Option<Comparison>,
}

impl Results {
    pub(crate) fn new(machine: Machine, settings: Settings, started: String) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            started,
            seconds: 0.0,
            machine,
            settings,
            backings: Vec::new(),
            peers: Vec::new(),
            series: Vec::new(),
            failures: Vec::new(),
            unsound: Vec::new(),
            notes: Vec::new(),
            comparison: None,
        }
    }

    /// Adds a round's value.
    pub(crate) fn add(&mut self, key: &Key, unit: Unit, sample: Sample) {
        let at = self.series.iter().position(|series| series.is(key));
        let at = at.unwrap_or_else(|| {
            self.series.push(Series {
                backing: key.backing.into(),
                group: key.group.into(),
                work: key.work.into(),
                peer: key.peer.into(),
                unit,
                higher_is_better: unit.higher_is_better(),
                samples: Vec::new(),
                summary: None,
            });
            self.series.len() - 1
        });
        let series = &mut self.series[at];
        series.samples.push(sample);
        let values: Vec<_> = series.samples.iter().map(|sample| sample.value).collect();
        series.summary = Summary::of(&values);
    }

    /// Records once that a peer loses data.
    pub(crate) fn unsound(&mut self, record: Unsound) {
        if !self.unsound.contains(&record) {
            self.unsound.push(record);
        }
    }

    /// Returns true if that was recorded for a peer.
    pub(crate) fn is_unsound(&self, backing: &str, peer: &str) -> bool {
        let mut all = self.unsound.iter();
        all.any(|one| one.backing == backing && one.peer == peer)
    }

    /// Records a note once.
    pub(crate) fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Records a peer once.
    pub(crate) fn peer(&mut self, record: PeerRecord) {
        if !self.peers.contains(&record) {
            self.peers.push(record);
        }
    }

    pub(crate) fn find(&self, key: &Key) -> Option<&Series> {
        self.series.iter().find(|series| series.is(key))
    }

    /// Returns the distinct values of a field, in the order of their appearance.
    pub(crate) fn distinct<'a>(
        &'a self,
        of: impl Fn(&'a Series) -> Option<&'a str>,
    ) -> Vec<&'a str> {
        let mut names = Vec::new();
        for name in self.series.iter().filter_map(of) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

impl Series {
    fn is(&self, key: &Key) -> bool {
        self.backing == key.backing
            && self.group == key.group
            && self.work == key.work
            && self.peer == key.peer
    }
}
