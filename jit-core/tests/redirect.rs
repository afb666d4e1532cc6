//! Redirectable functions: one address, bodies that come and go.

#[path = "common/bodies.rs"]
mod bodies;
mod common;

use std::sync::Arc;

use bodies::{constant, redefine};
use common::{add, jit, redirected_in_use};
use cranelift_codegen::ir::{AbiParam, InstBuilder, types};
use cranelift_module::{Linkage, Module};
use jit_core::seam::{CallThrough, FirstCall, LazyFunctions};
use jit_core::{AbsoluteSymbol, Alias, Error, Jit, SymbolDef, SymbolFlags, SymbolName};
use jit_linker::graph::ObjectBytes;
use jit_linker::memory::MemoryManager;

type Nullary = unsafe extern "C" fn() -> i64;

fn call(jit: &Jit, name: &str) -> i64 {
    let function = jit.lookup::<Nullary>(name).unwrap();
    // SAFETY: the functions of these tests only compute.
    unsafe { function.call() }
}

const CALLER: &str = "
    function %caller() -> i64 system_v {
        sig0 = () -> i64 system_v
        fn0 = %callee sig0
    block0:
        v0 = call fn0()
        v1 = iconst.i64 100
        v2 = iadd v0, v1
        return v2
    }";

#[test]
fn all_callers_see_a_new_body_at_an_old_address() {
    let jit = jit();
    redefine(&jit, &constant("callee", 1)).unwrap();
    add(&jit, CALLER);
    let caller = jit.lookup::<Nullary>("caller").unwrap();
    // SAFETY: the functions only compute.
    assert_eq!(unsafe { caller.call() }, 101);
    let address = jit.lookup_address("callee").unwrap();
    redefine(&jit, &constant("callee", 2)).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { caller.call() }, 102);
    assert_eq!(call(&jit, "callee"), 2);
    assert_eq!(jit.lookup_address("callee").unwrap(), address);
    // SAFETY: the stub of a function of that type.
    let through_stub: Nullary = unsafe { std::mem::transmute(address) };
    // SAFETY: as above.
    assert_eq!(unsafe { through_stub() }, 2);
}

#[test]
fn an_address_that_is_taken_is_the_same_for_ever() {
    let jit = jit();
    redefine(&jit, &constant("callee", 1)).unwrap();
    add(
        &jit,
        "function %address() -> i64 system_v {
            sig0 = () -> i64 system_v
            fn0 = %callee sig0
        block0:
            v0 = func_addr.i64 fn0
            return v0
        }",
    );
    let address = call(&jit, "address");
    assert_eq!(address as u64, jit.lookup_address("callee").unwrap());
    redefine(&jit, &constant("callee", 2)).unwrap();
    assert_eq!(call(&jit, "address"), address);
}

#[test]
fn functions_of_one_redirectable_module_call_each_other_through_slots() {
    let jit = jit();
    redefine(&jit, &format!("{}{}", constant("callee", 1), CALLER.replace("fn0 = ", "fn0 = colocated "))).unwrap();
    assert_eq!(call(&jit, "caller"), 101);
    redefine(&jit, &constant("callee", 2)).unwrap();
    assert_eq!(call(&jit, "caller"), 102);
}

#[test]
fn a_body_that_was_never_needed_is_replaced_without_being_compiled() {
    let jit = jit();
    redefine(&jit, &constant("callee", 1)).unwrap();
    redefine(&jit, &constant("callee", 2)).unwrap();
    assert_eq!(call(&jit, "callee"), 2);
    assert_eq!(jit.stats().compile.functions, 1);
}

#[test]
fn a_new_body_that_fails_leaves_the_old_one() {
    let jit = jit();
    redefine(&jit, &constant("caller", 7)).unwrap();
    assert_eq!(call(&jit, "caller"), 7);
    let error = redefine(&jit, CALLER).unwrap_err().to_string();
    assert!(error.ends_with("depends on 'callee' in dylib 'main': not found"), "{error}");
    assert_eq!(call(&jit, "caller"), 7);
    let error = redefine(&jit, "function %caller(f64) system_v { block0(v0: f64): return }").unwrap_err();
    assert_eq!(error.to_string(), "'caller' has the signature () -> i64 system_v, not (f64) system_v");
    assert_eq!(call(&jit, "caller"), 7);
}

