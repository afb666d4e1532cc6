//! What laziness costs: creating a lazy function, its first call, every later call, memory, and tiers; beside LLVM 22's
//! in the same run, by turns. The bars are what is promised.
//!
//! ```sh
//! cargo build --profile dist -p benches && target/dist/lazy
//! ```

use std::error::Error;
use std::fmt;
use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{AbiParam, InstBuilder, Signature, Value, types};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{Linkage, Module};
use orcane::lazy::{LazyJit, LazyJitBuilder, Tiering};
use orcane::{
    Alias, BodyMaker, ClifModule, FnPointer, Jit, MaterializationResponsibility, MaterializationUnit, OptLevel,
    RedirectableFunction, SymbolDef, SymbolFlags, SymbolName,
};
use workloads::child::memory as memory_of_this_process;
use workloads::functions::{self, name};
use workloads::steady;
use workloads::{median, ratio};

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Unary = unsafe extern "C" fn(i64) -> i64;

const FUNCTIONS: usize = 100_000;
/// LLVM's stubs take their time.
const LLVM_FUNCTIONS: usize = 20_000;
const ROUNDS: usize = 15;

/// The program: its functions, of which one in [`CALLED`] is called.
const PROGRAM: usize = 5_000;
const CALLED: usize = 100;
/// Lazy functions that are never called, for their memory.
const UNCALLED: usize = 1_000_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // What a process of its own measures.
        ["program", shape, count] => {
            let (took, result) = program(shape == "lazy", count.parse()?)?;
            println!("{} {result}", took.as_nanos());
        }
        ["memory", count] => println!("{}", bytes_uncalled(count.parse()?)?),
        ["create-and-call", count] => {
            let (created, called) = create_and_call(count.parse()?)?;
            println!("{created} {called}");
        }
        ["fibonacci", tier, argument] => {
            let (tiering, level) = match tier {
                "tiered" => (Some(Tiering::default()), OptLevel::Speed),
                "first" => (None, OptLevel::None),
                _ => (None, OptLevel::Speed),
            };
            println!("{}", run_fibonacci(tiering, level, argument.parse()?)?.as_nanos());
        }
        ["tiers"] => tiers()?.iter().for_each(|figure| println!("{figure}")),
        [] => measure()?.iter().for_each(|figure| println!("{figure}")),
        // The same for a program to read.
        ["figures"] => measure()?.iter().for_each(|figure| println!("{}", figure.fields())),
        _ => return Err("it takes no arguments".into()),
    }
    Ok(())
}

/// The numbers that another program prints.
fn ask(program: &str, arguments: &[&str]) -> Result<Vec<f64>> {
    let path = std::env::current_exe()?.with_file_name(program);
    let output = Command::new(path).args(arguments).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?)
}

/// What was measured, and what is promised as the greatest.
struct Figure {
    what: String,
    measured: f64,
    promised: Option<f64>,
}

impl Figure {
    fn new(what: impl Into<String>, measured: f64) -> Self {
        Self { what: what.into(), measured, promised: None }
    }

    fn at_most(promised: f64, what: &str, measured: f64) -> Self {
        Self { promised: Some(promised), ..Self::new(what, measured) }
    }

    /// With tabs between them.
    fn fields(&self) -> String {
        let promised = self.promised.map(|promised| format!("\t{promised}")).unwrap_or_default();
        format!("{}\t{}{promised}", self.what, self.measured)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, measured, promised } = self;
        write!(f, "{what:<60} {measured:>9.3}")?;
        let Some(promised) = promised else { return Ok(()) };
        write!(f, ", at most {promised:.3}{}", if measured <= promised { "" } else { "  MISSED" })
    }
}

fn measure() -> Result<Vec<Figure>> {
    Ok([beside_llvm()?, memory()?, tiers()?].into_iter().flatten().collect())
}

