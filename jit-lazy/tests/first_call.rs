//! What is compiled when, and how often.

mod common;

use std::sync::{Arc, Barrier};

use common::{Nullary, at, builder, call, caller, clif, constant, jit, redefine};
use cranelift_codegen::ir::{AbiParam, InstBuilder, MemFlagsData, types};
use cranelift_module::{DataDescription, Linkage, Module};
use jit_core::Jit;
use jit_lazy::LazyJitBuilder;
use jit_linker::memory::{MemoryManager, PageManager};

#[test]
fn lazy_01_e2e_26_e2e_31_nothing_is_compiled_before_it_is_called_and_then_once() {
    let jit = jit();
    redefine(&jit, &format!("{}{}", constant("callee", 1), caller("caller", "callee"))).unwrap();
    let address = jit.lookup_address("caller").unwrap();
    assert_eq!(jit.stats().compile.functions, 0);
    // SAFETY: the functions only compute.
    assert_eq!(unsafe { at(address)() }, 101);
    assert_eq!(jit.stats().compile.functions, 2);
    // SAFETY: as above.
    assert_eq!(unsafe { at(address)() }, 101);
    assert_eq!(jit.stats().compile.functions, 2);
}

#[test]
fn the_first_call_of_a_function_compiles_it_alone() {
    let jit = jit();
    redefine(&jit, &format!("{}{}", constant("one", 1), constant("other", 2))).unwrap();
    assert_eq!(call(&jit, "one"), 1);
    assert_eq!(jit.stats().compile.functions, 1);
}

#[test]
fn e2e_15_a_callee_in_a_branch_that_is_not_taken_is_not_compiled() {
    let jit = jit();
    let text = "
        function %choose(i64) -> i64 system_v {
            sig0 = () -> i64 system_v
            fn0 = %left sig0
            fn1 = %right sig0
        block0(v0: i64):
            brif v0, block1, block2
        block1:
            v1 = call fn0()
            return v1
        block2:
            v2 = call fn1()
            return v2
        }";
    redefine(&jit, &format!("{text}{}{}", constant("left", 1), constant("right", 2))).unwrap();
    let choose = jit.lookup::<unsafe extern "C" fn(i64) -> i64>("choose").unwrap();
    assert_eq!(jit.stats().compile.functions, 1);
    // SAFETY: the functions only compute.
    assert_eq!(unsafe { choose.call(1) }, 1);
    assert_eq!(jit.stats().compile.functions, 2);
    // SAFETY: as above.
    assert_eq!(unsafe { choose.call(0) }, 2);
    assert_eq!(jit.stats().compile.functions, 3);
}

#[test]
fn data_comes_with_the_first_function_that_needs_it() {
    let jit = jit();
    let mut module = jit.module("bodies").redirectable();
    let table = module.declare_data("table", Linkage::Local, false, false).unwrap();
    let mut data = DataDescription::new();
    data.define(vec![7; 4096].into_boxed_slice());
    module.define_data(table, &data).unwrap();
    let mut signature = module.make_signature();
    signature.returns.push(AbiParam::new(types::I64));
    for name in ["reads", "reads_too"] {
        let id = module.declare_function(name, Linkage::Export, &signature).unwrap();
        clif::build(&mut module, id, |module, builder| {
            let table = module.declare_data_in_func(table, builder.func);
            let address = builder.ins().symbol_value(types::I64, table);
            let value = builder.ins().load(types::I64, MemFlagsData::trusted(), address, 4088);
            builder.ins().return_(&[value]);
        });
    }
    clif::define(&mut module, &constant("without", 1));
    jit.redefine(module).unwrap();
    assert_eq!(call(&jit, "without"), 1);
    assert_eq!(jit.stats().compile.data_bytes, 0);
    for name in ["reads", "reads_too"] {
        assert_eq!(call(&jit, name), 0x0707_0707_0707_0707);
        assert_eq!(jit.stats().compile.data_bytes, 4096, "{name}");
    }
}

