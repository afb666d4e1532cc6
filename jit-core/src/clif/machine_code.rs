//! Functions that were compiled at definition, packed until they are linked.

use std::ops::Range;
use std::sync::Arc;

use cranelift_codegen::binemit::Reloc;
use cranelift_module::{ModuleReloc, ModuleRelocTarget};
use gimli::leb128::write::Leb128;
use gimli::{EndianSlice, LittleEndian, Reader};
use memmap2::MmapMut;
use rustc_hash::FxHashMap;
use smallvec::{Array, SmallVec};

use super::module::Body;
use crate::platform::code::Details;

/// The code of a module's functions, with what belongs to it: of each one run of bytes.
///
/// Nothing is ever moved: reallocating what grows with a module would cost more, in time and in
/// holes in the heap, than the rest of defining a function. A chunk goes when the last of its runs
/// was taken: what is linked does not stand in memory twice.
#[derive(Default)]
pub(crate) struct MachineCode {
    chunks: SmallVec<[Chunk; 1]>,
    /// The kinds of relocations there are.
    kinds: Vec<Reloc>,
    /// What relocations refer to that is no declaration of the module's.
    targets: Vec<ModuleRelocTarget>,
    /// What the compiler said of functions, of which it said anything.
    pub(crate) details: FxHashMap<u32, Details>,
}

struct Chunk {
    /// None once all runs were taken.
    bytes: Option<Arc<Bytes>>,
    /// Runs that nobody has taken.
    left: u32,
}

/// The memory of a chunk.
enum Bytes {
    Heap(Vec<u8>),
    /// Goes back to the system at once; freed memory of the heap would stay.
    Mapped {
        map: MmapMut,
        len: usize,
    },
}

/// Where a compiled function's run is.
pub(crate) struct CompiledBody {
    chunk: u32,
    start: u32,
}

/// A compiled function's run: numbers, code, call frame instructions and relocations, in this order. Numbers are LEB128:
/// most are small, and there are as many runs as functions.
struct Run<'a> {
    /// The whole chunk.
    chunk: &'a [u8],
    code: Range<usize>,
    frame: Range<usize>,
    relocs: Range<usize>,
    align: u64,
}

/// A compiled function, taken out to be linked.
pub(crate) struct TakenCode {
    bytes: Arc<Bytes>,
    code: Range<usize>,
    frame: Range<usize>,
    align: u64,
    pub(crate) relocs: SmallVec<[ModuleReloc; 4]>,
    /// What the compiler said of it.
    pub(crate) details: Option<Box<Details>>,
}

/// What a relocation's index means, if it is none of a declaration's namespaces: one of `targets`.
const LISTED: u8 = u8::MAX;

impl MachineCode {
    /// Of the first chunk, which is all that one function needs. Each next one is twice as large as the last.
    const LEAST_BYTES: usize = 512;
    const MOST_BYTES: usize = 64 << 10;

    /// Adds a function. Nothing is added once something was taken.
    pub(crate) fn add(&mut self, code: &[u8], frame: &[u8], relocs: &[ModuleReloc], align: u64) -> Body {
        let mut encoded = Numbers::new();
        relocs.iter().for_each(|reloc| self.encode(reloc, &mut encoded));
        let mut head = Numbers::new();
        for number in [code.len() as u64, frame.len() as u64, encoded.len() as u64, align] {
            push_number(&mut head, Leb128::unsigned(number));
        }
        let parts = [&head[..], code, frame, &encoded[..]];
        let len = parts.iter().map(|part| part.len()).sum();
        let last = self.chunks.last().and_then(|chunk| chunk.bytes.as_ref());
        if last.is_none_or(|bytes| bytes.room() < len) {
            let capacity = last.map_or(Self::LEAST_BYTES, |bytes| 2 * bytes.capacity());
            let bytes = Bytes::with_capacity(capacity.min(Self::MOST_BYTES).max(len));
            self.chunks.push(Chunk { bytes: Some(Arc::new(bytes)), left: 0 });
        }
        let index = self.chunks.len() - 1;
        let chunk = &mut self.chunks[index];
        chunk.left += 1;
        let mut start = 0;
        if let Some(bytes) = chunk.bytes.as_mut().and_then(Arc::get_mut) {
            start = bytes.len();
            parts.into_iter().for_each(|part| bytes.push(part));
        }
        // A chunk is small, or one function's, which Cranelift keeps below 4 GiB.
        Body::Compiled(CompiledBody { chunk: index as u32, start: start as u32 })
    }

