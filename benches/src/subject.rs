//! What is measured, each in a process of its own.

use std::str::FromStr;
use std::time::{Duration, Instant};

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Module, default_libcall_names};
use orcane::{ClifModule, CompileAt, Jit, JitBuilder, OptLevel};

use crate::Result;
use workloads::child::Times;
use workloads::functions::{expected, generate, generate_some, name};
use workloads::llvm::LlvmSubject;
use workloads::median;
use workloads::session::Shape;

/// Rounds that are not measured.
const WARM_UP: usize = 100;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Nothing: what every process costs.
    Nothing,
    /// Builds the functions and throws them away: what every other subject does first.
    Build,
    /// Builds them and calls `Context::compile` on each: what is Cranelift's own.
    Compile,
    /// cranelift-jit, from module to addresses.
    CraneliftJit,
    /// Orcane, compiling at the lookup, with this many compile threads.
    Orcane(usize),
    /// Orcane, compiling each function when it is defined, as cranelift-jit does.
    OrcaneAtDefinition,
    /// The same, with unwind tables, which cranelift-jit does not register.
    OrcaneUnwinding,
    /// As users have it, with unwind tables, each function in a module of its own.
    OrcaneModuleAFunction,
    /// One function after another, each in a module of its own: added, looked up, called and removed. The part that is
    /// told is what calling `Context::compile` on the same functions does not take.
    Cycle,
    /// Creates an empty `Jit` and drops it, many times; gives the median.
    EmptyJit,
    /// A session of units that need each other.
    Graph(Shape),
    /// LLVM, in its own program and at the level that its name says.
    Llvm(LlvmSubject),
    /// Nothing, in that program.
    LlvmNothing,
}

const NAMES: [(&str, Subject); 15] = [
    ("nothing", Subject::Nothing),
    ("build", Subject::Build),
    ("compile", Subject::Compile),
    ("cranelift-jit", Subject::CraneliftJit),
    ("orcane", Subject::Orcane(0)),
    ("orcane-2-threads", Subject::Orcane(2)),
    ("orcane-at-definition", Subject::OrcaneAtDefinition),
    ("orcane-unwinding", Subject::OrcaneUnwinding),
    ("orcane-module-a-function", Subject::OrcaneModuleAFunction),
    ("cycle", Subject::Cycle),
    ("empty-jit", Subject::EmptyJit),
    ("llvm-nothing", Subject::LlvmNothing),
    ("chain", Subject::Graph(Shape::Chain)),
    ("star", Subject::Graph(Shape::Star)),
    ("complete-graph", Subject::Graph(Shape::Complete)),
];

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = NAMES.iter().find(|(name, _)| *name == text);
        let known = known.map(|(_, subject)| *subject);
        known.or_else(|| text.parse().ok().map(Self::Llvm)).ok_or_else(|| format!("no subject {text}"))
    }
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        if let Self::Llvm(llvm) = self {
            return llvm.name();
        }
        NAMES.iter().find(|(_, subject)| *subject == self).map_or("", |(name, _)| name)
    }

    /// The file name of the program that runs it.
    pub(crate) fn program(self) -> &'static str {
        if matches!(self, Self::Llvm(_) | Self::LlvmNothing) { "llvm-peer" } else { "benches" }
    }

    pub(crate) fn run(self, level: OptLevel, count: usize) -> Result<Times> {
        match self {
            Self::Nothing => Ok(Times::default()),
            Self::Build => build(level, count),
            Self::Compile => compile(level, count),
            Self::CraneliftJit => cranelift_jit(level, count),
            Self::Orcane(threads) => orcane(same_work(level).compile_threads(threads), count, CompileAt::Lookup),
            Self::OrcaneAtDefinition => orcane(same_work(level), count, CompileAt::Definition),
            Self::OrcaneUnwinding => orcane(same_work(level).unwinding(true), count, CompileAt::Definition),
            Self::OrcaneModuleAFunction => orcane_module_a_function(level, count),
            Self::Cycle => cycle(level, count),
            Self::EmptyJit => empty_jit(),
            Self::Graph(shape) => graph(shape, count),
            Self::Llvm(_) | Self::LlvmNothing => Err("LLVM's subjects are in another program".into()),
        }
    }
}

/// Orcane's settings, but for `is_pic`, which cranelift-jit refuses.
fn isa(level: OptLevel, is_pic: bool) -> Result<OwnedTargetIsa> {
    let mut flags = settings::builder();
    for (name, value) in [
        ("opt_level", if level == OptLevel::None { "none" } else { "speed" }),
        ("enable_verifier", "false"),
        ("is_pic", if is_pic { "true" } else { "false" }),
        ("use_colocated_libcalls", "false"),
        ("preserve_frame_pointers", "true"),
        ("unwind_info", "true"),
        ("enable_probestack", "true"),
        ("probestack_strategy", "inline"),
    ] {
        flags.set(name, value)?;
    }
    Ok(cranelift_native::builder()?.finish(settings::Flags::new(flags))?)
}

pub(crate) fn jit_module(level: OptLevel) -> Result<JITModule> {
    Ok(JITModule::new(JITBuilder::with_isa(isa(level, false)?, default_libcall_names())))
}

fn build(level: OptLevel, count: usize) -> Result<Times> {
    let start = Instant::now();
    generate(&mut jit_module(level)?, count, |_, _, _| Ok(()))?;
    Ok(Times { total: start.elapsed(), callable: Duration::ZERO })
}

fn compile(level: OptLevel, count: usize) -> Result<Times> {
    let start = Instant::now();
    let isa = isa(level, true)?;
    let mut control = ControlPlane::default();
    generate(&mut jit_module(level)?, count, |_, _, context| {
        context.compile(&*isa, &mut control).map_err(|error| error.inner)?;
        Ok(())
    })?;
    Ok(Times { total: start.elapsed(), callable: Duration::ZERO })
}

