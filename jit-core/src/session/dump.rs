//! What a session holds, for people: as text, and as a graph for Graphviz.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use super::query::{Owner, Query};
use super::state::State;
use super::symbol::{SymbolId, SymbolState};
use super::{ExecutionSession, edges};

/// A session's dylibs and symbols at one moment. It prints as text, a line a symbol.
///
/// ```
/// let jit = jit_core::Jit::new()?;
/// jit.define_closure("one", || 1i64)?;
/// let dump = jit.session().dump();
/// println!("{dump}");
/// let main = dump.dylibs.iter().find(|dylib| dylib.name == "main");
/// assert!(main.is_some_and(|main| main.symbols.iter().any(|symbol| symbol.name == "one")));
/// # Ok::<(), jit_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SessionDump {
    /// In the order of their creation.
    pub dylibs: Vec<DylibDump>,
    /// Lookups that have found their symbols and wait for them.
    pub lookups: Vec<LookupDump>,
}

/// A dylib of a [`SessionDump`].
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DylibDump {
    /// Its name.
    pub name: String,
    /// The names of those that it searches, in order.
    pub link_order: Vec<String>,
    /// By name.
    pub symbols: Vec<SymbolDump>,
}

/// A symbol of a [`DylibDump`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SymbolDump {
    /// Its name.
    pub name: String,
    /// How far it has come.
    pub state: SymbolState,
    /// What the unit that defines it is called.
    pub unit: String,
    /// Where it is, once that is known.
    pub address: Option<u64>,
    /// Why it can't be had.
    pub failure: Option<String>,
    /// What it needs: dylib, name, and whether that is ready.
    pub needs: Vec<(String, String, bool)>,
}

/// A lookup of a [`SessionDump`] that has no answer yet.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LookupDump {
    /// The unit that can't go on before; none if it is not a unit that asks.
    pub unit: Option<UnitDump>,
    /// What is waited for: dylib and name.
    pub waits_for: Vec<(String, String)>,
    /// How far that has to come.
    pub required: SymbolState,
}

/// A unit of a [`LookupDump`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UnitDump {
    /// What it is called.
    pub name: String,
    /// What it defines: dylib and name.
    pub defines: Vec<(String, String)>,
    /// Whether the thread that materializes it is held up. Otherwise the rest of its work is done when the answer is
    /// there.
    pub holds_thread: bool,
}

impl State {
    fn qualified(&self, symbol: SymbolId) -> Option<(String, String)> {
        Some((self.dylib_name(symbol), self.symbols.get(symbol)?.name().to_string()))
    }

    fn dump_lookup(&self, query: &Query) -> LookupDump {
        let request = &query.control.request;
        let unit = request.owner.and_then(|owner| {
            let unit = self.units.get(owner.unit())?;
            let defines = unit.symbols.iter().filter_map(|symbol| self.qualified(*symbol)).collect();
            let holds_thread = matches!(owner, Owner::Thread(_));
            Some(UnitDump { name: unit.name.to_string(), defines, holds_thread })
        });
        let waits_for = query.outstanding().filter_map(|(_, symbol)| self.qualified(symbol)).collect();
        LookupDump { unit, waits_for, required: request.required }
    }
}

impl ExecutionSession {
    /// What the session holds now. It is locked meanwhile.
    #[must_use]
    pub fn dump(&self) -> SessionDump {
        let state = self.state();
        let dylib_name = |index: u32| state.dylibs.at(index).map(|(_, dylib)| dylib.name.clone()).unwrap_or_default();
        let mut dylibs: BTreeMap<u32, DylibDump> = BTreeMap::new();
        for (id, dylib) in state.dylibs.iter() {
            let order = dylib.link_order.iter().map(|(id, _)| dylib_name(id.index() as u32)).collect();
            let dump = DylibDump { name: dylib.name.clone(), link_order: order, symbols: Vec::new() };
            dylibs.insert(id.index() as u32, dump);
        }
        for (_, symbol) in state.symbols.iter() {
            let mut needs = Vec::new();
            let mut edge = symbol.needs;
            while edge != edges::NONE {
                let (index, next) = state.edges.need(edge);
                if let Some((_, needed)) = state.symbols.at(index) {
                    let is_ready = needed.state() == SymbolState::Ready;
                    needs.push((dylib_name(needed.dylib()), needed.name().to_string(), is_ready));
                }
                edge = next;
            }
            needs.sort();
            let dump = SymbolDump {
                name: symbol.name().to_string(),
                state: symbol.state(),
                unit: state.units.get(symbol.unit).map(|unit| unit.name.to_string()).unwrap_or_default(),
                address: (symbol.address() != 0).then_some(symbol.address()),
                failure: symbol.failure().map(ToString::to_string),
                needs,
            };
            if let Some(dylib) = dylibs.get_mut(&symbol.dylib()) {
                dylib.symbols.push(dump);
            }
        }
        let lookups = state.queries.iter().map(|(_, query)| state.dump_lookup(query)).collect();
        drop(state);
        let mut dylibs: Vec<_> = dylibs.into_values().collect();
        dylibs.iter_mut().for_each(|dylib| dylib.symbols.sort_by(|a, b| a.name.cmp(&b.name)));
        SessionDump { dylibs, lookups }
    }
}

