//! Sections: which are in memory, with what protection, and what for.

use object::LittleEndian;
use object::elf::{
    SHF_ALLOC, SHF_COMPRESSED, SHF_EXCLUDE, SHF_EXECINSTR, SHF_TLS, SHF_WRITE, SHT_FINI_ARRAY, SHT_GROUP,
    SHT_INIT_ARRAY, SHT_NOTE, SHT_NULL, SHT_PREINIT_ARRAY, SHT_PROGBITS, SHT_REL, SHT_RELA, SHT_STRTAB, SHT_SYMTAB,
    SectionHeader64,
};
use object::read::SectionIndex;
use object::read::elf::SectionHeader;

use super::Reader;
use crate::format::{ParseError, Parsed};
use crate::graph::{BlockId, Content, Section, SectionId, SectionRole, bound_of, is_identifier};
use crate::memory::SegmentKind;

/// The section whose flags say what the code needs of its stack.
const STACK: &[u8] = b".note.GNU-stack";

/// What makes sections of an object one section of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key<'data> {
    /// They have one name that a program can ask the bounds of: a C identifier.
    Name(&'data [u8], SegmentKind),
    /// They have one role.
    Role(SectionRole),
}

impl<'data> Reader<'data> {
    pub(super) fn add_sections(&mut self) -> Parsed<()> {
        self.graph.reserve_blocks(self.sections.iter().filter(|header| is_loaded(header)).count());
        for (index, header) in self.sections.iter().enumerate().skip(1) {
            if is_loaded(header) {
                self.placed[index] = self.add_section(SectionIndex(index), header)?;
            } else if header.sh_flags.get(LittleEndian) as u32 & SHF_EXECINSTR != 0
                && self.section_name(SectionIndex(index))? == STACK
            {
                self.graph.needs_executable_stack = true;
            } else if self.options.all_sections && is_note(header) {
                self.placed[index] = self.add_note(SectionIndex(index), header)?;
            }
        }
        Ok(())
    }

    /// Has a section in memory that would not be there, if code can refer to it: symbols are in it, or a relocation leads
    /// there.
    pub(super) fn place_used_section(&mut self, index: SectionIndex) -> Parsed<()> {
        if let Some(None) = self.placed.get(index.0)
            && let Ok(header) = self.sections.section(index)
            && header.sh_type.get(LittleEndian) == SHT_NOTE
            && header.sh_flags.get(LittleEndian) as u32 & (SHF_ALLOC | SHF_EXCLUDE) == SHF_ALLOC
        {
            self.placed[index.0] = self.add_section(index, header)?;
        }
        Ok(())
    }

    /// Adds a section, and its content unless that is unwinding records.
    fn add_section(&mut self, index: SectionIndex, header: &SectionHeader64<LittleEndian>) -> Parsed<Option<BlockId>> {
        let name = self.section_name(index)?;
        let flags = header.sh_flags.get(LittleEndian) as u32;
        let role = role(name, header.sh_type.get(LittleEndian), flags);
        let kind = match role {
            // Threads have copies of it, and nobody has to change unwinding tables, whatever their flags say.
            SectionRole::ThreadLocal | SectionRole::EhFrame => SegmentKind::ReadOnly,
            _ if flags & SHF_EXECINSTR != 0 => SegmentKind::Code,
            _ if flags & SHF_WRITE != 0 => SegmentKind::Data,
            _ => SegmentKind::ReadOnly,
        };
        let refuse = |what: &str| {
            Box::new(ParseError::UnsupportedSection {
                object: self.graph.name().to_owned(),
                section: String::from_utf8_lossy(name).into_owned(),
                what: what.to_owned(),
            })
        };
        if flags & SHF_COMPRESSED != 0 {
            return Err(refuse("has to be in memory, and is compressed"));
        }
        if kind == SegmentKind::Code && flags & SHF_WRITE != 0 {
            return Err(refuse("is both writable and executable"));
        }
        let (content, size) = match header.file_range(LittleEndian) {
            None => (Content::Zero, header.sh_size.get(LittleEndian)),
            Some((start, size)) if start.checked_add(size).is_some_and(|end| end <= self.data.len() as u64) => {
                (Content::Object { start: start as u32 }, size)
            }
            Some(_) => return Err(self.malformed(format!("section {} ends beyond the file", index.0))),
        };
        if content != Content::Zero {
            self.claim(size)?;
        }
        let align = header.sh_addralign.get(LittleEndian).max(1);
        let section = self.graph_section(name, role, kind);
        if role == SectionRole::EhFrame && content != Content::Zero {
            self.graph.sections[section.index()].align_log2 = 3;
            self.unwind_tables.insert(index.0, section);
            return Ok(None);
        }
        let block = self.graph.add_section_block(section, content, size, align);
        block.map(Some).map_err(|source| self.graph_error(source))
    }

