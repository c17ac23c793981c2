//! Lets images be converted side by side as long as they share nothing that is still to be made.
//!
//! Images take their turns in the order of the wishlist, and each waits for those before it that make what it needs, too:
//! a shared layer is fetched and stored once, and what is published does not depend on which thread was faster.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::image::Digest;

/// Who makes what at the moment.
#[derive(Default)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The next number to be given out, and the number whose turn it is.
    issued: usize,
    current: usize,
    /// What is being made.
    held: HashSet<Digest>,
}

/// A place in the line. Dropping it lets the next one pass.
pub(super) struct Ticket<'a> {
    turns: &'a Turns,
    number: usize,
    has_passed: bool,
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
        state.issued += 1;
        Ticket { turns: self, number: state.issued - 1, has_passed: false }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it takes its turn")
    }

    fn wait(&self, until: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let waiting = self.changed.wait_while(self.lock(), |state| !until(state));
        waiting.expect("no thread panics while it takes its turn")
    }
}

impl<'a> Ticket<'a> {
    /// Waits until it is this ticket's turn and nobody else makes any of `digests`.
    pub(super) fn claim(mut self, digests: HashSet<Digest>) -> Claim<'a> {
        let number = self.number;
        let mut state = self.turns.wait(|state| state.current == number && state.held.is_disjoint(&digests));
        state.held.extend(&digests);
        state.current += 1;
        self.has_passed = true;
        drop(state);
        self.turns.changed.notify_all();
        Claim { turns: self.turns, digests }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.has_passed {
            let number = self.number;
            self.turns.wait(|state| state.current == number).current += 1;
            self.turns.changed.notify_all();
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.held.retain(|digest| !self.digests.contains(digest));
        drop(state);
        self.turns.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn who_needs_the_same_waits_and_who_does_not_passes_in_order() {
        let turns = Turns::default();
        let digest = |text: &str| HashSet::from([Digest::of(text.as_bytes())]);
        let (first, second, third) = (turns.line_up(), turns.line_up(), turns.line_up());
        let claim = first.claim(digest("base"));
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let order = &order;
            scope.spawn(move || {
                let _claim = third.claim(digest("other"));
                order.lock().unwrap().push(3);
            });
            scope.spawn(move || {
                let _claim = second.claim(digest("base"));
                order.lock().unwrap().push(2);
            });
            order.lock().unwrap().push(1);
            drop(claim);
        });
        assert_eq!(order.into_inner().unwrap()[0], 1);
        assert!(turns.lock().held.is_empty());
        assert_eq!(turns.lock().current, 3);
    }

    #[test]
    fn ticket_that_is_given_up_lets_the_next_one_pass() {
        let turns = Turns::default();
        let (first, second) = (turns.line_up(), turns.line_up());
        drop(first);
        drop(second.claim(HashSet::new()));
        assert_eq!(turns.lock().current, 2);
    }
}
