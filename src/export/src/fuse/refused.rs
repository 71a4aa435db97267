//! The volumes that had a write refused, in the handover state: a volume's user may have got the
//! error long ago, and only once.
//!
//! # Invariants
//! - A recorded volume is not forgotten as long as it exists, whichever process serves it.
//! - If there is no space for another record, all volumes count as refused.

use super::handover_state::Records;
use cowshed_format::base::VolumeId;
use std::sync::atomic::Ordering;

/// The word that stands for no volume: the id of the catalogue, which is not shown as a file.
const NONE: u64 = 0;

impl Records {
    /// Records that a write to the volume was refused. Reuses the word of a volume for which
    /// `is_there` returns false.
    pub(crate) fn refuse(&self, volume: VolumeId, is_there: impl Fn(VolumeId) -> bool) {
        let words = self.refused_words();
        let take = |old: u64| {
            let take = |word: &std::sync::atomic::AtomicU64| {
                word.compare_exchange(old, volume.0, Ordering::SeqCst, Ordering::SeqCst)
            };
            words.iter().any(|word| take(word).is_ok())
        };
        if self.is_noted(volume) || take(NONE) {
            return;
        }
        let gone = self.refused().into_iter().find(|id| !is_there(*id));
        if !gone.is_some_and(|id| take(id.0)) {
            self.refused_any().store(1, Ordering::SeqCst);
        }
    }

    /// Returns true if a write to the volume was, or may have been, refused.
    pub(crate) fn was_refused(&self, volume: VolumeId) -> bool {
        self.refused_any().load(Ordering::SeqCst) != 0 || self.is_noted(volume)
    }

    fn is_noted(&self, volume: VolumeId) -> bool {
        let words = self.refused_words();
        words
            .iter()
            .any(|word| word.load(Ordering::SeqCst) == volume.0)
    }

    /// Returns the volumes that count as refused; `all` gives every volume.
    pub(crate) fn refused_among(&self, all: impl FnOnce() -> Vec<VolumeId>) -> Vec<VolumeId> {
        if self.refused_any().load(Ordering::SeqCst) != 0 {
            return all();
        }
        self.refused()
    }

    /// Returns the recorded volumes.
    pub(crate) fn refused(&self) -> Vec<VolumeId> {
        let words = self.refused_words();
        let ids = words.iter().map(|word| word.load(Ordering::SeqCst));
        ids.filter(|id| *id != NONE).map(VolumeId).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::HandoverState;
    use super::*;

    #[test]
    fn a_refused_write_is_known_to_all_successors_and_never_crowded_out() {
        let first = HandoverState::create().unwrap();
        let there = |_| true;
        assert!(!first.records().was_refused(VolumeId(7)));
        first.records().refuse(VolumeId(7), there);
        first.records().refuse(VolumeId(7), there);
        let second =
            HandoverState::adopt(first.descriptor().try_clone_to_owned().unwrap()).unwrap();
        let records = second.records();
        assert_eq!(records.refused(), [VolumeId(7)]);
        assert!(records.was_refused(VolumeId(7)) && !records.was_refused(VolumeId(8)));
        let room = records.refused_words().len() as u64;
        for id in 1..=room {
            records.refuse(VolumeId(100 + id), |id| id != VolumeId(7));
        }
        assert!(!records.was_refused(VolumeId(7)), "it is gone");
        assert!(records.was_refused(VolumeId(100 + room)));
        let all = || vec![VolumeId(7), VolumeId(50)];
        assert_eq!(records.refused_among(all).len() as u64, room);
        records.refuse(VolumeId(50), there);
        assert!(records.was_refused(VolumeId(50)) && records.was_refused(VolumeId(7)));
        assert_eq!(records.refused_among(all), all(), "its words are full");
    }
}
