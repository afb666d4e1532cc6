//! A program that grows: what is defined, what waits for a definition, and what calls what.
//!
//! A definition is handed to the [`Engine`] as soon as all that it reaches is there: defined in the program, or a
//! symbol of the process. Until then it waits: this is how a function may call another that is declared `extern` now
//! and defined later. Definitions that follow each other are handed over together, so that they compile in parallel.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orcane::SourceText;

use crate::ast::{Expr, Function, Item, Name};
use crate::check::{Environment, callees};
use crate::diagnostic::{Diagnostic, Problem, Source, Span};
use crate::engine::{Engine, EngineError, EngineOptions, Statistics};
use crate::parser::Operators;
use crate::program;

/// Why an item had no effect.
#[derive(Debug)]
#[non_exhaustive]
pub enum Failure {
    /// The program is wrong.
    Program(Vec<Diagnostic>),
    /// The program is right but can't be compiled.
    Engine(EngineError),
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

/// A program under execution.
#[derive(Debug)]
pub struct Session {
    engine: Engine,
    /// What is declared.
    pub environment: Environment,
    /// The operators that are defined.
    pub operators: Operators,
    definitions: HashMap<Name, Definition>,
    /// The definitions that the engine hasn't got, oldest first. Names may be there twice.
    waiting: Vec<Name>,
    /// What is being executed.
    source: Option<Arc<SourceText>>,
    /// Symbols of the process that the program has been found to use.
    symbols: HashSet<Name>,
    parse: Duration,
    check: Duration,
}

#[derive(Debug)]
struct Definition {
    function: Arc<Function>,
    callees: Vec<Name>,
    source: Option<Arc<SourceText>>,
    /// Whether this body, not an earlier one, is what the engine runs.
    is_current: bool,
}

impl Session {
    /// An empty program.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn new(options: EngineOptions) -> Result<Self, EngineError> {
        Ok(Self {
            engine: Engine::new(options)?,
            environment: Environment::default(),
            operators: Operators::default(),
            definitions: HashMap::new(),
            waiting: Vec::new(),
            source: None,
            symbols: HashSet::new(),
            parse: Duration::ZERO,
            check: Duration::ZERO,
        })
    }

    /// Reads and checks a source as a whole. Nothing of it is executed yet.
    ///
    /// # Errors
    /// What is wrong with it. The session is then only good for reading further sources.
    pub fn read(&mut self, source: &Source) -> Result<Vec<Item>, Vec<Diagnostic>> {
        let start = Instant::now();
        let items = program::parse(source, &mut self.operators);
        self.parse += start.elapsed();
        let items = items?;
        let start = Instant::now();
        let checked = program::check(&items, &mut self.environment);
        self.check += start.elapsed();
        checked.map(|()| items)
    }

    /// Says where the items come from that are executed from now on.
    pub fn set_source(&mut self, source: &Source) {
        let path = std::path::absolute(&source.name).unwrap_or_else(|_| source.name.clone().into());
        self.source = Some(Arc::new(SourceText::new(path, &source.text)));
    }

    /// Executes an item that has been checked: the value, if it is an expression.
    ///
    /// # Errors
    /// It calls what isn't defined yet, or can't be compiled.
    pub fn execute(&mut self, item: &Item) -> Result<Option<f64>, Failure> {
        match item {
            Item::Definition(function) => self.define(function),
            Item::Extern(_) => {}
            Item::Expression(expression) => {
                self.settle()?;
                self.require(expression)?;
                return Ok(Some(self.engine.evaluate(expression, self.source.as_ref())?));
            }
        }
        Ok(None)
    }

