//! What a debugger finds in the process: the files of the GDB JIT interface.

#![cfg(target_os = "linux")]

mod common;
#[path = "common/debugger_list.rs"]
mod debugger_list;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::add;
use cranelift_codegen::ir::{AbiParam, InstBuilder, SourceLoc, types};
use cranelift_module::{Linkage, Module};
use debugger_list::{files, turn};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, MayAllocateDuringUnwind, Unwinder};
use jit_core::{Debugger, Jit, Link, LinkPlugin, OptLevel, SourceText};
use jit_linker::LinkGraph;
use object::{Object, ObjectSection, ObjectSymbol};

fn jit() -> Jit {
    Jit::builder().opt_level(OptLevel::None).verifier(true).debugger(Debugger::On).build().unwrap()
}

const TWO: &str = "
    function %one() -> i64 system_v {
    block0:
        v0 = iconst.i64 1
        return v0
    }
    function %two() -> i64 system_v {
        fn0 = %one() -> i64 system_v
    block0:
        v0 = call fn0()
        v1 = iadd v0, v0
        return v1
    }";

#[test]
fn e2e_18_a_debugger_finds_functions_until_they_are_removed() {
    let _turn = turn();
    let jit = jit();
    let tracker = add(&jit, TWO);
    assert!(files().is_empty());
    let addresses = ["one", "two"].map(|name| jit.lookup_address(name).unwrap());
    let found = files();
    let mut seen = Vec::new();
    for file in &found {
        let file = object::File::parse(&**file).unwrap();
        let text = file.section_by_name(".text").unwrap();
        for symbol in file.symbols().filter(|symbol| symbol.kind() == object::SymbolKind::Text) {
            assert!(symbol.address() >= text.address());
            assert!(symbol.address() + symbol.size() <= text.address() + text.size());
            seen.push((symbol.name().unwrap().to_owned(), symbol.address()));
        }
    }
    seen.sort();
    assert_eq!(seen, [("one".to_owned(), addresses[0]), ("two".to_owned(), addresses[1])]);
    tracker.remove().unwrap();
    assert!(files().is_empty());
}

/// Counts links, of which a batch is one.
#[derive(Default)]
struct Links(AtomicUsize);

