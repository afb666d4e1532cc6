//! Random CLIF functions, compiled by us, give what Cranelift's interpreter gives.
//!
//! A case is a file for `orcane clif-test`: some functions that call each other, and the interpreter's results as its
//! run commands. The command runs it eagerly and lazily, without optimisation and with it. `ORCANE_FUNCTIONS` says how
//! many files are tried and `ORCANE_SEED` which; a failure is shrunk and left behind as a file.
#![cfg(feature = "cli")]

#[path = "../llvm/tests/programs/choices.rs"]
mod choices;
mod generate;
#[path = "../llvm/tests/programs/limit.rs"]
mod limit;
mod operations;
mod recursion;

use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use cranelift_codegen::data_value::{DataValue, DisplayDataValues};
use cranelift_codegen::ir::{ExternalName, Function, Opcode, Type};
use cranelift_interpreter::environment::FunctionStore;
use cranelift_interpreter::interpreter::{Interpreter, InterpreterState};
use cranelift_interpreter::step::ControlFlow;
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use choices::Choices;

/// Commands for each function.
const RUNS: usize = 3;

fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// An emulator is many times slower.
const DEFAULT_CASES: u32 = if cfg!(target_arch = "aarch64") { 40 } else { 300 };

/// Seconds that a file may take, and how long one that may hang is made smaller.
const LIMIT: u32 = 60;
const MAX_SHRINK_TIME: Duration = Duration::from_secs(20 * 60);

#[test]
fn random_functions_give_what_the_interpreter_gives() {
    let (cases, seed) = (setting("ORCANE_FUNCTIONS", DEFAULT_CASES), setting("ORCANE_SEED", 1));
    println!("{cases} files, ORCANE_SEED={seed}");
    let mut seed_bytes = [0; 32];
    seed_bytes[..4].copy_from_slice(&seed.to_le_bytes());
    let max_shrink_time = MAX_SHRINK_TIME.as_millis() as u32;
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 500, max_shrink_time, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes));
    let result =
        runner.run(&vec(any::<u8>(), 0..1_500), |bytes| check(&file_of(&bytes)?, LIMIT).map_err(TestCaseError::fail));
    if let Err(TestError::Fail(reason, bytes)) = result {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("failure.clif");
        let text = file_of(&bytes).unwrap_or_default();
        std::fs::write(&path, &text).unwrap();
        panic!("{reason}\nORCANE_SEED={seed}, {}:\n{text}", path.display());
    }
    result.unwrap();
}

#[test]
fn a_wrong_result_is_seen() {
    let file = file_of(&[]).unwrap();
    check(&file, LIMIT).unwrap();
    let error = check(&file.replacen(" == ", " != ", 1), LIMIT).unwrap_err();
    assert!(error.contains("Failed test"), "{error}");
}

#[test]
fn a_hang_is_seen() {
    let endless = "function %endless() -> i8 {\nblock0:\n    jump block1\nblock1:\n    jump block1\n}\n";
    let error = check(&format!("{endless}; run: %endless() == 0\n"), 2).unwrap_err();
    assert!(error.starts_with("it takes too long"), "{error}");
}

/// The functions that bytes choose, with what the interpreter says of them.
fn file_of(bytes: &[u8]) -> Result<String, TestCaseError> {
    let mut choices = Choices::new(bytes);
    let functions = generate::functions(&mut choices);
    let mut text = String::new();
    for function in &functions {
        write!(text, "\n{function}").unwrap();
        for _ in 0..RUNS {
            let arguments: Vec<_> =
                function.signature.params.iter().map(|param| value(&mut choices, param.value_type)).collect();
            let results = interpret(&functions, function, &arguments)?;
            let arguments = arguments.iter().map(DataValue::to_string).collect::<Vec<_>>().join(", ");
            let results = DisplayDataValues(&results);
            writeln!(text, "; run: {}({arguments}) == {results}", function.name).unwrap();
        }
    }
    Ok(text)
}

