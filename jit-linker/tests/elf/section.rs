//! Sections and symbols: what they become.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jit_linker::graph::{Definition, Linkage, Scope, SectionRole, SymbolKind};
use jit_linker::link;
use jit_linker::memory::{DetachedMemory, MemoryManager, SegmentKind, SlabManager};
use jit_linker::{SymbolStringPool, format};

use crate::archive::check_index;
use crate::compiler::build;
use crate::detached::{AARCH64, BASES, Image, X86_64, allocate, assemble, image, roles, symbol};

#[test]
fn elf_02_a_relocation_of_the_got_leaves_no_entries() {
    let linked = image(assemble(X86_64, "leaq _GLOBAL_OFFSET_TABLE_(%rip), %rax"), &|_| None).expect("it is near");
    assert_eq!(linked.displaced(3), BASES[2]);
    assert_eq!(linked.data, [0; 8]);
}

#[test]
fn elf_03_none_changes_nothing() {
    for (target, relocation) in [(X86_64, "R_X86_64_NONE"), (AARCH64, "R_AARCH64_NONE")] {
        let source = format!(".reloc ., {relocation}, f\n.quad 0x1122334455667788\n");
        let linked = image(assemble(target, &source), &|_| None).expect("nothing is looked up");
        assert_eq!(linked.code, 0x1122_3344_5566_7788u64.to_le_bytes());
    }
}

#[test]
fn elf_04_a_distance_of_a_byte_links() {
    let linked =
        image(assemble(X86_64, ".byte 0\n.reloc ., R_X86_64_PC8, near\n.byte 0\n.skip 9\nnear: ret\n"), &|_| None);
    assert_eq!(linked.expect("it is near").code[1], 10);
}

#[test]
fn elf_05_absolute_symbols_low_and_high_and_code_below_4_gib() {
    let graph = assemble(X86_64, "movq $low, %rax\nmovq $high, %rax\nmovl $own, %eax\nown: ret\n");
    let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::at(0xfff0_0000));
    let mut allocated = link::prepare(graph).expect("it is small").allocate(&memory).expect("there is memory");
    let externals = |name: &str| Some(if name == "low" { 0x7fff_ffff } else { 0xffff_ffff_8000_0000 });
    crate::support::resolve(&mut allocated, &externals);
    let mut fixed = allocated.fix_up().expect("all fits");
    let code = fixed.content(SegmentKind::Code);
    assert_eq!([3, 10, 15].map(|at| Image::word(code, at)), [0x7fff_ffff, 0x8000_0000, 0xfff0_0013]);
}

#[test]
fn elf_22_the_smallest_program_links() {
    let linked = image(assemble(AARCH64, ".globl main\nmain: ret\n"), &|_| None).expect("there is nothing to do");
    assert_eq!(linked.code, 0xd65f_03c0u32.to_le_bytes());
}

#[test]
fn elf_07_a_common_is_zero_and_has_its_size_and_alignment() {
    let graph = assemble(X86_64, ".comm c, 24, 64\n.globl d\n.data\n.byte 1\nd: .quad c");
    let common = graph.symbol(symbol(&graph, "c"));
    assert_eq!((common.linkage, common.size), (Linkage::Common, 24));
    let linked = image(graph, &|_| None).expect("nothing is undefined");
    assert_eq!(Image::quad(&linked.data, 1), BASES[2] + 64);
    assert_eq!(linked.data[64..88], [0; 24]);
}

#[test]
fn elf_08_elf_37_debug_sections_take_no_memory_and_their_relocations_no_part() {
    let source = "f: ret\n.section .debug_info, \"\", @progbits\n.reloc ., R_X86_64_DTPOFF64, f\n.quad f, nowhere\n\
                  .reloc ., R_X86_64_COPY, f\n.section .comment, \"MS\", @progbits, 1\n.asciz \"x\"\n";
    let graph = assemble(X86_64, source);
    assert_eq!(graph.blocks().map(|(_, block)| block.size).sum::<u32>(), 1);
    assert!(graph.symbols().all(|(_, symbol)| symbol.definition != Definition::External));
}

