//! `cowshed quickstart`: shows the main features in one run, in one process, in a folder of its
//! own.
//!
//! Each step is real and verified; a step that does not do what it says ends the quickstart with
//! status 1. Whatever happens, its mounts and loop devices are removed, and its folder too unless
//! it is to be kept.

mod change;
mod sample;
mod workplace;

use super::check_sides::check_device;
use super::console::Console;
use super::output::{Column, counted, table};
use super::signals;
use anyhow::{Context, ensure};
use change::{Change, Large};
use clap::Args;
use cowshed_check::{CheckOptions, CheckReport};
use cowshed_daemon::request::HostPath;
use cowshed_format::base::Name;
use cowshed_format::base::size::human;
use cowshed_format::device::{FileDevice, FileOptions};
use cowshed_host::{CreateContainer, Host, ImportOptions, ImportedImage};
use cowshed_oci::SourceInput;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use workplace::Workplace;

/// The names of the containers.
const NAMES: [&str; 5] = ["one", "two", "three", "four", "five"];
/// The pool's size; its file is sparse.
const POOL_BYTES: u64 = 16 << 30;

/// `cowshed quickstart`
#[derive(Debug, Args)]
#[command(
    after_help = "It needs root, /dev/fuse, loop devices and mkfs.ext4; no daemon, no \
    network, no configuration.\n\nExamples:\n  cowshed quickstart\n  \
    docker save debian:12 | cowshed quickstart --image -"
)]
pub(super) struct Quickstart {
    /// An image to use: as for `image import` [default: one made of this host's shell and tools]
    #[arg(long, value_name = "SRC", value_parser = super::arguments::place::file())]
    pub image: Option<cowshed_daemon::request::FileOrPipe>,
    /// A new or empty directory to work in [default: a new one in $TMPDIR or /var/tmp]
    #[arg(long, value_name = "DIR", value_parser = super::arguments::place::path())]
    pub dir: Option<HostPath>,
    /// Keep the pool, and say how to go on with it
    #[arg(long)]
    pub keep: bool,
}

/// Runs the quickstart.
///
/// # Errors
/// The first requirement that is missing, or the first step that failed.
pub(super) fn run(quickstart: &Quickstart, console: &Console) -> anyhow::Result<()> {
    workplace::check_needs().context("quickstart")?;
    signals::cancel_on_signals(console.cancel())?;
    let show = Show {
        quickstart,
        console,
    };
    console.cancel().during(|| show.run()).context("quickstart")
}

/// A container of the quickstart.
struct Made {
    name: &'static str,
    root: PathBuf,
    took: Duration,
}

struct Show<'a> {
    quickstart: &'a Quickstart,
    console: &'a Console,
}

