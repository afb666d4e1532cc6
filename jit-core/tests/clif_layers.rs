//! What stands between a module and its code: transforms, the inliner, the object cache, plugins.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::define;
use cranelift_codegen::ir::{self, AbiParam, InstBuilder, types};
use cranelift_module::{DataDescription, FuncId, Linkage, Module};
use jit_core::{
    ClifLayer, ClifModule, ClifTransformLayer, CompileAt, DylibLookup, InMemoryCache, InlineSmallFunctions, Jit, Link,
    LinkPlugin, ModuleLayer, ObjectCache, ObjectLayer, ObjectLinkingLayer, ObjectTransformLayer, OptLevel,
    TransformError,
};
use jit_linker::LinkGraph;
use jit_linker::plugin::Passes;

const ADD: &str = "
    function %twice(i64) -> i64 system_v { block0(v0: i64): v1 = iadd v0, v0  return v1 }
    function %entry(i64) -> i64 system_v {
        fn0 = %twice(i64) -> i64 system_v
        block0(v0: i64):
            v1 = call fn0(v0)
            v2 = iconst.i64 1
            v3 = iadd v1, v2
            return v3
    }";

/// Replaces each constant `from` by `to`.
fn replace_constant(from: i64, to: i64) -> impl Fn(FuncId, &mut ir::Function) -> Result<(), TransformError> + Clone {
    move |_, func| {
        for block in func.layout.blocks().collect::<Vec<_>>() {
            for inst in func.layout.block_insts(block).collect::<Vec<_>>() {
                if let ir::InstructionData::UnaryImm { opcode: ir::Opcode::Iconst, imm } = &mut func.dfg.insts[inst]
                    && imm.bits() == from
                {
                    *imm = to.into();
                }
            }
        }
        Ok(())
    }
}

const CONSTANT: &str = "function %constant() -> i64 system_v { block0: v0 = iconst.i64 1  return v0 }";

fn call(jit: &Jit, name: &str, argument: i64) -> i64 {
    let function = jit.lookup::<unsafe extern "C" fn(i64) -> i64>(name).unwrap();
    // SAFETY: tests look up functions of this type, which touch no memory.
    unsafe { function.call(argument) }
}

fn constant(jit: &Jit) -> i64 {
    let function = jit.lookup::<unsafe extern "C" fn() -> i64>("constant").unwrap();
    // SAFETY: it returns a number.
    unsafe { function.call() }
}

fn module(jit: &Jit, text: &str) -> ClifModule {
    let mut module = jit.module("test");
    define(&mut module, text);
    module
}

#[test]
fn transforms_are_applied_outermost_first_and_when_a_function_is_compiled() {
    let jit = Jit::new().unwrap();
    let inner = ClifTransformLayer::new(jit.clif_layer().clone(), replace_constant(2, 3));
    let outer = ClifTransformLayer::new(inner, replace_constant(1, 2));
    outer.add_module(&jit.main().default_tracker().unwrap(), module(&jit, CONSTANT)).unwrap();
    assert_eq!(jit.stats().compile.functions, 0);
    assert_eq!(constant(&jit), 3);
}

#[test]
fn a_transform_that_refuses_fails_the_function_with_its_reason() {
    let refuse = |_, _: &mut ir::Function| Err("not today".into());
    let jit = Jit::builder().clif_transform(refuse).build().unwrap();
    jit.add_module(module(&jit, CONSTANT)).unwrap();
    let error = jit.lookup::<unsafe extern "C" fn() -> i64>("constant").unwrap_err();
    assert!(error.to_string().contains("not today"), "{error}");
}

/// Counts the edges of every graph, as plugins see them.
#[derive(Default)]
struct Sees {
    edges: AtomicUsize,
    links: Mutex<Vec<&'static str>>,
}

impl Sees {
    fn note(&self, what: &'static str) {
        self.links.lock().unwrap().push(what);
    }
}

impl LinkPlugin for Sees {
    fn configure(&self, _: &Link, graph: &LinkGraph, _: &mut Passes) {
        self.edges.fetch_add(graph.edges().len(), Ordering::Relaxed);
    }

    fn emitted(&self, _: &Link) -> Result<(), TransformError> {
        self.note("emitted");
        Ok(())
    }

    fn removed(&self, _: &Link) {
        self.note("removed");
    }
}