/// The program, first calls, and steady calls.
fn beside_llvm() -> Result<Vec<Figure>> {
    let count = PROGRAM.to_string();
    let subjects =
        [("lazy", "lazy"), ("lazy", "eager"), ("llvm-peer", "one-module"), ("llvm-peer", "module-a-function")];
    let mut times = subjects.map(|_| Vec::new());
    let mut results = Vec::new();
    for round in 0..ROUNDS {
        // Each round begins with another one.
        for turn in 0..subjects.len() {
            let at = (round + turn) % subjects.len();
            let (program, shape) = subjects[at];
            let [took, result] = ask(program, &["program", shape, &count])?[..] else {
                return Err("no figures".into());
            };
            times[at].push(took / 1e6);
            results.push(result);
        }
    }
    if results.iter().any(|result| *result != results[0]) {
        return Err(format!("the programs give {results:?}").into());
    }
    let mut measured: Vec<_> = subjects
        .iter()
        .zip(&times)
        .map(|((program, shape), times)| {
            let median = median(times.iter().copied());
            Figure::new(format!("{PROGRAM} functions, {shape} ({program}), ms"), median)
        })
        .collect();
    let [lazy, eager, one_module, module_a_function] = &times;
    measured.extend([
        Figure::at_most(1.0 / 20.0, "program, lazy / LLLazyJIT on one module", ratio(lazy, one_module)),
        Figure::at_most(1.0 / 3.0, "program, lazy / LLLazyJIT on a module a function", ratio(lazy, module_a_function)),
        Figure::at_most(1.0 / 5.0, "program, lazy / eager", ratio(lazy, eager)),
    ]);

    let mut figures: [Vec<f64>; 10] = Default::default();
    let (ours, theirs) = (FUNCTIONS.to_string(), LLVM_FUNCTIONS.to_string());
    for round in 0..ROUNDS {
        let ask_llvm = || ask("llvm-peer", &["calls", &theirs]);
        // Each in turn is the first.
        let early = if round % 2 == 1 { Some(ask_llvm()?) } else { None };
        let [created, called] = ask("lazy", &["create-and-call", &ours])?[..] else { return Err("no figures".into()) };
        let Steady { slot, pointer, direct, is_final } = steady_state()?;
        let llvm = early.map_or_else(ask_llvm, Ok)?;
        let ours = [created, called, slot, pointer, direct, is_final];
        for (figures, figure) in figures.iter_mut().zip(ours.into_iter().chain(llvm)) {
            figures.push(figure);
        }
    }
    let [created, called, slot, pointer, direct, is_final, llvm_created, llvm_called, llvm_stub, llvm_direct] =
        &figures;
    let of = |what: &str, figures: &Vec<f64>| Figure::new(what, median(figures.iter().copied()));
    measured.extend([
        of("creating a lazy function, ns", created),
        of("creating a lazy function, LLVM, ns", llvm_created),
        of("first call, target ready, ns", called),
        of("first call, target ready, LLVM, ns", llvm_called),
        of("call through a slot, ns", slot),
        of("call through a stub, LLVM, ns", llvm_stub),
        of("call through a pointer, ns", pointer),
        of("direct call, ns", direct),
        of("call of a final function of another module, ns", is_final),
        of("direct call, LLVM, ns", llvm_direct),
        Figure::at_most(0.25, "creating / LLVM's", ratio(created, llvm_created)),
        Figure::at_most(0.5, "first call / LLVM's", ratio(called, llvm_called)),
        Figure::at_most(1.05, "call through a slot / through a pointer", ratio(slot, pointer)),
        Figure::at_most(1.05, "call of a final function / direct call", ratio(is_final, direct)),
    ]);
    Ok(measured)
}

fn memory() -> Result<Vec<Figure>> {
    let [bytes] = ask("lazy", &["memory", &UNCALLED.to_string()])?[..] else { return Err("no figure".into()) };
    Ok(vec![Figure::at_most(200.0, "bytes of a lazy function that was never called", bytes)])
}

