//! CLIF modules, from text to a call.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use common::{add, define, jit};
use cranelift_codegen::Context;
use cranelift_codegen::binemit::Reloc;
use cranelift_codegen::ir::{AbiParam, FuncRef, GlobalValue, InstBuilder, types};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{
    DataDescription, DataId, FuncId, Init, Linkage, Module, ModuleError, ModuleReloc, ModuleRelocTarget,
};
use jit_core::{
    Cause, ClifLayer, ClifModule, CompileAt, Error, InPlaceDispatcher, Jit, OptLevel, SymbolState, Task, TaskDispatcher,
};

type Unary = unsafe extern "C" fn(i64) -> i64;

fn call(jit: &Jit, name: &str, argument: i64) -> i64 {
    let function = jit.lookup::<Unary>(name).unwrap();
    // SAFETY: the functions of these tests only compute.
    unsafe { function.call(argument) }
}

const FACTORIAL: &str = "
    function %factorial(i64) -> i64 system_v {
        sig0 = (i64) -> i64 system_v
        fn0 = colocated %factorial sig0
    block0(v0: i64):
        brif v0, block1, block2
    block1:
        v1 = iconst.i64 -1
        v2 = iadd v0, v1
        v3 = call fn0(v2)
        v4 = imul v0, v3
        return v4
    block2:
        v5 = iconst.i64 1
        return v5
    }
";

#[test]
fn a_function_is_compiled_linked_and_called() {
    for level in [OptLevel::None, OptLevel::Speed] {
        let jit = Jit::builder().opt_level(level).verifier(true).build().unwrap();
        add(&jit, FACTORIAL);
        assert_eq!(call(&jit, "factorial", 10), 3_628_800);
        assert_eq!(jit.stats().compile.functions, 1);
    }
}

/// Counts the tasks that it is given.
struct Counting {
    dispatcher: InPlaceDispatcher,
    tasks: Arc<AtomicUsize>,
}

impl TaskDispatcher for Counting {
    fn dispatch(&self, tasks: Vec<Task>) {
        self.tasks.fetch_add(tasks.len(), Ordering::Relaxed);
        self.dispatcher.dispatch(tasks);
    }

    fn wait(&self, done: &dyn Fn() -> bool, deadline: Option<Instant>) {
        self.dispatcher.wait(done, deadline);
    }

    fn wake(&self) {
        self.dispatcher.wake();
    }
}

#[test]
fn what_is_all_that_its_module_defines_takes_one_task() {
    let tasks = Arc::new(AtomicUsize::new(0));
    let dispatcher = Counting { dispatcher: InPlaceDispatcher::new(), tasks: Arc::clone(&tasks) };
    let jit = Jit::builder().dispatcher(Box::new(dispatcher)).build().unwrap();
    for round in 1..=3 {
        let tracker = add(&jit, FACTORIAL);
        assert_eq!(call(&jit, "factorial", 5), 120);
        // Its unit. It waits for no other, and the thread is answered where the unit has run.
        assert_eq!(tasks.load(Ordering::Relaxed), round);
        tracker.remove().unwrap();
    }
    // Code of the user's is called in a task of its own.
    add(&jit, FACTORIAL);
    let names = vec![jit.session().intern("factorial")];
    let (sender, answer) = std::sync::mpsc::channel();
    jit.session().lookup_async(&jit.search_order(), names, SymbolState::Ready, move |found| {
        sender.send(found.map(|found| found.len())).unwrap();
    });
    assert_eq!(answer.recv().unwrap().unwrap(), 1);
    assert_eq!(tasks.load(Ordering::Relaxed), 5);
}