fn interpret(
    functions: &[Function],
    entry: &Function,
    arguments: &[DataValue],
) -> Result<Vec<DataValue>, TestCaseError> {
    let mut store = FunctionStore::default();
    for function in functions {
        store.add(function.name.to_string(), function);
    }
    let call = || {
        let mut interpreter = Interpreter::new(InterpreterState::default().with_function_store(store));
        interpreter.call_by_name(&entry.name.to_string(), arguments)
    };
    // It panics at what it doesn't know.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) {
        Ok(Ok(ControlFlow::Return(results))) => Ok(results.into_vec()),
        Ok(Ok(other)) => Err(TestCaseError::fail(format!("does not return: {other:?}\n{entry}"))),
        Ok(Err(error)) => Err(TestCaseError::fail(format!("the interpreter: {error}\n{entry}"))),
        Err(_) => Err(TestCaseError::fail(format!("the interpreter panics\n{entry}"))),
    }
}

/// A random value, often one at an edge.
fn value(choices: &mut Choices<'_>, value_type: Type) -> DataValue {
    let mut bytes = [0u8; 16];
    match choices.below(4) {
        0 => bytes[0] = choices.below(256) as u8,
        1 => bytes.fill(0xFF),
        2 => bytes[value_type.bytes() as usize - 1] = 0x80,
        _ => bytes.iter_mut().for_each(|byte| *byte = choices.below(256) as u8),
    }
    if value_type.lane_type().is_float() && operations::bits_of_moved(value_type).is_none() {
        let floats = [0.0, 1.0, -1.0, 0.5, 1e10, -3.75, f64::INFINITY, 1e-40, 255.0, -0.0];
        let lane = value_type.lane_bits() as usize / 8;
        for place in bytes[..value_type.bytes() as usize].chunks_mut(lane) {
            let float = *choices.of(&floats);
            match lane {
                4 => place.copy_from_slice(&(float as f32).to_ne_bytes()),
                _ => place.copy_from_slice(&float.to_ne_bytes()),
            }
        }
    }
    DataValue::read_from_slice_ne(&bytes, value_type)
}

/// Runs a file at both levels, for so many seconds at most.
fn check(functions: &str, seconds: u32) -> Result<(), String> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let files = ["none", "speed"].map(|level| {
        let path = folder.join(format!("random-{level}-{:?}.clif", std::thread::current().id()));
        let text = format!("test run\nset opt_level={level}\nset enable_llvm_abi_extensions=true\n{functions}");
        std::fs::write(&path, text).unwrap();
        path
    });
    let runner = std::env::var("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER").unwrap_or_default();
    let runner = if cfg!(target_arch = "aarch64") { runner } else { String::new() };
    let mut words = runner.split_whitespace().chain([env!("CARGO_BIN_EXE_orcane"), "clif-test"]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(files).env_remove("RUST_BACKTRACE");
    limit::set(&mut command, seconds);
    let output = command.output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    Err(format!("{}: {text}", limit::told(output.status)))
}

fn name_of(name: &ExternalName) -> String {
    if let ExternalName::TestCase(name) = name { name.to_string() } else { String::new() }
}

/// The generator is worth something: it uses many instructions.
#[test]
fn many_instructions_are_tried() {
    let mut state = 1u64;
    let mut opcodes = std::collections::HashSet::new();
    let mut recursive = 0;
    for _ in 0..100 {
        let bytes: Vec<u8> = (0..1_000)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        for function in generate::functions(&mut Choices::new(&bytes)) {
            let blocks = function.layout.blocks();
            let instructions: Vec<_> = blocks.flat_map(|block| function.layout.block_insts(block)).collect();
            opcodes.extend(instructions.iter().map(|inst| function.dfg.insts[*inst].opcode()));
            let is_own = |name: &ExternalName| {
                matches!(name, ExternalName::TestCase(_)) && name_of(name) == function.name.to_string()
            };
            // As many as take in a round of themselves.
            let is_small = instructions.len() <= 24;
            recursive += u32::from(is_small && function.dfg.ext_funcs.values().any(|callee| is_own(&callee.name)));
        }
    }
    assert!(recursive > 30, "{recursive} small functions call themselves");
    assert!(opcodes.len() > 80, "{}: {opcodes:?}", opcodes.len());
    assert!(opcodes.contains(&Opcode::F16const) && opcodes.contains(&Opcode::F128const), "{opcodes:?}");
}
