//! Symbols.

use object::elf::{
    SHN_ABS, SHN_COMMON, SHN_UNDEF, SHN_XINDEX, STB_GLOBAL, STB_GNU_UNIQUE, STB_LOCAL, STB_WEAK, STT_COMMON, STT_FILE,
    STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE, STT_OBJECT, STT_SECTION, STT_TLS, STV_DEFAULT, STV_PROTECTED, Sym64,
};
use object::read::SectionIndex;
use object::{LittleEndian, SymbolIndex};

use super::Reader;
use crate::arch::Architecture;
use crate::format::{ParseError, Parsed};
use crate::graph::{Definition, Linkage, Scope, Symbol, SymbolId, SymbolKind, TerminatedText};
use crate::memory::SegmentKind;

/// Commons that are too large for 32-bit references, in the large code model of x86-64.
const SHN_X86_64_LCOMMON: u16 = 0xff02;

/// What local-dynamic code with TLS descriptors counts the component's variables from.
const TLS_MODULE_BASE: &[u8] = b"_TLS_MODULE_BASE_";

/// What GCC marks an object by that has no machine code.
const LTO_SLIM: &[u8] = b"__gnu_lto_slim";

impl<'data> Reader<'data> {
    /// Adds what the object defines.
    pub(super) fn add_symbols(&mut self) -> Parsed<()> {
        for index in 1..self.symbols.len() {
            let index = SymbolIndex(index);
            let symbol = self.raw_symbol(index)?;
            // A section's own symbol says nothing of its use.
            if symbol.st_type() != STT_SECTION {
                self.place_used_section(self.symbol_section(index, symbol))?;
            }
            if symbol.st_type() != STT_FILE && !self.is_mapping_symbol(symbol)? {
                self.add_defined(index, symbol)?;
            }
        }
        Ok(())
    }

    fn add_defined(&mut self, index: SymbolIndex, symbol: &'data Sym64<LittleEndian>) -> Parsed<Option<SymbolId>> {
        let Some((definition, address)) = self.definition(index, symbol)? else { return Ok(None) };
        let id = self.add(index, symbol, definition)?;
        self.graph.symbols[id.index()].address = address;
        self.symbol_ids.set(index, id);
        Ok(Some(id))
    }

    /// Whether a symbol only tells code from data, as AArch64's do. There are many.
    fn is_mapping_symbol(&self, symbol: &Sym64<LittleEndian>) -> Parsed<bool> {
        let may_be =
            symbol.st_type() == STT_NOTYPE && symbol.st_bind() == STB_LOCAL && symbol.st_name.get(LittleEndian) != 0;
        Ok(may_be
            && self.graph.architecture() == Architecture::Aarch64
            && matches!(self.symbol_name(symbol)?, [b'$', b'x' | b'd'] | [b'$', b'x' | b'd', b'.', ..]))
    }

    /// The graph's symbol that a relocation refers to.
    #[inline]
    pub(super) fn symbol(&mut self, index: SymbolIndex) -> Parsed<SymbolId> {
        if index.0 == 0 {
            return Ok(*self.zero.get_or_insert_with(|| self.graph.absolute(0)));
        }
        match self.symbol_ids.get(index) {
            Some(id) => Ok(id),
            None => self.add_referenced(index),
        }
    }

