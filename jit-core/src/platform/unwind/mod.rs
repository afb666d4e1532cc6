//! Unwind tables: how panics, C++ exceptions and backtraces get through frames of JIT'd code.
//!
//! What is registered is call frame information in the format of `.eh_frame` (System V ABI; the
//! instructions are DWARF's). A [`Frames`] is such information before it is registered, with
//! absolute addresses; a [`Registration`] is what has to be dropped before the memory of the code
//! is used again.
//!
//! The process's unwinder is one of three, and each wants something else (`runtime`).

mod eh_frame;
mod region;
mod runtime;

use std::borrow::Cow;
use std::ops::Range;

use jit_linker::arch::Architecture;
use jit_linker::graph::SectionRole;
use jit_linker::link::Allocated;
use jit_linker::memory::{FinalizedAllocation, SegmentKind};
use smallvec::SmallVec;

pub(crate) use eh_frame::EhFrameError;
pub use runtime::InUnwinder;
use runtime::{Table, Tables, Unwinder};

/// DWARF's pointer encoding of an absolute address.
pub(crate) const ABSOLUTE: u8 = 0x00;

/// The version of entries.
const VERSION: u8 = 1;

/// A common information entry: what several frames share, without its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cie {
    /// From the version on, without padding.
    bytes: Cow<'static, [u8]>,
    /// Whether frames say how long their augmentation is.
    has_data: bool,
    /// Whether frames refer to a language's own tables.
    has_lsda: bool,
    /// Where the alignments and the return address's column are, between the letters of the augmentation and its data.
    layout: Range<usize>,
    /// Where the instructions begin.
    instructions: usize,
}

impl Cie {
    /// For code that is entered by a call, of a language without exceptions.
    pub(crate) const fn of_calls(architecture: Architecture) -> Self {
        // After version and augmentation: code alignment, data alignment of -8, and the column of the return address; how
        // addresses are encoded; and instructions.
        let bytes: &'static [u8] = match architecture {
            // The frame begins above the return address, which the call has pushed.
            Architecture::X86_64 => &[VERSION, b'z', b'R', 0, 1, 0x78, 16, 1, ABSOLUTE, 0x0c, 7, 8, 0x80 | 16, 1],
            // The frame begins at sp, and the return address is in x30.
            _ => &[VERSION, b'z', b'R', 0, 4, 0x78, 30, 1, ABSOLUTE, 0x0c, 31, 0],
        };
        Self { bytes: Cow::Borrowed(bytes), has_data: true, has_lsda: false, layout: 4..7, instructions: 9 }
    }

    /// An entry as it stands in an object, with absolute pointers. `layout` and `instructions` say where these are.
    fn of_object(bytes: &[u8], has_data: bool, has_lsda: bool, layout: Range<usize>, instructions: usize) -> Self {
        Self { bytes: Cow::Owned(bytes.to_vec()), has_data, has_lsda, layout, instructions }
    }

    /// The bytes of the same for frames of which only the address is said, in an encoding.
    #[cfg(feature = "cranelift")]
    fn without_language(&self, encoding: u8) -> Vec<u8> {
        let layout = &self.bytes[self.layout.clone()];
        [&self.bytes[..1], b"zR\0", layout, &[1, encoding], &self.bytes[self.instructions..]].concat()
    }

    /// The same for functions with handlers: beginning and end are the same around what is said of
    /// their language.
    #[cfg(feature = "cranelift")]
    fn with_handlers(&self) -> Self {
        let mut data: SmallVec<[u8; 16]> = SmallVec::new();
        data.push(ABSOLUTE);
        data.extend_from_slice(&super::exception::personality().to_le_bytes());
        data.extend_from_slice(&[ABSOLUTE, ABSOLUTE]);
        let letters = b"zPLR\0";
        let (head, layout) = (&self.bytes[..1], &self.bytes[self.layout.clone()]);
        let instructions = &self.bytes[self.instructions..];
        let bytes = [head, letters, layout, &[data.len() as u8], &data, instructions].concat();
        let start = head.len() + letters.len();
        Self {
            instructions: bytes.len() - instructions.len(),
            bytes: Cow::Owned(bytes),
            has_data: true,
            has_lsda: true,
            layout: start..start + layout.len(),
        }
    }
}

