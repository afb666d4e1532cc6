//! What is read from an object.

use std::sync::Arc;

use jit_linker::SymbolStringPool;
use jit_linker::arch::Architecture;
use jit_linker::format::{self, ParseError};
use jit_linker::graph::{Definition, LinkGraph, Linkage, ObjectBytes, Scope, SectionId, SectionRole, Symbol, SymbolId};
use jit_linker::link;
use jit_linker::memory::{DetachedMemory, MemoryManager, SegmentKind};
use jit_linker::plugin::Passes;

use crate::compiler::run;
use crate::support::parse;
use crate::{ARM64, X86_64, assemble, compile};

pub(crate) fn find<'graph>(graph: &'graph LinkGraph, name: &str) -> (SymbolId, &'graph Symbol) {
    let found = graph.symbols().find(|(id, _)| graph.symbol_label(*id) == name);
    found.unwrap_or_else(|| panic!("{name} is not there:\n{graph}"))
}

/// The block that a symbol is in, and its offset there.
pub(crate) fn place(graph: &LinkGraph, name: &str) -> (usize, u32) {
    match find(graph, name).1.definition {
        Definition::Block { block, offset } => (block.index(), offset),
        definition => panic!("{name} is {definition:?}"),
    }
}

fn refused(object: Vec<u8>) -> ParseError {
    format::parse("test.o", object.into(), &SymbolStringPool::new()).expect_err("it can't be linked")
}

#[test]
fn sections_are_taken_apart_at_symbols_that_are_no_alternative_entries() {
    let source = "
        .globl _a, _b, _c\n_a: .quad 1\n.alt_entry _b\n_b: .quad 2\n_c: .quad 3\n
        .subsections_via_symbols\n";
    for target in [X86_64, ARM64] {
        let graph = parse(assemble(target, &format!(".data\n.p2align 4\n{source}")));
        let ((a, 0), (b, 8), (c, 0)) = (place(&graph, "a"), place(&graph, "b"), place(&graph, "c")) else {
            panic!("{graph}")
        };
        assert_eq!((a == b, a == c), (true, false));
        let blocks: Vec<_> =
            graph.blocks().map(|(_, block)| (block.size, block.align_log2, block.align_offset)).collect();
        assert!(blocks.contains(&(16, 4, 0)) && blocks.contains(&(8, 4, 0)), "{blocks:?}");
    }
}

#[test]
fn macho_19_a_section_without_the_flag_is_one_block() {
    let graph = parse(assemble(X86_64, ".data\n.globl _a, _b\n_a: .quad 1\n_b: .quad 2\n"));
    assert_eq!(place(&graph, "a").0, place(&graph, "b").0);
    assert_eq!((place(&graph, "a").1, place(&graph, "b").1), (0, 8));
}

#[test]
fn macho_02_two_locals_of_one_name_are_two_symbols() {
    // An assembler refuses it, `ld -r` does not: the second name is made that of the first.
    let source = ".data\n_local1: .quad 1\n_local2: .quad 2\n.subsections_via_symbols\n";
    let mut object = assemble(X86_64, source);
    let at = object.windows(8).position(|name| name == b"_local2\0").expect("the name is in the object");
    object[at + 6] = b'1';
    let graph = parse(object);
    let found: Vec<_> = graph.symbols().filter(|(id, _)| graph.symbol_label(*id) == "_local1").collect();
    assert_eq!(found.len(), 2);
    assert_ne!(found[0].1.definition, found[1].1.definition);
}

#[test]
fn macho_04_absolute_symbols_have_their_value_and_scope() {
    let graph = parse(assemble(ARM64, ".globl _everybody\n_everybody = 0x1234\n_own = 0x5678\n"));
    let (everybody, own) = (find(&graph, "everybody").1, find(&graph, "_own").1);
    assert_eq!(
        (everybody.definition, everybody.address(), everybody.scope),
        (Definition::Absolute, 0x1234, Scope::Default)
    );
    assert_eq!((own.definition, own.address(), own.scope), (Definition::Absolute, 0x5678, Scope::Local));
}

