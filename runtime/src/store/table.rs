//! The objects of one kind that are in memory, by id.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::id::{Lookup, lookup};

/// Objects by id. Locked for moments only, never while anything waits.
#[derive(Debug)]
pub struct Table<I, T>(RwLock<BTreeMap<I, Arc<T>>>);

impl<I, T> Default for Table<I, T> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<I, T> Table<I, T>
where
    I: Ord + Clone + Borrow<str>,
{
    // A panic between two changes leaves the map whole.
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<I, Arc<T>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<I, Arc<T>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an object visible.
    pub fn insert(&self, id: &I, object: &Arc<T>) {
        self.write().insert(id.clone(), object.clone());
    }

    /// Forgets an object; an unknown one is fine.
    pub fn remove(&self, id: &I) {
        self.write().remove::<I>(id);
    }

    /// An object by its whole id.
    pub fn get(&self, id: &I) -> Option<Arc<T>> {
        self.read().get::<I>(id).cloned()
    }

    /// An object by its id or a unique prefix of it.
    pub fn find(&self, text: &str) -> Lookup<Arc<T>> {
        match lookup(&self.read(), text) {
            Lookup::One(object) => Lookup::One(object.clone()),
            Lookup::None => Lookup::None,
            Lookup::Many => Lookup::Many,
        }
    }

    /// All objects in the order of their ids; what is added meanwhile is not among them.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.read().values().cloned().collect()
    }

    /// The objects that the id of a filter lets through: all for an empty one, none for an unknown one.
    pub fn named(&self, filter: &str) -> Vec<Arc<T>> {
        if filter.is_empty() {
            return self.all();
        }
        match self.find(filter) {
            Lookup::One(object) => vec![object],
            Lookup::None | Lookup::Many => Vec::new(),
        }
    }
}
