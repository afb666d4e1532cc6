//! Compact unwinding information (`__LD,__compact_unwind`), turned into the DWARF records that
//! hosts unwind by. An encoding says how a function's frame is once its prologue is over.

use object::LittleEndian;
use object::macho::*;
use object::read::macho::Section as _;
use rustc_hash::FxHashMap;

use super::Reader;
use super::section::full_name;
use super::unwind::Kinds;
use crate::arch::Architecture;
use crate::format::eh_frame::{CIE_POINTER, FUNCTION};
use crate::format::{ParseError, Parsed};
use crate::graph::{BlockId, Definition, Edge, Section, SectionId, SectionRole, Symbol, SymbolId};
use crate::memory::SegmentKind;

/// Bytes of an entry: function 8, length 4, encoding 4, personality 8, language-specific data 8.
const ENTRY: usize = 32;
const PERSONALITY: usize = 16;
const LSDA: usize = 24;

/// What the DWARF records of a frame say.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    /// The register and the distance to the address before the call (the CFA).
    base: (u8, u32),
    /// Registers, with how far below the CFA they are, in words.
    saved: Vec<(u8, u32)>,
}

/// A pointer of an entry.
#[derive(Clone, Copy, Debug)]
struct Pointer<'data> {
    relocation: &'data Relocation<LittleEndian>,
    /// What the object has there.
    value: u64,
}

impl Pointer<'_> {
    /// Its offset in the section.
    fn at(&self) -> usize {
        self.relocation.r_word0.get(LittleEndian) as usize
    }
}