#[test]
fn macho_09_strings_are_split_after_their_zeros_and_each_keeps_its_alignment() {
    let source = "
        .section __TEXT,__cstring,cstring_literals\n.p2align 4
        L_first: .asciz \"first\"\n.p2align 3\nl_second: .asciz \"second\"
        l_inner = l_second + 3
        l_again: .asciz \"first\"\n.p2align 3\nl_third: .asciz \"third\"
        .data\n_pointers: .quad l_second, l_inner, l_again, L_first\n.subsections_via_symbols\n";
    for target in [X86_64, ARM64] {
        let graph = parse(assemble(target, source));
        let texts: Vec<_> = graph
            .blocks()
            .filter_map(|(_, block)| Some((graph.bytes(block)?, block.align_log2)))
            .filter(|(bytes, _)| bytes.len() < 32)
            .map(|(bytes, align)| (String::from_utf8_lossy(bytes).into_owned(), align))
            .collect();
        let text = |text: &str, align| assert!(texts.contains(&(text.to_owned(), align)), "{text} {align}: {texts:?}");
        text("first\0", 4);
        text("second\0", 3);
        text("third\0", 3);
        assert_eq!(texts.iter().filter(|(text, _)| text == "first\0").count(), 1, "equal strings are one");
        let ((second, 0), (inner, 3)) = (place(&graph, "l_second"), place(&graph, "l_inner")) else {
            panic!("a label within a string takes nothing apart: {graph}")
        };
        assert_eq!(second, inner);
    }
}

#[test]
fn macho_09_strings_that_nobody_refers_to_are_left_out_and_the_others_are_aligned_in_memory() {
    let source = "
        .section __TEXT,__cstring,cstring_literals\n.asciz \"x\"\nL_dead: .asciz \"dead\"\n.p2align 4\nl_first: .asciz \"first\"
        l_also: .asciz \"dead, too\"\n.p2align 3\nl_second: .asciz \"second\"\nl_third: .asciz \"third\"
        .data\n.globl _pointers\n_pointers: .quad l_first, l_second + 3, l_third\n.subsections_via_symbols\n";
    for target in [X86_64, ARM64] {
        let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::at(0x10000));
        let graph = parse(assemble(target, source));
        let pointers = find(&graph, "pointers").0;
        let mut link = link::load(graph, Passes::default()).expect("there are no passes");
        link.prune(&[pointers]);
        let allocated = link.prepare().expect("it fits").allocate(&memory).expect("there is memory");
        let base = allocated.segment(SegmentKind::ReadOnly).start;
        let mut fixed = allocated.fix_up().expect("it is near");
        let pointers = fixed.content(SegmentKind::Data).as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        let pointers: Vec<u64> = pointers.collect();
        let strings = fixed.content(SegmentKind::ReadOnly).to_vec();
        let at = |address: u64| &strings[(address - base) as usize..];
        let [first, second, third] = pointers[..] else { panic!("{pointers:x?}") };
        assert!(
            at(first).starts_with(b"first\0") && at(second).starts_with(b"ond\0") && at(third).starts_with(b"third\0")
        );
        assert_eq!((first % 16, second % 8), (0, 3), "{target}");
        let text = String::from_utf8_lossy(&strings);
        assert!(!text.contains("dead") && !text.contains('x'), "{target}: {text}");
    }
}

#[test]
fn literals_of_4_8_and_16_bytes_are_split_and_merged() {
    let source = "
        .literal4\n.long 1, 2, 1\n.literal8\n.quad 5, 6, 5, 5
        .literal16\n.quad 7, 7, 8, 8, 7, 7\n.subsections_via_symbols\n";
    let graph = parse(assemble(X86_64, source));
    let mut sizes: Vec<_> = graph.blocks().map(|(_, block)| block.size).filter(|size| *size > 0).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [4, 4, 8, 8, 16, 16]);
}

