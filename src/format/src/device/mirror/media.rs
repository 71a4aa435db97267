//! Reading what the media of the sides have, past what the host has in memory, and writing anew what
//! a medium has lost while the host has it in memory.
//!
//! # Invariants
//! - A place is written only with the bytes that the same side has there in memory, while nothing else
//!   changes it (`writing`).

use super::super::{Medium, OnMedium};
use super::MirrorDevice;
use super::side::Side;
use crate::base::sync::atomic::Ordering;
use std::sync::Arc;

/// The sides and what reads their media, for the thread that made it and those that it starts.
pub struct Media {
    sides: Arc<Vec<Arc<Side>>>,
    /// One for each side.
    media: Vec<Medium>,
}

impl MirrorDevice {
    /// Returns the media of the sides.
    #[must_use]
    pub fn media(&self) -> Media {
        let sides = self.sides.load_full();
        let media = sides.iter().map(|side| Medium::of(&*side.device)).collect();
        Media { sides, media }
    }

    /// Returns true if these are the media of the sides that there are now.
    #[must_use]
    pub fn has_media(&self, media: &Media) -> bool {
        Arc::ptr_eq(&media.sides, &self.sides.load_full())
            && media
                .sides
                .iter()
                .zip(&media.media)
                .all(|(side, medium)| medium.is_current(&*side.device))
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
        for (place, (side, medium)) in media.sides.iter().zip(&media.media).enumerate() {
            if !side.is_good() {
                continue;
            }
            side.in_flight.fetch_add(1, Ordering::Relaxed);
            let is_read = match medium.read(buf, offset_bytes) {
                OnMedium::Read => true,
                OnMedium::Lost => false,
                OnMedium::Unknown => side.device.read_at(buf, offset_bytes).is_ok(),
            };
            side.in_flight.fetch_sub(1, Ordering::Relaxed);
            visit(place, is_read.then_some(&*buf));
        }
    }

    /// Writes a range anew that the medium at this place does not have right, if the host has the
    /// accepted bytes of it in memory. Returns whether the medium has it right then; `None` if it
    /// cannot be told.
    pub fn write_again(
        &self,
        media: &Media,
        place: usize,
        buf: &mut [u8],
        offset_bytes: u64,
        accept: &dyn Fn(&[u8]) -> bool,
    ) -> Option<bool> {
        let (side, medium) = (&media.sides[place], &media.media[place]);
        match medium.read(buf, offset_bytes) {
            OnMedium::Read if accept(buf) => return Some(true),
            OnMedium::Read | OnMedium::Lost => {}
            OnMedium::Unknown => return None,
        }
        if self.check().is_err() || !side.is_good() {
            return Some(false);
        }
        let copying = self.writing.write();
        let is_written = side.device.read_cached(buf, offset_bytes)
            && accept(buf)
            && self.overwrite(side, buf, offset_bytes);
        drop(copying);
        let is_right =
            is_written && matches!(medium.read(buf, offset_bytes), OnMedium::Read) && accept(buf);
        if is_right {
            self.count_healed(side, offset_bytes, buf.len());
        }
        Some(is_right)
    }
}
