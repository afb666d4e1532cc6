//! Checks relocations against the psABI's formulas, in and just out of range.
//!
//! All cases of an architecture are assembled as one object, each in a section of its own; the
//! link of one leaves the others out.

use std::fmt::Write as _;
use std::sync::Arc;

use jit_linker::LinkGraph;
use jit_linker::graph::{Definition, SymbolId};
use jit_linker::link::{self, LinkError, TlsLocation};
use jit_linker::memory::{DetachedMemory, MemoryManager, SegmentKind};

use crate::compiler::build;
use crate::support::parse;

/// What the value that a case stores is measured between.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Formula {
    /// S + A.
    Absolute,
    /// S + A − P.
    Relative,
    /// Page(S + A) − Page(P).
    Page,
    /// G + A − P.
    GotEntry,
    /// G − P, where G is the entry of S + A.
    GotEntryOfSum,
    /// Page(G) − Page(P), where G is the entry of S + A.
    GotEntryPage,
    /// The low 12 bits of G, where G is the entry of S + A.
    GotEntryLow,
    /// GOT + A − P.
    GotBase,
    /// S + A − GOT.
    GotOffset,
    /// S + A − TP.
    TlsOffset,
    /// S + A, from the start of the module's storage.
    TlsModuleOffset,
}

/// What is in the GOT for a case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Entry {
    None,
    Address,
    TlsPair,
    TlsModule,
    TlsOffset,
    TlsDescriptor,
}

pub(crate) struct Case {
    pub(crate) relocation: &'static str,
    pub(crate) addend: i64,
    /// What stands at the place.
    pub(crate) before: Vec<u8>,
    pub(crate) formula: Formula,
    pub(crate) entry: Entry,
    /// Values that fit.
    pub(crate) inside: Vec<i64>,
    /// Values that don't.
    pub(crate) outside: Vec<i64>,
    /// What a value leaves at the place.
    pub(crate) after: Box<dyn Fn(i64) -> Vec<u8>>,
}

/// Where the case's code is; the place is some bytes further.
const CODE: u64 = 0x1234_5678_9000;
const SKIP: u64 = 0x28;
const PLACE: u64 = CODE + SKIP;
/// Out of reach of everything.
const FAR: u64 = 0x7777_0000_1230;
const MODULE: u64 = 77;
const DESCRIPTOR: [u64; 2] = [0x1111_0000, 0x2222_0000];

pub(crate) fn check(target: &str, cases: &[Case]) {
    let mut source = String::new();
    for (index, case) in cases.iter().enumerate() {
        let is_tls = matches!(case.formula, Formula::TlsOffset | Formula::TlsModuleOffset)
            || !matches!(case.entry, Entry::None | Entry::Address);
        if is_tls {
            writeln!(source, ".type target{index}, @tls_object").expect("a string takes all");
        }
        let bytes: Vec<_> = case.before.iter().map(u8::to_string).collect();
        writeln!(
            source,
            ".section .text.case{index}, \"ax\", %progbits\n.skip {SKIP}\n.reloc ., {}, target{index} + {}\n.byte {}\n.skip 16",
            case.relocation,
            case.addend,
            bytes.join(","),
        )
        .expect("a string takes all");
    }
    let graph = parse(build(&["clang-22", "-target", target, "-c"], "s", &source));
    for (index, case) in cases.iter().enumerate() {
        for &value in &case.inside {
            let linked = link_one(&graph, cases.len(), index, case, value);
            let (code, got) = linked.unwrap_or_else(|error| panic!("{} of {value:#x}: {error}", case.relocation));
            let expected = (case.after)(value);
            let found = &code[SKIP as usize..][..expected.len()];
            assert_eq!(found, expected, "{} of {value:#x}", case.relocation);
            check_entry(case, value, &got);
        }
        for &value in &case.outside {
            let error = link_one(&graph, cases.len(), index, case, value).err();
            let error = error.unwrap_or_else(|| panic!("{} of {value:#x} is linked", case.relocation));
            let LinkError::Fixup { section, symbol, offset, .. } = &error else { panic!("{error}") };
            assert_eq!(
                (&**section, &**symbol, u64::from(*offset)),
                (&*format!(".text.case{index}"), &*format!("target{index}"), SKIP),
            );
        }
    }
}

