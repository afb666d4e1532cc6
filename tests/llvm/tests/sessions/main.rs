//! Same sessions, same answers: random histories through Orcane's session and through LLVM's.
//!
//! `ORCANE_HISTORIES` says how many are tried and `ORCANE_SEED` which. A failure is shrunk, and left behind as a file,
//! which `ORCANE_HISTORY=FILE` tries alone. LLVM plays in a process of its own: where it
//! does not live to answer, ours has to answer all the same.

#[path = "../programs/choices.rs"]
mod choices;
mod difference;
mod history;
#[allow(dead_code, reason = "another test uses the rest")]
#[path = "../programs/limit.rs"]
mod limit;
mod ours;
mod past;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use difference::{DIFFERENCES, REUSE};
use history::Step;
use ours::{Answer, Player};
use past::Past;

#[test]
fn each_listed_difference_shows() {
    for difference in &DIFFERENCES {
        let steps = (difference.history)();
        let place = || format!("{}: {}\n{}", difference.name, difference.reason, text_of(&steps));
        let judged = judge(&steps).unwrap_or_else(|disagreement| panic!("{disagreement}\n{}", place()));
        assert_eq!(judged.difference, Some((difference.shows_at, difference.name)), "{}", place());
        let (ours, llvm) = (play_ours(&steps).unwrap(), play_llvm(&steps));
        let ours = ours.last().unwrap();
        let (text, detail) = difference.ours;
        assert!(ours.text == text && ours.detail.contains(detail), "{ours:?}\n{}", place());
        assert_eq!(llvm.answers.last().map(String::as_str), Some(difference.llvm), "{}", place());
        let is_row = |row: &str| row.split_once('-').is_some_and(|(_, number)| number.parse::<u8>().is_ok());
        assert!(difference.row.is_none_or(is_row), "{}", place());
    }
}

fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn text_of(steps: &[Step]) -> String {
    steps.iter().map(|step| format!("{step}\n")).collect()
}

fn steps_of(text: &str) -> Vec<Step> {
    let step = |line| Step::parse(line).unwrap_or_else(|| panic!("no step: {line}"));
    text.lines().map(step).collect()
}

/// What LLVM said, and whether it lived to say all.
struct Played {
    answers: Vec<String>,
    lived: bool,
}

/// Seconds that a history may take: many times what the longest takes on a busy machine.
const LIMIT: u32 = 60;

fn play_llvm(steps: &[Step]) -> Played {
    play_by(&mut Command::new(env!("CARGO_BIN_EXE_llvm-history")), steps, LIMIT)
}

/// Where a player hangs, it does not live to say more.
fn play_by(player: &mut Command, steps: &[Step], seconds: u32) -> Played {
    limit::set(player, seconds);
    let mut child = player.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // It may end before it has read all.
    _ = child.stdin.take().unwrap().write_all(text_of(steps).as_bytes());
    let output = child.wait_with_output().unwrap();
    let answers: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    let lived = output.status.success();
    let status = output.status;
    assert!(lived || status.signal().is_some() || limit::is_over(status), "LLVM's player ends with {status}");
    assert!(answers.len() == steps.len() || !lived, "{} answers for\n{}", answers.len(), text_of(steps));
    Played { answers, lived }
}

/// Our answers; an error says where there is none.
fn play_ours(steps: &[Step]) -> Result<Vec<Answer>, String> {
    let mut player = Player::new();
    answers_within(Duration::from_secs(LIMIT.into()), steps, move |step| player.play(step))
}

