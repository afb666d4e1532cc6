//! What goes through GOT and stubs, and what needs neither.

use jit_linker::graph::Linkage;
use jit_linker::link::LinkError;

use crate::detached::{AARCH64, BASES, Image, X86_64, allocate, assemble, image, symbol};

const NEAR: u64 = 0x5_1000_4000;
const FAR: u64 = 0x7000_1234_5678;

/// What an x86-64 stub at an offset of the code jumps to, which its GOT entry says.
fn stub_target(image: &Image, at: u64) -> u64 {
    let start = (at - BASES[0]) as usize;
    assert_eq!(image.code[start..start + 6], [0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25]);
    let slot = image.displaced(start + 6);
    Image::quad(&image.data, (slot - BASES[2]) as usize)
}

#[test]
fn elf_17_a_far_call_goes_through_a_stub_and_a_near_one_does_not() {
    let source = "call f@PLT\njmp f@PLT\njne f@PLT\ncall g@PLT";
    let near = image(assemble(X86_64, source), &|_| Some(NEAR)).expect("it is near");
    for at in [1, 6, 12, 17] {
        assert_eq!(near.displaced(at), NEAR);
    }
    let far =
        image(assemble(X86_64, source), &|name| Some(if name == "f" { FAR } else { FAR + 8 })).expect("stubs are near");
    assert_eq!((far.displaced(1), far.displaced(6)), (far.displaced(12), far.displaced(12)), "they share it");
    assert_eq!(stub_target(&far, far.displaced(1)), FAR);
    assert_eq!(stub_target(&far, far.displaced(17)), FAR + 8);
}

#[test]
fn elf_17_a_relative_vtable_holds_the_distance_to_a_stub() {
    let source = ".section .rodata\n.quad 0\n.long f@PLT - . + 4\n";
    let linked = image(assemble(X86_64, source), &|_| Some(FAR)).expect("the stub is near");
    let distance = Image::word(&linked.constants, 8).cast_signed();
    let stub = (BASES[1] + 8).wrapping_add_signed(distance.into()) - 4;
    assert_eq!(stub_target(&linked, stub), FAR);
}

#[test]
fn elf_13_instructions_through_the_got_are_rewritten_where_the_target_is_near() {
    let source =
        "movq f@GOTPCREL(%rip), %r9\ncall *f@GOTPCREL(%rip)\njmp *f@GOTPCREL(%rip)\naddq f@GOTPCREL(%rip), %rax\n";
    let near = image(assemble(X86_64, source), &|_| Some(NEAR)).expect("it is near");
    assert_eq!(near.code[..3], [0x4c, 0x8d, 0x0d], "lea r9");
    assert_eq!(near.code[7..9], [0x67, 0xe8], "addr32 call");
    assert_eq!((near.code[13], near.code[18]), (0xe9, 0x90), "jmp; nop");
    assert_eq!([near.displaced(3), near.displaced(9), near.displaced(14)], [NEAR; 3]);
    assert_eq!(near.code[19..22], [0x48, 0x03, 0x05], "an add stays");
    let far = image(assemble(X86_64, source), &|_| Some(FAR)).expect("the entry is near");
    assert_eq!(far.code[..3], [0x4c, 0x8b, 0x0d]);
    assert_eq!([far.displaced(3), far.displaced(9), far.displaced(15), far.displaced(22)], [BASES[2]; 4], "one entry");
    assert_eq!(far.data, FAR.to_le_bytes());
}

#[test]
fn elf_13_an_address_below_2_gib_becomes_the_operand_where_the_relocation_allows_it() {
    let source = "movq f@GOTPCREL(%rip), %r9\naddq f@GOTPCREL(%rip), %rax\ntestq %rdx, f@GOTPCREL(%rip)\n\
                  .reloc . + 3, R_X86_64_GOTPCREL, f - 4\n.byte 0x48, 0x8b, 0x05\n.long 0\n";
    let low = 0x7fff_ffff;
    let linked = image(assemble(X86_64, source), &|_| Some(low)).expect("the entry is near");
    assert_eq!(linked.code[..3], [0x49, 0xc7, 0xc1], "mov r9, imm32");
    assert_eq!(linked.code[7..10], [0x48, 0x81, 0xc0], "add rax, imm32");
    assert_eq!(linked.code[14..17], [0x48, 0xf7, 0xc2], "test rdx, imm32");
    assert_eq!([3, 10, 17].map(|at| u64::from(Image::word(&linked.code, at))), [low; 3]);
    assert_eq!(linked.code[21..24], [0x48, 0x8b, 0x05], "it may be any instruction");
    assert_eq!(linked.displaced(24), BASES[2]);
    let linked = image(assemble(X86_64, source), &|_| Some(low + 1)).expect("the entry is near");
    assert_eq!([3, 10, 17, 24].map(|at| linked.displaced(at)), [BASES[2]; 4], "it would be negative");
}