    /// Adds a section that is only there to be read. One that can't be had is left out.
    fn add_note(&mut self, index: SectionIndex, header: &SectionHeader64<LittleEndian>) -> Parsed<Option<BlockId>> {
        let name = self.section_name(index)?;
        let Some((start, size)) = header.file_range(LittleEndian) else { return Ok(None) };
        if start.checked_add(size).is_none_or(|end| end > self.data.len() as u64) || self.claim(size).is_err() {
            return Ok(None);
        }
        let section = self.new_section(name, SectionRole::Note, SegmentKind::ReadOnly);
        let content = Content::Object { start: start as u32 };
        let block =
            self.graph.add_section_block(section, content, size, 1).map_err(|source| self.graph_error(source))?;
        self.graph.keep(block);
        Ok(Some(block))
    }

    /// A section of its own, or the one that all of a name or role share.
    fn graph_section(&mut self, name: &'data [u8], role: SectionRole, kind: SegmentKind) -> SectionId {
        let key = match role {
            SectionRole::Plain if is_identifier(name) => Key::Name(name, kind),
            SectionRole::Plain => return self.new_section(name, role, kind),
            _ => Key::Role(role),
        };
        if let Some(section) = self.named.get(&key) {
            return *section;
        }
        let section = self.new_section(name, role, kind);
        self.named.insert(key, section);
        section
    }

    /// The section of thread-local variables, though it have none.
    pub(super) fn thread_local_section(&mut self) -> SectionId {
        self.graph_section(b".tdata", SectionRole::ThreadLocal, SegmentKind::ReadOnly)
    }

    fn new_section(&mut self, name: &'data [u8], role: SectionRole, kind: SegmentKind) -> SectionId {
        let label = self.text(name);
        self.graph.add_section(Section { role, kind, align_log2: 0, label, start: 0, end: 0 })
    }

    /// The section that a symbol like `__start_X` or `__stop_X` is a bound of, and whether of its end.
    pub(super) fn bound(&self, symbol: &'data [u8]) -> Option<(SectionId, bool)> {
        let (name, end) = bound_of(symbol)?;
        let section = SegmentKind::ALL.into_iter().find_map(|kind| self.named.get(&Key::Name(name, kind)))?;
        Some((*section, end))
    }
}

/// Whether a section is in memory when the program runs. Notes are about the object, unless code refers to them, and its
/// relocations and groups are for the linker alone.
fn is_loaded(header: &SectionHeader64<LittleEndian>) -> bool {
    let flags = header.sh_flags.get(LittleEndian) as u32;
    let kind = header.sh_type.get(LittleEndian);
    flags & SHF_ALLOC != 0
        && flags & SHF_EXCLUDE == 0
        && !matches!(kind, SHT_NULL | SHT_NOTE | SHT_REL | SHT_RELA | SHT_GROUP | SHT_STRTAB | SHT_SYMTAB)
}

/// Whether a section has what others than the program read. What is compressed can't be relocated.
fn is_note(header: &SectionHeader64<LittleEndian>) -> bool {
    let flags = header.sh_flags.get(LittleEndian) as u32;
    header.sh_type.get(LittleEndian) == SHT_PROGBITS
        && flags & (SHF_ALLOC | SHF_EXCLUDE | SHF_COMPRESSED) == 0
        && header.sh_size.get(LittleEndian) > 0
}

fn role(name: &[u8], kind: u32, flags: u32) -> SectionRole {
    let default = SectionRole::DEFAULT_PRIORITY;
    if flags & SHF_TLS != 0 {
        return SectionRole::ThreadLocal;
    }
    match kind {
        SHT_PREINIT_ARRAY => return SectionRole::Initializers { priority: 0, reversed: false },
        SHT_INIT_ARRAY => {
            let priority = priority(name, b".init_array").unwrap_or(default);
            return SectionRole::Initializers { priority, reversed: false };
        }
        SHT_FINI_ARRAY => {
            let priority = priority(name, b".fini_array").unwrap_or(default);
            return SectionRole::Finalizers { priority, reversed: true };
        }
        _ => {}
    }
    if name == b".eh_frame" {
        return SectionRole::EhFrame;
    }
    // Older compilers' names. Their numbers count down, and so do the pointers within `.ctors`.
    if let Some(number) = priority(name, b".ctors") {
        return SectionRole::Initializers { priority: 65_535u32.saturating_sub(number), reversed: true };
    }
    if let Some(number) = priority(name, b".dtors") {
        return SectionRole::Finalizers { priority: 65_535u32.saturating_sub(number), reversed: false };
    }
    match name {
        b".ctors" => SectionRole::Initializers { priority: default, reversed: true },
        b".dtors" => SectionRole::Finalizers { priority: default, reversed: false },
        b".init_array" => SectionRole::Initializers { priority: default, reversed: false },
        b".fini_array" => SectionRole::Finalizers { priority: default, reversed: true },
        _ => SectionRole::Plain,
    }
}

/// The number after a section's name, as in `.init_array.00100`.
fn priority(name: &[u8], prefix: &[u8]) -> Option<u32> {
    let number = name.strip_prefix(prefix)?.strip_prefix(b".")?;
    std::str::from_utf8(number).ok()?.parse().ok().filter(|number| *number <= 65_535)
}