    /// Hands over to the engine what waits, if all that it reaches is there. To be called when no definition is about
    /// to follow; an expression does it by itself.
    ///
    /// # Errors
    /// A function can't be compiled. It counts as declared but not defined from now on.
    pub fn settle(&mut self) -> Result<(), Failure> {
        let mut waiting = std::mem::take(&mut self.waiting);
        let mut seen = HashSet::new();
        waiting.retain(|name| {
            self.definitions.get(name).is_some_and(|definition| !definition.is_current) && seen.insert(name.clone())
        });
        let mut blocked = self.blocked(&waiting);
        let (held, ready): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|name| blocked.remove(name).is_some());
        self.waiting = held;
        if ready.is_empty() {
            return Ok(());
        }
        let functions: Vec<_> = ready
            .iter()
            .filter_map(|name| self.definitions.get(name))
            .map(|found| Arc::clone(&found.function))
            .collect();
        // Lines are told of functions that have one source: a module has no more.
        let mut sources = ready.iter().filter_map(|name| self.definitions.get(name)).map(|found| found.source.as_ref());
        let first = sources.next().flatten();
        let source = first.filter(|first| sources.all(|other| other.is_some_and(|other| Arc::ptr_eq(first, other))));
        let result = self.engine.define(&functions, source);
        for name in ready {
            match &result {
                Ok(()) => {
                    if let Some(definition) = self.definitions.get_mut(&name) {
                        definition.is_current = true;
                    }
                }
                Err(_) => drop(self.definitions.remove(&name)),
            }
        }
        Ok(result?)
    }

    /// The body of a function, if it is defined.
    pub fn definition(&self, name: &str) -> Option<&Arc<Function>> {
        self.definitions.get(name).map(|definition| &definition.function)
    }

    /// The engine, for its listings.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What has been done so far, and how long it took.
    pub fn statistics(&self) -> Statistics {
        Statistics { parse: self.parse, check: self.check, ..self.engine.statistics() }
    }

    fn define(&mut self, function: &Arc<Function>) {
        let name = &function.prototype.name;
        let callees = callees(&function.body).into_iter().map(|(name, _)| name).collect();
        if self.symbols.remove(name) {
            // Its callers are bound to the process's function of this name.
            for (caller, definition) in &mut self.definitions {
                if definition.callees.contains(name) {
                    definition.is_current = false;
                    self.waiting.push(caller.clone());
                }
            }
        }
        let definition =
            Definition { function: Arc::clone(function), callees, source: self.source.clone(), is_current: false };
        self.definitions.insert(name.clone(), definition);
        self.waiting.push(name.clone());
    }

    /// Which of the waiting definitions reach something that is nowhere defined, and what.
    fn blocked(&mut self, waiting: &[Name]) -> HashMap<Name, Name> {
        let mut callers: HashMap<Name, Vec<Name>> = HashMap::new();
        let mut blocked: HashMap<Name, Name> = HashMap::new();
        let mut reached = Vec::new();
        for name in waiting {
            let Some(definition) = self.definitions.get(name) else { continue };
            for callee in definition.callees.clone() {
                match self.definitions.get(&callee).map(|definition| definition.is_current) {
                    Some(true) => {}
                    Some(false) => callers.entry(callee).or_default().push(name.clone()),
                    None if self.has_symbol(&callee) => {}
                    None => {
                        if blocked.insert(name.clone(), callee).is_none() {
                            reached.push(name.clone());
                        }
                    }
                }
            }
        }
        while let Some(name) = reached.pop() {
            let missing = blocked[&name].clone();
            for caller in callers.remove(&name).unwrap_or_default() {
                if blocked.insert(caller.clone(), missing.clone()).is_none() {
                    reached.push(caller);
                }
            }
        }
        blocked
    }

    /// Checks that everything an expression calls, directly or not, is defined.
    fn require(&mut self, expression: &Expr) -> Result<(), Failure> {
        let waiting = self.waiting.clone();
        let blocked = self.blocked(&waiting);
        for (callee, span) in callees(expression) {
            match self.definitions.contains_key(&callee) {
                true if blocked.is_empty() => {}
                true => {
                    if let Some(missing) = self.first_blocked(&callee, &blocked) {
                        return Err(self.missing(&missing, span));
                    }
                }
                false if self.has_symbol(&callee) => {}
                false => return Err(self.missing(&callee, span)),
            }
        }
        Ok(())
    }

    /// What is missing for `name` to run, if anything is: a current function may call one whose new body waits.
    fn first_blocked(&self, name: &Name, blocked: &HashMap<Name, Name>) -> Option<Name> {
        let mut seen = HashSet::from([name]);
        let mut pending = vec![name];
        while let Some(name) = pending.pop() {
            if let Some(missing) = blocked.get(name) {
                return Some(missing.clone());
            }
            if let Some(definition) = self.definitions.get(name) {
                pending.extend(definition.callees.iter().filter(|&callee| seen.insert(callee)));
            }
        }
        None
    }

    /// Why a function that is declared can't be called.
    fn missing(&self, name: &Name, span: Span) -> Failure {
        let problem = self.wrong_declaration(name).unwrap_or_else(|| Problem::Undefined(name.clone()));
        Failure::Program(vec![Diagnostic::new(problem, span)])
    }

    /// What is wrong with the declaration of a function, if it is one of the runtime's.
    fn wrong_declaration(&self, name: &Name) -> Option<Problem> {
        Problem::wrong_declaration(name, self.environment.function(name)?.prototype.parameters.len())
    }

    /// Whether a function that the program doesn't define is there as it is declared.
    fn has_symbol(&mut self, name: &Name) -> bool {
        if self.symbols.contains(name) {
            return true;
        }
        if self.wrong_declaration(name).is_some() {
            return false;
        }
        let found = self.engine.has_symbol(name);
        if found {
            self.symbols.insert(name.clone());
        }
        found
    }
}
