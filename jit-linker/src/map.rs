//! What a link put where: for people, and for programs that check a linker's work.

use std::fmt::{self, Write as _};

use crate::graph::{Definition, SymbolId};
use crate::link::{Allocated, LinkError};
use crate::memory::SegmentKind;
use crate::pass::indirect::GotContent;

/// The addresses of one linked graph. Made by [`Allocated::map`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkMap {
    /// The graph's name.
    pub graph: String,
    /// The segments, by kind.
    pub segments: Vec<MapSegment>,
    /// The sections that are in memory.
    pub sections: Vec<MapEntry>,
    /// The symbols that the graph defines, local ones included.
    pub symbols: Vec<MapEntry>,
    /// The symbols it needs, with the addresses they were resolved to.
    pub externals: Vec<MapEntry>,
    /// The stubs, with what they jump to.
    pub stubs: Vec<MapIndirection>,
    /// The entries of the GOT, with what they hold.
    pub got: Vec<MapIndirection>,
}

/// A segment's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapSegment {
    /// Its kind.
    pub kind: SegmentKind,
    /// Its address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// A section's or symbol's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Its name; names need not differ.
    pub name: String,
    /// Its address.
    pub address: u64,
    /// Bytes, where that is known.
    pub size: u64,
}

/// A stub or an entry of the GOT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapIndirection {
    /// Its address.
    pub address: u64,
    /// What it is for: `address`, `resolved`, `tls-offset`, `tls-pair`, `tls-module` or `tls-descriptor`.
    pub what: &'static str,
    /// The symbol it is for; empty for a module.
    pub symbol: String,
    /// What is added to the symbol.
    pub addend: i64,
    /// Where that is, if it is an address.
    pub target: u64,
}

impl Allocated {
    /// What is where. Call it when the external symbols are resolved.
    #[must_use]
    pub fn map(&self) -> LinkMap {
        let placement = self.placement();
        let graph = self.graph();
        let segment = |kind: SegmentKind| MapSegment {
            kind,
            address: placement.allocation.address(kind),
            size: placement.allocation.size(kind) as u64,
        };
        let mut map = LinkMap {
            graph: graph.name().to_owned(),
            segments: SegmentKind::ALL.into_iter().map(segment).collect(),
            ..LinkMap::default()
        };
        for (id, _) in graph.sections() {
            let range = self.section_range(id);
            let (name, address) = (graph.section_name(id).into_owned(), range.start);
            map.sections.push(MapEntry { name, address, size: range.end - range.start });
        }
        for (id, symbol) in graph.symbols() {
            let (address, size) = (symbol.address, symbol.size.into());
            let entry = || MapEntry { name: LinkError::label(graph, id), address, size };
            match symbol.definition {
                Definition::Block { block, .. } if graph.block(block).live => map.symbols.push(entry()),
                Definition::Block { .. } => {}
                Definition::External => map.externals.push(entry()),
                Definition::Absolute | Definition::SectionBound { .. } | Definition::GotBase => {
                    map.symbols.push(entry());
                }
            }
        }
        let base = placement.got_base();
        let got = |content: GotContent, offset: u32| self.map_entry(content, base + u64::from(offset));
        map.got = placement.indirection.entries.iter().map(|(content, offset)| got(*content, *offset)).collect();
        let content_of: rustc_hash::FxHashMap<_, _> =
            placement.indirection.entries.iter().map(|(content, offset)| (*offset, *content)).collect();
        for stub in &placement.indirection.stubs {
            let address = placement.block_address(stub.block) + u64::from(stub.offset);
            if let Some(content) = content_of.get(&stub.entry) {
                map.stubs.push(self.map_entry(*content, address));
            }
        }
        map
    }

