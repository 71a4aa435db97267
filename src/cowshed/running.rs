//! The options that the running daemon was started with, and those with which another program can
//! replace it: for `serve --upgrade`.
//!
//! Options that are not given stay, unless `--replace-options` is given. What the keeper holds
//! cannot change without a stop: such options are refused by name.

use super::arguments::{Arguments, Command};
use super::failure::Usage;
use super::open::Place;
use super::serve::Serve;
use anyhow::Context;
use clap::Parser;
use cowshed_daemon::request::serving::Running;
use cowshed_daemon::request::{HostPath, Style};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Returns the options of this process, a worker.
///
/// # Errors
/// When the working directory cannot be determined.
pub(super) fn of_this_process(
    serve: &Serve,
    place: &Place,
    style: &Style,
    mount: &Path,
) -> std::io::Result<Running> {
    let mut arguments = vec![OsString::from("cowshed")];
    arguments.extend(global_arguments(place, style));
    arguments.extend(serve.arguments());
    let bytes = arguments
        .iter()
        .map(|argument| argument.as_bytes().to_vec());
    Ok(Running {
        pool: place.pool.clone(),
        socket: place.socket.clone(),
        mount: HostPath::new(mount)?,
        arguments: bytes.collect(),
    })
}

/// Returns the arguments with which this program takes over from the daemon that was started as
/// `now`, with the options of `asked`. If all options are replaced, `style` determines how much is
/// logged.
///
/// # Errors
/// `Usage` with the name of an option that cannot change while the daemon runs.
pub(super) fn with_options(
    now: &Running,
    asked: &Serve,
    style: &Style,
) -> anyhow::Result<Vec<OsString>> {
    let before = now.arguments.iter().cloned().map(OsString::from_vec);
    let before = Arguments::try_parse_from(before).context("parse the daemon's command line")?;
    let Command::Serve(running) = before.command else {
        anyhow::bail!("the daemon was not started by `cowshed serve`");
    };
    refuse_fixed(now, &running, asked)?;
    let merged = merge(running, asked)?;
    let place = Place {
        pool: now.pool.clone(),
        socket: now.socket.clone(),
    };
    merged.full.options(&place)?;
    let before = before.global.style();
    let style = if asked.replace_options {
        style
    } else {
        &before
    };
    let mut arguments = global_arguments(&place, style);
    arguments.extend(merged.arguments());
    Ok(arguments)
}

fn merge(running: Serve, asked: &Serve) -> anyhow::Result<Serve> {
    let replaces = asked.replace_options;
    let mut merged = running;
    let keep = |is_asked: bool| is_asked || replaces;
    if keep(asked.direct) {
        merged.direct = asked.direct;
    }
    let (full, containerd) = (&mut merged.full, &mut merged.containerd);
    if keep(asked.full.full_policy.is_some()) {
        full.full_policy = asked.full.full_policy;
    }
    if keep(asked.full.max_size.is_some()) {
        full.max_size = asked.full.max_size;
    }
    if keep(asked.scrub.scrub_every.is_some()) {
        merged.scrub.scrub_every = asked.scrub.scrub_every;
    }
    if keep(asked.scrub.scrub_limit.is_some()) {
        merged.scrub.scrub_limit = asked.scrub.scrub_limit;
    }
    let new = &asked.containerd;
    if keep(new.containerd_address.is_some()) {
        containerd.containerd_address = new.containerd_address.clone();
    }
    if keep(new.snapshot_mounts.is_some()) {
        containerd.snapshot_mounts = new.snapshot_mounts;
    }
    if keep(new.snapshot_size.is_some()) {
        containerd.snapshot_size = new.snapshot_size;
    }
    merged.containerd.check()?;
    Ok(merged)
}

/// Returns an error for a change of what the keeper holds for as long as it runs.
fn refuse_fixed(now: &Running, running: &Serve, asked: &Serve) -> anyhow::Result<()> {
    let replaces = asked.replace_options;
    let path = |path: &Option<HostPath>| path.as_ref().map(ToString::to_string);
    // The volumes have a folder even if no option was given.
    let mount = match &asked.mount {
        None if replaces => path(&running.mount).map(|is| (is, None)),
        None => None,
        Some(asked) if asked.is_same_place(&now.mount) => None,
        Some(asked) => Some((now.mount.to_string(), Some(asked.to_string()))),
    };
    if let Some((is, asked)) = mount {
        return Err(fixed("--mount", Some(is), asked));
    }
    if asked.foreground && running.detached {
        let what = "--foreground cannot change while the daemon runs: it runs in the \
                    background; stop it and start it again, or omit the option";
        return Err(Usage(what.to_owned()).into());
    }
    let fuse = |serve: &Serve| serve.fuse.unwrap_or_default();
    if (asked.fuse.is_some() || replaces) && fuse(asked).transport() != fuse(running).transport() {
        let name = |serve| Some(fuse(serve).name().to_owned());
        return Err(fixed("--fuse", name(running), name(asked)));
    }
    let (old, new) = (&running.containerd, &asked.containerd);
    for (name, is, asked) in [
        ("--log", &running.log, &asked.log),
        (
            "--containerd-socket",
            &old.containerd_socket,
            &new.containerd_socket,
        ),
        (
            "--docker-plugin-socket",
            &running.docker_plugin_socket,
            &asked.docker_plugin_socket,
        ),
    ] {
        // A unit's options do not repeat the log's path.
        let replaces = replaces && name != "--log";
        let is_same = match (is, asked) {
            (Some(is), Some(asked)) => is.is_same_place(asked),
            (None, None) => true,
            (_, asked) => asked.is_none() && !replaces,
        };
        if !is_same {
            return Err(fixed(name, path(is), path(asked)));
        }
    }
    Ok(())
}