impl Show<'_> {
    fn run(&self) -> anyhow::Result<()> {
        let dir = self.quickstart.dir.as_ref().map(HostPath::as_path);
        let mut place = Workplace::prepare(dir)?;
        let shown = self
            .show(&mut place)
            .and_then(|image| self.finish(&mut place, &image));
        if shown.is_ok() && self.quickstart.keep {
            return self.say(&place.keep());
        }
        let dir = place.dir().display().to_string();
        match (shown, place.remove()) {
            (Ok(()), Ok(())) => self.say(&format!("Removed {dir}. Nothing is left behind.")),
            (Ok(()), Err(left)) => Err(left),
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(left)) => Err(error.context(format!("{left:#}, after this failed"))),
        }
    }

    fn show(&self, place: &mut Workplace) -> anyhow::Result<ImportedImage> {
        self.say(&format!(
            "A pool of {} in the sparse file {}.",
            human(POOL_BYTES),
            place.pool_path().display()
        ))?;
        place.create_pool(POOL_BYTES)?;
        let host = place.host()?;
        let (image, image_bytes) = self.import(place, &host)?;
        let made = self.make_containers(&host, &image)?;
        let changed = self.change_one(&host, &made)?;
        self.verify_others(&host, &made, &changed)?;
        self.show_costs(&host, &made, image_bytes, &changed)?;
        Ok(image)
    }

    /// Reports a step on the output, or on the error stream beside a JSON document.
    fn say(&self, text: &str) -> anyhow::Result<()> {
        self.console.cancel().check()?;
        let style = self.console.style();
        match (style.json, style.quiet) {
            (_, true) => Ok(()),
            (true, false) => {
                self.console.message(text);
                Ok(())
            }
            (false, false) => self.console.print(&format!("{text}\n")),
        }
    }

    fn import(&self, place: &Workplace, host: &Host) -> anyhow::Result<(ImportedImage, u64)> {
        let (source, from) = self.source(place)?;
        let start = Instant::now();
        let image = host.images().open(source, None).context("open the image")?;
        let options = ImportOptions {
            name: Some(Name::new(sample::NAME)?),
            ..ImportOptions::default()
        };
        let cancel = self.console.cancel();
        let imported = host
            .images()
            .import(&image, &options, &mut |_| !cancel.is_cancelled());
        cancel.check()?;
        let imported = imported.context("import the image")?;
        let took = start.elapsed();
        let image_bytes = host.images().inspect(sample::NAME)?.size_bytes;
        self.say(&format!(
            "Imported {from}: {}, {}, in {}.",
            counted(imported.layers.len(), "layer", "layers"),
            human(image_bytes),
            time(took)
        ))?;
        Ok((imported, image_bytes))
    }

    fn source(&self, place: &Workplace) -> anyhow::Result<(SourceInput, String)> {
        use cowshed_daemon::request::FileOrPipe;
        Ok(match &self.quickstart.image {
            Some(FileOrPipe::Pipe) => {
                let input = SourceInput::Stream(Box::new(self.console.input()?));
                (input, "the image from the pipe".to_owned())
            }
            Some(FileOrPipe::File(path)) => (
                SourceInput::Path(path.as_path().to_owned()),
                path.to_string(),
            ),
            None => {
                let layout = place.sample_path();
                sample::write(&layout)?;
                let from = "a small root made of this host's own shell and tools";
                (SourceInput::Path(layout), from.to_owned())
            }
        })
    }

    fn make_containers(&self, host: &Host, image: &ImportedImage) -> anyhow::Result<Vec<Made>> {
        let mut made = Vec::new();
        for name in NAMES {
            self.console.cancel().check()?;
            let start = Instant::now();
            let options = CreateContainer {
                name: Some(Name::new(name)?),
                ..Default::default()
            };
            host.containers()
                .create(&image.id.to_string(), &options)
                .with_context(|| format!("create container {name}"))?;
            let root = host
                .containers()
                .mount(name, None)
                .with_context(|| format!("mount container {name}"))?
                .path;
            made.push(Made {
                name,
                root,
                took: start.elapsed(),
            });
        }
        let times: Vec<_> = made.iter().map(|container| time(container.took)).collect();
        self.say(&format!(
            "Created and mounted five containers: {}.",
            times.join(", ")
        ))?;
        Ok(made)
    }

    fn change_one(&self, host: &Host, made: &[Made]) -> anyhow::Result<Changed> {
        let [first, ..] = made else {
            anyhow::bail!("no container was made")
        };
        let large = Large::find(&first.root)?;
        let before = own_bytes(host, first.name)?;
        let start = Instant::now();
        large.change_byte(&first.root)?;
        let took = start.elapsed();
        large.expect_changed(&first.root)?;
        let cost = own_bytes(host, first.name)?.saturating_sub(before);
        self.say(&format!(
            "Changed one byte in /{} ({}) of container {} in {}, which cost {}.",
            large.path.display(),
            human(large.len_bytes),
            first.name,
            time(took),
            human(cost)
        ))?;
        let change = Change::make(&first.root)?;
        if let Some(output) = change::run_shell(&first.root)? {
            self.say(&format!("A shell in it sees: {output}"))?;
        }
        let lines = self.diff(host, first.name, &change, &large)?;
        self.say(&format!("Its diff:\n{}", lines.join("\n")))?;
        Ok(Changed {
            large,
            change,
            took,
            cost,
        })
    }

    /// Shows the diff of the changed container, which must list exactly the changes made.
    fn diff(
        &self,
        host: &Host,
        name: &str,
        change: &Change,
        large: &Large,
    ) -> anyhow::Result<Vec<String>> {
        let found: Vec<_> = host
            .containers()
            .diff(name)
            .context("compare the container with its image")?
            .iter()
            .map(|entry| format!("{} {}", entry.kind, entry.path.display()))
            .collect();
        let mut expected = vec![
            format!("C /{}", large.path.display()),
            format!("A /{}", change.added.display()),
        ];
        expected.extend(
            change
                .removed
                .iter()
                .map(|path| format!("D /{}", path.display())),
        );
        for line in &expected {
            ensure!(found.contains(line), "the diff lacks the line \"{line}\"");
        }
        let is_parent = |line: &&String| {
            let path = line.strip_prefix("C ").unwrap_or("no");
            expected
                .iter()
                .any(|other| Path::new(&other[2..]).starts_with(path))
        };
        if let Some(line) = found
            .iter()
            .find(|line| !expected.contains(line) && !is_parent(line))
        {
            anyhow::bail!("the diff has the line \"{line}\", which nothing explains");
        }
        Ok(found.iter().map(|line| format!("  {line}")).collect())
    }

    /// Checks that the other containers do not see the change.
    fn verify_others(&self, host: &Host, made: &[Made], changed: &Changed) -> anyhow::Result<()> {
        for other in made.iter().skip(1) {
            self.console.cancel().check()?;
            changed
                .large
                .expect_original(&other.root)
                .and_then(|()| changed.change.expect_absent(&other.root))
                .with_context(|| format!("container {} is not as its image", other.name))?;
            let differences = host.containers().diff(other.name)?;
            let different = differences
                .first()
                .map(|entry| entry.path.display().to_string());
            if let Some(path) = different {
                anyhow::bail!("container {} differs from its image at {path}", other.name);
            }
        }
        self.say("Compared the other four with the image, byte by byte: none sees the change.")
    }

    fn show_costs(
        &self,
        host: &Host,
        made: &[Made],
        image_bytes: u64,
        changed: &Changed,
    ) -> anyhow::Result<()> {
        let mut documents = Vec::new();
        let mut rows = Vec::new();
        for container in made {
            let own = own_bytes(host, container.name)?;
            rows.push(vec![
                container.name.to_owned(),
                human(own),
                human(image_bytes),
                time(container.took),
            ]);
            documents.push(json!({
                "name": container.name,
                "own_bytes": own,
                "full_copy_bytes": image_bytes,
                "created_us": u64::try_from(container.took.as_micros()).unwrap_or(u64::MAX),
            }));
        }
        let document = json!({
            "containers": documents,
            "changed_file": changed.large.path.to_string_lossy(),
            "changed_file_bytes": changed.large.len_bytes,
            "change_us": u64::try_from(changed.took.as_micros()).unwrap_or(u64::MAX),
            "change_bytes": changed.cost,
        });
        self.console.result(&document, || {
            let columns = [
                Column::Text("CONTAINER"),
                Column::Number("OWN"),
                Column::Number("A FULL COPY"),
                Column::Number("CREATED IN"),
            ];
            format!("\n{}\n", table(&columns, rows))
        })
    }

    /// Removes everything from the pool unless it is to be kept; closes and checks it.
    fn finish(&self, place: &mut Workplace, image: &ImportedImage) -> anyhow::Result<()> {
        if !self.quickstart.keep {
            let host = place.host()?;
            for name in NAMES {
                host.containers()
                    .remove(name)
                    .with_context(|| format!("remove container {name}"))?;
            }
            host.images()
                .remove(&image.id.to_string())
                .context("remove the image")?;
            drop(host);
            let left = place.reclaim()?;
            self.say(&format!("Removed the containers and the image; {left}."))?;
        }
        place.close().context("unmount and close the pool")?;
        let deep = CheckOptions {
            deep: true,
            ..CheckOptions::default()
        };
        let options = FileOptions {
            read_only: true,
            ..FileOptions::default()
        };
        let device = FileDevice::open(place.pool_path(), options)?;
        let report = check_device(&device, deep, self.console)?;
        expect_clean(&report)?;
        self.say(&format!(
            "Checked the pool, every block of it: {} blocks in use, nothing wrong.",
            report.blocks_used
        ))
    }
}