    fn encode(&mut self, reloc: &ModuleReloc, to: &mut Numbers) {
        let known = self.kinds.iter().position(|kind| *kind == reloc.kind);
        let kind = known.unwrap_or_else(|| {
            self.kinds.push(reloc.kind);
            self.kinds.len() - 1
        }) as u8;
        let (index, meaning) = match &reloc.name {
            ModuleRelocTarget::User { namespace, index } if *namespace < u32::from(LISTED) => {
                (*index, *namespace as u8)
            }
            other => {
                self.targets.push(other.clone());
                (self.targets.len() as u32 - 1, LISTED)
            }
        };
        to.push(kind);
        to.push(meaning);
        for number in
            [Leb128::unsigned(index.into()), Leb128::unsigned(reloc.offset.into()), Leb128::signed(reloc.addend)]
        {
            push_number(to, number);
        }
    }

    fn decode(&self, from: &mut EndianSlice<'_, LittleEndian>) -> Option<ModuleReloc> {
        let (kind, meaning) = (from.read_u8().ok()?, from.read_u8().ok()?);
        let index = from.read_uleb128_u32().ok()?;
        let name = match meaning {
            LISTED => self.targets.get(index as usize)?.clone(),
            namespace => ModuleRelocTarget::User { namespace: namespace.into(), index },
        };
        let kind = *self.kinds.get(usize::from(kind))?;
        let offset = from.read_uleb128_u32().ok()?;
        let addend = from.read_sleb128().ok()?;
        Some(ModuleReloc { offset, kind, name, addend })
    }

    /// A function's relocations, as long as it was not taken.
    pub(crate) fn relocs(&self, body: &CompiledBody) -> impl Iterator<Item = ModuleReloc> {
        let bytes = self.chunks.get(body.chunk as usize).and_then(|chunk| Some(chunk.bytes.as_ref()?.get()));
        let run = bytes.and_then(|bytes| Run::at(bytes, body.start));
        let records = run.as_ref().and_then(|run| run.chunk.get(run.relocs.clone())).unwrap_or_default();
        let mut records = EndianSlice::new(records, LittleEndian);
        std::iter::from_fn(move || self.decode(&mut records))
    }

    /// Takes the module's function `index` out.
    pub(crate) fn take(&mut self, index: u32, body: CompiledBody) -> Option<TakenCode> {
        let relocs = self.relocs(&body).collect();
        let chunk = self.chunks.get_mut(body.chunk as usize)?;
        let Run { code, frame, align, .. } = Run::at(chunk.bytes.as_ref()?.get(), body.start)?;
        chunk.left = chunk.left.saturating_sub(1);
        let bytes = if chunk.left == 0 { chunk.bytes.take()? } else { Arc::clone(chunk.bytes.as_ref()?) };
        let details = self.details.remove(&index).map(Box::new);
        Some(TakenCode { bytes, code, frame, align, relocs, details })
    }
}

/// Encoded numbers of one function.
type Numbers = SmallVec<[u8; 128]>;

/// Appends a number, which mostly has one byte: not worth a copy of memory.
pub(super) fn push_number<A: Array<Item = u8>>(to: &mut SmallVec<A>, number: Leb128) {
    number.bytes().iter().for_each(|byte| to.push(*byte));
}

