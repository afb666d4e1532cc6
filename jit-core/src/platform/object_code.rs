//! What the unwinder, debuggers and profilers are told of an object's code.

use std::ops::Range;

use jit_linker::graph::{Definition, SectionRole, SymbolKind};
use jit_linker::link::Allocated;
use jit_linker::memory::{FinalizedAllocation, SegmentKind};

use super::Services;
use super::code::{Details, LinkedCode, LinkedFunction, Note};
use super::unwind::{self, EhFrameError, ObjectFrames};
use crate::session::ExecutionSession;
use crate::sync::Arc;

/// Gathered before the memory is final, and told of when it is.
pub(crate) struct ObjectCode {
    frames: ObjectFrames,
    /// What others than the unwinder want to know.
    code: Option<LinkedCode>,
}

impl ObjectCode {
    /// What `services` want to know.
    pub(crate) fn of(services: &Services, session: &ExecutionSession, allocated: &Allocated) -> Self {
        let range = allocated.segment(SegmentKind::Code);
        let is_wanted = services.want_code() && !range.is_empty();
        let code = is_wanted.then(|| linked_code(session, allocated, range));
        Self { frames: ObjectFrames::of(allocated), code }
    }

    /// Tells of it until the memory goes back. It is that which this was gathered from.
    ///
    /// # Errors
    ///
    /// When `.eh_frame` is malformed.
    pub(crate) fn register(self, services: &Services, code: &mut FinalizedAllocation) -> Result<(), EhFrameError> {
        let frames = self.frames.read(code)?;
        if let Some(mut linked) = self.code {
            linked.frames = services.profiler.is_some().then(|| frames.clone());
            code.attach(services.register(linked));
        }
        if !frames.is_empty() {
            code.attach(Box::new(unwind::register(frames)));
        }
        Ok(())
    }
}

fn linked_code(session: &ExecutionSession, allocated: &Allocated, range: Range<u64>) -> LinkedCode {
    let graph = allocated.graph();
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
        if symbol.kind == SymbolKind::Unspecified && !symbol.is_named() {
            continue;
        }
        // Where the size is not known, it ends where the block does.
        let rest = block.size.saturating_sub(offset);
        let size = Some(symbol.size).filter(|size| (1..=rest).contains(size)).unwrap_or(rest);
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
    LinkedCode {
        architecture: graph.architecture(),
        module: Arc::from(graph.name()),
        range,
        functions,
        source: None,
        frames: None,
        notes: notes.filter(|note| !note.range.is_empty()).collect(),
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
