//! What goes wrong is an error that names the symbol and the dylib, and the session goes on.

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{add, define, jit};
use cranelift_codegen::Context;
use cranelift_codegen::cursor::{Cursor, FuncCursor};
use cranelift_codegen::ir::{self, AbiParam, InstBuilder, types};
use cranelift_module::{DataDescription, FuncId, Linkage, Module, ModuleError};
use jit_core::{
    AbsoluteSymbol, Alias, Cause, ClifModule, CompileAt, Error, GeneratorError, Jit, JitDylib,
    MaterializationResponsibility, MaterializationUnit, RedirectableFunction, SymbolDeclaration, SymbolDef,
    SymbolFlags, SymbolName, SymbolState, UnitDefinition,
};

type Unary = unsafe extern "C" fn(i64) -> i64;

/// Whether the session still compiles and runs something.
fn assert_works(jit: &Jit) {
    add(
        jit,
        "function %still_works(i64) -> i64 system_v {
        block0(v0: i64):
            v1 = iadd v0, v0
            return v1
        }",
    );
    let function = jit.lookup::<Unary>("still_works").unwrap();
    // SAFETY: the function only computes.
    assert_eq!(unsafe { function.call(21) }, 42);
}

/// A unit that does what a closure says.
struct Custom<F>(F);

impl<F: FnOnce(MaterializationResponsibility) + Send> MaterializationUnit for Custom<F> {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        (self.0)(responsibility);
    }

    fn discard(&mut self, _: &SymbolName) {}
}

fn add_custom(jit: &Jit, name: &str, work: impl FnOnce(MaterializationResponsibility) + Send + 'static) {
    let name = jit.session().intern(name);
    let symbols = [SymbolDeclaration { name, flags: SymbolFlags::EXPORTED, signature: None }].into_iter().collect();
    let unit = UnitDefinition { symbols, unit: Box::new(Custom(work)), name: Arc::from("custom unit") };
    jit.main().default_tracker().unwrap().define(vec![unit]).unwrap();
}

#[test]
fn a_panic_in_a_materializer_fails_its_symbols_with_what_it_said() {
    for threads in [0, 2] {
        let jit = Jit::builder().compile_threads(threads).build().unwrap();
        add_custom(&jit, "panics", |_responsibility| panic!("out of {}", "ideas"));
        let error = jit.lookup_address("panics").unwrap_err().to_string();
        assert_eq!(error, "symbol 'panics' in dylib 'main': custom unit panicked: out of ideas");
        // And so does every later lookup.
        assert_eq!(jit.lookup_address("panics").unwrap_err().to_string(), error);
        assert_works(&jit);
    }
}

/// What a lookup says, which has to end.
fn error_in_time(jit: &Jit, name: &str) -> String {
    let end = Instant::now() + Duration::from_secs(20);
    let names = vec![jit.session().intern(name)];
    jit.session().lookup_until(&jit.search_order(), names, end).unwrap_err().to_string()
}

#[test]
fn a_unit_that_waits_for_a_function_that_is_linked_with_one_that_needs_it_is_an_error() {
    for waited in ["second", "third"] {
        let jit = Jit::builder().compile_threads(1).build().unwrap();
        let function = |name: &str, callee: &str| {
            format!(
                "function %{name}(i64) -> i64 system_v {{
                fn0 = %{callee}(i64) -> i64 system_v
            block0(v0: i64):
                v1 = call fn0(v0)
                return v1
            }}"
            )
        };
        add_custom(&jit, "other", |responsibility| {
            let own = responsibility.symbols()[0].name.clone();
            responsibility.resolve(&[(own, SymbolDef::at(0x1000))]).unwrap();
            responsibility.emit(&[]).unwrap();
        });
        add(&jit, &(function("first", "outside") + &function("second", "other") + &function("third", "other")));
        add_custom(&jit, "outside", move |responsibility| {
            let session = responsibility.session().clone();
            let order = responsibility.link_order();
            let names = |names: &[&str]| names.iter().map(|name| session.intern(name)).collect::<Vec<_>>();
            // They are linked together, and wait for `outside` together.
            session.lookup_async(&order, names(&["third", "first", "second"]), SymbolState::Ready, drop);
            match session.lookup(&order, names(&[waited])) {
                Ok(_) => responsibility.fail(Cause::Other("it has not waited".into())),
                Err(error) => responsibility.fail(Cause::Other(error.into())),
            }
        });
        let error = error_in_time(&jit, "outside");
        assert!(error.contains("a cycle of waits: "), "{error}");
        assert_works(&jit);
    }
}