impl<'a> Run<'a> {
    fn at(chunk: &'a [u8], start: u32) -> Option<Self> {
        let mut rest = EndianSlice::new(chunk.get(start as usize..)?, LittleEndian);
        let mut number = || rest.read_uleb128().ok();
        let (code, frame, relocs, align) = (number()?, number()?, number()?, number()?);
        let code_start = chunk.len() - rest.len();
        let code = code_start..code_start.checked_add(usize::try_from(code).ok()?)?;
        let frame = code.end..code.end.checked_add(usize::try_from(frame).ok()?)?;
        let relocs = frame.end..frame.end.checked_add(usize::try_from(relocs).ok()?)?;
        Some(Self { chunk, code, frame, relocs, align })
    }
}

impl TakenCode {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get().get(self.code.clone()).unwrap_or_default()
    }

    /// The call frame instructions of the function; none if it came as bytes.
    pub(crate) fn frame(&self) -> &[u8] {
        self.bytes.get().get(self.frame.clone()).unwrap_or_default()
    }

    pub(crate) fn align(&self) -> u64 {
        self.align
    }
}

impl Bytes {
    /// Below this a mapping would cost more than it saves.
    const LEAST_MAPPED: usize = 64 << 10;

    fn with_capacity(capacity: usize) -> Self {
        if capacity >= Self::LEAST_MAPPED
            && let Ok(map) = MmapMut::map_anon(capacity)
        {
            return Self::Mapped { map, len: 0 };
        }
        Self::Heap(Vec::with_capacity(capacity))
    }

    fn get(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Mapped { map, len } => &map[..*len],
        }
    }

    fn len(&self) -> usize {
        self.get().len()
    }

    fn capacity(&self) -> usize {
        match self {
            Self::Heap(bytes) => bytes.capacity(),
            Self::Mapped { map, .. } => map.len(),
        }
    }

    fn room(&self) -> usize {
        self.capacity() - self.len()
    }

    /// Appends what there is room for.
    fn push(&mut self, more: &[u8]) {
        match self {
            Self::Heap(bytes) => bytes.extend_from_slice(more),
            Self::Mapped { map, len } => {
                map[*len..*len + more.len()].copy_from_slice(more);
                *len += more.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cranelift_codegen::ir::LibCall;

    use super::*;

    fn describe(relocs: impl IntoIterator<Item = ModuleReloc>) -> Vec<String> {
        let describe = |reloc: ModuleReloc| format!("{} {} {} {}", reloc.offset, reloc.kind, reloc.name, reloc.addend);
        relocs.into_iter().map(describe).collect()
    }

    #[test]
    fn what_is_taken_is_what_was_added() {
        let mut code = MachineCode::default();
        let reloc = |offset, name| ModuleReloc { offset, kind: Reloc::X86CallPCRel4, name, addend: -4 };
        let contents = |index: u32| {
            let user = ModuleRelocTarget::User { namespace: index % 3, index };
            let strange = ModuleRelocTarget::User { namespace: 1 << 20, index };
            let names = [user, ModuleRelocTarget::LibCall(LibCall::CeilF64), strange];
            let relocs: Vec<_> = names.into_iter().take(index as usize % 4).map(|name| reloc(index, name)).collect();
            (vec![index as u8; 64 + index as usize], vec![!(index as u8); index as usize % 5], relocs)
        };
        let bodies: Vec<_> = (0..3000)
            .map(|index| {
                let (bytes, frame, relocs) = contents(index);
                code.add(&bytes, &frame, &relocs, 32)
            })
            .collect();
        assert!(code.chunks.iter().any(|chunk| matches!(chunk.bytes.as_deref(), Some(Bytes::Mapped { .. }))));
        for (index, body) in bodies.into_iter().enumerate() {
            let Body::Compiled(body) = body else { panic!("not compiled") };
            let (bytes, frame, relocs) = contents(index as u32);
            let relocs = describe(relocs);
            assert_eq!(describe(code.relocs(&body)), relocs);
            let taken = code.take(0, body).expect("it was not taken before");
            assert_eq!((taken.bytes(), taken.frame(), taken.align()), (&*bytes, &*frame, 32));
            assert_eq!(describe(taken.relocs), relocs);
        }
        assert!(code.chunks.iter().all(|chunk| chunk.bytes.is_none()), "all chunks are gone");
    }
}
