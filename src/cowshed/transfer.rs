//! `send` and `receive` of volumes, images and containers: a stream on the standard output, and from
//! the standard input.

use super::console::{Console, OutputClosed, output_error};
use super::failure::{Kept, Usage};
use super::kept_names;
use super::output::{counted, exact};
use super::progress::Progress;
use super::streams::{Input, Output};
use anyhow::Context;
use cowshed_daemon::open_pool::OpenPool;
use cowshed_daemon::request::stream::{Receive, ReceiveStep, SendOptions as Options};
use cowshed_daemon::request::volume::Send;
use cowshed_engine::{Name, Pool};
use cowshed_host::transfer::{Chosen, ReceivedSet, Transfers};
use cowshed_stream::receive::IncomingSnapshot;
use cowshed_stream::{
    self as stream, Incoming, IncomingSet, Limited, Observer, SendOptions, Sending, SetSending,
    Token, send_set as sets,
};
use serde_json::json;
use std::cell::RefCell;
use std::io::{self, IsTerminal};

/// The prefix that stands for none.
const NO_PREFIX: &str = "-";

/// A progress bar that appears once the length is known.
struct Bar<'a> {
    console: &'a Console,
    what: &'static str,
    shown: RefCell<Option<Progress>>,
}

impl<'a> Bar<'a> {
    fn new(console: &'a Console, what: &'static str) -> Self {
        Self {
            console,
            what,
            shown: RefCell::default(),
        }
    }
}

impl Observer for Bar<'_> {
    fn begin(&self, total_bytes: u64) {
        let progress = self.console.progress(self.what, Some(total_bytes));
        self.shown.replace(Some(progress));
    }

    fn advance(&self, len_bytes: u64) {
        if let Some(progress) = &*self.shown.borrow() {
            progress.advance(len_bytes);
        }
    }
}

/// Writes a snapshot or a set of volumes as a stream to the standard output.
///
/// # Errors
/// `Usage` when the output is a terminal or is to be JSON; the stream's error.
pub(super) fn send_volumes(
    send: &Send,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    let chosen = match &*send.volumes {
        volumes if !send.forest => {
            return send_one(volumes, &send.options, open_pool.pool(), console);
        }
        [] => Chosen::All,
        volumes => Chosen::Volumes(volumes),
    };
    send_set(chosen, &send.options, open_pool, console)
}

fn send_one(
    volumes: &[String],
    options: &Options,
    pool: &Pool,
    console: &Console,
) -> anyhow::Result<()> {
    check_output(console)?;
    let name = match volumes {
        [] => None,
        [name] => Some(name.as_str()),
        _ => return Err(Usage("without -R only one snapshot can be sent".to_owned()).into()),
    };
    let what = || match name {
        Some(name) => format!("send volume {name}"),
        None => "send the rest of a stream".to_owned(),
    };
    let sending = prepare(name, options, pool).with_context(what)?;
    let write = |output, how, bar: &Bar<'_>| sending.run(output, how, bar);
    write_stream(write, options, console, &what)
}

fn prepare(name: Option<&str>, options: &Options, pool: &Pool) -> anyhow::Result<Sending> {
    let place = |text: &str| stream::send::place_of(&text.parse()?);
    let token = options.resume.as_deref().map(place).transpose()?;
    let snapshot = match (name, &token) {
        (Some(name), _) => pool.volume(name)?,
        (None, Some(token)) => stream::send::snapshot_of(pool, token)?,
        (None, None) => {
            return Err(Usage("name a snapshot, or a token with --resume".to_owned()).into());
        }
    };
    let from = options.from.as_deref().map(|from| pool.volume(from));
    let from = from.transpose()?;
    Ok(Sending::new(
        pool,
        &snapshot,
        from.as_ref(),
        token.as_ref(),
    )?)
}

/// Writes a set as a stream to the standard output.
///
/// # Errors
/// As `send_volumes`.
pub(super) fn send_set(
    chosen: Chosen<'_>,
    options: &Options,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    check_output(console)?;
    let what = || match chosen {
        Chosen::All => "send all of the pool".to_owned(),
        Chosen::Volumes(names) => described("volume", names),
        Chosen::Images(names) => described("image", names),
        Chosen::Containers(names) => described("container", names),
    };
    let place = |text: &str| sets::place_of(&text.parse()?);
    let token = options.resume.as_deref().map(place).transpose();
    let token = token.with_context(what)?;
    let send = |transfers: Transfers<'_>| -> anyhow::Result<()> {
        let gathered = transfers.gather(chosen, options.from.as_deref());
        let mut gathered = gathered.with_context(what)?;
        let entries = std::mem::take(&mut gathered.entries);
        let members = &gathered.members;
        let sending = SetSending::new(open_pool.pool(), members, entries, token.as_ref());
        let sending = sending.with_context(what)?;
        let write = |output, how, bar: &Bar<'_>| sending.run(output, how, bar);
        write_stream(write, options, console, &what)
    };
    match open_pool.export() {
        // What can be mounted is quiesced.
        Some(_) => send(Transfers::of_host(
            &*open_pool.containers().with_context(what)?,
        )),
        None => send(Transfers::of_pool(open_pool.pool())),
    }
}

fn described(noun: &str, names: &[String]) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("send {noun}{plural} {}", names.join(", "))
}

/// Refuses an output that cannot take a stream.
fn check_output(console: &Console) -> anyhow::Result<()> {
    let why = if console.style().json {
        "--json and a stream cannot both use the standard output"
    } else if console.output().is_terminal() {
        "a stream cannot be written to a terminal; redirect the output to a file or a pipe"
    } else {
        return Ok(());
    };
    Err(Usage(why.to_owned()).into())
}