#[test]
fn a_body_that_waits_for_its_own_function_is_an_error() {
    for threads in [1, 2] {
        let jit = Jit::builder().compile_threads(threads).build().unwrap();
        let body = |_: &SymbolName| -> Box<dyn MaterializationUnit> {
            Box::new(Custom(|responsibility: MaterializationResponsibility| {
                let session = responsibility.session().clone();
                let main = session.dylib("main").unwrap();
                let error = session.lookup(&main.link_order(), vec![session.intern("f")]).unwrap_err();
                responsibility.fail(Cause::Other(error.into()));
            }))
        };
        let name = jit.session().intern("f");
        jit.redefine_with(vec![RedirectableFunction { name, signature: None, body: Box::new(body) }]).unwrap();
        let error = error_in_time(&jit, "f");
        assert!(error.contains("a cycle of waits: "), "{error}");
        assert_works(&jit);
    }
}

#[test]
fn one_function_twice_is_refused_whether_it_is_new_or_not() {
    let jit = jit();
    let name = jit.session().intern("f");
    let function = || RedirectableFunction {
        name: name.clone(),
        signature: None,
        body: Box::new(|_| {
            Box::new(Custom(|responsibility: MaterializationResponsibility| {
                responsibility.fail(Cause::Other("made on purpose".into()));
            }))
        }),
    };
    for is_new in [true, false] {
        let error = jit.redefine_with(vec![function(), function()]).unwrap_err();
        assert!(matches!(&error, Error::DuplicateDefinitions(twice) if twice.len() == 1), "{is_new}: {error}");
        assert!(error.to_string().contains("'f' in dylib 'main'"), "{error}");
        jit.redefine_with(vec![function()]).unwrap();
    }
    let alias =
        |aliasee| Alias { name: name.clone(), aliasee: jit.session().intern(aliasee), flags: SymbolFlags::FUNCTION };
    let error = jit.lazy_re_exports(jit.main(), &jit.search_order(), vec![alias("abs"), alias("labs")]).unwrap_err();
    assert!(matches!(error, Error::DuplicateDefinitions(_)), "{error}");
    assert_works(&jit);
}

#[test]
fn a_forgotten_responsibility_fails_its_symbols() {
    let jit = jit();
    add_custom(&jit, "forgotten", drop);
    let error = jit.lookup_address("forgotten").unwrap_err().to_string();
    assert_eq!(error, "symbol 'forgotten' in dylib 'main': custom unit was dropped before it was materialized");
    assert_works(&jit);
}

#[test]
fn a_dylib_that_is_gone_or_foreign_is_an_error() {
    let jits = [jit(), jit()];
    let [own, foreign] = jits.each_ref().map(|jit| jit.session().create_dylib("other").unwrap());
    let definition = |name| AbsoluteSymbol {
        name,
        definition: SymbolDef::at(0x1000),
        flags: SymbolFlags::FUNCTION,
        signature: None,
    };
    for (jit, dylib) in jits.iter().zip([&own, &foreign]) {
        dylib.define_absolute(vec![definition(jit.session().intern("there"))]).unwrap();
    }
    jits[0].lookup_in::<Unary>(&own, "there").unwrap();
    assert!(matches!(jits[0].lookup_in::<Unary>(&foreign, "there"), Err(Error::ForeignDylib)));
    for (dylib, order) in [(&foreign, own.link_order()), (&own, foreign.link_order())] {
        assert!(matches!(jits[0].lazy_re_exports(dylib, &order, Vec::new()), Err(Error::ForeignDylib)));
    }
    let object = jit_linker::graph::ObjectBytes::from(Vec::new());
    assert!(matches!(jits[0].add_object_to(&foreign, "object", object), Err(Error::ForeignDylib)));
    own.remove().unwrap();
    assert!(matches!(jits[0].lookup_in::<Unary>(&own, "there"), Err(Error::DylibGone)));
    assert_works(&jits[0]);
}