#[test]
fn a_recursive_function_is_compiled_once() {
    let jit = jit();
    redefine(
        &jit,
        "function %sum(i64) -> i64 system_v {
            sig0 = (i64) -> i64 system_v
            fn0 = %sum sig0
        block0(v0: i64):
            brif v0, block1, block2
        block1:
            v4 = iconst.i64 -1
            v1 = iadd v0, v4
            v2 = call fn0(v1)
            v3 = iadd v2, v0
            return v3
        block2:
            return v0
        }",
    )
    .unwrap();
    let sum = jit.lookup::<unsafe extern "C" fn(i64) -> i64>("sum").unwrap();
    // SAFETY: the function only computes.
    assert_eq!(unsafe { sum.call(10) }, 55);
    assert_eq!(jit.stats().compile.functions, 1);
}

#[test]
fn looking_a_function_up_compiles_it() {
    let jit = jit();
    redefine(&jit, &constant("f", 1)).unwrap();
    let function = jit.lookup::<Nullary>("f").unwrap();
    assert_eq!(jit.stats().compile.functions, 1);
    assert_ne!(function.address(), jit.lookup_address("f").unwrap());
    assert_eq!(call(&jit, "f"), 1);
    assert_eq!(jit.stats().compile.functions, 1);
}

fn compiles_once_for_sixteen_threads(builder: LazyJitBuilder) {
    let jit = builder.build().unwrap();
    for round in 0..20 {
        let name = format!("f{round}");
        redefine(&jit, &constant(&name, round)).unwrap();
        let address = jit.lookup_address(&name).unwrap();
        let barrier = Barrier::new(16);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    barrier.wait();
                    // SAFETY: the functions only compute.
                    assert_eq!(unsafe { at(address)() }, round);
                });
            }
        });
        assert_eq!(jit.stats().compile.functions, round as u64 + 1);
    }
}

#[test]
fn gap_13_of_sixteen_threads_that_call_at_once_one_compiles() {
    compiles_once_for_sixteen_threads(builder());
}

#[test]
fn gap_13_e2e_28_of_sixteen_threads_that_call_at_once_one_has_the_pool_compile() {
    compiles_once_for_sixteen_threads(LazyJitBuilder::new(Jit::builder().compile_threads(2)));
}

#[test]
fn a_host_function_inside_a_first_call_can_make_another() {
    let jit = Arc::new(jit());
    redefine(&jit, &format!("{}{}", constant("inner", 7), caller("outer", "host"))).unwrap();
    let address = jit.lookup_address("inner").unwrap();
    // SAFETY: the function only computes.
    jit.define_closure("host", move || -> i64 { unsafe { at(address)() } }).unwrap();
    assert_eq!(call(&jit, "outer"), 107);
}

#[test]
fn many_more_functions_than_a_block_has_trampolines() {
    let jit = jit();
    let text: String = (0..1000).map(|index| constant(&format!("f{index}"), index)).collect();
    redefine(&jit, &text).unwrap();
    let addresses: Vec<_> = (0..1000).map(|index| jit.lookup_address(&format!("f{index}")).unwrap()).collect();
    for index in [0, 127, 128, 500, 999] {
        // SAFETY: the functions only compute.
        assert_eq!(unsafe { at(addresses[index])() }, index as i64);
    }
    assert_eq!(jit.stats().compile.functions, 5);
}

#[test]
fn a_handle_that_outlives_the_jit_can_make_first_calls() {
    let jit = jit();
    redefine(&jit, &format!("{}{}", constant("callee", 1), caller("caller", "callee"))).unwrap();
    let function = jit.lookup::<Nullary>("caller").unwrap();
    drop(jit);
    // SAFETY: the functions only compute.
    assert_eq!(unsafe { function.call() }, 101);
}

#[test]
fn all_memory_goes_back_with_the_jit() {
    let memory: Arc<dyn MemoryManager> = Arc::new(PageManager::new());
    let jit = LazyJitBuilder::new(Jit::builder().memory_manager(Arc::clone(&memory))).build().unwrap();
    redefine(&jit, &format!("{}{}", constant("called", 1), constant("not_called", 2))).unwrap();
    assert_eq!(call(&jit, "called"), 1);
    assert!(jit.lookup_address("not_called").is_ok());
    assert_ne!(memory.statistics().allocations, 0);
    drop(jit);
    assert_eq!(memory.statistics().allocations, 0);
}
