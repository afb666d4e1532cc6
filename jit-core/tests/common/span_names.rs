//! A subscriber that notes spans: for tests of several packages.

use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Notes the names of spans, each with the value of one of its fields, if it has that.
#[derive(Clone)]
pub(crate) struct SpanNames {
    /// Whose spans: how their targets begin.
    pub(crate) of: &'static str,
    pub(crate) field: &'static str,
    pub(crate) names: Arc<Mutex<Vec<String>>>,
}

struct Name {
    field: &'static str,
    name: String,
}

impl Visit for Name {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == self.field {
            self.name += &format!(" {value}");
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl Subscriber for SpanNames {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with(self.of)
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut name = Name { field: self.field, name: span.metadata().name().to_owned() };
        span.record(&mut name);
        let mut names = self.names.lock().unwrap();
        names.push(name.name);
        Id::from_u64(names.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
