//! Sections: which are in memory, with what protection, and what for.

use object::LittleEndian;
use object::macho::*;
use object::read::macho::{Nlist, Section as _};
use rustc_hash::FxHashMap;

use super::atom::Atoms;
use super::{Reader, literal};
use crate::format::{ParseError, Parsed};
use crate::graph::{Section, SectionId, SectionRole};
use crate::memory::SegmentKind;

/// What makes sections of an object one section of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key<'data> {
    /// They have one segment and name.
    Name(&'data [u8], &'data [u8], SegmentKind),
    /// They have one role that at most one section has.
    Role(SectionRole),
}

/// Where a section's content is, and how it is aligned.
pub(super) struct Place {
    /// Its address in the object.
    pub(super) address: u64,
    pub(super) size: u32,
    /// Where it starts in the object, unless it is zeros.
    pub(super) start: Option<u32>,
    pub(super) align: u64,
    /// Whether it holds literals, which have no identity.
    pub(super) is_literal: bool,
}

/// A section and where it is taken apart.
type Part = (Place, Vec<u32>);

impl Place {
    /// The alignment of a literal: what the place that the compiler gave it has.
    pub(super) fn align_at(&self, offset: u32) -> u64 {
        if offset == 0 { self.align } else { self.align.min(1 << offset.trailing_zeros()) }
    }
}

impl<'data> Reader<'data> {
    pub(super) fn add_sections(&mut self) -> Parsed<()> {
        let order = self.order();
        let mut parts = self.parts(&order)?;
        let mut known = FxHashMap::default();
        self.atoms.resize_with(self.sections.len(), || None);
        for index in order {
            let header = self.sections[index];
            let atoms = if let Some((place, cuts)) = parts[index].take() {
                Some(self.add_section(header, &place, &cuts, &mut known)?)
            } else if self.options.all_sections && is_note(header) {
                self.add_note(header)?
            } else {
                None
            };
            self.atoms[index] = atoms;
        }
        Ok(())
    }

    /// By section that is in memory: where it is, and where it is taken apart. Makes room for the blocks of all, at once:
    /// a table that grows leaves its former places unused.
    fn parts(&mut self, order: &[usize]) -> Parsed<Vec<Option<Part>>> {
        let mut cuts = self.symbol_cuts();
        let mut parts: Vec<_> = self.sections.iter().map(|_| None).collect();
        let mut blocks = 0;
        for index in order.iter().copied().filter(|index| is_loaded(self.sections[*index])) {
            let header = self.sections[index];
            let place = self.place(header)?;
            let cuts = match role(header) {
                SectionRole::EhFrame => Vec::new(),
                _ => self.cuts(header, &place, std::mem::take(&mut cuts[index]))?,
            };
            // A record is seldom shorter than that.
            let records = if cuts.is_empty() && place.start.is_some() { place.size as usize / 32 } else { 0 };
            blocks += cuts.len() + records;
            parts[index] = Some((place, cuts));
        }
        self.graph.blocks.reserve_exact(blocks);
        Ok(parts)
    }