/// What a thread answers to each step, each within a time. One that hangs is left behind.
fn answers_within(
    limit: Duration,
    steps: &[Step],
    mut answer: impl FnMut(&Step) -> Answer + Send + 'static,
) -> Result<Vec<Answer>, String> {
    let (sender, receiver) = mpsc::channel();
    let own = steps.to_vec();
    let thread = std::thread::spawn(move || own.iter().try_for_each(|step| sender.send(answer(step))));
    let mut answers = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        match receiver.recv_timeout(limit) {
            Ok(answer) => answers.push(answer),
            Err(RecvTimeoutError::Timeout) => return Err(format!("step {index}, `{step}`: Orcane does not answer")),
            // It has panicked.
            Err(RecvTimeoutError::Disconnected) => std::panic::resume_unwind(thread.join().unwrap_err()),
        }
    }
    // What the end of a session does is part of it.
    match thread.join() {
        Ok(_) => Ok(answers),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// What came of a comparison.
#[derive(Debug)]
struct Judged {
    /// How many answers were compared.
    compared: usize,
    /// The first listed difference, and the step where it showed: from there on the sessions are not the same any more.
    difference: Option<(usize, &'static str)>,
    /// Whether all of the history was compared.
    is_whole: bool,
}

/// Compares up to the first listed difference.
fn judge(steps: &[Step]) -> Result<Judged, String> {
    let (ours, llvm) = (play_ours(steps)?, play_llvm(steps));
    for (index, (ours, theirs)) in ours.iter().zip(&llvm.answers).enumerate() {
        if agree(ours, theirs) && ours.hides.is_empty() {
            continue;
        }
        let Answer { text, detail, .. } = ours;
        let disagreement = || format!("step {index}, `{}`: Orcane says {text} ({detail}), LLVM {theirs}", steps[index]);
        let past = Past { steps: &steps[..=index], answers: &llvm.answers };
        let name = match difference::of(ours, theirs, past) {
            Some(name) => name,
            None if ours.reuses => {
                with_new_trackers(past, ours)?;
                REUSE
            }
            None => return Err(disagreement()),
        };
        return Ok(Judged { compared: index + 1, difference: Some((index, name)), is_whole: false });
    }
    Ok(Judged { compared: llvm.answers.len(), difference: None, is_whole: llvm.lived })
}

fn agree(ours: &Answer, llvm: &str) -> bool {
    // LLVM tells a part of our error: it has one class.
    ours.text == llvm || llvm == "failed" && ours.has_failed
}

/// Where a tracker was used again, what LLVM answers to a history's last step if none is has to be what we do.
fn with_new_trackers(past: Past<'_>, ours: &Answer) -> Result<(), String> {
    let steps = history::with_new_trackers(past.steps);
    let llvm = play_llvm(&steps);
    let Some(theirs) = llvm.answers.get(steps.len() - 1) else { return Ok(()) };
    let past = Past { steps: &steps, answers: &llvm.answers };
    if agree(ours, theirs) || difference::of(ours, theirs, past).is_some() {
        return Ok(());
    }
    Err(format!("with new trackers Orcane says {} ({}), LLVM {theirs}:\n{}", ours.text, ours.detail, text_of(&steps)))
}

#[test]
fn random_histories_have_llvms_answers() {
    if let Some(path) = std::env::var_os("ORCANE_HISTORY") {
        let text = std::fs::read_to_string(path).unwrap();
        println!("{:?}", judge(&steps_of(&text)).unwrap());
        return;
    }
    let (cases, seed) = (setting("ORCANE_HISTORIES", 500), setting("ORCANE_SEED", 1));
    println!("{cases} histories, ORCANE_SEED={seed}");
    let mut seed_bytes = [0; 32];
    seed_bytes[..4].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 3_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes));
    let counted = RefCell::new((0, 0, 0, BTreeMap::new()));
    let result = runner.run(&vec(any::<u8>(), 0..300), |bytes| {
        let steps = history::generate(&bytes);
        let judged = judge(&steps).map_err(TestCaseError::fail)?;
        let (histories, compared, whole, differences) = &mut *counted.borrow_mut();
        *histories += 1;
        *compared += judged.compared;
        *whole += u32::from(judged.is_whole);
        if let Some((_, name)) = judged.difference {
            *differences.entry(name).or_insert(0) += 1;
        }
        Ok(())
    });
    if let Err(TestError::Fail(reason, bytes)) = result {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("failure.history");
        let text = text_of(&history::generate(&bytes));
        std::fs::write(&path, &text).unwrap();
        panic!("{reason}\nORCANE_SEED={seed} ORCANE_HISTORY={}:\n{text}", path.display());
    }
    result.unwrap();
    let (histories, compared, whole, differences) = counted.into_inner();
    let told = format!("{histories} histories, {compared} answers compared, {whole} to the end, {differences:?}");
    println!("{told}");
    // Of a few, all may end early.
    assert!(histories == cases && (cases < 100 || compared >= 25 * cases as usize && whole >= cases / 2), "{told}");
}

