//! Checks relocations against their formulas, byte by byte, in and just out of range.

use std::sync::Arc;

use jit_linker::graph::Definition;
use jit_linker::link::{self, LinkError};
use jit_linker::memory::{DetachedMemory, MemoryManager, SegmentKind};

use crate::assemble;
use crate::support::parse;

/// Where the code is. A case's field is some bytes further.
pub(crate) const CODE: u64 = 0x1234_5678_9000;
const SKIP: u64 = 0x28;
/// Where data is, unless a case is about it: out of reach of everything.
pub(crate) const FAR: u64 = 0x7777_0000_0000;
pub(crate) const PAGE: u64 = 0x1000;
/// The least address that cases have: an end of their range, though not of the field's.
pub(crate) const LOWEST: i64 = 0x4000;
/// Distances that all fit.
pub(crate) const ANY: (i64, i64) = (i64::MIN / 4, i64::MAX / 4);

/// A field that depends on the address of something.
pub(crate) struct Case {
    /// Instructions or data that refer to `_t`, which is external, or `L_data`.
    pub(crate) source: &'static str,
    /// The field's offset in them.
    pub(crate) at: u64,
    pub(crate) formula: Formula,
    /// The least and the greatest value.
    pub(crate) range: (i64, i64),
    /// Puts a value into the field, over what the assembler left.
    pub(crate) store: fn(&mut [u8], i64),
    /// What values have to be a multiple of.
    pub(crate) step: i64,
}

/// What is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Formula {
    /// The address of `_t`, plus a number.
    Absolute(i64),
    /// The same, from the field.
    Relative(i64),
    /// The same in pages, from the field's page.
    Pages(i64),
    /// The distance from the field to the GOT entry of `_t`, plus a number.
    GotEntry(i64),
    /// The distance from the field's page to that of the GOT entry.
    GotPages,
    /// The GOT entry's address.
    GotAddress,
    /// The distance from the field to `L_data`, plus a number.
    Data(i64),
    /// The address of `L_data`.
    DataAddress,
    /// The distance from the field's page to that of `L_data`.
    DataPages,
}

/// `L_data`, in an atom that is not the first.
pub(crate) const DATA: &str = "
    .data\n.p2align 3\n_first: .quad 1\n_second: .quad 2\nL_data: .quad 3\n";
const DATA_OFFSET: u64 = 16;

pub(crate) fn check(target: &str, cases: &[Case]) {
    for case in cases {
        let data = if case.source.contains("data") { DATA } else { "" };
        let source = format!(".text\n.p2align 3\n.skip {SKIP}\n{}\n{data}\n.subsections_via_symbols\n", case.source);
        let object = assemble(target, &source);

        let (low, high) = case.range;
        for value in [low, low + case.step * 0x1000, 0, 0x2000, high - case.step * 0x1000, high] {
            if !(low..=high).contains(&value) {
                continue;
            }
            let Some(sought) = place(case, value, value == high) else { continue };
            let linked = link_at(&object, sought.t, [CODE, 0x3000, sought.data]);
            let (code, _) = linked.unwrap_or_else(|error| panic!("{} = {:#x}: {error}", case.source, sought.value));
            let mut expected = original(&object);
            let field = (SKIP + case.at) as usize;
            (case.store)(&mut expected[field..], sought.value);
            assert_eq!(code[..expected.len()], expected, "{} = {:#x}", case.source, sought.value);
        }
        for (value, is_high) in [(low.checked_sub(case.step), false), (high.checked_add(case.step), true)] {
            if case.range == ANY || value.is_some_and(|value| (0..LOWEST).contains(&value)) {
                continue;
            }
            let Some(mut sought) = value.and_then(|value| place(case, value, !is_high)) else { continue };
            if (low..=high).contains(&sought.value) {
                // Addresses of data are page-aligned: one page further.
                let step = if is_high { PAGE } else { PAGE.wrapping_neg() };
                sought.data = sought.data.wrapping_add(step);
            }
            let error = link_at(&object, sought.t, [CODE, 0x3000, sought.data]).err();
            let error = error.unwrap_or_else(|| panic!("{} = {value:#x?} is linked", case.source));
            let LinkError::Fixup { section, offset, .. } = &error else { panic!("{error}") };
            // A symbol begins an atom.
            let start = if case.source.contains("_here:") { 0 } else { SKIP };
            assert_eq!((&**section, u64::from(*offset)), ("__text", start + case.at), "{error}");
        }
    }
}

