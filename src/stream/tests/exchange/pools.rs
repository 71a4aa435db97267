//! Pools in memory, and sending and receiving between them in one call.

use cowshed_engine::{CreateOptions, Device, Name, OpenOptions, Pool, Volume};
use cowshed_format::device::MemoryDevice;
use cowshed_stream::receive::token;
use cowshed_stream::send::place_of;
use cowshed_stream::token::Place;
use cowshed_stream::{Error, SendOptions, Unobserved, receive, send};
use rand::RngCore;
use rand::rngs::StdRng;
use std::sync::Arc;

pub(crate) const MIB: u64 = 1 << 20;

fn options() -> OpenOptions {
    OpenOptions {
        cache_bytes: 8 << 20,
        background: false,
        ..OpenOptions::default()
    }
}

pub(crate) fn fresh(len_bytes: u64) -> (Arc<MemoryDevice>, Pool) {
    let device = Arc::new(MemoryDevice::new(len_bytes));
    Pool::create(&*device, &CreateOptions::default()).unwrap();
    let pool = reopen(&device);
    (device, pool)
}

pub(crate) fn reopen(device: &Arc<MemoryDevice>) -> Pool {
    Pool::open(Arc::clone(device) as Arc<dyn Device>, &options()).unwrap()
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn content(volume: &Volume) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(volume.size_bytes()).unwrap()];
    volume.read_at(&mut bytes, 0).unwrap();
    bytes
}

pub(crate) fn noise(random: &mut StdRng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    random.fill_bytes(&mut bytes);
    bytes
}

pub(crate) fn stream(pool: &Pool, snapshot: &Volume, from: Option<&Volume>) -> Vec<u8> {
    stream_with(pool, snapshot, from, false)
}

pub(crate) fn stream_with(
    pool: &Pool,
    snapshot: &Volume,
    from: Option<&Volume>,
    compress: bool,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let options = SendOptions { compress };
    send(pool, snapshot, from, &mut bytes, options, &Unobserved).unwrap();
    bytes
}

pub(crate) fn take(pool: &Pool, called: &str, bytes: &[u8]) -> Result<Volume, Error> {
    receive(pool, &name(called), bytes, &Unobserved).map(|received| received.volume)
}

pub(crate) fn refused(pool: &Pool, called: &str, bytes: &[u8]) -> Error {
    take(pool, called, bytes).map(drop).unwrap_err()
}

/// Returns where the interrupted receive of a snapshot goes on.
pub(crate) fn place(pool: &Pool, called: &str) -> Result<Place, Error> {
    place_of(&token(pool, called)?)
}

/// Asserts that a pool has exactly these volumes.
pub(crate) fn assert_volumes(pool: &Pool, names: &[&str]) {
    let found: Vec<_> = pool
        .volumes()
        .iter()
        .map(|info| info.name.to_string())
        .collect();
    assert_eq!(found, names);
}