fn cranelift_jit(level: OptLevel, count: usize) -> Result<Times> {
    let start = Instant::now();
    let mut module = jit_module(level)?;
    let mut ids = Vec::with_capacity(count);
    generate(&mut module, count, |module, id, context| {
        ids.push(id);
        Ok(module.define_function(id, context)?)
    })?;
    let built = Instant::now();
    module.finalize_definitions()?;
    let addresses: Vec<_> = ids.into_iter().map(|id| module.get_finalized_function(id)).collect();
    let times = Times { total: start.elapsed(), callable: built.elapsed() };
    check(addresses[count - 1] as u64, count)?;
    Ok(times)
}

/// A `Jit` that does what cranelift-jit does.
fn same_work(level: OptLevel) -> JitBuilder {
    Jit::builder().opt_level(level).verifier(false).unwinding(false)
}

fn orcane(builder: JitBuilder, count: usize, at: CompileAt) -> Result<Times> {
    let start = Instant::now();
    let jit = builder.build()?;
    let mut module = ClifModule::new("chain", jit.isa().clone(), at);
    generate(&mut module, count, |module, id, context| Ok(module.define_function(id, context)?))?;
    let built = Instant::now();
    jit.add_module(module)?;
    // The last function calls the one before, and so on: this compiles and links them all.
    let last = jit.lookup_address(&name(count - 1))?;
    let times = Times { total: start.elapsed(), callable: built.elapsed() };
    check(last, count)?;
    // Its destruction is not what is measured.
    std::mem::forget(jit);
    Ok(times)
}

fn orcane_module_a_function(level: OptLevel, count: usize) -> Result<Times> {
    let start = Instant::now();
    let jit = Jit::builder().opt_level(level).verifier(false).build()?;
    let mut modules = Vec::with_capacity(count);
    for index in 0..count {
        let mut module = jit.module("one");
        generate_some(&mut module, index..index + 1, |module, id, context| Ok(module.define_function(id, context)?))?;
        modules.push(module);
    }
    let built = Instant::now();
    for module in modules {
        jit.add_module(module)?;
    }
    let last = jit.lookup_address(&name(count - 1))?;
    let times = Times { total: start.elapsed(), callable: built.elapsed() };
    check(last, count)?;
    std::mem::forget(jit);
    Ok(times)
}

/// Bytes of the functions' code.
pub(crate) fn code_bytes(level: OptLevel, count: usize) -> Result<usize> {
    let isa = isa(level, true)?;
    let mut bytes = 0;
    generate(&mut jit_module(level)?, count, |_, _, context| {
        let code = context.compile(&*isa, &mut ControlPlane::default()).map_err(|error| error.inner)?;
        bytes += code.code_buffer().len();
        Ok(())
    })?;
    Ok(bytes)
}

/// Gives medians of one cycle. Cycles and compilations take turns of a few milliseconds: what else the machine does lasts
/// for many of them, and is in both.
fn cycle(level: OptLevel, count: usize) -> Result<Times> {
    const TURN: usize = 100;
    // What the first functions of a process cost is another measurement's.
    let jit = Jit::builder().opt_level(level).verifier(false).build()?;
    let name = name(0);
    let mut control = ControlPlane::default();
    let module = || ClifModule::new("cycle", jit.isa().clone(), CompileAt::Definition);
    let mut turns = Vec::new();
    for _ in 0..(WARM_UP + count).div_ceil(TURN) {
        let start = Instant::now();
        for _ in 0..TURN {
            generate(&mut module(), 1, |_, _, context| {
                context.compile(&**jit.isa(), &mut control).map_err(|error| error.inner)?;
                Ok(())
            })?;
        }
        let compiled = Instant::now();
        for _ in 0..TURN {
            let mut module = module();
            generate(&mut module, 1, |module, id, context| Ok(module.define_function(id, context)?))?;
            let tracker = jit.add_module(module)?;
            check(jit.lookup_address(&name)?, 1)?;
            tracker.remove()?;
        }
        turns.push((compiled.elapsed().as_secs_f64(), (compiled - start).as_secs_f64()));
    }
    let turns = &turns[WARM_UP.div_ceil(TURN)..];
    let one = |seconds| Duration::from_secs_f64(median(seconds).max(0.0) / TURN as f64);
    let total = one(turns.iter().map(|(cycles, _)| *cycles).collect::<Vec<_>>());
    let added = one(turns.iter().map(|(cycles, compilations)| cycles - compilations).collect());
    Ok(Times { total, callable: added })
}

fn graph(shape: Shape, count: usize) -> Result<Times> {
    let start = Instant::now();
    shape.run(count)?;
    let total = start.elapsed();
    Ok(Times { total, callable: total })
}

fn empty_jit() -> Result<Times> {
    let mut times = Vec::new();
    for _ in 0..10 * WARM_UP {
        let start = Instant::now();
        drop(Jit::new()?);
        times.push(start.elapsed());
    }
    let warm = &mut times[WARM_UP..];
    warm.sort_unstable();
    let median = warm[warm.len() / 2];
    Ok(Times { total: median, callable: median })
}

/// Calls the last function, and with it all of them.
fn check(address: u64, count: usize) -> Result<()> {
    const ARGUMENT: i64 = 7;
    // SAFETY: `generate` gave every function this signature and the platform's calling convention,
    // and whoever compiled it is alive until the caller returns.
    let last = unsafe { std::mem::transmute::<usize, extern "C" fn(i64) -> i64>(address as usize) };
    let (result, expected) = (last(ARGUMENT), expected(count, ARGUMENT));
    if result == expected { Ok(()) } else { Err(format!("{result} is not {expected}").into()) }
}
