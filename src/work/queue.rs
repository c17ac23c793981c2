//! Task queue for several threads, with one queue for each registry, so that a slow registry delays only its own tasks.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::wishlist::ImagePosition;

/// Queue of tasks for several threads. Each task belongs to a host.
pub(super) struct TaskQueue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    hosts: BTreeMap<String, HostQueue<T>>,
    /// Maximum number of running tasks. Stalled tasks do not count.
    limit: usize,
    /// Number of running tasks that make no progress.
    stalled: usize,
    is_closed: bool,
}

struct HostQueue<T> {
    /// Tasks that no thread has taken, by the position of their image in the wishlist.
    waiting: BTreeMap<ImagePosition, T>,
    /// Number of running tasks.
    running: usize,
    /// Maximum number of running tasks.
    limit: usize,
    /// Time at which a task last succeeded, or at which the first task was added if none has succeeded.
    last_progress: Instant,
}

/// A task that a thread has taken. It counts as running until it is dropped.
pub(super) struct RunningTask<'q, T> {
    queue: &'q TaskQueue<T>,
    host: String,
    task: T,
}

impl<T> TaskQueue<T> {
    /// Creates a queue. Up to `limit` of its tasks may run at the same time.
    pub(super) fn new(limit: usize) -> Self {
        let state = State { hosts: BTreeMap::new(), limit, stalled: 0, is_closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Adds a task for a host. Up to `limit` tasks of this host may run at the same time.
    pub(super) fn add(&self, host: &str, limit: usize, position: ImagePosition, task: T) {
        let mut state = self.lock();
        let new =
            // With a limit of 0, no task of the host would ever run.
            || HostQueue { waiting: BTreeMap::new(), running: 0, limit: limit.max(1), last_progress: Instant::now() };
        let queue = state.hosts.entry(host.to_owned()).or_insert_with(new);
        if !queue.has_tasks() {
            queue.last_progress = Instant::now();
        }
        queue.waiting.insert(position, task);
        drop(state);
        self.changed.notify_one();
    }

    /// Takes the next task of the host with the fewest running tasks. Waits until a task may run. Returns `None` after the queue was
    /// closed.
    pub(super) fn take(&self) -> Option<RunningTask<'_, T>> {
        let state = self.lock();
        let must_wait = |state: &mut State<T>| !state.is_closed && state.next_host().is_none();
        let mut state = self.changed.wait_while(state, must_wait).expect(UNPOISONED);
        if state.is_closed {
            return None;
        }
        let host = state.next_host()?.to_owned();
        let queue = state.hosts.get_mut(&host)?;
        let (_, task) = queue.waiting.pop_first()?;
        queue.running += 1;
        Some(RunningTask { queue: self, host, task })
    }

    /// Sets the number of running tasks that make no progress. The same number of other tasks may run in addition.
    pub(super) fn set_stalled(&self, count: usize) {
        let mut state = self.lock();
        if state.stalled != count {
            state.stalled = count;
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Returns the number of running tasks.
    pub(super) fn running(&self) -> usize {
        self.lock().hosts.values().map(|queue| queue.running).sum()
    }

    /// Returns whether [`take`](Self::take) would return a task without waiting.
    pub(super) fn has_next(&self) -> bool {
        self.lock().next_host().is_some()
    }

    /// Returns whether no task of any host has succeeded for `duration`. Hosts without tasks are ignored.
    pub(super) fn is_stalled(&self, duration: Duration) -> bool {
        let state = self.lock();
        let mut queues = state.hosts.values().filter(|queue| queue.has_tasks());
        queues.all(|queue| queue.last_progress.elapsed() >= duration)
    }

    /// Returns the number of waiting and running tasks of each host that has any.
    pub(super) fn unfinished(&self) -> BTreeMap<String, usize> {
        let state = self.lock();
        let unfinished = state.hosts.iter().filter(|(_, queue)| queue.has_tasks());
        unfinished.map(|(host, queue)| (host.clone(), queue.waiting.len() + queue.running)).collect()
    }

    /// Closes the queue: waiting tasks are never taken.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect(UNPOISONED)
    }
}

impl<T> State<T> {
    /// Returns the host of the task that is taken next.
    fn next_host(&self) -> Option<&str> {
        let running: usize = self.hosts.values().map(|queue| queue.running).sum();
        if running >= self.limit.saturating_add(self.stalled) {
            return None;
        }
        let ready = self.hosts.iter().filter(|(_, queue)| !queue.waiting.is_empty() && queue.running < queue.limit);
        let next = ready
            .min_by_key(|(_, queue)| (queue.running, queue.waiting.first_key_value().map(|(position, _)| *position)));
        next.map(|(host, _)| host.as_str())
    }
}

impl<T> HostQueue<T> {
    fn has_tasks(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }
}

impl<T> RunningTask<'_, T> {
    /// Records that the task succeeded, which counts as progress of its host. A failure does not count: if a registry is down,
    /// every task fails.
    pub(super) fn record_success(&self) {
        if let Some(queue) = self.queue.lock().hosts.get_mut(&self.host) {
            queue.last_progress = Instant::now();
        }
    }
}

impl<T> Deref for RunningTask<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.task
    }
}

