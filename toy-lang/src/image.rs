//! A whole program ahead of time: which functions its object file has, and what its `main` does in which order.
//!
//! Run by the JIT, a program is a sequence: an expression calls the functions as they are when it is reached. A
//! function that the program defines twice is therefore called through a *slot*, a variable that `main` sets anew where
//! the later definition stands. So is one that an expression reaches before the program defines it: until then it is
//! the linker's to find. All others are called directly, and an `extern` binds to the definition, which may come later.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use crate::ast::{Expr, Item, Name, Parameter, Prototype};
use crate::check;
use crate::diagnostic::{Diagnostic, Problem};

/// The function of the runtime that prints the value of a top-level expression.
pub const PRINT: &str = "kaleidoscope_print";

/// The symbols of an executable that the program can't have for functions of its own: what the C library starts, and
/// what the runtime is and calls.
const TAKEN: [&str; 11] =
    ["main", PRINT, "atoi", "memcpy", "printf", "putchar", "puts", "snprintf", "strchr", "strlen", "strtod"];

/// The functions that an image has itself, if it is a program: no library can have them.
const OWN: [&str; 2] = ["main", PRINT];

/// Says whether a program, whose items have been admitted in this order, can be linked.
///
/// # Errors
/// The functions that it expects of the linker and that are not what it declares, each with the item that calls it.
pub fn check(items: &[Item]) -> Result<(), Vec<(usize, Diagnostic)>> {
    let image = Image::new(items);
    if !image.is_program() {
        return Ok(());
    }
    let mut wrong: HashMap<&Name, Problem> = HashMap::new();
    for Import { name, arity, is_weak } in &image.imports {
        let problem = match Problem::wrong_declaration(name, *arity) {
            _ if OWN.contains(&&**name) => Problem::OwnOfImage(name.clone()),
            Some(problem) if !is_weak => problem,
            _ => continue,
        };
        wrong.insert(name, problem);
    }
    let mut diagnostics = Vec::new();
    for (index, item) in items.iter().enumerate() {
        for (name, span) in item.body().into_iter().flat_map(check::callees) {
            diagnostics.extend(wrong.remove(&name).map(|problem| (index, Diagnostic::new(problem, span))));
        }
    }
    if diagnostics.is_empty() { Ok(()) } else { Err(diagnostics) }
}

/// What a program becomes.
#[derive(Debug, Default)]
pub struct Image<'p> {
    /// All functions, those of the top-level expressions included.
    pub bodies: Vec<Body<'p>>,
    /// The functions that are called through a variable.
    pub slots: Vec<Slot>,
    /// The functions that the linker finds elsewhere.
    pub imports: Vec<Import>,
    /// What `main` does. Empty if the program only defines functions: then there is no `main`, and they are exported.
    pub steps: Vec<Step>,
    /// The symbols of the functions that aren't called by their own name.
    pub renamed: HashMap<Name, String>,
}

/// A function.
#[derive(Debug)]
pub struct Body<'p> {
    /// Its symbol.
    pub symbol: String,
    /// What it takes.
    pub parameters: &'p [Parameter],
    /// What it gives.
    pub expression: &'p Expr,
}

/// A function that the linker finds elsewhere.
#[derive(Debug)]
pub struct Import {
    /// Its name, and its symbol.
    pub name: Name,
    /// How many arguments it takes.
    pub arity: usize,
    /// Whether it may be nowhere: it is called, but not by anything that the program evaluates.
    pub is_weak: bool,
}

/// A variable that says where a function's body is now.
#[derive(Debug)]
pub struct Slot {
    /// The function.
    pub name: Name,
    /// The variable's symbol.
    pub symbol: String,
    /// The body that it starts with, by index; if there is none, the import of the function's name.
    pub initial: Option<usize>,
}

/// Something that `main` does.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Prints the value of this body.
    Evaluate(usize),
    /// Sets a slot to another body.
    Redefine {
        /// The slot, by index.
        slot: usize,
        /// The body, by index.
        body: usize,
    },
}