/// The changes made to one container.
struct Changed {
    large: Large,
    change: Change,
    took: Duration,
    cost: u64,
}

fn expect_clean(report: &CheckReport) -> anyhow::Result<()> {
    match report.findings.first() {
        None => Ok(()),
        Some(finding) => Err(super::failure::Damage(format!("the check found {finding}")).into()),
    }
}

fn own_bytes(host: &Host, name: &str) -> anyhow::Result<u64> {
    let containers = host.containers().list()?;
    let found = containers.iter().find(|container| container.name == name);
    Ok(found
        .with_context(|| format!("container {name} is not listed"))?
        .own_bytes)
}

/// Formats a duration with about three digits.
fn time(took: Duration) -> String {
    match took.as_micros() {
        micros @ 0..1000 => format!("{micros} µs"),
        micros @ 1000..10_000 => format!("{}.{} ms", micros / 1000, micros % 1000 / 100),
        micros @ 10_000..1_000_000 => format!("{} ms", micros / 1000),
        micros => format!("{}.{} s", micros / 1_000_000, micros % 1_000_000 / 100_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (micros, text) in [
            (7, "7 µs"),
            (1230, "1.2 ms"),
            (99_000, "99 ms"),
            (2_340_000, "2.3 s"),
        ] {
            assert_eq!(time(Duration::from_micros(micros)), text);
        }
    }
}