impl fmt::Display for SessionDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for dylib in &self.dylibs {
            writeln!(f, "dylib '{}', searches {}", dylib.name, dylib.link_order.join(", "))?;
            for symbol in &dylib.symbols {
                write!(f, "  {}: {}", symbol.name, symbol.state)?;
                if let Some(address) = symbol.address {
                    write!(f, " at {address:#x}")?;
                }
                write!(f, ", from {}", symbol.unit)?;
                if let Some(failure) = &symbol.failure {
                    write!(f, ", failed: {failure}")?;
                }
                for (position, (dylib, name, is_ready)) in symbol.needs.iter().enumerate() {
                    let lead = if position == 0 { ", needs " } else { ", " };
                    write!(f, "{lead}{dylib}/{name}{}", if *is_ready { "" } else { " (waits)" })?;
                }
                writeln!(f)?;
            }
        }
        for lookup in &self.lookups {
            writeln!(f, "{lookup}")?;
        }
        Ok(())
    }
}

impl fmt::Display for LookupDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.unit {
            None => write!(f, "a lookup")?,
            Some(UnitDump { name, holds_thread: false, .. }) => write!(f, "{name}")?,
            Some(UnitDump { name, holds_thread: true, .. }) => write!(f, "{name}, which holds a thread,")?,
        }
        write!(f, " waits until ")?;
        for (position, (dylib, name)) in self.waits_for.iter().enumerate() {
            write!(f, "{}{dylib}/{name}", if position == 0 { "" } else { ", " })?;
        }
        write!(f, " {} {}", if self.waits_for.len() == 1 { "is" } else { "are" }, self.required)
    }
}

impl SessionDump {
    /// The same as a graph, for `dot`: an arrow leads to what is needed, and is bold where that is
    /// waited for; dashed arrows are lookups, and lead from what the unit defines that asks.
    #[must_use]
    pub fn graphviz(&self) -> String {
        let mut out = String::from("digraph session {\n  node [shape=box, style=filled];\n");
        for (number, dylib) in self.dylibs.iter().enumerate() {
            // Writing to a string does not fail.
            _ = writeln!(out, "  subgraph cluster_{number} {{\n    label={};", quoted(&dylib.name));
            for symbol in &dylib.symbols {
                let id = quoted(&format!("{}/{}", dylib.name, symbol.name));
                let label = quoted(&format!("{}\n{}", symbol.name, symbol.state));
                _ = writeln!(out, "    {id} [label={label}, fillcolor={}];", colour(symbol));
            }
            out += "  }\n";
            for symbol in &dylib.symbols {
                for (needed_dylib, needed, is_ready) in &symbol.needs {
                    let from = quoted(&format!("{}/{}", dylib.name, symbol.name));
                    let to = quoted(&format!("{needed_dylib}/{needed}"));
                    let style = if *is_ready { "" } else { " [style=bold, color=red]" };
                    _ = writeln!(out, "  {from} -> {to}{style};");
                }
            }
        }
        for (number, lookup) in self.lookups.iter().enumerate() {
            let mut from: Vec<_> = lookup.unit.iter().flat_map(|unit| &unit.defines).map(node).collect();
            if from.is_empty() {
                from.push(format!("lookup_{number}"));
                _ = writeln!(out, "  lookup_{number} [label=lookup, shape=ellipse, fillcolor=white];");
            }
            let colour = if lookup.unit.as_ref().is_some_and(|unit| unit.holds_thread) { "red" } else { "blue" };
            for from in from {
                for to in &lookup.waits_for {
                    _ = writeln!(out, "  {from} -> {} [style=dashed, color={colour}];", node(to));
                }
            }
        }
        out + "}\n"
    }
}

/// A symbol's node, by its dylib and name.
fn node((dylib, name): &(String, String)) -> String {
    quoted(&format!("{dylib}/{name}"))
}

fn colour(symbol: &SymbolDump) -> &'static str {
    match symbol.state {
        _ if symbol.failure.is_some() => "tomato",
        SymbolState::Ready => "palegreen",
        SymbolState::NeverSearched => "white",
        _ => "khaki",
    }
}

/// A string as `dot` reads it.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            other => out.push(other),
        }
    }
    out + "\""
}
