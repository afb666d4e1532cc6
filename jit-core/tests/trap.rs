//! Traps of compiled code are errors of the call that ran into them.

#![cfg(target_os = "linux")]

mod common;

use std::process::Command;

use common::add;
use cranelift_codegen::ir::{InstBuilder, SourceLoc, TrapCode, types};
use cranelift_module::{Linkage, Module};
use jit_core::{CallError, ClifModule, CompileAt, Jit, JitFn, ObjectLayer, OptLevel, SourceText, Trap, TrapKind};
use jit_linker::LinkGraph;
use jit_linker::graph::SymbolKind;
use jit_linker::memory::SegmentKind;

type Function = extern "C-unwind" fn(i64) -> i64;

fn jit(level: OptLevel) -> Jit {
    Jit::builder().opt_level(level).verifier(true).traps(true).build().unwrap()
}

/// The trap that a call ends with.
fn trap_of(function: &JitFn<Function>, argument: i64) -> Trap {
    // SAFETY: the functions call only each other and the tests' own.
    match unsafe { function.try_call(argument) } {
        Err(CallError::Trap(trap)) => trap,
        other => panic!("{other:?}"),
    }
}

const TRAPS: &str = "
    function %divide(i64) -> i64 system_v {
    block0(v0: i64):
        v1 = iconst.i64 100
        v2 = sdiv v1, v0
        return v2
    }
    function %unreachable(i64) -> i64 system_v {
    block0(v0: i64):
        trap user1
    }
    function %bounds(i64) -> i64 system_v {
    block0(v0: i64):
        v1 = iconst.i64 10
        v2 = icmp uge v0, v1
        trapnz v2, heap_oob
        return v0
    }
    function %load(i64) -> i64 system_v {
    block0(v0: i64):
        v1 = load.i64 v0
        return v1
    }
    function %load_surely(i64) -> i64 system_v {
    block0(v0: i64):
        v1 = load.i64 notrap v0
        return v1
    }
    function %recurse(i64) -> i64 system_v {
        fn0 = %recurse(i64) -> i64 system_v
    block0(v0: i64):
        v1 = call fn0(v0)
        v2 = iadd v1, v0
        return v2
    }
    function %recurse_widely(i64) -> i64 system_v {
        ss0 = explicit_slot 20000
        fn0 = %recurse_widely(i64) -> i64 system_v
    block0(v0: i64):
        v3 = stack_addr.i64 ss0
        v1 = call fn0(v3)
        v2 = iadd v1, v0
        return v2
    }
    function %outer(i64) -> i64 system_v {
        fn0 = %divide(i64) -> i64 system_v
    block0(v0: i64):
        v1 = call fn0(v0)
        v2 = iadd v1, v0
        return v2
    }";

#[test]
fn a_trap_is_an_error_with_its_reason_and_function_and_the_session_goes_on() {
    for level in [OptLevel::None, OptLevel::Speed] {
        let jit = jit(level);
        add(&jit, TRAPS);
        for (name, argument, kind, place) in [
            ("divide", 0, TrapKind::DivisionByZero, "divide"),
            ("outer", 0, TrapKind::DivisionByZero, "divide"),
            ("unreachable", 0, TrapKind::User(1), "unreachable"),
            ("bounds", 10, TrapKind::HeapOutOfBounds, "bounds"),
            ("recurse", 1, TrapKind::StackOverflow, "recurse"),
            ("recurse_widely", 1, TrapKind::StackOverflow, "recurse_widely"),
        ] {
            let function = jit.lookup::<Function>(name).unwrap();
            for _ in 0..3 {
                let trap = trap_of(&function, argument);
                assert_eq!((trap.kind, trap.function.as_deref()), (kind, Some(place)), "{name} at {level:?}");
            }
        }
        let divide = jit.lookup::<Function>("divide").unwrap();
        // SAFETY: the function only computes.
        assert_eq!(unsafe { divide.try_call(5) }.unwrap(), 20);
        assert_eq!(trap_of(&divide, 0).to_string(), "integer division by zero in 'divide'");
    }
}

#[test]
fn an_access_that_the_frontend_did_not_expect_is_a_memory_fault() {
    let jit = jit(OptLevel::Speed);
    add(&jit, TRAPS);
    // Loads may trap by default, as accesses of a heap.
    for (name, kind) in [("load", TrapKind::HeapOutOfBounds), ("load_surely", TrapKind::MemoryFault { address: 0x100 })]
    {
        let load = jit.lookup::<Function>(name).unwrap();
        let trap = trap_of(&load, 0x100);
        assert_eq!((trap.kind, trap.function.as_deref()), (kind, Some(name)));
    }
}

