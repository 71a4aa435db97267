//! The watermarks of a pool that fills up, each logged once when the pool reaches it.

use super::info::Watermark;
use super::shared::Shared;
use cowshed_format::base::BLOCK_BYTES;
use cowshed_format::base::sync::Mutex;
use cowshed_format::device::Device;

/// The free part, in thousandths of the pool's capacity, below which each level begins.
const BELOW: [(u64, Watermark); 3] = [
    (10, Watermark::Critical),
    (50, Watermark::VeryLow),
    (100, Watermark::Low),
];

/// The levels of the pool and of its host that were logged last.
#[derive(Default)]
pub(super) struct Watch {
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    level: Watermark,
    host_is_short: bool,
}

/// Returns the level at which `left` blocks of `all` are left.
pub(super) fn level(left: u64, all: u64) -> Watermark {
    let below = |(thousandths, _): &&(u64, Watermark)| {
        u128::from(left) * 1000 < u128::from(all) * u128::from(*thousandths)
    };
    BELOW
        .iter()
        .find(below)
        .map_or(Watermark::Ample, |(_, level)| *level)
}

/// Returns the level to keep, after `said` and with `now` reached. It rises only once a quarter
/// more is left than where the lower level began, and from a full pool at half a hundredth, so that
/// a pool on the edge is not logged again and again.
fn settled(said: Watermark, now: Watermark, left: u64, all: u64) -> Watermark {
    if now >= said || (said == Watermark::Full && left < all / 200) {
        return now.max(said);
    }
    level(left - left / 5, all).min(said)
}

impl Shared {
    /// Logs a level that was reached since the last call, and that held writes can go on.
    pub(super) fn watch_watermark(&self) {
        self.watch_host();
        let Ok(status) = self.status() else { return };
        if status.low_water < Watermark::Full {
            self.tell_released();
        }
        let block = BLOCK_BYTES as u64;
        let left = status.available_bytes() / block;
        let all = status.capacity_bytes() / block;
        let mut said = self.watermark.said.lock();
        let level = settled(said.level, status.low_water, left, all);
        if level > said.level {
            tracing::warn!(
                left_bytes = left * block,
                "{level}: grow the pool, or remove or trim something"
            );
        } else if level == Watermark::Ample && said.level > level {
            tracing::info!(
                left_bytes = left * block,
                "the pool has ample free space again"
            );
        }
        said.level = level;
        let short = status.host_shortage_bytes();
        if let Some(short_bytes) = short
            && !said.host_is_short
        {
            tracing::warn!(
                short_bytes,
                "the host's file system has less free space than the pool may still allocate: free \
                 some space there before the pool needs it"
            );
        }
        said.host_is_short = short.is_some();
    }

    /// Returns the bytes that the host has left for the pool's file; `None` if the pool has all its
    /// space.
    pub(super) fn host_free_bytes(&self) -> Option<u64> {
        // A host that does not tell gives no reason to warn.
        self.device.host_free_bytes().ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Watermark::{Ample, Critical, Full, Low, VeryLow};

    #[test]
    fn levels_begin_below_a_tenth_a_twentieth_and_a_hundredth() {
        for (left, expected) in [
            (1000, Ample),
            (100, Ample),
            (99, Low),
            (50, Low),
            (49, VeryLow),
            (10, VeryLow),
            (9, Critical),
            (0, Critical),
        ] {
            assert_eq!(level(left, 1000), expected, "{left}");
        }
    }

    #[test]
    fn a_pool_on_the_edge_is_told_once() {
        let mut said = Ample;
        let mut told = Vec::new();
        for left in [150, 99, 101, 99, 110, 49, 55, 48, 70, 99, 130, 90] {
            let next = settled(said, level(left, 1000), left, 1000);
            if next > said {
                told.push((left, next));
            }
            said = next;
        }
        // 130 is a quarter more than a tenth, so the last one is a new crossing.
        assert_eq!(told, [(99, Low), (49, VeryLow), (90, Low)]);
        assert_eq!(settled(Full, Critical, 4, 1000), Full);
        assert_eq!(settled(Full, Critical, 6, 1000), Critical);
    }
}
