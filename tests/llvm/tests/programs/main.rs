//! Same programs, same results: random Kaleidoscope programs through Orcane and through LLVM.
//!
//! Every way of compiling gives the same values, bit for bit (any NaN equals any NaN), and the host sees the same
//! calls in the same order. `ORCANE_PROGRAMS` says how many programs are tried and `ORCANE_SEED` which; the seed is
//! printed. A failure is shrunk, and left behind as a source file.

mod choices;
mod generate;
mod host;
mod llvm;
mod orcane_jit;

use std::fs;
use std::path::PathBuf;

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use generate::Program;
use host::Event;
use toy_lang::diagnostic::Source;
use toy_lang::parser::Operators;
use toy_lang::program;

/// What a way of compiling made of a program: for each entry what it gave and what the host saw.
type Outcome = Vec<(u64, Vec<Event>)>;

/// A NaN's bits are nobody's business.
fn bits(value: f64) -> u64 {
    if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Runs a program everywhere; an error says who differs.
fn judge(program: &Program) -> Result<(), String> {
    let parsed = program.parse()?;
    let expected = llvm::run(&parsed, llvm::WAYS[0])?;
    for way in &llvm::WAYS[1..] {
        compare(&expected, &llvm::run(&parsed, *way)?, &format!("LLVM differs from itself: {way:?}"))?;
    }
    for way in orcane_jit::WAYS {
        compare(&expected, &orcane_jit::run(&parsed, way)?, &format!("{way:?}"))?;
    }
    Ok(())
}

fn compare(expected: &Outcome, found: &Outcome, who: &str) -> Result<(), String> {
    for (entry, (expected, found)) in expected.iter().zip(found).enumerate() {
        if expected.0 != found.0 {
            let [expected, found] = [expected.0, found.0].map(f64::from_bits);
            return Err(format!("{who}: entry{entry} gives {found}, not {expected}"));
        }
        if expected.1 != found.1 {
            let at = expected.1.iter().zip(&found.1).take_while(|(expected, found)| expected == found).count();
            let [expected, found] = [&expected.1, &found.1].map(|events| events.get(at));
            return Err(format!("{who}: entry{entry}: call {at} of the host is {found:?}, not {expected:?}"));
        }
    }
    Ok(())
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn random_programs_give_what_llvm_gives() {
    let programs = setting("ORCANE_PROGRAMS", 2_000) as usize;
    let seed = setting("ORCANE_SEED", 1);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{programs} programs, ORCANE_SEED={seed}");
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let share = programs / threads + usize::from(thread < programs % threads);
            scope.spawn(move || try_programs(share, seed, thread));
        }
    });
}

/// Tries as many programs as `share`, which the seed and the number of the thread choose.
fn try_programs(share: usize, seed: u64, thread: usize) {
    // If the process dies, this is what it died of.
    let running = file(&format!("running-{thread}.ks"));
    let mut seed_bytes = [0; 32];
    seed_bytes[..8].copy_from_slice(&seed.to_le_bytes());
    seed_bytes[8..16].copy_from_slice(&(thread as u64).to_le_bytes());
    let config =
        Config { cases: share as u32, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes));
    let result = runner.run(&vec(any::<u8>(), 0..1_000), |bytes| {
        let program = Program::generate(&bytes);
        fs::write(&running, program.source()).map_err(|error| TestCaseError::fail(error.to_string()))?;
        judge(&program).map_err(TestCaseError::fail)
    });
    if let Err(TestError::Fail(reason, bytes)) = result {
        let source = Program::generate(&bytes).source();
        let path = file("failure.ks");
        fs::write(&path, &source).unwrap();
        panic!("{reason}\nORCANE_SEED={seed}, {}:\n{source}", path.display());
    }
    result.unwrap();
}

/// The generator is worth something: its programs call the host, each other and libm, and compute.
#[test]
fn generated_programs_do_something() {
    let mut state = 1u64;
    let mut values = std::collections::HashSet::new();
    let mut calls = 0;
    for _ in 0..50 {
        let bytes: Vec<u8> = (0..800)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        let program = Program::generate(&bytes);
        let parsed = program.parse().unwrap();
        for (value, events) in llvm::run(&parsed, llvm::WAYS[0]).unwrap() {
            calls += events.len();
            values.insert(value);
            values.extend(events.iter().flat_map(|event| event.arguments.iter().copied()));
        }
    }
    let finite = values.iter().filter(|bits| f64::from_bits(**bits).is_finite()).count();
    assert!(finite > 300 && calls > 3_000, "{} values, {finite} of them finite, in {calls} calls", values.len());
}

/// The comparison would see one operator that is compiled as another.
#[test]
fn a_wrong_operator_is_seen() {
    let outcome = |text: &str| {
        let source = Source::new("module", format!("extern host1(x);\ndef entry0() host1({text}) * 2;"));
        let items = program::parse(&source, &mut Operators::default()).unwrap();
        let parsed = generate::Parsed { modules: vec![items], entries: 1 };
        let llvm = llvm::run(&parsed, llvm::WAYS[0]).unwrap();
        let orcane = orcane_jit::run(&parsed, orcane_jit::WAYS[0]).unwrap();
        compare(&llvm, &orcane, "Orcane").unwrap();
        llvm
    };
    let [sum, difference, nan] = ["3 + 4", "3 - 4", "0/0"].map(outcome);
    let error = compare(&sum, &difference, "Orcane").unwrap_err();
    assert_eq!(error, "Orcane: entry0 gives 1, not 9");
    assert!(compare(&nan, &nan, "Orcane").is_ok());
}