#[test]
fn elf_14_offsets_from_the_got() {
    let source = ".data\n.quad 0\n.text\n.quad f@GOT\n.reloc ., R_X86_64_GOTPLT64, f\n.quad 0, f@PLTOFF, _GLOBAL_OFFSET_TABLE_ - .\n\
                  .reloc ., R_X86_64_GOT32, f\n.long 0\n.reloc ., R_X86_64_SIZE32, sized+1\n.long 0\n\
                  .globl sized\n.type sized, @object\n.size sized, 40\nsized: .skip 40\n";
    let linked = image(assemble(X86_64, source), &|_| Some(FAR)).expect("64 bits take all");
    let quads: Vec<_> = (0..4).map(|index| Image::quad(&linked.code, 8 * index)).collect();
    let got = BASES[2] + 8;
    assert_eq!(quads, [0, 0, FAR - got, got - (BASES[0] + 24)]);
    assert_eq!(linked.data[8..], FAR.to_le_bytes());
    assert_eq!((Image::word(&linked.code, 32), Image::word(&linked.code, 36)), (0, 41));
}

#[test]
fn elf_12_the_got_has_a_base_though_it_has_no_entries() {
    let source = "movabsq $local@GOTOFF, %rax\n.data\nlocal: .quad 1\n";
    let linked = image(assemble(X86_64, source), &|_| None).expect("nothing is undefined");
    assert_eq!(Image::quad(&linked.code, 2).cast_signed(), -8, "the GOT follows");
}

#[test]
fn elf_23_aarch64_branches_go_through_stubs_where_they_must() {
    let source = "bl f\nb f + 8\n.reloc ., R_AARCH64_PLT32, f\n.word 0\n";
    let target = |linked: &Image, at: usize| {
        let words = (Image::word(&linked.code, at) << 6).cast_signed() >> 4;
        (BASES[0] + at as u64).wrapping_add_signed(words.into())
    };
    let near = image(assemble(AARCH64, source), &|_| Some(NEAR)).expect("it is near");
    assert_eq!((target(&near, 0), target(&near, 4)), (NEAR, NEAR + 8));
    let far = image(assemble(AARCH64, source), &|_| Some(FAR)).expect("stubs are near");
    // adrp, ldr and br are checked where stubs are encoded; here, which entry they load.
    let loaded = |at: u64| {
        let start = (at - BASES[0]) as usize;
        let low = (Image::word(&far.code, start + 8) >> 10 & 0xfff) * 8;
        Image::quad(&far.data, low as usize)
    };
    assert_eq!((loaded(target(&far, 0)), loaded(target(&far, 4))), (FAR, FAR + 8), "one for each addend");
    let relative = BASES[0] + 8 + u64::from(Image::word(&far.code, 8));
    assert_eq!(loaded(relative), FAR);
}

#[test]
fn elf_23_aarch64_got_loads_become_additions_where_the_target_is_near() {
    let source = "adrp x3, :got:f\nldr x3, [x3, :got_lo12:f]\n";
    let near = image(assemble(AARCH64, source), &|_| Some(NEAR + 0x123)).expect("it is near");
    assert_eq!(Image::word(&near.code, 0), 0x9000_0003 | 1 << 5, "four pages on");
    assert_eq!(Image::word(&near.code, 4), 0x9100_0063 | 0x123 << 10);
    let far = image(assemble(AARCH64, source), &|_| Some(FAR)).expect("the entry is near");
    assert_eq!(Image::word(&far.code, 4), 0xf940_0063);
    assert_eq!(far.data, FAR.to_le_bytes());
}

#[test]
fn elf_23_aarch64_offsets_from_the_got() {
    let source = ".reloc ., R_AARCH64_LD64_GOTPAGE_LO15, f\nldr x3, [x3]\n.reloc ., R_AARCH64_LD64_GOTOFF_LO15, f\nldr x3, [x3]\n.data\n.skip 16\n";
    let linked = image(assemble(AARCH64, source), &|_| Some(FAR)).expect("the entry is near");
    assert_eq!(Image::word(&linked.code, 0), 0xf940_0063 | (16 / 8) << 10, "from the page");
    assert_eq!(Image::word(&linked.code, 4), 0xf940_0063, "from the GOT");
    assert_eq!(linked.data[16..], FAR.to_le_bytes());
}

#[test]
fn elf_31_two_locals_of_one_name_have_an_entry_each() {
    // What `ld -r` makes of two objects: the names are not the same symbol.
    let source = "leaq one_local@GOTPCREL(%rip), %rax\nleaq two_local@GOTPCREL(%rip), %rax\n\
                  .data\none_local: .quad 11\ntwo_local: .quad 22\n";
    let mut object = crate::compiler::build(&["clang-22", "-target", X86_64, "-c"], "s", source);
    let at = object.windows(9).position(|text| text == b"two_local").expect("the name is in the string table");
    object[at..at + 3].copy_from_slice(b"one");
    let linked = image(crate::support::parse(object), &|_| None).expect("nothing is undefined");
    let entries: Vec<_> = [3, 10].map(|at| linked.displaced(at)).into();
    assert_ne!(entries[0], entries[1]);
    let pointed = |entry: u64| Image::quad(&linked.data, (entry - BASES[2]) as usize);
    assert_eq!((pointed(entries[0]), pointed(entries[1])), (BASES[2], BASES[2] + 8));
}