#[test]
fn a_missing_symbol_is_named() {
    let jit = jit();
    let error = jit.lookup::<Unary>("no_such_function").unwrap_err().to_string();
    assert_eq!(error, "symbol 'no_such_function' in dylib 'main': not found");
    assert_works(&jit);
}

#[test]
fn a_generator_that_fails_fails_what_needs_it_and_nothing_else() {
    let jit = jit();
    let generator = |_: &JitDylib, names: &[SymbolName]| -> Result<(), GeneratorError> {
        Err(format!("no network for {}", names[0]).into())
    };
    jit.main().add_generator(Arc::new(generator)).unwrap();
    add(&jit, "function %there(i64) -> i64 system_v { block0(v0: i64): return v0 }");
    jit.lookup::<Unary>("there").unwrap();
    // In one batch, whose names are looked up together.
    add(
        &jit,
        "function %good(i64) -> i64 system_v {
            fn0 = %there(i64) -> i64 system_v
        block0(v0: i64):
            v1 = call fn0(v0)
            return v1
        }
        function %bad(i64) -> i64 system_v {
            fn0 = %there(i64) -> i64 system_v
            fn1 = colocated %good(i64) -> i64 system_v
            fn2 = %elsewhere(i64) -> i64 system_v
        block0(v0: i64):
            v1 = call fn0(v0)
            v2 = call fn1(v1)
            v3 = call fn2(v2)
            return v3
        }",
    );
    let error = jit.lookup::<Unary>("bad").unwrap_err().to_string();
    assert_eq!(
        error,
        "symbol 'bad' in dylib 'main': depends on 'elsewhere' in dylib 'main': generator failed: \
         no network for elsewhere"
    );
    jit.lookup::<Unary>("good").unwrap();
    assert_works(&jit);
}

#[test]
fn duplicate_definitions_are_all_named_and_nothing_is_defined() {
    let jit = jit();
    let text = "function %twice(i64) -> i64 system_v { block0(v0: i64): return v0 }
                function %again(i64) -> i64 system_v { block0(v0: i64): return v0 }";
    add(&jit, text);
    let mut module = jit.module("second");
    define(&mut module, text);
    define(&mut module, "function %fresh(i64) -> i64 system_v { block0(v0: i64): return v0 }");
    let error = jit.add_module(module).unwrap_err();
    assert_eq!(
        error.to_string(),
        "duplicate definition of 'twice' in dylib 'main' (first in test, again in second), \
         'again' in dylib 'main' (first in test, again in second)"
    );
    assert!(jit.lookup::<Unary>("fresh").is_err());
    assert_works(&jit);
}

#[test]
fn a_function_that_does_not_verify_fails_its_lookup() {
    let jit = jit();
    let mut module = jit.module("wrong");
    let mut signature = module.make_signature();
    signature.params.push(AbiParam::new(types::I64));
    signature.returns.push(AbiParam::new(types::I64));
    let id = module.declare_function("wrong", Linkage::Export, &signature).unwrap();
    common::build(&mut module, id, |_, builder| {
        let float = builder.ins().f64const(1.0);
        builder.ins().return_(&[float]);
    });
    jit.add_module(module).unwrap();
    let error = jit.lookup::<Unary>("wrong").unwrap_err().to_string();
    assert!(error.starts_with("symbol 'wrong' in dylib 'main': compilation failed: "), "{error}");
    assert!(error.contains("result 0 has type f64, must match function signature of i64"), "{error}");
    assert_works(&jit);
}

