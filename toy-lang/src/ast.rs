//! The tree of a program. It knows neither how it was written nor what becomes of it.
//!
//! Its depth is bounded by the parser ([`MAX_DEPTH`](crate::parser::MAX_DEPTH)), so that whoever walks it may recurse.
//! Left-associative operators would be the one way to a deep tree from innocent source (`1+1+1+…`): they are a flat
//! [`ExprKind::Chain`].

use std::fmt;
use std::sync::Arc;

use crate::diagnostic::Span;

/// The name of a function or of a variable.
///
/// A user-defined operator is a function named by its kind and character: `unary!`, `binary|`.
pub type Name = Arc<str>;

/// An expression and where it stands.
#[derive(Clone, Debug)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// Its place in the source.
    pub span: Span,
}

/// The kinds of expression.
#[derive(Clone, Debug)]
pub enum ExprKind {
    /// A literal.
    Number(f64),
    /// The value of a variable.
    Variable(Name),
    /// `name = value`; its value is that of `value`.
    Assign {
        /// The variable.
        name: Name,
        /// Where the variable stands.
        target: Span,
        /// What it becomes.
        value: Box<Expr>,
    },
    /// A run of left-associative operators: `((first op a) op b) op c`.
    Chain {
        /// The leftmost operand.
        first: Box<Expr>,
        /// The operators with their right operands, never empty.
        rest: Vec<Link>,
    },
    /// A user-defined unary operator and its operand.
    Unary {
        /// The function of the operator.
        operator: Operator,
        /// Its argument.
        operand: Box<Expr>,
    },
    /// `callee(arguments)`.
    Call {
        /// The function.
        callee: Name,
        /// Where the function's name stands.
        callee_span: Span,
        /// What it is called with.
        arguments: Vec<Expr>,
    },
    /// `if condition then consequent else alternative`.
    If {
        /// True unless it is zero or a NaN.
        condition: Box<Expr>,
        /// The value if the condition is true.
        consequent: Box<Expr>,
        /// The value if it is not.
        alternative: Box<Expr>,
    },
    /// `for variable = start, end, step in body`; its value is zero.
    For(Box<For>),
    /// `var a = x, b in body`.
    Var {
        /// The variables in order. Each is visible to the next one's initialiser, not to its own.
        bindings: Vec<Binding>,
        /// What they are visible to.
        body: Box<Expr>,
    },
    /// `throw value`; it has no value itself.
    Throw(Box<Expr>),
    /// `try body catch name handler`; its value is that of the body or, if that throws, of the handler.
    Try {
        /// What is tried.
        body: Box<Expr>,
        /// The variable that has what was thrown.
        name: Name,
        /// What the variable is visible to.
        handler: Box<Expr>,
    },
}

impl Expr {
    /// Where a `throw` or `try` is in it, if there is one.
    pub fn exception(&self) -> Option<Span> {
        if matches!(self.kind, ExprKind::Throw(_) | ExprKind::Try { .. }) {
            return Some(self.span);
        }
        let mut found = None;
        self.for_each_child(&mut |child| found = found.or_else(|| child.exception()));
        found
    }

    /// Visits the expressions directly inside this one, in the order of the source.
    pub fn for_each_child<'e>(&'e self, visit: &mut dyn FnMut(&'e Expr)) {
        match &self.kind {
            ExprKind::Number(_) | ExprKind::Variable(_) => {}
            ExprKind::Assign { value, .. } => visit(value),
            ExprKind::Chain { first, rest } => {
                visit(first);
                rest.iter().for_each(|link| visit(&link.operand));
            }
            ExprKind::Unary { operand, .. } => visit(operand),
            ExprKind::Call { arguments, .. } => arguments.iter().for_each(visit),
            ExprKind::If { condition, consequent, alternative } => {
                [condition, consequent, alternative].into_iter().for_each(|part| visit(part));
            }
            ExprKind::For(parts) => {
                visit(&parts.start);
                visit(&parts.end);
                parts.step.iter().for_each(&mut *visit);
                visit(&parts.body);
            }
            ExprKind::Var { bindings, body } => {
                bindings.iter().filter_map(|binding| binding.initialiser.as_ref()).for_each(&mut *visit);
                visit(body);
            }
            ExprKind::Throw(value) => visit(value),
            ExprKind::Try { body, handler, .. } => [body, handler].into_iter().for_each(|part| visit(part)),
        }
    }
}

/// One operator of a chain, and what stands to its right.
#[derive(Clone, Debug)]
pub struct Link {
    /// What combines the two.
    pub operator: Infix,
    /// The right operand.
    pub operand: Expr,
}

/// An infix operator other than assignment.
#[derive(Clone, Debug)]
pub enum Infix {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
    /// `<`: one if less or unordered, otherwise zero.
    Less,
    /// One that the program defines.
    User(Operator),
}

/// The use of a user-defined operator.
#[derive(Clone, Debug)]
pub struct Operator {
    /// The function that it calls, such as `binary|`.
    pub function: Name,
    /// Where the operator stands.
    pub span: Span,
}

/// The parts of a loop.
#[derive(Clone, Debug)]
pub struct For {
    /// The loop's variable, which the body may assign.
    pub variable: Name,
    /// Its first value; the variable is not visible here.
    pub start: Expr,
    /// Evaluated after the body, before the step is added; the loop goes on while it is true.
    pub end: Expr,
    /// What is added each time; one if absent.
    pub step: Option<Expr>,
    /// What is evaluated, at least once.
    pub body: Expr,
}

/// A variable of a `var`.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Its name.
    pub name: Name,
    /// Its first value; zero if absent.
    pub initialiser: Option<Expr>,
}

/// What a function is called and takes.
#[derive(Clone, Debug)]
pub struct Prototype {
    /// The name; `unary!` or `binary|` for an operator.
    pub name: Name,
    /// Where the name stands.
    pub span: Span,
    /// The parameters, all doubles.
    pub parameters: Vec<Parameter>,
    /// The precedence, if this is a binary operator.
    pub precedence: Option<u8>,
}

impl fmt::Display for Prototype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name.strip_prefix("binary"), self.precedence) {
            (Some(character), Some(precedence)) => write!(f, "binary{character} {precedence} (")?,
            _ => write!(f, "{}(", self.name)?,
        }
        for (i, parameter) in self.parameters.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { " " }, parameter.name)?;
        }
        f.write_str(")")
    }
}

/// A parameter of a function.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: Name,
    /// Where it stands.
    pub span: Span,
}

/// A function with its body.
#[derive(Clone, Debug)]
pub struct Function {
    /// What it is called and takes.
    pub prototype: Prototype,
    /// What it gives.
    pub body: Expr,
}

/// What a program is a list of.
#[derive(Clone, Debug)]
pub enum Item {
    /// `def prototype body`
    Definition(Arc<Function>),
    /// `extern prototype`
    Extern(Prototype),
    /// A top-level expression, evaluated when it is reached.
    Expression(Expr),
}

impl Item {
    /// What it evaluates, at once or when it is called.
    pub fn body(&self) -> Option<&Expr> {
        match self {
            Self::Definition(function) => Some(&function.body),
            Self::Extern(_) => None,
            Self::Expression(expression) => Some(expression),
        }
    }

    /// Where a `throw` or `try` is in it, if there is one.
    pub fn exception(&self) -> Option<Span> {
        self.body().and_then(Expr::exception)
    }
}
