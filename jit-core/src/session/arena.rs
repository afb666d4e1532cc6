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
    pub(crate) fn new(index: u32, generation: u32) -> Self {
        Self { index, generation, entry: PhantomData }
    }

    pub(crate) fn generation(self) -> u32 {
        self.generation
    }

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

/// Entries of a chunk. A table grows by chunks and moves nothing: doubling would need thrice its
/// memory for a moment, in one piece.
const CHUNK: usize = 64;

/// A table that recycles its places and not its ids.
pub(crate) struct Arena<T> {
    chunks: Vec<Vec<Entry<T>>>,
    free: Vec<u32>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: Vec::new() }
    }
}

impl<T> Arena<T> {
    pub(crate) fn insert(&mut self, value: T) -> Id<T> {
        if let Some(index) = self.free.pop()
            && let Some(entry) = self.entry_mut(index)
        {
            entry.value = Some(value);
            return Id { index, generation: entry.generation, entry: PhantomData };
        }
        let index = self.len();
        if (index as usize).is_multiple_of(CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.push(Entry { generation: 0, value: Some(value) });
        }
        Id { index, generation: 0, entry: PhantomData }
    }

    /// Places, used or not.
    fn len(&self) -> u32 {
        let Some(last) = self.chunks.last() else { return 0 };
        let len = (self.chunks.len() - 1) * CHUNK + last.len();
        // An entry is larger than a byte: 2^32 of them do not fit the address space of any machine
        // that holds the program that made them.
        u32::try_from(len).expect("tables stay below 2^32 entries")
    }

    fn entry(&self, index: u32) -> Option<&Entry<T>> {
        self.chunks.get(index as usize / CHUNK)?.get(index as usize % CHUNK)
    }

    fn entry_mut(&mut self, index: u32) -> Option<&mut Entry<T>> {
        self.chunks.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)
    }

    /// The id that the next `insert` gives.
    pub(crate) fn next_id(&self) -> Id<T> {
        let (index, generation) = match self.free.last() {
            Some(&index) => (index, self.entry(index).map_or(0, |entry| entry.generation)),
            None => (self.len(), 0),
        };
        Id { index, generation, entry: PhantomData }
    }

    /// The entry in a place, whatever its generation.
    pub(crate) fn at(&self, index: u32) -> Option<(Id<T>, &T)> {
        let entry = self.entry(index)?;
        Some((Id { index, generation: entry.generation, entry: PhantomData }, entry.value.as_ref()?))
    }

    pub(crate) fn remove(&mut self, id: Id<T>) -> Option<T> {
        let entry = self.entry_mut(id.index)?;
        if entry.generation != id.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(value)
    }

    pub(crate) fn get(&self, id: Id<T>) -> Option<&T> {
        let entry = self.entry(id.index)?;
        if entry.generation == id.generation { entry.value.as_ref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, id: Id<T>) -> Option<&mut T> {
        let entry = self.entry_mut(id.index)?;
        if entry.generation == id.generation { entry.value.as_mut() } else { None }
    }

    /// How many entries there are.
    pub(crate) fn count(&self) -> usize {
        self.len() as usize - self.free.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Id<T>, &T)> {
        (0..self.len()).filter_map(|index| self.at(index))
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