/// Calls the other three, which compile together with it.
const FOUR: &str = "
    function %first(i64) -> i64 system_v { block0(v0: i64): return v0 }
    function %bad(i64) -> i64 system_v { block0(v0: i64): v1 = iconst.i64 13 v2 = iadd v0, v1 return v2 }
    function %last(i64) -> i64 system_v { block0(v0: i64): return v0 }
    function %all(i64) -> i64 system_v {
        fn0 = colocated %first(i64) -> i64 system_v
        fn1 = colocated %bad(i64) -> i64 system_v
        fn2 = colocated %last(i64) -> i64 system_v
    block0(v0: i64):
        v1 = call fn0(v0)
        v2 = call fn1(v1)
        v3 = call fn2(v2)
        return v3
    }";

/// Adds [`FOUR`], of which `bad` makes what compiles it panic, and gives what that says.
fn panicked_alone(jit: &Jit) -> String {
    add(jit, FOUR);
    let all = jit.lookup::<Unary>("all").unwrap_err().to_string();
    for name in ["first", "last"] {
        let function = jit.lookup::<Unary>(name).unwrap();
        // SAFETY: the function only computes.
        assert_eq!(unsafe { function.call(7) }, 7);
    }
    let Err(Error::Lookup(error)) = jit.lookup::<Unary>("bad") else { panic!("'bad' was compiled") };
    let failure = &error.failures[0];
    let Cause::Panicked { unit, message } = &*failure.cause else { panic!("{failure}") };
    assert_eq!((failure.name.as_str(), unit.as_str()), ("bad", "test"));
    assert_eq!(all, format!("symbol 'all' in dylib 'main': depends on {}", &failure.to_string()["symbol ".len()..]));
    assert_works(jit);
    message.clone()
}

#[test]
fn a_panic_of_a_transform_fails_its_function_alone() {
    for threads in [0, 2] {
        let transform = |function: FuncId, _: &mut ir::Function| {
            assert_ne!(function.as_u32(), 1, "unlucky");
            Ok(())
        };
        let jit = Jit::builder().compile_threads(threads).clif_transform(transform).build().unwrap();
        assert!(panicked_alone(&jit).contains("unlucky"));
    }
}

#[test]
fn a_panic_of_the_compiler_fails_its_function_alone() {
    // What the verifier would refuse.
    let transform = |function: FuncId, func: &mut ir::Function| {
        if function.as_u32() == 1 {
            let mut cursor = FuncCursor::new(func);
            let block = cursor.func.layout.entry_block().expect("it has a block");
            cursor.goto_first_insertion_point(block);
            let float = cursor.ins().f64const(1.0);
            let parameter = cursor.func.dfg.block_params(block)[0];
            cursor.ins().fadd(float, parameter);
            let (flags, nowhere) = (ir::MemFlagsData::trusted(), ir::Value::from_u32(77));
            cursor.ins().store(flags, nowhere, parameter, 0);
        }
        Ok(())
    };
    let jit = Jit::builder().verifier(false).clif_transform(transform).build().unwrap();
    panicked_alone(&jit);
}

/// A change to a function, with what it does.
type Damage = (&'static str, fn(&mut FuncCursor<'_>));

/// Bodies of functions that give an `i64`. Each begins in an empty block.
const MALFORMED: &[Damage] = &[
    ("no block", |cursor| {
        let block = cursor.func.layout.entry_block().expect("it has a block");
        cursor.func.layout.remove_block(block);
    }),
    ("the value", |cursor| _ = cursor.ins().return_(&[ir::Value::from_u32(77)])),
    ("the address of a function", |cursor| {
        let address = cursor.ins().func_addr(types::I64, ir::FuncRef::from_u32(9));
        cursor.ins().return_(&[address]);
    }),
    ("the address of a global", |cursor| {
        let address = cursor.ins().symbol_value(types::I64, ir::GlobalValue::from_u32(9));
        cursor.ins().return_(&[address]);
    }),
    ("the name of a global", |cursor| {
        let name = ir::ExternalName::user(ir::UserExternalNameRef::from_u32(33));
        let global = ir::GlobalValueData::Symbol { name, offset: 0.into(), colocated: false, tls: false };
        let global = cursor.func.create_global_value(global);
        let address = cursor.ins().symbol_value(types::I64, global);
        cursor.ins().return_(&[address]);
    }),
    ("the signature of a call", |cursor| {
        let zero = cursor.ins().iconst(types::I64, 0);
        let call = ir::InstructionData::CallIndirect {
            opcode: ir::Opcode::CallIndirect,
            args: ir::ValueList::from_slice(&[zero], &mut cursor.func.dfg.value_lists),
            sig_ref: ir::SigRef::from_u32(44),
        };
        let call = cursor.func.dfg.make_inst(call);
        cursor.insert_inst(call);
        cursor.ins().return_(&[zero]);
    }),
    ("a jump table", |cursor| {
        let zero = cursor.ins().iconst(types::I32, 0);
        cursor.ins().br_table(zero, ir::JumpTable::from_u32(5));
    }),
];

