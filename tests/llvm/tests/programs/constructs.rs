//! What programs are made of.

use std::collections::{BTreeMap, HashMap};

use toy_lang::ast::{Expr, ExprKind, Function, Infix, Item};

use crate::generate::Parsed;
use crate::host;

const ALL: [&str; 15] = [
    "binary operator",
    "unary operator",
    "operator of another module",
    "loop",
    "loop that asks for time",
    "var",
    "var that hides another",
    "assignment",
    "assignment to a parameter",
    "nine arguments or more",
    "call of libm",
    "call of the host",
    "recursion with fuel",
    "forward reference to a later module",
    "branch",
];

/// How many functions there are with each construct.
#[derive(Debug, Default)]
pub(crate) struct Constructs {
    functions: BTreeMap<&'static str, usize>,
}

impl Constructs {
    /// Those that fewer functions have than `count`.
    pub(crate) fn rare(&self, count: usize) -> Vec<&'static str> {
        let of = |name: &str| self.functions.get(name).copied().unwrap_or(0);
        ALL.into_iter().filter(|name| of(name) < count).collect()
    }

    pub(crate) fn add(&mut self, parsed: &Parsed) {
        let mut modules = HashMap::new();
        for (number, items) in parsed.modules.iter().enumerate() {
            for function in functions(items) {
                modules.insert(&*function.prototype.name, number);
            }
        }
        for (number, items) in parsed.modules.iter().enumerate() {
            for function in functions(items) {
                let mut walk = Walk { function, module: number, modules: &modules, found: Vec::new() };
                let parameters = function.prototype.parameters.iter().map(|parameter| &*parameter.name);
                walk.expression(&function.body, &mut parameters.collect());
                walk.found.sort_unstable();
                walk.found.dedup();
                for name in walk.found {
                    *self.functions.entry(name).or_default() += 1;
                }
            }
        }
    }
}

fn functions(items: &[Item]) -> impl Iterator<Item = &Function> {
    items.iter().filter_map(|item| if let Item::Definition(function) = item { Some(&**function) } else { None })
}

struct Walk<'p> {
    function: &'p Function,
    module: usize,
    /// The module of each function.
    modules: &'p HashMap<&'p str, usize>,
    found: Vec<&'static str>,
}

impl<'p> Walk<'p> {
    /// Visits an expression where some variables are visible.
    fn expression(&mut self, expression: &'p Expr, visible: &mut Vec<&'p str>) {
        let outer = visible.len();
        match &expression.kind {
            ExprKind::Chain { rest, .. } => {
                for link in rest {
                    let Infix::User(operator) = &link.operator else { continue };
                    self.operator("binary operator", &operator.function);
                }
            }
            ExprKind::Unary { operator, .. } => self.operator("unary operator", &operator.function),
            ExprKind::For(parts) => {
                self.found.push("loop");
                if calls(&parts.end, "tick") {
                    self.found.push("loop that asks for time");
                }
                visible.push(&parts.variable);
            }
            ExprKind::Var { bindings, .. } => {
                self.found.push("var");
                for binding in bindings {
                    if visible.contains(&&*binding.name) {
                        self.found.push("var that hides another");
                    }
                    visible.push(&binding.name);
                }
            }
            ExprKind::Assign { name, .. } => {
                self.found.push("assignment");
                if self.function.prototype.parameters.iter().any(|parameter| parameter.name == *name) {
                    self.found.push("assignment to a parameter");
                }
            }
            ExprKind::If { .. } => self.found.push("branch"),
            ExprKind::Call { callee, arguments, .. } => self.call(callee, arguments.len()),
            _ => {}
        }
        expression.for_each_child(&mut |child| self.expression(child, visible));
        visible.truncate(outer);
    }

    fn operator(&mut self, kind: &'static str, function: &str) {
        self.found.push(kind);
        if self.modules.get(function).is_some_and(|module| *module != self.module) {
            self.found.push("operator of another module");
        }
    }

    fn call(&mut self, callee: &str, arguments: usize) {
        if arguments >= 9 {
            self.found.push("nine arguments or more");
        }
        if host::LIBM.iter().any(|(name, _)| *name == callee) {
            self.found.push("call of libm");
        }
        if host::functions()[1..].iter().any(|(name, ..)| *name == callee) {
            self.found.push("call of the host");
        }
        let own = &self.function.prototype;
        if callee == &*own.name && own.parameters.first().is_some_and(|parameter| &*parameter.name == "fuel") {
            self.found.push("recursion with fuel");
        }
        if self.modules.get(callee).is_some_and(|module| *module > self.module) {
            self.found.push("forward reference to a later module");
        }
    }
}

fn calls(expression: &Expr, name: &str) -> bool {
    let mut found = matches!(&expression.kind, ExprKind::Call { callee, .. } if &**callee == name);
    expression.for_each_child(&mut |child| found = found || calls(child, name));
    found
}
