//! Memory of large segments, brought a window at a time from their ends, just ahead of what is written to it.

use std::io::IoSlice;
use std::ops::Range;

use crate::graph::{Block, Content, LinkGraph};
use crate::memory::{self, Allocation, SegmentKind};

/// How much memory is brought at a time, ahead of what is written: a sixteenth of a segment, within these bounds. Of a
/// block that is larger, so much is written and has its edges applied before the part in front of it.
const WINDOW: usize = 256 << 10;
const LEAST_WINDOW: usize = 64 << 10;

/// From this size of a segment on, its content is written at once, if that is cheaper: it is worth a system call.
const LARGE: usize = 16 << 10;

/// A segment as it is written from its end.
#[derive(Clone, Copy)]
struct Window {
    /// Where the part begins whose memory is there.
    first: usize,
    /// Whether the content is there, too.
    has_content: bool,
    /// How much is brought at a time.
    size: usize,
}

impl Window {
    /// Brings the memory of a part of a block that begins before the window, and of those before it, if that is the first.
    #[cold]
    fn advance(&mut self, allocation: &mut Allocation, graph: &LinkGraph, index: usize, part: &Range<usize>) {
        let block = &graph.blocks[index];
        let start = block.segment_offset as usize + part.start;
        let ahead = if part.start == 0 { self.size } else { 0 };
        let first = start.saturating_sub(ahead);
        let range = first.max(end_of_large(graph, index, first, self.size).min(start))..self.first;
        self.first = range.start;
        self.has_content = self.has_content && write_content(allocation, graph, index, range.clone());
        // A small segment shares its pages with others, which have brought some.
        if !self.has_content && allocation.size(block.kind) >= WINDOW {
            let end = (start + part.len()).min(range.end);
            memory::populate(&mut allocation.working(block.kind)[range.start..end]);
        }
    }
}

/// By kind of segment.
pub(super) struct Windows([Window; 3]);

impl Windows {
    pub(super) fn new(graph: &LinkGraph, allocation: &Allocation) -> Self {
        // By kind: where the block before begins.
        let mut before = [0; 3];
        let mut is_sorted = [true; 3];
        for block in graph.blocks.iter().filter(|block| block.live) {
            let before = &mut before[block.kind as usize];
            is_sorted[block.kind as usize] &= *before <= block.segment_offset;
            *before = block.segment_offset;
        }
        Self(SegmentKind::ALL.map(|kind| {
            let size = Some(allocation.size(kind)).filter(|size| *size >= LARGE);
            // Data comes zeroed, and zeros are not written again.
            let may_write = size.is_some() && kind != SegmentKind::Data;
            Window {
                first: size.unwrap_or(0),
                has_content: may_write && is_sorted[kind as usize],
                size: (size.unwrap_or(0) / 16).next_multiple_of(LEAST_WINDOW).clamp(LEAST_WINDOW, WINDOW),
            }
        }))
    }

    /// How large the parts of a large block are.
    #[inline]
    pub(super) fn size(&self, kind: SegmentKind) -> usize {
        self.0[kind as usize].size
    }

    /// Brings the memory of a part of a block that is about to be written, and of those before it, if that is the first part.
    /// Says whether its content is there.
    #[inline]
    pub(super) fn open(
        &mut self,
        allocation: &mut Allocation,
        graph: &LinkGraph,
        index: usize,
        part: &Range<usize>,
    ) -> bool {
        let block = &graph.blocks[index];
        let window = &mut self.0[block.kind as usize];
        if block.segment_offset as usize + part.start < window.first {
            window.advance(allocation, graph, index, part);
        }
        window.has_content
    }
}

/// The end of a block larger than `size` before another one of its kind, if it is beyond `first`: it comes in its own parts,
/// each when its edges are next.
fn end_of_large(graph: &LinkGraph, index: usize, first: usize, size: usize) -> usize {
    let end = |block: &Block| block.segment_offset as usize + block.size as usize;
    let kind = graph.blocks[index].kind;
    let before = graph.blocks[..index].iter().rev().filter(|block| block.live && block.kind == kind);
    let mut near = before.take_while(|block| end(block) > first);
    near.find(|block| block.size as usize > size).map_or(0, end)
}

/// Writes the content of a block and of those before it to a part of their segment, at once: if that is cheaper than to copy
/// each, which it says. They are in order.
fn write_content(allocation: &mut Allocation, graph: &LinkGraph, index: usize, range: Range<usize>) -> bool {
    let kind = graph.blocks[index].kind;
    let mut parts = Parts::of(graph);
    // From the end.
    let mut written = range.end;
    for block in graph.blocks[..=index].iter().rev().filter(|block| block.live && block.kind == kind) {
        let start = block.segment_offset as usize;
        let part = start.max(range.start)..(start + block.size as usize).min(written);
        if part.is_empty() && start < range.start {
            break;
        }
        parts.put(block, part.start - start..part.end - start, written - part.end);
        written = part.start;
    }
    parts.put_zeros(written - range.start);
    allocation.write(kind, range.start, &parts.finish())
}

/// What is written one behind the other, put together from its end.
struct Parts<'a> {
    graph: &'a LinkGraph,
    object: &'a [u8],
    list: Vec<IoSlice<'a>>,
    /// The part of the object that comes first so far. What the object has before it may come before it here, too.
    run: Range<usize>,
}

impl<'a> Parts<'a> {
    fn of(graph: &'a LinkGraph) -> Self {
        Self { graph, object: graph.object(), list: Vec::new(), run: 0..0 }
    }

    /// Puts a part of a block before the others, and so many zeros between them.
    fn put(&mut self, block: &Block, part: Range<usize>, zeros: usize) {
        if let Content::Object { start } = block.content {
            let (start, end) = (start as usize + part.start, start as usize + part.end);
            let follows = zeros == 0 && end == self.run.start;
            if !follows && !self.has_zeros_behind(end, zeros) {
                self.put_zeros(zeros);
                self.end_run();
                self.run.end = end;
            }
            self.run.start = start;
            return;
        }
        self.put_zeros(zeros);
        match self.graph.bytes(block) {
            Some(bytes) => {
                self.end_run();
                self.list.push(IoSlice::new(&bytes[part]));
            }
            None => self.put_zeros(part.len()),
        }
    }

    /// Whether the object has so many zeros from an offset on, and then the part that comes first so far.
    fn has_zeros_behind(&self, offset: usize, zeros: usize) -> bool {
        let between = offset..self.run.start;
        between.end.checked_sub(between.start) == Some(zeros)
            && self.object.get(between).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0))
    }

    fn put_zeros(&mut self, mut size: usize) {
        static ZEROS: [u8; 4096] = [0; 4096];
        if size > 0 {
            self.end_run();
        }
        while size > 0 {
            let part = size.min(ZEROS.len());
            self.list.push(IoSlice::new(&ZEROS[..part]));
            size -= part;
        }
    }

    fn end_run(&mut self) {
        let bytes = self.object.get(std::mem::take(&mut self.run)).unwrap_or_default();
        if !bytes.is_empty() {
            self.list.push(IoSlice::new(bytes));
        }
    }

    fn finish(mut self) -> Vec<IoSlice<'a>> {
        self.end_run();
        self.list.reverse();
        self.list
    }
}