/// Defines a function that lacks what it refers to.
fn define_malformed(module: &mut ClifModule, damage: fn(&mut FuncCursor<'_>)) -> Result<Context, ModuleError> {
    let mut context = module.make_context();
    context.func.signature.returns.push(AbiParam::new(types::I64));
    let id = module.declare_function("malformed", Linkage::Export, &context.func.signature)?;
    let mut cursor = FuncCursor::new(&mut context.func);
    let block = cursor.func.dfg.make_block();
    cursor.insert_block(block);
    damage(&mut cursor);
    module.define_function(id, &mut context).map(|()| context)
}

#[test]
fn what_lacks_what_it_refers_to_is_an_error_where_it_is_compiled() {
    for verifier in [true, false] {
        let jit = Jit::builder().verifier(verifier).build().unwrap();
        for (what, damage) in MALFORMED {
            let mut module = ClifModule::new("early", jit.isa().clone(), CompileAt::Definition);
            let error = define_malformed(&mut module, *damage).err().unwrap_or_else(|| panic!("{what} is there"));
            if !matches!(error, ModuleError::Compilation(_)) {
                let error = error.to_string();
                assert!(error.contains("compiling 'malformed' of early panicked: "), "{what}: {error}");
            }
            // The module goes on, with a fresh context.
            define(&mut module, "function %good() -> i64 system_v { block0: v0 = iconst.i64 5 return v0 }");

            let dylib = jit.session().create_dylib(what).unwrap();
            let mut module = jit.module("late");
            define_malformed(&mut module, *damage).unwrap_or_else(|error| panic!("{what}: {error}"));
            jit.clif_layer().add(&dylib.default_tracker().unwrap(), module).unwrap();
            let error = jit.lookup_in::<unsafe extern "C" fn() -> i64>(&dylib, "malformed").unwrap_err().to_string();
            assert!(error.starts_with(&format!("symbol 'malformed' in dylib '{what}': ")), "{error}");
            dylib.remove().unwrap();
        }
        assert_works(&jit);
    }
}

#[test]
fn a_second_signature_for_a_name_is_refused_by_the_module() {
    let jit = jit();
    let mut module = jit.module("types");
    let mut signature = module.make_signature();
    module.declare_function("f", Linkage::Export, &signature).unwrap();
    signature.params.push(AbiParam::new(types::F64));
    let error = module.declare_function("f", Linkage::Export, &signature).unwrap_err();
    assert!(matches!(&error, ModuleError::IncompatibleSignature(name, ..) if name == "f"));
    assert!(matches!(
        module.declare_data("f", Linkage::Export, false, false),
        Err(ModuleError::IncompatibleDeclaration(name)) if name == "f"
    ));
    assert_works(&jit);
}

#[test]
fn a_body_of_another_signature_than_declared_is_refused() {
    let jit = jit();
    let mut module = jit.module("types");
    let id = module.declare_function("f", Linkage::Export, &module.make_signature()).unwrap();
    let mut context = module.make_context();
    context.func.signature.params.push(AbiParam::new(types::F64));
    let error = module.define_function(id, &mut context).unwrap_err();
    assert!(matches!(&error, ModuleError::IncompatibleSignature(name, ..) if name == "f"));
    assert_works(&jit);
}

#[test]
fn modules_that_disagree_on_a_signature_do_not_link() {
    let jit = jit();
    add(&jit, "function %callee(f64) -> f64 system_v { block0(v0: f64): return v0 }");
    add(
        &jit,
        "function %caller(i64) -> i64 system_v {
            sig0 = (i64) -> i64 system_v
            fn0 = %callee sig0
        block0(v0: i64):
            v1 = call fn0(v0)
            return v1
        }",
    );
    let error = jit.lookup::<Unary>("caller").unwrap_err().to_string();
    assert_eq!(
        error,
        "symbol 'caller' in dylib 'main': depends on 'callee' in dylib 'main': \
         'test' declares it as (i64) -> i64 system_v, it is defined as (f64) -> f64 system_v"
    );
    assert_works(&jit);
}

