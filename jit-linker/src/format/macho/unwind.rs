//! `__eh_frame`: what its records refer to. Assemblers store distances between sections without
//! relocations, as they are in the object.

use object::LittleEndian;
use object::read::macho::Section as _;
use rustc_hash::FxHashMap;

use super::Reader;
use super::section::is_eh_frame;
use crate::arch::{Architecture, aarch64, x86_64};
use crate::format::eh_frame::{CIE_POINTER, FUNCTION, Record, RecordKind};
use crate::format::{ParseError, Parsed};
use crate::graph::{BlockId, Definition, Edge, EdgeKind, SymbolId};

/// The functions that records describe, in order: their blocks, and the offsets there.
pub(super) type Described = Vec<(BlockId, u32)>;

/// The edges that records have by relocations, in order: their places, and where they are in the list of all.
type Known = Vec<((BlockId, u32), usize)>;

fn known_at(known: &Known, block: BlockId, offset: u32) -> Option<usize> {
    if known.is_empty() {
        return None;
    }
    let behind = known.partition_point(|(place, _)| *place <= (block, offset));
    let (place, index) = known.get(behind.checked_sub(1)?)?;
    (*place == (block, offset)).then_some(*index)
}

/// What an FDE has to know of its CIE.
#[derive(Clone, Copy)]
struct Cie {
    symbol: SymbolId,
    /// How addresses of functions are stored.
    function: Pointer,
    /// How addresses of language-specific data are, if there are any.
    lsda: Option<Pointer>,
    /// Whether the length of the augmentation data is stored.
    is_sized: bool,
}

/// How an address is stored.
#[derive(Clone, Copy)]
struct Pointer {
    /// Bytes, if the encoding is understood.
    size: Option<usize>,
    is_relative: bool,
    /// What the field becomes, if there is such a kind.
    kind: Option<EdgeKind>,
}

impl Pointer {
    fn of(encoding: u8, kinds: &Kinds) -> Self {
        let (size, is_relative) = (pointer_size(encoding), encoding & 0x70 == 0x10);
        let kind = match (is_relative, size) {
            (true, Some(4)) => Some(kinds.delta_32),
            (true, Some(8)) => Some(kinds.delta_64),
            (false, Some(8)) => Some(kinds.pointer_64),
            _ => None,
        };
        Self { size, is_relative, kind }
    }
}

/// A record's block and its bytes.
#[derive(Clone, Copy)]
struct Content<'data> {
    block: BlockId,
    /// Its address in the object.
    address: u64,
    bytes: &'data [u8],
}

/// The kinds for distances and addresses.
pub(super) struct Kinds {
    pub(super) delta_32: EdgeKind,
    delta_64: EdgeKind,
    pointer_64: EdgeKind,
    pub(super) back_32: EdgeKind,
    pub(super) got_delta_32: EdgeKind,
}

impl Kinds {
    pub(super) fn of(architecture: Architecture) -> Self {
        let [delta_32, delta_64, pointer_64, back_32, got_delta_32] = match architecture {
            Architecture::X86_64 => {
                use x86_64::EdgeKind::{Delta32, Delta64, GotDelta32, NegDelta32, Pointer64};
                [Delta32, Delta64, Pointer64, NegDelta32, GotDelta32].map(EdgeKind::X86_64)
            }
            Architecture::Aarch64 => {
                use aarch64::EdgeKind::{Delta32, Delta64, GotDelta32, NegDelta32, Pointer64};
                [Delta32, Delta64, Pointer64, NegDelta32, GotDelta32].map(EdgeKind::Aarch64)
            }
        };
        Self { delta_32, delta_64, pointer_64, back_32, got_delta_32 }
    }
}