#[test]
fn functions_of_two_modules_call_each_other() {
    let jit = jit();
    add(
        &jit,
        "function %even(i64) -> i64 system_v {
            sig0 = (i64) -> i64 system_v
            fn0 = %odd sig0
        block0(v0: i64):
            brif v0, block1, block2
        block1:
            v1 = iconst.i64 -1
            v2 = iadd v0, v1
            v3 = call fn0(v2)
            return v3
        block2:
            v4 = iconst.i64 1
            return v4
        }",
    );
    add(
        &jit,
        "function %odd(i64) -> i64 system_v {
            sig0 = (i64) -> i64 system_v
            fn0 = %even sig0
        block0(v0: i64):
            brif v0, block1, block2
        block1:
            v1 = iconst.i64 -1
            v2 = iadd v0, v1
            v3 = call fn0(v2)
            return v3
        block2:
            v4 = iconst.i64 0
            return v4
        }",
    );
    assert_eq!(call(&jit, "even", 1000), 1);
    assert_eq!(call(&jit, "odd", 1000), 0);
}

#[test]
fn only_what_is_needed_is_compiled() {
    let jit = jit();
    add(
        &jit,
        "function %needed() -> i64 system_v {
            sig0 = () -> i64 system_v
            fn0 = colocated %callee sig0
        block0:
            v0 = call fn0()
            return v0
        }
        function %callee() -> i64 system_v {
        block0:
            v0 = iconst.i64 7
            return v0
        }
        function %unneeded() -> i64 system_v {
            sig0 = () -> i64 system_v
            fn0 = %missing sig0
        block0:
            v0 = call fn0()
            return v0
        }",
    );
    let needed = jit.lookup::<unsafe extern "C" fn() -> i64>("needed").unwrap();
    // SAFETY: the function only computes.
    assert_eq!(unsafe { needed.call() }, 7);
    assert_eq!(jit.stats().compile.functions, 2);
}

#[test]
fn a_symbol_of_the_process_is_called() {
    let jit = jit();
    add(
        &jit,
        "function %absolute(i64) -> i64 system_v {
            sig0 = (i64) -> i64 system_v
            fn0 = %labs sig0
        block0(v0: i64):
            v1 = call fn0(v0)
            return v1
        }",
    );
    assert_eq!(call(&jit, "absolute", -5), 5);
}

#[test]
fn process_symbols_can_be_filtered_and_switched_off() {
    let text = "function %absolute(i64) -> i64 system_v {
            sig0 = (i64) -> i64 system_v
            fn0 = %labs sig0
        block0(v0: i64):
            v1 = call fn0(v0)
            return v1
        }";
    let filtered = jit_core::ProcessAccess::Filtered(std::sync::Arc::new(|name: &str| name != "labs"));
    for access in [filtered, jit_core::ProcessAccess::None] {
        let jit = Jit::builder().process_symbols(access).build().unwrap();
        add(&jit, text);
        let error = jit.lookup::<Unary>("absolute").unwrap_err().to_string();
        assert_eq!(error, "symbol 'absolute' in dylib 'main': depends on 'labs' in dylib 'main': not found");
    }
}

#[test]
fn data_is_initialised_zeroed_aligned_and_refers_to_functions_and_data() {
    let jit = jit();
    let mut module = jit.module("data");
    let ids = define(
        &mut module,
        "function %answer(i64) -> i64 system_v {
        block0(v0: i64):
            v1 = iconst.i64 42
            v2 = iadd v0, v1
            return v2
        }",
    );
    let constant = module.declare_data("constant", Linkage::Export, false, false).unwrap();
    let zeroed = module.declare_data("zeroed", Linkage::Export, true, false).unwrap();
    let table = module.declare_data("table", Linkage::Export, true, false).unwrap();
    let mut data = DataDescription::new();
    data.define(Box::new(*b"constant"));
    data.set_align(64);
    module.define_data(constant, &data).unwrap();
    data.clear();
    data.define_zeroinit(4096);
    module.define_data(zeroed, &data).unwrap();
    data.clear();
    data.define(vec![0; 24].into_boxed_slice());
    let function = module.declare_func_in_data(ids["answer"], &mut data);
    data.write_function_addr(0, function);
    let value = module.declare_data_in_data(constant, &mut data);
    data.write_data_addr(8, value, 4);
    let value = module.declare_data_in_data(table, &mut data);
    data.write_data_addr(16, value, 0);
    module.define_data(table, &data).unwrap();
    jit.add_module(module).unwrap();

    let address = |name| jit.lookup_address(name).unwrap();
    assert_eq!(address("constant") % 64, 0);
    // SAFETY: the data objects have these sizes, and the JIT that holds them is alive.
    unsafe {
        assert_eq!(*(address("constant") as *const [u8; 8]), *b"constant");
        let zeroed = &mut *(address("zeroed") as *mut [u8; 4096]);
        assert!(zeroed.iter().all(|byte| *byte == 0));
        zeroed[4095] = 1;
        let table = *(address("table") as *const [u64; 3]);
        assert_eq!(table, [address("answer"), address("constant") + 4, address("table")]);
        let answer: Unary = std::mem::transmute(table[0]);
        assert_eq!(answer(1), 43);
    }
}

