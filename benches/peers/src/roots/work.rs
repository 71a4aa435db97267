//! The measurements of roots. In each round each peer has its turn: it unpacks the necessary
//! images, and does all the work that is asked for.

use super::images::{self, BASE, Images, LARGE, LARGE_FILE, TREE};
use super::{Peer, Roots, loads};
use crate::backing::Backing;
use crate::options::Scale;
use crate::results::Unit;
use crate::run::{At, Run, turn};
use crate::signals::Interrupted;
use crate::statistics::Summary;
use anyhow::{Context, ensure};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const BLOCK: [u8; 4096] = [7; 4096];

/// The kinds of work, in the order of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Unpack,
    Cycle,
    Byte,
    Diff,
    Space,
    Install,
    Build,
}

pub(crate) fn works() -> [Work; 7] {
    [
        Work::Unpack,
        Work::Cycle,
        Work::Byte,
        Work::Diff,
        Work::Space,
        Work::Install,
        Work::Build,
    ]
}

impl Work {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unpack => "roots/unpack",
            Self::Cycle => "roots/cycle",
            Self::Byte => "roots/byte",
            Self::Diff => "roots/diff",
            Self::Space => "roots/space",
            Self::Install => "roots/install",
            Self::Build => "roots/build",
        }
    }

    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Unpack => "images unpacked: files of a root, many small files, one large file",
            Self::Cycle => "a root created, mounted and removed",
            Self::Byte => "one byte changed in a large file: time and space",
            Self::Diff => "diff and commit after one change among many files",
            Self::Space => "the space of several roots",
            Self::Install => "a package-manager-like load: many small files, each made durable",
            Self::Build => "a build-like load: many small files, none made durable",
        }
    }

    fn group(self) -> &'static str {
        match self {
            Self::Unpack => "roots: unpacking an image",
            Self::Cycle => "roots: create, mount and remove",
            Self::Byte => "roots: one byte of a large file",
            Self::Diff => "roots: diff and commit",
            Self::Space => "roots: space",
            Self::Install | Self::Build => "roots: loads",
        }
    }

    fn images(self) -> &'static [&'static str] {
        match self {
            Self::Unpack => &[BASE, TREE, LARGE],
            Self::Byte => &[LARGE],
            Self::Diff => &[TREE],
            Self::Cycle | Self::Space | Self::Install | Self::Build => &[BASE],
        }
    }

    /// Returns the approximate duration, from runs on a small machine.
    pub(crate) fn expected(self, scale: &Scale, peers: &[Box<dyn Peer>]) -> Duration {
        let thousands = |files: u32| f64::from(files) / 1000.0;
        let gib = scale.large_file_bytes as f64 / f64::from(1 << 30);
        let most = scale.roots.iter().max().copied().unwrap_or(0);
        let seconds = match self {
            Self::Unpack => 1.0 + 0.2 * thousands(scale.root_files + scale.tree_files) + 6.0 * gib,
            Self::Cycle => 0.2 * f64::from(scale.root_cycles),
            Self::Byte => 1.0 + 4.0 * gib,
            Self::Diff => 0.5 + 0.1 * thousands(scale.tree_files),
            Self::Space => 0.15 * f64::from(most) * thousands(scale.root_files),
            Self::Install => 1.5 * thousands(scale.load_files),
            Self::Build => 0.3 * thousands(scale.load_files),
        };
        let turns = f64::from(scale.rounds) * peers.len() as f64;
        Duration::from_secs_f64(seconds * turns)
    }
}