fn write_stream(
    write: impl FnOnce(Limited<Output>, SendOptions, &Bar<'_>) -> stream::Result<stream::send::Sent>,
    options: &Options,
    console: &Console,
    what: &dyn Fn() -> String,
) -> anyhow::Result<()> {
    let output = Output::new(console.output(), console.cancel()).map_err(output_error)?;
    let output = Limited::new(output, options.bytes_per_s);
    let how = SendOptions {
        compress: options.compress,
    };
    match write(output, how, &Bar::new(console, "send")) {
        Ok(_) => Ok(()),
        Err(stream::Error::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(OutputClosed.into())
        }
        Err(error) => Err(anyhow::Error::new(error).context(what())),
    }
}

/// Receives the stream on the standard input, or shows or removes what an interrupted receive has
/// kept.
///
/// # Errors
/// `Usage` when the input is a terminal; the stream's, the engine's or the host's error.
pub(super) fn receive(
    receive: &Receive,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    let (pool, name) = (open_pool.pool(), receive.name.as_str());
    let what = || match name {
        NO_PREFIX => "receive a set".to_owned(),
        name => format!("receive {name}"),
    };
    if name != NO_PREFIX {
        kept_names::refuse(&Name::new(name).with_context(what)?).with_context(what)?;
    }
    match receive.step {
        ReceiveStep::Stream => take(name, open_pool, console, &what),
        ReceiveStep::Token => {
            let token = stream::receive::token(pool, name).with_context(what)?;
            show_token(name, &token, console)
        }
        ReceiveStep::Discard => {
            let discarded = stream::receive::discard(pool, name);
            discarded.with_context(what)?;
            pool.flush().with_context(what)?;
            console.result(&json!({ "name": name }), String::new)
        }
    }
}

fn show_token(name: &str, token: &Token, console: &Console) -> anyhow::Result<()> {
    let (members, place) = match token {
        Token::Snapshot(place) => (None, Some(place)),
        Token::Set(set) => (Some(set.whole.count), set.part.as_ref()),
    };
    let document = json!({
        "name": name,
        "token": token.to_string(),
        "members": members,
        "position": place.map(|place| place.position),
    });
    console.result(&document, || token.to_string())
}

fn take(
    name: &str,
    open_pool: &OpenPool,
    console: &Console,
    what: &dyn Fn() -> String,
) -> anyhow::Result<()> {
    let input = console.input()?;
    if input.file().is_terminal() {
        let why = "the standard input is a terminal; connect it to the output of `send`";
        return Err(Usage(why.to_owned()).into());
    }
    let pool = open_pool.pool();
    let taken = match Incoming::open(input).with_context(what)? {
        Incoming::Snapshot(incoming) => take_one(incoming, name, pool, console),
        Incoming::Set(incoming) => take_set(incoming, name, open_pool, console),
    };
    taken.map_err(|error| {
        // What was received so far is to outlive a power cut, too.
        let _ = pool.flush();
        let is_kept = !error.is::<Usage>() && stream::receive::token(pool, name).is_ok();
        if !is_kept {
            return error.context(what());
        }
        error.context(Kept {
            what: what(),
            name: name.to_owned(),
        })
    })
}

fn take_one(
    incoming: IncomingSnapshot<Input>,
    name: &str,
    pool: &Pool,
    console: &Console,
) -> anyhow::Result<()> {
    if name == NO_PREFIX {
        return Err(Usage("the stream holds one snapshot; give its name".to_owned()).into());
    }
    let name = Name::new(name)?;
    let received = incoming.receive(pool, &name, &Bar::new(console, "receive"))?;
    let base = received.base.as_ref().map(Name::as_str);
    let document = json!({
        "name": name.as_str(),
        "bytes": received.data_bytes,
        "base": base,
    });
    console.result(&document, || {
        let from = base.map_or_else(String::new, |base| format!(" on {base}"));
        format!("{name}{from}: {}", exact(received.data_bytes))
    })
}

fn take_set(
    incoming: IncomingSet<Input>,
    name: &str,
    open_pool: &OpenPool,
    console: &Console,
) -> anyhow::Result<()> {
    let prefix = if name == NO_PREFIX { "" } else { name };
    let pool = open_pool.pool();
    let take = |transfers: Transfers<'_>| -> anyhow::Result<(u64, ReceivedSet)> {
        let mut plan = transfers.plan(incoming.head(), prefix)?;
        let fates = std::mem::take(&mut plan.fates);
        let bar = Bar::new(console, "receive");
        let arrived = incoming.receive(pool, name, fates, &bar)?;
        let data_bytes = arrived.data_bytes;
        Ok((data_bytes, transfers.settle(arrived, plan)?))
    };
    let (data_bytes, set) = match open_pool.export() {
        // Another command may change images and containers meanwhile.
        Some(_) => take(Transfers::of_host(&*open_pool.containers()?))?,
        None => take(Transfers::of_pool(pool))?,
    };
    let mut document = serde_json::to_value(&set)?;
    document["name"] = json!(name);
    document["bytes"] = json!(data_bytes);
    document["base"] = json!(null);
    console.result(&document, || {
        format!(
            "{}, {}, {}: {}",
            counted(set.volumes.len(), "volume", "volumes"),
            counted(set.images.len(), "image", "images"),
            counted(set.containers.len(), "container", "containers"),
            exact(data_bytes)
        )
    })
}