/// A disagreement that is not in the list is one.
#[test]
fn a_wrong_answer_is_seen() {
    let of = |ours: &Answer, llvm: &str| difference::of(ours, llvm, Past { steps: &[], answers: &[] });
    let answer = |text: &str| Answer { text: text.to_owned(), ..Answer::default() };
    assert!(agree(&answer("found a=1"), "found a=1"));
    for (ours, llvm) in
        [("found a=1", "found a=2"), ("missing a", "found a=1"), ("found a=1", "missing a"), ("ok", "waits")]
    {
        assert!(!agree(&answer(ours), llvm) && of(&answer(ours), llvm).is_none(), "{ours}, {llvm}");
    }
    let outlives = Answer { outlives: vec!["a".to_owned()], ..answer("missing b") };
    assert_eq!(of(&outlives, "missing a b"), Some("a removal takes its own"));
    assert_eq!(of(&outlives, "missing b c"), None);
    assert_eq!(of(&outlives, "missing a"), None);
    let outlives = Answer { outlives: vec!["a".to_owned()], ..answer("found a=1 b=2") };
    assert_eq!(of(&outlives, "found b=2"), Some("a removal takes its own"));
    assert_eq!(of(&outlives, "found a=3 b=2"), Some("a removal takes its own"));
    assert_eq!(of(&outlives, "found b=3"), None);
    assert_eq!(of(&outlives, "found a=1"), None);
    assert_eq!(of(&outlives, "found b=2 c=3"), None);
    let hides = Answer { hides: vec!["a".to_owned()], ..answer("missing a b") };
    assert_eq!(of(&hides, "missing b"), Some("failed lookups leave no trace"));
    assert_eq!(of(&hides, "missing a"), None);
}

/// Our own error alone excuses nothing: what it says has to have happened.
#[test]
fn an_excuse_has_its_cause_in_the_past() {
    let removal = Answer { because_of_removal: true, ..Answer::from("failed") };
    let dangling = Answer { dangles: true, ..Answer::from("failed") };
    let of = |ours: &Answer, text: &str, failed_at: Option<usize>| {
        let steps = steps_of(text);
        let mut answers = vec!["ok".to_owned(); steps.len()];
        failed_at.into_iter().for_each(|step| answers[step] = "failed".to_owned());
        difference::of(ours, "found b=1", Past { steps: &steps, answers: &answers })
    };
    let unit = "dylib\ntracker 0\ndefine 0 0 works 1 a e 0\ndefine 0 -1 works 1 b e 1 a\n";
    let lookup = "lookup 1 0 A 1 b R\n";
    assert_eq!(of(&removal, &format!("{unit}{lookup}"), None), None);
    assert_eq!(of(&removal, &format!("{unit}erase 0 b\n{lookup}"), None), None);
    assert_eq!(of(&removal, &format!("{unit}remove 0\n{lookup}"), None), Some("removal poisons"));

    let alias = "dylib\nalias 0 -1 x e 0 b A\nlookup 1 0 A 2 x R a R\nlookup 1 0 A 1 x R\n";
    assert_eq!(of(&dangling, alias, None), None);
    assert_eq!(of(&dangling, alias, Some(2)), Some("what was asked for is made"));
}

/// Where LLVM hangs, what it has said by then is compared.
#[test]
fn a_player_that_hangs_ends() {
    let steps = steps_of("dylib\ndylib\n");
    let played = play_by(Command::new("sh").args(["-c", "read step; echo ok; exec sleep 1000"]), &steps, 1);
    assert!(!played.lived && played.answers == ["ok"], "{:?}", played.answers);
}

