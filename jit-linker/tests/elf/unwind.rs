//! Unwinding tables: whose records are linked, and how they lie.

use std::sync::Arc;

use gimli::{BaseAddresses, EhFrame, LittleEndian, UnwindSection};
use jit_linker::graph::{Definition, SectionRole};
use jit_linker::link;
use jit_linker::memory::{DetachedMemory, MemoryManager, SegmentKind};

use crate::compiler::build;
use crate::support::{parse, resolve};

/// Functions `f0` to `f5`, each in a section of its own. `f1` and `f4` need what is missing. The
/// records have sizes that are 4 more than a multiple of 8, and one is of a signal frame.
fn source(call: &str, key: &str) -> String {
    let function = |index: usize| {
        let call = if index == 1 || index == 4 { format!("{call} missing") } else { String::new() };
        let extra = match index {
            2 => ".cfi_signal_frame",
            3 => key,
            _ => "",
        };
        format!(
            ".section .text.f{index}, \"ax\", %progbits\n.globl f{index}\nf{index}:\n.cfi_startproc\n{extra}\nnop\n\
             .cfi_adjust_cfa_offset {}\n{call}\n.cfi_remember_state\n.cfi_restore_state\nret\n.cfi_endproc\n",
            16 << (4 * index)
        )
    };
    (0..6).map(function).collect()
}

#[test]
fn elf_30_dead_records_leave_no_gap_and_the_others_find_function_and_cie() {
    for (target, call, key) in [("x86_64-linux-gnu", "call", ""), ("aarch64-linux-gnu", "bl", ".cfi_b_key_frame")] {
        let object = build(&["clang-22", "-target", target, "-c"], "s", &source(call, key));
        let mut graph = parse(object);
        let missing = graph.find_symbol("missing").expect("f1 needs it");
        let lost = graph.exclude(&[missing]);
        let lost: Vec<_> = lost.into_iter().filter_map(|id| graph.symbol_name(id).cloned()).collect();
        assert_eq!(lost.len(), 2, "{lost:?}");

        let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::at(0x40_0000));
        let mut allocated = link::prepare(graph).expect("it is small").allocate(&memory).expect("there is memory");
        resolve(&mut allocated, &|name| (name == "missing").then_some(0));
        let section = allocated.graph().section_with(SectionRole::EhFrame).expect("there are records");
        let range = allocated.section_range(section);
        let mut functions: Vec<_> = allocated
            .graph()
            .symbols()
            .filter(|(_, symbol)| matches!(symbol.definition, Definition::Block { block, .. } if allocated.graph().block(block).live))
            .filter(|(_, symbol)| symbol.is_named())
            .map(|(id, _)| allocated.address(id))
            .collect();
        let mut fixed = allocated.fix_up().expect("everything is near");
        let content = fixed.content(SegmentKind::ReadOnly);
        assert_eq!(content.len() as u64, range.end - range.start, "there is nothing else");
        assert_eq!(content[content.len() - 4..], [0; 4], "the end is marked");

        let mut content = content.to_vec();
        // gimli does not know that return addresses may be signed with the second key.
        if let Some(at) = content.windows(4).position(|augmentation| augmentation == b"zRB\0") {
            content[at + 2] = b'S';
        } else {
            assert!(key.is_empty(), "the CIE of f3 is there");
        }
        let table = EhFrame::new(&content, LittleEndian);
        let bases = BaseAddresses::default().set_eh_frame(range.start);
        let mut entries = table.entries(&bases);
        let mut described = Vec::new();
        while let Some(entry) = entries.next().expect("the records are whole") {
            if let gimli::CieOrFde::Fde(fde) = entry {
                let fde = fde.parse(EhFrame::cie_from_offset).expect("its CIE is there");
                described.push(fde.initial_address());
                let mut rows = fde.instructions(&table, &bases);
                while rows.next().expect("the instructions are whole").is_some() {}
            }
        }
        functions.sort_unstable();
        described.sort_unstable();
        assert_eq!(described.len(), 4, "{target}");
        assert_eq!(described, functions, "{target}");
    }
}

#[test]
fn elf_09_elf_21_functions_keep_their_records_alive() {
    for target in ["x86_64-linux-gnu", "aarch64-linux-gnu"] {
        let source = ".globl f\nf: .cfi_startproc\nret\n.cfi_endproc\n.section .text.g, \"ax\", %progbits\n\
                      .globl g\ng: .cfi_startproc\nnop\nret\n.cfi_endproc\n";
        let graph = parse(build(&["clang-22", "-target", target, "-c"], "s", source));
        let block_of = |name: &str| {
            let symbol = graph.symbol(graph.find_symbol(name).expect("it is defined"));
            let Definition::Block { block, .. } = symbol.definition else { panic!("{name} is in memory") };
            block
        };
        let hosts: Vec<_> = graph.attached().iter().map(|(host, _)| *host).collect();
        assert_eq!(hosts, [block_of("f"), block_of("g")], "{target}");
        for (_, record) in graph.attached() {
            let section = graph.block(*record).section.map(|section| graph.section(section).role);
            assert_eq!(section, Some(SectionRole::EhFrame));
        }
    }
}

#[test]
fn elf_10_personalities_are_found_in_each_encoding() {
    // Absolute, and an indirect distance of 8 bytes, as the large code model has them.
    for (encoding, expected) in [(0x00, "far"), (0x9c, "slot")] {
        let source = format!(
            "f: .cfi_startproc\n.cfi_personality {encoding}, {expected}\nret\n.cfi_endproc\n\
             .data\n.quad 0\nslot: .quad far\n"
        );
        let graph = parse(build(&["clang-22", "-target", "x86_64-linux-gnu", "-c"], "s", &source));
        let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::apart([0x10_0000, 0x20_0000, 0x30_0000]));
        let mut allocated = link::prepare(graph).expect("it is small").allocate(&memory).expect("there is memory");
        resolve(&mut allocated, &|_| Some(0x7777_1234_5678));
        let mut fixed = allocated.fix_up().expect("64 bits take all");
        let content = fixed.content(SegmentKind::ReadOnly).to_vec();
        let table = EhFrame::new(&content, LittleEndian);
        let bases = BaseAddresses::default().set_eh_frame(0x20_0000);
        let cie = table.cie_from_offset(&bases, 0.into()).expect("the first record is one");
        let found = cie.personality().expect("it has one");
        let wanted =
            if encoding == 0 { gimli::Pointer::Direct(0x7777_1234_5678) } else { gimli::Pointer::Indirect(0x30_0008) };
        assert_eq!(found, wanted);
    }
}
