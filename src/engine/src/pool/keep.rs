//! Readers that keep what they read: a file system that many share, and that has its own copy of each
//! block in memory. The host then need not keep another.
//!
//! # Invariants
//! - This changes only what the host keeps in memory, never what a read returns.

use super::handle::Volume;
use super::volume::Counted;

/// While this lives, the host forgets what was read from the volume.
#[must_use = "the host forgets what is read for as long as this lives"]
pub struct KeptByReader {
    _counted: Counted,
}

impl Volume {
    /// Says that a reader of this volume keeps what it reads.
    pub fn kept_by_reader(&self) -> KeptByReader {
        KeptByReader {
            _counted: Counted::new(&self.core, |core| &core.keepers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CreateOptions, OpenOptions, Pool};
    use cowshed_format::base::Name;
    use cowshed_format::device::{Device, MemoryDevice};
    use std::sync::Arc;

    #[test]
    fn the_host_forgets_what_a_reader_keeps_and_nothing_else() {
        let device = Arc::new(MemoryDevice::new(64 << 20));
        Pool::create(&*device, &CreateOptions::default()).unwrap();
        let options = OpenOptions {
            background: false,
            ..OpenOptions::default()
        };
        let pool = Pool::open(Arc::clone(&device) as Arc<dyn Device>, &options).unwrap();
        let make = |name: &str| {
            let volume = pool.create_volume(&Name::new(name).unwrap(), 1 << 20);
            let volume = volume.unwrap();
            volume.write_at(&[1; 16 << 10], 0).unwrap();
            volume
        };
        let (kept, other) = (make("a"), make("b"));
        let forgotten = |volume: &super::Volume| {
            let before = device.forgotten_bytes();
            let mut buf = [0; 64 << 10];
            volume.read_at(&mut buf, 0).unwrap();
            volume.read_at(&mut buf[..4096], 4096).unwrap();
            assert_eq!((buf[0], buf[20_000]), (1, 0));
            device.forgotten_bytes() - before
        };
        assert_eq!(forgotten(&kept), 0);
        let keeping = kept.kept_by_reader();
        // Holes are not read.
        assert_eq!(forgotten(&kept), 20 << 10);
        assert_eq!(forgotten(&other), 0);
        drop(keeping);
        assert_eq!(forgotten(&kept), 0);
    }
}