#[test]
fn a_failure_of_a_body_is_told_by_the_functions_name() {
    let jit = jit();
    redefine(&jit, &constant("caller", 7)).unwrap();
    assert_eq!(call(&jit, "caller"), 7);
    let error = redefine(&jit, CALLER).unwrap_err().to_string();
    assert_eq!(error, "symbol 'caller' in dylib 'main': depends on 'callee' in dylib 'main': not found");
}

#[test]
fn no_symbol_of_the_users_is_taken_for_a_body() {
    let jit = jit();
    for name in ["function$0", "function$1", "function.0", "function.1"] {
        let mut module = jit.module(name);
        let mut signature = module.make_signature();
        signature.returns.push(AbiParam::new(types::I64));
        let id = module.declare_function(name, Linkage::Export, &signature).unwrap();
        common::build(&mut module, id, |_, builder| {
            let other = builder.ins().iconst(types::I64, 99);
            builder.ins().return_(&[other]);
        });
        jit.add_module(module).unwrap();
    }
    for value in [5, 6] {
        redefine(&jit, &constant("function", value)).unwrap();
        assert_eq!(call(&jit, "function"), value);
    }
}

#[test]
fn a_definition_by_the_reserved_name_of_a_body_is_an_error() {
    let jit = jit();
    let taken = |number: u64| jit.session().intern(&format!("function$orcane.{number}"));
    let definition = |name| AbsoluteSymbol {
        name,
        definition: SymbolDef::at(0x1000),
        flags: SymbolFlags::FUNCTION,
        signature: None,
    };
    jit.main().define_absolute((0..8).map(|number| definition(taken(number))).collect()).unwrap();
    redefine(&jit, &constant("function", 5)).unwrap();
    for _ in 0..2 {
        let error = jit.lookup::<Nullary>("function").unwrap_err().to_string();
        assert!(error.starts_with("symbol 'function' in dylib 'main': duplicate definition of 'function$"), "{error}");
    }
    let names: Vec<_> = (0..8).map(taken).collect();
    jit.main().remove_symbols(&names).unwrap();
    redefine(&jit, &constant("function", 6)).unwrap();
    assert_eq!(call(&jit, "function"), 6);
}

#[test]
fn a_batch_one_of_which_fails_changes_nothing() {
    let jit = jit();
    redefine(&jit, &format!("{}{}", constant("first", 1), constant("caller", 2))).unwrap();
    assert_eq!((call(&jit, "first"), call(&jit, "caller")), (1, 2));
    let size = || (jit.memory_statistics().allocations, jit.session().statistics().symbols);
    let before = size();
    // `caller` can't be linked: there is no `callee`.
    let [first, new] = [("first", 3), ("new", 4)].map(|(name, value)| constant(name, value));
    for text in [[&first, CALLER, &new], [&new, CALLER, &first]] {
        let error = redefine(&jit, &text.concat()).unwrap_err().to_string();
        assert!(error.ends_with("depends on 'callee' in dylib 'main': not found"), "{error}");
        assert_eq!((call(&jit, "first"), call(&jit, "caller")), (1, 2));
        assert!(jit.lookup_address("new").is_err());
        assert_eq!(size(), before);
    }
}

#[test]
fn a_batch_redirects_functions_in_use_each_of_them_at_once() {
    const COUNT: i64 = 8;
    const LAST: i64 = 40;
    let jit = jit();
    let batch = |version: i64| -> String {
        (0..COUNT).map(|index| constant(&format!("f{index}"), version * COUNT + index)).collect()
    };
    redefine(&jit, &batch(0)).unwrap();
    let caller =
        |index: i64| CALLER.replace("callee", &format!("f{index}")).replace("caller", &format!("caller{index}"));
    add(&jit, &(0..COUNT).map(caller).collect::<String>());
    let callers: Vec<_> = (0..COUNT).map(|index| jit.lookup::<Nullary>(&format!("caller{index}")).unwrap()).collect();
    redirected_in_use(&callers, LAST, |version| _ = redefine(&jit, &batch(version)).unwrap());
}

#[test]
fn a_function_that_failed_can_be_defined_again() {
    let jit = jit();
    redefine(&jit, CALLER).unwrap();
    assert!(jit.lookup::<Nullary>("caller").is_err());
    redefine(&jit, &constant("callee", 1)).unwrap();
    redefine(&jit, CALLER).unwrap();
    assert_eq!(call(&jit, "caller"), 101);
}