#[test]
fn plugins_of_the_linking_layer_see_compiled_code_until_it_is_removed() {
    let jit = Jit::new().unwrap();
    let sees = Arc::new(Sees::default());
    jit.object_layer().add_plugin(sees.clone());
    let tracker = jit.add_module(module(&jit, CONSTANT)).unwrap();
    assert_eq!(constant(&jit), 1);
    assert_eq!(*sees.links.lock().unwrap(), ["emitted"]);
    tracker.remove().unwrap();
    assert_eq!(*sees.links.lock().unwrap(), ["emitted", "removed"]);
}

#[test]
fn every_layer_composes_with_every_other() {
    let jit = Jit::new().unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |what: &'static str| {
        let order = Arc::clone(&order);
        move || order.lock().unwrap().push(what)
    };
    let (clif, graph) = (note("clif"), note("graph"));
    let linking = ObjectLinkingLayer::new();
    let sees = Arc::new(Sees::default());
    linking.add_plugin(sees.clone());
    let objects = ObjectTransformLayer::new(linking).on_graph(move |_| {
        graph();
        Ok(())
    });
    let compiling = ClifLayer::over(Arc::clone(jit.isa()), &objects).unwrap();
    let inlining = ClifTransformLayer::new(compiling, InlineSmallFunctions::default());
    let modules = ClifTransformLayer::new(inlining, move |_, _: &mut ir::Function| {
        clif();
        Ok(())
    });
    modules.add_module(&jit.main().default_tracker().unwrap(), module(&jit, CONSTANT)).unwrap();
    assert_eq!(constant(&jit), 1);
    assert_eq!(*order.lock().unwrap(), ["clif", "graph"]);
    assert_eq!(*sees.links.lock().unwrap(), ["emitted"]);
}

/// How many references to functions are left in the code of `entry`.
fn edges(jit: &Jit, module: ClifModule) -> usize {
    let sees = Arc::new(Sees::default());
    jit.object_layer().add_plugin(sees.clone());
    jit.add_module(module).unwrap();
    assert_eq!(call(jit, "entry", 20), 41);
    sees.edges.load(Ordering::Relaxed)
}

#[test]
fn small_functions_are_inlined_and_large_ones_are_not() {
    let plain = Jit::new().unwrap();
    assert_eq!(edges(&plain, module(&plain, ADD)), 1);
    let inlining = Jit::builder().clif_transform(InlineSmallFunctions::default()).build().unwrap();
    assert_eq!(edges(&inlining, module(&inlining, ADD)), 0);
    let strict = Jit::builder().clif_transform(InlineSmallFunctions { instructions: 1 }).build().unwrap();
    assert_eq!(edges(&strict, module(&strict, ADD)), 1);
}

#[test]
fn a_function_that_calls_itself_is_not_inlined_and_gives_the_same() {
    let text = "
        function %down(i64) -> i64 system_v {
            fn0 = %down(i64) -> i64 system_v
            block0(v0: i64): brif v0, block1, block2
            block1: v3 = iconst.i64 -1  v1 = iadd v0, v3  v2 = call fn0(v1)  return v2
            block2: return v0
        }
        function %entry(i64) -> i64 system_v {
            fn0 = %down(i64) -> i64 system_v
            block0(v0: i64): v1 = call fn0(v0)  v2 = iconst.i64 41  v3 = iadd v1, v2  return v3
        }";
    let jit = Jit::builder().clif_transform(InlineSmallFunctions::default()).build().unwrap();
    assert_eq!(edges(&jit, module(&jit, text)), 2);
}

#[test]
fn at_speed_a_function_takes_in_a_round_of_itself_unless_it_can_be_redefined() {
    let text = "
        function %entry(i64) -> i64 system_v {
            fn0 = %entry(i64) -> i64 system_v
            block0(v0: i64):
                v1 = iconst.i64 1
                brif v0, block1, block2
            block1:
                v2 = isub v0, v1
                v3 = call fn0(v2)
                v9 = iconst.i64 40
                v4 = ushr v0, v9
                v5 = call fn0(v4)
                v6 = iadd v3, v5
                v7 = iadd v6, v1
                return v7
            block2:
                return v1
        }";
    let edges = |level, compile_at, redirectable: bool| {
        let jit = Jit::builder().opt_level(level).build().unwrap();
        let sees = Arc::new(Sees::default());
        jit.object_layer().add_plugin(sees.clone());
        let mut module = ClifModule::new("test", Arc::clone(jit.isa()), compile_at);
        if redirectable {
            module = module.redirectable();
        }
        define(&mut module, text);
        if redirectable { jit.redefine(module) } else { jit.add_module(module) }.unwrap();
        assert_eq!(call(&jit, "entry", 20), 41);
        sees.edges.load(Ordering::Relaxed)
    };
    for compile_at in [CompileAt::Definition, CompileAt::Lookup] {
        assert_eq!(edges(OptLevel::None, compile_at, false), 2);
        assert_eq!(edges(OptLevel::Speed, compile_at, false), 4);
        // Where an address takes two instructions, two for each call.
        assert_eq!(edges(OptLevel::Speed, compile_at, true), edges(OptLevel::None, compile_at, true));
    }
}

