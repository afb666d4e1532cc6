//! Panics and backtraces get through frames of compiled code.

mod common;

use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};

use common::{add, chain};
use jit_core::{AbsoluteSymbol, ClifModule, CompileAt, Jit, ObjectLayer, OptLevel, SymbolDef, SymbolFlags};
use jit_linker::LinkGraph;
use jit_linker::arch::{aarch64, x86_64};
use jit_linker::graph::{Edge, EdgeKind, SymbolKind};
use jit_linker::memory::SegmentKind;

type Callback = extern "C-unwind" fn(i64) -> i64;

thread_local! {
    static DROPPED: RefCell<Vec<i64>> = const { RefCell::new(Vec::new()) };
}

/// Notes that it was dropped.
struct Guard(i64);

impl Drop for Guard {
    fn drop(&mut self) {
        DROPPED.with_borrow_mut(|dropped| dropped.push(self.0));
    }
}

fn take_dropped() -> Vec<i64> {
    DROPPED.with_borrow_mut(std::mem::take)
}

/// Unwinds without telling the panic hook.
extern "C-unwind" fn throw(value: i64) -> i64 {
    let _guard = Guard(value);
    if value >= 0 {
        resume_unwind(Box::new(value));
    }
    value
}

/// A host frame with something to drop, between frames of compiled code.
extern "C-unwind" fn between(function: i64, value: i64) -> i64 {
    let _guard = Guard(1000 + value);
    // SAFETY: the callers pass the address of a function of this type.
    let function = unsafe { std::mem::transmute::<*const (), Callback>(function as *const ()) };
    function(value)
}

fn jit(level: OptLevel) -> Jit {
    let jit = Jit::builder().opt_level(level).verifier(true).build().unwrap();
    jit.define_function("throw", throw as Callback).unwrap();
    jit.define_function("between", between as extern "C-unwind" fn(i64, i64) -> i64).unwrap();
    jit
}

/// What calling `name` with `value` throws.
fn thrown(jit: &Jit, name: &str, value: i64) -> i64 {
    let function = jit.lookup::<Callback>(name).unwrap();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let _guard = Guard(2000);
        // SAFETY: the functions call each other and the ones above.
        unsafe { function.call(value) }
    }));
    *result.expect_err("nothing was thrown").downcast::<i64>().expect("another panic")
}

/// A function that keeps values in many registers and on the stack across a call of `callee`.
fn crowded(name: &str, callee: &str) -> String {
    let mut text = format!("function %{name}(i64) -> i64 system_v {{\n    fn0 = %{callee}(i64) -> i64 system_v\n");
    text += "block0(v0: i64):\n";
    for value in 1..=20 {
        let _ = writeln!(text, "    v{} = iconst.i64 {value}\n    v{value} = imul v0, v{}", 100 + value, 100 + value);
    }
    text += "    v50 = call fn0(v0)\n";
    for value in 1..=20 {
        let _ = writeln!(text, "    v{} = iadd v{}, v{value}", 50 + value, 49 + value);
    }
    text + "    return v70\n}\n"
}

/// A function that passes its argument to `callee` by way of the host's `between`.
fn through_host(name: &str, callee: &str) -> String {
    format!(
        "function %{name}(i64) -> i64 system_v {{
            fn0 = %between(i64, i64) -> i64 system_v
            fn1 = %{callee}(i64) -> i64 system_v
        block0(v0: i64):
            v1 = func_addr.i64 fn1
            v2 = call fn0(v1, v0)
            return v2
        }}\n"
    )
}

#[test]
fn a_panic_passes_through_compiled_frames_and_drops_what_hosts_hold() {
    for level in [OptLevel::None, OptLevel::Speed] {
        let jit = jit(level);
        add(&jit, &format!("{}{}", crowded("outer", "middle"), through_host("middle", "inner")));
        add(&jit, &crowded("inner", "throw"));
        assert_eq!(thrown(&jit, "outer", 7), 7);
        assert_eq!(take_dropped(), [7, 1007, 2000], "{level:?}");
        // The functions work as before.
        let outer = jit.lookup::<Callback>("outer").unwrap();
        // SAFETY: the functions call each other and the host's.
        assert_eq!(unsafe { outer.call(-1) }, -421);
        take_dropped();
    }
}

/// Calls `throw` with `value` from below `count` frames of functions in as many as 32 to a batch.
fn deep(jit: &Jit, count: usize, at: CompileAt) {
    let mut module = ClifModule::new("deep", jit.isa().clone(), at);
    let text = "function %f0(i64) -> i64 system_v {
            fn0 = %throw(i64) -> i64 system_v
        block0(v0: i64):
            v1 = call fn0(v0)
            return v1
        }";
    common::define(&mut module, text);
    chain_onto(&mut module, count);
    jit.add_module(module).unwrap();
}

