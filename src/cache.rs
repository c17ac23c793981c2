//! A cache with a limit in bytes. If several threads need a missing value, one reads it and the others wait.

use std::hash::Hash;

use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

/// A value that can be cached.
pub(crate) trait CacheValue: Clone {
    /// Returns the approximate size in memory in bytes.
    fn bytes(&self) -> u64;
}

/// Values by key, up to a total size in bytes. Values that are used least are removed first.
#[derive(Debug)]
pub(crate) struct ByteCache<K, V: CacheValue>(Cache<K, V, Bytes>);

impl<K: Eq + Hash + Clone, V: CacheValue> ByteCache<K, V> {
    /// Creates a cache for `capacity` bytes.
    pub(crate) fn new(capacity: u64) -> Self {
        // Only one shard, because each shard has an equal part of the capacity, which a large value could exceed.
        let options = OptionsBuilder::new()
            .estimated_items_capacity(1024)
            .weight_capacity(capacity)
            .shards(1)
            .build()
            .expect("both capacities are set");
        let weighter = Bytes { max: capacity / 3 };
        Self(Cache::with_options(options, weighter, DefaultHashBuilder::default(), Default::default()))
    }

    /// Returns the value of `key`; calls `read` for a missing value. Errors are not cached.
    pub(crate) fn get<E>(&self, key: &K, read: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        self.0.get_or_insert_with(key, read)
    }

    /// Returns the value of `key` if it is cached.
    pub(crate) fn peek(&self, key: &K) -> Option<V> {
        self.0.get(key)
    }

    /// Adds or replaces a value.
    pub(crate) fn insert(&self, key: K, value: V) {
        self.0.insert(key, value);
    }

    /// Removes the value of `key`.
    pub(crate) fn remove(&self, key: &K) {
        self.0.remove(key);
    }

    /// Removes and returns the value of `key`, if it is cached and `may_remove` returns true.
    pub(crate) fn take(&self, key: &K, may_remove: impl FnOnce(&V) -> bool) -> Option<V> {
        self.0.remove_if(key, may_remove).map(|(_, value)| value)
    }
}

#[derive(Debug, Clone)]
struct Bytes {
    /// Maximum number of bytes that a value counts for. Therefore even a value larger than the cache is kept until other
    /// values need the space.
    max: u64,
}

impl<K, V: CacheValue> Weighter<K, V> for Bytes {
    fn weight(&self, _key: &K, value: &V) -> u64 {
        value.bytes().clamp(1, self.max.max(1))
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
    fn value_in_use_is_not_taken() {
        let cache: ByteCache<&str, Arc<u64>> = ByteCache::new(100);
        let used = cache.get(&"a", || Ok::<_, Infallible>(Arc::new(7))).unwrap();
        let take = || cache.take(&"a", |value| Arc::strong_count(value) == 1);
        assert_eq!(take(), None);
        assert_eq!(cache.peek(&"a"), Some(used));
        assert_eq!((take().map(Arc::into_inner), cache.peek(&"a")), (Some(Some(7)), None));
    }
}