/// What a table of handlers begins with: LLVM's libunwind complains of those that do not begin as C++'s do.
#[cfg(feature = "cranelift")]
pub(crate) const HANDLERS: u32 = 0xff;

/// The words of a [`Handler`].
#[cfg(feature = "cranelift")]
pub(crate) const HANDLER_WORDS: usize = 4;

/// A handler of exceptions: the offset that the call returns to, kind and tag of what it handles,
/// and the handler's offset.
#[cfg(feature = "cranelift")]
pub(crate) type Handler = [u32; HANDLER_WORDS];

/// A function's frame description entry.
#[derive(Clone, Copy, Debug)]
struct Frame {
    start: u64,
    size: u64,
    /// The address of the language's table; 0 for none.
    lsda: u64,
    cie: u32,
    /// Where its instructions are.
    instructions: (u32, u32),
}

/// Call frame information of code in one allocation.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    cies: SmallVec<[Cie; 1]>,
    frames: Vec<Frame>,
    instructions: Vec<u8>,
    /// The tables of functions with handlers: [`HANDLERS`], how many, and then each.
    tables: Vec<u32>,
    /// Which functions have one, and where it begins.
    handled: Vec<(u32, u32)>,
}

impl Frames {
    /// For functions that are called, about `count` of them.
    #[cfg(feature = "cranelift")]
    pub(crate) fn of_functions(architecture: Architecture, count: usize) -> Self {
        Self {
            cies: SmallVec::from_buf([Cie::of_calls(architecture)]),
            frames: Vec::with_capacity(count),
            instructions: Vec::with_capacity((count + 1) * 12),
            ..Self::default()
        }
    }

    /// For code of known extent that is entered by calls and leaves by jumps without having used
    /// the stack: stubs.
    #[must_use]
    pub(crate) fn of_stubs(architecture: Architecture, code: Range<u64>) -> Self {
        Self::of_entries(architecture, code, &[])
    }

    /// As [`of_stubs`](Self::of_stubs), with instructions for how the stack changes.
    fn of_entries(architecture: Architecture, code: Range<u64>, instructions: &[u8]) -> Self {
        let mut frames = Self::default();
        let cie = frames.add_cie(Cie::of_calls(architecture));
        frames.add(cie, code.start, code.end - code.start, 0, instructions);
        frames
    }

    /// For a block of `count` trampolines, each of which pushes an index, where the architecture's
    /// do, and jumps to the end of the block.
    #[must_use]
    pub fn of_trampolines(architecture: Architecture, code: Range<u64>, count: u32) -> Self {
        use jit_linker::arch::stub::{TRAMPOLINE_SIZE, trampoline_push};
        Self::of_pushing(architecture, code, count, TRAMPOLINE_SIZE, trampoline_push(architecture))
    }

    /// For a block of `count` counted entries, which are alike.
    #[must_use]
    pub fn of_counted_entries(architecture: Architecture, code: Range<u64>, count: u32) -> Self {
        use jit_linker::arch::counted::{entry_push, entry_size};
        Self::of_pushing(architecture, code, count, entry_size(architecture), entry_push(architecture))
    }

    /// For a block of `count` pieces of `size` bytes, each of which pushes a word that ends after `pushed`, and jumps to
    /// the end of the block.
    fn of_pushing(
        architecture: Architecture,
        code: Range<u64>,
        count: u32,
        size: usize,
        pushed: Option<usize>,
    ) -> Self {
        let Some(pushed) = pushed else { return Self::of_stubs(architecture, code) };
        let advance = |by: usize| 0x40 | by as u8;
        let (before, after) = (advance(pushed), advance(size - pushed));
        let mut instructions = [before, 0x0e, 16, after, 0x0e, 8].repeat(count as usize);
        instructions.extend([0x0e, 16]);
        Self::of_entries(architecture, code, &instructions)
    }

    /// Adds the stubs of a link.
    pub(crate) fn add_stubs(&mut self, architecture: Architecture, stubs: &[Range<u64>]) {
        for stubs in stubs {
            let cie = self.add_cie(Cie::of_calls(architecture));
            self.add(cie, stubs.start, stubs.end - stubs.start, 0, &[]);
        }
    }

