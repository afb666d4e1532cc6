//! What debuggers and profilers are told of an object's code.

use jit_linker::graph::{Definition, SectionRole, SymbolKind};
use jit_linker::link::Allocated;
use jit_linker::memory::{FinalizedAllocation, SegmentKind};

use super::Services;
use super::code::{Details, LinkedCode, LinkedFunction, Note};
use crate::session::ExecutionSession;
use crate::sync::Arc;

/// Gathered before the memory is final, and told of when it is.
pub(crate) struct ObjectCode(Option<LinkedCode>);

impl ObjectCode {
    /// What `services` want to know.
    pub(crate) fn of(services: &Services, session: &ExecutionSession, allocated: &Allocated) -> Self {
        let graph = allocated.graph();
        let range = allocated.segment(SegmentKind::Code);
        if range.is_empty() || !services.want_code() {
            return Self(None);
        }
        let mut functions = Vec::new();
        for (id, symbol) in graph.symbols() {
            let Definition::Block { block, offset } = symbol.definition else { continue };
            let block = graph.block(block);
            let label = graph.symbol_label(id);
            let is_code = block.live && block.kind == SegmentKind::Code && !label.is_empty();
            if !is_code || !matches!(symbol.kind, SymbolKind::Function | SymbolKind::Unspecified) {
                continue;
            }
            // A label that the source does not call a function is none that anybody knows.
            if symbol.kind == SymbolKind::Unspecified && symbol.name.is_none() {
                continue;
            }
            // Where the size is not known, it ends where the block does.
            let rest = block.size.saturating_sub(offset);
            let size = u32::try_from(symbol.size).ok().filter(|size| (1..=rest).contains(size)).unwrap_or(rest);
            let (start, details) = (allocated.address(id), Details::default());
            functions.push(LinkedFunction { name: session.intern(&label), start, size, details });
        }
        functions.sort_by_key(|function| function.start);
        let sections = graph.sections();
        let notes = sections.filter_map(|(id, section)| {
            let name = match section.role {
                SectionRole::Note => elf_name(&graph.section_name(id)),
                SectionRole::EhFrame => ".eh_frame".to_owned(),
                _ => return None,
            };
            let range = allocated.section_range(id);
            Some(Note { name, range, has_address: section.role == SectionRole::EhFrame })
        });
        Self(Some(LinkedCode {
            architecture: graph.architecture(),
            module: Arc::from(graph.name()),
            range,
            functions,
            source: None,
            frames: None,
            notes: notes.filter(|note| !note.range.is_empty()).collect(),
        }))
    }

    /// Tells of it until the memory goes back. It is that which this was gathered from.
    pub(crate) fn register(self, services: &Services, code: &mut FinalizedAllocation) {
        if let Some(linked) = self.0 {
            code.attach(services.register(linked));
        }
    }
}

/// As ELF names a section for debuggers; Mach-O has room for sixteen bytes.
fn elf_name(name: &str) -> String {
    match name.strip_prefix("__") {
        None => name.to_owned(),
        Some("debug_str_offs") => ".debug_str_offsets".to_owned(),
        Some(rest) => format!(".{rest}"),
    }
}
