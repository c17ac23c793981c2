//! Lets images be converted side by side as long as they share nothing that is still to be made.
//!
//! Images line up in the order of the wishlist. Each waits for those before it that make what it needs, too, and passes the
//! others: a shared layer is fetched and stored once, and what is published does not depend on which thread was faster.

use std::collections::{BTreeMap, HashSet};
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
    /// The tickets in the line, and what each is for, if that is known.
    line: BTreeMap<usize, Option<HashSet<Digest>>>,
    /// What is being made.
    held: HashSet<Digest>,
}

/// A place in the line, until it is dropped.
pub(super) struct Ticket<'a> {
    turns: &'a Turns,
    number: usize,
}

/// What one image makes, until it is dropped.
pub(super) struct Claim<'a> {
    turns: &'a Turns,
    digests: HashSet<Digest>,
}

impl Turns {
    /// Lines up.
    pub(super) fn line_up(&self) -> Ticket<'_> {
        let mut state = self.lock();
        let number = state.issued;
        state.issued += 1;
        state.line.insert(number, None);
        Ticket { turns: self, number }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it takes its turn")
    }
}

impl State {
    /// Tells whether a ticket has to wait for what is being made, or for one before it that may make the same.
    fn has_to_wait(&self, number: usize, digests: &HashSet<Digest>) -> bool {
        let may_make = |of: &Option<HashSet<Digest>>| of.as_ref().is_none_or(|of| !of.is_disjoint(digests));
        !self.held.is_disjoint(digests) || self.line.range(..number).any(|(_, of)| may_make(of))
    }
}

impl<'a> Ticket<'a> {
    /// Says what the ticket is for, and waits until nobody else makes any of it, nor will before.
    pub(super) fn claim(self, digests: HashSet<Digest>) -> Claim<'a> {
        let (turns, number) = (self.turns, self.number);
        let mut state = turns.lock();
        state.line.insert(number, Some(digests.clone()));
        turns.changed.notify_all();
        let waited = turns.changed.wait_while(state, |state| state.has_to_wait(number, &digests));
        let mut state = waited.expect("no thread panics while it takes its turn");
        state.held.extend(&digests);
        drop(state);
        Claim { turns, digests }
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
        self.turns.lock().held.retain(|digest| !self.digests.contains(digest));
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
        let [first, second, third, fourth] = [(); 4].map(|()| turns.line_up());
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
        let (first, second) = (turns.line_up(), turns.line_up());
        thread::scope(|scope| {
            let waiting = scope.spawn(move || drop(second.claim(of(["any"]))));
            thread::sleep(Duration::from_millis(5));
            assert!(!waiting.is_finished());
            drop(first);
        });
        assert!(turns.lock().line.is_empty());
    }
}