    /// The order in which sections are placed: the object's, unless somebody asks for the bounds of a segment, whose
    /// sections have to lie next to each other then.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<_> = (0..self.sections.len()).collect();
        let is_bound = |symbol: &Nlist64<LittleEndian>| {
            let name = self.strings.get(symbol.n_strx(LittleEndian) as usize..).unwrap_or_default();
            symbol.is_undefined() && name.starts_with(b"segment$")
        };
        if self.symbols.iter().any(is_bound) {
            let segment = |index: usize| self.sections[index].segment_name();
            order.sort_by_key(|index| (0..*index).find(|other| segment(*other) == segment(*index)).unwrap_or(*index));
        }
        order
    }

    fn add_section(
        &mut self,
        header: &'data Section64<LittleEndian>,
        place: &Place,
        cuts: &[u32],
        known: &mut FxHashMap<Key<'data>, SectionId>,
    ) -> Parsed<Atoms> {
        let kind = self.segment_kind(header)?;
        let role = role(header);
        let key = match role {
            SectionRole::ThreadLocal | SectionRole::EhFrame => Key::Role(role),
            _ => Key::Name(header.segment_name(), header.name(), kind),
        };
        let label = self.text(header.name());
        let section = *known
            .entry(key)
            .or_insert_with(|| self.graph.add_section(Section { role, kind, align_log2: 0, label, start: 0, end: 0 }));
        if role == SectionRole::EhFrame {
            return self.add_records(place, section);
        }
        let atoms = self.add_atoms(place, section, cuts)?;
        if header.flags(LittleEndian) & S_ATTR_NO_DEAD_STRIP != 0 {
            atoms.blocks().for_each(|block| self.graph.keep(block));
        }
        Ok(atoms)
    }

    /// Adds a section that is only there to be read. One that can't be had is left out.
    fn add_note(&mut self, header: &'data Section64<LittleEndian>) -> Parsed<Option<Atoms>> {
        let Ok(place) = self.place(header) else { return Ok(None) };
        let (role, kind) = (SectionRole::Note, SegmentKind::ReadOnly);
        let label = self.text(header.name());
        let section = self.graph.add_section(Section { role, kind, align_log2: 0, label, start: 0, end: 0 });
        let atoms = self.add_atoms(&Place { align: 1, ..place }, section, &[0])?;
        atoms.blocks().for_each(|block| self.graph.keep(block));
        Ok(Some(atoms))
    }

    fn segment_kind(&self, header: &'data Section64<LittleEndian>) -> Parsed<SegmentKind> {
        let flags = header.flags(LittleEndian);
        Ok(match header.section_type(LittleEndian) {
            // Threads have copies of it.
            S_THREAD_LOCAL_REGULAR | S_THREAD_LOCAL_ZEROFILL => SegmentKind::ReadOnly,
            S_THREAD_LOCAL_INIT_FUNCTION_POINTERS => {
                return Err(self.unsupported(header, "holds initializers of thread-local variables"));
            }
            _ if flags & S_ATTR_SELF_MODIFYING_CODE != 0 => {
                return Err(self.unsupported(header, "is both writable and executable"));
            }
            // What an assembler writes is code that refers to pointers.
            S_SYMBOL_STUBS if header.nreloc(LittleEndian) == 0 && header.size(LittleEndian) > 0 => {
                return Err(self.unsupported(header, "holds stubs that a linker would fill"));
            }
            S_SYMBOL_STUBS => SegmentKind::Code,
            _ if flags & (S_ATTR_PURE_INSTRUCTIONS | S_ATTR_SOME_INSTRUCTIONS) != 0 => SegmentKind::Code,
            _ if header.segment_name() == b"__TEXT" && header.name() == b"__text" => SegmentKind::Code,
            _ if matches!(header.segment_name(), b"__TEXT" | b"__DATA_CONST") => SegmentKind::ReadOnly,
            _ => SegmentKind::Data,
        })
    }

    pub(super) fn unsupported(&self, header: &Section64<LittleEndian>, what: &str) -> Box<ParseError> {
        Box::new(ParseError::UnsupportedSection {
            object: self.graph.name().to_owned(),
            section: full_name(header),
            what: what.to_owned(),
        })
    }

    fn place(&self, header: &Section64<LittleEndian>) -> Parsed<Place> {
        let address = header.addr(LittleEndian);
        let bad = |what: &str| self.malformed(format!("section {} {what}", full_name(header)));
        let size = header.size(LittleEndian);
        let size = u32::try_from(size).map_err(|_| bad("is larger than 4 GiB"))?;
        if address.checked_add(size.into()).is_none() {
            return Err(bad("ends beyond the last address"));
        }
        let start = match header.file_range(LittleEndian) {
            None => None,
            // An empty section need not be anywhere.
            Some((start, 0)) => Some(u32::try_from(start).unwrap_or_default()),
            Some((start, size)) if start.checked_add(size).is_some_and(|end| end <= self.data.len() as u64) => {
                Some(start as u32)
            }
            Some(_) => return Err(bad("ends beyond the file")),
        };
        if start.is_some() {
            self.claim(size.into())?;
        }
        let align = 1u64.checked_shl(header.align(LittleEndian)).ok_or_else(|| bad("has an alignment beyond 2^63"))?;
        let is_literal = start.is_some() && header.nreloc(LittleEndian) == 0 && literal_size(header).is_some();
        Ok(Place { address, size, start, align, is_literal })
    }

    /// Where a section is taken apart.
    fn cuts(&self, header: &'data Section64<LittleEndian>, place: &Place, at_symbols: Vec<u32>) -> Parsed<Vec<u32>> {
        if place.is_literal {
            let bytes = header.data(LittleEndian, self.data).unwrap_or_default();
            return Ok(match literal_size(header) {
                Some(size) if size > 0 && place.size > 0 => (0..place.size).step_by(size as usize).collect(),
                Some(_) => literal::string_starts(bytes),
                None => vec![0],
            });
        }
        // What the process takes as a whole stays whole.
        if !self.has_subsections || is_whole(header) {
            return Ok(vec![0]);
        }
        let mut cuts = at_symbols;
        cuts.push(0);
        // Runs of local and of visible symbols, most of them in order.
        cuts.sort();
        cuts.dedup();
        // A symbol at the end is one more of the last atom.
        cuts.retain(|cut| *cut == 0 || *cut < place.size);
        Ok(cuts)
    }

    /// The section in memory that has an address in the object, and the offset there.
    pub(super) fn section_at(&self, address: u64) -> Option<(usize, i64)> {
        self.atoms.iter().enumerate().find_map(|(index, atoms)| {
            let atoms = atoms.as_ref()?;
            let offset = address.checked_sub(atoms.address).filter(|offset| *offset < atoms.size)?;
            Some((index, offset.cast_signed()))
        })
    }

    /// By section, the offsets of the symbols that begin atoms.
    fn symbol_cuts(&self) -> Vec<Vec<u32>> {
        let mut cuts = vec![Vec::new(); self.sections.len()];
        for symbol in self.symbols.iter().filter(|symbol| symbol.is_definition()) {
            if symbol.n_desc(LittleEndian) & N_ALT_ENTRY != 0 {
                continue;
            }
            // An assembler's label.
            if self.strings.get(symbol.n_strx(LittleEndian) as usize) == Some(&b'L') {
                continue;
            }
            if let Some((section, offset)) = self.offset_in_section(symbol) {
                cuts[section].push(offset);
            }
        }
        cuts
    }

    /// A defined symbol's section, as an index, and its offset there; none if it is outside.
    pub(super) fn offset_in_section(&self, symbol: &Nlist64<LittleEndian>) -> Option<(usize, u32)> {
        let section = usize::from(symbol.n_sect()).checked_sub(1)?;
        let header = self.sections.get(section)?;
        let offset = symbol.n_value(LittleEndian).checked_sub(header.addr(LittleEndian))?;
        let offset = u32::try_from(offset).ok()?;
        (u64::from(offset) <= header.size(LittleEndian)).then_some((section, offset))
    }

    /// The section that a symbol like `section$start$__DATA$__name` or `segment$end$__DATA` is a bound of, and whether of
    /// its end.
    pub(super) fn bound(&mut self, symbol: &[u8]) -> Parsed<Option<(SectionId, bool)>> {
        let Some(Bound { segment, name, end }) = bound_of(symbol) else { return Ok(None) };
        let section = match name {
            Some(name) => self.section_named(segment, name),
            None => self.end_of_segment(segment, end)?,
        };
        Ok(section.map(|section| (section, end)))
    }

    fn section_named(&self, segment: &[u8], name: &[u8]) -> Option<SectionId> {
        let is_it = |header: &&&Section64<LittleEndian>| header.segment_name() == segment && header.name() == name;
        let index = self.sections.iter().position(|header| is_it(&header))?;
        self.section_of(index)
    }

    /// The first or the last section of a segment. All of them stay.
    fn end_of_segment(&mut self, segment: &[u8], last: bool) -> Parsed<Option<SectionId>> {
        let mut found: Option<SectionId> = None;
        for (index, header) in self.sections.iter().enumerate().filter(|(_, header)| header.segment_name() == segment) {
            let Some(section) = self.section_of(index) else { continue };
            let Section { role, kind, .. } = *self.graph.section(section);
            // A template is in no thread's data, and says so by its section.
            if role == SectionRole::ThreadLocal {
                continue;
            }
            if found.is_some_and(|found| self.graph.section(found).kind != kind) {
                return Err(
                    self.unsupported(header, "is apart from others of its segment, whose bounds are referred to")
                );
            }
            let is_further = |found: SectionId| (section.index() > found.index()) == last;
            found = found.filter(|found| !is_further(*found)).or(Some(section));
            let blocks = self.atoms[index].iter().flat_map(Atoms::blocks);
            blocks.for_each(|block| self.graph.keep(block));
        }
        Ok(found)
    }

    /// The section of the graph that one of the object's is in, if it is in memory.
    fn section_of(&self, index: usize) -> Option<SectionId> {
        let (block, _) = self.atoms[index].as_ref()?.find(0);
        self.graph.block(block).section
    }
}