/// And where ours does, that is a failure, which says at which step.
#[test]
fn a_step_without_an_answer_is_told() {
    let steps = steps_of("dylib\ndylib\n");
    let (release, wait) = mpsc::channel::<()>();
    let mut dylibs = 0;
    let answers = answers_within(Duration::from_millis(200), &steps, move |_| {
        dylibs += 1;
        if dylibs == 2 {
            _ = wait.recv();
        }
        "ok".into()
    });
    assert_eq!(answers.unwrap_err(), "step 1, `dylib`: Orcane does not answer");
    drop(release);
}

/// What is left behind of a failure is read again.
#[test]
fn a_history_is_read_from_its_text() {
    let bytes: Vec<u8> = (0..250u32).map(|index| (index * index * 7 + index * 31) as u8).collect();
    let text = text_of(&history::generate(&bytes));
    assert!(text.lines().count() > 40 && text_of(&steps_of(&text)) == text, "{text}");
    assert!(Step::parse("lookup 1 0 A 2 b R").is_none() && Step::parse("clear 0 0").is_none());
}

/// `x` has been asked for beside `b`, which fails: with us it was made all the same, and `c` has failed with what it needs.
/// So the later lookup of `c` fails at once, and `z` with it is not made.
#[test]
fn what_a_re_export_has_made_is_the_listed_difference_for_what_is_asked_for_beside_it() {
    let text = "dylib\ndylib\ndefine 0 -1 fails 1 b e 1 a\nalias 0 -1 x e 1 a E\ndefine 1 -1 fails 2 a e c e 0\n\
                lookup 1 0 E 2 x R b R\nalias 1 -1 z ew 0 a E\nlookup 1 1 E 2 z R c R\nalias 1 -1 z e 0 a E\n";
    let judged = judge(&steps_of(text)).unwrap();
    assert_eq!(judged.difference, Some((8, "what was asked for is made")));
    // Where it is for what is not there, it has failed with LLVM, which says so first.
    let text = "dylib\ndylib\ndylib\ndefine 0 -1 fails 1 b e 1 a\nalias 0 -1 x e 2 a E\ndefine 2 -1 fails 2 a ewc c ew 1 a\n\
                lookup 1 0 E 2 x R b R\nalias 2 -1 z e 1 d E\nlookup 1 2 E 2 a R z R\nlookup 1 2 E 3 d R e R z R\n";
    let judged = judge(&steps_of(text)).unwrap();
    assert_eq!(judged.difference, Some((9, "what was asked for is made")));
}

/// `b` fails because the unit has looked up `a`, which is poisoned: it needed what was removed.
#[test]
fn what_a_unit_finds_poisoned_is_the_listed_difference() {
    let text = "dylib\ntracker 0\ndefine 0 0 works 1 c e 0\ndefine 0 -1 works 1 a e 1 c\nlookup 1 0 A 1 a R\nremove 0\n\
                define 0 -1 works 1 b e 1 a\nlookup 1 0 A 1 b R\n";
    let judged = judge(&steps_of(text)).unwrap();
    assert_eq!(judged.difference, Some((7, "removal poisons")));
}

/// `a` is poisoned, and so nothing is made of what is asked for with it: `c` can be replaced.
#[test]
fn what_is_asked_for_beside_what_is_poisoned_is_the_listed_difference() {
    let text = "dylib\ntracker 0\ndefine 0 0 works 1 b e 0\ndefine 0 -1 works 1 a e 1 b\nlookup 1 0 A 1 a R\nremove 0\n\
                define 0 -1 works 1 c ew 0\ndefine 0 -1 fails 1 d e 0\nlookup 1 0 A 3 c R a R d R\ndefine 0 -1 works 1 c e 0\n";
    let judged = judge(&steps_of(text)).unwrap();
    assert_eq!(judged.difference, Some((9, "removal poisons")));
}

/// LLVM loses what a lookup has found beside a name that is hidden in one dylib, also where that is in the next, and has
/// failed.
#[test]
fn what_is_hidden_and_has_failed_elsewhere_is_the_listed_difference() {
    let text = "dylib\ndylib\ndylib\ndefine 1 -1 works 1 c e 1 a\nlookup 1 1 E 1 c R\ndefine 0 -1 works 2 a ew c - 1 a\n\
                lookup 2 0 E 1 E 2 c R a R\ndefine 0 -1 works 1 a e 0\n";
    let judged = judge(&steps_of(text)).unwrap();
    assert_eq!(judged.difference, Some((6, "failed lookups leave no trace")));
    assert_eq!(play_llvm(&steps_of(text)).answers.last().map(String::as_str), Some("duplicate"));
}

