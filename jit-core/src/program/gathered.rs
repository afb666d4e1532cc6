//! Sections whose bounds a program asks for (`__start_X`, `__stop_X`; of Mach-O `section$start$S$X`, `section$end$S$X`): what
//! the objects of a component have in sections of one name lies in one piece, in the order of addition.
//!
//! The piece has memory of its own, of the size that all objects known by then need when the first of them is linked. Each
//! object is linked as if its part were there, and its content goes there when it is final. Who asks for the bounds needs
//! all objects that have a part. A segment of Mach-O's, whose bounds can be asked for too, is not brought together.

use std::ops::Range;

use jit_linker::SymbolName;
use jit_linker::graph::{LinkGraph, NamedSection, SectionBound, SectionId, SymbolId};
use jit_linker::link::{self, Fixed, LinkError};
use jit_linker::memory::{FinalizedAllocation, MemoryManager, SegmentKind};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::sync::{Arc, Mutex, lock};

/// The sections of a component's objects by their names, and the segments of Mach-O's.
#[derive(Debug, Default)]
pub(super) struct Gathered(FxHashMap<String, Gathering>);

#[derive(Debug, Default)]
struct Gathering {
    /// What each object has of a section, by the objects' numbers.
    parts: Vec<(u64, NamedSection)>,
    /// The symbols that stand for the objects with parts.
    wholes: FxHashMap<u64, SymbolName>,
    /// The objects that ask for the bounds.
    users: FxHashSet<u64>,
    /// The objects that are linked, or about to be.
    linked: FxHashSet<u64>,
    piece: Option<Arc<Piece>>,
}

/// Where the parts lie, once the first object is linked.
#[derive(Debug)]
struct Piece {
    name: String,
    offsets: FxHashMap<(u64, SectionId), u64>,
    size: u64,
    align: u64,
    memory: Mutex<Option<Arc<FinalizedAllocation>>>,
}

/// What an object has of sections of one name, and its symbols for their bounds: whether of the end.
#[derive(Debug, Default)]
struct Uses {
    sections: Vec<SectionId>,
    bounds: Vec<(SymbolId, bool)>,
}

/// What an object that is linked has to do with one section.
#[derive(Debug)]
pub(super) struct Share {
    piece: Arc<Piece>,
    memory: Option<Arc<FinalizedAllocation>>,
    number: u64,
    bounds: Vec<(SymbolId, bool)>,
    sections: Vec<SectionId>,
    /// The objects that its code finds between the bounds.
    pub(super) needed: Vec<SymbolName>,
}

const OF_CODE: &str = "code stays with its object, and the program asks for the bounds of what several have in section";

const OF_SEGMENT: &str =
    "sections stay with their object, and the program asks for the bounds of what several have in segment";

impl Gathered {
    /// Takes note of what an object has and asks for.
    ///
    /// # Errors
    ///
    /// With the name of a section that is in memory already and can't have another part.
    pub(super) fn add(&mut self, graph: &LinkGraph, number: u64, whole: &SymbolName) -> Result<(), String> {
        for section in graph.named_sections() {
            for name in section.bounded() {
                let gathering = self.0.entry(name.to_owned()).or_default();
                if !gathering.linked.is_empty() && !gathering.users.is_empty() {
                    return Err(name.to_owned());
                }
                gathering.wholes.insert(number, whole.clone());
            }
            self.0.entry(section.name.clone()).or_default().parts.push((number, section));
        }
        for SectionBound { name, .. } in graph.section_bounds() {
            let gathering = self.0.entry(name.clone()).or_default();
            if gathering.piece.is_none() && gathering.wholes.keys().any(|owner| gathering.linked.contains(owner)) {
                return Err(name);
            }
            gathering.users.insert(number);
        }
        Ok(())
    }

    /// What an object that is linked now shares with others.
    ///
    /// # Errors
    ///
    /// What stays where its object is, although it is asked for the bounds of it and others': code, and segments.
    pub(super) fn settle(&mut self, graph: &LinkGraph, number: u64) -> Result<Vec<Share>, String> {
        if self.0.is_empty() {
            return Ok(Vec::new());
        }
        let mut of: FxHashMap<String, Uses> = FxHashMap::default();
        for section in graph.named_sections() {
            if let Some(segment) = section.segment() {
                of.entry(segment.to_owned()).or_default();
            }
            of.entry(section.name).or_default().sections.push(section.section);
        }
        for SectionBound { symbol, name, end } in graph.section_bounds() {
            of.entry(name).or_default().bounds.push((symbol, end));
        }
        let mut shares = Vec::new();
        for (name, Uses { sections, bounds }) in of {
            let Some(gathering) = self.0.get_mut(&name) else { continue };
            if !gathering.wholes.is_empty() {
                gathering.linked.insert(number);
            }
            if gathering.is_apart() {
                continue;
            }
            let piece = match &gathering.piece {
                Some(piece) => Arc::clone(piece),
                None if gathering.parts.is_empty() => return Err(format!("{OF_SEGMENT} '{name}'")),
                None if gathering.parts.iter().any(|(_, part)| part.kind == SegmentKind::Code) => {
                    return Err(format!("{OF_CODE} '{name}'"));
                }
                None => Arc::clone(gathering.piece.insert(Arc::new(Piece::new(&name, &gathering.parts)))),
            };
            let others = gathering.wholes.iter().filter(|(other, _)| !bounds.is_empty() && **other != number);
            let needed = others.map(|(_, whole)| whole.clone()).collect();
            shares.push(Share { piece, memory: None, number, bounds, sections, needed });
        }
        Ok(shares)
    }