#[test]
fn a_redefinable_function_is_inlined_into_nobody() {
    let jit = Jit::builder().clif_transform(InlineSmallFunctions::default()).build().unwrap();
    let with_step = |step: i64| {
        let mut module = jit.module("test").redirectable();
        let text = ADD.replace("v1 = iadd v0, v0", &format!("v2 = iconst.i64 {step}  v1 = iadd v0, v2"));
        define(&mut module, &text);
        module
    };
    jit.redefine(with_step(1)).unwrap();
    let entry = jit.lookup_address("entry").unwrap();
    let code = std::ptr::with_exposed_provenance::<()>(entry as usize);
    // SAFETY: the function's canonical address, which lives as long as the JIT.
    let entry = unsafe { std::mem::transmute::<*const (), extern "C" fn(i64) -> i64>(code) };
    assert_eq!(entry(10), 12);
    let mut only_twice = jit.module("new").redirectable();
    let text =
        "function %twice(i64) -> i64 system_v { block0(v0: i64): v2 = iconst.i64 100  v1 = iadd v0, v2  return v1 }";
    define(&mut only_twice, text);
    jit.redefine(only_twice).unwrap();
    assert_eq!(entry(10), 111, "its callers call the new body");
}

#[test]
fn a_preemptible_function_is_inlined_into_nobody() {
    let jit = Jit::builder().clif_transform(InlineSmallFunctions::default()).build().unwrap();
    let mut weak = jit.module("weak");
    let mut signature = weak.make_signature();
    signature.params.push(AbiParam::new(types::I64));
    signature.returns.push(AbiParam::new(types::I64));
    let callee = weak.declare_function("twice", Linkage::Preemptible, &signature).unwrap();
    let entry = weak.declare_function("entry", Linkage::Export, &signature).unwrap();
    common::build(&mut weak, callee, |_, builder| {
        let argument = builder.block_params(builder.current_block().unwrap())[0];
        builder.ins().return_(&[argument]);
    });
    common::build(&mut weak, entry, |module, builder| {
        let argument = builder.block_params(builder.current_block().unwrap())[0];
        let callee = module.declare_func_in_func(callee, builder.func);
        let call = builder.ins().call(callee, &[argument]);
        let result = builder.inst_results(call)[0];
        builder.ins().return_(&[result]);
    });
    let sees = Arc::new(Sees::default());
    jit.object_layer().add_plugin(sees.clone());
    jit.add_module(weak).unwrap();
    assert_eq!(call(&jit, "entry", 21), 21);
    // One edge or, where an address takes two instructions, two.
    assert_ne!(sees.edges.load(Ordering::Relaxed), 0, "it is called");
}

/// A module that calls another function and a library function, and reads data.
fn with_references(jit: &Jit, helper: &str, number: u64) -> ClifModule {
    let mut module = jit.module(helper);
    let mut signature = module.make_signature();
    signature.params.push(AbiParam::new(types::I64));
    signature.returns.push(AbiParam::new(types::I64));
    let helper = module.declare_function(helper, Linkage::Import, &signature).unwrap();
    let data = module.declare_data("number", Linkage::Local, false, false).unwrap();
    let mut description = DataDescription::new();
    description.define(Box::new(number.to_le_bytes()));
    module.define_data(data, &description).unwrap();
    let entry = module.declare_function("entry", Linkage::Export, &signature).unwrap();
    common::build(&mut module, entry, |module, builder| {
        let argument = builder.block_params(builder.current_block().unwrap())[0];
        let helper = module.declare_func_in_func(helper, builder.func);
        let call = builder.ins().call(helper, &[argument]);
        let result = builder.inst_results(call)[0];
        let value = module.declare_data_in_func(data, builder.func);
        let place = builder.ins().symbol_value(types::I64, value);
        let number = builder.ins().load(types::I64, ir::MemFlagsData::trusted(), place, 0);
        let float = builder.ins().fcvt_from_sint(types::F32, number);
        let float = builder.ins().fma(float, float, float);
        let float = builder.ins().fcvt_to_sint_sat(types::I64, float);
        let sum = builder.ins().iadd(result, float);
        builder.ins().return_(&[sum]);
    });
    module
}

