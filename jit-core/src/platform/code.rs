//! What debuggers, profilers and the trap handler are told of linked code.

use std::ops::Range;
use std::path::{Path, PathBuf};

use jit_linker::SymbolName;
use jit_linker::arch::Architecture;

use super::unwind::{Frames, Handler};
use crate::sync::Arc;

/// The functions of one allocation.
#[derive(Debug)]
pub(crate) struct LinkedCode {
    pub(crate) architecture: Architecture,
    /// The module's name.
    pub(crate) module: Arc<str>,
    pub(crate) range: Range<u64>,
    /// Ordered by address.
    pub(crate) functions: Vec<LinkedFunction>,
    pub(crate) source: Option<Arc<SourceText>>,
    /// Unwind information.
    pub(crate) frames: Option<Frames>,
    /// What a compiler wrote for debuggers.
    pub(crate) notes: Vec<Note>,
}

/// A section for debuggers, which is in memory.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    /// As ELF names it.
    pub(crate) name: String,
    pub(crate) range: Range<u64>,
    /// Whether what it holds counts from where it is.
    pub(crate) has_address: bool,
}

impl Note {
    /// # Safety
    ///
    /// Its memory stays as long as the contents are used. Nobody writes to it.
    pub(crate) unsafe fn contents(&self) -> &[u8] {
        let start = std::ptr::with_exposed_provenance(self.range.start as usize);
        // SAFETY: it is in memory, as the caller says.
        unsafe { std::slice::from_raw_parts(start, (self.range.end - self.range.start) as usize) }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct LinkedFunction {
    pub(crate) name: SymbolName,
    pub(crate) start: u64,
    pub(crate) size: u32,
    pub(crate) details: Details,
}

/// What the compiler said of places in a function's code.
#[derive(Clone, Debug, Default)]
pub(crate) struct Details {
    /// Instructions that may trap, and why: offset and raw trap code.
    pub(crate) traps: Vec<(u32, u8)>,
    /// Where code comes from: offsets of beginning and end, and the location's bits.
    pub(crate) lines: Vec<(u32, u32, u32)>,
    /// Calls whose exceptions are handled.
    pub(crate) handlers: Vec<Handler>,
    /// Variables that have a name.
    pub(crate) variables: Vec<LocatedVariable>,
}

/// A variable of a function, and where its value is.
#[derive(Clone, Debug)]
pub(crate) struct LocatedVariable {
    pub(crate) name: String,
    pub(crate) kind: VariableKind,
    pub(crate) role: VariableRole,
    /// In which part of the code it is where: offsets of beginning and end.
    pub(crate) places: Vec<(u32, u32, Place)>,
}

/// What a variable is to its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VariableRole {
    Parameter,
    Local,
}

/// Where a value is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// In a register, by DWARF's number.
    Register(u16),
    /// In the frame, as far from its beginning.
    Frame(i64),
}

/// What a variable holds, as a debugger is to show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VariableKind {
    /// A signed integer of so many bytes.
    Integer(u8),
    /// A floating-point number of so many bytes.
    Float(u8),
}

impl Details {
    pub(crate) fn is_empty(&self) -> bool {
        self.traps.is_empty() && self.lines.is_empty() && self.handlers.is_empty() && self.variables.is_empty()
    }
}

impl LinkedCode {
    /// The function that an address is in.
    pub(crate) fn function_at(&self, address: u64) -> Option<&LinkedFunction> {
        let after = self.functions.partition_point(|function| function.start <= address);
        let function = self.functions.get(after.checked_sub(1)?)?;
        (address - function.start < u64::from(function.size)).then_some(function)
    }
}

impl LinkedFunction {
    pub(crate) fn trap_at(&self, address: u64) -> Option<u8> {
        let offset = u32::try_from(address - self.start).ok()?;
        let at = self.details.traps.binary_search_by_key(&offset, |trap| trap.0).ok()?;
        Some(self.details.traps[at].1)
    }

    pub(crate) fn location_at(&self, address: u64) -> Option<u32> {
        let offset = u32::try_from(address - self.start).ok()?;
        self.details.lines.iter().find(|(start, end, _)| (*start..*end).contains(&offset)).map(|line| line.2)
    }
}

/// The text that a module's source locations ([`SourceLoc`]) are offsets into, in bytes.
///
/// [`SourceLoc`]: cranelift_codegen::ir::SourceLoc
///
/// ```
/// use jit_core::SourceText;
///
/// let text = SourceText::new("program.k", "a = 1\nb = 2\n");
/// // `ClifModule::source` takes it. Where it says what an offset stands for:
/// assert_eq!(text.position(6), (2, 1));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceText {
    path: PathBuf,
    /// Where each line begins.
    lines: Vec<u32>,
}

impl SourceText {
    /// A text and the file that it is from. Only the beginnings of lines are kept.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, text: &str) -> Self {
        let ends = text.bytes().zip(1u32..).filter(|(byte, _)| *byte == b'\n').map(|(_, next)| next);
        Self { path: path.into(), lines: std::iter::once(0).chain(ends).collect() }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Line and column of an offset, both from 1; columns count bytes.
    #[must_use]
    pub fn position(&self, offset: u32) -> (u32, u32) {
        let line = self.lines.partition_point(|start| *start <= offset);
        // The first line begins at 0, so there is one.
        (line as u32, offset - self.lines[line - 1] + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_from_one() {
        let text = SourceText::new("a.k", "ab\n\nc");
        assert_eq!(
            [0, 1, 2, 3, 4, 9].map(|offset| text.position(offset)),
            [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 6)]
        );
    }
}
