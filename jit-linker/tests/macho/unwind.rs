//! Unwinding tables: DWARF records, and what compact information is turned into.

use std::sync::Arc;

use gimli::{BaseAddresses, EhFrame, LittleEndian, UnwindContext, UnwindSection};
use jit_linker::SymbolStringPool;
use jit_linker::arch::Architecture;
use jit_linker::format;
use jit_linker::graph::{Definition, SectionRole};
use jit_linker::link;
use jit_linker::memory::{DetachedMemory, MemoryManager, SegmentKind, SlabManager};

use crate::compiler::build;
use crate::support::{parse, resolve};
use crate::{ARM64, HOST, X86_64};

/// What the tables say of a function: its name, its length, and its frame behind the prologue.
type Described = (String, u64, String);

fn described(object: Vec<u8>) -> Vec<Described> {
    let graph = parse(object);
    let is_arm64 = graph.architecture() == Architecture::Aarch64;
    let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::at(0x4000_0000));
    let mut allocated = link::prepare(graph).expect("it is small").allocate(&memory).expect("there is memory");
    resolve(&mut allocated, &|_| Some(0x4100_0000));
    let graph = allocated.graph();
    let defined = graph.symbols().filter(|(_, symbol)| symbol.is_defined_here());
    let names: Vec<_> =
        defined.filter_map(|(id, _)| Some((allocated.address(id), graph.symbol_name(id)?.to_string()))).collect();
    let section = allocated.graph().section_with(SectionRole::EhFrame).expect("there are records");
    let range = allocated.section_range(section);
    let read_only = {
        let block = allocated.graph().blocks().find(|(_, block)| block.section == Some(section)).expect("it has one").1;
        assert_eq!(block.kind, SegmentKind::ReadOnly);
        range.start & !0xfff
    };
    let mut fixed = allocated.fix_up().expect("everything is near");
    let content = fixed.content(SegmentKind::ReadOnly);
    let content = &content[(range.start - read_only) as usize..(range.end - read_only) as usize];
    let table = EhFrame::new(content, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(range.start);
    let mut entries = table.entries(&bases);
    let mut found = Vec::new();
    while let Some(entry) = entries.next().expect("the records are whole") {
        let gimli::CieOrFde::Fde(fde) = entry else { continue };
        let fde = fde.parse(EhFrame::cie_from_offset).expect("its CIE is there");
        let name = names.iter().find(|(address, _)| *address == fde.initial_address());
        let name = name.unwrap_or_else(|| panic!("{:#x} is no function: {names:x?}", fde.initial_address()));
        let mut context = UnwindContext::new();
        let mut rows = fde.rows(&table, &bases, &mut context).expect("the instructions are whole");
        let (mut frame, mut most) = (String::new(), 0);
        while let Some(row) = rows.next_row().expect("the instructions are whole") {
            let mut registers: Vec<_> = row.registers().map(|rule| format!("{rule:?}")).collect();
            registers.sort();
            // On arm64 there are rows for the epilogue too.
            if registers.len() > most || frame.is_empty() || !is_arm64 {
                (frame, most) = (format!("{:?} {registers:?}", row.cfa()), registers.len());
            }
        }
        found.push((name.1.clone(), fde.len(), frame));
    }
    found.sort();
    found
}

