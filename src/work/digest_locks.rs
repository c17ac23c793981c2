//! Locks on digests, so that images that need the same new layer or flat tree are staged one after the other.
//!
//! Requests are numbered in the order of the queue. A request waits for all earlier requests that have a digest in common with
//! it, and overtakes the others: thus a shared layer is fetched and stored once. There is one exception: if an image makes no
//! progress because its registry sends nothing, images of other registries do not wait for that image. Then a layer may be
//! fetched twice, which costs less time than waiting.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::image::Digest;

/// The locks of one operation.
#[derive(Default)]
pub(super) struct DigestLocks {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Number of the next request.
    next_number: usize,
    /// Requests without a lock, by number.
    waiting: BTreeMap<usize, Entry>,
    /// Locks, by the number of their request.
    held: HashMap<usize, Entry>,
    /// Numbers of the requests and locks whose images make no progress.
    stalled: HashSet<usize>,
}

struct Entry {
    /// The registry of the image.
    host: String,
    /// The digests to lock; `None` until the manifest of the image was read.
    digests: Option<HashSet<Digest>>,
}

/// A request for a lock. Removed when it is dropped.
pub(super) struct LockRequest<'a> {
    locks: &'a DigestLocks,
    number: usize,
}

/// A lock on the digests of one image. Released when it is dropped.
pub(super) struct DigestLock<'a> {
    locks: &'a DigestLocks,
    number: usize,
}

impl DigestLocks {
    /// Adds a request for an image of the registry `host`. Its digests need not be known yet.
    pub(super) fn request(&self, host: &str) -> LockRequest<'_> {
        let mut state = self.state();
        let number = state.next_number;
        state.next_number += 1;
        state.waiting.insert(number, Entry { host: host.to_owned(), digests: None });
        LockRequest { locks: self, number }
    }

    /// Sets the numbers of the requests and locks whose images make no progress.
    pub(super) fn set_stalled(&self, stalled: HashSet<usize>) {
        let mut state = self.state();
        if state.stalled != stalled {
            state.stalled = stalled;
            drop(state);
            self.changed.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it changes the locks")
    }
}

impl State {
    /// Returns whether a request must wait for a lock or for an earlier request.
    ///
    /// As long as the digests of an earlier request are unknown, only images of the same registry wait for it: an image of another
    /// registry rarely has the same layers.
    fn must_wait(&self, number: usize, digests: &HashSet<Digest>) -> bool {
        let host = self.waiting.get(&number).map(|entry| entry.host.as_str());
        let blocks = |(other, entry): (&usize, &Entry)| {
            let is_of_same_host = Some(entry.host.as_str()) == host;
            let is_waited_for = is_of_same_host || !self.stalled.contains(other);
            is_waited_for && entry.digests.as_ref().map_or(is_of_same_host, |locked| !locked.is_disjoint(digests))
        };
        self.held.iter().any(blocks) || self.waiting.range(..number).any(blocks)
    }
}

impl<'a> LockRequest<'a> {
    /// Returns the number of the request, which is also that of the resulting lock.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Waits until no lock and no earlier request contains one of `digests`, and locks them.
    pub(super) fn lock(self, digests: HashSet<Digest>) -> DigestLock<'a> {
        let (locks, number) = (self.locks, self.number);
        let mut state = locks.state();
        if let Some(entry) = state.waiting.get_mut(&number) {
            entry.digests = Some(digests.clone());
        }
        // Later requests may be waiting only because these digests were unknown until now.
        locks.changed.notify_all();
        let waited = locks.changed.wait_while(state, |state| state.must_wait(number, &digests));
        let mut state = waited.expect("no thread panics while it changes the locks");
        if let Some(entry) = state.waiting.remove(&number) {
            state.held.insert(number, entry);
        }
        drop(state);
        DigestLock { locks, number }
    }
}

impl Drop for LockRequest<'_> {
    fn drop(&mut self) {
        self.locks.state().waiting.remove(&self.number);
        self.locks.changed.notify_all();
    }
}

impl Drop for DigestLock<'_> {
    fn drop(&mut self) {
        self.locks.state().held.remove(&self.number);
        self.locks.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn digests<const N: usize>(texts: [&str; N]) -> HashSet<Digest> {
        texts.map(|text| Digest::of(text.as_bytes())).into()
    }

    #[test]
    fn request_with_a_common_digest_waits_and_others_overtake_it() {
        let locks = DigestLocks::default();
        let [first, second, third, fourth] = [(); 4].map(|()| locks.request("h.org"));
        let base = first.lock(digests(["base", "first"]));
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let order = &order;
            let waiting = scope.spawn(move || {
                let lock = second.lock(digests(["base", "second"]));
                order.lock().unwrap().push(2);
                lock
            });
            let last = scope.spawn(move || {
                drop(fourth.lock(digests(["second"])));
                order.lock().unwrap().push(4);
            });
            // It has no digest in common with earlier requests.
            drop(third.lock(digests(["third"])));
            order.lock().unwrap().push(3);
            drop(base);
            drop(waiting.join().unwrap());
            last.join().unwrap();
        });
        assert_eq!(order.into_inner().unwrap(), [3, 2, 4]);
        assert!(locks.state().held.is_empty() && locks.state().waiting.is_empty());
    }

    #[test]
    fn request_waits_for_an_earlier_one_with_unknown_digests() {
        let locks = DigestLocks::default();
        let (first, second) = (locks.request("h.org"), locks.request("h.org"));
        thread::scope(|scope| {
            let waiting = scope.spawn(move || drop(second.lock(digests(["any"]))));
            thread::sleep(Duration::from_millis(5));
            assert!(!waiting.is_finished());
            drop(first);
        });
        assert!(locks.state().waiting.is_empty());
    }

    #[test]
    fn request_of_another_registry_does_not_wait_for_unknown_digests() {
        let locks = DigestLocks::default();
        let (_first, second) = (locks.request("slow.org"), locks.request("h.org"));
        drop(second.lock(digests(["any"])));
    }

    #[test]
    fn stalled_lock_does_not_block_other_registries() {
        let locks = DigestLocks::default();
        let (first, second, third) = (locks.request("slow.org"), locks.request("h.org"), locks.request("h.org"));
        let number = first.number();
        let _slow = first.lock(digests(["base"]));
        thread::scope(|scope| {
            let waiting = scope.spawn(move || drop(second.lock(digests(["base", "second"]))));
            thread::sleep(Duration::from_millis(5));
            assert!(!waiting.is_finished());
            locks.set_stalled([number].into());
            waiting.join().unwrap();
        });
        locks.set_stalled(HashSet::new());
        assert!(locks.state().must_wait(third.number(), &digests(["base"])), "the image makes progress again");
    }
}