/// What a symbol like `section$start$__DATA$__name` or `segment$end$__DATA` stands for.
pub(crate) struct Bound<'a> {
    pub(crate) segment: &'a [u8],
    /// The section's, if it is not the whole segment.
    pub(crate) name: Option<&'a [u8]>,
    /// Whether it is the end.
    pub(crate) end: bool,
}

/// What a symbol of a name stands for, if it is a bound.
pub(crate) fn bound_of(symbol: &[u8]) -> Option<Bound<'_>> {
    let mut words = symbol.splitn(4, |byte| *byte == b'$');
    let (kind, end, segment, name) = (words.next()?, words.next()?, words.next()?, words.next());
    let is_bound = match kind {
        b"section" => name.is_some(),
        b"segment" => name.is_none(),
        _ => false,
    };
    let end = match end {
        b"start" => false,
        b"end" => true,
        _ => return None,
    };
    is_bound.then_some(Bound { segment, name, end })
}

/// The segment of a section, by where the object has the section's name.
pub(crate) fn segment_beside(object: &[u8], name: usize) -> Option<&[u8]> {
    let header = object.get(name..name + 2 * NAME)?;
    header[NAME..].split(|byte| *byte == 0).next()
}

/// Bytes of a section's name, which the segment's follows in its header (`section_64`).
const NAME: usize = 16;

