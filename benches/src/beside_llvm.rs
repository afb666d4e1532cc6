//! The bars that compare with LLVM 22: compilation of functions, and the bare session.

use std::process::Command;

use orcane::OptLevel;
use workloads::child::Times;
use workloads::llvm::{LlvmLevel, LlvmSubject};
use workloads::table::{self, Figures};
use workloads::{median, ratio};

use crate::Result;
use crate::bars::Bar;
use crate::measure::{Run, in_turns, interleaved};
use crate::subject::{Subject, code_bytes};
use workloads::session::{Shape, Table};

/// LLVM takes a millisecond a function.
const FUNCTIONS: usize = 1_000;
const ROUNDS: usize = 15;
const SYMBOLS: usize = 1_000_000;

/// Compilation: microseconds a function, from a module that is built to addresses, and memory; the number of functions is
/// divided by `scale`.
pub(crate) fn compilation(scale: usize) -> Result<Vec<Bar>> {
    const NONE: (Subject, OptLevel) = (Subject::Orcane(0), OptLevel::None);
    const SPEED: (Subject, OptLevel) = (Subject::Orcane(0), OptLevel::Speed);
    let two = |(_, level)| (Subject::Orcane(2), level);
    let count = FUNCTIONS / scale;
    let run = |(subject, level)| Run { subject, level, count };
    let microseconds = |times: Times| times.callable.as_secs_f64() * 1e6 / count as f64;

    let llvm = LlvmSubject::all().map(|subject| (Subject::Llvm(subject), OptLevel::None));
    let subjects: Vec<_> = [NONE, SPEED, two(NONE), two(SPEED)].into_iter().chain(llvm).collect();
    let measure = |subject| move || Ok(microseconds(run(subject).times()?));
    let times = in_turns(&subjects.iter().map(|&subject| (ROUNDS, measure(subject))).collect::<Vec<_>>())?;
    let of = |subject| subjects.iter().position(|&other| other == subject).map_or(&[][..], |at| &times[at]);
    let median_of = |subject| median(of(subject).iter().copied());

    let mut bars = vec![
        Bar::reported("us a function: Orcane, none", median_of(NONE)),
        Bar::reported("us a function: Orcane, speed", median_of(SPEED)),
    ];
    for llvm in LlvmSubject::all() {
        let subject = (Subject::Llvm(llvm), OptLevel::None);
        let name = llvm.name();
        bars.push(Bar::reported(format!("us a function: {name}"), median_of(subject)));
        let (what, ours) = match llvm.level {
            LlvmLevel::O0 => ("none", NONE),
            LlvmLevel::Default | LlvmLevel::O2 => ("speed", SPEED),
        };
        let promised = match (llvm.level, llvm.module_a_function, llvm.threads) {
            (LlvmLevel::O0, false, _) => 2.0,
            (LlvmLevel::O0, true, 0) => 5.0,
            (LlvmLevel::Default, true, 0) => 8.0,
            (LlvmLevel::O2, true, 0) => 15.0,
            _ => continue,
        };
        let ratio = ratio(of(subject), of(ours));
        bars.push(Bar::at_least(promised, format!("compile: {name} / Orcane, {what}"), ratio));
    }
    for (name, one) in [("none", NONE), ("speed", SPEED)] {
        bars.push(Bar::at_least(
            1.3,
            format!("compile: Orcane, {name}: one thread / two"),
            ratio(of(one), of(two(one))),
        ));
    }

    let above = |subject, nothing| -> Result<f64> {
        let memory = |subject| run((subject, OptLevel::None)).peak_memory();
        Ok(memory(subject)? as f64 - memory(nothing)? as f64)
    };
    let llvm = LlvmSubject { level: LlvmLevel::O0, module_a_function: false, threads: 0 };
    let llvm = above(Subject::Llvm(llvm), Subject::LlvmNothing)?;
    for (subject, name) in [(Subject::Orcane(0), "none"), (Subject::OrcaneAtDefinition, "none, at definition")] {
        let ours = above(subject, Subject::Nothing)?;
        bars.push(Bar::at_most(0.5, format!("compile: peak memory, Orcane, {name} / llvm-o0"), ours / llvm));
    }
    Ok(bars)
}

