//! Session histories: steps from bytes, and their text.
//!
//! ```text
//! dylib                                  makes the next dylib
//! link D D2 V                            appends D2 to the link order of D; V is E (exported only) or A (all)
//! tracker D                              makes the next tracker, in D
//! define D T MODE N (NAME FLAGS)* M NEED*   a unit; T is -1 for the default tracker; MODE is works, fails or fails-late
//! alias D T NAME FLAGS D2 ALIASEE V      NAME in D for ALIASEE in D2
//! remove T, clear D, erase D NAME
//! lookup N (D V)* M (NAME KIND)*         KIND is R (required) or W (weakly referenced)
//! ```

use std::fmt;
use std::str::SplitWhitespace;

use crate::choices::Choices;

/// The names that units define. An alias has a name of its own, and is of a name that comes before it, so that there is
/// no cycle of aliases, which LLVM does not survive.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const ALIASES: [&str; 3] = ["x", "y", "z"];
const DYLIBS: usize = 3;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Dylib,
    Link {
        dylib: usize,
        other: usize,
        all: bool,
    },
    Tracker {
        dylib: usize,
    },
    Define {
        dylib: usize,
        tracker: Option<usize>,
        mode: &'static str,
        symbols: Vec<(String, &'static str)>,
        needs: Vec<String>,
    },
    Alias {
        dylib: usize,
        tracker: Option<usize>,
        name: String,
        flags: &'static str,
        source: usize,
        aliasee: String,
        all: bool,
    },
    Remove {
        tracker: usize,
    },
    Clear {
        dylib: usize,
    },
    Erase {
        dylib: usize,
        name: String,
    },
    Lookup {
        order: Vec<(usize, bool)>,
        names: Vec<(String, bool)>,
    },
}

pub(crate) fn generate(bytes: &[u8]) -> Vec<Step> {
    let mut choices = Choices::new(bytes);
    let choices = &mut choices;
    let mut steps = vec![Step::Dylib; DYLIBS];
    // The dylib of each tracker.
    let mut trackers: Vec<usize> = Vec::new();
    while !choices.is_empty() {
        steps.push(step(choices, &mut trackers));
    }
    // What became of everything.
    for dylib in 0..DYLIBS {
        for name in NAMES.iter().chain(&ALIASES) {
            steps.push(Step::Lookup { order: vec![(dylib, true)], names: vec![((*name).to_owned(), true)] });
        }
    }
    steps
}

fn step(choices: &mut Choices<'_>, trackers: &mut Vec<usize>) -> Step {
    let dylib = choices.below(DYLIBS);
    let own: Vec<usize> = (0..trackers.len()).filter(|&tracker| trackers[tracker] == dylib).collect();
    let tracker = if own.is_empty() || choices.below(2) == 0 { None } else { Some(*choices.of(&own)) };
    match choices.below(16) {
        0..=4 => {
            let mut symbols: Vec<(String, &str)> = Vec::new();
            for _ in 0..1 + choices.below(3) {
                let name = (*choices.of(&NAMES)).to_owned();
                if symbols.iter().all(|(other, _)| *other != name) {
                    symbols.push((name, *choices.of(&FLAGS)));
                }
            }
            let needs = (0..choices.below(3))
                .map(|_| (*choices.of(&NAMES)).to_owned())
                .collect::<std::collections::BTreeSet<_>>();
            let mode = *choices.of(&["works", "works", "works", "works", "fails", "fails-late"]);
            Step::Define { dylib, tracker, mode, symbols, needs: needs.into_iter().collect() }
        }
        5 => {
            let which = choices.below(ALIASES.len());
            let before: Vec<&str> = NAMES.iter().chain(&ALIASES[..which]).copied().collect();
            let flags = *choices.of(&["e", "ew", "-"]);
            Step::Alias {
                dylib,
                tracker,
                name: ALIASES[which].to_owned(),
                flags,
                source: choices.below(DYLIBS),
                aliasee: (*choices.of(&before)).to_owned(),
                all: choices.below(2) == 1,
            }
        }
        6 => Step::Link { dylib, other: choices.below(DYLIBS), all: choices.below(2) == 1 },
        7 => {
            trackers.push(dylib);
            Step::Tracker { dylib }
        }
        8 if !trackers.is_empty() => Step::Remove { tracker: choices.below(trackers.len()) },
        9 if choices.below(3) == 0 => Step::Clear { dylib },
        10 => Step::Erase { dylib, name: (*choices.of(&["a", "b", "c", "d", "e", "x", "y", "z"])).to_owned() },
        _ => {
            let order = (0..1 + choices.below(2)).map(|_| (choices.below(DYLIBS), choices.below(2) == 1)).collect();
            let mut names: Vec<(String, bool)> = Vec::new();
            for _ in 0..1 + choices.below(3) {
                let name = (*choices.of(&["a", "b", "c", "d", "e", "x", "y", "z"])).to_owned();
                if names.iter().all(|(other, _)| *other != name) {
                    names.push((name, choices.below(3) != 2));
                }
            }
            Step::Lookup { order, names }
        }
    }
}

