//! What laziness costs: creating a lazy function, its first call, every later call, and tiers.
//!
//! ```sh
//! cargo run --release -p benches --bin lazy
//! ```

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{AbiParam, InstBuilder, Value, types};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{Linkage, Module};
use orcane::lazy::{LazyJit, LazyJitBuilder, Tiering};
use orcane::{
    ClifModule, FnPointer, Jit, MaterializationResponsibility, MaterializationUnit, OptLevel, RedirectableFunction,
    SymbolDef, SymbolName,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Unary = unsafe extern "C" fn(i64) -> i64;

const FUNCTIONS: usize = 100_000;
const CALLS: i64 = 100_000_000;
const ROUNDS: usize = 7;

fn main() -> Result<()> {
    let (mut creation, mut first_call) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (created, called) = create_and_call(FUNCTIONS)?;
        creation.push(created);
        first_call.push(called);
    }
    println!("creating a lazy function   {:>9.1} ns", median(creation));
    println!("first call, target ready   {:>9.1} ns", median(first_call));
    let (mut slot, mut pointer) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (through_slot, through_pointer) = steady_state()?;
        slot.push(through_slot);
        pointer.push(through_pointer);
    }
    println!("call through a slot        {:>9.2} ns", median(slot));
    println!("call through a pointer     {:>9.2} ns", median(pointer));
    let fibonacci = |tiering: Option<Tiering>, level, argument| -> Result<f64> {
        let times = (0..ROUNDS).map(|_| Ok(run_fibonacci(tiering.clone(), level, argument)?.as_secs_f64()));
        Ok(median(times.collect::<Result<_>>()?) * 1e3)
    };
    let tiered = Some(Tiering::default());
    println!("fib(32), speed             {:>9.3} ms", fibonacci(None, OptLevel::Speed, 32)?);
    println!("fib(32), tiered            {:>9.3} ms", fibonacci(tiered.clone(), OptLevel::Speed, 32)?);
    println!("fib(5), not optimised      {:>9.3} ms", fibonacci(None, OptLevel::None, 5)?);
    println!("fib(5), tiered             {:>9.3} ms", fibonacci(tiered, OptLevel::Speed, 5)?);
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

extern "C" fn increment(value: i64) -> i64 {
    value + 1
}

/// A body that is there already.
struct Ready(SymbolName);

impl MaterializationUnit for Ready {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        let definition = SymbolDef::at((increment as extern "C" fn(i64) -> i64).address());
        if responsibility.resolve(&[(self.0, definition)]).is_ok() {
            _ = responsibility.emit(&[]);
        }
    }

    fn discard(&mut self, _: &SymbolName) {}
}

/// Nanoseconds that it takes to create a function, stub and trampoline included, and to call it for
/// the first time.
fn create_and_call(count: usize) -> Result<(f64, f64)> {
    let jit = LazyJit::new()?;
    let names: Vec<_> = (0..count).map(|index| jit.session().intern(&format!("f{index}"))).collect();
    let start = Instant::now();
    let functions = names.iter().map(|name| RedirectableFunction {
        name: name.clone(),
        signature: None,
        body: Box::new(|body| Box::new(Ready(body.clone()))),
    });
    jit.redefine_with(functions.collect())?;
    let found = jit.session().lookup(&jit.search_order(), names)?;
    let created = start.elapsed();
    let start = Instant::now();
    for symbol in &found {
        // SAFETY: calls end up in `increment`.
        let function: Unary = unsafe { std::mem::transmute(symbol.definition.address as usize) };
        // SAFETY: as above.
        black_box(unsafe { function(1) });
    }
    Ok((per(created, count as f64), per(start.elapsed(), count as f64)))
}

fn per(time: Duration, count: f64) -> f64 {
    time.as_secs_f64() * 1e9 / count
}

/// A function of one number.
fn define(
    module: &mut ClifModule,
    name: &str,
    body: impl FnOnce(&mut ClifModule, &mut FunctionBuilder<'_>, Value),
) -> Result<()> {
    let mut signature = module.make_signature();
    signature.params.push(AbiParam::new(types::I64));
    signature.returns.push(AbiParam::new(types::I64));
    let id = module.declare_function(name, Linkage::Export, &signature)?;
    let mut context = module.make_context();
    context.func.signature = signature;
    let mut scratch = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut scratch);
    let block = builder.create_block();
    builder.append_block_params_for_function_params(block);
    builder.switch_to_block(block);
    let argument = builder.block_params(block)[0];
    body(module, &mut builder, argument);
    builder.seal_all_blocks();
    builder.finalize(module.target_config());
    module.define_function(id, &mut context)?;
    Ok(())
}

