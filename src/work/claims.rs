//! Lets images be converted side by side as long as they share nothing that is still to be made.
//!
//! Images line up in the order in which they are taken. Each waits for those before it that make what it needs, too, and passes
//! the others: a shared layer is fetched and stored once. Only one that makes no progress, because its registry sends nothing, is
//! passed by images of other registries: then a layer may be fetched twice, which costs less than to wait.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::image::Digest;

/// Who makes what at the moment, and who waits.
#[derive(Default)]
pub(super) struct Claims {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    issued: usize,
    line: BTreeMap<usize, Entry>,
    /// What is being made, by who makes it.
    held: HashMap<usize, Entry>,
    /// Who makes no progress.
    lagging: HashSet<usize>,
}

/// A place in the line.
struct Entry {
    /// The registry of the image.
    host: String,
    /// What it is for, if that is known.
    digests: Option<HashSet<Digest>>,
}

/// A place in the line, until it is dropped.
pub(super) struct Ticket<'a> {
    claims: &'a Claims,
    number: usize,
}

/// What one image makes, until it is dropped.
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    number: usize,
}

impl Claims {
    /// Lines up with an image of a registry.
    pub(super) fn enter(&self, host: &str) -> Ticket<'_> {
        let mut state = self.lock();
        let number = state.issued;
        state.issued += 1;
        state.line.insert(number, Entry { host: host.to_owned(), digests: None });
        Ticket { claims: self, number }
    }

    /// Says who makes no progress, by the numbers of the tickets.
    pub(super) fn set_lagging(&self, lagging: HashSet<usize>) {
        let mut state = self.lock();
        if state.lagging != lagging {
            state.lagging = lagging;
            drop(state);
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds a claim")
    }
}

impl State {
    /// Tells whether a ticket has to wait for what is being made, or for one before it that may make the same. What images of
    /// other registries are for may be known late, and is hardly the same.
    fn has_to_wait(&self, number: usize, digests: &HashSet<Digest>) -> bool {
        let host = self.line.get(&number).map(|entry| entry.host.as_str());
        let may_make = |(other, entry): (&usize, &Entry)| {
            let is_of_same_host = Some(entry.host.as_str()) == host;
            let is_waited_for = is_of_same_host || !self.lagging.contains(other);
            is_waited_for && entry.digests.as_ref().map_or(is_of_same_host, |made| !made.is_disjoint(digests))
        };
        self.held.iter().any(may_make) || self.line.range(..number).any(may_make)
    }
}

impl<'a> Ticket<'a> {
    /// Returns the number of the ticket, and of the claim that comes of it.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Says what the ticket is for, and waits until nobody else makes any of it, nor will before.
    pub(super) fn claim(self, digests: HashSet<Digest>) -> Claim<'a> {
        let (claims, number) = (self.claims, self.number);
        let mut state = claims.lock();
        if let Some(entry) = state.line.get_mut(&number) {
            entry.digests = Some(digests.clone());
        }
        claims.changed.notify_all();
        let waited = claims.changed.wait_while(state, |state| state.has_to_wait(number, &digests));
        let mut state = waited.expect("no thread panics while it holds a claim");
        if let Some(entry) = state.line.remove(&number) {
            state.held.insert(number, entry);
        }
        drop(state);
        Claim { claims, number }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.claims.lock().line.remove(&self.number);
        self.claims.changed.notify_all();
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.lock().held.remove(&self.number);
        self.claims.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn of<const N: usize>(texts: [&str; N]) -> HashSet<Digest> {
        texts.map(|text| Digest::of(text.as_bytes())).into()
    }

    #[test]
    fn who_needs_the_same_waits_and_the_others_pass() {
        let claims = Claims::default();
        let [first, second, third, fourth] = [(); 4].map(|()| claims.enter("h.org"));
        let base = first.claim(of(["base", "first"]));
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let order = &order;
            let waiting = scope.spawn(move || {
                let claim = second.claim(of(["base", "second"]));
                order.lock().unwrap().push(2);
                claim
            });
            let behind = scope.spawn(move || {
                drop(fourth.claim(of(["second"])));
                order.lock().unwrap().push(4);
            });
            // It shares nothing with those before it.
            drop(third.claim(of(["third"])));
            order.lock().unwrap().push(3);
            drop(base);
            drop(waiting.join().unwrap());
            behind.join().unwrap();
        });
        assert_eq!(order.into_inner().unwrap(), [3, 2, 4]);
        assert!(claims.lock().held.is_empty() && claims.lock().line.is_empty());
    }

    #[test]
    fn nobody_passes_one_that_has_not_said_what_it_makes() {
        let claims = Claims::default();
        let (first, second) = (claims.enter("h.org"), claims.enter("h.org"));
        thread::scope(|scope| {
            let waiting = scope.spawn(move || drop(second.claim(of(["any"]))));
            thread::sleep(Duration::from_millis(5));
            assert!(!waiting.is_finished());
            drop(first);
        });
        assert!(claims.lock().line.is_empty());
    }

    #[test]
    fn one_that_has_not_said_what_it_makes_holds_up_no_other_registry() {
        let claims = Claims::default();
        let (_first, second) = (claims.enter("slow.org"), claims.enter("h.org"));
        drop(second.claim(of(["any"])));
    }

    #[test]
    fn one_that_makes_no_progress_is_passed() {
        let claims = Claims::default();
        let (first, second, third) = (claims.enter("slow.org"), claims.enter("h.org"), claims.enter("h.org"));
        let number = first.number();
        let _slow = first.claim(of(["base"]));
        thread::scope(|scope| {
            let waiting = scope.spawn(move || drop(second.claim(of(["base", "second"]))));
            thread::sleep(Duration::from_millis(5));
            assert!(!waiting.is_finished());
            claims.set_lagging([number].into());
            waiting.join().unwrap();
        });
        claims.set_lagging(HashSet::new());
        assert!(claims.lock().has_to_wait(third.number(), &of(["base"])), "it goes on");
    }
}