    fn map_entry(&self, content: GotContent, address: u64) -> MapIndirection {
        let graph = self.graph();
        let entry = |what, symbol: SymbolId, addend| {
            let target = match content {
                GotContent::Address(..) => graph.symbol(symbol).address.wrapping_add_signed(addend),
                _ => 0,
            };
            MapIndirection { address, what, symbol: LinkError::label(graph, symbol), addend, target }
        };
        match content {
            GotContent::Address(symbol, addend) => entry("address", symbol, addend),
            GotContent::Resolved(symbol) => entry("resolved", symbol, 0),
            GotContent::TlsOffset(symbol, addend) => entry("tls-offset", symbol, addend),
            GotContent::TlsPair(symbol, addend) => entry("tls-pair", symbol, addend),
            GotContent::TlsDescriptor(symbol, addend) => entry("tls-descriptor", symbol, addend),
            GotContent::TlsModule => {
                MapIndirection { address, what: "tls-module", symbol: String::new(), addend: 0, target: 0 }
            }
        }
    }
}

impl LinkMap {
    /// The map as JSON: an object of the lists, addresses as numbers.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut json = String::new();
        // A string takes all that is written to it.
        _ = self.write_json(&mut json);
        json
    }

    fn write_json(&self, out: &mut String) -> fmt::Result {
        write!(out, "{{\"graph\":{},\"segments\":", Quoted(&self.graph))?;
        write_list(out, &self.segments, |out, segment| {
            let MapSegment { kind, address, size } = segment;
            write!(out, "{{\"kind\":\"{kind:?}\",\"address\":{address},\"size\":{size}}}")
        })?;
        for (name, entries) in
            [("sections", &self.sections), ("symbols", &self.symbols), ("externals", &self.externals)]
        {
            write!(out, ",\"{name}\":")?;
            write_list(out, entries, |out, entry| {
                let MapEntry { name, address, size } = entry;
                write!(out, "{{\"name\":{},\"address\":{address},\"size\":{size}}}", Quoted(name))
            })?;
        }
        for (name, entries) in [("stubs", &self.stubs), ("got", &self.got)] {
            write!(out, ",\"{name}\":")?;
            write_list(out, entries, |out, entry| {
                let MapIndirection { address, what, symbol, addend, target } = entry;
                let symbol = Quoted(symbol);
                write!(out, "{{\"address\":{address},\"what\":\"{what}\",\"symbol\":{symbol},")?;
                write!(out, "\"addend\":{addend},\"target\":{target}}}")
            })?;
        }
        out.write_char('}')
    }
}

fn write_list<T>(out: &mut String, items: &[T], mut write: impl FnMut(&mut String, &T) -> fmt::Result) -> fmt::Result {
    out.write_char('[')?;
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.write_char(',')?;
        }
        write(out, item)?;
    }
    out.write_char(']')
}

/// A text as JSON has it.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '"' | '\\' => write!(f, "\\{character}")?,
                '\0'..='\x1f' => write!(f, "\\u{:04x}", character as u32)?,
                _ => f.write_char(character)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_written_as_json() {
        let symbol = MapEntry { name: "a\"\\\n".to_owned(), address: 0x10, size: 3 };
        let slot = MapIndirection { address: 8, what: "address", symbol: "f".to_owned(), addend: -4, target: 99 };
        let map = LinkMap {
            graph: "x.o".to_owned(),
            segments: vec![MapSegment { kind: SegmentKind::Code, address: 4096, size: 7 }],
            symbols: vec![symbol.clone(), symbol],
            got: vec![slot],
            ..LinkMap::default()
        };
        assert_eq!(
            map.to_json(),
            r#"{"graph":"x.o","segments":[{"kind":"Code","address":4096,"size":7}],"sections":[],"#.to_owned()
                + r#""symbols":[{"name":"a\"\\\u000a","address":16,"size":3},{"name":"a\"\\\u000a","address":16,"size":3}],"#
                + r#""externals":[],"stubs":[],"got":[{"address":8,"what":"address","symbol":"f","addend":-4,"target":99}]}"#
        );
    }
}