extern "C" fn add_one(value: i64) -> i64 {
    value + 1
}

extern "C" fn add_two(value: i64) -> i64 {
    value + 2
}

fn cached(cache: &Arc<InMemoryCache>) -> Jit {
    // Without extensions of the processor, so that `fma` is a call.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH).parse().unwrap();
    let jit = Jit::builder().target(target).object_cache(cache.clone()).build().unwrap();
    jit.define_function("one", add_one as extern "C" fn(i64) -> i64).unwrap();
    jit.define_function("two", add_two as extern "C" fn(i64) -> i64).unwrap();
    jit
}

#[test]
fn what_comes_from_the_cache_links_to_the_same() {
    let cache = Arc::new(InMemoryCache::new());
    for (helper, number, expected) in [("one", 3, 10 + 1 + 12), ("two", 5, 10 + 2 + 30), ("one", 3, 10 + 1 + 12)] {
        let jit = cached(&cache);
        jit.add_module(with_references(&jit, helper, number)).unwrap();
        assert_eq!(call(&jit, "entry", 10), expected, "{helper} {number}");
    }
    let jit = cached(&cache);
    jit.add_module(with_references(&jit, "two", 1)).unwrap();
    assert_eq!(call(&jit, "entry", 10), 10 + 2 + 2);
    let statistics = jit.stats().compile;
    assert_eq!((statistics.cache_hits, statistics.cache_misses, cache.len()), (1, 0, 1));
}

#[test]
fn another_function_or_setting_is_another_entry() {
    let cache = Arc::new(InMemoryCache::new());
    let run = |level, text: &str| {
        let jit = Jit::builder().opt_level(level).object_cache(cache.clone()).build().unwrap();
        jit.add_module(module(&jit, text)).unwrap();
        let value = constant(&jit);
        (value, jit.stats().compile.cache_hits)
    };
    let two = CONSTANT.replace("iconst.i64 1", "iconst.i64 2");
    assert_eq!(run(jit_core::OptLevel::Speed, CONSTANT), (1, 0));
    assert_eq!(run(jit_core::OptLevel::Speed, &two), (2, 0));
    assert_eq!(run(jit_core::OptLevel::None, CONSTANT), (1, 0));
    assert_eq!(run(jit_core::OptLevel::Speed, CONSTANT), (1, 1));
    assert_eq!(cache.len(), 3);
}

#[test]
fn functions_compiled_at_definition_are_asked_for_too() {
    let cache: Arc<InMemoryCache> = Arc::default();
    for _ in 0..2 {
        let jit = Jit::new().unwrap();
        let mut module =
            ClifModule::new("eager", Arc::clone(jit.isa()), CompileAt::Definition).object_cache(cache.clone());
        define(&mut module, ADD);
        jit.add_module(module).unwrap();
        assert_eq!(call(&jit, "entry", 20), 41);
        assert_eq!(cache.len(), 2);
    }
}

/// Answers with something else than what was inserted.
struct Damaged {
    inner: InMemoryCache,
    damage: fn(&mut Vec<u8>),
}

impl ObjectCache for Damaged {
    fn get(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        let mut object = self.inner.get(key)?.to_vec();
        (self.damage)(&mut object);
        Some(Arc::from(object))
    }

    fn insert(&self, key: &[u8], object: &[u8]) {
        self.inner.insert(key, object);
    }
}

#[test]
fn damaged_entries_count_as_misses() {
    let damages: [fn(&mut Vec<u8>); 4] =
        [|object| object.clear(), |object| object.truncate(20), |object| object[30] ^= 1, |object| object[0] ^= 1];
    for damage in damages {
        let cache = Arc::new(Damaged { inner: InMemoryCache::new(), damage });
        for _ in 0..2 {
            let jit = Jit::builder().object_cache(cache.clone()).build().unwrap();
            jit.add_module(module(&jit, ADD)).unwrap();
            assert_eq!(call(&jit, "entry", 20), 41);
            assert_eq!(jit.stats().compile.cache_hits, 0);
        }
    }
}

