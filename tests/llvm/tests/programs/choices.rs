//! Decisions from bytes: fewer and smaller bytes are a simpler program, which is how a failure is shrunk.

/// A supply of decisions. Once it is used up, every decision is the first.
pub(crate) struct Choices<'b> {
    bytes: std::slice::Iter<'b, u8>,
}

impl<'b> Choices<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Self {
        Self { bytes: bytes.iter() }
    }

    /// A number below `limit`, which is at least 1 and at most 256.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::from(self.bytes.next().copied().unwrap_or(0)) % limit
    }

    /// Whether the supply is used up.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.len() == 0
    }

    /// One of several.
    pub(crate) fn of<'o, T>(&mut self, options: &'o [T]) -> &'o T {
        &options[self.below(options.len())]
    }
}