#[test]
fn elf_08_elf_37_debug_sections_that_are_asked_for_are_relocated_as_far_as_they_can_be() {
    let source = "f: ret\n.section .text.lost, \"ax\"\nlost: ret\n\
        .section .debug_str, \"MS\", @progbits, 1\n.asciz \"pad\"\nname: .asciz \"name\"\n\
        .section .debug_info, \"\", @progbits\n.quad f\n.long name\n.long f\n.quad nowhere, lost\n\
        .reloc ., R_X86_64_COPY, f\n.quad 7\n.reloc . + 4, R_X86_64_64, f\n";
    let object = build(&["clang-22", "-target", X86_64, "-c"], "s", source);
    let options = format::ParseOptions::default().all_sections(true);
    let mut graph =
        format::parse_with("test.o", object.into(), &SymbolStringPool::new(), options).expect("it is valid");
    assert!(graph.symbols().all(|(_, symbol)| symbol.definition != Definition::External));
    let lost = symbol(&graph, "lost");
    graph.exclude(&[lost]);
    let notes: Vec<_> = graph.sections().filter(|(_, section)| section.role == SectionRole::Note).collect();
    let names: Vec<_> = notes.iter().map(|(id, _)| graph.section_name(*id).into_owned()).collect();
    assert_eq!(names, [".debug_str", ".debug_info"]);
    let information = notes[1].0;
    let allocated = allocate(graph).expect("it is small");
    let range = allocated.section_range(information);
    let mut fixed = allocated.fix_up().expect("nothing of them is an error");
    let start = (range.start - BASES[1]) as usize;
    let content = &fixed.content(SegmentKind::ReadOnly)[start..start + (range.end - range.start) as usize];
    assert_eq!(Image::quad(content, 0), BASES[0]);
    assert_eq!(Image::word(content, 8), 4, "an offset in the other section");
    assert_eq!(Image::word(content, 12), 0, "an address that does not fit");
    assert_eq!([16, 24, 32].map(|at| Image::quad(content, at)), [0, 0, 7], "what is not there, nor understood");
}

#[test]
fn elf_11_an_empty_section_is_nothing_and_can_be_pointed_to() {
    let linked = image(assemble(X86_64, ".section .empty, \"a\"\ne:\n.data\n.quad e"), &|_| None).expect("it links");
    assert_eq!(linked.constants.len(), 0);
    assert_eq!(linked.data.len(), 8);
}

#[test]
fn what_is_said_to_be_thread_local_and_is_not_has_no_place_in_the_template() {
    let source = ".globl f, g\n.type f, @tls_object\nf: ret\n.section .tdata, \"awT\", @progbits\n.quad 1\n\
                  .type g, @tls_object\ng: .quad 2\n";
    let graph = assemble(X86_64, source);
    let [f, g] = ["f", "g"].map(|name| symbol(&graph, name));
    let allocated = allocate(graph).expect("it is small");
    assert_eq!([f, g].map(|symbol| allocated.thread_local_offset(symbol)), [None, Some(8)]);
}

/// Such sections are written a run of the object at a time.
#[test]
fn what_lies_between_sections_in_the_object_is_not_between_them_in_memory() {
    let source = ".section .text.a, \"ax\"\n.balign 16\n.fill 16385, 1, 0xaa\n.section .rodata, \"a\"\n.fill 15, 1, 0xbb\n\
        .section .text.b, \"ax\"\n.balign 16\n.fill 17, 1, 0xcc\n.section .text.c, \"ax\"\n.balign 16\n.fill 100, 1, 0xdd\n";
    let graph = assemble(X86_64, source);
    let starts = |what| graph.object().windows(100).position(|bytes| bytes == [what; 100]).expect("it is there");
    let [a, c] = [0xaa, 0xdd].map(starts);
    assert_eq!(c - a, 16400 + 32, "the sections lie in the object as they will in memory");
    let memory: Arc<dyn MemoryManager> = Arc::new(SlabManager::new().expect("there is memory"));
    let mut fixed = link::prepare(graph).and_then(|prepared| prepared.allocate(&memory)?.fix_up()).expect("it links");
    let runs = [(0xaa, 16385), (0, 15), (0xcc, 17), (0, 15), (0xdd, 100)];
    let expected: Vec<u8> = runs.iter().flat_map(|(byte, count)| vec![*byte; *count]).collect();
    assert_eq!(fixed.content(SegmentKind::Code), expected);
    assert_eq!(fixed.content(SegmentKind::ReadOnly), [0xbb; 15]);
}

#[test]
fn elf_06_elf_35_comdat_groups_are_whole() {
    let source = ".section .text.f, \"axG\", @progbits, sig, comdat\n.weak f\nf: .cfi_startproc\nleaq table(%rip), %rax\nret\n.cfi_endproc\n\
                  .section .rodata.f, \"aG\", @progbits, sig, comdat\n.globl table\ntable: .quad 5\n\
                  .section .text.f, \"axG\", @progbits, other, comdat\n.globl g\ng: ret\n.text\ncall f\n";
    let mut graph = assemble(X86_64, source);
    let shape: Vec<_> = graph
        .comdats()
        .iter()
        .map(|group| {
            let symbols: Vec<_> = group.symbols.iter().map(|id| graph.symbol_label(*id).into_owned()).collect();
            (group.signature.to_string(), group.blocks.len(), symbols)
        })
        .collect();
    assert_eq!(shape, [("sig".into(), 2, vec!["f".into(), "table".into()]), ("other".into(), 1, vec!["g".into()])]);
    graph.retain_comdats(|group| &*group.signature != "sig");
    for name in ["f", "table"] {
        assert_eq!(graph.symbol(symbol(&graph, name)).definition, Definition::External);
    }
    let linked = image(graph, &|name| Some(if name == "f" { BASES[0] + 0x100 } else { 0 })).expect("f is near");
    assert_eq!(linked.displaced(1), BASES[0] + 0x100);
    assert_eq!(linked.constants.len(), 24 + 4, "the table went with it, and the unwinding record; its CIE is left");
}

