//! The pool's locks, each with its place in the order in which they are taken.
//!
//! A thread takes a lock only while all that it holds have an earlier place. The one exception is a
//! volume's writer: the writers of a removed parent and of its child are held together, the
//! parent's first (in any order by a thread that has `Forest` and `Cut` to itself). With debug
//! assertions (in all tests) a thread that breaks the order panics at once, whether or not another
//! thread happens to be in its way.
//!
//! [`Rank`] is the whole order. Locks that are not listed protect a few words; no other lock is
//! taken while one of them is held: the log's `tail` and `leading`, the node cache's `hand`,
//! `layout`, `space_wait.gate`, `space_wait.last_held`, `signal.wanted`, `watermark.said`,
//! `host_reserve.tried`, `host_reserve.refused`, `threads`, `store.damage`, `store.given_up`, and in `space` the groups (`hiding` before `groups` before a
//! group; of two groups, the first one first).

use cowshed_format::base::sync::{Mutex, RwLock};
use std::ops::{Deref, DerefMut};

#[cfg(debug_assertions)]
use cowshed_format::base::sync::thread_local;
#[cfg(debug_assertions)]
use std::cell::RefCell;

/// The order: a lock is taken only while every held one has a lower rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// One thread at a time settles removed volumes.
    Reclaiming,
    /// One checkpoint at a time.
    Checkpointer,
    /// When the host last refused to let the pool grow.
    Growing,
    /// Names, parents and records. Writers of data never take it.
    Forest,
    /// Shared by whoever appends to the log and publishes to a map, so that each record and its
    /// effect are on the same side of a checkpoint's cut; exclusive for the cut itself and for
    /// changes of the forest.
    Cut,
    /// One writer of a volume's map at a time; a removed parent's before its child's.
    Writer,
    /// Where a volume's next data goes.
    Stream,
    /// What is known of a removed volume's unneeded blocks.
    Pruned,
    /// What the next checkpoint has to write.
    Changes,
}

#[cfg(debug_assertions)]
thread_local! {
    static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
}

/// A place in the order that this thread has taken, until it is dropped.
struct Taken {
    #[cfg(debug_assertions)]
    rank: Rank,
}

impl Taken {
    #[inline]
    fn new(rank: Rank) -> Self {
        #[cfg(debug_assertions)]
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            let is_first = |other: &Rank| *other < rank || (*other == rank && rank == Rank::Writer);
            assert!(
                held.iter().all(is_first),
                "{rank:?} is taken after {held:?}"
            );
            held.push(rank);
        });
        #[cfg(not(debug_assertions))]
        let _ = rank;
        Self {
            #[cfg(debug_assertions)]
            rank,
        }
    }
}

#[cfg(debug_assertions)]
impl Drop for Taken {
    fn drop(&mut self) {
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            let place = held.iter().rposition(|rank| *rank == self.rank);
            held.remove(place.expect("it was taken by this thread"));
        });
    }
}

/// A mutex with a place in the order.
pub(super) struct OrderedMutex<T> {
    rank: Rank,
    inner: Mutex<T>,
}

impl<T> OrderedMutex<T> {
    pub(super) const fn new(rank: Rank, value: T) -> Self {
        Self {
            rank,
            inner: Mutex::new(value),
        }
    }

    #[inline]
    pub(super) fn lock(&self) -> Held<impl DerefMut<Target = T>> {
        let taken = Taken::new(self.rank);
        Held {
            guard: self.inner.lock(),
            _taken: taken,
        }
    }
}

/// A lock for one writer or many readers, with a place in the order.
pub(super) struct OrderedRwLock<T> {
    rank: Rank,
    inner: RwLock<T>,
}

impl<T> OrderedRwLock<T> {
    pub(super) const fn new(rank: Rank, value: T) -> Self {
        Self {
            rank,
            inner: RwLock::new(value),
        }
    }

    #[inline]
    pub(super) fn read(&self) -> Held<impl Deref<Target = T>> {
        let taken = Taken::new(self.rank);
        Held {
            guard: self.inner.read(),
            _taken: taken,
        }
    }

    #[inline]
    pub(super) fn write(&self) -> Held<impl DerefMut<Target = T>> {
        let taken = Taken::new(self.rank);
        Held {
            guard: self.inner.write(),
            _taken: taken,
        }
    }
}

/// A lock that is held until this is dropped.
pub(super) struct Held<G> {
    // Released before its place in the order is given up.
    guard: G,
    _taken: Taken,
}

impl<G: Deref> Deref for Held<G> {
    type Target = G::Target;

    #[inline]
    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Held<G> {
    #[inline]
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn panics(act: impl FnOnce() + Send + 'static) -> bool {
        thread::spawn(act).join().is_err()
    }

    #[test]
    fn locks_are_taken_in_their_order_only() {
        assert!(!panics(|| {
            let forest = OrderedRwLock::new(Rank::Forest, 1);
            let [parent, child] = [2, 3].map(|value| OrderedMutex::new(Rank::Writer, value));
            let read = forest.read();
            let (first, mut second) = (parent.lock(), child.lock());
            *second += *first + *read;
            assert_eq!(*second, 6);
            drop(first);
            drop(read);
            drop(second);
            *forest.write() = 7;
        }));
        assert!(panics(|| {
            let forest = OrderedRwLock::new(Rank::Forest, ());
            let cut = OrderedRwLock::new(Rank::Cut, ());
            let _cut = cut.read();
            let _forest = forest.read();
        }));
        assert!(panics(|| {
            let [first, second] = [(), ()].map(|()| OrderedMutex::new(Rank::Changes, ()));
            let _first = first.lock();
            let _second = second.lock();
        }));
    }
}