    fn add_cie(&mut self, cie: Cie) -> u32 {
        let known = self.cies.iter().position(|known| *known == cie);
        let index = known.unwrap_or_else(|| {
            self.cies.push(cie);
            self.cies.len() - 1
        });
        index as u32
    }

    /// Adds a function whose address will be known later: without it, it is not registered. Gives
    /// its index.
    #[cfg(feature = "cranelift")]
    pub(crate) fn add_unplaced(&mut self, size: u64, instructions: &[u8], handlers: &[Handler]) -> usize {
        let mut cie = 0;
        if !handlers.is_empty() {
            cie = self.add_cie(self.cies[0].with_handlers());
            self.handled.push((self.frames.len() as u32, self.tables.len() as u32));
            self.tables.extend_from_slice(&[HANDLERS, handlers.len() as u32]);
            self.tables.extend_from_slice(handlers.as_flattened());
        }
        self.add(cie, 0, size, 0, instructions);
        self.frames.len() - 1
    }

    /// Says where a function is.
    #[cfg(feature = "cranelift")]
    pub(crate) fn place(&mut self, index: usize, start: u64) {
        self.frames[index].start = start;
    }

    /// Adds a function. `lsda` counts only where the entry `cie` has a personality.
    fn add(&mut self, cie: u32, start: u64, size: u64, lsda: u64, instructions: &[u8]) {
        let from = self.instructions.len() as u32;
        self.instructions.extend_from_slice(instructions);
        self.frames.push(Frame { start, size, lsda, cie, instructions: (from, self.instructions.len() as u32) });
    }

    /// Whether there is nothing to register.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Of the function at an address: its common entry, without its length, for frames of which only the address is
    /// said, in an encoding; and its instructions.
    #[cfg(feature = "cranelift")]
    pub(crate) fn entry_at(&self, start: u64, encoding: u8) -> Option<(Vec<u8>, &[u8])> {
        let frame = self.frames.iter().find(|frame| frame.start == start)?;
        let common = self.cies.get(frame.cie as usize)?.without_language(encoding);
        let (from, to) = frame.instructions;
        Some((common, self.instructions.get(from as usize..to as usize)?))
    }

    /// The contents of an `.eh_frame` section for functions that have a place.
    #[cfg(feature = "cranelift")]
    pub(crate) fn to_section(&self) -> Vec<u8> {
        let placed: Vec<_> = self.frames.iter().filter(|frame| frame.start != 0).copied().collect();
        let mut section = self.encode(&placed);
        section.extend_from_slice(&[0; Table::TERMINATOR]);
        section
    }

    /// The contents of an `.eh_frame` section, without the terminator: position-independent. There is room for one.
    fn encode(&self, frames: &[Frame]) -> Vec<u8> {
        let size = self.size_bound(frames) + Table::TERMINATOR;
        let mut table = Encoder { bytes: Vec::with_capacity(size), cies: SmallVec::new() };
        table.cies.resize(self.cies.len(), None);
        for frame in frames {
            table.frame(self, frame);
        }
        table.bytes
    }

    fn size_bound(&self, frames: &[Frame]) -> usize {
        const FRAME: usize = 4 + 4 + 8 + 8 + 1 + 8 + 3;
        let cies: usize = self.cies.iter().map(|cie| cie.bytes.len() + 12).sum();
        let instructions: usize =
            frames.iter().map(|frame| (frame.instructions.1 - frame.instructions.0) as usize).sum();
        cies + frames.len() * FRAME + instructions
    }
}

/// Writes entries.
struct Encoder {
    bytes: Vec<u8>,
    /// Where those that were written are.
    cies: SmallVec<[Option<u32>; 4]>,
}

impl Encoder {
    fn frame(&mut self, all: &Frames, frame: &Frame) {
        let cie = self.cie(all, frame.cie);
        let start = self.begin();
        // The distance from this field back to the entry.
        self.bytes.extend_from_slice(&(start as u32 + 4 - cie).to_le_bytes());
        self.bytes.extend_from_slice(&frame.start.to_le_bytes());
        self.bytes.extend_from_slice(&frame.size.to_le_bytes());
        let cie = &all.cies[frame.cie as usize];
        if cie.has_lsda {
            self.bytes.push(size_of::<u64>() as u8);
            self.bytes.extend_from_slice(&frame.lsda.to_le_bytes());
        } else if cie.has_data {
            self.bytes.push(0);
        }
        let (from, to) = frame.instructions;
        self.bytes.extend_from_slice(&all.instructions[from as usize..to as usize]);
        self.end(start);
    }

