//! Reading what the media of the sides have, past what the host has in memory, and writing anew what
//! a medium has lost while the host has it in memory.
//!
//! # Invariants
//! - A place is written only with the bytes that the same side has there in memory, while nothing else
//!   changes it (`writing`).

use super::super::Device;
use super::MirrorDevice;
use super::side::Side;
use crate::base::sync::atomic::Ordering;
use std::sync::Arc;

/// The good sides and what reads their media, for the thread that made it and those that it starts.
pub struct Media(Vec<Reader>);

struct Reader {
    side: Arc<Side>,
    /// `None` if the side's own reads are all that there is.
    medium: Option<Box<dyn Device>>,
}

impl MirrorDevice {
    /// Returns the media of the sides that are good now.
    #[must_use]
    pub fn media(&self) -> Media {
        let sides = self.sides();
        let good = sides.iter().filter(|side| side.is_good());
        let reader = |side: &Arc<Side>| Reader {
            side: Arc::clone(side),
            medium: side.device.medium(),
        };
        Media(good.map(reader).collect())
    }

    /// Reads a range from the medium of every good side; `visit` gets the side's place among `media`,
    /// and what it has, or `None` if it cannot be read.
    pub fn read_each(
        &self,
        media: &Media,
        buf: &mut [u8],
        offset_bytes: u64,
        visit: &mut dyn FnMut(usize, Option<&[u8]>),
    ) {
        for (place, Reader { side, medium }) in media.0.iter().enumerate() {
            if !side.is_good() {
                continue;
            }
            side.in_flight.fetch_add(1, Ordering::Relaxed);
            let outcome = match medium {
                Some(medium) => medium.read_at(buf, offset_bytes),
                None => side.device.read_at(buf, offset_bytes),
            };
            side.in_flight.fetch_sub(1, Ordering::Relaxed);
            visit(place, outcome.is_ok().then_some(&*buf));
        }
    }

    /// Writes a range anew that the medium at this place does not have right, if the host has the
    /// accepted bytes of it in memory. Returns false if not.
    #[must_use]
    pub fn write_again(
        &self,
        media: &Media,
        place: usize,
        buf: &mut [u8],
        offset_bytes: u64,
        accept: &dyn Fn(&[u8]) -> bool,
    ) -> bool {
        let Reader { side, medium } = &media.0[place];
        if medium.is_none() || self.check().is_err() {
            return false;
        }
        let _copying = self.writing.write();
        let is_right = side.is_good() && side.device.read_cached(buf, offset_bytes) && accept(buf);
        is_right && self.overwrite(side, buf, offset_bytes)
    }
}