#[test]
fn code_reads_and_writes_data() {
    let jit = jit();
    let mut module = jit.module("counter");
    let counter = module.declare_data("counter", Linkage::Local, true, false).unwrap();
    let mut data = DataDescription::new();
    data.define(Box::new(40u64.to_le_bytes()));
    module.define_data(counter, &data).unwrap();
    let mut signature = module.make_signature();
    signature.returns.push(AbiParam::new(types::I64));
    let count = module.declare_function("count", Linkage::Export, &signature).unwrap();
    common::build(&mut module, count, |module, builder| {
        use cranelift_codegen::ir::{InstBuilder, MemFlagsData};
        let global = module.declare_data_in_func(counter, builder.func);
        let address = builder.ins().symbol_value(types::I64, global);
        let old = builder.ins().load(types::I64, MemFlagsData::trusted(), address, 0);
        let one = builder.ins().iconst(types::I64, 1);
        let new = builder.ins().iadd(old, one);
        builder.ins().store(MemFlagsData::trusted(), new, address, 0);
        builder.ins().return_(&[new]);
    });
    jit.add_module(module).unwrap();
    let count = jit.lookup::<unsafe extern "C" fn() -> i64>("count").unwrap();
    // SAFETY: the function only touches its own counter.
    let counts = unsafe { [count.call(), count.call()] };
    assert_eq!(counts, [41, 42]);
}

#[test]
fn each_thread_has_its_own_thread_local_variable() {
    let jit = jit();
    let mut module = jit.module("thread-local");
    let variable = module.declare_data("variable", Linkage::Export, true, true).unwrap();
    let mut data = DataDescription::new();
    data.define(Box::new(100u64.to_le_bytes()));
    module.define_data(variable, &data).unwrap();
    let mut signature = module.make_signature();
    signature.params.push(AbiParam::new(types::I64));
    signature.returns.push(AbiParam::new(types::I64));
    let bump = module.declare_function("bump", Linkage::Export, &signature).unwrap();
    common::build(&mut module, bump, |module, builder| {
        use cranelift_codegen::ir::{InstBuilder, MemFlagsData};
        let argument = builder.block_params(builder.current_block().unwrap())[0];
        let global = module.declare_data_in_func(variable, builder.func);
        let address = builder.ins().tls_value(types::I64, global);
        let old = builder.ins().load(types::I64, MemFlagsData::trusted(), address, 0);
        let new = builder.ins().iadd(old, argument);
        builder.ins().store(MemFlagsData::trusted(), new, address, 0);
        builder.ins().return_(&[new]);
    });
    let tracker = jit.add_module(module).unwrap();
    assert_eq!(call(&jit, "bump", 1), 101);
    assert_eq!(call(&jit, "bump", 1), 102);
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..4)
            .map(|n| {
                scope.spawn({
                    let jit = &jit;
                    move || [call(jit, "bump", n), call(jit, "bump", n)]
                })
            })
            .collect();
        for (n, other) in others.into_iter().enumerate() {
            let n = n as i64;
            assert_eq!(other.join().unwrap(), [100 + n, 100 + 2 * n]);
        }
    });
    assert_eq!(call(&jit, "bump", 1), 103);
    tracker.remove().unwrap();
}