#[test]
fn elf_24_elf_33_start_and_stop_are_a_sections_bounds() {
    let source = ".data\n.quad __start_set, __stop_set, __start_none\n.weak __start_none\n\
                  .section set, \"aw\"\n.long 1, 2, 3\n.section other, \"aw\"\n.long 9\n.section set, \"aw\"\n.long 4\n";
    let linked = image(assemble(AARCH64, source), &|_| None).expect("the third is weak");
    let [start, stop, none] = [0, 8, 16].map(|at| Image::quad(&linked.data, at));
    assert_eq!((stop - start, none), (16, 0));
    let at = (start - BASES[2]) as usize;
    let members: Vec<_> = (0..4).map(|index| Image::word(&linked.data, at + 4 * index)).collect();
    assert_eq!(members, [1, 2, 3, 4]);
}

#[test]
fn fmt_02_initializers_are_known_by_type_or_name() {
    let holds = |section: &str| {
        let graph = assemble(X86_64, &format!(".section {section}\n.quad 1\n"));
        graph.initializers().len()
    };
    for section in [".init_array, \"aw\", @init_array", ".init_array.5, \"aw\"", ".ctors, \"aw\"", ".ctors.7, \"aw\""] {
        assert_eq!(holds(section), 1, "{section}");
    }
    let others =
        [".text, \"ax\"", ".data, \"aw\"", ".init_arrays, \"aw\"", ".ctors.later, \"aw\"", ".fini_array, \"aw\""];
    for section in others {
        assert_eq!(holds(section), 0, "{section}");
    }
}

#[test]
fn elf_32_initializers_and_finalizers_come_in_the_order_they_run() {
    let source = ".section .init_array, \"aw\", @init_array\n.quad 3\n.section .init_array.00200, \"aw\", @init_array\n.quad 2\n\
                  .section .init_array.00101, \"aw\", @init_array\n.quad 1\n.section .ctors.65434, \"aw\"\n.quad 11\n\
                  .section .ctors, \"aw\"\n.quad 13\n.section .fini_array.00101, \"aw\", @fini_array\n.quad 4\n\
                  .section .fini_array, \"aw\", @fini_array\n.quad 5\n.section .preinit_array, \"aw\", @preinit_array\n.quad 0\n";
    let graph = assemble(X86_64, source);
    let names = |ids| roles(&graph, ids).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(
        names(graph.initializers()),
        [".preinit_array", ".init_array.00101", ".ctors.65434", ".init_array.00200", ".init_array", ".ctors"]
    );
    assert_eq!(names(graph.finalizers()), [".fini_array", ".fini_array.00101"]);
    let reversed = |name: &str| {
        let (_, role) =
            roles(&graph, graph.initializers()).into_iter().find(|(found, _)| found == name).expect("it is there");
        matches!(role, SectionRole::Initializers { reversed: true, .. })
    };
    assert!(reversed(".ctors") && !reversed(".init_array"));
}

#[test]
fn elf_34_symbols_of_every_kind() {
    let source = ".globl abs\nabs = 0x123456789abc\n.internal i\n.globl i\ni: ret\n.hidden h\n.globl h\nh: ret\n\
                  .protected p\n.globl p\np: ret\n.type u, @gnu_unique_object\nu: ret\n.data\n.quad abs\n";
    let graph = assemble(X86_64, source);
    let of = |name: &str| graph.symbol(symbol(&graph, name));
    assert_eq!((of("abs").definition, of("abs").address()), (Definition::Absolute, 0x1234_5678_9abc));
    assert_eq!([of("i").scope, of("h").scope, of("p").scope], [Scope::Hidden, Scope::Hidden, Scope::Protected]);
    assert_eq!(of("u").linkage, Linkage::Weak);
    let linked = image(graph, &|_| None).expect("nothing is undefined");
    assert_eq!(linked.data, 0x1234_5678_9abcu64.to_le_bytes());
}