impl<'data> Reader<'data> {
    /// Adds the edges that no relocation tells of, and attaches records to their functions.
    pub(super) fn add_unwind_edges(&mut self, edges: &mut Vec<Edge>) -> Parsed<Described> {
        let mut described = Described::new();
        let Some(section) = self.sections.iter().position(|header| is_eh_frame(header)) else { return Ok(described) };
        let Some(atoms) = &self.atoms[section] else { return Ok(described) };
        let bytes = self.sections[section].data(LittleEndian, self.data).unwrap_or_default();
        let of_records = self.record_edges.clone();
        let mut known: Known = of_records.map(|index| ((edges[index].block, edges[index].offset), index)).collect();
        known.sort_unstable();
        let kinds = Kinds::of(self.graph.architecture());
        let mut cies = FxHashMap::default();
        // Records of one CIE come together.
        let mut last = None;
        let (address, blocks): (_, Vec<_>) = (atoms.address, atoms.blocks().collect());
        self.graph.attached.reserve(blocks.len());
        described.reserve(blocks.len());
        // Each record is an atom.
        let records = self.records.take().unwrap_or_default();
        for (record, block) in records.iter().zip(blocks) {
            let bytes = &bytes[record.start as usize..][..record.size as usize];
            let content = Content { block, address: address + u64::from(record.start), bytes };
            if [CIE_POINTER, 0].iter().any(|offset| known_at(&known, content.block, *offset).is_some()) {
                return Err(
                    self.malformed(format!("a relocation changes the record at {:#x} of .eh_frame", record.start))
                );
            }
            match record.kind {
                RecordKind::Cie => {
                    let symbol = self.graph.define(None, content.block, 0, 0);
                    let cie = read_cie(content.bytes, symbol, &kinds).ok_or_else(|| self.bad_record(record))?;
                    cies.insert(record.start, cie);
                }
                RecordKind::Fde { cie: start } => {
                    let known_cie = last.filter(|(last, _)| *last == start).map(|(_, cie)| cie);
                    let Some(cie) = known_cie.or_else(|| cies.get(&start).copied()) else {
                        return Err(self.malformed(format!("an FDE of .eh_frame has no CIE at {start:#x}")));
                    };
                    last = Some((start, cie));
                    let function = self.add_fde_edges(record, content, &cie, &kinds, &known, edges)?;
                    described.extend(function);
                }
            }
        }
        if !described.is_sorted() {
            described.sort_unstable();
        }
        Ok(described)
    }

    /// Returns the function that a record is for, if it is in the object.
    fn add_fde_edges(
        &mut self,
        record: &Record,
        content: Content<'data>,
        cie: &Cie,
        kinds: &Kinds,
        known: &Known,
        edges: &mut Vec<Edge>,
    ) -> Parsed<Option<(BlockId, u32)>> {
        let Content { block, bytes, .. } = content;
        edges.push(Edge { block, offset: CIE_POINTER, kind: kinds.back_32, target: cie.symbol, addend: 0 });
        let size = cie.function.size.ok_or_else(|| self.bad_record(record))?;
        let function = match known_at(known, block, FUNCTION) {
            Some(index) => {
                let edge = &mut edges[index];
                if let Definition::Block { block, offset } = self.graph.symbol(edge.target).definition {
                    let is_address = [kinds.delta_32, kinds.delta_64, kinds.pointer_64].contains(&edge.kind);
                    // A function whose label is no symbol is told by its distance from the symbol before it.
                    let offset = i64::from(offset).checked_add(edge.addend).filter(|_| is_address);
                    let offset = offset.and_then(|offset| u32::try_from(offset).ok());
                    let size = self.graph.block(block).size;
                    let offset = offset.filter(|offset| *offset <= size).ok_or_else(|| self.bad_record(record))?;
                    // Whichever definition of its name is taken: the record is for this one.
                    (edge.target, edge.addend) = (self.graph.define(None, block, offset, 0), 0);
                }
                Some(edge.target)
            }
            None => self.add_pointer(record, content, FUNCTION, cie.function, edges)?,
        };
        if let Some(pointer) = cie.lsda
            && cie.is_sized
        {
            let mut at = FUNCTION as usize + 2 * size;
            let length = read_uleb(bytes, &mut at).ok_or_else(|| self.bad_record(record))?;
            if length > 0 && known_at(known, block, at as u32).is_none() {
                self.add_pointer(record, content, at as u32, pointer, edges)?;
            }
        }
        let Some(Definition::Block { block: host, offset }) = function.map(|id| self.graph.symbol(id).definition)
        else {
            return Ok(None);
        };
        self.graph.attached.push((host, block));
        Ok(Some((host, offset)))
    }