/// Runs all rounds of all the work that is asked for.
///
/// # Errors
/// When the user has asked to stop.
pub(crate) fn run(
    run: &mut Run,
    backing: &Backing,
    peers: &[Box<dyn Peer>],
) -> Result<(), Interrupted> {
    let wanted: Vec<_> = works()
        .into_iter()
        .filter(|work| run.options.wants(work.name()))
        .collect();
    if wanted.is_empty() || peers.is_empty() {
        return Ok(());
    }
    let mut names: Vec<_> = wanted.iter().flat_map(|work| work.images()).collect();
    names.sort_unstable();
    names.dedup();
    let names: Vec<_> = names.into_iter().copied().collect();
    let (rounds, scale) = (run.scale.rounds, run.scale);
    let at = |round| At {
        backing: backing.name(),
        work: "roots",
        round,
    };
    run.progress
        .round(&format!("{}, making images", backing.name()));
    let make = |_: &mut Run| Images::make(backing.path(), &scale, &names);
    let Some(images) = run.attempt(at(0), "all of them", make)? else {
        return Ok(());
    };
    for round in 0..rounds {
        run.begin(at(round), rounds);
        for number in turn(peers.len(), round as usize) {
            let peer = peers[number].as_ref();
            run.attempt(at(round), peer.name(), |run| {
                let folder = backing.path().join(format!("roots{number}"));
                let mut roots = peer.open(folder, scale.space_bytes())?;
                let mut one = Turn {
                    at: at(round),
                    peer: peer.name(),
                    roots: roots.as_mut(),
                    scale,
                };
                run.progress.step(&format!("{}: unpacking", one.peer));
                for name in &names {
                    one.unpack(run, name, &images.tar(name), wanted.contains(&Work::Unpack))?;
                }
                for work in &wanted {
                    run.progress.step(&format!("{}: {}", one.peer, work.name()));
                    one.work(run, *work)
                        .with_context(|| work.name().to_owned())?;
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// A peer's turn in a round.
struct Turn<'a> {
    at: At<'a>,
    peer: &'a str,
    roots: &'a mut dyn Roots,
    scale: Scale,
}

/// Runs `action`, and returns its result and duration in seconds.
fn timed<T>(action: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, f64)> {
    let started = Instant::now();
    let value = action()?;
    Ok((value, started.elapsed().as_secs_f64()))
}

impl Turn<'_> {
    fn add(&self, run: &mut Run, work: Work, name: &str, unit: Unit, value: f64) {
        run.add(self.at, work.group(), name, self.peer, (unit, value));
    }

    fn unpack(
        &mut self,
        run: &mut Run,
        name: &str,
        tar: &Path,
        is_wanted: bool,
    ) -> anyhow::Result<()> {
        let ((), seconds) = timed(|| self.roots.unpack(name, tar))?;
        if is_wanted {
            let what = match name {
                BASE => format!("{} files of up to 20 kB", self.scale.root_files),
                TREE => format!("{} files of up to 2 kB", self.scale.tree_files),
                _ => {
                    let bytes = self.scale.large_file_bytes as f64;
                    format!("one file of {}", crate::report::bytes(bytes))
                }
            };
            let what = format!("unpack {what}");
            self.add(run, Work::Unpack, &what, Unit::Seconds, seconds);
        }
        Ok(())
    }

    fn work(&mut self, run: &mut Run, work: Work) -> anyhow::Result<()> {
        match work {
            Work::Unpack => Ok(()),
            Work::Cycle => self.cycle(run),
            Work::Byte => self.byte(run),
            Work::Diff => self.diff(run),
            Work::Space => self.space(run),
            Work::Install | Work::Build => self.load(run, work),
        }
    }

    fn cycle(&mut self, run: &mut Run) -> anyhow::Result<()> {
        // The whole image must be in the root.
        let path = self.roots.create(BASE, "whole")?;
        let files = (0..self.scale.root_files).filter(|number| {
            let about = path.join(images::file(*number)).symlink_metadata();
            about.is_ok_and(|about| about.is_file())
        });
        let (found, expected) = (files.count(), self.scale.root_files as usize);
        ensure!(found == expected, "a root has {found} of {expected} files");
        self.roots.remove("whole")?;
        let (mut creations, mut wholes) = (Vec::new(), Vec::new());
        for number in 0..self.scale.root_cycles {
            let name = format!("cycle{number}");
            let (_, creation) = timed(|| self.roots.create(BASE, &name))?;
            let ((), removal) = timed(|| self.roots.remove(&name))?;
            creations.push(creation);
            wholes.push(creation + removal);
        }
        let median = |times: &[f64]| Summary::of(times).map(|summary| summary.median);
        let (creation, whole) = (median(&creations), median(&wholes));
        let none = "no root was made";
        let mut add = |name, value| self.add(run, Work::Cycle, name, Unit::Seconds, value);
        add("create and mount a root", creation.context(none)?);
        add("create, mount and remove a root", whole.context(none)?);
        Ok(())
    }

    fn byte(&mut self, run: &mut Run) -> anyhow::Result<()> {
        let path = self.roots.create(LARGE, "byte")?.join(LARGE_FILE);
        self.roots.settle()?;
        let before = self.roots.host_bytes()?;
        let offset = self.scale.large_file_bytes / 2 + 1;
        let mut byte = [0];
        File::open(&path)?.read_exact_at(&mut byte, offset)?;
        byte[0] ^= 0xff;
        let ((), seconds) = timed(|| {
            let file = File::options().write(true).open(&path)?;
            file.write_all_at(&byte, offset)?;
            file.sync_all()?;
            Ok(())
        })?;
        self.roots.settle()?;
        let grown = self.roots.host_bytes()?.saturating_sub(before);
        let mut read = [0];
        File::open(&path)?.read_exact_at(&mut read, offset)?;
        ensure!(read == byte, "the changed byte was lost");
        let size = crate::report::bytes(self.scale.large_file_bytes as f64);
        let what = format!("change one byte of {size}, durably");
        self.add(run, Work::Byte, &what, Unit::Seconds, seconds);
        let what = format!("space of one byte changed in {size}");
        self.add(run, Work::Byte, &what, Unit::Bytes, grown as f64);
        self.roots.remove("byte")
    }

    fn diff(&mut self, run: &mut Run) -> anyhow::Result<()> {
        let path = self.roots.create(TREE, "diff")?;
        let changed = images::file(self.scale.tree_files / 2);
        let mut file = File::options().append(true).open(path.join(&changed))?;
        file.write_all(b"changed")?;
        file.sync_all()?;
        drop(file);
        let (found, diff) = timed(|| self.roots.changes(TREE, "diff"))?;
        let unexpected = found.iter().find(|path| !changed.starts_with(path));
        ensure!(
            found.contains(&changed) && unexpected.is_none(),
            "one file was changed, and the diff has {found:?}"
        );
        let ((), commit) = timed(|| self.roots.commit("diff", &found))?;
        let of = format!("one change among {} files", self.scale.tree_files);
        let mut add = |what: &str, seconds| {
            let what = format!("{what} of {of}");
            self.add(run, Work::Diff, &what, Unit::Seconds, seconds);
        };
        add("diff", diff);
        add("diff and commit", diff + commit);
        self.roots.remove("diff")
    }

    fn space(&mut self, run: &mut Run) -> anyhow::Result<()> {
        self.roots.settle()?;
        let before = self.roots.host_bytes()?;
        let mut made = 0;
        for count in self.scale.roots {
            while made < *count {
                let path = self.roots.create(BASE, &format!("space{made}"))?;
                fs::write(path.join("own"), BLOCK)?;
                made += 1;
            }
            self.roots.settle()?;
            let grown = self.roots.host_bytes()?.saturating_sub(before);
            let what = format!("space of {count} roots with a file of 4 KiB each");
            self.add(run, Work::Space, &what, Unit::Bytes, grown as f64);
        }
        for number in 0..made {
            self.roots.remove(&format!("space{number}"))?;
        }
        Ok(())
    }

    fn load(&mut self, run: &mut Run, work: Work) -> anyhow::Result<()> {
        let path = self.roots.create(BASE, "load")?;
        let (files, sources) = (self.scale.load_files, self.scale.root_files);
        let ((), seconds) = timed(|| match work {
            Work::Install => loads::install(&path, files),
            _ => loads::build(&path, sources, files),
        })?;
        let what = match work {
            Work::Install => format!("package-manager-like, {files} files with fsync"),
            _ => format!("build-like, {files} objects"),
        };
        self.add(run, work, &what, Unit::Seconds, seconds);
        self.roots.remove("load")
    }
}