#[test]
fn elf_39_a_weak_undefined_symbol_is_zero() {
    let source = ".weak w\nleaq w(%rip), %r10\nmovq w@GOTPCREL(%rip), %rax\ncall w@PLT\nmovl $w, %eax\ncmpl $0, w(%rip)\n.quad w\n";
    let linked = image(assemble(X86_64, source), &|_| None).expect("it need not be found");
    assert_eq!(linked.code[..7], [0x49, 0xc7, 0xc2, 0, 0, 0, 0], "mov r10, 0");
    assert_eq!(linked.code[7..14], [0x48, 0xc7, 0xc0, 0, 0, 0, 0], "mov rax, 0");
    assert_eq!(linked.code[20..24], [0; 4], "movl $0");
    assert_eq!(linked.code[31..39], [0; 8]);
    let source = ".weak w\nadrp x7, w\nadd x7, x7, :lo12:w\nadrp x8, :got:w\nldr x8, [x8, :got_lo12:w]\nbl w\n";
    let linked = image(assemble(AARCH64, source), &|_| None).expect("it need not be found");
    assert_eq!(Image::word(&linked.code, 0), 0xd280_0007, "mov x7, #0");
    assert_eq!(Image::word(&linked.code, 4), 0x9100_00e7, "add x7, x7, #0");
    assert_eq!(Image::word(&linked.code, 12), 0xf940_0108, "the entry is loaded");
    assert_eq!(linked.data, [0; 8]);
}

#[test]
fn a_symbol_out_of_reach_is_an_error_that_names_it_and_what_to_do() {
    let error = image(assemble(X86_64, "nop\nmovl $variable, %eax\n"), &|_| Some(FAR)).err().expect("it is far");
    assert_eq!(
        error.to_string(),
        "in test.o: relocation x86-64 Pointer32 of 'variable' at .text+0x2: 0x700012345678 does not fit the 32-bit \
         field; compile with -fPIC"
    );
}

#[test]
fn elf_38_branches_beyond_reach_in_one_graph_go_through_stubs() {
    let source = ".text\nstart: bl end\n.section .text.big, \"ax\", %nobits\n.skip 130 << 20\n\
                  .section .text.end, \"ax\", %progbits\nend: bl start\nbl near\n.section .text.near, \"ax\", %progbits\nnear: ret\n";
    let allocated = allocate(assemble(AARCH64, source)).expect("there is memory");
    let [start, end, near] = ["start", "end", "near"].map(|name| allocated.address(symbol(allocated.graph(), name)));
    assert!(end - start > 128 << 20);
    let mut fixed = allocated.fix_up().expect("stubs are near");
    let code = fixed.content(jit_linker::memory::SegmentKind::Code).to_vec();
    let data = fixed.content(jit_linker::memory::SegmentKind::Data).to_vec();
    let target = |at: u64| {
        let words = (Image::word(&code, (at - BASES[0]) as usize) << 6).cast_signed() >> 4;
        at.wrapping_add_signed(words.into())
    };
    let loaded = |stub: u64| {
        let low = (Image::word(&code, (stub - BASES[0]) as usize + 8) >> 10 & 0xfff) * 8;
        Image::quad(&data, low as usize)
    };
    assert_eq!(loaded(target(start)), end);
    assert_eq!(loaded(target(end)), start);
    assert_eq!(target(end + 4), near);
}

#[test]
fn a_weak_reference_is_told_from_a_strong_one() {
    let graph = assemble(X86_64, ".weak w\n.quad w, s\n");
    let linkage = ["w", "s"].map(|name| graph.symbol(symbol(&graph, name)).linkage);
    assert_eq!(linkage, [Linkage::Weak, Linkage::Strong]);
}

#[test]
fn an_unsupported_relocation_is_an_error_that_says_where() {
    let mut object = crate::compiler::build(
        &["clang-22", "-target", X86_64, "-c"],
        "s",
        ".section .text.x, \"ax\"\n.skip 9\n.quad f\n",
    );
    let relocation = 9u64.to_le_bytes();
    let at = object.windows(12).position(|bytes| bytes[..8] == relocation && bytes[8..] == [1, 0, 0, 0]);
    object[at.expect("R_X86_64_64 is there") + 8] = 200;
    let error = jit_linker::format::parse("x.o", object.into(), &jit_linker::SymbolStringPool::new()).err();
    assert_eq!(error.expect("200 is none").to_string(), "in x.o: unsupported relocation 200 at .text.x+0x9");
}

#[test]
fn a_branch_to_a_stub_that_is_not_there_names_the_symbol() {
    let error = image(assemble(X86_64, "leaq far(%rip), %rax"), &|_| Some(FAR)).err();
    assert!(matches!(error, Some(LinkError::Fixup { symbol, .. }) if symbol == "far"));
}