/// The code and the GOT after linking one case so that the place takes `value`.
fn link_one(
    graph: &LinkGraph,
    cases: usize,
    index: usize,
    case: &Case,
    value: i64,
) -> Result<(Vec<u8>, Vec<u8>), LinkError> {
    let symbol =
        |index: usize| -> SymbolId { graph.find_symbol(&format!("target{index}")).expect("each case has a target") };
    // Other cases' entries precede: the GOT holds those of all.
    let sought = |got: u64| got.wrapping_add_signed(value);
    let (address, got) = match case.formula {
        Formula::Absolute => (0u64.wrapping_add_signed(value - case.addend), 0x5000),
        Formula::Relative => (PLACE.wrapping_add_signed(value).wrapping_add_signed(-case.addend), 0x5000),
        Formula::Page => ((PLACE & !0xfff).wrapping_add_signed(value - case.addend + 0x123), 0x5000),
        Formula::GotEntry | Formula::GotBase => (FAR, sought(PLACE).wrapping_add_signed(-case.addend)),
        Formula::GotEntryOfSum => (FAR, sought(PLACE)),
        Formula::GotEntryPage => (FAR, sought(PLACE & !0xfff)),
        Formula::GotEntryLow => (FAR, sought(PLACE & !0xfff)),
        Formula::GotOffset => (sought(FAR).wrapping_add_signed(-case.addend), FAR),
        Formula::TlsOffset | Formula::TlsModuleOffset => (0, 0x5000),
    };
    let mut single = graph.clone();
    let others: Vec<_> = (0..cases).filter(|other| *other != index).map(symbol).collect();
    let excluded = single.exclude(&others);
    assert!(excluded.is_empty(), "the cases define no symbols");
    let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::apart([CODE, 0x3000, got]));
    let mut allocated = link::prepare(single)?.allocate(&memory)?;
    let target = symbol(index);
    assert_eq!(allocated.graph().symbol(target).definition, Definition::External);
    allocated.resolve(target, address, None);
    let location = TlsLocation {
        module: MODULE,
        offset: (value - case.addend).cast_unsigned(),
        thread_pointer_offset: Some(value - case.addend),
        descriptor: Some(DESCRIPTOR),
    };
    allocated.resolve_thread_local(target, location);
    allocated.set_thread_local_storage(TlsLocation { offset: 0, ..location });
    let mut fixed = allocated.fix_up()?;
    let code = fixed.content(SegmentKind::Code).to_vec();
    Ok((code, fixed.content(SegmentKind::Data).to_vec()))
}

fn check_entry(case: &Case, value: i64, got: &[u8]) {
    let words: Vec<_> =
        got.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect();
    // The addend is the symbol's where the entry's address is stored in an instruction of AArch64.
    let of_sum = !matches!(case.formula, Formula::GotEntry);
    let inner = if of_sum { case.addend } else { 0 };
    let expected = match case.entry {
        Entry::None => return,
        Entry::Address => vec![FAR.wrapping_add_signed(inner)],
        Entry::TlsPair => vec![MODULE, (value - case.addend + inner).cast_unsigned()],
        Entry::TlsModule => vec![MODULE, 0],
        Entry::TlsOffset => vec![(value - case.addend + inner).cast_unsigned()],
        Entry::TlsDescriptor => vec![DESCRIPTOR[0], DESCRIPTOR[1].wrapping_add_signed(inner)],
    };
    assert_eq!(words, expected, "the GOT of {}", case.relocation);
}