#[test]
fn macho_13_an_empty_section_is_nothing() {
    let graph = parse(assemble(X86_64, ".text\n.data\n.globl _one\n_one: .quad 1\n"));
    assert_eq!(place(&graph, "one").1, 0);
}

#[test]
fn macho_16_linker_private_and_private_external_symbols_are_hidden() {
    let source = ".data\n.globl l_private\nl_private: .quad 1\n.globl _external\n.private_extern _external\n_external: .quad 2\nl_local: .quad 3\n";
    let graph = parse(assemble(X86_64, source));
    assert_eq!(find(&graph, "\u{1}l_private").1.scope, Scope::Hidden);
    assert_eq!(find(&graph, "external").1.scope, Scope::Hidden);
    assert_eq!(find(&graph, "l_local").1.scope, Scope::Local);
}

#[test]
fn macho_21_sections_of_one_name_in_two_segments_are_two() {
    let source =
        ".section __DATA,__same\n.globl _one\n_one: .quad 1\n.section __TEXT,__same\n.globl _two\n_two: .quad 2\n";
    let graph = parse(assemble(ARM64, source));
    let section = |name| match find(&graph, name).1.definition {
        Definition::Block { block, .. } => graph.block(block).section.expect("it is of a section"),
        definition => panic!("{definition:?}"),
    };
    assert_ne!(section("one"), section("two"));
}

#[test]
fn macho_26_an_unnamed_external_is_an_error() {
    let mut object = assemble(X86_64, ".data\n.quad _missing\n");
    let at = object.windows(9).position(|name| name == b"_missing\0").expect("the name is in the object");
    object[at] = 0;
    let error = refused(object).to_string();
    assert!(error.contains("has no name"), "{error}");
}

#[test]
fn macho_27_a_symbol_that_was_private_external_is_local() {
    let mut object = assemble(X86_64, ".data\n.globl _own\n.private_extern _own\n_own: .quad 1\n");
    // Its type is external, private and of a section; the section follows.
    let at = object.windows(2).rposition(|pair| pair == [0x1f, 2]).expect("the symbol is there");
    object[at] = 0x1e;
    let graph = parse(object);
    assert_eq!(find(&graph, "_own").1.scope, Scope::Local);
}

#[test]
fn macho_28_a_weak_definition_is_weak_whether_it_is_seen_or_not() {
    let source = ".data\n.globl _seen\n.weak_definition _seen\n_seen: .quad 1\n.weak_definition _own\n.globl _own\n.private_extern _own\n_own: .quad 2\n";
    let graph = parse(assemble(ARM64, source));
    let (seen, own) = (find(&graph, "seen").1, find(&graph, "own").1);
    assert_eq!((seen.linkage, seen.scope), (Linkage::Weak, Scope::Default));
    assert_eq!((own.linkage, own.scope), (Linkage::Weak, Scope::Hidden));
}

#[test]
fn macho_28_a_local_weak_definition_is_both_in_the_dump_before_and_after_it_is_linked() {
    let source =
        ".data\n.weak_definition _own\n_own: .quad 1\n.globl _user\n_user: .quad _own\n.subsections_via_symbols\n";
    for target in [X86_64, ARM64] {
        let graph = parse(assemble(target, source));
        assert!(graph.to_string().contains(" _own: local weak data"), "{graph}");
        let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::at(0x10000));
        let allocated = link::prepare(graph).expect("it fits").allocate(&memory).expect("there is memory");
        let graph = allocated.graph();
        assert!(graph.to_string().contains(" _own: local weak data"), "{graph}");
    }
}

#[test]
fn commons_have_size_and_alignment_and_yield() {
    let graph = parse(assemble(X86_64, ".comm _table, 100, 5\n.comm _plain, 6\n.data\n.quad _table, _plain\n"));
    let table = find(&graph, "table").1;
    assert_eq!((table.linkage, table.size), (Linkage::Common, 100));
    let block = |name| match find(&graph, name).1.definition {
        Definition::Block { block, .. } => graph.block(block),
        definition => panic!("{definition:?}"),
    };
    assert_eq!((block("table").size, block("table").align_log2), (100, 5));
    assert_eq!((block("plain").size, block("plain").align_log2), (6, 3));
}