#[test]
fn redirectable_functions_trap_in_every_body() {
    let jit = jit(OptLevel::Speed);
    let redefine = |text: &str| {
        let mut module = jit.module("bodies").redirectable();
        common::define(&mut module, text);
        jit.redefine(module).unwrap();
    };
    redefine(TRAPS);
    add(
        &jit,
        "function %caller(i64) -> i64 system_v {
            fn0 = %unreachable(i64) -> i64 system_v
        block0(v0: i64):
            v1 = call fn0(v0)
            return v1
        }",
    );
    let caller = jit.lookup::<Function>("caller").unwrap();
    let expect = |function: &JitFn<Function>, kind, place: &str| {
        let trap = trap_of(function, 0);
        // A body has a name of its own.
        let function = trap.function.unwrap_or_default();
        assert_eq!((trap.kind, function.split('$').next()), (kind, Some(place)), "in '{function}'");
    };
    expect(&caller, TrapKind::User(1), "unreachable");
    // Each call of its own goes by its stub.
    expect(&jit.lookup("recurse").unwrap(), TrapKind::StackOverflow, "recurse");
    redefine("function %unreachable(i64) -> i64 system_v { block0(v0: i64): trap user2 }");
    expect(&caller, TrapKind::User(2), "unreachable");
    expect(&jit.lookup("unreachable").unwrap(), TrapKind::User(2), "unreachable");
}

#[test]
fn threads_trap_each_on_their_own() {
    let jit = jit(OptLevel::Speed);
    add(&jit, TRAPS);
    let recurse = jit.lookup::<Function>("recurse").unwrap();
    let divide = jit.lookup::<Function>("divide").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(trap_of(&divide, 0).kind, TrapKind::DivisionByZero);
                    assert_eq!(trap_of(&recurse, 0).kind, TrapKind::StackOverflow);
                }
            });
        }
    });
}

#[test]
fn arguments_and_results_of_every_kind_arrive() {
    let jit = jit(OptLevel::None);
    add(
        &jit,
        "function %weigh(i64, f64, i32, f32, i64, i64, i64, i64) -> f64 system_v {
        block0(v0: i64, v1: f64, v2: i32, v3: f32, v4: i64, v5: i64, v6: i64, v7: i64):
            v10 = sextend.i64 v2
            v11 = iadd v0, v10
            v12 = iadd v11, v4
            v13 = iadd v12, v5
            v14 = iadd v13, v6
            v15 = isub v14, v7
            v22 = fcvt_from_sint.f64 v15
            v23 = fadd v22, v1
            v24 = fpromote.f64 v3
            v25 = fadd v23, v24
            return v25
        }
        function %many(i64, i64, i64, i64, i64, i64, i64, i64) -> i64 system_v {
        block0(v0: i64, v1: i64, v2: i64, v3: i64, v4: i64, v5: i64, v6: i64, v7: i64):
            v8 = isub v6, v7
            return v8
        }",
    );
    type Weigh = extern "C" fn(i64, f64, i32, f32, i64, i64, i64, i64) -> f64;
    type Many = extern "C" fn(i64, i64, i64, i64, i64, i64, i64, i64) -> i64;
    let many = jit.lookup::<Many>("many").unwrap();
    // SAFETY: the function only computes.
    assert_eq!(unsafe { many.try_call(1, 2, 3, 4, 5, 6, 70, 8) }.unwrap(), 62);
    let weigh = jit.lookup::<Weigh>("weigh").unwrap();
    // SAFETY: the function only computes.
    assert_eq!(unsafe { weigh.try_call(1, 0.5, -20, 0.25, 300, 4000, 50000, 600_000) }.unwrap(), -545_718.25);
}

/// A function whose only instruction that traps is at byte 18 of a text.
fn located(at: CompileAt) -> Jit {
    let jit = jit(OptLevel::Speed);
    let text = "def f(x)\n  check;\n  fail";
    let mut module = ClifModule::new("located", jit.isa().clone(), at).source(SourceText::new("prog.k", text));
    let mut signature = module.make_signature();
    signature.params.push(cranelift_codegen::ir::AbiParam::new(types::I64));
    signature.returns.push(cranelift_codegen::ir::AbiParam::new(types::I64));
    let id = module.declare_function("f", Linkage::Export, &signature).unwrap();
    common::build(&mut module, id, |_, builder| {
        let value = builder.block_params(builder.current_block().unwrap())[0];
        builder.set_srcloc(SourceLoc::new(11));
        builder.ins().trapz(value, TrapCode::unwrap_user(7));
        builder.set_srcloc(SourceLoc::new(20));
        builder.ins().trap(TrapCode::unwrap_user(8));
    });
    jit.add_module(module).unwrap();
    jit
}

