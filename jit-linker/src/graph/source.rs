//! The bytes that a graph's content is borrowed from.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// The bytes of an object file, shared by whoever still needs them: a file that was read or
/// mapped, or one member of an archive. Cloning and slicing copy nothing.
///
/// ```
/// use jit_linker::graph::ObjectBytes;
///
/// let archive = ObjectBytes::from(b"headerMEMBER".to_vec());
/// let member = archive.slice(6..12).unwrap();
/// assert_eq!(&*member, b"MEMBER");
/// assert!(archive.slice(6..13).is_none());
/// ```
#[derive(Clone, Default)]
pub struct ObjectBytes {
    /// None where there are no bytes: most graphs are not read from an object.
    owner: Option<Arc<dyn AsRef<[u8]> + Send + Sync>>,
    range: Range<usize>,
}

impl ObjectBytes {
    /// The bytes that `owner` holds. They must stay the same as long as a handle lives: a mapped
    /// file that somebody changes gives a wrong program.
    #[must_use]
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        let range = 0..(*owner).as_ref().len();
        Self { owner: Some(owner), range }
    }

    /// A part of the bytes; `None` if it is not within them.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let start = self.range.start + range.start;
        Some(Self { owner: self.owner.clone(), range: start..start + range.len() })
    }
}

impl Deref for ObjectBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes = self.owner.as_ref().map(|owner| (**owner).as_ref());
        bytes.and_then(|bytes| bytes.get(self.range.clone())).unwrap_or_default()
    }
}

impl From<Vec<u8>> for ObjectBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(Arc::new(bytes))
    }
}

impl From<Arc<[u8]>> for ObjectBytes {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self::new(Arc::new(bytes))
    }
}

impl From<&[u8]> for ObjectBytes {
    /// Copies the bytes.
    fn from(bytes: &[u8]) -> Self {
        Self::from(bytes.to_vec())
    }
}

impl fmt::Debug for ObjectBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectBytes({} bytes)", self.len())
    }
}

/// A text that stands in a graph's [`ObjectBytes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) start: u32,
    pub(crate) length: u32,
}

impl Text {
    /// The text that is a slice of the object's bytes; the empty one if it is not a part of them.
    pub(crate) fn of(object: &[u8], slice: &[u8]) -> Self {
        let start = (slice.as_ptr() as usize).wrapping_sub(object.as_ptr() as usize);
        match (u32::try_from(start), u32::try_from(slice.len())) {
            (Ok(start), Ok(length)) if start as usize + slice.len() <= object.len() => Self { start, length },
            _ => Self::default(),
        }
    }

    pub(crate) const EMPTY: Self = Self { start: 0, length: 0 };
}

/// As [`Text`], of one that ends before a zero: half as large, for what there are many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TerminatedText {
    pub(super) start: u32,
}

impl TerminatedText {
    /// No object is so large.
    pub(crate) const EMPTY: Self = Self { start: u32::MAX };

    /// The bytes in the object that it is of.
    pub(crate) fn in_object(self, object: &[u8]) -> &[u8] {
        let rest = object.get(self.start as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

impl From<Text> for TerminatedText {
    fn from(text: Text) -> Self {
        if text.length == 0 { Self::EMPTY } else { Self { start: text.start } }
    }
}
