//! Steps over the graph between building it and applying its fixups.

pub(crate) mod depend;
pub(crate) mod fixup;
pub(crate) mod indirect;
pub(crate) mod island;
pub(crate) mod layout;
pub(crate) mod prune;
mod reach;
mod window;