/// A loop that calls `callee` as often as its argument says: through its slot, or through a pointer
/// to its body.
fn define_loop(module: &mut ClifModule, name: &str, callee: Option<u64>) -> Result<()> {
    let signature = {
        let mut signature = module.make_signature();
        signature.params.push(AbiParam::new(types::I64));
        signature.returns.push(AbiParam::new(types::I64));
        signature
    };
    let id = module.declare_function("callee", Linkage::Import, &signature)?;
    define(module, name, |module, builder, count| {
        let callee_ref = module.declare_func_in_func(id, builder.func);
        let signature = builder.import_signature(signature.clone());
        let (again, end) = (builder.create_block(), builder.create_block());
        let left = builder.append_block_param(again, types::I64);
        builder.ins().jump(again, &[count.into()]);
        builder.switch_to_block(again);
        match callee {
            None => _ = builder.ins().call(callee_ref, &[left]),
            Some(address) => {
                let address = builder.ins().iconst(types::I64, address.cast_signed());
                builder.ins().call_indirect(signature, address, &[left]);
            }
        }
        let one = builder.ins().iconst(types::I64, 1);
        let rest = builder.ins().isub(left, one);
        builder.ins().brif(rest, again, &[rest.into()], end, &[]);
        builder.switch_to_block(end);
        builder.ins().return_(&[count]);
    })
}

/// Nanoseconds of a call through a slot, and of one through a pointer.
fn steady_state() -> Result<(f64, f64)> {
    let jit = LazyJit::new()?;
    let mut callee = jit.module("callee").redirectable();
    define(&mut callee, "callee", |_, builder, value| {
        builder.ins().return_(&[value]);
    })?;
    jit.redefine(callee)?;
    let body = jit.lookup::<Unary>("callee")?;
    let mut loops = jit.module("loops");
    define_loop(&mut loops, "through_slot", None)?;
    define_loop(&mut loops, "through_pointer", Some(body.address()))?;
    jit.add_module(loops)?;
    let time = |name| -> Result<f64> {
        let function = jit.lookup::<Unary>(name)?;
        let start = Instant::now();
        // SAFETY: the function only computes.
        black_box(unsafe { function.call(CALLS) });
        Ok(per(start.elapsed(), CALLS as f64))
    };
    Ok((time("through_slot")?, time("through_pointer")?))
}

/// How long it takes from a lazy function of CLIF to its result.
fn run_fibonacci(tiering: Option<Tiering>, level: OptLevel, argument: i64) -> Result<Duration> {
    let mut builder = LazyJitBuilder::new(Jit::builder().opt_level(level).verifier(false));
    if let Some(tiering) = tiering {
        builder = builder.tiers(tiering);
    }
    let jit = builder.build()?;
    let mut module = jit.module("fibonacci").redirectable();
    define_fibonacci(&mut module)?;
    let start = Instant::now();
    jit.redefine(module)?;
    // SAFETY: the address of a function of this type.
    let function: Unary = unsafe { std::mem::transmute(jit.lookup_address("fib")? as usize) };
    // SAFETY: the function only computes.
    black_box(unsafe { function(argument) });
    Ok(start.elapsed())
}

fn define_fibonacci(module: &mut ClifModule) -> Result<()> {
    let mut signature = module.make_signature();
    signature.params.push(AbiParam::new(types::I64));
    signature.returns.push(AbiParam::new(types::I64));
    let own = module.declare_function("fib", Linkage::Export, &signature)?;
    define(module, "fib", |module, builder, value| {
        let own = module.declare_func_in_func(own, builder.func);
        let (small, large) = (builder.create_block(), builder.create_block());
        let two = builder.ins().iconst(types::I64, 2);
        let is_small = builder.ins().icmp(IntCC::SignedLessThan, value, two);
        builder.ins().brif(is_small, small, &[], large, &[]);
        builder.switch_to_block(small);
        builder.ins().return_(&[value]);
        builder.switch_to_block(large);
        let one = builder.ins().iconst(types::I64, 1);
        let mut results = [value; 2];
        for (result, less) in results.iter_mut().zip([one, two]) {
            let argument = builder.ins().isub(value, less);
            let call = builder.ins().call(own, &[argument]);
            *result = builder.inst_results(call)[0];
        }
        let sum = builder.ins().iadd(results[0], results[1]);
        builder.ins().return_(&[sum]);
    })
}