#[test]
fn a_thread_local_variable_whose_initial_value_is_not_there_fails_alone() {
    let jit = jit();
    let mut module = jit.module("thread-local");
    let missing = module.declare_function("missing", Linkage::Import, &module.make_signature()).unwrap();
    let names = ["first", "variable", "last"];
    for name in names {
        let mut data = DataDescription::new();
        data.define(Box::new([1; 8]));
        let is_variable = name == "variable";
        if is_variable {
            let missing = module.declare_func_in_data(missing, &mut data);
            data.write_function_addr(0, missing);
        }
        let id = module.declare_data(name, Linkage::Export, true, is_variable).unwrap();
        module.define_data(id, &data).unwrap();
    }
    jit.add_module(module).unwrap();
    // In one batch.
    assert!(jit.prepare(&names, |_| ()).is_err());
    let error = jit.lookup_address("variable").unwrap_err().to_string();
    assert_eq!(error, "symbol 'variable' in dylib 'main': depends on 'missing' in dylib 'main': not found");
    for name in ["first", "last"] {
        jit.lookup_address(name).unwrap();
    }
}

#[test]
fn machine_code_is_taken_as_it_is() {
    let jit = jit();
    let mut module = jit.module("bytes");
    let mut signature = module.make_signature();
    signature.returns.push(AbiParam::new(types::I32));
    let function = module.declare_function("bytes", Linkage::Export, &signature).unwrap();
    // mov eax, 7; ret / mov w0, #7; ret
    let code: &[u8] = if cfg!(target_arch = "x86_64") {
        &[0xb8, 7, 0, 0, 0, 0xc3]
    } else {
        &[0xe0, 0x00, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6]
    };
    module.define_function_bytes(function, 16, code, &[]).unwrap();
    jit.add_module(module).unwrap();
    let function = jit.lookup::<unsafe extern "C" fn() -> i32>("bytes").unwrap();
    assert_eq!(function.address() % 16, 0);
    // SAFETY: the code returns 7.
    assert_eq!(unsafe { function.call() }, 7);
}

/// A module with a function of these bytes.
fn bytes(jit: &Jit, function: &str, code: &[u8], relocs: &[ModuleReloc]) -> ClifModule {
    let mut module = jit.module("bytes");
    let signature = module.make_signature();
    let id = module.declare_function(function, Linkage::Export, &signature).unwrap();
    module.define_function_bytes(id, 16, code, relocs).unwrap();
    module
}

#[test]
fn what_is_empty_has_an_address() {
    for (writable, tls) in [(false, false), (true, false), (true, true)] {
        let jit = jit();
        let mut module = jit.module("empty");
        let mut data = DataDescription::new();
        data.define(Box::default());
        for name in ["one", "other"] {
            let id = module.declare_data(name, Linkage::Export, writable, tls).unwrap();
            module.define_data(id, &data).unwrap();
        }
        jit.add_module(module).unwrap();
        let [one, other] = ["one", "other"].map(|name| jit.lookup_address(name).unwrap());
        assert!(one != 0 && other != 0 && one != other, "{one:#x} {other:#x}");
    }
    let jit = jit();
    jit.add_module(bytes(&jit, "empty", &[], &[])).unwrap();
    assert_ne!(jit.lookup_address("empty").unwrap(), 0);
}

#[test]
fn an_offset_into_a_function_is_from_the_function_that_is_named() {
    let jit = jit();
    let mut module = bytes(&jit, "one", &[0; 16], &[]);
    let two = module.declare_function("two", Linkage::Export, &module.make_signature()).unwrap();
    let offset = |place, function, addend| ModuleReloc {
        offset: place,
        kind: Reloc::Abs8,
        name: ModuleRelocTarget::FunctionOffset(FuncId::from_u32(function), 7),
        addend,
    };
    module.define_function_bytes(two, 16, &[0; 16], &[offset(0, 0, 1), offset(8, 1, 2)]).unwrap();
    jit.add_module(module).unwrap();
    let [one, two] = ["one", "two"].map(|name| jit.lookup_address(name).unwrap());
    // SAFETY: code can be read, and two words are there.
    assert_eq!(unsafe { std::ptr::with_exposed_provenance::<[u64; 2]>(two as usize).read() }, [one + 8, two + 9]);

    for (name, wrong) in [("far", offset(0, 0, i64::MAX)), ("undeclared", offset(0, 55, 0))] {
        jit.add_module(bytes(&jit, name, &[0; 16], &[wrong])).unwrap();
        let error = jit.lookup_address(name).unwrap_err().to_string();
        assert!(error.starts_with(&format!("symbol '{name}' in dylib 'main': compilation failed: ")), "{error}");
    }
}