/// `f1` to `f{count-1}`, each calling the one before.
fn chain_onto(module: &mut ClifModule, count: usize) {
    for index in 1..count {
        let text = format!(
            "function %f{index}(i64) -> i64 system_v {{
                fn0 = %f{}(i64) -> i64 system_v
            block0(v0: i64):
                v1 = call fn0(v0)
                return v1
            }}",
            index - 1
        );
        common::define(module, &text);
    }
}

#[test]
fn a_panic_passes_through_frames_of_many_batches() {
    for at in [CompileAt::Lookup, CompileAt::Definition] {
        let jit = jit(OptLevel::None);
        deep(&jit, 200, at);
        assert_eq!(thrown(&jit, "f199", 3), 3);
        assert_eq!(take_dropped(), [3, 2000], "{at:?}");
    }
}

#[test]
fn unwinding_works_while_functions_come_and_go() {
    let jit = jit(OptLevel::None);
    let mut live = Vec::new();
    for round in 0..60 {
        let name = format!("g{round}");
        let tracker = add(&jit, &crowded(&name, "throw"));
        assert_eq!(thrown(&jit, &name, round), round);
        live.push((name, tracker));
        // Their memory is used again by those that follow.
        if round % 3 == 2 {
            for at in [live.len() - 3, live.len() / 2] {
                live.remove(at).1.remove().unwrap();
            }
        }
        for (name, _) in &live {
            assert_eq!(thrown(&jit, name, 100 + round), 100 + round, "{name} in round {round}");
        }
    }
    assert_eq!(live.len(), 20);
}

#[test]
fn threads_throw_while_others_register_and_withdraw() {
    let jit = jit(OptLevel::None);
    add(&jit, &crowded("constant", "throw"));
    jit.lookup_address("constant").unwrap();
    std::thread::scope(|scope| {
        let throwers: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| (0..300).for_each(|value| assert_eq!(thrown(&jit, "constant", value), value))))
            .collect();
        while throwers.iter().any(|thrower| !thrower.is_finished()) {
            let tracker = add(&jit, &crowded("fleeting", "throw"));
            assert_eq!(thrown(&jit, "fleeting", 1), 1);
            tracker.remove().unwrap();
        }
    });
}

#[test]
fn without_unwinding_there_are_no_tables() {
    let jit = Jit::builder().unwinding(false).build().unwrap();
    add(&jit, "function %one() -> i64 system_v {\nblock0:\n    v0 = iconst.i64 1\n    return v0\n}");
    let with = common::jit();
    add(&with, "function %one() -> i64 system_v {\nblock0:\n    v0 = iconst.i64 1\n    return v0\n}");
    assert!(!is_known(jit.lookup_address("one").unwrap()));
    assert!(is_known(with.lookup_address("one").unwrap()));
}

/// Whether the process's unwinder knows how to unwind a function.
fn is_known(address: u64) -> bool {
    known_start(address) == Some(address)
}

/// Where the code begins that an address is in, as far as the process's unwinder knows.
fn known_start(address: u64) -> Option<u64> {
    unsafe extern "C" {
        fn _Unwind_FindEnclosingFunction(pc: *mut std::ffi::c_void) -> *mut std::ffi::c_void;
    }
    let inside = std::ptr::with_exposed_provenance_mut(address as usize + 1);
    // SAFETY: it only looks tables up.
    let start = unsafe { _Unwind_FindEnclosingFunction(inside) };
    (!start.is_null()).then_some(start.addr() as u64)
}

#[test]
fn the_stub_of_a_redirectable_function_is_known() {
    let jit = common::jit();
    let without = Jit::builder().unwinding(false).build().unwrap();
    for (jit, expected) in [(&jit, true), (&without, false)] {
        let mut module = jit.module("bodies").redirectable();
        for index in 0..3 {
            let text = format!("function %r{index}() -> i64 system_v {{\nblock0:\n v0 = iconst.i64 1\n return v0\n}}");
            common::define(&mut module, &text);
        }
        jit.redefine(module).unwrap();
        for index in 0..3 {
            let name = format!("r{index}");
            let stub = jit.lookup_address(&name).unwrap();
            let body = jit.lookup::<extern "C-unwind" fn() -> i64>(&name).unwrap();
            assert_ne!(body.address(), stub);
            // All stubs of a table are one function.
            assert_eq!(known_start(stub).is_some_and(|start| start <= stub), expected);
            assert!(!is_known(stub) || known_start(stub + STUB - 1) == Some(stub), "{name}");
        }
    }
}

/// Bytes of a stub.
const STUB: u64 = jit_linker::arch::stub::STUB_SIZE as u64;

