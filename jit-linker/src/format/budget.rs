//! How much of a file is read altogether. In a malformed one tables can overlap, or be one and the same: few bytes
//! would then be much work and much memory.

use std::cell::Cell;

/// How often longer than its file the names may be together: they may share their ends.
const SHARED_NAMES: u64 = 16;

/// What of a file is still to be read.
pub(crate) struct Budget {
    /// Bytes of contents and tables.
    contents: Cell<u64>,
    /// Bytes of names.
    names: Cell<u64>,
}

impl Budget {
    pub(crate) fn of(file: &[u8]) -> Self {
        let size = file.len() as u64;
        Self { contents: Cell::new(size), names: Cell::new(SHARED_NAMES * size) }
    }

    /// Counts a content or a table, each once. None overlap, so together they are at most the file.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub(crate) fn take(&self, size: u64) -> Result<(), &'static str> {
        take(&self.contents, size).ok_or("sections overlap")
    }

    /// Counts a name, whenever it is read.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub(crate) fn take_name(&self, name: &[u8]) -> Result<(), &'static str> {
        take(&self.names, name.len() as u64).ok_or("the names are much longer than the tables they are in")
    }
}

fn take(budget: &Cell<u64>, size: u64) -> Option<()> {
    let left = budget.get().checked_sub(size);
    // Who goes on with what could be had gets nothing more.
    budget.set(left.unwrap_or(0));
    left.map(drop)
}