#[test]
fn macho_25_macho_30_zeros_are_not_stored_and_keep_their_alignment() {
    let source = ".zerofill __DATA,__bss,_zeros,48,12\n.tbss _variable$tlv$init, 8, 3\n";
    let graph = parse(assemble(X86_64, source));
    let Definition::Block { block, .. } = find(&graph, "_zeros").1.definition else { panic!("{graph}") };
    let block = graph.block(block);
    assert_eq!((graph.bytes(block), block.size, block.align_log2), (None, 48, 12));
    let Definition::Block { block, .. } = find(&graph, "_variable$tlv$init").1.definition else { panic!("{graph}") };
    assert_eq!(graph.bytes(graph.block(block)), None);
    let section = graph.block(block).section.expect("it is in the template");
    assert_eq!(graph.section(section).role, SectionRole::ThreadLocal);
}

#[test]
fn the_256th_section_is_one_too_many() {
    // Assemblers refuse it too, so the object is made by hand: a header, and one segment.
    let object = |sections: u32| -> Vec<u8> {
        let size = 72 + 80 * sections;
        let header = [0xfeed_facf, 0x0100_000c, 0, 1, 1, size, 0, 0];
        let segment = [0x19, size, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7, sections, 0];
        let words = header.into_iter().chain(segment).chain(std::iter::repeat_n(0, 20 * sections as usize));
        words.flat_map(u32::to_le_bytes).collect()
    };
    assert_eq!(parse(object(255)).blocks().count(), 255);
    let error = refused(object(256)).to_string();
    assert!(error.contains("256 sections"), "{error}");
}

#[test]
fn macho_53_authenticated_pointers_are_refused_by_name() {
    let mut object = assemble(ARM64, ".data\n.quad 0, _f\n");
    // The relocation at 8 is a pointer's: of 8 bytes, external. Its type becomes 11.
    let is_pointer = |bytes: &[u8]| bytes[..4] == [8, 0, 0, 0] && bytes[5..] == [0, 0, 0x0e];
    let at = object.windows(8).rposition(is_pointer).expect("it is there");
    object[at + 7] = 0xbe;
    let error = refused(object);
    assert!(
        matches!(&error, ParseError::AuthenticatedPointer { section, offset: 8, .. } if section == "__DATA,__data")
    );
    assert!(error.to_string().contains("authenticated pointer"), "{error}");
}

#[test]
fn macho_33_section_bounds_are_those_of_the_section() {
    let source = ".section __DATA,__list\n.quad 1, 2\n.data\n.globl _bounds\n_bounds: .quad section$start$__DATA$__list, section$end$__DATA$__list\n.subsections_via_symbols\n";
    let graph = parse(assemble(ARM64, source));
    let mut bounds: Vec<_> = graph
        .symbols()
        .filter_map(|(_, symbol)| match symbol.definition {
            Definition::SectionBound { section, end } => Some((graph.section_name(section).into_owned(), end)),
            _ => None,
        })
        .collect();
    bounds.sort_unstable();
    assert_eq!(bounds, [("__list".to_owned(), false), ("__list".to_owned(), true)]);
}

#[test]
fn fmt_01_initializers_are_known_by_type() {
    let holds = |section: &str| {
        let source = format!(".text\n_f: ret\n.section {section}\n.p2align 3\n.quad _f\n.subsections_via_symbols\n");
        parse(assemble(X86_64, &source)).initializers().len()
    };
    assert_eq!(holds("__DATA,__mod_init_func,mod_init_funcs"), 1);
    assert_eq!(holds("__DATA,__my_own,mod_init_funcs"), 1);
    for section in ["__DATA,__data", "__DATA,__mod_init_func", "__DATA,__mod_term_func,mod_term_funcs"] {
        assert_eq!(holds(section), 0, "{section}");
    }
}

