//! Functions that were compiled at definition, packed until they are linked.

use std::sync::Arc;

use cranelift_codegen::binemit::Reloc;
use cranelift_module::{ModuleReloc, ModuleRelocTarget};
use memmap2::MmapMut;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::module::Body;
use crate::platform::code::Details;

/// The code of a module's functions, with what belongs to it: of each one run of bytes.
///
/// Nothing is ever moved: reallocating what grows with a module would cost more, in time and in
/// holes in the heap, than the rest of defining a function. A chunk goes when the last of its runs
/// was taken: what is linked does not stand in memory twice.
#[derive(Default)]
pub(crate) struct MachineCode {
    chunks: Vec<Chunk>,
    /// The kinds of relocations there are.
    kinds: Vec<Reloc>,
    /// What relocations refer to that is no declaration of the module's.
    targets: Vec<ModuleRelocTarget>,
    /// What the compiler said of functions, of which it said anything.
    pub(crate) details: FxHashMap<u32, Details>,
}

struct Chunk {
    bytes: Arc<Bytes>,
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

/// A compiled function's place: code, call frame instructions and relocations, in this order.
pub(crate) struct CompiledBody {
    chunk: u32,
    start: u32,
    code_len: u32,
    frame_len: u32,
    reloc_count: u32,
    align: u32,
}

/// A compiled function, taken out to be linked.
pub(crate) struct TakenCode {
    bytes: Arc<Bytes>,
    body: CompiledBody,
    pub(crate) relocs: SmallVec<[ModuleReloc; 4]>,
    /// What the compiler said of it.
    pub(crate) details: Option<Box<Details>>,
}

/// A relocation in a run: offset, addend, index, kind, and what the index means.
const RELOC_SIZE: usize = 4 + 8 + 4 + 1 + 1;

/// What a relocation's index means, if it is none of a declaration's namespaces: one of `targets`.
const LISTED: u8 = u8::MAX;

impl MachineCode {
    /// Of the first chunk. Each next one is twice as large as the last.
    const LEAST_BYTES: usize = 4 << 10;
    const MOST_BYTES: usize = 256 << 10;

    /// Adds a function. Nothing is added once something was taken.
    pub(crate) fn add(&mut self, code: &[u8], frame: &[u8], relocs: &[ModuleReloc], align: u64) -> Body {
        let relocs: SmallVec<[[u8; RELOC_SIZE]; 8]> = relocs.iter().map(|reloc| self.encode(reloc)).collect();
        let len = code.len() + frame.len() + relocs.len() * RELOC_SIZE;
        let last = self.chunks.last().map(|chunk| &chunk.bytes);
        if last.is_none_or(|bytes| bytes.room() < len) {
            let capacity = last.map_or(Self::LEAST_BYTES, |bytes| 2 * bytes.capacity());
            let bytes = Bytes::with_capacity(capacity.min(Self::MOST_BYTES).max(len));
            self.chunks.push(Chunk { bytes: Arc::new(bytes), left: 0 });
        }
        let index = self.chunks.len() - 1;
        let chunk = &mut self.chunks[index];
        chunk.left += 1;
        let start = chunk.bytes.len();
        if let Some(bytes) = Arc::get_mut(&mut chunk.bytes) {
            bytes.push(code);
            bytes.push(frame);
            relocs.iter().for_each(|reloc| bytes.push(reloc));
        }
        // A chunk is small, or one function's, which Cranelift keeps below 4 GiB.
        Body::Compiled(CompiledBody {
            chunk: index as u32,
            start: start as u32,
            code_len: code.len() as u32,
            frame_len: frame.len() as u32,
            reloc_count: relocs.len() as u32,
            align: u32::try_from(align).unwrap_or(u32::MAX),
        })
    }

