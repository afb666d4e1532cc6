//! A JIT in parent and child after `fork`. A process of its own, whose only other threads are the JIT's.

mod common;
#[path = "../../jit-linker/tests/forked/mod.rs"]
mod forked;

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::{Nullary, call, caller, constant, redefine, scaled};
use cranelift_module::{DataDescription, Linkage, Module};
use forked::Child;
use jit_core::{Jit, OptLevel, Priority, ResourceTracker, SymbolState, Task, TaskDispatcher, ThreadPoolDispatcher};
use jit_lazy::{LazyJit, LazyJitBuilder, Tiering};

/// A test's name, and what it does with so many compile threads.
type ByThreads = (&'static str, fn(usize));

fn main() {
    let tests: [ByThreads; 8] = [
        ("both_compile", both_compile),
        ("lazy_functions_are_first_called_in_both", lazy_functions_are_first_called_in_both),
        ("redefined_functions_are_independent", redefined_functions_are_independent),
        ("variables_are_independent", variables_are_independent),
        ("both_free_code_and_use_its_memory_again", both_free_code_and_use_its_memory_again),
        ("a_jit_is_dropped_in_the_child_alone", a_jit_is_dropped_in_the_child_alone),
        ("a_childs_child_compiles", a_childs_child_compiles),
        ("both_compile_ahead_and_promote", both_compile_ahead_and_promote),
    ];
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    for (name, test) in tests.into_iter().filter(|(name, _)| name.contains(&filter)) {
        for threads in [0, 2] {
            test(threads);
        }
        println!("test {name} ... ok");
    }
    let with_a_pool: [(&str, fn()); 3] = [
        ("a_fork_waits_for_the_pool", a_fork_waits_for_the_pool),
        ("a_task_that_waits_for_the_thread_that_forks", a_task_that_waits_for_the_thread_that_forks),
        ("a_task_forks", a_task_forks),
    ];
    for (name, test) in with_a_pool.into_iter().filter(|(name, _)| name.contains(&filter)) {
        test();
        println!("test {name} ... ok");
    }
}

fn eager(threads: usize) -> Jit {
    Jit::builder().opt_level(OptLevel::None).compile_threads(threads).build().unwrap()
}

fn lazy(threads: usize) -> LazyJit {
    LazyJitBuilder::new(Jit::builder().opt_level(OptLevel::None).compile_threads(threads)).build().unwrap()
}

fn add(jit: &Jit, text: &str) -> ResourceTracker {
    let mut module = jit.module("eager");
    common::clif::define(&mut module, text);
    jit.add_module(module).unwrap()
}

fn both_compile(threads: usize) {
    let jit = eager(threads);
    add(&jit, &format!("{}{}{}", constant("one", 1), constant("two", 2), caller("user", "two")));
    assert_eq!(call(&jit, "one"), 1);
    let child = Child::new(|_| {
        assert_eq!(call(&jit, "user"), 102);
        add(&jit, &constant("three", 3));
        assert_eq!(call(&jit, "three"), 3);
        assert_eq!(call(&jit, "one"), 1);
    });
    assert_eq!(call(&jit, "user"), 102);
    add(&jit, &constant("three", 33));
    assert_eq!(call(&jit, "three"), 33);
    child.succeeds();
    assert_eq!(call(&jit, "one"), 1);
}

fn lazy_functions_are_first_called_in_both(threads: usize) {
    let jit = lazy(threads);
    redefine(&jit, &format!("{}{}{}", constant("one", 1), constant("two", 2), caller("user", "two"))).unwrap();
    assert_eq!(call(&jit, "one"), 1);
    let compiled = jit.stats().compile.functions;
    let child = Child::new(|_| {
        assert_eq!(call(&jit, "user"), 102);
        assert_eq!(jit.stats().compile.functions, compiled + 2);
    });
    child.succeeds();
    assert_eq!(jit.stats().compile.functions, compiled);
    assert_eq!(call(&jit, "user"), 102);
}

fn redefined_functions_are_independent(threads: usize) {
    let (lazy, eager) = (lazy(threads), eager(threads));
    for jit in [&*lazy, &eager] {
        redefine(jit, &constant("callee", 1)).unwrap();
        add(jit, &caller("user", "callee"));
        assert_eq!(call(jit, "user"), 101);
        let mut child = Child::new(|parent| {
            assert_eq!(call(jit, "user"), 101);
            redefine(jit, &constant("callee", 2)).unwrap();
            assert_eq!(call(jit, "user"), 102);
            parent.go_on();
            parent.wait();
            assert_eq!(call(jit, "user"), 102);
            redefine(jit, &constant("callee", 3)).unwrap();
            assert_eq!(call(jit, "user"), 103);
        });
        child.peer.wait();
        assert_eq!(call(jit, "user"), 101);
        redefine(jit, &constant("callee", 7)).unwrap();
        assert_eq!(call(jit, "user"), 107);
        child.peer.go_on();
        child.succeeds();
        assert_eq!(call(jit, "user"), 107);
    }
}

/// Counts its own calls.
fn count_calls(jit: &Jit) -> Nullary {
    let mut module = jit.module("counter");
    let variable = module.declare_data("variable", Linkage::Export, true, false).unwrap();
    let mut data = DataDescription::new();
    data.define_zeroinit(8);
    module.define_data(variable, &data).unwrap();
    let mut context = module.make_context();
    let function = cranelift_reader::parse_functions(
        "function %count() -> i64 system_v {
            gv0 = symbol %variable
        block0:
            v0 = symbol_value.i64 gv0
            v1 = load.i64 v0
            v2 = iconst.i64 1
            v3 = iadd v1, v2
            store v3, v0
            return v3
        }",
    );
    context.func = function.unwrap().remove(0);
    let id = module.declare_function("count", Linkage::Export, &context.func.signature).unwrap();
    let reference = module.declare_data_in_func(variable, &mut context.func);
    let ours = cranelift_codegen::ir::GlobalValue::from_u32(0);
    let referred = context.func.global_values[reference].clone();
    context.func.global_values[ours] = referred;
    module.define_function(id, &mut context).unwrap();
    jit.add_module(module).unwrap();
    common::at(jit.lookup_address("count").unwrap())
}

