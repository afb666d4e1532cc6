//! What came before a step of a history: a difference has to have its cause there.

use std::collections::BTreeSet;

use crate::history::Step;

/// The steps up to one, with LLVM's answers, which up to there are ours.
#[derive(Clone, Copy)]
pub(crate) struct Past<'a> {
    pub(crate) steps: &'a [Step],
    pub(crate) answers: &'a [String],
}

impl<'a> Past<'a> {
    /// The names that the last step is about.
    fn own(&self) -> Vec<&'a str> {
        match self.steps.last() {
            Some(Step::Lookup { names, .. }) => names.iter().map(|(name, _)| &**name).collect(),
            Some(Step::Define { symbols, .. }) => symbols.iter().map(|(name, _)| &**name).collect(),
            Some(Step::Alias { name, .. } | Step::Erase { name, .. }) => vec![name],
            _ => Vec::new(),
        }
    }

    /// What something of one of these names has needed, and what that has needed.
    fn needed(&self, names: Vec<&'a str>) -> BTreeSet<&'a str> {
        let (mut needed, mut open) = (BTreeSet::new(), names);
        while let Some(name) = open.pop() {
            let needs = self.steps.iter().flat_map(|step| match step {
                Step::Define { symbols, needs, .. } if symbols.iter().any(|(own, _)| own == name) => &needs[..],
                Step::Alias { name: own, aliasee, .. } if own == name => std::slice::from_ref(aliasee),
                _ => &[],
            });
            open.extend(needs.map(|need| &**need).filter(|need| needed.insert(*need)));
        }
        needed
    }

    /// Whether the last step is about one of these names, or something that needs it.
    pub(crate) fn reaches(&self, names: &[String]) -> bool {
        let (own, needed) = (self.own(), self.needed(self.own()));
        names.iter().any(|name| own.contains(&&**name) || needed.contains(&**name))
    }

    /// Whether the last step is about one of these names itself.
    pub(crate) fn is_about(&self, names: &[String]) -> bool {
        self.own().iter().any(|own| names.iter().any(|name| name == own))
    }

    /// Whether a definition was removed of something that the last step's names need.
    pub(crate) fn has_removed_a_need(&self) -> bool {
        self.has_removed_a_need_of(self.own())
    }

    fn has_removed_a_need_of(&self, names: Vec<&'a str>) -> bool {
        let needed = self.needed(names);
        let removed = |step: usize| match &self.steps[step] {
            Step::Erase { name, .. } => needed.contains(&**name),
            Step::Clear { dylib } => self.defines(step, &needed, |of, _| of == *dylib),
            Step::Remove { tracker } => self.defines(step, &needed, |_, through| through == Some(*tracker)),
            _ => false,
        };
        (0..self.steps.len()).any(removed)
    }

    /// Whether one of these names was defined before a step, in such a dylib and through such a tracker.
    fn defines(&self, before: usize, names: &BTreeSet<&str>, is_it: impl Fn(usize, Option<usize>) -> bool) -> bool {
        self.steps[..before].iter().any(|step| match step {
            Step::Define { dylib, tracker, symbols, .. } => {
                is_it(*dylib, *tracker) && symbols.iter().any(|(name, _)| names.contains(&**name))
            }
            Step::Alias { dylib, tracker, name, .. } => is_it(*dylib, *tracker) && names.contains(&**name),
            _ => false,
        })
    }

    /// The re-exports that were asked for together with something that failed.
    fn re_exports_beside_failures(&self) -> Vec<&'a str> {
        let is_re_export =
            |of: &str| self.steps.iter().any(|step| matches!(step, Step::Alias { name, .. } if name == of));
        self.failed_lookups().flatten().map(|(name, _)| &**name).filter(|name| is_re_export(name)).collect()
    }

    /// The lookups of several names that have failed.
    fn failed_lookups(&self) -> impl Iterator<Item = &'a Vec<(String, bool)>> {
        self.steps.iter().zip(self.answers).filter_map(|(step, answer)| match step {
            Step::Lookup { names, .. } if names.len() > 1 && answer == "failed" => Some(names),
            _ => None,
        })
    }

    /// Whether what the last step looks up is, or needs, such a re-export.
    pub(crate) fn reaches_re_export_beside_failure(&self) -> bool {
        let names: Vec<_> = self.re_exports_beside_failures().into_iter().map(str::to_owned).collect();
        self.reaches(&names)
    }

    /// Whether the last step defines what such a re-export needs.
    pub(crate) fn is_needed_by_re_export_beside_failure(&self) -> bool {
        let needed = self.needed(self.re_exports_beside_failures());
        self.own().iter().any(|name| needed.contains(name))
    }

    /// Whether the last step is about what was asked for, by a lookup that has failed, together with something that was made
    /// for such a re-export.
    pub(crate) fn was_beside_what_a_re_export_has_made(&self) -> bool {
        let mut made = self.needed(self.re_exports_beside_failures());
        made.extend(self.unit_mates(&made));
        let (own, needed) = (self.own(), self.needed(self.own()));
        let is_own = |name: &str| own.contains(&name) || needed.contains(name);
        self.failed_lookups().any(|names| {
            let asks = |is_it: &dyn Fn(&str) -> bool| names.iter().any(|(name, _)| is_it(name));
            asks(&|name| is_own(name) && asks(&|other| other != name && made.contains(other)))
        })
    }

    /// Whether the last step is about what was asked for, by a lookup that has failed, together with something a definition
    /// of whose needs was removed.
    pub(crate) fn was_beside_a_removed_need(&self) -> bool {
        let own = self.own();
        self.failed_lookups().any(|names| {
            let (asked, beside): (Vec<_>, Vec<_>) =
                names.iter().map(|(name, _)| &**name).partition(|name| own.contains(name));
            !asked.is_empty() && beside.into_iter().any(|name| self.has_removed_a_need_of(vec![name]))
        })
    }

    /// What some unit defines together with one of these names.
    fn unit_mates(&self, names: &BTreeSet<&str>) -> Vec<&'a str> {
        let units = self.steps.iter().filter_map(|step| match step {
            Step::Define { symbols, .. } if symbols.iter().any(|(name, _)| names.contains(&**name)) => Some(symbols),
            _ => None,
        });
        units.flatten().map(|(name, _)| &**name).collect()
    }
}