    fn cie(&mut self, all: &Frames, index: u32) -> u32 {
        if let Some(at) = self.cies[index as usize] {
            return at;
        }
        let start = self.begin();
        self.bytes.extend_from_slice(&0u32.to_le_bytes());
        self.bytes.extend_from_slice(&all.cies[index as usize].bytes);
        self.end(start);
        self.cies[index as usize] = Some(start as u32);
        start as u32
    }

    fn begin(&mut self) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        start
    }

    /// Pads with `DW_CFA_nop`, and sets the length, which does not count itself.
    fn end(&mut self, start: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let length = (self.bytes.len() - start - 4) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// Unwind information that the process's unwinder knows. Dropped, it is withdrawn: to be done
/// before the memory of the code is used again.
#[derive(Debug)]
#[must_use = "dropped, it is withdrawn"]
pub struct Registration {
    kind: Option<Kind>,
    /// The tables that functions with handlers refer to.
    _tables: Box<[u32]>,
}

#[derive(Debug)]
enum Kind {
    /// A table of its own.
    Table(#[expect(dead_code, reason = "dropping it withdraws it")] Table),
    /// Parts of the tables of these regions.
    Parts(SmallVec<[region::Part; 1]>),
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(Kind::Parts(parts)) = &self.kind {
            region::withdraw(parts);
        }
    }
}

/// What an object's link has to tell the unwinder, gathered before its memory is final.
#[derive(Debug)]
pub(crate) struct ObjectFrames {
    architecture: Architecture,
    /// Where the `.eh_frame` section is, if there is one.
    section: Option<Range<u64>>,
    stubs: Vec<Range<u64>>,
}

impl ObjectFrames {
    pub(crate) fn of(allocated: &Allocated) -> Self {
        let graph = allocated.graph();
        let section = graph.section_with(SectionRole::EhFrame).map(|section| allocated.section_range(section));
        Self {
            architecture: graph.architecture(),
            // One of which nothing is left may be nowhere.
            section: section.filter(|range| !range.is_empty()),
            stubs: allocated.stub_ranges(),
        }
    }

    /// The frames, once the memory is final.
    ///
    /// # Errors
    ///
    /// When the section is malformed: as [`Frames::of_section`].
    pub(crate) fn read(self, code: &FinalizedAllocation) -> Result<Frames, EhFrameError> {
        let mut frames = match self.section {
            Some(range) => {
                let start = std::ptr::with_exposed_provenance(range.start as usize);
                // SAFETY: a section of the allocation, which is final, in this process, and alive.
                let section = unsafe { std::slice::from_raw_parts(start, (range.end - range.start) as usize) };
                Frames::of_section(section, range.start, &code.range(SegmentKind::Code))?
            }
            None => Frames::default(),
        };
        frames.add_stubs(self.architecture, &self.stubs);
        Ok(frames)
    }
}

/// Registers call frame information. No other code lies between the functions of `frames`.
pub fn register(mut frames: Frames) -> Registration {
    register_placed(&mut frames)
}

/// As [`register`], of frames that are not used any more.
pub(crate) fn register_placed(frames: &mut Frames) -> Registration {
    register_with(frames, runtime::tables())
}

fn register_with(frames: &mut Frames, tables: Tables) -> Registration {
    let handlers = std::mem::take(&mut frames.tables).into_boxed_slice();
    for (frame, table) in &frames.handled {
        frames.frames[*frame as usize].lsda = handlers[*table as usize..].as_ptr().expose_provenance() as u64;
    }
    frames.frames.retain(|frame| frame.start != 0);
    if frames.is_empty() {
        return Registration { kind: None, _tables: handlers };
    }
    let kind = match tables {
        Tables::Disjoint => {
            let bytes = frames.encode(&frames.frames);
            Kind::Table(Table::register(bytes, Unwinder::host()))
        }
        Tables::Listed => Kind::Parts(region::register(frames)),
    };
    Registration { kind: Some(kind), _tables: handlers }
}