/// The same history with a new tracker for each that is used again after its removal.
pub(crate) fn with_new_trackers(steps: &[Step]) -> Vec<Step> {
    // What each tracker of the history is now, whose dylib it is, and whether it was removed.
    let mut trackers: Vec<(usize, usize, bool)> = Vec::new();
    let mut count = 0;
    let mut renewed = Vec::new();
    for step in steps {
        let mut step = step.clone();
        match &mut step {
            Step::Tracker { dylib } => {
                trackers.push((count, *dylib, false));
                count += 1;
            }
            Step::Define { tracker: Some(tracker), .. } | Step::Alias { tracker: Some(tracker), .. } => {
                let (now, dylib, was_removed) = &mut trackers[*tracker];
                if *was_removed {
                    renewed.push(Step::Tracker { dylib: *dylib });
                    (*now, *was_removed) = (count, false);
                    count += 1;
                }
                *tracker = *now;
            }
            Step::Remove { tracker } => {
                let (now, _, was_removed) = &mut trackers[*tracker];
                (*tracker, *was_removed) = (*now, true);
            }
            Step::Clear { dylib } => {
                trackers.iter_mut().filter(|(_, of, _)| of == dylib).for_each(|(.., was_removed)| *was_removed = true);
            }
            _ => {}
        }
        renewed.push(step);
    }
    renewed
}

/// All flags and modes that units and aliases have.
const FLAGS: [&str; 7] = ["e", "-", "ew", "ec", "w", "c", "ewc"];
const MODES: [&str; 3] = ["works", "fails", "fails-late"];

impl Step {
    /// The step that a line is.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = Words(line.split_whitespace());
        let step = words.step()?;
        words.0.next().is_none().then_some(step)
    }
}

struct Words<'a>(SplitWhitespace<'a>);

impl Words<'_> {
    fn step(&mut self) -> Option<Step> {
        Some(match self.0.next()? {
            "dylib" => Step::Dylib,
            "link" => Step::Link { dylib: self.number()?, other: self.number()?, all: self.is("A", "E")? },
            "tracker" => Step::Tracker { dylib: self.number()? },
            "define" => Step::Define {
                dylib: self.number()?,
                tracker: self.tracker()?,
                mode: self.of(&MODES)?,
                symbols: self.list(|words| Some((words.name()?, words.of(&FLAGS)?)))?,
                needs: self.list(Self::name)?,
            },
            "alias" => Step::Alias {
                dylib: self.number()?,
                tracker: self.tracker()?,
                name: self.name()?,
                flags: self.of(&FLAGS)?,
                source: self.number()?,
                aliasee: self.name()?,
                all: self.is("A", "E")?,
            },
            "remove" => Step::Remove { tracker: self.number()? },
            "clear" => Step::Clear { dylib: self.number()? },
            "erase" => Step::Erase { dylib: self.number()?, name: self.name()? },
            "lookup" => Step::Lookup {
                order: self.list(|words| Some((words.number()?, words.is("A", "E")?)))?,
                names: self.list(|words| Some((words.name()?, words.is("R", "W")?)))?,
            },
            _ => return None,
        })
    }

    fn number(&mut self) -> Option<usize> {
        self.0.next()?.parse().ok()
    }

    fn name(&mut self) -> Option<String> {
        self.0.next().map(str::to_owned)
    }

    fn tracker(&mut self) -> Option<Option<usize>> {
        match self.0.next()? {
            "-1" => Some(None),
            number => number.parse().ok().map(Some),
        }
    }

    fn of(&mut self, words: &[&'static str]) -> Option<&'static str> {
        let word = self.0.next()?;
        words.iter().copied().find(|other| *other == word)
    }

    /// Whether the next word is the first, and not the second.
    fn is(&mut self, yes: &str, no: &str) -> Option<bool> {
        let word = self.0.next()?;
        (word == yes || word == no).then_some(word == yes)
    }

    fn list<T>(&mut self, element: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        (0..self.number()?).map(|_| element(self)).collect()
    }
}

fn visibility(all: bool) -> char {
    if all { 'A' } else { 'E' }
}

fn number(tracker: &Option<usize>) -> i64 {
    tracker.map_or(-1, |tracker| tracker as i64)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dylib => write!(f, "dylib"),
            Self::Link { dylib, other, all } => write!(f, "link {dylib} {other} {}", visibility(*all)),
            Self::Tracker { dylib } => write!(f, "tracker {dylib}"),
            Self::Define { dylib, tracker, mode, symbols, needs } => {
                write!(f, "define {dylib} {} {mode} {}", number(tracker), symbols.len())?;
                symbols.iter().try_for_each(|(name, flags)| write!(f, " {name} {flags}"))?;
                write!(f, " {}", needs.len())?;
                needs.iter().try_for_each(|need| write!(f, " {need}"))
            }
            Self::Alias { dylib, tracker, name, flags, source, aliasee, all } => {
                let (tracker, all) = (number(tracker), visibility(*all));
                write!(f, "alias {dylib} {tracker} {name} {flags} {source} {aliasee} {all}")
            }
            Self::Remove { tracker } => write!(f, "remove {tracker}"),
            Self::Clear { dylib } => write!(f, "clear {dylib}"),
            Self::Erase { dylib, name } => write!(f, "erase {dylib} {name}"),
            Self::Lookup { order, names } => {
                write!(f, "lookup {}", order.len())?;
                order.iter().try_for_each(|(dylib, all)| write!(f, " {dylib} {}", visibility(*all)))?;
                write!(f, " {}", names.len())?;
                names.iter().try_for_each(|(name, required)| write!(f, " {name} {}", if *required { 'R' } else { 'W' }))
            }
        }
    }
}