    fn encode(&mut self, reloc: &ModuleReloc) -> [u8; RELOC_SIZE] {
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
        let mut record = [0; RELOC_SIZE];
        record[..4].copy_from_slice(&reloc.offset.to_le_bytes());
        record[4..12].copy_from_slice(&reloc.addend.to_le_bytes());
        record[12..16].copy_from_slice(&index.to_le_bytes());
        record[16..].copy_from_slice(&[kind, meaning]);
        record
    }

    fn decode(&self, record: &[u8; RELOC_SIZE]) -> Option<ModuleReloc> {
        let (offset, rest) = record.split_first_chunk()?;
        let (addend, rest) = rest.split_first_chunk()?;
        let (index, rest) = rest.split_first_chunk()?;
        let (index, &[kind, meaning]) = (u32::from_le_bytes(*index), rest) else { return None };
        let name = match meaning {
            LISTED => self.targets.get(index as usize)?.clone(),
            namespace => ModuleRelocTarget::User { namespace: namespace.into(), index },
        };
        let kind = *self.kinds.get(usize::from(kind))?;
        Some(ModuleReloc { offset: u32::from_le_bytes(*offset), kind, name, addend: i64::from_le_bytes(*addend) })
    }

    /// A function's relocations, as long as it was not taken.
    pub(crate) fn relocs(&self, body: &CompiledBody) -> impl Iterator<Item = ModuleReloc> {
        let bytes = self.chunks.get(body.chunk as usize).map(|chunk| &*chunk.bytes);
        let records = bytes.map_or(&[][..], |bytes| body.part(bytes, body.relocs()));
        records.as_chunks().0.iter().filter_map(|record| self.decode(record))
    }

    /// Takes the module's function `index` out.
    pub(crate) fn take(&mut self, index: u32, body: CompiledBody) -> Option<TakenCode> {
        let relocs = self.relocs(&body).collect();
        let chunk = self.chunks.get_mut(body.chunk as usize)?;
        chunk.left = chunk.left.saturating_sub(1);
        let bytes = if chunk.left == 0 { std::mem::take(&mut chunk.bytes) } else { Arc::clone(&chunk.bytes) };
        let details = self.details.remove(&index).map(Box::new);
        Some(TakenCode { bytes, body, relocs, details })
    }
}

impl CompiledBody {
    fn code(&self) -> std::ops::Range<usize> {
        0..self.code_len as usize
    }

    fn frame(&self) -> std::ops::Range<usize> {
        let start = self.code().end;
        start..start + self.frame_len as usize
    }

    fn relocs(&self) -> std::ops::Range<usize> {
        let start = self.frame().end;
        start..start + self.reloc_count as usize * RELOC_SIZE
    }

    fn part<'a>(&self, chunk: &'a Bytes, part: std::ops::Range<usize>) -> &'a [u8] {
        let start = self.start as usize;
        chunk.get().get(start + part.start..start + part.end).unwrap_or_default()
    }
}

impl TakenCode {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.body.part(&self.bytes, self.body.code())
    }

    /// The call frame instructions of the function; none if it came as bytes.
    pub(crate) fn frame(&self) -> &[u8] {
        self.body.part(&self.bytes, self.body.frame())
    }

    pub(crate) fn align(&self) -> u64 {
        self.body.align.into()
    }
}

impl Default for Bytes {
    fn default() -> Self {
        Self::Heap(Vec::new())
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
        assert!(code.chunks.iter().any(|chunk| matches!(*chunk.bytes, Bytes::Mapped { .. })));
        for (index, body) in bodies.into_iter().enumerate() {
            let Body::Compiled(body) = body else { panic!("not compiled") };
            let (bytes, frame, relocs) = contents(index as u32);
            let relocs = describe(relocs);
            assert_eq!(describe(code.relocs(&body)), relocs);
            let taken = code.take(0, body).expect("it was not taken before");
            assert_eq!((taken.bytes(), taken.frame(), taken.align()), (&*bytes, &*frame, 32));
            assert_eq!(describe(taken.relocs), relocs);
        }
        assert!(code.chunks.iter().all(|chunk| chunk.bytes.capacity() == 0), "all chunks are gone");
    }
}
