//! The session with units of the test's own.

mod aliases;
mod definitions;
mod dispatch;
#[path = "../common/dot.rs"]
mod dot;
mod dumps;
mod failures;
mod foreign;
mod generators;
mod hostile;
mod link_orders;
mod lookups;
mod readiness;
mod removal;
mod responsibility;
mod stage;
mod trackers;
mod waits;
