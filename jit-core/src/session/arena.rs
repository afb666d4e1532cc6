//! Tables whose ids know when what they named is gone.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;

/// The id of an entry of an [`Arena`]: an index and a generation, so that an id whose entry was
/// removed names nothing, even after the place is used again.
pub(crate) struct Id<T> {
    index: u32,
    generation: u32,
    entry: PhantomData<fn() -> T>,
}

impl<T> Id<T> {
    pub(crate) fn index(self) -> usize {
        self.index as usize
    }
}

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Id<T> {}

impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.index, self.generation) == (other.index, other.generation)
    }
}

impl<T> Eq for Id<T> {}

impl<T> Hash for Id<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.index) << 32 | u64::from(self.generation));
    }
}

impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// A table that recycles its places and not its ids.
pub(crate) struct Arena<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Arena<T> {
    pub(crate) fn insert(&mut self, value: T) -> Id<T> {
        if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            entry.value = Some(value);
            return Id { index, generation: entry.generation, entry: PhantomData };
        }
        // An entry is larger than a byte: 2^32 of them do not fit the address space of any machine
        // that holds the program that made them.
        let index = u32::try_from(self.entries.len()).expect("tables stay below 2^32 entries");
        self.entries.push(Entry { generation: 0, value: Some(value) });
        Id { index, generation: 0, entry: PhantomData }
    }

    /// The id that the next `insert` gives.
    pub(crate) fn next_id(&self) -> Id<T> {
        match self.free.last() {
            Some(&index) => Id { index, generation: self.entries[index as usize].generation, entry: PhantomData },
            None => Id { index: self.entries.len() as u32, generation: 0, entry: PhantomData },
        }
    }

    /// The entry in a place, whatever its generation.
    pub(crate) fn at(&self, index: u32) -> Option<(Id<T>, &T)> {
        let entry = self.entries.get(index as usize)?;
        Some((Id { index, generation: entry.generation, entry: PhantomData }, entry.value.as_ref()?))
    }

    /// As [`at`](Self::at).
    pub(crate) fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.entries.get_mut(index as usize)?.value.as_mut()
    }

    pub(crate) fn reserve(&mut self, additional: usize) {
        self.entries.reserve(additional.saturating_sub(self.free.len()));
    }

    pub(crate) fn remove(&mut self, id: Id<T>) -> Option<T> {
        let entry = self.entries.get_mut(id.index())?;
        if entry.generation != id.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(value)
    }

    pub(crate) fn get(&self, id: Id<T>) -> Option<&T> {
        let entry = self.entries.get(id.index())?;
        if entry.generation == id.generation { entry.value.as_ref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, id: Id<T>) -> Option<&mut T> {
        let entry = self.entries.get_mut(id.index())?;
        if entry.generation == id.generation { entry.value.as_mut() } else { None }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Id<T>, &T)> {
        self.entries.iter().enumerate().filter_map(|(index, entry)| {
            let id = Id { index: index as u32, generation: entry.generation, entry: PhantomData };
            Some((id, entry.value.as_ref()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_does_not_outlive_its_entry() {
        let mut arena = Arena::default();
        let first = arena.insert("first");
        assert_eq!(arena.remove(first), Some("first"));
        let second = arena.insert("second");
        assert_eq!(first.index(), second.index());
        assert_eq!(arena.get(first), None);
        assert_eq!(arena.remove(first), None);
        assert_eq!(arena.get(second), Some(&"second"));
    }
}
