//! Hooks into the pipeline: what is run between its steps, for one link.
//!
//! ```text
//! before_prune      the graph as it was read: symbols can be added, renamed by new definitions, kept
//! after_prune       what is left: content can be added that the layout makes room for
//! after_allocation  addresses of the graph's own symbols are known, and its shape is settled
//! before_fixup      addresses of external symbols are known too
//! after_fixup       the content is final in working memory, and can still be written
//! ```
//!
//! A pass that fails ends the link: the memory goes back and nothing is published.

use std::fmt;

use crate::graph::LinkGraph;
use crate::link::{Fixed, LinkError};

/// A pass's own reason to end the link.
pub type PassError = Box<dyn std::error::Error + Send + Sync>;

/// A step over the graph. It is run once: who needs it in every link makes one for each.
pub type Pass = Box<dyn FnOnce(&mut LinkGraph) -> Result<(), PassError> + Send>;

/// A step over the final content.
pub type ContentPass = Box<dyn FnOnce(&mut Fixed) -> Result<(), PassError> + Send>;

/// The passes of one link, each list in the order it is run.
///
/// ```
/// use jit_linker::arch::Architecture;
/// use jit_linker::link::{self, LinkError};
/// use jit_linker::plugin::Passes;
/// use jit_linker::LinkGraph;
///
/// let mut passes = Passes::default();
/// passes.before_prune.push(Box::new(|graph| Err(format!("{} may not be linked", graph.name()).into())));
/// let error = link::load(LinkGraph::new("secret.o", Architecture::X86_64), passes).unwrap_err();
/// assert_eq!(error.to_string(), "in secret.o: a pass before pruning: secret.o may not be linked");
/// ```
#[derive(Default)]
pub struct Passes {
    /// Before what nobody needs is left out.
    pub before_prune: Vec<Pass>,
    /// Before GOT and stubs are built and blocks are laid out.
    pub after_prune: Vec<Pass>,
    /// When the graph's own addresses are known, and nobody else knows them yet.
    pub after_allocation: Vec<Pass>,
    /// When all addresses are known.
    pub before_fixup: Vec<Pass>,
    /// When the content is final.
    pub after_fixup: Vec<ContentPass>,
}

impl Passes {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let lists = [&self.before_prune, &self.after_prune, &self.after_allocation, &self.before_fixup];
        lists.iter().all(|list| list.is_empty()) && self.after_fixup.is_empty()
    }
}

impl fmt::Debug for Passes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passes")
            .field("before_prune", &self.before_prune.len())
            .field("after_prune", &self.after_prune.len())
            .field("after_allocation", &self.after_allocation.len())
            .field("before_fixup", &self.before_fixup.len())
            .field("after_fixup", &self.after_fixup.len())
            .finish()
    }
}

/// Where in the pipeline a pass is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// See [`Passes::before_prune`].
    BeforePrune,
    /// See [`Passes::after_prune`].
    AfterPrune,
    /// See [`Passes::after_allocation`].
    AfterAllocation,
    /// See [`Passes::before_fixup`].
    BeforeFixup,
    /// See [`Passes::after_fixup`].
    AfterFixup,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforePrune => "before pruning",
            Self::AfterPrune => "after pruning",
            Self::AfterAllocation => "after allocation",
            Self::BeforeFixup => "before fixup",
            Self::AfterFixup => "after fixup",
        })
    }
}

pub(crate) fn run(stage: Stage, passes: &mut Vec<Pass>, graph: &mut LinkGraph) -> Result<(), LinkError> {
    for pass in passes.drain(..) {
        pass(graph).map_err(|source| LinkError::Pass { graph: graph.name().to_owned(), stage, source })?;
    }
    Ok(())
}

pub(crate) fn run_on_content(passes: Vec<ContentPass>, fixed: &mut Fixed) -> Result<(), LinkError> {
    for pass in passes {
        pass(fixed).map_err(|source| LinkError::Pass {
            graph: fixed.graph().name().to_owned(),
            stage: Stage::AfterFixup,
            source,
        })?;
    }
    Ok(())
}
