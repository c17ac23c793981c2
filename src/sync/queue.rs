//! Work for several threads, some of it not before a certain time.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// Items for threads that take one after another until all are done.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    ready: VecDeque<T>,
    later: Vec<(Instant, T)>,
    /// Items that were taken, and may come back.
    taken: usize,
}

impl<T> Queue<T> {
    /// Starts with items that can be done now, and with others, each with the time before which it cannot.
    pub(super) fn new(items: impl IntoIterator<Item = T>, later: Vec<(Instant, T)>) -> Self {
        let state = State { ready: items.into_iter().collect(), later, taken: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Takes the next item, and waits if it has to; `None` when all are done. Each has to be given back in the end, by
    /// [`done`](Self::done) or [`postpone`](Self::postpone).
    pub(super) fn take(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let due = state.later.iter().position(|(time, _)| *time <= now);
            let item = due.map(|position| state.later.swap_remove(position).1).or_else(|| state.ready.pop_front());
            if item.is_some() {
                state.taken += 1;
                return item;
            }
            if state.later.is_empty() && state.taken == 0 {
                return None;
            }
            let next = state.later.iter().map(|(time, _)| time.saturating_duration_since(now)).min();
            state = match next {
                Some(pause) => self.changed.wait_timeout(state, pause).expect(UNPOISONED).0,
                None => self.changed.wait(state).expect(UNPOISONED),
            };
        }
    }

    /// Says that an item that was taken is done.
    pub(super) fn done(&self) {
        self.lock().taken -= 1;
        self.changed.notify_all();
    }

    /// Gives an item back that cannot be done before `time`.
    pub(super) fn postpone(&self, item: T, time: Instant) {
        let mut state = self.lock();
        state.taken -= 1;
        state.later.push((time, item));
        drop(state);
        self.changed.notify_all();
    }

    /// Drops what nobody has taken yet.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.ready.clear();
        state.later.clear();
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect(UNPOISONED)
    }
}

const UNPOISONED: &str = "no thread panics while it holds the queue";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn items_come_in_order_and_postponed_ones_when_their_time_has_come() {
        let queue = Queue::new([1, 2, 3], Vec::new());
        assert_eq!(queue.take(), Some(1));
        queue.postpone(1, Instant::now() + Duration::from_millis(5));
        assert_eq!(queue.take(), Some(2));
        queue.postpone(2, Instant::now());
        assert_eq!(queue.take(), Some(2));
        queue.done();
        assert_eq!(queue.take(), Some(3));
        queue.done();
        assert_eq!(queue.take(), Some(1));
        queue.done();
        assert_eq!(queue.take(), None);
    }

    #[test]
    fn waiting_ends_when_the_last_item_is_done() {
        let queue = Queue::new([1], Vec::new());
        assert_eq!(queue.take(), Some(1));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.take());
            queue.done();
            assert_eq!(waiting.join().unwrap(), None);
        });
    }
}
