//! What was read once and may be wanted again: bounded in bytes, and read by one thread while the others wait for it.

use std::hash::Hash;

use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

/// A value that knows what it costs to keep.
pub(crate) trait CacheValue: Clone {
    /// Returns the bytes that it takes, more or less.
    fn bytes(&self) -> u64;
}

/// Values by key, up to a number of bytes together. The least used go first.
#[derive(Debug)]
pub(crate) struct ByteCache<K, V: CacheValue>(Cache<K, V, Bytes>);

impl<K: Eq + Hash + Clone, V: CacheValue> ByteCache<K, V> {
    /// Makes a cache for `capacity` bytes.
    pub(crate) fn new(capacity: u64) -> Self {
        // One shard, since each would have its own share of the capacity, which a large value could exceed.
        let options = OptionsBuilder::new()
            .estimated_items_capacity(1024)
            .weight_capacity(capacity)
            .shards(1)
            .build()
            .expect("both capacities are set");
        let weighter = Bytes { most: capacity / 3 };
        Self(Cache::with_options(options, weighter, DefaultHashBuilder::default(), Default::default()))
    }

    /// Returns the value of `key`, which `read` gets if it is not there. Nothing is kept of an error.
    pub(crate) fn get<E>(&self, key: &K, read: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        self.0.get_or_insert_with(key, read)
    }

    /// Returns the value of `key` if it is there.
    pub(crate) fn peek(&self, key: &K) -> Option<V> {
        self.0.get(key)
    }

    /// Keeps a value.
    pub(crate) fn insert(&self, key: K, value: V) {
        self.0.insert(key, value);
    }

    /// Forgets the value of `key`.
    pub(crate) fn remove(&self, key: &K) {
        self.0.remove(key);
    }

    /// Takes the value of `key` out, if it is there and `may_go`.
    pub(crate) fn take(&self, key: &K, may_go: impl FnOnce(&V) -> bool) -> Option<V> {
        self.0.remove_if(key, may_go).map(|(_, value)| value)
    }
}

#[derive(Debug, Clone)]
struct Bytes {
    /// No value counts more, so that even one that is larger than the cache is kept until others need the room.
    most: u64,
}

impl<K, V: CacheValue> Weighter<K, V> for Bytes {
    fn weight(&self, _key: &K, value: &V) -> u64 {
        value.bytes().clamp(1, self.most.max(1))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use super::*;

    impl CacheValue for Arc<u64> {
        fn bytes(&self) -> u64 {
            **self
        }
    }

    #[test]
    fn what_is_in_use_is_not_taken() {
        let cache: ByteCache<&str, Arc<u64>> = ByteCache::new(100);
        let used = cache.get(&"a", || Ok::<_, Infallible>(Arc::new(7))).unwrap();
        let take = || cache.take(&"a", |value| Arc::strong_count(value) == 1);
        assert_eq!(take(), None);
        assert_eq!(cache.peek(&"a"), Some(used));
        assert_eq!((take().map(Arc::into_inner), cache.peek(&"a")), (Some(Some(7)), None));
    }
}