/// Returns the refusal of an option that cannot change.
fn fixed(name: &str, is: Option<String>, asked: Option<String>) -> anyhow::Error {
    let shown = |value: Option<String>| value.unwrap_or_else(|| "not given".to_owned());
    let (is, asked) = (shown(is), shown(asked));
    Usage(format!(
        "{name} cannot change while the daemon runs: it is {is}, not {asked}; stop the daemon and \
         start it again with the new options, or keep this one unchanged"
    ))
    .into()
}

fn global_arguments(place: &Place, style: &Style) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![
        "--pool".into(),
        place.pool.as_path().into(),
        "--socket".into(),
        place.socket.as_path().into(),
    ];
    for (name, is_given) in [("--json", style.json), ("--quiet", style.quiet)] {
        arguments.extend(is_given.then(|| name.into()));
    }
    arguments.extend((0..style.verbose).map(|_| "--verbose".into()));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    const STYLE: Style = Style {
        json: false,
        quiet: false,
        no_trunc: false,
        verbose: 0,
        terminal_columns: None,
    };

    fn serve(arguments: &[&str]) -> Serve {
        let all = ["cowshed", "serve"].iter().chain(arguments);
        let Command::Serve(serve) = Arguments::try_parse_from(all).unwrap().command else {
            panic!("another command");
        };
        serve
    }

    fn running(arguments: &[&str]) -> Running {
        let place = Place {
            pool: HostPath::new("/pools/a").unwrap(),
            socket: HostPath::new("/pools/a.sock").unwrap(),
        };
        let mut all = vec!["--foreground"];
        all.extend(arguments);
        let mount = Path::new("/run/a/volumes");
        of_this_process(&serve(&all), &place, &STYLE, mount).unwrap()
    }

    fn with(running: &Running, asked: &[&str]) -> Result<String, String> {
        let mut all = vec!["--upgrade"];
        all.extend(asked);
        let merged = with_options(running, &serve(&all), &STYLE);
        let text = |argument: OsString| argument.into_string().unwrap();
        match merged {
            Ok(merged) => Ok(merged.into_iter().map(text).collect::<Vec<_>>().join(" ")),
            Err(error) => {
                assert!(error.chain().any(|cause| cause.is::<Usage>()), "{error:#}");
                Err(format!("{error:#}"))
            }
        }
    }

    const START: &str = "--pool /pools/a --socket /pools/a.sock serve --foreground";

    #[test]
    fn options_that_can_change_do_and_the_others_stay() {
        let running = running(&["--direct", "--full-policy=wait=7", "--max-size=2G"]);
        let merged = with(&running, &["--max-size", "3G"]).unwrap();
        let rest = "--direct --full-policy=wait=7 --max-size=3221225472";
        assert_eq!(merged, format!("{START} {rest}"));
        let merged = with(&running, &["--full-policy", "error"]).unwrap();
        let rest = "--direct --full-policy=error --max-size=2147483648";
        assert_eq!(merged, format!("{START} {rest}"));
    }

    #[test]
    fn all_options_are_replaced_where_that_is_asked_for() {
        let running = running(&["--direct", "--full-policy=wait=7", "--max-size=2G"]);
        let merged = with(&running, &["--replace-options", "--max-size=1G"]).unwrap();
        assert_eq!(merged, format!("{START} --max-size=1073741824"));
    }

    #[test]
    fn what_cannot_change_is_refused_by_name_and_taken_where_it_stays() {
        let running = running(&["--containerd-socket", "/c.sock", "--snapshot-size", "1G"]);
        for asked in [
            ["--mount", "/elsewhere"],
            ["--fuse", "io-uring"],
            ["--log", "/a.log"],
            ["--containerd-socket", "/other.sock"],
            ["--docker-plugin-socket", "/d.sock"],
        ] {
            let refused = with(&running, &asked).unwrap_err();
            assert!(refused.contains(asked[0]), "{refused}");
            assert!(refused.contains("cannot change"), "{refused}");
        }
        let same = [
            "--foreground",
            "--mount",
            "/run/a/volumes",
            "--fuse=threads",
        ];
        with(&running, &same).unwrap();
        let smaller = ["--containerd-socket", "/c.sock", "--snapshot-size", "512M"];
        assert!(with(&running, &smaller).unwrap().contains("536870912"));
        // It would be dropped, because the full set of options does not contain it.
        let refused = with(&running, &["--replace-options"]).unwrap_err();
        assert!(refused.contains("--containerd-socket"), "{refused}");
    }

    #[test]
    fn an_option_without_the_socket_that_it_is_about_is_refused() {
        let refused = with(&running(&[]), &["--snapshot-size", "1G"]).unwrap_err();
        assert!(refused.contains("--snapshot-size"), "{refused}");
    }
}
