//! Sections whose bounds a program can ask for (`__start_X`, `__stop_X`): a program may have a section in several graphs.

use super::section::{Section, SectionRole};
use super::{Definition, LinkGraph, SectionId, SymbolId};
use crate::memory::SegmentKind;

/// A section whose name is a C identifier, so that symbols can stand for its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSection {
    /// Which one it is in its graph.
    pub section: SectionId,
    /// Its name.
    pub name: String,
    /// Which segment it goes to.
    pub kind: SegmentKind,
    /// Its size in bytes, with the gaps between its blocks.
    pub size: u64,
    /// Its alignment in bytes.
    pub align: u64,
}

/// A symbol that stands for a bound of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionBound {
    /// The symbol.
    pub symbol: SymbolId,
    /// The section's name.
    pub name: String,
    /// Whether it is the section's end.
    pub end: bool,
}

impl LinkGraph {
    /// The sections whose bounds symbols can stand for; of an ELF object only.
    #[must_use]
    pub fn named_sections(&self) -> Vec<NamedSection> {
        if !self.is_elf() {
            return Vec::new();
        }
        let of_its_name = |(id, section): (SectionId, &Section)| {
            let start = section.label.start as usize;
            let name = self.object.get(start..start + section.label.length as usize)?;
            let is_named = section.role == SectionRole::Plain && is_identifier(name);
            let name = is_named.then(|| String::from_utf8_lossy(name).into_owned())?;
            Some(NamedSection { section: id, name, kind: section.kind, size: 0, align: 1 << section.align_log2 })
        };
        let mut named: Vec<_> = self.sections().filter_map(of_its_name).collect();
        if named.is_empty() {
            return named;
        }
        let mut places = vec![None; self.sections.len()];
        for (place, section) in named.iter().enumerate() {
            places[section.section.index()] = Some(place);
        }
        for block in self.blocks.iter().filter(|block| block.live) {
            let Some(place) = block.section.and_then(|section| places[section.index()]) else { continue };
            let section = &mut named[place];
            let align = 1u64 << block.align_log2;
            let start = section.size + (u64::from(block.align_offset).wrapping_sub(section.size) & (align - 1));
            section.size = start + u64::from(block.size);
        }
        named
    }

    /// The symbols that stand for bounds of such sections: of the graph's own, and of what may be another's.
    #[must_use]
    pub fn section_bounds(&self) -> Vec<SectionBound> {
        if !self.is_elf() {
            return Vec::new();
        }
        let bound = |(symbol, found): (SymbolId, &super::Symbol)| match found.definition {
            Definition::SectionBound { section, end } if self.section(section).role == SectionRole::Plain => {
                Some(SectionBound { symbol, name: self.section_name(section).into_owned(), end })
            }
            Definition::External => {
                let (name, end) = bound_of(found.name.as_ref()?.as_bytes())?;
                let name = std::str::from_utf8(name).ok().filter(|name| is_identifier(name.as_bytes()))?;
                Some(SectionBound { symbol, name: name.to_owned(), end })
            }
            _ => None,
        };
        self.symbols().filter_map(bound).collect()
    }

    fn is_elf(&self) -> bool {
        self.object.starts_with(b"\x7fELF")
    }
}

/// The section whose start or, if that is true, end a symbol of a name stands for.
pub(crate) fn bound_of(symbol: &[u8]) -> Option<(&[u8], bool)> {
    match symbol.strip_prefix(b"__start_") {
        Some(name) => Some((name, false)),
        None => Some((symbol.strip_prefix(b"__stop_")?, true)),
    }
}

pub(crate) fn is_identifier(name: &[u8]) -> bool {
    name.first().is_some_and(|first| !first.is_ascii_digit())
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}