impl LinkPlugin for Links {
    fn loaded(&self, _: &Link, _: &LinkGraph) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_batch_is_one_file() {
    const FUNCTIONS: usize = 100;
    let _turn = turn();
    let jit = jit();
    let links = Arc::new(Links::default());
    jit.object_layer().add_plugin(Arc::clone(&links) as Arc<dyn LinkPlugin>);
    let mut module = jit.module("chain");
    common::chain(&mut module, FUNCTIONS);
    let tracker = jit.add_module(module).unwrap();
    // With the last one, all that it leads to is compiled.
    jit.lookup_address(&format!("f{}", FUNCTIONS - 1)).unwrap();
    let found = files();
    assert_eq!(found.len(), links.0.load(Ordering::Relaxed));
    assert!((1..10).contains(&found.len()), "{} batches", found.len());
    let mut names = Vec::new();
    for file in &found {
        let file = object::File::parse(&**file).unwrap();
        let code = file.symbols().filter(|symbol| symbol.kind() == object::SymbolKind::Text);
        names.extend(code.map(|symbol| symbol.name().unwrap().to_owned()));
    }
    names.sort();
    let mut expected: Vec<_> = (0..FUNCTIONS).map(|index| format!("f{index}")).collect();
    expected.sort();
    assert_eq!(names, expected);
    tracker.remove().unwrap();
    assert!(files().is_empty());
}

#[test]
fn by_default_there_are_no_files() {
    let _turn = turn();
    let jit = common::jit();
    add(&jit, TWO);
    jit.lookup_address("two").unwrap();
    assert!(files().is_empty());
    // No debugger is attached to tests.
    let jit = Jit::builder().debugger(Debugger::IfAttached).build().unwrap();
    add(&jit, TWO);
    jit.lookup_address("two").unwrap();
    assert!(files().is_empty());
}

#[test]
fn e2e_19_lines_of_the_source_are_in_the_file() {
    let _turn = turn();
    let jit = jit();
    let text = "first\nsecond\nthird";
    let mut module = jit.module("lines").source(SourceText::new("/src/prog.k", text));
    let mut signature = module.make_signature();
    signature.returns.push(AbiParam::new(types::I64));
    let id = module.declare_function("f", Linkage::Export, &signature).unwrap();
    common::build(&mut module, id, |_, builder| {
        builder.set_srcloc(SourceLoc::new(6));
        let value = builder.ins().iconst(types::I64, 4);
        let product = builder.ins().imul(value, value);
        builder.set_srcloc(SourceLoc::new(15));
        builder.ins().return_(&[product]);
    });
    jit.add_module(module).unwrap();
    let start = jit.lookup_address("f").unwrap();

    let files = files();
    let file = object::File::parse(&*files[0]).unwrap();
    let load = |id: gimli::SectionId| -> Result<_, gimli::Error> {
        let data = file.section_by_name(id.name()).map(|section| section.data().unwrap()).unwrap_or_default();
        Ok(gimli::EndianSlice::new(data, gimli::LittleEndian))
    };
    let dwarf = gimli::DwarfSections::load(load).unwrap();
    let dwarf = dwarf.borrow(|section| *section);
    let unit = dwarf.unit(dwarf.units().next().unwrap().unwrap()).unwrap();
    assert_eq!(unit.name.unwrap().slice(), b"prog.k");
    assert_eq!(unit.comp_dir.unwrap().slice(), b"/src");
    let mut rows = Vec::new();
    let mut program = unit.line_program.clone().unwrap().rows();
    while let Some((_, row)) = program.next_row().unwrap() {
        if !row.end_sequence() {
            rows.push((row.address() - start, row.line().unwrap().get(), row.column()));
        }
    }
    assert_eq!((rows[0].0, rows[0].1), (0, 2));
    assert!(rows.is_sorted());
    let last = rows.last().unwrap();
    assert_eq!((last.1, last.2), (3, gimli::ColumnType::Column(3.try_into().unwrap())));
}

/// The return addresses that libgcc finds, and those that framehop finds with the debugger's
/// tables, of the frames below this one.
extern "C-unwind" fn compare(_: i64) -> i64 {
    use std::ffi::c_void;
    unsafe extern "C" {
        fn _Unwind_Backtrace(each: extern "C" fn(*mut c_void, *mut c_void) -> i32, argument: *mut c_void) -> i32;
        fn _Unwind_GetIP(context: *mut c_void) -> usize;
        fn _Unwind_GetCFA(context: *mut c_void) -> usize;
        fn _Unwind_GetGR(context: *mut c_void, register: i32) -> usize;
    }
    const FRAME_POINTER: i32 = if cfg!(target_arch = "x86_64") { 6 } else { 29 };
    extern "C" fn each(context: *mut c_void, frames: *mut c_void) -> i32 {
        // SAFETY: the context is the walk's, and the argument the list below.
        unsafe {
            let frames = &mut *frames.cast::<Vec<[u64; 3]>>();
            let frame_pointer = _Unwind_GetGR(context, FRAME_POINTER);
            frames.push([_Unwind_GetIP(context), _Unwind_GetCFA(context), frame_pointer].map(|word| word as u64));
        }
        0
    }
    let mut frames: Vec<[u64; 3]> = Vec::new();
    // SAFETY: the list outlives the walk.
    unsafe { _Unwind_Backtrace(each, (&raw mut frames).cast()) };

    let mut modules = Vec::new();
    for file in files() {
        let file = object::File::parse(&*file).unwrap();
        let section = |name| file.section_by_name(name).map(|section| section.data().unwrap().to_vec());
        let text = file.section_by_name(".text").unwrap();
        let range = text.address()..text.address() + text.size();
        let info = ExplicitModuleSectionInfo {
            base_svma: range.start,
            text_svma: Some(range.clone()),
            debug_frame: section(".debug_frame"),
            ..Default::default()
        };
        modules.push((range, info));
    }
    let is_ours = |address: u64| modules.iter().any(|(range, _)| range.contains(&address));
    let first = frames.iter().position(|frame| is_ours(frame[0])).unwrap();
    // The walk goes on with what libgcc says of the frame before ours, and ends with the first
    // that has no tables here.
    agree(&frames[first..], modules.clone());
    0
}

#[cfg(target_arch = "x86_64")]
fn agree(frames: &[[u64; 3]], modules: Vec<(std::ops::Range<u64>, ExplicitModuleSectionInfo<Vec<u8>>)>) {
    use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
    let mut unwinder: UnwinderX86_64<Vec<u8>> = UnwinderX86_64::new();
    let ours = modules.iter().map(|module| module.0.clone()).collect::<Vec<_>>();
    for (range, info) in modules {
        let start = range.start;
        unwinder.add_module(framehop::Module::new("jit".to_owned(), range, start, info));
    }
    let mut cache: CacheX86_64<MayAllocateDuringUnwind> = CacheX86_64::new();
    // SAFETY: the unwinders agree that this is the stack, or the test fails.
    let mut read = |address: u64| Ok(unsafe { *std::ptr::with_exposed_provenance::<u64>(address as usize) });
    // libgcc tells the frame's own registers; the stack pointer is where the frame called.
    let [_, cfa, frame_pointer] = frames[0];
    let mut registers = UnwindRegsX86_64::new(frames[0][0], cfa, frame_pointer);
    let mut steps = 0;
    for pair in frames.windows(2) {
        let [[pc, _, _], [caller, _, _]] = pair else { unreachable!() };
        if !ours.iter().any(|range| range.contains(pc)) {
            break;
        }
        let address = FrameAddress::from_return_address(*pc).unwrap();
        let found = unwinder.unwind_frame(address, &mut registers, &mut cache, &mut read).unwrap();
        assert_eq!(found, Some(*caller), "frame {steps} at {pc:#x}");
        steps += 1;
    }
    assert_eq!(steps, DEPTH, "{frames:#x?}");
}

#[cfg(target_arch = "aarch64")]
fn agree(frames: &[[u64; 3]], modules: Vec<(std::ops::Range<u64>, ExplicitModuleSectionInfo<Vec<u8>>)>) {
    use framehop::aarch64::{CacheAarch64, UnwindRegsAarch64, UnwinderAarch64};
    let mut unwinder: UnwinderAarch64<Vec<u8>> = UnwinderAarch64::new();
    let ours = modules.iter().map(|module| module.0.clone()).collect::<Vec<_>>();
    for (range, info) in modules {
        let start = range.start;
        unwinder.add_module(framehop::Module::new("jit".to_owned(), range, start, info));
    }
    let mut cache: CacheAarch64<MayAllocateDuringUnwind> = CacheAarch64::new();
    // SAFETY: the unwinders agree that this is the stack, or the test fails.
    let mut read = |address: u64| Ok(unsafe { *std::ptr::with_exposed_provenance::<u64>(address as usize) });
    let [pc, cfa, frame_pointer] = frames[0];
    let mut registers = UnwindRegsAarch64::new(pc, cfa, frame_pointer);
    let mut steps = 0;
    for pair in frames.windows(2) {
        let [[pc, _, _], [caller, _, _]] = pair else { unreachable!() };
        if !ours.iter().any(|range| range.contains(pc)) {
            break;
        }
        let address = FrameAddress::from_return_address(*pc).unwrap();
        let found = unwinder.unwind_frame(address, &mut registers, &mut cache, &mut read).unwrap();
        assert_eq!(found, Some(*caller), "frame {steps} at {pc:#x}");
        steps += 1;
    }
    assert_eq!(steps, DEPTH, "{frames:#x?}");
}

const DEPTH: usize = 40;

#[test]
fn an_independent_unwinder_agrees_with_every_frame() {
    let _turn = turn();
    let jit = jit();
    jit.define_function("compare", compare as extern "C-unwind" fn(i64) -> i64).unwrap();
    let mut module = jit.module("deep");
    for index in 0..DEPTH {
        let callee = if index == 0 { "compare".to_owned() } else { format!("f{}", index - 1) };
        // Frames of different sizes, which keep different registers.
        let slot = if index % 3 == 0 { format!("ss0 = explicit_slot {}", index * 8 + 8) } else { String::new() };
        let mut text =
            format!("function %f{index}(i64) -> i64 system_v {{\n{slot}\nfn0 = %{callee}(i64) -> i64 system_v\n");
        text += "block0(v0: i64):\n";
        for value in 1..=index % 8 {
            text += &format!("v{value} = imul v0, v{}\n", value - 1);
        }
        text += "v50 = call fn0(v0)\n";
        for value in 1..=index % 8 {
            text += &format!("v{} = iadd v{}, v{value}\n", 50 + value, 49 + value);
        }
        text += &format!("return v{}\n}}", 50 + index % 8);
        common::define(&mut module, &text);
    }
    jit.add_module(module).unwrap();
    let function = jit.lookup::<extern "C-unwind" fn(i64) -> i64>(&format!("f{}", DEPTH - 1)).unwrap();
    // SAFETY: the functions call each other and `compare`.
    unsafe { function.call(3) };
}