    /// Adds the edge of an address in a record, and returns its target. Zero is no address.
    fn add_pointer(
        &mut self,
        record: &Record,
        content: Content<'data>,
        offset: u32,
        pointer: Pointer,
        edges: &mut Vec<Edge>,
    ) -> Parsed<Option<SymbolId>> {
        let bytes = pointer.size.and_then(|size| content.bytes.get(offset as usize..)?.get(..size));
        let Some(bytes) = bytes else { return Err(self.bad_record(record)) };
        let value = match *bytes {
            [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
            _ => i64::from_le_bytes(bytes.try_into().unwrap_or_default()),
        };
        if value == 0 && offset != FUNCTION {
            return Ok(None);
        }
        let origin = if pointer.is_relative { content.address + u64::from(offset) } else { 0 };
        let kind = pointer.kind.ok_or_else(|| self.bad_record(record))?;
        let address = origin.wrapping_add_signed(value);
        let Some((section, at)) = self.section_at(address) else {
            let what =
                format!("the record at {:#x} of .eh_frame is about {address:#x}, where nothing is", record.start);
            return Err(self.malformed(what));
        };
        let (anchor, addend) = self.anonymous(section, at)?;
        let (target, addend) = if offset == FUNCTION { (self.at_offset(anchor, addend), 0) } else { (anchor, addend) };
        edges.push(Edge { block: content.block, offset, kind, target, addend });
        Ok(Some(target))
    }

    /// A symbol so many bytes behind a block's first. A function is one, with an offset of its own.
    fn at_offset(&mut self, anchor: SymbolId, addend: i64) -> SymbolId {
        match (self.graph.symbol(anchor).definition, u32::try_from(addend)) {
            (Definition::Block { block, .. }, Ok(offset)) if offset > 0 => self.graph.define(None, block, offset, 0),
            _ => anchor,
        }
    }

    fn bad_record(&self, record: &Record) -> Box<ParseError> {
        self.malformed(format!("the record at {:#x} of .eh_frame is not understood", record.start))
    }
}

/// Bytes of an address in an encoding (LSB, "DWARF Exception Header Encoding"), if it is one that
/// compilers write: of 4 or 8 bytes, absolute or from the field on.
fn pointer_size(encoding: u8) -> Option<usize> {
    match (encoding & 0x0f, encoding & 0x70) {
        (0x00 | 0x04 | 0x0c, 0x00 | 0x10) => Some(8),
        (0x03 | 0x0b, 0x00 | 0x10) => Some(4),
        _ => None,
    }
}

fn read_cie(bytes: &[u8], symbol: SymbolId, kinds: &Kinds) -> Option<Cie> {
    let version = *bytes.get(8)?;
    let augmentation = bytes.get(9..)?.split(|byte| *byte == 0).next()?;
    let mut at = 9 + augmentation.len() + 1;
    let is_sized = augmentation.first() == Some(&b'z');
    let mut cie = Cie { symbol, function: Pointer::of(0, kinds), lsda: None, is_sized };
    read_uleb(bytes, &mut at)?;
    read_uleb(bytes, &mut at)?;
    match version {
        1 => at += 1,
        _ => _ = read_uleb(bytes, &mut at)?,
    }
    if !cie.is_sized {
        return augmentation.is_empty().then_some(cie);
    }
    read_uleb(bytes, &mut at)?;
    for kind in &augmentation[1..] {
        match kind {
            b'R' => cie.function = Pointer::of(take(bytes, &mut at)?, kinds),
            b'L' => {
                let encoding = Some(take(bytes, &mut at)?).filter(|encoding| *encoding != 0xff);
                cie.lsda = encoding.map(|encoding| Pointer::of(encoding, kinds));
            }
            b'P' => {
                let encoding = take(bytes, &mut at)?;
                at += pointer_size(encoding)?;
            }
            // A signal's frame; return addresses signed with the second key.
            b'S' | b'B' => {}
            _ => return None,
        }
    }
    Some(cie)
}

fn take(bytes: &[u8], at: &mut usize) -> Option<u8> {
    let byte = *bytes.get(*at)?;
    *at += 1;
    Some(byte)
}

/// A LEB128 number; of a signed one, its bits.
fn read_uleb(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, at)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