#[test]
fn a_trap_tells_where_in_the_source_it_is() {
    for at in [CompileAt::Lookup, CompileAt::Definition] {
        let jit = located(at);
        let function = jit.lookup::<Function>("f").unwrap();
        assert_eq!(trap_of(&function, 0).to_string(), "trap with code 7 in 'f' (prog.k:2:3)");
        assert_eq!(trap_of(&function, 1).to_string(), "trap with code 8 in 'f' (prog.k:3:3)");
    }
}

thread_local! {
    static INNER: std::cell::RefCell<Option<JitFn<Function>>> = const { std::cell::RefCell::new(None) };
}

/// Calls back with its own catch: the trap is this call's.
extern "C-unwind" fn nested(argument: i64) -> i64 {
    let inner = INNER.with_borrow(Clone::clone).unwrap();
    trap_of(&inner, argument);
    -1
}

extern "C-unwind" fn unprotected(argument: i64) -> i64 {
    let inner = INNER.with_borrow(Clone::clone).unwrap();
    // SAFETY: the functions call only each other and the tests' own.
    unsafe { inner.call(argument) }
}

extern "C-unwind" fn throw(_: i64) -> i64 {
    std::panic::resume_unwind(Box::new(5))
}

fn with_callback(callback: Function) -> (Jit, JitFn<Function>) {
    let jit = jit(OptLevel::Speed);
    jit.define_function("callback", callback).unwrap();
    add(&jit, TRAPS);
    add(
        &jit,
        "function %through(i64) -> i64 system_v {
            fn0 = %callback(i64) -> i64 system_v
        block0(v0: i64):
            v1 = call fn0(v0)
            v2 = iconst.i64 10
            v3 = udiv v2, v0
            v4 = iadd v3, v1
            return v4
        }",
    );
    INNER.set(Some(jit.lookup("divide").unwrap()));
    let through = jit.lookup("through").unwrap();
    (jit, through)
}

#[test]
fn the_innermost_call_gets_the_trap() {
    let (_jit, through) = with_callback(nested);
    // The host's function catches that of `divide`; that of `through` itself comes out here.
    let trap = trap_of(&through, 0);
    assert_eq!((trap.kind, trap.function.as_deref()), (TrapKind::DivisionByZero, Some("through")));
    INNER.set(None);
}

#[test]
fn a_panic_passes_a_call_that_catches_traps() {
    let (_jit, through) = with_callback(throw);
    // SAFETY: the functions call only each other and the tests' own.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unsafe { through.try_call(1) }));
    assert_eq!(*result.unwrap_err().downcast::<i32>().unwrap(), 5);
    // The scope is gone: the next trap is the next call's.
    let inner = INNER.take().unwrap();
    assert_eq!(trap_of(&inner, 0).kind, TrapKind::DivisionByZero);
}

#[test]
fn without_traps_nothing_is_called() {
    let jit = common::jit();
    add(&jit, TRAPS);
    let function = jit.lookup::<Function>("unreachable").unwrap();
    // SAFETY: nothing is called.
    assert!(matches!(unsafe { function.try_call(0) }, Err(CallError::NotEnabled)));
}

/// Runs a test of this program in a process of its own, and says what it wrote and how it ended.
fn in_a_process(test: &str, variable: &str) -> (String, std::process::ExitStatus) {
    let program = std::env::current_exe().unwrap();
    let runner = if cfg!(target_arch = "aarch64") { "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER" } else { "" };
    let mut command = match std::env::var(runner) {
        Ok(runner) => {
            let mut words = runner.split_whitespace();
            let mut command = Command::new(words.next().unwrap());
            command.args(words).arg(program);
            command
        }
        Err(_) => Command::new(program),
    };
    let output = command.args(["--exact", "--nocapture", test]).env(variable, "1").output().unwrap();
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status)
}

#[test]
fn a_trap_beyond_a_host_function_is_not_caught() {
    const CHILD: &str = "ORCANE_TEST_TRAP_BEYOND";
    if std::env::var_os(CHILD).is_some() {
        let (_jit, through) = with_callback(unprotected);
        // SAFETY: the functions call only each other and the tests' own.
        let result = unsafe { through.try_call(0) };
        eprintln!("came back: {result:?}");
        return;
    }
    let (told, status) = in_a_process("a_trap_beyond_a_host_function_is_not_caught", CHILD);
    assert!(!status.success() && !told.contains("came back"), "{status}: {told}");
}

