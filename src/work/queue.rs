//! Work for several threads, in one lane for each registry, so that a registry that is slow delays its own work only.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::wishlist::ImagePosition;

/// Work for threads that take one item after another until all is done.
pub(super) struct TaskQueue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    lanes: BTreeMap<String, Lane<T>>,
    /// How many items may be worked on at the same time.
    most: usize,
    /// How many items more may be, because as many make no progress.
    lent: usize,
    is_closed: bool,
}

struct Lane<T> {
    /// Items that no thread works on, by their place in the wishlist.
    waiting: BTreeMap<ImagePosition, T>,
    /// How many items are worked on.
    running: usize,
    /// How many may be.
    most: usize,
    /// When something came of an item last, or the first one was added.
    moved: Instant,
}

/// An item that is worked on, until it is dropped.
pub(super) struct Taken<'l, T> {
    lanes: &'l TaskQueue<T>,
    host: String,
    item: T,
}

impl<T> TaskQueue<T> {
    /// Makes lanes of which all together may have `most` items worked on at the same time.
    pub(super) fn new(most: usize) -> Self {
        let state = State { lanes: BTreeMap::new(), most, lent: 0, is_closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Adds an item to the lane of a host, of which `most` may be worked on at the same time.
    pub(super) fn add(&self, host: &str, most: usize, order: ImagePosition, item: T) {
        let mut state = self.lock();
        let new = || Lane { waiting: BTreeMap::new(), running: 0, most: most.max(1), moved: Instant::now() };
        let lane = state.lanes.entry(host.to_owned()).or_insert_with(new);
        if !lane.has_work() {
            lane.moved = Instant::now();
        }
        lane.waiting.insert(order, item);
        drop(state);
        self.changed.notify_one();
    }

    /// Takes the next item of the lane in which least is worked on, and waits for one; `None` after the end.
    pub(super) fn take(&self) -> Option<Taken<'_, T>> {
        let state = self.lock();
        let has_to_wait = |state: &mut State<T>| !state.is_closed && state.next().is_none();
        let mut state = self.changed.wait_while(state, has_to_wait).expect(UNPOISONED);
        if state.is_closed {
            return None;
        }
        let host = state.next()?.to_owned();
        let lane = state.lanes.get_mut(&host)?;
        let (_, item) = lane.waiting.pop_first()?;
        lane.running += 1;
        Some(Taken { lanes: self, host, item })
    }

    /// Says how many of the items that are worked on make no progress. As many others may be taken in their place.
    pub(super) fn lend(&self, count: usize) {
        let mut state = self.lock();
        if state.lent != count {
            state.lent = count;
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Returns how many items are worked on.
    pub(super) fn running(&self) -> usize {
        self.lock().lanes.values().map(|lane| lane.running).sum()
    }

    /// Tells whether an item could be taken if there was a thread for it.
    pub(super) fn is_ready(&self) -> bool {
        self.lock().next().is_some()
    }

    /// Tells whether no lane that has work has moved for so long.
    pub(super) fn lags(&self, length: Duration) -> bool {
        self.lock().lanes.values().filter(|lane| lane.has_work()).all(|lane| lane.moved.elapsed() >= length)
    }

    /// Returns the hosts whose lanes have work, and how many items.
    pub(super) fn busy(&self) -> BTreeMap<String, usize> {
        let state = self.lock();
        let busy = state.lanes.iter().filter(|(_, lane)| lane.has_work());
        busy.map(|(host, lane)| (host.clone(), lane.waiting.len() + lane.running)).collect()
    }

    /// Ends the work: nothing more is taken.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect(UNPOISONED)
    }
}

impl<T> State<T> {
    /// Returns the host whose item comes next.
    fn next(&self) -> Option<&str> {
        let running: usize = self.lanes.values().map(|lane| lane.running).sum();
        if running >= self.most.saturating_add(self.lent) {
            return None;
        }
        let ready = self.lanes.iter().filter(|(_, lane)| !lane.waiting.is_empty() && lane.running < lane.most);
        let next =
            ready.min_by_key(|(_, lane)| (lane.running, lane.waiting.first_key_value().map(|(order, _)| *order)));
        next.map(|(host, _)| host.as_str())
    }
}

impl<T> Lane<T> {
    fn has_work(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }
}

impl<T> Taken<'_, T> {
    /// Notes that something came of the item. What only fails does not move: a registry that is down fails again and again.
    pub(super) fn note_success(&self) {
        if let Some(lane) = self.lanes.lock().lanes.get_mut(&self.host) {
            lane.moved = Instant::now();
        }
    }
}

impl<T> Deref for Taken<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        let mut state = self.lanes.lock();
        if let Some(lane) = state.lanes.get_mut(&self.host) {
            lane.running -= 1;
        }
        drop(state);
        self.lanes.changed.notify_one();
    }
}