fn variables_are_independent(threads: usize) {
    let jit = eager(threads);
    let count = count_calls(&jit);
    // SAFETY: it counts in memory of its own.
    let counts = |expected: i64| assert_eq!(unsafe { count() }, expected);
    counts(1);
    let mut child = Child::new(|parent| {
        (2..6).for_each(counts);
        parent.go_on();
        parent.wait();
        (6..8).for_each(counts);
    });
    child.peer.wait();
    (2..20).for_each(counts);
    child.peer.go_on();
    child.succeeds();
    counts(20);
}

fn both_free_code_and_use_its_memory_again(threads: usize) {
    let jit = eager(threads);
    let kept = add(&jit, &constant("kept", 1));
    let freed = add(&jit, &constant("freed", 2));
    let (kept_at, freed_at) = ["kept", "freed"].map(|name| common::at(jit.lookup_address(name).unwrap())).into();
    let churn = |from: i64| {
        for value in from..from + scaled(200, 20) as i64 {
            let tracker = add(&jit, &constant("short", value));
            assert_eq!(call(&jit, "short"), value);
            tracker.remove().unwrap();
        }
    };
    let mut child = Child::new(|parent| {
        kept.remove().unwrap();
        churn(1000);
        parent.go_on();
        parent.wait();
        // SAFETY: the child still has it.
        assert_eq!(unsafe { freed_at() }, 2);
        churn(2000);
    });
    child.peer.wait();
    freed.remove().unwrap();
    churn(3000);
    // SAFETY: the parent still has it.
    assert_eq!(unsafe { kept_at() }, 1);
    child.peer.go_on();
    child.succeeds();
    churn(4000);
    // SAFETY: as above.
    assert_eq!(unsafe { kept_at() }, 1);
}

fn a_jit_is_dropped_in_the_child_alone(threads: usize) {
    let mut jits = [Some(lazy(threads)), Some(lazy(threads))];
    for jit in jits.iter().flatten() {
        redefine(jit, &format!("{}{}", constant("one", 1), constant("two", 2))).unwrap();
        assert_eq!(call(jit, "one"), 1);
    }
    let child = Child::new(|_| {
        let [unused, used] = &mut jits;
        assert_eq!(used.as_ref().map(|jit| call(jit, "two")), Some(2));
        (*unused, *used) = (None, None);
        // One that was joined is listed for a moment still.
        while threads_here() > 1 {
            std::thread::yield_now();
        }
    });
    child.succeeds();
    for jit in jits.iter().flatten() {
        assert_eq!((call(jit, "one"), call(jit, "two")), (1, 2));
    }
}

/// How many threads this process has.
fn threads_here() -> usize {
    // Not known where it is emulated: the emulator has threads too.
    let is_emulated = cfg!(target_arch = "aarch64") && scaled(1, 0) == 0;
    if is_emulated { 1 } else { std::fs::read_dir("/proc/self/task").unwrap().count() }
}