#[test]
fn a_fault_of_the_host_goes_to_the_handler_that_was_there() {
    const CHILD: &str = "ORCANE_TEST_TRAP_CHAIN";
    extern "C-unwind" fn overflow(depth: i64) -> i64 {
        let place = std::hint::black_box([depth; 1000]);
        if depth == i64::MAX { 0 } else { overflow(depth + 1) + place[3] }
    }
    if std::env::var_os(CHILD).is_some() {
        let (_jit, through) = with_callback(overflow);
        // SAFETY: the functions call only each other and the tests' own.
        let result = unsafe { through.try_call(1) };
        eprintln!("came back: {result:?}");
        return;
    }
    let (told, status) = in_a_process("a_fault_of_the_host_goes_to_the_handler_that_was_there", CHILD);
    assert!(!status.success(), "{told}");
    // What the standard library's handler says.
    assert!(told.contains("has overflowed its stack") && !told.contains("came back"), "{told}");
}

#[test]
fn a_fault_signal_that_was_sent_ends_the_process_as_it_would_without_traps() {
    use std::os::unix::process::ExitStatusExt;
    const CHILD: &str = "ORCANE_TEST_TRAP_SENT";
    if std::env::var_os(CHILD).is_some() {
        let _jit = jit(OptLevel::Speed);
        // SAFETY: ends the process; it leaves no core.
        unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 });
            libc::raise(libc::SIGILL);
        }
        eprintln!("came back");
        return;
    }
    let (told, status) = in_a_process("a_fault_signal_that_was_sent_ends_the_process_as_it_would_without_traps", CHILD);
    assert!(status.signal() == Some(libc::SIGILL) && !told.contains("came back"), "{status}: {told}");
}

#[test]
fn a_sent_signal_that_is_ignored_leaves_traps_caught() {
    const CHILD: &str = "ORCANE_TEST_TRAP_IGNORED";
    if std::env::var_os(CHILD).is_some() {
        // SAFETY: sets no handler.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_IGN) };
        let jit = jit(OptLevel::Speed);
        add(&jit, TRAPS);
        let divide = jit.lookup::<Function>("divide").unwrap();
        // SAFETY: the signal is ignored.
        unsafe { libc::raise(libc::SIGILL) };
        eprintln!("came back: {}", trap_of(&divide, 0).kind);
        return;
    }
    let (told, status) = in_a_process("a_sent_signal_that_is_ignored_leaves_traps_caught", CHILD);
    assert!(status.success() && told.contains("came back: integer division by zero"), "{status}: {told}");
}

#[test]
fn a_trap_in_an_object_is_not_caught() {
    const CHILD: &str = "ORCANE_TEST_TRAP_OBJECT";
    if std::env::var_os(CHILD).is_some() {
        let jit = jit(OptLevel::Speed);
        let mut graph = LinkGraph::new("object", jit.session().executor().architecture());
        // `ud2`, `udf`: it leaves frame pointers as they are, which no object has to.
        let code: &[u8] = if cfg!(target_arch = "x86_64") { &[0x0f, 0x0b] } else { &[0, 0, 0, 0] };
        let block = graph.add_block(SegmentKind::Code, code, 16).unwrap();
        let symbol = graph.define(Some(jit.session().intern("object")), block, 0, 0);
        graph.set_kind(symbol, SymbolKind::Function);
        jit.object_layer().add_graph(&jit.main().create_tracker().unwrap(), graph).unwrap();
        let text = "function %outer(i64) -> i64 system_v {
                fn0 = %object(i64) -> i64 system_v
            block0(v0: i64):
                v1 = call fn0(v0)
                return v1
            }";
        add(&jit, text);
        let outer = jit.lookup::<Function>("outer").unwrap();
        let object = jit.lookup_address("object").unwrap();
        eprintln!("pages {:x} {:x}", object >> 12, outer.address() >> 12);
        // SAFETY: the functions call only each other.
        let result = unsafe { outer.try_call(0) };
        eprintln!("came back: {result:?}");
        return;
    }
    let (told, status) = in_a_process("a_trap_in_an_object_is_not_caught", CHILD);
    let pages = told.split("pages ").nth(1).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let mut pages = pages.split(' ');
    assert_eq!(pages.next(), pages.next(), "the test proves nothing if the code is not on one page: {told}");
    assert!(!status.success() && !told.contains("came back"), "{status}: {told}");
}
