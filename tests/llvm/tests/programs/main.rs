//! Same programs, same results: random Kaleidoscope programs through Orcane and through LLVM.
//!
//! Every way of compiling gives the same values, bit for bit (any NaN equals any NaN), and the host sees the same
//! calls in the same order. `ORCANE_PROGRAMS` says how many programs are tried and `ORCANE_SEED` which; the seed is
//! printed. A failure is shrunk, and left behind as a source file, which `ORCANE_PROGRAM=FILE` tries alone.

mod choices;
mod constructs;
mod generate;
mod host;
mod limit;
mod llvm;
mod orcane_jit;
mod shrink;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use generate::{Parsed, Program};
use host::Event;
use orcane_jit::{Compiled, Way};
use shrink::shrink;
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
fn judge(source: &str) -> Result<(), String> {
    let parsed = Parsed::read(source)?;
    let expected = llvm::run(&parsed, llvm::WAYS[0])?;
    for way in &llvm::WAYS[1..] {
        compare(&expected, &llvm::run(&parsed, *way)?, &format!("LLVM differs from itself: {way:?}"))?;
    }
    orcane_jit::WAYS.iter().try_for_each(|way| judge_way(&parsed, *way, &expected))
}

/// Runs a program through Orcane in one way.
fn judge_way(parsed: &Parsed, way: Way, expected: &Outcome) -> Result<(), String> {
    let mut compiled = Compiled::new(parsed, way)?;
    (0..way.runs()).try_for_each(|_| compare(expected, &compiled.run()?, &format!("{way:?}")))
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

/// The test below runs itself again, a process for each part of the programs, so that a crash is only one part's end.
const TEST: &str = "random_programs_give_what_llvm_gives";

#[test]
fn random_programs_give_what_llvm_gives() {
    if let Some(path) = std::env::var_os("ORCANE_PROGRAM") {
        return judge(&fs::read_to_string(path).unwrap()).unwrap();
    }
    let programs = setting("ORCANE_PROGRAMS", 2_000) as usize;
    let seed = setting("ORCANE_SEED", 1);
    let parts = std::thread::available_parallelism().map_or(1, usize::from);
    if let Ok(part) = std::env::var("ORCANE_PART") {
        let part: usize = part.parse().unwrap();
        return search_part(part, programs / parts + usize::from(part < programs % parts), seed);
    }
    println!("{programs} programs, ORCANE_SEED={seed}");
    (0..parts).for_each(|part| println!("part {part} is at {}", running(part).display()));
    std::thread::scope(|scope| {
        for part in 0..parts {
            scope.spawn(move || {
                let output = again("ORCANE_PART", part.to_string().as_ref()).output().unwrap();
                if output.status.signal().is_some() {
                    let bytes = fs::read(running(part).with_extension("bytes")).unwrap();
                    let apart = |bytes: &[u8]| judge_apart(part, &Program::generate(bytes).source(), SHORT_LIMIT);
                    let (bytes, reason) = shrink(bytes, limit::told(output.status), apart);
                    report(part, seed, &Failure { reason, source: Program::generate(&bytes).source() });
                }
                let text = [&*output.stdout, &*output.stderr].map(String::from_utf8_lossy).concat();
                assert!(output.status.success() && text.contains("1 passed"), "part {part}: {text}");
            });
        }
    });
}

/// The program that a part is at: if the process dies, what it died of.
fn running(part: usize) -> PathBuf {
    file(&format!("running-{part}.ks"))
}

/// The test in a process of its own, with a variable that says which part of it.
fn again(variable: &str, value: &OsStr) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", TEST, "--nocapture"]).env_remove("RUST_BACKTRACE").env(variable, value);
    command
}

/// Seconds that a program may take in all ways, and while one that may hang is made smaller.
const LIMIT: u32 = 60;
const SHORT_LIMIT: u32 = 10;

/// As [`judge`]; dying of a program is an error, and so is taking longer than so many seconds.
fn judge_apart(part: usize, source: &str, seconds: u32) -> Result<(), String> {
    let path = file(&format!("apart-{part}.ks"));
    fs::write(&path, source).map_err(|error| error.to_string())?;
    let mut command = again("ORCANE_PROGRAM", path.as_os_str());
    limit::set(&mut command, seconds);
    let status = command.output().map_err(|error| error.to_string())?.status;
    if status.success() { Ok(()) } else { Err(limit::told(status)) }
}

fn search_part(part: usize, count: usize, seed: u64) {
    let tried = search(count, [seed, part as u64], |bytes, source| {
        let running = running(part);
        let written = fs::write(running.with_extension("bytes"), bytes).and_then(|()| fs::write(running, source));
        written.map_err(|error| error.to_string())?;
        limit::end_after(LIMIT);
        judge(source)
    });
    if let Err(failure) = tried {
        report(part, seed, &failure);
    }
}

/// Leaves a failure behind, and ends with it.
fn report(part: usize, seed: u64, failure: &Failure) -> ! {
    let path = file(&format!("failure-{part}.ks"));
    fs::write(&path, &failure.source).unwrap();
    panic!("{}\nORCANE_SEED={seed} ORCANE_PROGRAM={}:\n{}", failure.reason, path.display(), failure.source)
}