#[test]
fn data_is_no_function() {
    let jit = jit();
    let mut module = jit.module("data");
    let thing = module.declare_data("thing", Linkage::Export, false, false).unwrap();
    let mut contents = DataDescription::new();
    contents.define(vec![0xc3; 16].into());
    module.define_data(thing, &contents).unwrap();
    jit.add_module(module).unwrap();
    add(
        &jit,
        "function %caller(i64) -> i64 system_v {
            fn0 = %thing(i64) -> i64 system_v
        block0(v0: i64):
            v1 = call fn0(v0)
            return v1
        }",
    );
    let error = jit.lookup::<Unary>("caller").unwrap_err().to_string();
    assert_eq!(
        error,
        "symbol 'caller' in dylib 'main': depends on 'thing' in dylib 'main': \
         'test' declares it as (i64) -> i64 system_v, it is defined as data"
    );
    let error = jit.lookup::<Unary>("thing").unwrap_err().to_string();
    assert_eq!(error, "'thing' has the signature data, not (i64) -> i64 system_v");
    assert_ne!(jit.lookup_address("thing").unwrap(), 0);
    assert_works(&jit);
}

#[test]
fn what_is_declared_to_be_defined_and_is_not_is_refused() {
    let jit = jit();
    let mut module = jit.module("unfinished");
    module.declare_function("promised", Linkage::Export, &module.make_signature()).unwrap();
    let error = jit.add_module(module).unwrap_err().to_string();
    assert_eq!(error, "module: 'promised' is declared in unfinished as Export and not defined");
    assert_works(&jit);
}

#[test]
fn a_module_for_another_target_is_refused() {
    let jit = jit();
    let other = Jit::builder().opt_level(jit_core::OptLevel::Speed).build().unwrap();
    let error = jit.add_module(other.module("foreign")).unwrap_err();
    assert!(matches!(error, Error::ForeignModule { .. }));
    assert_works(&jit);
}

#[test]
fn a_target_that_the_process_cannot_run_is_refused() {
    for triple in ["riscv64gc-unknown-linux-gnu", "i686-unknown-linux-gnu"] {
        let result = Jit::builder().target(triple.parse().unwrap()).build();
        assert!(matches!(result, Err(Error::Target(_))), "{triple}");
    }
    let other = if cfg!(target_arch = "x86_64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };
    let error = Jit::builder().target(other.parse().unwrap()).build().unwrap_err().to_string();
    assert!(error.ends_with("code does not run in this process"), "{error}");
}

#[test]
fn the_reporter_is_told_of_each_failure() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&told);
    let jit = Jit::builder()
        .error_reporter(move |symbol, cause| to.lock().unwrap().push(format!("{symbol}: {cause}")))
        .build()
        .unwrap();
    add_custom(&jit, "fails", |responsibility| {
        responsibility.fail(jit_core::Cause::Other("on purpose".into()));
    });
    let error = jit.lookup_address("fails").unwrap_err().to_string();
    assert_eq!(error, "symbol 'fails' in dylib 'main': on purpose");
    assert_eq!(*told.lock().unwrap(), ["fails: on purpose"]);
    assert_works(&jit);
}