impl<T> Drop for RunningTask<'_, T> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        if let Some(queue) = state.hosts.get_mut(&self.host) {
            queue.running -= 1;
        }
        drop(state);
        self.queue.changed.notify_one();
    }
}

const UNPOISONED: &str = "no thread panics while it changes the queue";

#[cfg(test)]
mod tests {
    use super::*;

    fn take<'q>(queue: &'q TaskQueue<&'static str>) -> RunningTask<'q, &'static str> {
        assert!(queue.has_next());
        queue.take().unwrap()
    }

    #[test]
    fn host_at_its_limit_delays_no_other_and_the_host_with_fewest_running_tasks_is_next() {
        let queue = TaskQueue::new(usize::MAX);
        for (place, (host, item)) in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")].into_iter().enumerate() {
            queue.add(host, 2, ImagePosition::new(place, 0), item);
        }
        let first = take(&queue);
        let others = [take(&queue), take(&queue)];
        assert_eq!((*first, others.each_ref().map(|taken| **taken)), ("a1", ["b1", "a2"]));
        assert!(!queue.has_next(), "the limit for one host is two");
        assert_eq!(queue.unfinished(), [("a".to_owned(), 3), ("b".to_owned(), 1)].into());
        drop(first);
        assert_eq!(*take(&queue), "a3");
    }

    #[test]
    fn tasks_are_taken_in_the_order_of_the_wishlist() {
        let queue = TaskQueue::new(usize::MAX);
        for ((wish, place), item) in [((1, 0), "second"), ((1, 1), "third"), ((0, 5), "first")] {
            queue.add("a", 9, ImagePosition::new(wish, place), item);
        }
        assert_eq!([take(&queue), take(&queue), take(&queue)].map(|taken| *taken), ["first", "second", "third"]);
    }

    #[test]
    fn one_more_task_may_run_for_each_stalled_task() {
        let queue = TaskQueue::new(1);
        queue.add("a", 4, ImagePosition::new(0, 0), "slow");
        queue.add("b", 4, ImagePosition::new(1, 0), "fast");
        let slow = take(&queue);
        assert!(!queue.has_next());
        queue.set_stalled(1);
        let fast = take(&queue);
        assert_eq!((*slow, *fast), ("slow", "fast"));
        queue.add("b", 4, ImagePosition::new(2, 0), "next");
        queue.set_stalled(0);
        drop(fast);
        assert!(!queue.has_next(), "the slow task makes progress again, and the limit is one");
    }

    #[test]
    fn host_whose_tasks_all_fail_is_stalled() {
        let queue = TaskQueue::new(usize::MAX);
        (0..3).for_each(|place| queue.add("a", 4, ImagePosition::new(place, 0), "item"));
        let length = Duration::from_millis(20);
        assert!(!queue.is_stalled(length), "the first task was added just now");
        std::thread::sleep(length);
        drop(take(&queue));
        assert!(queue.is_stalled(length));
        take(&queue).record_success();
        assert!(!queue.is_stalled(length));
    }

    #[test]
    fn waiting_ends_when_the_queue_is_closed() {
        let queue = TaskQueue::<()>::new(1);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.take().is_none());
            queue.close();
            assert!(waiting.join().unwrap());
        });
        assert!(queue.is_stalled(Duration::from_secs(1)), "an empty queue has no host to wait for");
    }
}