const UNPOISONED: &str = "no thread panics while it holds the lanes";

#[cfg(test)]
mod tests {
    use super::*;

    fn take<'l>(lanes: &'l TaskQueue<&'static str>) -> Taken<'l, &'static str> {
        assert!(lanes.is_ready());
        lanes.take().unwrap()
    }

    #[test]
    fn lane_that_is_full_holds_up_no_other_and_the_emptiest_comes_first() {
        let lanes = TaskQueue::new(usize::MAX);
        for (place, (host, item)) in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")].into_iter().enumerate() {
            lanes.add(host, 2, ImagePosition::new(place, 0), item);
        }
        let first = take(&lanes);
        let others = [take(&lanes), take(&lanes)];
        assert_eq!((*first, others.each_ref().map(|taken| **taken)), ("a1", ["b1", "a2"]));
        assert!(!lanes.is_ready(), "two of one lane are enough");
        assert_eq!(lanes.busy(), [("a".to_owned(), 3), ("b".to_owned(), 1)].into());
        drop(first);
        assert_eq!(*take(&lanes), "a3");
    }

    #[test]
    fn items_come_in_the_order_of_the_wishlist_whenever_they_were_added() {
        let lanes = TaskQueue::new(usize::MAX);
        for ((wish, place), item) in [((1, 0), "second"), ((1, 1), "third"), ((0, 5), "first")] {
            lanes.add("a", 9, ImagePosition::new(wish, place), item);
        }
        assert_eq!([take(&lanes), take(&lanes), take(&lanes)].map(|taken| *taken), ["first", "second", "third"]);
    }

    #[test]
    fn what_makes_no_progress_lends_its_place() {
        let lanes = TaskQueue::new(1);
        lanes.add("a", 4, ImagePosition::new(0, 0), "slow");
        lanes.add("b", 4, ImagePosition::new(1, 0), "fast");
        let slow = take(&lanes);
        assert!(!lanes.is_ready());
        lanes.lend(1);
        let fast = take(&lanes);
        assert_eq!((*slow, *fast), ("slow", "fast"));
        lanes.add("b", 4, ImagePosition::new(2, 0), "next");
        lanes.lend(0);
        drop(fast);
        assert!(!lanes.is_ready(), "the slow one goes on, and has the only place again");
    }

    #[test]
    fn lane_in_which_all_fails_lags() {
        let lanes = TaskQueue::new(usize::MAX);
        (0..3).for_each(|place| lanes.add("a", 4, ImagePosition::new(place, 0), "item"));
        let length = Duration::from_millis(20);
        assert!(!lanes.lags(length), "it has just begun");
        std::thread::sleep(length);
        drop(take(&lanes));
        assert!(lanes.lags(length));
        take(&lanes).note_success();
        assert!(!lanes.lags(length));
    }

    #[test]
    fn waiting_ends_with_the_work() {
        let lanes = TaskQueue::<()>::new(1);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lanes.take().is_none());
            lanes.close();
            assert!(waiting.join().unwrap());
        });
        assert!(lanes.lags(Duration::from_secs(1)), "there is nothing to wait for");
    }
}