fn a_childs_child_compiles(threads: usize) {
    let jit = lazy(threads);
    let functions: Vec<_> = (0..4).map(|value| constant(&format!("f{value}"), value)).collect();
    redefine(&jit, &functions.concat()).unwrap();
    assert_eq!(call(&jit, "f0"), 0);
    Child::new(|_| {
        // Once with threads of its own, and once without.
        assert_eq!(call(&jit, "f1"), 1);
        Child::new(|_| assert_eq!((call(&jit, "f2"), call(&jit, "f1")), (2, 1))).succeeds();
        assert_eq!(call(&jit, "f3"), 3);
    })
    .succeeds();
    Child::new(|_| Child::new(|_| assert_eq!(call(&jit, "f2"), 2)).succeeds()).succeeds();
    assert_eq!(call(&jit, "f3"), 3);
}

fn both_compile_ahead_and_promote(threads: usize) {
    let builder = Jit::builder().compile_threads(threads);
    let jit = LazyJitBuilder::new(builder).ahead_threads(1).tiers(Tiering::default().threshold(10)).build().unwrap();
    let texts: Vec<_> = (0..4).map(|value| constant(&format!("f{value}"), value)).collect();
    redefine(&jit, &texts.concat()).unwrap();
    redefine(&jit, &format!("{}{}", caller("user", "callee"), constant("callee", 1))).unwrap();
    let wait_until = |is_so: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(50));
            std::thread::yield_now();
        }
    };
    let promotes = |name: &str, value: i64| {
        let before = jit.tier_statistics().promoted;
        (0..20).for_each(|_| assert_eq!(call(&jit, name), value));
        wait_until(&|| jit.tier_statistics().promoted > before);
        assert_eq!(call(&jit, name), value);
    };
    promotes("f0", 0);
    let goes_on = |name: &str, value| {
        promotes(name, value);
        let compiled = jit.stats().compile.functions;
        // The callee is compiled, although nobody calls it.
        let user = jit.session().intern("user");
        jit.session().lookup(&jit.search_order(), vec![user]).unwrap();
        assert_eq!(call(&jit, "user"), 101);
        wait_until(&|| jit.stats().compile.functions >= compiled + 2);
    };
    let child = Child::new(|_| goes_on("f1", 1));
    goes_on("f2", 2);
    child.succeeds();
    promotes("f3", 3);
}

fn a_fork_waits_for_the_pool() {
    let jit = eager(2);
    for round in 0..scaled(40, 4) {
        let texts: Vec<_> = (0..100).map(|value| constant(&format!("f{round}_{value}"), value)).collect();
        add(&jit, &texts.concat());
        let (sender, answers) = channel();
        let names: Vec<_> = (0..100).map(|value| jit.session().intern(&format!("f{round}_{value}"))).collect();
        jit.session().lookup_async(&jit.search_order(), names, SymbolState::Ready, move |found| {
            _ = sender.send(found.is_ok());
        });
        let check = || {
            for value in 0..100 {
                assert_eq!(call(&jit, &format!("f{round}_{value}")), value);
            }
        };
        let child = Child::new(|_| check());
        check();
        assert!(answers.recv().unwrap());
        child.succeeds();
    }
}

fn a_task_that_waits_for_the_thread_that_forks() {
    let pool = ThreadPoolDispatcher::new(1).unwrap();
    let (sender, receiver) = channel::<()>();
    let (told, is_told) = channel();
    pool.dispatch(vec![Task::new(Priority::Awaited, move || {
        told.send(true).unwrap();
        _ = told.send(receiver.recv().is_ok());
    })]);
    assert!(is_told.recv().unwrap());
    // It waits no longer than it has to.
    let child = Child::new(|_| {
        let (sender, answer) = channel();
        pool.dispatch(vec![Task::new(Priority::Ahead, move || sender.send(7).unwrap())]);
        assert_eq!(answer.recv().unwrap(), 7);
    });
    sender.send(()).unwrap();
    assert!(is_told.recv().unwrap());
    child.succeeds();
}

fn a_task_forks() {
    let jit = std::sync::Arc::new(eager(1));
    add(&jit, &format!("{}{}", constant("one", 1), constant("two", 2)));
    let (sender, answer) = channel();
    let weak = std::sync::Arc::downgrade(&jit);
    let names = vec![jit.session().intern("one")];
    jit.session().lookup_async(&jit.search_order(), names, SymbolState::Ready, move |_| {
        let jit = weak.upgrade().unwrap();
        // As a task of the pool it waits for another: the child starts a thread for that.
        Child::new(|_| assert_eq!(call(&jit, "two"), 2)).succeeds();
        drop(jit);
        sender.send(()).unwrap();
    });
    answer.recv().unwrap();
    assert_eq!(call(&jit, "two"), 2);
}
