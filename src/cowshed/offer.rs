//! The side of `cowshed image push` that has the pool: it writes the layers that the other side asks
//! for, and remembers which blobs hold them.

use super::console::Console;
use anyhow::Context;
use cowshed_daemon::open_pool::OpenPool;
use cowshed_daemon::request::image::Push;
use cowshed_format::base::{Cancel, cancel};
use cowshed_host::Images;
use cowshed_oci::offer::{Asked, Giver, Offer};
use cowshed_oci::{Digest, KnownBlob};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Offers an image to the process at the other end of the input, a socket, until that ends.
///
/// # Errors
/// Errors of the image, the pool and the host; of a layer, once the other side has heard of it.
pub(super) fn give(push: &Push, open_pool: &OpenPool, console: &Console) -> anyhow::Result<()> {
    let what = || format!("push image {}", push.image);
    let host = open_pool.containers().with_context(what)?;
    let images = host.images();
    let offer = images.offer(&push.image).with_context(what)?;
    let socket: OwnedFd = console.input().with_context(what)?.into_file().into();
    let giver = Giver::new(UnixStream::from(socket), &offer).with_context(what)?;
    let mut blobs = Vec::new();
    let served = serve(&giver, &offer, images, console.cancel(), &mut blobs);
    // They are in the registry, however this ends.
    if let Err(error) = cancel::never(|| images.remember_blobs(&blobs)) {
        console.message(&format!(
            "warning: the pool does not remember what was sent: {error}"
        ));
    }
    served.with_context(what)
}

/// Does what the other side asks for, several layers at a time; adds the blobs that it has stored to
/// `blobs`.
fn serve(
    giver: &Giver,
    offer: &Offer,
    images: &Images,
    cancel: &Cancel,
    blobs: &mut Vec<(Digest, KnownBlob)>,
) -> anyhow::Result<()> {
    let fault: Mutex<Option<anyhow::Error>> = Mutex::default();
    // Layers that nobody waits for any more are given up.
    let stop = Cancel::default();
    let served = thread::scope(|scope| {
        let served = cancel.during(|| {
            while let Some(asked) = giver.next()? {
                match asked {
                    Asked::Write {
                        layer,
                        compression,
                        file,
                        folder,
                    } => {
                        let (stop, fault) = (&stop, &fault);
                        scope.spawn(move || {
                            let place = (file, Path::new(&folder));
                            let write = || images.write_offered(offer, layer, compression, place);
                            let written = stop.during(write);
                            let outcome = written.map_err(|error| {
                                let text = error.to_string();
                                // A layer that was given up is no fault.
                                if !error.is_cancelled() {
                                    lock(fault).get_or_insert_with(|| error.into());
                                }
                                text
                            });
                            // If the other side has ended, nobody asks.
                            let _ = giver.written(layer, outcome);
                        });
                    }
                    Asked::Stored { layer, blob } => {
                        if let Some(layer) = offer.layers.get(layer) {
                            blobs.push((layer.chain_id, blob));
                        }
                    }
                }
            }
            Ok(())
        });
        stop.cancel();
        served
    });
    let fault = lock(&fault).take();
    match fault {
        Some(error) => Err(error),
        None => served,
    }
}

fn lock(fault: &Mutex<Option<anyhow::Error>>) -> std::sync::MutexGuard<'_, Option<anyhow::Error>> {
    fault.lock().unwrap_or_else(PoisonError::into_inner)
}