#[test]
fn old_bodies_give_their_memory_back() {
    let jit = jit();
    let cycle = |value| {
        redefine(&jit, &constant("callee", value)).unwrap();
        assert_eq!(call(&jit, "callee"), value);
    };
    cycle(0);
    cycle(1);
    let warm = jit.memory_statistics();
    (2..50).for_each(cycle);
    assert_eq!(jit.memory_statistics(), warm);
}

#[test]
fn a_handle_stays_with_its_body() {
    let jit = jit();
    redefine(&jit, &constant("callee", 1)).unwrap();
    let old = jit.lookup::<Nullary>("callee").unwrap();
    redefine(&jit, &constant("callee", 2)).unwrap();
    // SAFETY: the functions only compute.
    assert_eq!(unsafe { old.call() }, 1);
    assert_eq!(call(&jit, "callee"), 2);
}

#[test]
fn an_alias_of_a_function_that_is_removed_goes_with_it() {
    let jit = jit();
    let tracker = redefine(&jit, &constant("function", 1)).unwrap();
    let [name, alias, second] = ["function", "alias", "second"].map(|name| jit.session().intern(name));
    let stands_for = |name: &SymbolName, aliasee: &SymbolName| Alias {
        name: name.clone(),
        aliasee: aliasee.clone(),
        flags: SymbolFlags::FUNCTION,
    };
    jit.main().define_aliases(vec![stands_for(&alias, &name), stands_for(&second, &alias)]).unwrap();
    assert_eq!(call(&jit, "second"), 1);
    tracker.remove().unwrap();
    // Takes its place.
    redefine(&jit, &constant("other", 2)).unwrap();
    assert_eq!(call(&jit, "other"), 2);
    for name in ["alias", "second"] {
        let error = jit.lookup_address(name).unwrap_err().to_string();
        assert!(error.contains("removed"), "{error}");
    }
}

/// Sends calls of lazy functions nowhere.
struct Nowhere;

impl FirstCall for Nowhere {
    fn call_through(&self, _: &Arc<dyn MemoryManager>, _: LazyFunctions) -> Result<CallThrough, Error> {
        Ok(CallThrough { first: 1, stride: 1, guard: Box::new(()) })
    }
}

/// An object that defines a function which does nothing.
fn object(jit: &Jit, function: &str, linkage: Linkage) -> ObjectBytes {
    let names = cranelift_module::default_libcall_names();
    let builder = cranelift_object::ObjectBuilder::new(Arc::clone(jit.isa()), "object", names).unwrap();
    let mut module = cranelift_object::ObjectModule::new(builder);
    let id = module.declare_function(function, linkage, &module.make_signature()).unwrap();
    module.define_function_bytes(id, 16, &[0; 16], &[]).unwrap();
    ObjectBytes::from(module.finish().emit().unwrap())
}

#[test]
fn a_lazy_function_can_be_redefined_although_an_object_had_another_definition() {
    let jit = Jit::builder().first_call(Arc::new(Nowhere)).build().unwrap();
    redefine(&jit, &constant("f", 1)).unwrap();
    let address = jit.lookup_address("f").unwrap();
    let check = |value| {
        redefine(&jit, &constant("f", value)).unwrap();
        assert_eq!((jit.lookup_address("f").unwrap(), call(&jit, "f")), (address, value));
    };
    let refused = jit.add_object("refused", object(&jit, "f", Linkage::Export)).unwrap_err();
    assert!(matches!(refused, Error::DuplicateDefinitions(_)), "{refused}");
    check(2);
    // One that is left out, because it is weak.
    let weak = jit.add_object("weak", object(&jit, "f", Linkage::Preemptible)).unwrap();
    check(3);
    weak.remove().unwrap();
    check(4);
}

#[test]
fn a_function_of_an_object_can_be_redefined_again_and_again() {
    let jit = Jit::builder().first_call(Arc::new(Nowhere)).build().unwrap();
    jit.add_object("object", object(&jit, "f", Linkage::Export)).unwrap();
    // Its body stays as long as the object.
    for value in 1..5 {
        redefine(&jit, &constant("f", value)).unwrap();
        assert_eq!(call(&jit, "f"), value);
    }
}