#[test]
fn a_relocation_beyond_its_block_fails_nothing_else() {
    let jit = jit();
    let beyond = |place, kind| ModuleReloc {
        offset: place,
        kind,
        name: ModuleRelocTarget::FunctionOffset(FuncId::from_u32(0), 0),
        addend: 0,
    };
    let wrong = [beyond(9, Reloc::Abs8), beyond(13, Reloc::Abs4), beyond(u32::MAX, Reloc::Abs8)];
    let mut module = bytes(&jit, "right", &[0; 16], &[beyond(8, Reloc::Abs8)]);
    for (number, reloc) in wrong.iter().enumerate() {
        let id = module.declare_function(&format!("wrong{number}"), Linkage::Export, &module.make_signature()).unwrap();
        module.define_function_bytes(id, 16, &[0; 16], std::slice::from_ref(reloc)).unwrap();
    }
    let id = module.declare_data("wrong3", Linkage::Export, false, false).unwrap();
    let mut data = DataDescription::new();
    data.define(Box::new([0; 7]));
    let function = FuncId::from_u32(0);
    let function = module.declare_func_in_data(function, &mut data);
    data.write_function_addr(0, function);
    module.define_data(id, &data).unwrap();
    jit.add_module(module).unwrap();
    // Together, as they would be linked.
    let names: Vec<_> = ["right", "wrong0", "wrong1", "wrong2", "wrong3"].map(|name| jit.session().intern(name)).into();
    jit.session().lookup(&jit.search_order(), names).unwrap_err();
    for (number, what) in
        ["at 9 reaches beyond its 16", "at 13 reaches", "at 4294967295", "at 0 reaches beyond its 7"].iter().enumerate()
    {
        let error = jit.lookup_address(&format!("wrong{number}")).unwrap_err().to_string();
        let start = format!("symbol 'wrong{number}' in dylib 'main': compilation failed: the relocation {what}");
        assert!(error.starts_with(&start), "{error}");
    }
    jit.lookup_address("right").unwrap();
}

#[test]
fn a_value_that_does_not_fit_its_field_fails_what_needs_it_and_nothing_else() {
    let jit = jit();
    let refer = |kind, function, addend| ModuleReloc {
        offset: 4,
        kind,
        name: ModuleRelocTarget::FunctionOffset(FuncId::from_u32(function), 0),
        addend,
    };
    let (near, far) = match cfg!(target_arch = "x86_64") {
        true => (Reloc::X86PCRel4, 1 << 40),
        false => (Reloc::Aarch64AdrPrelPgHi21, 1 << 40),
    };
    // Of itself, of what is in the batch, and of what is not.
    let functions = [
        ("right", refer(Reloc::Abs8, 0, 0)),
        ("wrong", refer(Reloc::Abs4, 1, 0)),
        ("far", refer(near, 0, far)),
        ("user", refer(Reloc::Abs8, 1, 0)),
        ("other", refer(Reloc::Abs8, 0, far)),
        ("outside", refer(Reloc::Abs4, 6, 0)),
    ];
    let mut module = jit.module("bytes");
    let signature = module.make_signature();
    for (name, reloc) in &functions {
        let id = module.declare_function(name, Linkage::Export, &signature).unwrap();
        module.define_function_bytes(id, 16, &[0; 16], std::slice::from_ref(reloc)).unwrap();
    }
    module.declare_function("abort", Linkage::Import, &signature).unwrap();
    jit.add_module(module).unwrap();
    // Together, as they would be linked.
    let names: Vec<_> = functions.iter().map(|(name, _)| jit.session().intern(name)).collect();
    jit.session().lookup(&jit.search_order(), names).unwrap_err();
    let error = |name: &str| jit.lookup_address(name).unwrap_err().to_string();
    for (name, place) in [("wrong", "at +0x4"), ("far", "of 'right' at +0x4"), ("outside", "of 'abort' at +0x4")] {
        let error = error(name);
        let start = format!("symbol '{name}' in dylib 'main': link failed: in bytes: relocation ");
        assert!(error.starts_with(&start) && error.contains(place), "{error}");
    }
    assert!(error("user").contains("'wrong'"), "{}", error("user"));
    for (name, what) in [("right", 0), ("other", far)] {
        let [address, right] = [name, "right"].map(|name| jit.lookup_address(name).unwrap());
        // SAFETY: code can be read, and the word is there.
        let word = unsafe { std::ptr::with_exposed_provenance::<u64>(address as usize + 4).read_unaligned() };
        assert_eq!(word, right + what as u64);
    }
}

