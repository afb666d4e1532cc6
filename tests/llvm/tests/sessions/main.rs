//! Same sessions, same answers: random histories through Orcane's session and through LLVM's.
//!
//! `ORCANE_HISTORIES` says how many are tried and `ORCANE_SEED` which. LLVM plays in a process of its own: where it
//! does not live to answer, ours has to answer all the same.

#[path = "../programs/choices.rs"]
mod choices;
mod history;
mod ours;

use std::io::Write;
use std::process::{Command, Stdio};

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use history::Step;
use ours::{Answer, Player};

/// Where we differ on purpose: what it is called, and why. Each has a history of its own below.
const DIFFERENCES: [(&str, &str); 1] =
    [("removal poisons", "what needed something that was removed fails with this reason; LLVM leaves it dangling")];

fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn text_of(steps: &[Step]) -> String {
    steps.iter().map(|step| format!("{step}\n")).collect()
}

fn play_llvm(steps: &[Step]) -> Vec<String> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_llvm-history"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It may end before it has read all.
    _ = child.stdin.take().unwrap().write_all(text_of(steps).as_bytes());
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn play_ours(steps: &[Step]) -> Vec<Answer> {
    let mut player = Player::new();
    steps.iter().map(|step| player.play(step)).collect()
}

/// Compares up to the first listed difference, after which the sessions are not the same any more.
fn judge(steps: &[Step]) -> Result<Option<&'static str>, String> {
    let ours = play_ours(steps);
    for (index, (ours, theirs)) in ours.iter().zip(play_llvm(steps)).enumerate() {
        if ours.text == theirs {
            continue;
        }
        if ours.because_of_removal && theirs.starts_with("found") {
            return Ok(Some(DIFFERENCES[0].0));
        }
        return Err(format!("step {index}, `{}`: Orcane says {}, LLVM {theirs}", steps[index], ours.text));
    }
    Ok(None)
}

#[test]
fn random_histories_have_llvms_answers() {
    let (cases, seed) = (setting("ORCANE_HISTORIES", 2_000), setting("ORCANE_SEED", 1));
    println!("{cases} histories, ORCANE_SEED={seed}");
    let mut seed_bytes = [0; 32];
    seed_bytes[..4].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 3_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes));
    let result = runner.run(&vec(any::<u8>(), 0..300), |bytes| {
        judge(&history::generate(&bytes)).map(|_| ()).map_err(TestCaseError::fail)
    });
    if let Err(TestError::Fail(reason, bytes)) = result {
        panic!("{reason}\nORCANE_SEED={seed}\n{}", text_of(&history::generate(&bytes)));
    }
    result.unwrap();
}
