//! Where we differ from LLVM on purpose.

use crate::history::Step::{self, Alias, Define, Erase, Link, Lookup, Remove, Tracker};
use crate::ours::Answer;
use crate::past::Past;

/// A difference: what we say, what LLVM says, and why.
pub(crate) struct Difference {
    pub(crate) name: &'static str,
    /// The row of the conformance table that asks for ours, if one does.
    pub(crate) row: Option<&'static str>,
    pub(crate) reason: &'static str,
    /// A history in which it shows, at the step with this number.
    pub(crate) history: fn() -> Vec<Step>,
    pub(crate) shows_at: usize,
    /// What the last step then gives, and of a failure what we say of it.
    pub(crate) ours: (&'static str, &'static str),
    pub(crate) llvm: &'static str,
}

/// The difference that shows where a tracker was used again: without that, LLVM's answers have to be ours.
pub(crate) const REUSE: &str = "answers come";

pub(crate) const DIFFERENCES: [Difference; 6] = [
    Difference {
        name: "removal poisons",
        row: Some("GAP-6"),
        reason: "what needs something that was removed fails with this reason; LLVM leaves it dangling",
        history: || {
            vec![
                Step::Dylib,
                Tracker { dylib: 0 },
                works("a", &[], Some(0)),
                Link { dylib: 0, other: 0, all: true },
                works("b", &["a"], None),
                look("b", true),
                Remove { tracker: 0 },
                look("b", true),
            ]
        },
        shows_at: 7,
        ours: ("failed", "removed"),
        llvm: "found b=512",
    },
    Difference {
        name: REUSE,
        // Of what is never answered the rows speak only where something is suspended or dropped.
        row: None,
        reason: "after a removal a tracker is as new; LLVM never answers a lookup of what is then defined through it",
        history: || {
            vec![Step::Dylib, Tracker { dylib: 0 }, Remove { tracker: 0 }, works("a", &[], Some(0)), look("a", true)]
        },
        shows_at: 4,
        ours: ("found a=256", ""),
        llvm: "waits",
    },
    Difference {
        name: "failures go",
        row: Some("CORE-08"),
        reason: "a symbol that has failed is finished and can be removed; LLVM takes it for one that is being materialized",
        history: || {
            vec![
                Step::Dylib,
                works("a", &["b"], None),
                look("a", true),
                Erase { dylib: 0, name: "a".to_owned() },
                look("a", true),
            ]
        },
        shows_at: 3,
        ours: ("missing a", ""),
        llvm: "failed",
    },
    Difference {
        name: "failed lookups leave no trace",
        row: Some("GAP-5"),
        reason: "LLVM loses the unit of what it found when another name is hidden from the lookup",
        history: || {
            let both = vec![("b".to_owned(), true), ("a".to_owned(), true)];
            vec![
                Step::Dylib,
                works("b", &[], None),
                unit("a", "-", &[], None),
                Lookup { order: vec![(0, false)], names: both },
                look("b", true),
            ]
        },
        shows_at: 3,
        ours: ("found b=256", ""),
        llvm: "waits",
    },
    Difference {
        name: "a removal takes its own",
        row: Some("GAP-1"),
        reason: "removing the tracker of a definition that another one has replaced (a weak one, or one that was removed by its \
                 name), LLVM removes the other",
        history: || {
            vec![
                Step::Dylib,
                Tracker { dylib: 0 },
                unit("a", "ew", &[], Some(0)),
                works("a", &[], None),
                Remove { tracker: 0 },
                look("a", true),
            ]
        },
        shows_at: 5,
        ours: ("found a=512", ""),
        llvm: "missing a",
    },
    Difference {
        name: "what was asked for is made",
        // The cause that every waiter gets is the one that was found, whatever else was asked for with it.
        row: Some("GAP-11"),
        reason: "LLVM gives a re-export back if its lookup has failed by the time its turn comes, and makes it otherwise; \
                 which of the two comes of the order in which names were interned, and that is fixed here",
        history: || {
            let required = |name: &str| (name.to_owned(), true);
            vec![
                Step::Dylib,
                Alias {
                    dylib: 0,
                    tracker: None,
                    name: "x".to_owned(),
                    flags: "e",
                    source: 0,
                    aliasee: "e".to_owned(),
                    all: true,
                },
                Define {
                    dylib: 0,
                    tracker: None,
                    mode: "fails",
                    symbols: vec![("a".to_owned(), "e")],
                    needs: Vec::new(),
                },
                Lookup { order: vec![(0, true)], names: vec![required("x"), required("a")] },
                works("e", &[], None),
                look("x", true),
            ]
        },
        shows_at: 5,
        ours: ("failed", "e"),
        llvm: "found x=512",
    },
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

/// The difference that two answers which are not the same show, if it is one of the list and has its cause in the past.
/// [`REUSE`] is not told here.
pub(crate) fn of(ours: &Answer, llvm: &str, past: Past<'_>) -> Option<&'static str> {
    let is_found = ours.text == "failed" && llvm.starts_with("found");
    match llvm {
        "busy" if ours.was_failed && ours.text == "ok" => Some("failures go"),
        // What a unit needs was hidden from it: LLVM has lost what it found for it beside.
        "waits" | "busy" if past.reaches(&ours.lost) => Some("failed lookups leave no trace"),
        _ if llvm.starts_with("missing") && is_outlived(ours, llvm) => Some("a removal takes its own"),
        // The name is weakly referenced, or another dylib of the search has it as well.
        _ if llvm.starts_with("found") && is_found_elsewhere(ours, llvm) => Some("a removal takes its own"),
        // What LLVM does not have does not fail.
        _ if is_found && past.reaches(&ours.outlived) => Some("a removal takes its own"),
        // What needs a name of which that is so fails.
        "failed" if ours.text.starts_with("found") && past.reaches(&ours.outlived) => Some("a removal takes its own"),
        // And the name can be defined anew.
        "ok" if ours.text == "duplicate" && past.is_about(&ours.outlives) => Some("a removal takes its own"),
        // They may differ from here on.
        _ if !ours.hides.is_empty() && (llvm == "failed" && ours.has_failed || is_untold(ours, llvm)) => {
            Some("failed lookups leave no trace")
        }
        _ if is_found && ours.dangles && past.reaches_re_export_beside_failure() => Some("what was asked for is made"),
        // What LLVM has not made for the re-export can be replaced.
        "ok" if ours.text == "duplicate" && past.is_needed_by_re_export_beside_failure() => {
            Some("what was asked for is made")
        }
        // And what was asked for beside what we have made for it, and has failed, LLVM only has made.
        "duplicate" | "failed" if past.was_beside_what_a_re_export_has_made() => Some("what was asked for is made"),
        // With us, a lookup of what is poisoned has made nothing else.
        "duplicate" if ours.text == "ok" && past.was_beside_a_removed_need() => Some("removal poisons"),
        _ if is_found && ours.because_of_removal && past.has_removed_a_need() => Some("removal poisons"),
        _ => None,
    }
}

/// Whether LLVM misses, beside what we miss, nothing but names whose first definition's tracker was removed after another
/// had taken its place.
fn is_outlived(ours: &Answer, llvm: &str) -> bool {
    let (own, theirs) = (missing(&ours.text), missing(llvm));
    let mut more = theirs.iter().filter(|name| !own.contains(name)).peekable();
    own.iter().all(|name| theirs.contains(name))
        && more.peek().is_some()
        && more.all(|name| ours.outlives.contains(name))
}

/// Whether both find the same, but for names whose first definition's tracker was removed after another had taken its place:
/// LLVM finds none there.
fn is_found_elsewhere(ours: &Answer, llvm: &str) -> bool {
    let (own, theirs) = (found(&ours.text), found(llvm));
    let mut more = own.iter().filter(|symbol| !theirs.contains(symbol)).peekable();
    theirs.iter().all(|(name, _)| own.iter().any(|(other, _)| other == name))
        && more.peek().is_some()
        && more.all(|(name, _)| ours.outlives.iter().any(|other| other == name))
}

/// Names with addresses.
fn found(text: &str) -> Vec<(&str, &str)> {
    let symbols = text.strip_prefix("found").unwrap_or_default();
    symbols.split_whitespace().filter_map(|symbol| symbol.split_once('=')).collect()
}

/// Whether both miss the same, but for names of ours that a dylib hides: LLVM does not tell all.
fn is_untold(ours: &Answer, llvm: &str) -> bool {
    let (own, theirs) = (missing(&ours.text), missing(llvm));
    let mut untold = own.iter().filter(|name| !theirs.contains(name));
    !theirs.is_empty() && theirs.iter().all(|name| own.contains(name)) && untold.all(|name| ours.hides.contains(name))
}

fn missing(text: &str) -> Vec<String> {
    let names = text.strip_prefix("missing").unwrap_or_default();
    names.split_whitespace().map(str::to_owned).collect()
}