impl<'p> Image<'p> {
    /// Arranges a program whose items have been admitted in this order.
    pub fn new(items: &'p [Item]) -> Self {
        let mut image = Self::default();
        let is_program = items.iter().any(|item| matches!(item, Item::Expression(_)));
        let mut definitions: HashMap<&Name, usize> = HashMap::new();
        for item in items {
            if let Item::Definition(function) = item {
                *definitions.entry(&function.prototype.name).or_default() += 1;
            }
        }
        let foreign = reached_undefined(items);
        let mut slots: HashMap<&Name, usize> = HashMap::new();
        let mut seen: HashMap<&Name, usize> = HashMap::new();
        for item in items {
            match item {
                Item::Extern(_) => {}
                Item::Definition(function) => {
                    let name = &function.prototype.name;
                    let body = image.bodies.len();
                    let version = seen.entry(name).and_modify(|count| *count += 1).or_insert(1);
                    let is_last = *version == definitions[name];
                    let is_foreign = foreign.contains(name);
                    let has_slot = is_foreign || definitions[name] > 1;
                    // A last body bears the name: it is what others link with.
                    let is_taken = is_foreign || is_program && TAKEN.contains(&&**name);
                    let symbol = if is_last && !is_taken { name.to_string() } else { format!("{name}.{version}") };
                    if is_taken && !has_slot {
                        image.renamed.insert(name.clone(), symbol.clone());
                    }
                    image.bodies.push(Body {
                        symbol,
                        parameters: &function.prototype.parameters,
                        expression: &function.body,
                    });
                    if !has_slot {
                        continue;
                    }
                    let slot = match slots.entry(name) {
                        Entry::Occupied(slot) => *slot.get(),
                        Entry::Vacant(slot) => {
                            let slot = *slot.insert(image.slots.len());
                            let initial = if is_foreign { None } else { Some(body) };
                            image.slots.push(Slot { name: name.clone(), symbol: format!("{name}.slot"), initial });
                            slot
                        }
                    };
                    if image.slots[slot].initial != Some(body) {
                        image.steps.push(Step::Redefine { slot, body });
                    }
                }
                Item::Expression(expression) => {
                    image.steps.push(Step::Evaluate(image.bodies.len()));
                    let symbol = format!("expression.{}", image.bodies.len());
                    image.bodies.push(Body { symbol, parameters: &[], expression });
                }
            }
        }
        if !is_program {
            // Nothing runs between two definitions: only the last counts.
            for step in image.steps.drain(..) {
                if let Step::Redefine { slot, body } = step {
                    image.slots[slot].initial = Some(body);
                }
            }
        }
        image.find_imports(items, &definitions, &foreign);
        image
    }

    /// Whether the program does something by itself. If not, its functions are for others to call.
    pub fn is_program(&self) -> bool {
        !self.steps.is_empty()
    }

    fn find_imports(&mut self, items: &'p [Item], definitions: &HashMap<&Name, usize>, foreign: &HashSet<Name>) {
        let mut called: Vec<Name> = Vec::new();
        let mut known = HashSet::new();
        for body in &self.bodies {
            let names = check::callees(body.expression).into_iter().map(|(name, _)| name);
            called.extend(names.filter(|name| known.insert(name.clone())));
        }
        let mut arities: HashMap<&str, &Prototype> = HashMap::new();
        for item in items {
            if let Item::Extern(prototype) = item {
                arities.insert(&prototype.name, prototype);
            }
        }
        for name in called {
            let is_foreign = foreign.contains(&name);
            if (is_foreign || !definitions.contains_key(&name))
                && let Some(prototype) = arities.get(&*name)
            {
                // What others call may be reached in any case.
                let is_weak = self.is_program() && !is_foreign;
                self.imports.push(Import { name, arity: prototype.parameters.len(), is_weak });
            }
        }
    }
}

/// The functions that an expression reaches while the program has not defined them, directly or through what is
/// defined then.
fn reached_undefined(items: &[Item]) -> HashSet<Name> {
    let names = |body: &Expr| check::callees(body).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let mut undefined = HashSet::new();
    let mut callees: HashMap<Name, Vec<Name>> = HashMap::new();
    // What earlier expressions have reached, by way of the present bodies.
    let mut reached = HashSet::new();
    for item in items {
        let mut pending = match item {
            Item::Extern(_) => continue,
            Item::Definition(function) => {
                let name = &function.prototype.name;
                callees.insert(name.clone(), names(&function.body));
                if reached.contains(name) {
                    reached.clear();
                }
                continue;
            }
            Item::Expression(expression) => names(expression),
        };
        while let Some(name) = pending.pop() {
            if reached.insert(name.clone()) {
                match callees.get(&name) {
                    Some(callees) => pending.extend_from_slice(callees),
                    None => _ = undefined.insert(name),
                }
            }
        }
    }
    undefined
}