#[test]
fn a_preemptible_import_that_nobody_defines_is_at_address_0() {
    for defined in [false, true] {
        let jit = common::jit();
        let mut module = jit.module("weak");
        let mut signature = module.make_signature();
        signature.params.push(AbiParam::new(types::I64));
        signature.returns.push(AbiParam::new(types::I64));
        let hook = module.declare_function("hook", Linkage::Preemptible, &signature).unwrap();
        let variable = module.declare_data("variable", Linkage::Preemptible, false, false).unwrap();
        let entry = module.declare_function("entry", Linkage::Export, &signature).unwrap();
        // Through the GOT, in a call, and in data.
        let table = module.declare_data("table", Linkage::Local, true, false).unwrap();
        let mut description = DataDescription::new();
        description.define_zeroinit(16);
        let in_data = module.declare_func_in_data(hook, &mut description);
        description.write_function_addr(0, in_data);
        let in_data = module.declare_data_in_data(variable, &mut description);
        description.write_data_addr(8, in_data, 0);
        module.define_data(table, &description).unwrap();
        common::build(&mut module, entry, |module, builder| {
            let argument = builder.block_params(builder.current_block().unwrap())[0];
            let hook = module.declare_func_in_func(hook, builder.func);
            let address = builder.ins().func_addr(types::I64, hook);
            let variable = module.declare_data_in_func(variable, builder.func);
            let variable = builder.ins().symbol_value(types::I64, variable);
            let table = module.declare_data_in_func(table, builder.func);
            let table = builder.ins().symbol_value(types::I64, table);
            let first = builder.ins().load(types::I64, ir::MemFlagsData::trusted(), table, 0);
            let second = builder.ins().load(types::I64, ir::MemFlagsData::trusted(), table, 8);
            let all = builder.ins().bor(address, variable);
            let all = builder.ins().bor(all, first);
            let all = builder.ins().bor(all, second);
            let (there, missing) = (builder.create_block(), builder.create_block());
            builder.ins().brif(address, there, &[], missing, &[]);
            builder.switch_to_block(there);
            builder.seal_block(there);
            let call = builder.ins().call(hook, &[argument]);
            let result = builder.inst_results(call)[0];
            builder.ins().return_(&[result]);
            builder.switch_to_block(missing);
            builder.seal_block(missing);
            builder.ins().return_(&[all]);
        });
        jit.add_module(module).unwrap();
        if defined {
            jit.define_function("hook", add_one as extern "C" fn(i64) -> i64).unwrap();
        }
        assert_eq!(call(&jit, "entry", 10), if defined { 11 } else { 0 });
    }
}

#[test]
fn a_preemptible_import_that_failed_fails_its_user() {
    let jit = common::jit();
    let mut module = jit.module("weak");
    let signature = module.make_signature();
    let hook = module.declare_function("hook", Linkage::Preemptible, &signature).unwrap();
    let entry = module.declare_function("entry", Linkage::Export, &signature).unwrap();
    common::build(&mut module, entry, |module, builder| {
        let hook = module.declare_func_in_func(hook, builder.func);
        builder.ins().call(hook, &[]);
        builder.ins().return_(&[]);
    });
    jit.add_module(module).unwrap();
    let text = "function %hook() system_v { fn0 = %nobody() system_v
        block0: call fn0() return }";
    jit.add_module(self::module(&jit, text)).unwrap();
    let error = jit.lookup_address("entry").unwrap_err();
    assert!(error.to_string().contains("'nobody'"), "{error}");
}

#[test]
fn objects_and_compiled_code_of_one_session_link_to_each_other() {
    let jit = Jit::new().unwrap();
    let other = jit.session().create_dylib("objects").unwrap();
    jit.main().add_to_link_order(&other, DylibLookup::Exported).unwrap();
    let mut graph = LinkGraph::new("absolute", jit.session().executor().architecture());
    graph.define_absolute(jit.session().intern("twice"), add_one as *const () as u64, 0);
    jit.object_layer().add_graph(&other.default_tracker().unwrap(), graph).unwrap();
    let text = "function %entry(i64) -> i64 system_v {
        fn0 = %twice(i64) -> i64 system_v
        block0(v0: i64): v1 = call fn0(v0)  return v1 }";
    jit.add_module(module(&jit, text)).unwrap();
    assert_eq!(call(&jit, "entry", 4), 5);
}
