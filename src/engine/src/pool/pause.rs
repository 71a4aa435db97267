//! Pausing the flushes of a single volume, when the pausing caller will make a flush of its own
//! that covers them, or when nobody will keep what they would make durable.
//!
//! A file system flushes many times while it is mounted or unmounted. If nobody learns of those
//! flushes before the pool has been flushed, one barrier does as well as all of them: unflushed
//! data is lost only from some moment on, never out of order.
//!
//! # Invariants
//! - Only flushes of the volume are paused, never those of the pool.
//! - The pausing caller flushes the pool before it tells anybody that something is durable.

use super::handle::Volume;
use super::volume::Counted;
use cowshed_format::base::sync::atomic::Ordering;

/// While this lives, flushing the volume does nothing.
#[must_use = "flushes are put off for as long as this lives"]
pub struct FlushPause {
    _counted: Counted,
}

impl Volume {
    /// Pauses flushes of this volume. The caller flushes the pool before anybody relies on one.
    pub fn pause_flushes(&self) -> FlushPause {
        FlushPause {
            _counted: Counted::new(&self.core, |core| &core.pauses),
        }
    }

    /// Makes everything durable that was acknowledged before, in this and any other volume, unless
    /// flushes of this one are paused.
    ///
    /// # Errors
    /// As `Pool::flush`.
    pub fn flush(&self) -> cowshed_format::base::Result<()> {
        if self.shared.has_nothing_to_flush()? || self.core.pauses.load(Ordering::Acquire) > 0 {
            return Ok(());
        }
        self.core.stream.lock().note_flush();
        self.shared.log.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CreateOptions, OpenOptions, Pool};
    use cowshed_format::base::Name;
    use cowshed_format::device::{Device, MemoryDevice};
    use std::sync::Arc;

    #[test]
    fn a_paused_volume_puts_its_flushes_off_and_no_others() {
        let device = Arc::new(MemoryDevice::new(64 << 20));
        Pool::create(&*device, &CreateOptions::default()).unwrap();
        let options = OpenOptions {
            background: false,
            ..OpenOptions::default()
        };
        let pool = Pool::open(Arc::clone(&device) as Arc<dyn Device>, &options).unwrap();
        let make = |name: &str| {
            let name = Name::new(name).unwrap();
            pool.create_volume(&name, 1 << 20).unwrap()
        };
        let (paused, other) = (make("a"), make("b"));
        let flushes_of = |act: &dyn Fn()| {
            paused.write_at(&[1; 4096], 0).unwrap();
            let before = device.flushes();
            act();
            device.flushes() - before
        };
        let (first, second) = (paused.pause_flushes(), paused.pause_flushes());
        assert_eq!(flushes_of(&|| paused.flush().unwrap()), 0);
        drop(first);
        assert_eq!(flushes_of(&|| paused.flush().unwrap()), 0);
        assert_eq!(flushes_of(&|| other.flush().unwrap()), 1);
        assert_eq!(flushes_of(&|| pool.flush().unwrap()), 1);
        drop(second);
        assert_eq!(flushes_of(&|| paused.flush().unwrap()), 1);
    }
}
