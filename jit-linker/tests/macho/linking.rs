//! What the linker makes of a whole object: dependences, records, stubs.

use std::sync::Arc;

use jit_linker::graph::{Definition, Edge, EdgeKind};
use jit_linker::link;
use jit_linker::memory::{DetachedMemory, MemoryManager, SegmentKind, SlabManager};
use jit_linker::plugin::Passes;

use crate::archive::check_index;
use crate::object::{find, place};
use crate::relocation::{CODE, FAR, link_at};
use crate::support::parse;
use crate::{ARM64, X86_64, assemble};

#[test]
fn macho_01_dependences_lead_through_local_symbols_to_those_that_others_know() {
    let source = "
        .globl _main, _other, _alone\n_main: jmp _helper\n_helper: jmp _deeper\n_deeper: jmp _outside
        _other: jmp _main\n_alone: ret\n.subsections_via_symbols\n";
    let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::at(CODE));
    let graph = parse(assemble(X86_64, source));
    let allocated = link::prepare(graph).expect("it fits").allocate(&memory).expect("there is memory");
    let name = |id| allocated.graph().symbol_label(id).into_owned();
    let mut pairs: Vec<_> =
        allocated.dependences(|_| true).into_iter().map(|(from, to)| (name(from), name(to))).collect();
    pairs.sort();
    pairs.dedup();
    let expected = [("main", "outside"), ("other", "main")].map(|(from, to)| (from.to_owned(), to.to_owned()));
    assert_eq!(pairs, expected);
}

#[test]
fn macho_12_a_record_is_for_the_function_though_a_common_symbol_has_its_address() {
    // A common symbol's value is its size; as an address it would be the function's.
    let source = "
        .comm _a_common, 1, 3\n.text\n.byte 0\n.globl _main\n_main:\n.cfi_startproc\nret\n.cfi_endproc
        .comm _z_common, 1, 3\n.subsections_via_symbols\n";
    for target in [X86_64, ARM64] {
        let source = if target == ARM64 { source.replace(".byte 0", ".byte 0, 0, 0, 0") } else { source.to_owned() };
        let graph = parse(assemble(target, &source));
        let (main, common) = (place(&graph, "main").0, place(&graph, "a_common").0);
        assert_ne!(main, common);
        let [(host, _)] = graph.attached() else { panic!("{graph}") };
        assert_eq!(host.index(), main);
        for name in ["a_common", "z_common"] {
            let common = find(&graph, name).0;
            assert!(graph.edges().iter().all(|edge| edge.target != common), "{graph}");
        }
    }
}

#[test]
fn macho_03_in_a_slab_code_of_one_object_leads_straight_to_another() {
    const CALLER: &str = ".globl _main\n_main: CODE\n.subsections_via_symbols\n";
    const TARGETS: &str =
        ".globl _t\n.data\n_t: .quad 1\n.text\n.globl _f\n.p2align 2\n_f: ret\n.subsections_via_symbols\n";
    let memory: Arc<dyn MemoryManager> = Arc::new(SlabManager::new().expect("there is address space"));
    let cases = [
        (X86_64, "movq _t@GOTPCREL(%rip), %rax\ncall _f\nret"),
        (ARM64, "adrp x0, _t@GOTPAGE\nldr x0, [x0, _t@GOTPAGEOFF]\nbl _f\nret"),
    ];
    for (target, code) in cases {
        let [caller, targets] = [CALLER.replace("CODE", code), TARGETS.to_owned()].map(|source| {
            link::prepare(parse(assemble(target, &source)))
                .expect("it fits")
                .allocate(&memory)
                .expect("there is memory")
        });
        let mut caller = caller;
        let [variable, function] = ["t", "f"].map(|name| targets.address(find(targets.graph(), name).0));
        for (name, address) in [("t", variable), ("f", function)] {
            let symbol = find(caller.graph(), name).0;
            caller.resolve(symbol, address, None);
        }
        let main = caller.address(find(caller.graph(), "main").0);
        let start = (main - caller.segment(SegmentKind::Code).start) as usize;
        let mut fixed = caller.fix_up().expect("it is near");
        let code = &fixed.content(SegmentKind::Code)[start..];
        let word = |at: usize| u32::from_le_bytes(code[at..at + 4].try_into().expect("a word"));
        let signed = |at: usize| i64::from(word(at).cast_signed());
        if target == X86_64 {
            assert_eq!(code[..3], [0x48, 0x8d, 0x05], "lea rax, [rip + ...]");
            assert_eq!(main.wrapping_add_signed(7 + signed(3)), variable);
            assert_eq!(code[7], 0xe8);
            assert_eq!(main.wrapping_add_signed(12 + signed(8)), function);
        } else {
            let [page, offset, branch] = [0, 4, 8].map(word);
            assert_eq!((page & 0x9f00_001f, offset & 0xffc0_03ff), (0x9000_0000, 0x9100_0000), "adrp x0; add x0, x0");
            let pages = ((page >> 29 & 3 | page >> 3 & 0x1f_fffc) << 11).cast_signed() >> 11;
            let address = (main & !0xfff).wrapping_add_signed(i64::from(pages) << 12);
            assert_eq!(address + u64::from(offset >> 10 & 0xfff), variable);
            assert_eq!(branch >> 26, 0b100_101);
            let distance = i64::from(branch << 6).wrapping_shl(32) >> 36 & !3;
            assert_eq!((main + 8).wrapping_add_signed(distance), function);
        }
    }
}