fn tiers() -> Result<Vec<Figure>> {
    /// One takes less than a millisecond.
    const SHORT_ROUNDS: usize = 200;
    let fibonacci = |tiering: Option<Tiering>, level, argument| -> Result<f64> {
        Ok(run_fibonacci(tiering, level, argument)?.as_secs_f64() * 1e3)
    };
    // By turns, and each other round in the other order.
    let beside = |rounds, argument, alone| -> Result<(Vec<f64>, Vec<f64>)> {
        let mut times = (Vec::new(), Vec::new());
        for round in 0..rounds {
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    times.0.push(fibonacci(None, alone, argument)?);
                } else {
                    times.1.push(fibonacci(Some(Tiering::default()), OptLevel::Speed, argument)?);
                }
            }
        }
        Ok(times)
    };
    let (speed, promoted) = beside(ROUNDS, 32, OptLevel::Speed)?;
    let (first_tier, first) = beside(SHORT_ROUNDS, 5, OptLevel::None)?;
    let of = |what: &str, times: &Vec<f64>| Figure::new(what, median(times.iter().copied()));
    Ok(vec![
        of("fib(32), speed, ms", &speed),
        of("fib(32), tiered, ms", &promoted),
        of("fib(5), not optimised, ms", &first_tier),
        of("fib(5), tiered, ms", &first),
        Figure::at_most(1.25, "fib(32), tiered / speed", ratio(&promoted, &speed)),
        Figure::at_most(1.05, "fib(5), tiered / the first tier alone", ratio(&first, &first_tier)),
    ])
}

/// How long a program takes from nothing to its result, and that. Its CLIF is there before, as LLVM's peer has its IR:
/// the clock stands still while it is built.
fn program(lazy: bool, count: usize) -> Result<(Duration, i64)> {
    let start = Instant::now();
    let builder = Jit::builder().opt_level(OptLevel::None).verifier(false);
    let jit: Jit = if lazy { LazyJitBuilder::new(builder).build()?.into() } else { builder.build()? };
    let set_up = start.elapsed();
    let mut module = jit.module("program");
    if lazy {
        module = module.redirectable();
    }
    for index in 0..count {
        define(&mut module, &name(index), |_, builder, argument| {
            let result = functions::compute(builder, index as i64, argument);
            builder.ins().return_(&[result]);
        })?;
    }
    let signature = unary(&module);
    define(&mut module, "main_function", |module, builder, argument| {
        let mut last = argument;
        for index in (0..count).step_by(CALLED) {
            // Declared as it is defined.
            let Ok(id) = module.declare_function(&name(index), Linkage::Export, &signature) else { return };
            let callee = module.declare_func_in_func(id, builder.func);
            let call = builder.ins().call(callee, &[last]);
            last = builder.inst_results(call)[0];
        }
        builder.ins().return_(&[last]);
    })?;
    let start = Instant::now();
    if lazy {
        jit.redefine(module)?;
    } else {
        jit.add_module(module)?;
        let names: Vec<_> = (0..count).map(|index| jit.session().intern(&name(index))).collect();
        jit.session().lookup(&jit.search_order(), names)?;
    }
    // SAFETY: the address of a function of this type.
    let function: Unary = unsafe { std::mem::transmute(jit.lookup_address("main_function")? as usize) };
    // SAFETY: the function only computes.
    let result = unsafe { function(7) };
    Ok((set_up + start.elapsed(), result))
}

fn unary(module: &ClifModule) -> Signature {
    let mut signature = module.make_signature();
    signature.params.push(AbiParam::new(types::I64));
    signature.returns.push(AbiParam::new(types::I64));
    signature
}

/// Bytes of a lazy function that was never called: stub, slot, trampoline, tables and symbol, without its name's
/// text and what it is made from.
fn bytes_uncalled(count: usize) -> Result<f64> {
    let jit = LazyJit::new()?;
    let names: Vec<_> = (0..count).map(|index| jit.session().intern(&name(index))).collect();
    let before = used_memory()?;
    let functions = names.iter().map(|name| RedirectableFunction {
        name: name.clone(),
        signature: None,
        body: Box::new(|body| Box::new(Ready(body.clone()))),
    });
    jit.redefine_with(functions.collect())?;
    jit.session().lookup(&jit.search_order(), names.clone())?;
    let bytes = (used_memory()? - before) as f64 / count as f64;
    // What a function is made from is the user's: a maker that owns nothing takes no memory but its place.
    Ok(bytes - size_of::<BodyMaker>() as f64)
}