/// A section's segment and name, which together identify it.
pub(super) fn full_name(header: &Section64<LittleEndian>) -> String {
    let text = String::from_utf8_lossy;
    format!("{},{}", text(header.segment_name()), text(header.name()))
}

/// Whether a section is in memory when the program runs. Some are for the linker or debuggers.
fn is_loaded(header: &Section64<LittleEndian>) -> bool {
    header.flags(LittleEndian) & S_ATTR_DEBUG == 0
        && !matches!(header.segment_name(), b"__LD" | b"__DWARF" | b"__LLVM")
        && header.section_type(LittleEndian) != S_DTRACE_DOF
}

/// Whether a section has what debuggers read.
pub(super) fn is_note(header: &Section64<LittleEndian>) -> bool {
    header.segment_name() == b"__DWARF" && header.size(LittleEndian) > 0
}

pub(super) fn is_eh_frame(header: &Section64<LittleEndian>) -> bool {
    header.segment_name() == b"__TEXT" && header.name() == b"__eh_frame"
}

fn role(header: &Section64<LittleEndian>) -> SectionRole {
    let priority = SectionRole::DEFAULT_PRIORITY;
    match header.section_type(LittleEndian) {
        S_MOD_INIT_FUNC_POINTERS => SectionRole::Initializers { priority, reversed: false },
        S_MOD_TERM_FUNC_POINTERS => SectionRole::Finalizers { priority, reversed: true },
        S_THREAD_LOCAL_REGULAR | S_THREAD_LOCAL_ZEROFILL => SectionRole::ThreadLocal,
        _ if is_eh_frame(header) => SectionRole::EhFrame,
        _ => SectionRole::Plain,
    }
}

fn is_whole(header: &Section64<LittleEndian>) -> bool {
    let kind = header.section_type(LittleEndian);
    role(header) != SectionRole::Plain
        || matches!(kind, S_NON_LAZY_SYMBOL_POINTERS | S_LAZY_SYMBOL_POINTERS | S_INIT_FUNC_OFFSETS)
}

/// The size of the literals that a section holds; 0 for strings.
fn literal_size(header: &Section64<LittleEndian>) -> Option<u32> {
    match header.section_type(LittleEndian) {
        S_CSTRING_LITERALS => Some(0),
        S_4BYTE_LITERALS => Some(4),
        S_8BYTE_LITERALS => Some(8),
        S_16BYTE_LITERALS => Some(16),
        _ => None,
    }
}
