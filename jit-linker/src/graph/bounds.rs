//! Sections whose bounds a program can ask for (`__start_X`, `__stop_X`; of Mach-O `section$start$S$X`, `section$end$S$X`):
//! a program may have a section in several graphs.

use super::section::{Section, SectionRole};
use super::{Definition, LinkGraph, SectionId, SymbolId};
use crate::format::macho;
use crate::memory::SegmentKind;

/// A section for whose bounds symbols can stand: of an ELF object one whose name is a C identifier, of a Mach-O object any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSection {
    /// Which one it is in its graph.
    pub section: SectionId,
    /// Its name; of a Mach-O object its segment's and its own, with a dollar between them.
    pub name: String,
    /// Which segment it goes to.
    pub kind: SegmentKind,
    /// Its size in bytes, with the gaps between its blocks.
    pub size: u64,
    /// Its alignment in bytes.
    pub align: u64,
}

impl NamedSection {
    /// The segment that it is in; of a Mach-O object only.
    #[must_use]
    pub fn segment(&self) -> Option<&str> {
        self.name.split_once('$').map(|(segment, _)| segment)
    }

    /// The names of what symbols can stand for bounds of that it is a part of.
    pub fn bounded(&self) -> impl Iterator<Item = &str> {
        self.segment().into_iter().chain([&*self.name])
    }
}

/// A symbol that stands for a bound of a section, or of a segment of Mach-O's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionBound {
    /// The symbol.
    pub symbol: SymbolId,
    /// The section's name, as [`NamedSection`] has it. A segment's has no dollar.
    pub name: String,
    /// Whether it is the section's end.
    pub end: bool,
}

impl LinkGraph {
    /// The sections whose bounds symbols can stand for.
    #[must_use]
    pub fn named_sections(&self) -> Vec<NamedSection> {
        let Some(format) = self.format() else { return Vec::new() };
        let of_its_name = |(id, section): (SectionId, &Section)| {
            let start = section.label.start as usize;
            let name = self.object.get(start..start + section.label.length as usize)?;
            let name = match format {
                _ if section.role != SectionRole::Plain => return None,
                Format::Elf => is_identifier(name).then(|| text(name))?,
                Format::MachO => full_name(macho::segment_beside(&self.object, start)?, Some(name)),
            };
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
        let Some(format) = self.format() else { return Vec::new() };
        let bound = |(symbol, found): (SymbolId, &super::Symbol)| {
            let is_bound = match found.definition {
                Definition::SectionBound { section, .. } => self.section(section).role == SectionRole::Plain,
                Definition::External => true,
                _ => false,
            };
            if !is_bound {
                return None;
            }
            let label = self.symbol_label(symbol);
            let (name, end) = match format {
                Format::Elf => {
                    let (name, end) = bound_of(label.as_bytes())?;
                    (is_identifier(name).then(|| text(name))?, end)
                }
                Format::MachO => {
                    let mangled = self.symbol_name(symbol).map(|name| macho::symbol_name(name.as_str()));
                    let label = mangled.unwrap_or(label);
                    let bound = macho::bound_of(label.as_bytes())?;
                    (full_name(bound.segment, bound.name), bound.end)
                }
            };
            Some(SectionBound { symbol, name, end })
        };
        self.symbols().filter_map(bound).collect()
    }

    /// Of the object that it was read from, if it was.
    fn format(&self) -> Option<Format> {
        match &*self.object {
            [0x7f, b'E', b'L', b'F', ..] => Some(Format::Elf),
            object if macho::is_macho(object) => Some(Format::MachO),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
enum Format {
    Elf,
    MachO,
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// What identifies a section of Mach-O's, or a segment.
fn full_name(segment: &[u8], section: Option<&[u8]>) -> String {
    match section {
        Some(section) => format!("{}${}", text(segment), text(section)),
        None => text(segment),
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