    /// Knows an object no more. When no linked one is left, there is a new piece for the next.
    pub(super) fn forget(&mut self, number: u64) {
        self.0.retain(|_, gathering| {
            gathering.parts.retain(|(part, _)| *part != number);
            gathering.wholes.remove(&number);
            gathering.users.remove(&number);
            gathering.linked.remove(&number);
            if gathering.linked.is_empty() {
                gathering.piece = None;
            }
            !gathering.wholes.is_empty() || !gathering.users.is_empty() || !gathering.linked.is_empty()
        });
    }
}

impl Gathering {
    /// Whether each object can have its part where it is itself: nobody asks for the bounds, or only the one that has all.
    fn is_apart(&self) -> bool {
        let is_owners = |user: &u64| self.wholes.len() == 1 && self.wholes.contains_key(user);
        self.piece.is_none() && (self.wholes.is_empty() || self.users.iter().all(is_owners))
    }
}

impl Piece {
    fn new(name: &str, parts: &[(u64, NamedSection)]) -> Self {
        let mut offsets = FxHashMap::default();
        let (mut size, mut align) = (0u64, 1);
        for (number, part) in parts {
            let start = size.next_multiple_of(part.align);
            offsets.insert((*number, part.section), start);
            (size, align) = (start + part.size, part.align.max(align));
        }
        Self { name: name.to_owned(), offsets, size, align, memory: Mutex::default() }
    }

    fn memory(
        &self,
        graph: &LinkGraph,
        manager: &Arc<dyn MemoryManager>,
    ) -> Result<Arc<FinalizedAllocation>, LinkError> {
        let mut memory = lock(&self.memory);
        if let Some(memory) = &*memory {
            return Ok(Arc::clone(memory));
        }
        let mut graph = LinkGraph::new(format!("section {}", self.name), graph.architecture());
        graph.add_zero_block(SegmentKind::Data, self.size.max(1), self.align)?;
        let allocation = link::prepare(graph)?.allocate(manager)?.fix_up().and_then(Fixed::finalize)?;
        Ok(Arc::clone(memory.insert(Arc::new(allocation))))
    }
}

impl Share {
    /// Brings the memory that the parts lie in.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub(super) fn open(&mut self, graph: &LinkGraph, manager: &Arc<dyn MemoryManager>) -> Result<(), LinkError> {
        self.memory = Some(self.piece.memory(graph, manager)?);
        Ok(())
    }

    /// The addresses of all parts; none before it is [open](Self::open).
    pub(super) fn whole(&self) -> Range<u64> {
        let start = self.memory.as_ref().map_or(0, |memory| memory.range(SegmentKind::Data).start);
        start..start + self.piece.size
    }

    /// The sections of the object that are parts, and their addresses.
    pub(super) fn parts(&self) -> impl Iterator<Item = (SectionId, u64)> {
        let start = self.whole().start;
        let offset = |section: &SectionId| self.piece.offsets.get(&(self.number, *section)).copied();
        self.sections.iter().filter_map(move |section| Some((*section, start + offset(section)?)))
    }

    /// The symbols that stand for the bounds, and their addresses.
    pub(super) fn bounds(&self) -> impl Iterator<Item = (SymbolId, u64)> {
        let whole = self.whole();
        self.bounds.iter().map(move |(symbol, end)| (*symbol, if *end { whole.end } else { whole.start }))
    }

    /// Stores what the object has in its parts.
    pub(super) fn write(&self, fixed: &mut Fixed) {
        let whole = self.whole();
        for (section, address) in self.parts() {
            let content = fixed.section_content(section);
            if address + content.len() as u64 > whole.end {
                continue;
            }
            let place = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
            // SAFETY: the piece's memory is data, which stays as long as the share has it. This part of it is the
            // object's, and the range was compared: who reads it needs the object, which is not ready yet.
            unsafe { place.copy_from_nonoverlapping(content.as_ptr(), content.len()) };
        }
    }
}