#[test]
fn macho_15_initializers_and_finalizers_are_exposed_in_order() {
    let source = "
        .text\n_i1: ret\n_i2: ret\n_t: ret
        .section __DATA,__mod_init_func,mod_init_funcs\n.p2align 3\n.quad _i1, _i2
        .section __DATA,__mod_term_func,mod_term_funcs\n.p2align 3\n.quad _t\n.subsections_via_symbols\n";
    for target in [X86_64, ARM64] {
        let graph = parse(assemble(target, source));
        let names = |sections: Vec<SectionId>| -> Vec<String> {
            let section = sections[0];
            let edges = graph.edges().iter().filter(|edge| graph.block(edge.block).section == Some(section));
            edges.map(|edge| graph.symbol_label(edge.target).into_owned()).collect()
        };
        assert_eq!(names(graph.initializers()), ["_i1", "_i2"]);
        assert_eq!(names(graph.finalizers()), ["_t"]);
    }
}

#[test]
fn what_only_a_linked_image_has_is_refused() {
    let error =
        refused(assemble(X86_64, ".section __TEXT,__stubs,symbol_stubs,none,6\n.indirect_symbol _f\n.skip 6\n"));
    assert!(matches!(&error, ParseError::UnsupportedSection { section, .. } if section == "__TEXT,__stubs"), "{error}");
    let mut object = assemble(X86_64, "nop\n");
    object[12] = 2;
    assert!(matches!(refused(object), ParseError::NotLinkable { .. }));
}

#[test]
fn each_architecture_finds_its_part_of_a_universal_file() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let part = |name: &str, target: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, compile(target, "-O1", "int f(void) { return 1; }")).expect("it can be written");
        path
    };
    let (x86_64, arm64) = (part("x86_64.o", X86_64), part("arm64.o", ARM64));
    for option in [None, Some("-fat64")] {
        let universal = folder.path().join("universal.o");
        let mut lipo = std::process::Command::new("llvm-lipo-22");
        run(lipo.arg("-create").arg(&x86_64).arg(&arm64).args(option).arg("-output").arg(&universal));
        let bytes = ObjectBytes::from(std::fs::read(&universal).expect("it is there"));
        for (architecture, part) in [(Architecture::X86_64, &x86_64), (Architecture::Aarch64, &arm64)] {
            let slice = format::macho::slice("universal.o", &bytes, architecture).expect("it has both");
            assert_eq!(*slice, std::fs::read(part).expect("it is there"));
        }
        assert_eq!(Some(parse(bytes).architecture()), Architecture::host());
    }
    let single = folder.path().join("single.o");
    run(std::process::Command::new("llvm-lipo-22").arg("-create").arg(&arm64).arg("-output").arg(&single));
    let bytes = ObjectBytes::from(std::fs::read(&single).expect("it is there"));
    let error = format::macho::slice("single.o", &bytes, Architecture::X86_64).expect_err("it has no such part");
    assert!(matches!(error, ParseError::NotLinkable { .. }), "{error}");
}

/// Assemblers have no name for the type of `__init_offsets`, which is in the section's flags.
fn with_init_offsets(mut object: Vec<u8>) -> Vec<u8> {
    let at = object.windows(15).position(|name| name == b"__init_offsets\0").expect("it is there");
    object[at + 64] = 0x16;
    object
}

#[test]
fn offsets_of_initializers_become_pointers_to_them() {
    for target in [X86_64, ARM64] {
        let source = ".text\n_i1: nop\n_i2: nop\n.section __TEXT,__init_offsets\n.long _i1\n.long _i2\n.subsections_via_symbols\n";
        let graph = parse(with_init_offsets(assemble(target, source)));
        let [section] = graph.initializers()[..] else { panic!("{graph}") };
        let edges = graph.edges().iter().filter(|edge| graph.block(edge.block).section == Some(section));
        let targets: Vec<_> = edges.map(|edge| (edge.offset, graph.symbol_label(edge.target).into_owned())).collect();
        assert_eq!(targets, [(0, "_i1".to_owned()), (8, "_i2".to_owned())], "{target}");
    }
}