/// The smallest program that was found to fail, and how.
#[derive(Debug)]
struct Failure {
    reason: String,
    source: String,
}

/// Tries `count` programs, which the seed chooses.
fn search(count: usize, seed: [u64; 2], judge: impl Fn(&[u8], &str) -> Result<(), String>) -> Result<(), Failure> {
    let mut seed_bytes = [0; 32];
    seed_bytes[..8].copy_from_slice(&seed[0].to_le_bytes());
    seed_bytes[8..16].copy_from_slice(&seed[1].to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes));
    let judge = |bytes: &[u8]| judge(bytes, &Program::generate(bytes).source());
    for _ in 0..count {
        let bytes = vec(any::<u8>(), 0..1_000).new_tree(&mut runner).expect("bytes are not refused").current();
        if let Err(reason) = judge(&bytes) {
            let (bytes, reason) = shrink(bytes, reason, judge);
            return Err(Failure { reason, source: Program::generate(&bytes).source() });
        }
    }
    Ok(())
}

/// What a failure leaves behind is enough to see it again, and little else.
#[test]
fn a_planted_bug_is_found_and_shrunk_to_a_source_that_shows_it() {
    let floor_is_fabs = |source: &str| {
        let way = orcane_jit::WAYS[0];
        let expected = llvm::run(&Parsed::read(source)?, llvm::WAYS[0])?;
        judge_way(&Parsed::read(&source.replace("floor(", "fabs("))?, way, &expected)
    };
    let Failure { reason, source } = search(200, [1, 0], |_, source| floor_is_fabs(source)).unwrap_err();
    assert_eq!(floor_is_fabs(&source), Err(reason));
    assert_eq!(judge(&source), Ok(()));
    let definitions: Vec<_> = source.lines().filter(|line| line.starts_with("def ")).collect();
    let calls: usize = definitions.iter().map(|line| line.matches("floor(").count()).sum();
    let size: usize = definitions.iter().map(|line| line.len()).sum();
    assert!(calls == 1 && size < 400, "{size} bytes, with {calls} calls of `floor`:\n{source}");
}

/// The generator is worth something: its programs call the host, each other and libm, and compute.
#[test]
fn generated_programs_do_something() {
    let mut state = 1u64;
    let mut values = std::collections::HashSet::new();
    let mut calls = 0;
    let mut promotions = 0;
    let mut constructs = constructs::Constructs::default();
    for _ in 0..50 {
        let bytes: Vec<u8> = (0..800)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        let parsed = Parsed::read(&Program::generate(&bytes).source()).unwrap();
        constructs.add(&parsed);
        for (value, events) in llvm::run(&parsed, llvm::WAYS[0]).unwrap() {
            calls += events.iter().filter(|event| event.function != "tick").count();
            values.insert(value);
            values.extend(events.iter().flat_map(|event| event.arguments.iter().copied()));
        }
        let mut tiered = Compiled::new(&parsed, orcane_jit::TIERED).unwrap();
        tiered.run().unwrap();
        promotions += tiered.promotions();
    }
    println!("{constructs:?}");
    assert_eq!(constructs.rare(10), Vec::<&str>::new(), "{constructs:?}");
    let finite = values.iter().filter(|bits| f64::from_bits(**bits).is_finite()).count();
    assert!(promotions > 50, "{promotions} functions went from the first tier to the second");
    assert!(finite > 300 && calls > 3_000, "{} values, {finite} of them finite, in {calls} calls", values.len());
}

/// A program that the process does not live through is seen by another, with what it died of.
#[test]
fn a_crash_is_seen() {
    let deep = "extern tick();\n# module 0\ndef f(x) 1 + f(x + tick());\n# module 0\ndef entry0() f(1);\nentry0();\n";
    let error = judge_apart(usize::MAX, deep, LIMIT).unwrap_err();
    assert!(error.contains("signal"), "{error}");
    let shallow = deep.replace("1 + f(x + tick())", "x + tick()");
    assert_eq!(judge_apart(usize::MAX, &shallow, LIMIT), Ok(()));
}

/// And so is one that does not end.
#[test]
fn a_hang_is_seen() {
    let endless = "# module 0\ndef entry0() for i = 0, 1 in 0;\nentry0();\n";
    assert_eq!(judge_apart(usize::MAX - 1, endless, 2), Err("it takes too long".to_owned()));
}

/// The comparison would see one operator that is compiled as another.
#[test]
fn a_wrong_operator_is_seen() {
    let outcome = |text: &str| {
        let source = Source::new("module", format!("extern host1(x);\ndef entry0() host1({text}) * 2;"));
        let items = program::parse(&source, &mut Operators::default()).unwrap();
        let parsed = Parsed { modules: vec![items], entries: 1 };
        let llvm = llvm::run(&parsed, llvm::WAYS[0]).unwrap();
        let orcane = Compiled::new(&parsed, orcane_jit::WAYS[0]).unwrap().run().unwrap();
        compare(&llvm, &orcane, "Orcane").unwrap();
        llvm
    };
    let [sum, difference, nan] = ["3 + 4", "3 - 4", "0/0"].map(outcome);
    let error = compare(&sum, &difference, "Orcane").unwrap_err();
    assert_eq!(error, "Orcane: entry0 gives 1, not 9");
    assert!(compare(&nan, &nan, "Orcane").is_ok());
}
