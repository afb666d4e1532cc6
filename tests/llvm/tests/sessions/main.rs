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

use history::Step::{self, Alias, Define, Erase, Link, Lookup, Remove, Tracker};
use ours::{Answer, Player};

type History = fn() -> Vec<Step>;

/// Where we differ on purpose: what it is called, why, and a history that ends in it.
const DIFFERENCES: [(&str, &str, History); 6] = [
    (
        "removal poisons",
        "what needs something that was removed fails with this reason; LLVM leaves it dangling",
        || {
            vec![
                Tracker { dylib: 0 },
                works("a", &[], Some(0)),
                link(),
                works("b", &["a"], None),
                look("b", true),
                Remove { tracker: 0 },
                look("b", true),
            ]
        },
    ),
    (
        "answers come",
        "every lookup is answered; LLVM never answers one of what was defined through a removed tracker",
        || vec![Tracker { dylib: 0 }, Remove { tracker: 0 }, works("a", &[], Some(0)), look("a", true)],
    ),
    (
        "failures go",
        "a symbol that has failed can be removed; LLVM takes it for one that is being materialized",
        || vec![works("a", &["b"], None), look("a", true), Erase { dylib: 0, name: "a".to_owned() }],
    ),
    (
        "failed lookups leave no trace",
        "LLVM loses the unit of what it found when another name is hidden from the lookup",
        || vec![unit("a", "-", &[], None), look("a", false)],
    ),
    (
        "a removal takes its own",
        "removing the tracker of a weak definition that a strong one has replaced, LLVM removes the strong one",
        || {
            vec![
                Tracker { dylib: 0 },
                unit("a", "ew", &[], Some(0)),
                works("a", &[], None),
                Remove { tracker: 0 },
                look("a", true),
            ]
        },
    ),
    (
        "what was asked for is made",
        "LLVM gives a re-export back if its lookup has failed by the time its turn comes, and makes it otherwise; which \
         of the two depends on the addresses of names",
        || {
            let name = |name: &str| (name.to_owned(), false);
            let fails = |name: &str| (name.to_owned(), "e");
            vec![
                Alias {
                    dylib: 0,
                    tracker: None,
                    name: "x".to_owned(),
                    flags: "e",
                    source: 0,
                    aliasee: "e".to_owned(),
                    all: true,
                },
                Define { dylib: 0, tracker: None, mode: "fails", symbols: vec![fails("a")], needs: Vec::new() },
                Lookup { order: vec![(0, true)], names: vec![name("x"), name("a")] },
                works("e", &[], None),
                look("x", true),
            ]
        },
    ),
];

fn unit(name: &str, flags: &'static str, needs: &[&str], tracker: Option<usize>) -> Step {
    let (symbols, needs) = (vec![(name.to_owned(), flags)], needs.iter().map(|&need| need.to_owned()).collect());
    Define { dylib: 0, tracker, mode: "works", symbols, needs }
}

fn works(name: &str, needs: &[&str], tracker: Option<usize>) -> Step {
    unit(name, "e", needs, tracker)
}

fn look(name: &str, all: bool) -> Step {
    Lookup { order: vec![(0, all)], names: vec![(name.to_owned(), true)] }
}

fn link() -> Step {
    Link { dylib: 0, other: 0, all: true }
}

#[test]
fn each_listed_difference_shows() {
    for (name, reason, history) in DIFFERENCES {
        let steps: Vec<_> = [Step::Dylib].into_iter().chain(history()).collect();
        // What depends on addresses shows in one run and not in another.
        let shows = (0..64).any(|_| judge(&steps) == Ok(Some(name)));
        assert!(shows, "{name}: {reason}\n{}", text_of(&steps));
    }
}

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
        if ours.text == theirs && !ours.hides || says_part_of(&theirs, ours) {
            continue;
        }
        let Answer { text, detail, .. } = ours;
        let disagreement = || format!("step {index}, `{}`: Orcane says {text} ({detail}), LLVM {theirs}", steps[index]);
        return difference(ours, &theirs).map(Some).ok_or_else(disagreement);
    }
    Ok(None)
}

/// Whether an error of LLVM's tells a part of ours: it has one class.
fn says_part_of(theirs: &str, ours: &Answer) -> bool {
    theirs == "failed" && ours.has_failed
}

fn difference(ours: &Answer, theirs: &str) -> Option<&'static str> {
    match theirs {
        "waits" => Some("answers come"),
        "busy" if ours.was_failed && ours.text == "ok" => Some("failures go"),
        _ if ours.outlives && theirs.starts_with("missing") => Some("a removal takes its own"),
        _ if ours.hides && theirs.starts_with("missing") => Some("failed lookups leave no trace"),
        _ if theirs.starts_with("found") && ours.dangles => Some("what was asked for is made"),
        _ if theirs.starts_with("found") && ours.because_of_removal => Some("removal poisons"),
        _ => None,
    }
}

#[test]
fn random_histories_have_llvms_answers() {
    let (cases, seed) = (setting("ORCANE_HISTORIES", 500), setting("ORCANE_SEED", 1));
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