/// An assembler leaves no relocation where code forms its own function's address. A plugin that
/// wants to know of it adds the edge.
#[test]
fn macho_22_a_pass_adds_the_edge_of_code_that_forms_its_own_address() {
    use jit_linker::arch::x86_64::EdgeKind::Delta32;
    let source = ".globl _first, _main\n_first: ret\n_main: leaq _main(%rip), %rax\nret\n.subsections_via_symbols\n";
    let graph = parse(assemble(X86_64, source));
    let main = find(&graph, "main").0;
    assert!(graph.edges().iter().all(|edge| edge.target != main), "{graph}");
    let mut passes = Passes::default();
    passes.before_prune.push(Box::new(move |graph| {
        let Definition::Block { block, offset } = graph.symbol(main).definition else { return Err("it moved".into()) };
        let edge = Edge { block, offset: offset + 3, kind: EdgeKind::X86_64(Delta32), target: main, addend: -4 };
        Ok(graph.add_edge(edge)?)
    }));
    let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::at(CODE));
    let loaded = link::load(graph, passes).expect("the pass finds it");
    let allocated = loaded.prepare().expect("it fits").allocate(&memory).expect("there is memory");
    let at = (allocated.address(main) - allocated.segment(SegmentKind::Code).start) as usize;
    let pairs = allocated.dependences(|_| true);
    assert!(pairs.contains(&(main, main)), "{pairs:?}");
    let mut fixed = allocated.fix_up().expect("it is near");
    assert_eq!(fixed.content(SegmentKind::Code)[at..at + 8], [0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xc3]);
}

#[test]
fn macho_34_stubs_reach_got_entries_that_are_mebibytes_away() {
    let object = assemble(ARM64, ".globl _main\n.p2align 2\n_main: bl _t\nbl _t\n.subsections_via_symbols\n");
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a word"));
    for distance in [-(4 << 30), -(130 << 20), -(1 << 20), 1 << 20, 130 << 20, (4 << 30) - (1 << 20)] {
        let data = CODE.wrapping_add_signed(distance);
        let (code, content) = link_at(&object, FAR, [CODE, 0x3000, data]).unwrap_or_else(|error| panic!("{error}"));
        let stub = ((word(&code, 0) & 0x3ff_ffff) * 4) as usize;
        assert_eq!(stub, 4 + ((word(&code, 4) & 0x3ff_ffff) * 4) as usize, "both calls have one stub");
        let [page, load, branch] = [4, 8, 12].map(|at| word(&code, stub + at));
        assert_eq!((page & 0x9f00_001f, load & 0xffc0_03ff, branch), (0x9000_0010, 0xf940_0210, 0xd61f_0200));
        let pages = ((page >> 29 & 3 | page >> 3 & 0x1f_fffc) << 11).cast_signed() >> 11;
        let entry = ((CODE + stub as u64) & !0xfff).wrapping_add_signed(i64::from(pages) << 12);
        let entry = entry + u64::from(load >> 10 & 0xfff) * 8;
        let at = (entry - data) as usize;
        assert_eq!(content[at..at + 8], FAR.to_le_bytes(), "{distance:#x}");
    }
}

#[test]
fn an_archive_without_an_index_offers_every_kind_of_definition() {
    let source = "
        .text\n.globl _function, _private, _weak, _absolute, _alias\n_function: nop
        .private_extern _private\n_private: nop\n.weak_definition _weak\n_weak: nop\n_local: nop
        .comm _common, 4, 2\n_absolute = 5\n_alias = _outside
        .data\n.quad _undefined\n.subsections_via_symbols\n";
    for target in [X86_64, ARM64] {
        let offered = ["function", "private", "weak", "common", "absolute", "alias"];
        check_index(&assemble(target, source), &offered, &["local", "outside", "undefined"]);
    }
}