/// Bytes of this process, without what the allocator has and nobody uses.
fn used_memory() -> Result<u64> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: gives pages back that are not in use.
    unsafe {
        libc::malloc_trim(0)
    };
    memory_of_this_process()
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

/// Nanoseconds that it takes to create a function that stands for another, stub and trampoline included, and to call
/// it for the first time.
fn create_and_call(count: usize) -> Result<(f64, f64)> {
    let jit = LazyJit::new()?;
    jit.define_function("increment", increment as extern "C" fn(i64) -> i64)?;
    let increment = jit.session().intern("increment");
    let names: Vec<_> = (0..count).map(|index| jit.session().intern(&format!("f{index}"))).collect();
    let start = Instant::now();
    let aliases =
        names.iter().map(|name| Alias { name: name.clone(), aliasee: increment.clone(), flags: SymbolFlags::FUNCTION });
    jit.lazy_re_exports(jit.main(), &jit.search_order(), aliases.collect())?;
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

/// A loop that calls `callee` as often as its argument says: by its name, or through a pointer to its body.
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

/// Nanoseconds of a call.
struct Steady {
    /// Of a function that can be redirected.
    slot: f64,
    pointer: f64,
    /// Of one of the same module.
    direct: f64,
    /// Of one of another module whose body is final.
    is_final: f64,
}

fn steady_state() -> Result<Steady> {
    let define_callee = |module: &mut ClifModule| {
        define(module, "callee", |_, builder, value| {
            builder.ins().return_(&[value]);
        })
    };
    let jit = LazyJit::new()?;
    let mut callee = jit.module("callee").redirectable();
    define_callee(&mut callee)?;
    jit.redefine(callee)?;
    let body = jit.lookup::<Unary>("callee")?;
    let mut loops = jit.module("loops");
    define_loop(&mut loops, "through_slot", None)?;
    define_loop(&mut loops, "through_pointer", Some(body.address()))?;
    jit.add_module(loops)?;

    let plain = LazyJit::new()?;
    let mut both = plain.module("both");
    define_callee(&mut both)?;
    define_loop(&mut both, "directly", None)?;
    plain.add_module(both)?;
    // Its body is ready when this is compiled.
    plain.lookup_address("callee")?;
    let mut apart = plain.module("apart");
    define_loop(&mut apart, "final", None)?;
    plain.add_module(apart)?;

    let loop_of = |jit: &Jit, name| -> Result<Unary> {
        // SAFETY: the address of a function of this type.
        Ok(unsafe { std::mem::transmute::<usize, Unary>(jit.lookup_address(name)? as usize) })
    };
    let loops = [
        loop_of(&jit, "through_slot")?,
        loop_of(&jit, "through_pointer")?,
        loop_of(&plain, "directly")?,
        loop_of(&plain, "final")?,
    ];
    // SAFETY: they call a function that returns its argument; both JITs are alive.
    let [slot, pointer, direct, is_final] = unsafe { steady::calls(loops) };
    Ok(Steady { slot, pointer, direct, is_final })
}

/// How long it takes from a lazy function of CLIF to its result, in a JIT that has run another: what each makes at its
/// creation and what with its first function is not compared.
fn run_fibonacci(tiering: Option<Tiering>, level: OptLevel, argument: i64) -> Result<Duration> {
    let mut builder = LazyJitBuilder::new(Jit::builder().opt_level(level).verifier(false));
    if let Some(tiering) = tiering {
        builder = builder.tiers(tiering);
    }
    let jit = builder.build()?;
    let run = |module, name| -> Result<()> {
        jit.redefine(module)?;
        // SAFETY: the address of a function of this type.
        let function: Unary = unsafe { std::mem::transmute(jit.lookup_address(name)? as usize) };
        // SAFETY: the function only computes.
        black_box(unsafe { function(argument) });
        Ok(())
    };
    let mut another = jit.module("another").redirectable();
    define(&mut another, "another", |_, builder, value| _ = builder.ins().return_(&[value]))?;
    run(another, "another")?;
    let mut module = jit.module("fibonacci").redirectable();
    define_fibonacci(&mut module)?;
    let start = Instant::now();
    run(module, "fib")?;
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