/// Where the branch leads that a function consists of.
fn branch_target(function: u64) -> u64 {
    let start = std::ptr::with_exposed_provenance::<u32>(function as usize);
    if cfg!(target_arch = "x86_64") {
        // SAFETY: a byte and four of a distance are there.
        let distance = unsafe { start.byte_add(1).cast::<i32>().read_unaligned() };
        (function + 5).wrapping_add_signed(distance.into())
    } else {
        // SAFETY: an instruction is there.
        let instruction = unsafe { start.read() };
        function.wrapping_add_signed(i64::from((instruction << 6).cast_signed() >> 6) * 4)
    }
}

#[test]
fn the_stub_of_a_link_is_known_until_it_is_removed() {
    let jit = common::jit();
    // Nothing is ever there, and no branch gets there.
    let far = SymbolDef::at(0x7000);
    let name = jit.session().intern("far");
    let symbol = AbsoluteSymbol { name: name.clone(), definition: far, flags: SymbolFlags::FUNCTION, signature: None };
    jit.main().define_absolute(vec![symbol]).unwrap();
    let mut graph = LinkGraph::new("jump", jit.session().executor().architecture());
    let target = graph.external(name, 0);
    let (code, offset, kind, addend) = if cfg!(target_arch = "x86_64") {
        (vec![0xe9, 0, 0, 0, 0], 1, EdgeKind::X86_64(x86_64::EdgeKind::Branch32), -4)
    } else {
        (0x1400_0000u32.to_le_bytes().to_vec(), 0, EdgeKind::Aarch64(aarch64::EdgeKind::Branch26), 0)
    };
    let block = graph.add_block(SegmentKind::Code, &code, 16).unwrap();
    graph.add_edge(Edge { block, offset, kind, target, addend }).unwrap();
    let jump = graph.define(Some(jit.session().intern("jump")), block, 0, 0);
    graph.set_kind(jump, SymbolKind::Function);
    let tracker = jit.main().create_tracker().unwrap();
    jit.object_layer().add_graph(&tracker, graph).unwrap();
    let stub = branch_target(jit.lookup_address("jump").unwrap());
    assert_ne!(stub, 0x7000);
    assert!(is_known(stub), "{:x?}", known_start(stub));
    tracker.remove().unwrap();
    assert_eq!(known_start(stub), None);
}

#[test]
fn the_unwinder_is_the_one_that_is_asked_for() {
    // The tests are run with LLVM's in place of libgcc's as well: they prove nothing if that is not there.
    let wanted = std::env::var("ORCANE_TEST_UNWINDER").unwrap_or_else(|_| "libgcc".to_owned());
    // SAFETY: the name is a C string.
    let llvms = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__unw_add_dynamic_fde".as_ptr()) };
    assert_eq!(wanted, if llvms.is_null() { "libgcc" } else { "libunwind" });
}

#[test]
fn removed_functions_are_not_known_any_more() {
    let jit = common::jit();
    let mut module = jit.module("chain");
    chain(&mut module, 100);
    let tracker = jit.add_module(module).unwrap();
    let addresses: Vec<_> = (0..100).map(|index| jit.lookup_address(&format!("f{index}")).unwrap()).collect();
    assert!(addresses.iter().all(|address| is_known(*address)));
    tracker.remove().unwrap();
    assert!(!addresses.iter().any(|address| is_known(*address)));
}

#[inline(never)]
fn a_named_caller(jit: &Jit) {
    let outer = jit.lookup::<extern "C-unwind" fn(i64) -> i64>("outer").unwrap();
    // SAFETY: the functions call each other and `capture`.
    std::hint::black_box(unsafe { outer.call(-1) });
}

#[test]
fn a_backtrace_leads_through_compiled_frames() {
    thread_local! {
        static TRACE: RefCell<String> = const { RefCell::new(String::new()) };
    }
    extern "C-unwind" fn capture(_: i64) -> i64 {
        TRACE.set(Backtrace::force_capture().to_string());
        0
    }
    let jit = jit(OptLevel::Speed);
    jit.define_function("capture", capture as Callback).unwrap();
    add(
        &jit,
        &format!("{}{}{}", crowded("outer", "middle"), through_host("middle", "inner"), crowded("inner", "capture")),
    );
    a_named_caller(&jit);
    let trace = TRACE.take();
    let places = ["capture", "between", "a_named_caller"].map(|name| trace.find(name));
    assert!(places[0].is_some() && places[0] < places[1] && places[1] < places[2], "{trace}");
}

#[test]
fn a_panic_with_a_message_reaches_who_catches_it() {
    extern "C-unwind" fn fail(_: i64) -> i64 {
        panic_any("a reason");
    }
    let jit = jit(OptLevel::Speed);
    jit.define_function("fail", fail as Callback).unwrap();
    add(&jit, &crowded("outer", "fail"));
    let outer = jit.lookup::<Callback>("outer").unwrap();
    // SAFETY: the function calls the one above.
    let result = catch_unwind(AssertUnwindSafe(|| unsafe { outer.call(1) }));
    assert_eq!(*result.unwrap_err().downcast::<&str>().unwrap(), "a reason");
}