/// Addresses that give a field a value, or one near it.
struct Sought {
    t: u64,
    data: u64,
    value: i64,
}

/// Where `_t` and data have to be. None if there is no such address.
fn place(case: &Case, value: i64, round_down: bool) -> Option<Sought> {
    let field = CODE + SKIP + case.at;
    let from = |origin: u64, addend: i64| origin.checked_add_signed(value)?.checked_add_signed(-addend);
    // Data begins at a page; `offset` bytes further is what has to be at an address.
    let align = |address: u64, offset: u64, origin: u64, addend: i64| {
        let base = address.wrapping_sub(offset);
        let base = if round_down { base & !(PAGE - 1) } else { base.next_multiple_of(PAGE) };
        let value = base.wrapping_add(offset).wrapping_add_signed(addend).wrapping_sub(origin).cast_signed();
        Some(Sought { t: FAR, data: base, value })
    };
    match case.formula {
        Formula::Absolute(addend) => Some(Sought { t: from(0, addend)?, data: FAR, value }),
        Formula::Relative(addend) => Some(Sought { t: from(field, addend)?, data: FAR, value }),
        Formula::Pages(addend) => {
            // Anywhere in the page.
            let t = from(field & !0xfff, addend)?.wrapping_add(0x123);
            Some(Sought { t, data: FAR, value })
        }
        Formula::GotEntry(addend) => align(from(field, addend)?, 0, field, addend),
        Formula::GotPages => align(from(field & !0xfff, 0)?, 0, field & !0xfff, 0),
        Formula::GotAddress => align(from(0, 0)?, 0, 0, 0),
        Formula::Data(addend) => align(from(field, addend)?, DATA_OFFSET, field, addend),
        Formula::DataAddress => align(from(0, 0)?, DATA_OFFSET, 0, 0),
        Formula::DataPages => {
            let data = from(field & !0xfff, 0)? & !0xfff;
            Some(Sought { t: FAR, data, value })
        }
    }
}

/// The code as it is in the object.
fn original(object: &[u8]) -> Vec<u8> {
    let graph = parse(object.to_vec());
    let code = graph.blocks().filter(|(_, block)| block.kind == SegmentKind::Code);
    code.flat_map(|(_, block)| graph.bytes(block).expect("it is stored").to_vec()).collect()
}

/// The code and data of an object, linked with external symbols at `t` and segments at `bases`.
pub(crate) fn link_at(object: &[u8], t: u64, bases: [u64; 3]) -> Result<(Vec<u8>, Vec<u8>), LinkError> {
    let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::apart(bases));
    let mut allocated = link::prepare(parse(object.to_vec()))?.allocate(&memory)?;
    let externals: Vec<_> = allocated
        .graph()
        .symbols()
        .filter(|(_, symbol)| symbol.definition == Definition::External)
        .map(|(id, _)| id)
        .collect();
    for id in externals {
        allocated.resolve(id, t, None);
    }
    let mut fixed = allocated.fix_up()?;
    Ok((fixed.content(SegmentKind::Code).to_vec(), fixed.content(SegmentKind::Data).to_vec()))
}

pub(crate) fn store_32(field: &mut [u8], value: i64) {
    field[..4].copy_from_slice(&(value as u32).to_le_bytes());
}

pub(crate) fn store_64(field: &mut [u8], value: i64) {
    field[..8].copy_from_slice(&value.to_le_bytes());
}