#[test]
fn what_there_is_no_memory_for_fails_nothing_that_is_looked_up_with_it() {
    let jit = jit();
    let mut module = bytes(&jit, "right", &[0; 16], &[]);
    let function = module.declare_function("function", Linkage::Export, &module.make_signature()).unwrap();
    module.define_function_bytes(function, 1 << 31, &[0; 16], &[]).unwrap();
    let id = module.declare_data("data", Linkage::Export, true, false).unwrap();
    let mut data = DataDescription::new();
    data.define_zeroinit(8);
    data.set_align(1 << 31);
    module.define_data(id, &data).unwrap();
    jit.add_module(module).unwrap();
    // Together, as they would be linked.
    let names: Vec<_> = ["right", "function", "data"].map(|name| jit.session().intern(name)).into();
    jit.session().lookup(&jit.search_order(), names).unwrap_err();
    for name in ["function", "data"] {
        let error = jit.lookup_address(name).unwrap_err().to_string();
        let start = format!("symbol '{name}' in dylib 'main': link failed: an alignment of 2147483648 bytes");
        assert!(error.starts_with(&start), "{error}");
    }
    jit.lookup_address("right").unwrap();
}

#[test]
fn what_can_be_linked_nowhere_is_refused_at_its_definition() {
    let jit = jit();
    let mut module = jit.module("odd");
    let id = module.declare_data("data", Linkage::Export, true, false).unwrap();
    let described = |change: &dyn Fn(&mut DataDescription)| {
        let mut data = DataDescription::new();
        data.define_zeroinit(8);
        change(&mut data);
        data
    };
    let alignment = "is not a power of two up to 2 GiB";
    for (data, what) in [
        (described(&|data| data.align = Some(0)), alignment),
        (described(&|data| data.align = Some(3)), alignment),
        (described(&|data| data.align = Some(1 << 32)), alignment),
        (described(&|data| data.init = Init::Zeros { size: 1 << 32 }), "4294967296 bytes are 4 GiB or more"),
        (described(&|data| data.write_function_addr(0, FuncRef::from_u32(7))), "refers to fn7"),
        (described(&|data| data.write_data_addr(0, GlobalValue::from_u32(7), 0)), "refers to gv7"),
    ] {
        let error = module.define_data(id, &data).unwrap_err().to_string();
        assert!(error.contains("'data'") && error.contains(what), "{error}");
    }
    module.define_data(id, &described(&|_| {})).unwrap();
    let id = module.declare_function("function", Linkage::Export, &module.make_signature()).unwrap();
    let error = module.define_function_bytes(id, 1 << 63, &[0; 4], &[]).unwrap_err().to_string();
    assert!(error.contains("'function'") && error.contains(alignment), "{error}");
    module.define_function_bytes(id, 16, &[0; 4], &[]).unwrap();
    jit.add_module(module).unwrap();
    jit.lookup_address("data").unwrap();
    jit.lookup_address("function").unwrap();
}

#[test]
fn a_captured_value_that_panics_when_dropped_keeps_no_memory() {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let jit = jit();
    let value = Panics;
    let closure = move || {
        let _ = &value;
        1i64
    };
    let tracker = jit.define_closure("closure", closure).unwrap();
    jit.lookup_address("closure").unwrap();
    assert_ne!(jit.memory_statistics().allocations, 0);
    tracker.remove().unwrap();
    assert_eq!(jit.memory_statistics().allocations, 0);
}