/// Bytes that are held for a function that was compiled and linked, with its unwind records, beside its code.
pub(crate) fn held() -> Result<Vec<Bar>> {
    const FEW: usize = 500;
    // LLVM's materializers and dispatcher call each other: of a chain of 3,000 modules, the stack overflows.
    const MANY: usize = 2_000;
    let each = |subject| -> Result<f64> {
        let held = |count| Run { subject, level: OptLevel::None, count }.held_memory();
        Ok((held(MANY)? as f64 - held(FEW)? as f64) / (MANY - FEW) as f64)
    };
    let code = code_bytes(OptLevel::None, FEW)? as f64 / FEW as f64;
    let llvm = |module_a_function| Subject::Llvm(LlvmSubject { level: LlvmLevel::O0, module_a_function, threads: 0 });
    Ok(vec![
        Bar::reported("bytes of code of a function, Orcane, none", code),
        Bar::at_most(512.0, "bytes held for a function beside its code", each(Subject::OrcaneUnwinding)? - code),
        Bar::reported("bytes held for a function, one module, LLVM O0", each(llvm(false))?),
        Bar::reported(
            "bytes held for a function beside its code, a module a function",
            each(Subject::OrcaneModuleAFunction)? - code,
        ),
        Bar::reported("bytes held for a function, a module a function, LLVM O0", each(llvm(true))?),
    ])
}

/// The first argument of a process that measures a table of symbols.
pub(crate) const TABLE: &str = "table";

/// What such a process prints.
pub(crate) fn report_table(count: usize) -> Result<Figures> {
    table::measure(&mut Table::new()?, &mut Table::new()?, count)
}

/// One of a table's figures.
type Figure = fn(&Figures) -> f64;

/// A million symbols: definition, lookup, removal.
pub(crate) fn symbols() -> Result<Vec<Bar>> {
    let figures = |program: &str| -> Result<Figures> {
        let program = std::env::current_exe()?.with_file_name(program);
        let output = Command::new(program).args([TABLE, &SYMBOLS.to_string()]).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        std::str::from_utf8(&output.stdout)?.parse()
    };
    let rounds = interleaved(ROUNDS, [&|| figures("benches"), &|| figures("llvm-peer")])?;
    let median_of = |figure: &dyn Fn(&[Figures; 2]) -> f64| median(rounds.iter().map(figure));
    let mut bars = vec![
        Bar::at_most(
            0.1,
            "random lookup in a million: time / LLVM's",
            median_of(&|[ours, llvm]| ours.random / llvm.random),
        ),
        Bar::at_most(60.0, "lookup of 10,000 hot names, interned, ns", median_of(&|round| round[0].hot)),
        Bar::at_most(150.0, "lookup of 10,000 hot names, by text, ns", median_of(&|round| round[0].hot_text)),
        Bar::at_least(0.85, "lookup by two threads / twice one", median_of(&|round| round[0].two_threads)),
        Bar::reported(
            "lookup by two threads in one table / in a table each",
            median_of(&|[ours, _]| ours.two_threads / ours.two_tables),
        ),
        Bar::at_most(200.0, "definition of a million, ns each", median_of(&|round| round[0].define)),
        Bar::at_most(120.0, "bytes a symbol beside its name", median_of(&|round| round[0].bytes)),
    ];
    let figures: [(&str, Figure); 9] = [
        ("intern, ns", |figures| figures.intern),
        ("define, ns", |figures| figures.define),
        ("bytes a symbol", |figures| figures.bytes),
        ("random lookup, ns", |figures| figures.random),
        ("hot lookup, interned, ns", |figures| figures.hot),
        ("hot lookup, by text, ns", |figures| figures.hot_text),
        ("two threads / twice one", |figures| figures.two_threads),
        ("two threads with a table each / twice one", |figures| figures.two_tables),
        ("define, look up, remove an absolute symbol, ns", |figures| figures.cycle),
    ];
    for (index, who) in ["Orcane", "LLVM"].into_iter().enumerate() {
        for (what, figure) in figures {
            let median = median_of(&|round| figure(&round[index]));
            bars.push(Bar::reported(format!("a million symbols, {who}: {what}"), median));
        }
    }
    Ok(bars)
}

/// Units that need each other: instructions at a size and at twice as many edges.
pub(crate) fn graphs() -> Result<Vec<Bar>> {
    let mut bars = Vec::new();
    let instructions =
        |subject, count| -> Result<f64> { Ok(Run { subject, level: OptLevel::Speed, count }.instructions()? as f64) };
    let nothing = instructions(Subject::Nothing, 0)?;
    for (shape, name, size, doubled) in [
        (Shape::Chain, "chain", 100_000, 200_000),
        (Shape::Star, "star", 100_000, 200_000),
        (Shape::Complete, "complete graph", 500, 707),
    ] {
        let once = instructions(Subject::Graph(shape), size)? - nothing;
        let twice = instructions(Subject::Graph(shape), doubled)? - nothing;
        bars.push(Bar::reported(format!("{name} of {size}: million instructions"), once / 1e6));
        bars.push(Bar::reported(format!("{name} of {doubled}: million instructions"), twice / 1e6));
        bars.push(Bar::at_most(2.2, format!("{name}: instructions at twice the edges"), twice / once));
    }
    Ok(bars)
}