impl<'data> Reader<'data> {
    fn compact_section(&self) -> Option<&'data Section64<LittleEndian>> {
        let is_compact = |header: &&Section64<LittleEndian>| {
            header.segment_name() == b"__LD" && header.name() == b"__compact_unwind"
        };
        self.sections.iter().copied().find(is_compact)
    }

    /// How many edges the records can have that [`add_compact_unwind`](Self::add_compact_unwind) adds.
    pub(super) fn compact_edges(&self) -> usize {
        let size = self.compact_section().map_or(0, |header| header.size(LittleEndian));
        // To the CIE, the function and its language-specific data. No section is larger than the object.
        3 * (size.min(self.data.len() as u64) as usize / ENTRY)
    }

    /// Adds records for the functions that are not `described` by records of the object.
    pub(super) fn add_compact_unwind(&mut self, described: &[(BlockId, u32)], edges: &mut Vec<Edge>) -> Parsed<()> {
        let Some(header) = self.compact_section() else { return Ok(()) };
        let bytes = header.data(LittleEndian, self.data);
        let bytes =
            bytes.map_err(|()| self.malformed(format!("section {} ends beyond the file", full_name(header))))?;
        self.claim(bytes.len() as u64)?;
        let mut pointers = self.compact_pointers(header, bytes)?.into_iter().peekable();
        let mut cies = FxHashMap::default();
        // Both tables have the functions in order, as a rule.
        let mut next = 0;
        for (index, entry) in bytes.chunks_exact(ENTRY).enumerate() {
            let [mut function, mut personality, mut lsda] = [None; 3];
            while let Some(pointer) = pointers.next_if(|pointer| pointer.at() < (index + 1) * ENTRY) {
                match pointer.at() % ENTRY {
                    0 => function = Some(pointer),
                    PERSONALITY => personality = Some(pointer),
                    LSDA => lsda = Some(pointer),
                    _ => {}
                }
            }
            let word = |offset: usize| {
                let bytes: [u8; 4] = entry[offset..].first_chunk().copied().unwrap_or_default();
                u32::from_le_bytes(bytes)
            };
            let Some(function) = function else {
                return Err(self.malformed(format!("entry {index} of __compact_unwind is about no function")));
            };
            let Some((block, offset)) = self.place_of(function)? else { continue };
            let function_place = (block, offset);
            if described.get(next) != Some(&function_place) {
                next = described.partition_point(|place| *place < function_place);
            }
            if described.get(next) == Some(&function_place) {
                next += 1;
                continue;
            }
            let code = self.graph.bytes(self.graph.block(block)).and_then(|bytes| bytes.get(offset as usize..));
            let frame = match self.graph.architecture() {
                Architecture::X86_64 => x86_64_frame(word(12), code.unwrap_or_default()),
                Architecture::Aarch64 => arm64_frame(word(12)),
            };
            let Some(frame) = frame else { continue };
            let personality = match personality {
                Some(pointer) => Some(self.target_of(pointer)?.0),
                None => None,
            };
            let cie = match cies.get(&personality) {
                Some(cie) => *cie,
                None => {
                    let cie = self.add_cie(header, personality, edges)?;
                    cies.insert(personality, cie);
                    cie
                }
            };
            let definition = Definition::Block { block, offset };
            let function = self.graph.add_symbol(None, Symbol::new(definition));
            let lsda = match lsda.filter(|_| personality.is_some()) {
                Some(pointer) => Some(self.target_of(pointer)?),
                None => None,
            };
            let fde = self.add_fde(cie, function, word(8), &frame, personality.is_some(), lsda, edges)?;
            self.graph.attached.push((block, fde));
        }
        Ok(())
    }

    /// The section's pointers, in order.
    fn compact_pointers(&self, header: &'data Section64<LittleEndian>, bytes: &[u8]) -> Parsed<Vec<Pointer<'data>>> {
        self.claim_relocations(header)?;
        let relocations = header.relocations(LittleEndian, self.data).map_err(|error| self.broken(error))?;
        let mut pointers = Vec::with_capacity(relocations.len());
        for raw in relocations {
            let relocation = raw.info(LittleEndian);
            let at = relocation.r_address as usize;
            let value = bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map(|bytes| u64::from_le_bytes(*bytes));
            // Both architectures number pointers alike.
            let is_pointer = relocation.r_type == X86_64_RELOC_UNSIGNED && relocation.r_length == 3;
            let Some(value) = value.filter(|_| is_pointer && !relocation.r_pcrel) else {
                return Err(Box::new(ParseError::UnsupportedRelocation {
                    object: self.graph.name().to_owned(),
                    section: full_name(header),
                    offset: at as u64,
                    relocation: relocation.r_type.into(),
                }));
            };
            pointers.push(Pointer { relocation: raw, value });
        }
        pointers.sort_by_key(Pointer::at);
        Ok(pointers)
    }

    /// Where in the graph a pointer leads, if that is in the object.
    fn place_of(&mut self, pointer: Pointer<'_>) -> Parsed<Option<(BlockId, u32)>> {
        let (relocation, value) = (pointer.relocation.info(LittleEndian), pointer.value);
        if relocation.r_extern {
            let symbol = self.extern_target(relocation)?;
            let Definition::Block { block, offset } = self.graph.symbol(symbol).definition else { return Ok(None) };
            let offset = i64::from(offset).wrapping_add(value.cast_signed());
            return Ok(u32::try_from(offset).ok().map(|offset| (block, offset)));
        }
        let Some(atoms) = &self.atoms[self.section_index(relocation)?] else {
            return Err(self.malformed("an entry of __compact_unwind is about what is not in memory"));
        };
        let Some(offset) = value.checked_sub(atoms.address) else { return Ok(None) };
        let (block, offset) = atoms.find(offset);
        Ok(u32::try_from(offset).ok().map(|offset| (block, offset)))
    }

    fn target_of(&mut self, pointer: Pointer<'_>) -> Parsed<(SymbolId, i64)> {
        let (relocation, value) = (pointer.relocation.info(LittleEndian), pointer.value);
        if relocation.r_extern {
            Ok((self.extern_target(relocation)?, value.cast_signed()))
        } else {
            self.target_at(relocation, value)
        }
    }

    fn unwind_section(&mut self, header: &Section64<LittleEndian>) -> SectionId {
        let label = self.text(header.name());
        self.graph.section_with(SectionRole::EhFrame).unwrap_or_else(|| {
            let (role, kind) = (SectionRole::EhFrame, SegmentKind::ReadOnly);
            self.graph.add_section(Section { role, kind, align_log2: 0, label, start: 0, end: 0 })
        })
    }

    fn add_record(&mut self, section: SectionId, mut bytes: Vec<u8>) -> Parsed<BlockId> {
        // The rest is `DW_CFA_nop`.
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let length = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        self.graph.add_section_bytes(section, &bytes, 1).map_err(|source| self.graph_error(source))
    }

    fn add_cie(
        &mut self,
        header: &Section64<LittleEndian>,
        personality: Option<SymbolId>,
        edges: &mut Vec<Edge>,
    ) -> Parsed<SymbolId> {
        let section = self.unwind_section(header);
        let mut bytes = vec![0; 8];
        // Version 1; addresses are distances of 4 bytes, that of the personality through the GOT.
        bytes.push(1);
        bytes.extend_from_slice(if personality.is_some() { b"zPLR\0" } else { b"zR\0" });
        let (return_address, stack_pointer, distance) = match self.graph.architecture() {
            Architecture::X86_64 => (16, 7, 8),
            Architecture::Aarch64 => (30, 31, 0),
        };
        // Code in bytes, data in words downward.
        bytes.extend_from_slice(&[1, 0x78, return_address]);
        let field = match personality {
            Some(_) => {
                bytes.extend_from_slice(&[7, 0x9b, 0, 0, 0, 0, 0x1b, 0x1b]);
                Some(bytes.len() as u32 - 6)
            }
            None => {
                bytes.extend_from_slice(&[1, 0x1b]);
                None
            }
        };
        bytes.extend_from_slice(&[DEF_CFA, stack_pointer, distance]);
        if distance == 8 {
            bytes.extend_from_slice(&[OFFSET | return_address, 1]);
        }
        let block = self.add_record(section, bytes)?;
        if let (Some(offset), Some(target)) = (field, personality) {
            let kind = Kinds::of(self.graph.architecture()).got_delta_32;
            edges.push(Edge { block, offset, kind, target, addend: 0 });
        }
        Ok(self.graph.define(None, block, 0, 0))
    }

    #[expect(clippy::too_many_arguments, reason = "a record has as many parts")]
    fn add_fde(
        &mut self,
        cie: SymbolId,
        function: SymbolId,
        length: u32,
        frame: &Frame,
        has_lsda: bool,
        lsda: Option<(SymbolId, i64)>,
        edges: &mut Vec<Edge>,
    ) -> Parsed<BlockId> {
        let Definition::Block { block: cie_block, .. } = self.graph.symbol(cie).definition else {
            return Err(self.malformed("the CIE of a record is not in the object"));
        };
        let Some(section) = self.graph.block(cie_block).section else {
            return Err(self.malformed("the CIE of a record is in no section"));
        };
        let mut bytes = vec![0; 12];
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.push(if has_lsda { 4 } else { 0 });
        let lsda_field = bytes.len() as u32;
        if has_lsda {
            bytes.extend_from_slice(&[0; 4]);
        }
        bytes.extend_from_slice(&[DEF_CFA, frame.base.0]);
        push_uleb(&mut bytes, frame.base.1);
        for (register, words) in &frame.saved {
            match register {
                0..64 => bytes.push(OFFSET | register),
                _ => bytes.extend_from_slice(&[OFFSET_EXTENDED, *register]),
            }
            push_uleb(&mut bytes, *words);
        }
        let block = self.add_record(section, bytes)?;
        let kinds = Kinds::of(self.graph.architecture());
        edges.push(Edge { block, offset: CIE_POINTER, kind: kinds.back_32, target: cie, addend: 0 });
        edges.push(Edge { block, offset: FUNCTION, kind: kinds.delta_32, target: function, addend: 0 });
        if let Some((target, addend)) = lsda {
            edges.push(Edge { block, offset: lsda_field, kind: kinds.delta_32, target, addend });
        }
        Ok(block)
    }
}