#[test]
fn an_initializer_at_a_label_is_that_function() {
    for target in [X86_64, ARM64] {
        for entries in
            [".long _i1\n.long L_i2\n.long _i1 + 8", ".long _i1 - _base\n.long L_i2 - _base\n.long _i1 + 8 - _base"]
        {
            let source = format!(
                ".text\n_i1: .long 1\nL_i2: .long 2, 3\n.data\n_base: .long 4
                .section __TEXT,__init_offsets\n{entries}\n.subsections_via_symbols\n"
            );
            let graph = parse(with_init_offsets(assemble(target, &source)));
            let [section] = graph.initializers()[..] else { panic!("{graph}") };
            let edges = graph.edges().iter().filter(|edge| graph.block(edge.block).section == Some(section));
            let functions: Vec<_> = edges
                .map(|edge| match graph.symbol(edge.target).definition {
                    Definition::Block { block, offset } => (block.index(), i64::from(offset) + edge.addend),
                    definition => panic!("{definition:?}"),
                })
                .collect();
            let block = place(&graph, "_i1").0;
            assert_eq!(functions, [(block, 0), (block, 4), (block, 8)], "{target}: {entries}: {graph}");
        }
    }
}

#[test]
fn pointers_to_indirect_symbols_are_their_addresses() {
    let source = "
        .section __DATA,__pointers,non_lazy_symbol_pointers\n.p2align 3
        .globl _a, _b\n_a: .indirect_symbol _outside\n.quad 0\n_b: .indirect_symbol _here\n.quad 0
        .data\n.globl _here\n_here: .quad 1\n.subsections_via_symbols\n";
    for target in [X86_64, ARM64] {
        let graph = parse(assemble(target, source));
        let (block, _) = place(&graph, "a");
        let edges = graph.edges().iter().filter(|edge| edge.block.index() == block);
        let targets: Vec<_> = edges.map(|edge| (edge.offset, graph.symbol_label(edge.target).into_owned())).collect();
        assert_eq!(targets, [(0, "outside".to_owned()), (8, "here".to_owned())], "{target}: {graph}");
    }
}

#[test]
fn macho_18_an_address_at_the_end_of_a_section_is_in_it() {
    // The label is behind the last byte, where the next section begins.
    let source = ".data\n.globl _first\n_first: .quad 1\n_last: .quad 2\nL_end:\n.section __DATA,__next\n_next: .quad L_end, L_end+8\n.subsections_via_symbols\n";
    for target in [X86_64, ARM64] {
        let object = assemble(target, source);
        let (_, data) = crate::relocation::link_at(&object, 0, [0x1000, 0x2000, 0x3000]).expect("it links");
        let words: Vec<_> =
            data.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect();
        assert_eq!(words, [1, 2, 0x3010, 0x3018], "{target}");
    }
}

#[test]
fn dead_code_is_left_out_but_for_what_is_not_to_be() {
    let source = "
        .text\n.globl _main, _dead\n_main: nop\n_dead: nop\n_used: nop\n.no_dead_strip _used\n
        .section __DATA,__kept,regular,no_dead_strip\n_kept: .quad 1\n.data\n_lost: .quad 2\n.subsections_via_symbols\n";
    for target in [X86_64, ARM64] {
        let graph = parse(assemble(target, source));
        let main = find(&graph, "main").0;
        let mut link = jit_linker::link::load(graph, Passes::default()).expect("there are no passes");
        link.prune(&[main]);
        let graph = link.graph();
        let is_live = |name: &str| match find(graph, name).1.definition {
            Definition::Block { block, .. } => graph.block(block).live,
            definition => panic!("{definition:?}"),
        };
        let live = ["main", "dead", "_used", "_kept", "_lost"].map(is_live);
        assert_eq!(live, [true, false, true, true, false], "{target}");
    }
}