#[test]
fn what_another_module_has_declared_is_refused() {
    for compile_at in [CompileAt::Lookup, CompileAt::Definition] {
        let jit = jit();
        let mut module = ClifModule::new("module", jit.isa().clone(), compile_at);
        let signature = module.make_signature();
        let [callee, address] = ["callee", "address"].map(|name| {
            let id = module.declare_function(name, Linkage::Export, &signature).unwrap();
            (id, module.make_context())
        });
        let define = |module: &mut ClifModule, (id, mut context): (FuncId, Context), foreign_data| {
            let mut frontend = FunctionBuilderContext::new();
            let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
            let block = builder.create_block();
            builder.switch_to_block(block);
            builder.seal_block(block);
            if foreign_data {
                let value = module.declare_data_in_func(DataId::from_u32(7), builder.func);
                builder.ins().symbol_value(types::I64, value);
            } else {
                let callee = module.declare_func_in_func(FuncId::from_u32(7), builder.func);
                builder.ins().call(callee, &[]);
            }
            builder.ins().return_(&[]);
            builder.finalize(module.target_config());
            module.define_function(id, &mut context)
        };
        let error = define(&mut module, callee, false).unwrap_err();
        assert!(format!("{error:?}").contains("'callee' refers to the undeclared function 7"), "{error:?}");
        define(&mut module, address, true).unwrap();
        let data = module.declare_data("data", Linkage::Import, true, true).unwrap();
        let error = module.declare_data("data", Linkage::Import, true, false).unwrap_err();
        assert!(matches!(error, ModuleError::IncompatibleDeclaration(_)), "{error}");
        assert_eq!(module.declare_data("data", Linkage::Import, true, true).unwrap(), data);
    }
}

#[test]
fn a_module_can_be_compiled_while_it_is_defined() {
    let jit = jit();
    let mut module = jit_core::ClifModule::new("early", jit.isa().clone(), CompileAt::Definition);
    define(&mut module, FACTORIAL);
    jit.add_module(module).unwrap();
    assert_eq!(call(&jit, "factorial", 5), 120);
}

#[test]
fn anonymous_and_local_functions_of_two_modules_do_not_meet() {
    let jit = jit();
    for (module_name, public, value) in [("one", "first", 1), ("two", "second", 2)] {
        let mut module = jit.module(module_name);
        let mut signature = module.make_signature();
        signature.params.push(AbiParam::new(types::I64));
        signature.returns.push(AbiParam::new(types::I64));
        let local = module.declare_function("local", Linkage::Local, &signature).unwrap();
        let anonymous = module.declare_anonymous_function(&signature).unwrap();
        let exported = module.declare_function(public, Linkage::Export, &signature).unwrap();
        for (id, callee, plus) in [(local, None, value), (anonymous, Some(local), 10), (exported, Some(anonymous), 0)] {
            common::build(&mut module, id, |module, builder| {
                use cranelift_codegen::ir::InstBuilder;
                let argument = builder.block_params(builder.current_block().unwrap())[0];
                let plus = builder.ins().iconst(types::I64, plus);
                let mut sum = builder.ins().iadd(argument, plus);
                if let Some(callee) = callee {
                    let callee = module.declare_func_in_func(callee, builder.func);
                    let inst = builder.ins().call(callee, &[sum]);
                    sum = builder.inst_results(inst)[0];
                }
                builder.ins().return_(&[sum]);
            });
        }
        jit.add_module(module).unwrap();
    }
    assert_eq!(call(&jit, "first", 100), 111);
    assert_eq!(call(&jit, "second", 100), 112);
    let error = jit.lookup::<Unary>("local").unwrap_err().to_string();
    assert_eq!(error, "symbol 'local' in dylib 'main': not found");
}

