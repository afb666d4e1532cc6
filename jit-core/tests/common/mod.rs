//! Modules from CLIF text.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};

use cranelift_codegen::ir::{ExternalName, Function, UserExternalName, UserFuncName};
use cranelift_module::{FuncId, Linkage, Module};
use jit_core::{ClifModule, Jit, JitFn, OptLevel};

/// A JIT that verifies what it compiles.
pub(crate) fn jit() -> Jit {
    Jit::builder().opt_level(OptLevel::None).verifier(true).build().unwrap()
}

/// Declares and defines the functions of a CLIF text, all exported but for those whose names begin
/// with `own_`. A function refers to others by
/// the test case name `%name`; those that the text does not define are imported.
pub(crate) fn define(module: &mut ClifModule, text: &str) -> HashMap<String, FuncId> {
    let mut functions = cranelift_reader::parse_functions(text).unwrap();
    let mut ids = HashMap::new();
    for function in &functions {
        let name = test_case(&function.name);
        let linkage = if name.starts_with("own_") { Linkage::Local } else { Linkage::Export };
        let id = module.declare_function(&name, linkage, &function.signature).unwrap();
        ids.insert(name, id);
    }
    for function in &mut functions {
        declare_imports(module, function, &mut ids);
        let id = ids[&test_case(&function.name)];
        function.name = UserFuncName::user(0, id.as_u32());
        let mut context = module.make_context();
        context.func = function.clone();
        module.define_function(id, &mut context).unwrap();
    }
    ids
}

fn declare_imports(module: &mut ClifModule, function: &mut Function, ids: &mut HashMap<String, FuncId>) {
    for func_ref in function.dfg.ext_funcs.keys().collect::<Vec<_>>() {
        let data = &function.dfg.ext_funcs[func_ref];
        let ExternalName::TestCase(name) = &data.name else { continue };
        let name = String::from_utf8(name.raw().to_vec()).unwrap();
        let signature = function.dfg.signatures[data.signature].clone();
        let id = *ids
            .entry(name.clone())
            .or_insert_with(|| module.declare_function(&name, Linkage::Import, &signature).unwrap());
        let linkage = module.declarations().get_function_decl(id).linkage;
        let name = function.declare_imported_user_function(UserExternalName { namespace: 0, index: id.as_u32() });
        let data = &mut function.dfg.ext_funcs[func_ref];
        data.name = ExternalName::user(name);
        data.colocated = linkage.is_final();
    }
}

fn test_case(name: &UserFuncName) -> String {
    match name {
        UserFuncName::Testcase(name) => String::from_utf8(name.raw().to_vec()).unwrap(),
        UserFuncName::User(name) => name.to_string(),
    }
}

/// Adds a CLIF text to `main`.
pub(crate) fn add(jit: &Jit, text: &str) -> jit_core::ResourceTracker {
    let mut module = jit.module("test");
    define(&mut module, text);
    jit.add_module(module).unwrap()
}

/// Builds a function's body in one block.
pub(crate) fn build(
    module: &mut ClifModule,
    id: FuncId,
    body: impl FnOnce(&mut ClifModule, &mut cranelift_frontend::FunctionBuilder<'_>),
) {
    let mut context = module.make_context();
    context.func.signature = module.declarations().get_function_decl(id).signature.clone();
    let mut frontend = cranelift_frontend::FunctionBuilderContext::new();
    let mut builder = cranelift_frontend::FunctionBuilder::new(&mut context.func, &mut frontend);
    let block = builder.create_block();
    builder.append_block_params_for_function_params(block);
    builder.switch_to_block(block);
    builder.seal_block(block);
    body(module, &mut builder);
    builder.finalize(module.target_config());
    module.define_function(id, &mut context).unwrap();
}

/// `f0` to `f{count-1}`, each adding one to what the one before gives.
pub(crate) fn chain(module: &mut ClifModule, count: usize) {
    use cranelift_codegen::ir::{AbiParam, InstBuilder, types};
    let mut signature = module.make_signature();
    signature.params.push(AbiParam::new(types::I64));
    signature.returns.push(AbiParam::new(types::I64));
    let mut previous = None;
    for index in 0..count {
        let id = module.declare_function(&format!("f{index}"), Linkage::Export, &signature).unwrap();
        build(module, id, |module, builder| {
            let mut value = builder.block_params(builder.current_block().unwrap())[0];
            if let Some(previous) = previous {
                let callee = module.declare_func_in_func(previous, builder.func);
                let call = builder.ins().call(callee, &[value]);
                value = builder.inst_results(call)[0];
            }
            let one = builder.ins().iconst(types::I64, 1);
            let sum = builder.ins().iadd(value, one);
            builder.ins().return_(&[sum]);
        });
        previous = Some(id);
    }
}

/// Calls functions on four threads while they are redefined, `last` times. Of n, the body of number i in version v gives
/// v * n + i, and its caller a hundred more.
///
/// # Panics
///
/// When a call enters the body of another function, or an older one than before it was known to be redefined.
pub(crate) fn redirected_in_use(callers: &[JitFn<unsafe extern "C" fn() -> i64>], last: i64, redefine: impl Fn(i64)) {
    let (count, redefined) = (callers.len() as i64, AtomicI64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut seen = vec![0; callers.len()];
                while seen.iter().any(|seen| *seen < last) {
                    for ((index, caller), seen) in (0..).zip(callers).zip(&mut seen) {
                        let least = redefined.load(Ordering::Acquire).max(*seen);
                        // SAFETY: the functions only compute.
                        let value = unsafe { caller.call() } - 100;
                        assert_eq!(value % count, index, "another function's body");
                        *seen = value / count;
                        assert!((least..=last).contains(seen), "{seen} after {least}");
                    }
                }
            });
        }
        for version in 1..=last {
            redefine(version);
            redefined.store(version, Ordering::Release);
        }
    });
}