/// `DW_CFA_def_cfa`: register, distance.
const DEF_CFA: u8 = 0x0c;
/// `DW_CFA_offset`, with the register in the low bits: words below the CFA.
const OFFSET: u8 = 0x80;
/// `DW_CFA_offset_extended`: register, words below the CFA.
const OFFSET_EXTENDED: u8 = 0x05;

fn push_uleb(bytes: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// The bits `low..low + count`.
fn bits(encoding: u32, low: u32, count: u32) -> u32 {
    encoding >> low & ((1 << count) - 1)
}

/// After `<mach-o/compact_unwind_encoding.h>`. None if there is nothing to say: the function has
/// DWARF records of its own, or none at all.
fn x86_64_frame(encoding: u32, code: &[u8]) -> Option<Frame> {
    const RBP: u8 = 6;
    const RSP: u8 = 7;
    // By their numbers in an encoding, from 1: rbx, r12 to r15, rbp.
    let dwarf = |register: u32| [0, 3, 12, 13, 14, 15, RBP].get(register as usize).copied().filter(|_| register > 0);
    match bits(encoding, 24, 4) {
        1 => {
            let lowest = bits(encoding, 16, 8) + 2;
            let registers = (0..5).map(|slot| (dwarf(bits(encoding, 3 * slot, 3)), lowest.checked_sub(slot)));
            let saved = registers.filter_map(|(register, words)| Some((register?, words.filter(|words| *words > 2)?)));
            Some(Frame { base: (RBP, 16), saved: [(RBP, 2)].into_iter().chain(saved).collect() })
        }
        mode @ (2 | 3) => {
            let size = bits(encoding, 16, 8);
            let size = match mode {
                2 => 8 * size,
                _ => {
                    // The operand of the instruction that makes the frame.
                    let operand = code.get(size as usize..)?.first_chunk()?;
                    u32::from_le_bytes(*operand).checked_add(8 * bits(encoding, 13, 3))?
                }
            };
            let count = bits(encoding, 10, 3);
            let registers = permutation(bits(encoding, 0, 10), count)?;
            let saved =
                registers.into_iter().zip(0..).map(|(register, slot)| Some((dwarf(register)?, 1 + count - slot)));
            Some(Frame { base: (RSP, size), saved: saved.collect::<Option<_>>()? })
        }
        _ => None,
    }
}

/// Which registers are saved, from the lowest address on: the number of their permutation, in
/// which each counts among those that are not before it.
fn permutation(mut number: u32, count: u32) -> Option<Vec<u32>> {
    let mut left: Vec<u32> = (1..=6).collect();
    let mut digits = Vec::new();
    // Of 6 registers the last follows from the others.
    let coded = count.min(5);
    for position in (0..coded).rev() {
        let choices = 6 - position;
        digits.push(number % choices);
        number /= choices;
    }
    digits.reverse();
    if count == 6 {
        digits.push(0);
    }
    let take = |digit: u32| ((digit as usize) < left.len()).then(|| left.remove(digit as usize));
    (count <= 6).then(|| digits.into_iter().map(take).collect())?
}

/// After `<mach-o/compact_unwind_encoding.h>`.
fn arm64_frame(encoding: u32) -> Option<Frame> {
    const FRAME_POINTER: u8 = 29;
    const LINK_REGISTER: u8 = 30;
    const STACK_POINTER: u8 = 31;
    /// Registers that are saved in pairs, by the bit that says so.
    const PAIRS: [(u32, u8); 9] = [(0, 19), (1, 21), (2, 23), (3, 25), (4, 27), (8, 72), (9, 74), (10, 76), (11, 78)];
    let pairs = PAIRS.into_iter().filter(|(bit, _)| bits(encoding, *bit, 1) == 1);
    let pairs = pairs.flat_map(|(_, register)| [register, register + 1]);
    match bits(encoding, 24, 4) {
        2 => {
            let size = 16 * bits(encoding, 12, 12);
            Some(Frame { base: (STACK_POINTER, size), saved: pairs.zip(1..).collect() })
        }
        4 => {
            let saved = [(FRAME_POINTER, 2), (LINK_REGISTER, 1)].into_iter().chain(pairs.zip(3..)).collect();
            Some(Frame { base: (FRAME_POINTER, 16), saved })
        }
        _ => None,
    }
}