/// LLVM loses what a unit found beside a name that is hidden from it: `d`, which `a` asked for together with `c`.
#[test]
fn what_a_unit_loses_is_the_listed_difference() {
    let text = "dylib\ndylib\ndefine 0 -1 works 1 d e 1 a\ndefine 0 -1 works 1 a e 2 c d\nlink 0 1 E\n\
                define 1 -1 works 1 c w 0\nlookup 1 0 E 1 a R\nlookup 1 0 A 1 d R\n";
    let judged = judge(&steps_of(text)).unwrap();
    assert_eq!(judged.difference, Some((7, "failed lookups leave no trace")));
}

/// Removing the tracker of the weak `a`, LLVM removes the strong one, and goes on to the next dylib's.
#[test]
fn what_a_removal_takes_is_the_listed_difference_where_another_dylib_has_the_name() {
    let text = "dylib\ndylib\ntracker 0\ndefine 0 0 works 1 a ew 0\ndefine 0 -1 works 1 a e 0\n\
                define 1 -1 works 1 a e 0\nremove 0\nlookup 2 0 E 1 E 1 a R\n";
    let judged = judge(&steps_of(text)).unwrap();
    assert_eq!(judged.difference, Some((7, "a removal takes its own")));
}

/// What LLVM has removed with it, be it a unit's or an alias, can be looked up and removed with us, and defined anew with
/// LLVM. It may have replaced a weak definition, or one that was removed by its name.
#[test]
fn what_a_removal_takes_is_the_listed_difference_for_every_step() {
    let unit = "dylib\ntracker 0\ndefine 0 0 works 1 a ew 0\ndefine 0 -1 works 1 a e 0\nremove 0\n";
    let erased = "dylib\ntracker 0\ndefine 0 0 works 1 a e 0\nerase 0 a\ndefine 0 -1 works 1 a e 0\nremove 0\n";
    let failing = unit.replace("0 -1 works", "0 -1 fails");
    let alias = "dylib\ntracker 0\nalias 0 0 x ew 0 a A\nalias 0 -1 x e 0 b A\nremove 0\n";
    for text in [
        format!("{unit}erase 0 a\n"),
        format!("{unit}define 0 -1 works 1 a e 0\n"),
        format!("{alias}erase 0 x\n"),
        format!("{alias}alias 0 -1 x e 0 a A\n"),
        format!("{erased}lookup 1 0 A 1 a R\n"),
        format!("{failing}lookup 1 0 A 1 a W\n"),
    ] {
        let judged = judge(&steps_of(&text)).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let last = text.lines().count() - 1;
        assert_eq!(judged.difference, Some((last, "a removal takes its own")), "{text}");
    }
}

/// Removing the tracker of the weak `b`, LLVM removes the strong one, without which `a` fails.
#[test]
fn what_a_removal_takes_is_the_listed_difference_for_what_needs_it() {
    let text = "dylib\ntracker 0\ndefine 0 0 works 1 b ew 0\ndefine 0 -1 works 1 b e 0\nremove 0\n\
                define 0 -1 works 1 a e 1 b\nlookup 1 0 A 1 a R\n";
    let judged = judge(&steps_of(text)).unwrap();
    assert_eq!(judged.difference, Some((6, "a removal takes its own")));
    // Also where that is in a dylib which is searched only for it.
    let text = "dylib\ndylib\ntracker 1\ndefine 1 0 works 1 b ew 0\ndefine 1 -1 works 1 b e 0\nremove 0\n\
                alias 0 -1 x e 1 b E\nlookup 1 0 A 1 x R\n";
    let judged = judge(&steps_of(text)).unwrap();
    assert_eq!(judged.difference, Some((7, "a removal takes its own")));
}