const FRAMES: &str = "
    extern void use(int *);
    int none(int a) { return a * 2; }
    int small(int a) { int x[4]; use(x); return a + x[1]; }
    int many(int a, int b, int c, int d, int e) {
        int x[100]; use(x); int y[10]; use(y); return a + b * c + d * x[3] + e * y[2];
    }
    int big(int a) { int x[50000]; use(x); return a + x[a]; }
    double floats(double a, double b) { int x[2]; use(x); use(x + 1); return a * b + x[0]; }
    int leaf(int a) {
    #ifdef __x86_64__
        __asm__ volatile(\"nop\" ::: \"rbx\", \"r12\", \"r14\", \"rbp\");
    #else
        __asm__ volatile(\"nop\" ::: \"x19\", \"x20\", \"d8\", \"d9\");
    #endif
        return a;
    }";

#[test]
fn macho_08_macho_31_compact_information_says_what_dwarf_says() {
    for target in [X86_64, ARM64] {
        for pointer in ["-fomit-frame-pointer", "-fno-omit-frame-pointer"] {
            for level in ["-O0", "-O2"] {
                let object = |unwind: &[&str]| {
                    let mut command = vec!["clang-22", "-c", "-ffreestanding", level, pointer, "-target", target];
                    command.extend(unwind);
                    build(&command, "c", FRAMES)
                };
                let dwarf = described(object(&["-fasynchronous-unwind-tables", "-femit-dwarf-unwind=always"]));
                let compact = described(object(&["-fno-asynchronous-unwind-tables", "-funwind-tables"]));
                assert!(dwarf.len() >= 5, "{target} {level} {pointer}: {dwarf:?}");
                // Compact information of arm64 needs a frame pointer in functions that call others.
                let is_compact = |name: &str| match (target, pointer) {
                    (X86_64, _) => true,
                    (_, "-fomit-frame-pointer") => name == "leaf",
                    _ => name != "none",
                };
                for function in compact.iter().filter(|(name, ..)| is_compact(name)) {
                    assert!(dwarf.contains(function), "{target} {level} {pointer}: {function:?}\n{dwarf:#?}");
                }
                // A function whose frame is that of every call may have no entry.
                assert!(compact.len() + 1 >= dwarf.len(), "{target} {level} {pointer}: {compact:#?}\n{dwarf:#?}");
            }
        }
    }
}

/// Two functions whose CIE names a personality, and between them one whose CIE does not.
const TWO_CIES: &str = r#"
    struct Drop { int x; ~Drop(); };
    extern "C" {
        void use(int *);
        void f() { Drop drop; use(&drop.x); }
        void g() { int x; use(&x); }
        void h() { Drop drop; use(&drop.x); use(&drop.x); }
    }"#;

fn compile_with_dwarf(target: &str, source: &str) -> Vec<u8> {
    let command = ["clang-22", "-c", "-O1", "-fasynchronous-unwind-tables", "-femit-dwarf-unwind=always"];
    let command: Vec<_> = command.into_iter().chain(["-target", target]).collect();
    let object = build(&command, "cpp", source);
    let at = object.windows(10).position(|name| name == b"__eh_frame").expect("it has DWARF records");
    assert_ne!(object[at + 40..at + 48], [0; 8], "it has DWARF records");
    object
}

fn with_dwarf(target: &str) -> Vec<u8> {
    compile_with_dwarf(target, TWO_CIES)
}

#[test]
fn macho_10_records_find_their_cie_and_the_functions_and_tables_that_no_relocation_names() {
    for target in [X86_64, ARM64] {
        let names: Vec<_> = described(with_dwarf(target)).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["f", "g", "h"], "{target}");
        let graph = parse(with_dwarf(target));
        let to_table = graph.edges().iter().filter(|edge| match graph.symbol(edge.target).definition {
            Definition::Block { block, .. } => {
                graph.block(block).section.is_some_and(|section| graph.section_name(section) == "__gcc_except_tab")
            }
            _ => false,
        });
        assert_eq!(to_table.count(), 2, "{target}");
    }
}

#[test]
fn records_of_functions_that_are_left_out_are_left_out_too() {
    for target in [X86_64, ARM64] {
        let mut graph = parse(with_dwarf(target));
        let f = crate::object::find(&graph, "f").0;
        let lost = graph.exclude(&[f]);
        assert!(lost.contains(&f));
        let live = graph.blocks().filter(|(_, block)| block.live);
        let records = live.filter(|(_, block)| {
            block.section.is_some_and(|section| graph.section(section).role == SectionRole::EhFrame)
        });
        assert_eq!(records.count(), 2 + 2, "{target}: two CIEs and two FDEs");
    }
}

/// The records of x86-64 have no relocations but those of personality.
fn broken(change: impl Fn(&mut [u8])) -> String {
    let mut object = with_dwarf(X86_64);
    let at = object.windows(5).position(|bytes| bytes == *b"zPLR\0").expect("the first CIE is there") - 9;
    change(&mut object[at..]);
    let parsed = format::parse("test.o", object.into(), &SymbolStringPool::new());
    parsed.expect_err("a record is wrong").to_string()
}

fn first_fde(records: &[u8]) -> usize {
    4 + u32::from_le_bytes(*records.first_chunk().expect("there is a CIE")) as usize
}

#[test]
fn macho_11_a_record_whose_cie_is_not_there_is_an_error() {
    let error = broken(|records| {
        let fde = first_fde(records);
        records[fde + 4] -= 4;
    });
    assert!(error.contains("has no CIE at"), "{error}");
}

#[test]
fn macho_11_a_record_about_no_function_is_an_error() {
    let error = broken(|records| {
        let fde = first_fde(records);
        records[fde + 8 + 3] = 0x40;
    });
    assert!(error.contains("where nothing is"), "{error}");
}

unsafe extern "C" {
    fn __register_frame(table: *const u8);
    fn __deregister_frame(table: *const u8);
}

extern "C-unwind" fn panics(argument: i32) -> i32 {
    assert!(argument == 0, "{argument}");
    7
}

#[test]
fn macho_52_a_panic_passes_through_frames_that_only_compact_information_describes() {
    const SOURCE: &str = "
        extern int panics(int);
        extern void touch(int *);
        int frame(int n) { int x[60]; touch(x); int y = panics(n); touch(x); return y + x[n]; }
        int outer(int n) { return frame(n) + 1; }";
    extern "C" fn touch(place: &mut i32) {
        *place = 30;
    }
    for pointer in ["-fomit-frame-pointer", "-fno-omit-frame-pointer"] {
        let command = [
            "clang-22",
            "-c",
            "-O1",
            "-ffreestanding",
            "-fno-asynchronous-unwind-tables",
            "-funwind-tables",
            "-fno-stack-protector",
        ];
        let command: Vec<_> =
            command.into_iter().chain([pointer, "-femit-dwarf-unwind=no-compact-unwind", "-target", HOST]).collect();
        let object = build(&command, "c", SOURCE);
        if let Some(at) = object.windows(10).position(|name| name == b"__eh_frame") {
            assert_eq!(object[at + 40..at + 48], [0; 8], "the section is empty: there is only compact information");
        }
        let memory: Arc<dyn MemoryManager> = Arc::new(SlabManager::new().expect("there is address space"));
        let mut allocated = link::prepare(parse(object)).expect("it fits").allocate(&memory).expect("there is memory");
        resolve(&mut allocated, &|name| match name {
            "panics" => Some(panics as *const () as u64),
            "touch" => Some(touch as *const () as u64),
            _ => None,
        });
        let section = allocated.graph().section_with(SectionRole::EhFrame).expect("there are records");
        let table = std::ptr::with_exposed_provenance::<u8>(allocated.section_range(section).start as usize);
        let outer = allocated.address(crate::object::find(allocated.graph(), "outer").0);
        let _code = allocated.fix_up().expect("everything is near").finalize().expect("it is mapped");
        let outer = std::ptr::with_exposed_provenance::<()>(outer as usize);
        // SAFETY: `outer` has this type; the code and its table are final, and live until the end of the loop.
        let (outer, ()) = unsafe {
            (std::mem::transmute::<*const (), extern "C-unwind" fn(i32) -> i32>(outer), __register_frame(table))
        };
        assert_eq!(outer(0), 38);
        let caught = std::panic::catch_unwind(|| outer(3)).expect_err("it panics");
        assert_eq!(caught.downcast_ref::<String>().map(String::as_str), Some("3"), "{pointer}");
        // SAFETY: registered above, and nobody unwinds through it any more.
        unsafe { __deregister_frame(table) };
    }
}

#[test]
fn a_record_of_a_weak_definition_stays_with_its_own_copy() {
    let source = r#"
        extern "C" void use(int *);
        extern "C" __attribute__((weak)) void f() { int x; use(&x); }"#;
    for target in [X86_64, ARM64] {
        let graph = parse(compile_with_dwarf(target, source));
        let f = crate::object::find(&graph, "f").0;
        assert!(graph.edges().iter().all(|edge| edge.target != f), "{target}: {graph}");
    }
}

#[test]
fn a_record_is_for_the_function_at_a_label_that_is_no_symbol() {
    // `f` has compact information alone, and the function at the label a record that is counted from `f`.
    let source = "
        .globl _f\n.p2align 2\n_f:\n.cfi_startproc\nstp x29, x30, [sp, #-16]!\nmov x29, sp
        .cfi_def_cfa w29, 16\n.cfi_offset w30, -8\n.cfi_offset w29, -16\nbl _outside
        ldp x29, x30, [sp], #16\nret\n.cfi_endproc
        L_g:\n.cfi_startproc\nsub sp, sp, #16\n.cfi_def_cfa_offset 24\n.cfi_offset w27, -16
        add sp, sp, #16\nret\n.cfi_endproc\n.subsections_via_symbols\n";
    let graph = parse(crate::assemble(ARM64, source));
    let f = crate::object::place(&graph, "f");
    let records = graph.section_with(SectionRole::EhFrame).expect("there are records");
    let mut functions: Vec<_> = graph
        .edges()
        .iter()
        .filter(|edge| edge.offset == 8 && graph.block(edge.block).section == Some(records))
        .map(|edge| match graph.symbol(edge.target).definition {
            Definition::Block { block, offset } => (block.index(), i64::from(offset) + edge.addend),
            definition => panic!("{definition:?}"),
        })
        .collect();
    functions.sort_unstable();
    assert_eq!(functions, [(f.0, 0), (f.0, 20)], "{graph}");
}
