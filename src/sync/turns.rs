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
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    issued: usize,
    line: BTreeMap<usize, Place>,
    /// What is being made, by who makes it.
    held: HashMap<usize, Place>,
    /// Who makes no progress.
    lagging: HashSet<usize>,
}

/// A place in the line.
struct Place {
    /// The registry of the image.
    host: String,
    /// What it is for, if that is known.
    digests: Option<HashSet<Digest>>,
}

/// A place in the line, until it is dropped.
pub(super) struct Ticket<'a> {
    turns: &'a Turns,
    number: usize,
}

/// What one image makes, until it is dropped.
pub(super) struct Claim<'a> {
    turns: &'a Turns,
    number: usize,
}

impl Turns {
    /// Lines up with an image of a registry.
    pub(super) fn line_up(&self, host: &str) -> Ticket<'_> {
        let mut state = self.lock();
        let number = state.issued;
        state.issued += 1;
        state.line.insert(number, Place { host: host.to_owned(), digests: None });
        Ticket { turns: self, number }
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
        self.state.lock().expect("no thread panics while it takes its turn")
    }
}

impl State {
    /// Tells whether a ticket has to wait for what is being made, or for one before it that may make the same. What images of
    /// other registries are for may be known late, and is hardly the same.
    fn has_to_wait(&self, number: usize, digests: &HashSet<Digest>) -> bool {
        let host = self.line.get(&number).map(|place| place.host.as_str());
        let may_make = |(other, place): (&usize, &Place)| {
            let is_of_same_host = Some(place.host.as_str()) == host;
            let is_waited_for = is_of_same_host || !self.lagging.contains(other);
            is_waited_for && place.digests.as_ref().map_or(is_of_same_host, |made| !made.is_disjoint(digests))
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
        let (turns, number) = (self.turns, self.number);
        let mut state = turns.lock();
        if let Some(place) = state.line.get_mut(&number) {
            place.digests = Some(digests.clone());
        }
        turns.changed.notify_all();
        let waited = turns.changed.wait_while(state, |state| state.has_to_wait(number, &digests));
        let mut state = waited.expect("no thread panics while it takes its turn");
        if let Some(place) = state.line.remove(&number) {
            state.held.insert(number, place);
        }
        drop(state);
        Claim { turns, number }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.turns.lock().line.remove(&self.number);
        self.turns.changed.notify_all();
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.turns.lock().held.remove(&self.number);
        self.turns.changed.notify_all();
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
        let turns = Turns::default();
        let [first, second, third, fourth] = [(); 4].map(|()| turns.line_up("h.org"));
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
        assert!(turns.lock().held.is_empty() && turns.lock().line.is_empty());
    }

    #[test]
    fn nobody_passes_one_that_has_not_said_what_it_makes() {
        let turns = Turns::default();
        let (first, second) = (turns.line_up("h.org"), turns.line_up("h.org"));
        thread::scope(|scope| {
            let waiting = scope.spawn(move || drop(second.claim(of(["any"]))));
            thread::sleep(Duration::from_millis(5));
            assert!(!waiting.is_finished());
            drop(first);
        });
        assert!(turns.lock().line.is_empty());
    }

    #[test]
    fn one_that_has_not_said_what_it_makes_holds_up_no_other_registry() {
        let turns = Turns::default();
        let (_first, second) = (turns.line_up("slow.org"), turns.line_up("h.org"));
        drop(second.claim(of(["any"])));
    }

    #[test]
    fn one_that_makes_no_progress_is_passed() {
        let turns = Turns::default();
        let (first, second, third) = (turns.line_up("slow.org"), turns.line_up("h.org"), turns.line_up("h.org"));
        let number = first.number();
        let _slow = first.claim(of(["base"]));
        thread::scope(|scope| {
            let waiting = scope.spawn(move || drop(second.claim(of(["base", "second"]))));
            thread::sleep(Duration::from_millis(5));
            assert!(!waiting.is_finished());
            turns.set_lagging([number].into());
            waiting.join().unwrap();
        });
        turns.set_lagging(HashSet::new());
        assert!(turns.lock().has_to_wait(third.number(), &of(["base"])), "it goes on");
    }
}
