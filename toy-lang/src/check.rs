//! Names and arities: after it, lowering can't fail for a reason of the program's.

use std::collections::{HashMap, HashSet};

use crate::ast::{Expr, ExprKind, Function, Infix, Item, Name, Operator, Prototype};
use crate::diagnostic::{Diagnostic, Problem, Span};

/// The functions that a program has declared so far.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    functions: HashMap<Name, Declared>,
}

/// What is known of a function.
#[derive(Clone, Debug)]
pub struct Declared {
    /// Its latest prototype.
    pub prototype: Prototype,
    /// Whether a `def` was there, not only an `extern`.
    pub defined: bool,
}

impl Environment {
    /// What is known of `name`.
    pub fn function(&self, name: &str) -> Option<&Declared> {
        self.functions.get(name)
    }

    /// All that is known, by name.
    pub fn functions(&self) -> Vec<&Declared> {
        let mut all: Vec<_> = self.functions.values().collect();
        all.sort_by(|a, b| a.prototype.name.cmp(&b.prototype.name));
        all
    }

    /// Checks an item and, if it is right, declares what it declares.
    ///
    /// # Errors
    /// All that is wrong with the item's names, in the order of the source; nothing is declared then.
    pub fn admit(&mut self, item: &Item) -> Result<(), Vec<Diagnostic>> {
        match item {
            Item::Definition(function) => self.admit_function(function),
            Item::Extern(prototype) => self.declare(prototype, false).map_err(|error| vec![error]),
            Item::Expression(body) => self.check_body(&[], body),
        }
    }

    fn admit_function(&mut self, function: &Function) -> Result<(), Vec<Diagnostic>> {
        let prototype = &function.prototype;
        let previous = self.functions.get(&prototype.name).cloned();
        // Before the body, which may call it.
        self.declare(prototype, true).map_err(|error| vec![error])?;
        let parameters: Vec<_> = prototype.parameters.iter().map(|parameter| &parameter.name).collect();
        self.check_body(&parameters, &function.body).inspect_err(|_| {
            match previous {
                Some(previous) => self.functions.insert(prototype.name.clone(), previous),
                None => self.functions.remove(&prototype.name),
            };
        })
    }

    fn declare(&mut self, prototype: &Prototype, defined: bool) -> Result<(), Diagnostic> {
        let mut declared = Declared { prototype: prototype.clone(), defined };
        if let Some(previous) = self.functions.get(&prototype.name) {
            let (before, now) = (previous.prototype.parameters.len(), prototype.parameters.len());
            if before != now {
                let name = prototype.name.clone();
                let problem = Problem::ArityChanged { name, previous: before, found: now };
                return Err(Diagnostic::new(problem, prototype.span));
            }
            declared.defined |= previous.defined;
        }
        self.functions.insert(prototype.name.clone(), declared);
        Ok(())
    }

    fn check_body(&self, parameters: &[&Name], body: &Expr) -> Result<(), Vec<Diagnostic>> {
        let mut scope = HashMap::new();
        for &parameter in parameters {
            scope.insert(parameter, 1);
        }
        let mut checker = Checker { environment: self, scope, diagnostics: Vec::new() };
        checker.expression(body);
        if checker.diagnostics.is_empty() { Ok(()) } else { Err(checker.diagnostics) }
    }
}

/// The functions that an expression calls, each once, with the place of a call.
pub fn callees(expression: &Expr) -> Vec<(Name, Span)> {
    let mut calls = Vec::new();
    let mut seen = HashSet::new();
    visit_calls(expression, &mut |name, span| {
        if seen.insert(name.clone()) {
            calls.push((name.clone(), span));
        }
    });
    calls
}

fn visit_calls(expression: &Expr, visit: &mut dyn FnMut(&Name, Span)) {
    match &expression.kind {
        ExprKind::Call { callee, callee_span, .. } => visit(callee, *callee_span),
        ExprKind::Unary { operator, .. } => visit(&operator.function, operator.span),
        ExprKind::Chain { rest, .. } => {
            for link in rest {
                if let Infix::User(operator) = &link.operator {
                    visit(&operator.function, operator.span);
                }
            }
        }
        _ => {}
    }
    expression.for_each_child(&mut |child| visit_calls(child, visit));
}

struct Checker<'e> {
    environment: &'e Environment,
    /// How many bindings of each name enclose the place under check.
    scope: HashMap<&'e Name, usize>,
    diagnostics: Vec<Diagnostic>,
}

impl<'e> Checker<'e> {
    fn expression(&mut self, expression: &'e Expr) {
        match &expression.kind {
            ExprKind::Number(_) => {}
            ExprKind::Variable(name) => self.variable(name, expression.span),
            ExprKind::Assign { name, target, value } => {
                self.variable(name, *target);
                self.expression(value);
            }
            ExprKind::Chain { first, rest } => {
                self.expression(first);
                for link in rest {
                    if let Infix::User(operator) = &link.operator {
                        self.operator("binary", operator);
                    }
                    self.expression(&link.operand);
                }
            }
            ExprKind::Unary { operator, operand } => {
                self.operator("unary", operator);
                self.expression(operand);
            }
            ExprKind::Call { callee, callee_span, arguments } => {
                self.call(callee, *callee_span, expression.span, arguments.len());
                for argument in arguments {
                    self.expression(argument);
                }
            }
            ExprKind::Try { body, name, handler } => {
                self.expression(body);
                self.bind(name);
                self.expression(handler);
                self.unbind(name);
            }
            ExprKind::If { .. } | ExprKind::Throw(_) => expression.for_each_child(&mut |child| self.expression(child)),
            ExprKind::For(parts) => {
                self.expression(&parts.start);
                self.bind(&parts.variable);
                self.expression(&parts.end);
                if let Some(step) = &parts.step {
                    self.expression(step);
                }
                self.expression(&parts.body);
                self.unbind(&parts.variable);
            }
            ExprKind::Var { bindings, body } => {
                for binding in bindings {
                    if let Some(initialiser) = &binding.initialiser {
                        self.expression(initialiser);
                    }
                    self.bind(&binding.name);
                }
                self.expression(body);
                for binding in bindings {
                    self.unbind(&binding.name);
                }
            }
        }
    }

    fn bind(&mut self, name: &'e Name) {
        *self.scope.entry(name).or_default() += 1;
    }

    fn unbind(&mut self, name: &'e Name) {
        if let Some(count) = self.scope.get_mut(name) {
            *count -= 1;
        }
    }

    fn variable(&mut self, name: &Name, span: Span) {
        if self.scope.get(name).copied().unwrap_or(0) == 0 {
            self.diagnostics.push(Diagnostic::new(Problem::UnknownVariable(name.clone()), span));
        }
    }

    fn operator(&mut self, kind: &'static str, operator: &Operator) {
        if self.environment.function(&operator.function).is_none() {
            let character = operator.function.chars().next_back().unwrap_or('?');
            let problem = Problem::UnknownOperator { kind, operator: character };
            self.diagnostics.push(Diagnostic::new(problem, operator.span));
        }
    }

    fn call(&mut self, callee: &Name, callee_span: Span, span: Span, found: usize) {
        let Some(declared) = self.environment.function(callee) else {
            return self.diagnostics.push(Diagnostic::new(Problem::UnknownFunction(callee.clone()), callee_span));
        };
        let expected = declared.prototype.parameters.len();
        if expected != found {
            let problem = Problem::WrongArity { name: callee.clone(), expected, found };
            self.diagnostics.push(Diagnostic::new(problem, span));
        }
    }
}