    pub(super) fn raw_symbol(&self, index: SymbolIndex) -> Parsed<&'data Sym64<LittleEndian>> {
        self.symbols.symbol(index).map_err(|error| self.broken(error))
    }

    /// The section a symbol is in, as an index that need not be valid.
    pub(super) fn symbol_section(&self, index: SymbolIndex, symbol: &Sym64<LittleEndian>) -> SectionIndex {
        match symbol.st_shndx.get(LittleEndian) {
            SHN_XINDEX => SectionIndex(self.symbols.shndx(LittleEndian, index).unwrap_or(0) as usize),
            section => SectionIndex(section.into()),
        }
    }

    /// Where a symbol is defined; its address, where that is known. `None` if it is not defined
    /// in memory.
    fn definition(&mut self, index: SymbolIndex, symbol: &Sym64<LittleEndian>) -> Parsed<Option<(Definition, u64)>> {
        let value = symbol.st_value.get(LittleEndian);
        match symbol.st_shndx.get(LittleEndian) {
            SHN_UNDEF => return Ok(None),
            SHN_ABS => return Ok(Some((Definition::Absolute, value))),
            SHN_COMMON | SHN_X86_64_LCOMMON => {
                if self.symbol_name(symbol)? == LTO_SLIM {
                    let what = "it is GCC's intermediate code (-flto without -ffat-lto-objects)".to_owned();
                    return Err(Box::new(ParseError::NotLinkable { object: self.graph.name().to_owned(), what }));
                }
                let size = symbol.st_size.get(LittleEndian);
                let block = self.graph.add_zero_block(SegmentKind::Data, size, value.max(1));
                let block = block.map_err(|source| self.graph_error(source))?;
                return Ok(Some((Definition::Block { block, offset: 0 }, 0)));
            }
            _ => {}
        }
        let section = self.symbol_section(index, symbol);
        let Some(placed) = self.placed.get(section.0) else {
            return Err(self.malformed(format!("symbol {} is in section {}, which is not there", index.0, section.0)));
        };
        let Some(block) = *placed else { return Ok(self.unwind_bound(section, value)) };
        // Such a section has no address: what refers to it gives an offset.
        if self.graph.is_note(block) {
            return Ok(Some((Definition::Absolute, value)));
        }
        // One beyond its section is no error until it is referred to.
        let offset = u32::try_from(value).ok().filter(|offset| *offset <= self.graph.block(block).size);
        Ok(offset.map(|offset| (Definition::Block { block, offset }, 0)))
    }

    /// What marks start or end of unwinding tables.
    fn unwind_bound(&self, section: SectionIndex, value: u64) -> Option<(Definition, u64)> {
        let id = self.unwind_tables.get(&section.0)?;
        let size = self.sections.section(section).ok()?.sh_size.get(LittleEndian);
        let end = if value == 0 {
            false
        } else if value == size {
            true
        } else {
            return None;
        };
        Some((Definition::SectionBound { section: *id, end }, 0))
    }

    /// The graph's symbol that a relocation refers to, if it is defined here.
    pub(super) fn own_symbol(&mut self, index: SymbolIndex) -> Option<SymbolId> {
        match self.symbol_ids.get(index) {
            Some(id) => Some(id),
            None => self.raw_symbol(index).and_then(|symbol| self.add_defined(index, symbol)).ok().flatten(),
        }
    }

    /// Why there is no address for a symbol that is referred to.
    fn not_in_memory(&self, index: SymbolIndex, raw: &Sym64<LittleEndian>) -> Parsed<Box<ParseError>> {
        let section = self.symbol_section(index, raw);
        let [symbol, name] = [self.symbol_name(raw)?, self.section_name(section)?].map(String::from_utf8_lossy);
        let (value, size) = (raw.st_value.get(LittleEndian), self.sections.section(section).map(|found| found.sh_size));
        Ok(match size {
            Ok(size) if value > size.get(LittleEndian) => self.malformed(format!(
                "a relocation refers to '{symbol}', which is at {value:#x} of section '{name}', beyond its end"
            )),
            _ => self.malformed(format!(
                "a relocation refers to '{symbol}' (symbol {}), which is in section '{name}' and not in memory",
                index.0
            )),
        })
    }

    fn add(&mut self, index: SymbolIndex, raw: &'data Sym64<LittleEndian>, definition: Definition) -> Parsed<SymbolId> {
        let is_section = raw.st_type() == STT_SECTION;
        let label = match self.symbol_name(raw)? {
            b"" if is_section => self.section_name(self.symbol_section(index, raw)).unwrap_or_default(),
            name => name,
        };
        let is_local = raw.st_bind() == STB_LOCAL;
        let linkage = self.linkage(index, raw)?;
        let name = if is_local { None } else { Some(self.intern(unversioned(label, definition), index)?) };
        let scope = match raw.st_visibility() {
            _ if is_local => Scope::Local,
            STV_DEFAULT => Scope::Default,
            STV_PROTECTED => Scope::Protected,
            // What is internal is hidden, and its users may know more of it than we need to.
            _ => Scope::Hidden,
        };
        let kind = match raw.st_type() {
            STT_FUNC => SymbolKind::Function,
            STT_OBJECT | STT_COMMON => SymbolKind::Data,
            STT_TLS => SymbolKind::ThreadLocal,
            STT_GNU_IFUNC => SymbolKind::Resolver,
            STT_SECTION => SymbolKind::Section,
            _ => SymbolKind::Unspecified,
        };
        let size = u32::try_from(raw.st_size.get(LittleEndian)).unwrap_or(u32::MAX);
        let label = if is_local { self.text(label).into() } else { TerminatedText::EMPTY };
        Ok(self.graph.add_symbol(name, Symbol { linkage, scope, kind, size, ..Symbol::labelled(definition, label) }))
    }

    fn linkage(&self, index: SymbolIndex, raw: &Sym64<LittleEndian>) -> Parsed<Linkage> {
        match raw.st_bind() {
            STB_GLOBAL if is_common(raw) => Ok(Linkage::Common),
            STB_LOCAL | STB_GLOBAL => Ok(Linkage::Strong),
            STB_WEAK | STB_GNU_UNIQUE => Ok(Linkage::Weak),
            binding => Err(self.malformed(format!("symbol {} has the unknown binding {binding}", index.0))),
        }
    }

    /// Adds a symbol that is not defined here, or that only a reference makes worth it.
    #[cold]
    fn add_referenced(&mut self, index: SymbolIndex) -> Parsed<SymbolId> {
        if !self.symbol_ids.has(index) {
            return Err(self.malformed(format!("a relocation refers to symbol {}, which is not there", index.0)));
        }
        let raw = self.raw_symbol(index)?;
        if raw.st_shndx.get(LittleEndian) != SHN_UNDEF {
            self.place_used_section(self.symbol_section(index, raw))?;
            if let Some(id) = self.add_defined(index, raw)? {
                return Ok(id);
            }
            return Err(self.not_in_memory(index, raw)?);
        }
        let name = self.symbol_name(raw)?;
        let found = if let Some((section, end)) = self.bound(name) {
            Some(Definition::SectionBound { section, end })
        } else if name == b"_GLOBAL_OFFSET_TABLE_" {
            Some(Definition::GotBase)
        } else if name == TLS_MODULE_BASE {
            Some(Definition::SectionBound { section: self.thread_local_section(), end: false })
        } else {
            None
        };
        let id = match found {
            Some(definition) => {
                let linkage = self.linkage(index, raw)?;
                let label = self.text(name).into();
                self.graph.add_symbol(None, Symbol { linkage, ..Symbol::labelled(definition, label) })
            }
            None => self.add(index, raw, Definition::External)?,
        };
        self.symbol_ids.set(index, id);
        Ok(id)
    }
}

/// What others know a symbol by that `.symver` gave a version. The default version (`f@@V2`) is the one that those without
/// a version mean, and a reference to any version means the one that there is.
fn unversioned(name: &[u8], definition: Definition) -> &[u8] {
    let at = name.iter().position(|byte| *byte == b'@').filter(|at| *at > 0);
    match at {
        Some(at) if definition == Definition::External || name[at..].starts_with(b"@@") => &name[..at],
        _ => name,
    }
}

fn is_common(symbol: &Sym64<LittleEndian>) -> bool {
    matches!(symbol.st_shndx.get(LittleEndian), SHN_COMMON | SHN_X86_64_LCOMMON)
}