#[test]
fn local_functions_of_modules_from_two_layers_do_not_meet() {
    let jit = jit();
    let other = ClifLayer::new(jit.isa().clone()).unwrap();
    let tracker = jit.main().default_tracker().unwrap();
    for (layer, public, value) in [(jit.clif_layer(), "first", 1), (&other, "second", 2)] {
        let mut module = jit.module("module");
        let text = "
            function %own_local(i64) -> i64 system_v { block0(v0: i64): v1 = iconst.i64 VALUE v2 = iadd v0, v1 return v2 }
            function %PUBLIC(i64) -> i64 system_v {
                fn0 = colocated %own_local(i64) -> i64 system_v
            block0(v0: i64):
                v1 = call fn0(v0)
                return v1
            }";
        define(&mut module, &text.replace("VALUE", &value.to_string()).replace("PUBLIC", public));
        layer.add(&tracker, module).unwrap();
    }
    assert_eq!((call(&jit, "first", 40), call(&jit, "second", 40)), (41, 42));
    for name in ["own_local", "own_local.0.module"] {
        let error = jit.lookup::<Unary>(name).unwrap_err().to_string();
        assert_eq!(error, format!("symbol '{name}' in dylib 'main': not found"));
    }
}

#[test]
fn a_handle_keeps_its_code_while_the_name_is_gone() {
    let jit = jit();
    let tracker = add(&jit, FACTORIAL);
    let function = jit.lookup::<Unary>("factorial").unwrap();
    tracker.remove().unwrap();
    // SAFETY: the function only computes, and calls only itself.
    assert_eq!(unsafe { function.call(5) }, 120);
    assert!(matches!(jit.lookup::<Unary>("factorial"), Err(Error::Lookup(_))));
    let held = jit.memory_statistics().allocations;
    drop(function);
    assert_eq!(jit.memory_statistics().allocations, held - 1);
}

#[test]
fn a_handle_of_another_type_is_refused() {
    let jit = jit();
    add(&jit, FACTORIAL);
    let error = jit.lookup::<unsafe extern "C" fn(f64) -> f64>("factorial").unwrap_err();
    assert_eq!(error.to_string(), "'factorial' has the signature (i64) -> i64 system_v, not (f64) -> f64 system_v");
}

#[test]
fn a_tracker_limits_and_counts_memory() {
    let jit = jit();
    let tracker = jit.main().create_tracker().unwrap();
    let mut module = jit.module("large");
    let large = module.declare_data("large", Linkage::Export, true, false).unwrap();
    let mut data = DataDescription::new();
    data.define_zeroinit(10_000);
    module.define_data(large, &data).unwrap();
    tracker.set_memory_limit(Some(9_999)).unwrap();
    jit.clif_layer().add(&tracker, module).unwrap();
    let error = jit.lookup_address("large").unwrap_err().to_string();
    assert_eq!(
        error,
        "symbol 'large' in dylib 'main': 10000 more bytes would exceed the tracker's limit of 9999 bytes"
    );
    tracker.remove().unwrap();
    assert_eq!(tracker.memory_used().unwrap(), 0);
}

#[test]
fn two_compile_threads_link_a_chain() {
    let jit = Jit::builder().opt_level(OptLevel::None).compile_threads(2).build().unwrap();
    let mut module = jit.module("chain");
    common::chain(&mut module, 200);
    jit.add_module(module).unwrap();
    assert_eq!(call(&jit, "f199", 0), 200);
    assert_eq!(jit.stats().compile.functions, 200);
}

#[test]
fn a_failure_reaches_only_what_depends_on_it() {
    let jit = jit();
    add(
        &jit,
        "function %good(i64) -> i64 system_v {
        block0(v0: i64):
            return v0
        }
        function %bad(i64) -> i64 system_v {
            sig0 = (i64) -> i64 system_v
            fn0 = %missing sig0
            fn1 = colocated %good sig0
        block0(v0: i64):
            v1 = call fn0(v0)
            v2 = call fn1(v1)
            return v2
        }
        function %worse(i64) -> i64 system_v {
            sig0 = (i64) -> i64 system_v
            fn0 = colocated %bad sig0
        block0(v0: i64):
            v1 = call fn0(v0)
            return v1
        }",
    );
    let error = jit.lookup::<Unary>("worse").unwrap_err();
    assert_eq!(error.to_string(), "symbol 'worse' in dylib 'main': depends on 'missing' in dylib 'main': not found");
    let Error::Lookup(error) = error else { panic!("{error}") };
    assert!(matches!(&*error.failures[0].cause, Cause::Dependency { .. }));
    assert_eq!(call(&jit, "good", 3), 3);
}