#[test]
fn elf_34_a_resolvers_symbol_leads_through_a_stub() {
    let source =
        ".type f, @gnu_indirect_function\n.globl f\nf: ret\ncall f\nmovq f@GOTPCREL(%rip), %rax\n.data\n.quad f\n";
    let graph = assemble(X86_64, source);
    assert_eq!(graph.symbol(symbol(&graph, "f")).kind, SymbolKind::Resolver);
    let mut allocated = allocate(graph).expect("it is small");
    crate::support::resolve(&mut allocated, &|_| None);
    let stub = allocated.address(symbol(allocated.graph(), "f"));
    let resolvers = allocated.resolvers();
    assert_eq!(resolvers.len(), 1);
    assert_eq!(resolvers[0].function, BASES[0]);
    let mut fixed = allocated.fix_up().expect("all is near");
    assert_eq!(Image::quad(fixed.content(SegmentKind::Data), 0), stub);
    let code = fixed.content(SegmentKind::Code).to_vec();
    let linked = Image { code, constants: vec![], data: vec![] };
    assert_eq!((linked.displaced(2), linked.displaced(9)), (stub, stub));
    assert_eq!(linked.displaced((stub - BASES[0]) as usize + 6), resolvers[0].slot);
}

#[test]
fn elf_34_an_alignment_beyond_a_page_is_kept() {
    let graph =
        assemble(X86_64, ".data\n.balign 8192\n.globl d\nd: .quad 1\n.section .rodata\n.balign 65536\nr: .quad 2\n");
    let linked = crate::support::link(graph, &|_| None).expect("there is memory");
    assert!(linked.address("d").is_multiple_of(8192));
}

#[test]
fn elf_36_thread_local_variables_are_one_template() {
    let source = ".section .tdata, \"awT\", @progbits\n.balign 16\na: .quad 7\n.section .tbss, \"awT\", @nobits\n.globl b\nb: .skip 24\n\
                  .text\nmovq %fs:0, %rax\nleaq a@TPOFF(%rax), %rcx\nleaq b@TPOFF(%rax), %rcx\nmovq b@GOTTPOFF(%rip), %rax\n";
    let graph = assemble(X86_64, source);
    assert_eq!(graph.symbol(symbol(&graph, "b")).kind, SymbolKind::ThreadLocal);
    let mut allocated = allocate(graph).expect("it is small");
    let template = allocated.graph().section_with(SectionRole::ThreadLocal).expect("there are variables");
    let range = allocated.section_range(template);
    assert_eq!((range.start, range.end - range.start), (BASES[1], 32));
    allocated.set_thread_local_storage(jit_linker::link::TlsLocation {
        module: 3,
        offset: 0,
        thread_pointer_offset: Some(-32),
        descriptor: None,
    });
    let mut fixed = allocated.fix_up().expect("the offsets are small");
    assert_eq!(Image::quad(fixed.content(SegmentKind::ReadOnly), 0), 7);
    assert_eq!(Image::quad(fixed.content(SegmentKind::Data), 0).cast_signed(), -24);
    let code = fixed.content(SegmentKind::Code);
    assert_eq!([12, 19].map(|at| Image::word(code, at).cast_signed()), [-32, -24]);
}

#[test]
fn elf_16_seventy_thousand_sections_are_linked_in_no_time() {
    let mut source = String::new();
    for index in 0..70_000 {
        writeln!(
            source,
            ".section .text.f{index},\"ax\",@progbits\n.globl f{index}\nf{index}: jmp f{}",
            (index + 1) % 70_000
        )
        .expect("a string takes all");
    }
    let object = crate::compiler::build(&["clang-22", "-target", X86_64, "-c"], "s", &source);
    let start = Instant::now();
    let graph = crate::support::parse(object);
    assert_eq!(graph.sections().count(), 70_001);
    let linked = image(graph, &|_| None).expect("all is near");
    // The work is that of a few milliseconds; a square of it would be minutes.
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(linked.code.len(), 350_000);
    assert_eq!(linked.displaced(350_000 - 4), BASES[0]);
}

#[test]
fn an_archive_without_an_index_offers_every_kind_of_definition() {
    let source = "
        .text\n.globl function, untyped, hidden, indirect\n.weak weak\n.hidden hidden
        .type function, @function\nfunction: nop\nuntyped: nop\nhidden: nop\nweak: nop\nlocal: nop
        .type indirect, @gnu_indirect_function\nindirect: nop
        .comm common, 4, 4\n.globl absolute\nabsolute = 5\n.data\n.quad undefined
        .globl unique\n.type unique, @gnu_unique_object\nunique: .quad 1
        .section .tbss,\"awT\",@nobits\n.globl thread_local\n.type thread_local, @tls_object\nthread_local: .zero 8\n";
    for target in [X86_64, AARCH64] {
        let source = if target == AARCH64 { source.replace('@', "%") } else { source.to_owned() };
        let offered =
            ["function", "untyped", "hidden", "weak", "indirect", "common", "absolute", "unique", "thread_local"];
        check_index(&build(&["clang-22", "-target", target, "-c"], "s", &source), &offered, &["local", "undefined"]);
    }
}
