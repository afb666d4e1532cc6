//! Tokens to a tree, one top-level item at a time, by recursive descent and precedence climbing.
//!
//! It knows which operators there are, since the grammar depends on it, but no other names.

use std::sync::Arc;

use crate::ast::{Binding, Expr, ExprKind, For, Function, Infix, Item, Link, Name, Operator, Parameter, Prototype};
use crate::diagnostic::{Diagnostic, Problem, Span};
use crate::lexer::{Lexer, Token};

/// How deeply expressions may nest. Every stage recurses at most this deep.
pub const MAX_DEPTH: usize = 400;

/// How many parameters a function may have.
pub const MAX_PARAMETERS: usize = 255;

/// The precedence of a binary operator that is defined without one.
const DEFAULT_PRECEDENCE: u8 = 30;

/// The operators that a program has defined so far, and the other names that steer its grammar.
#[derive(Clone, Copy, Debug)]
pub struct Operators {
    /// Zero where there is none.
    binary: [u8; 128],
    unary: [bool; 128],
    /// The names that functions have.
    names: Names,
}

/// Which of the words that begin expressions of exceptions are names instead. `catch` need not be told: it stands
/// where no name can.
#[derive(Clone, Copy, Debug, Default)]
struct Names {
    throw: bool,
    r#try: bool,
}

impl Names {
    fn add(&mut self, name: &str) {
        match name {
            "throw" => self.throw = true,
            "try" => self.r#try = true,
            _ => {}
        }
    }
}

impl Default for Operators {
    fn default() -> Self {
        Self { binary: [0; 128], unary: [false; 128], names: Names::default() }
    }
}

impl Operators {
    fn precedence(&self, operator: u8) -> Option<u8> {
        match operator {
            b'=' => Some(2),
            b'<' => Some(10),
            b'+' | b'-' => Some(20),
            b'*' | b'/' => Some(40),
            other => self.binary.get(usize::from(other)).copied().filter(|&precedence| precedence > 0),
        }
    }

    fn define(&mut self, prototype: &Prototype) {
        self.names.add(&prototype.name);
        let Some(&operator) = prototype.name.as_bytes().last() else { return };
        if let Some(precedence) = prototype.precedence {
            self.binary[usize::from(operator)] = precedence;
        } else if is_operator(operator) {
            self.unary[usize::from(operator)] = true;
        }
    }
}

/// Whether a character can be an operator: punctuation that the grammar leaves free.
fn is_operator(character: u8) -> bool {
    character.is_ascii_punctuation() && !b"(),;#._".contains(&character)
}

/// Reads items from a source, left to right.
#[derive(Debug)]
pub struct Parser<'s> {
    lexer: Lexer<'s>,
    token: Token<'s>,
    span: Span,
    /// Why `token` is [`Token::End`] though the text goes on: raised by whoever needs the token.
    lexical_error: Option<Diagnostic>,
    /// The end of the last token taken.
    taken_end: usize,
    depth: usize,
}

type Parsed<T> = Result<T, Diagnostic>;

impl<'s> Parser<'s> {
    /// Starts at byte `position` of `text`, which must be a character's first.
    pub fn new(text: &'s str, position: usize) -> Self {
        let span = Span::new(position, position);
        let lexer = Lexer::new(text, position);
        let mut parser = Self { lexer, token: Token::End, span, lexical_error: None, taken_end: position, depth: 0 };
        parser.advance();
        parser
    }

    /// The next item, or `None` at the end. The operator that it defines, if any, is added to `operators` before its
    /// body is read; who rejects the item later puts `operators` back.
    ///
    /// # Errors
    /// What follows is no item; [`Diagnostic::at_end`] if it may become one. [`recover`](Self::recover) goes on.
    pub fn next_item(&mut self, operators: &mut Operators) -> Parsed<Option<Item>> {
        self.depth = 0;
        while self.token == Token::Character(b';') {
            self.advance();
        }
        let mut descent = Descent { parser: self, operators, names: Names::default() };
        match descent.parser.token {
            Token::End => match self.lexical_error.take() {
                Some(error) => Err(error),
                None => Ok(None),
            },
            Token::Def => descent.definition().map(Some),
            Token::Extern => descent.external().map(Some),
            _ => Ok(Some(Item::Expression(descent.expression()?))),
        }
    }

    /// Skips what is left of a malformed item: past the next `;`, or up to the next `def` or `extern`.
    pub fn recover(&mut self) {
        loop {
            match self.token {
                Token::Def | Token::Extern => return,
                Token::End if self.lexical_error.is_none() => return,
                Token::Character(b';') => return self.advance(),
                _ => self.advance(),
            }
        }
    }

    /// Where the text starts that belongs to no item read so far.
    pub fn position(&self) -> usize {
        self.taken_end
    }

    fn advance(&mut self) {
        self.taken_end = self.span.end;
        self.lexical_error = None;
        match self.lexer.next_token() {
            Ok((token, span)) => (self.token, self.span) = (token, span),
            Err(error) => {
                (self.token, self.span) = (Token::End, error.span);
                self.lexical_error = Some(error);
            }
        }
    }

    fn take(&mut self) -> Span {
        let span = self.span;
        self.advance();
        span
    }

    fn take_if(&mut self, token: Token<'_>) -> bool {
        let there = self.token == token;
        if there {
            self.advance();
        }
        there
    }

    fn take_or(&mut self, token: Token<'_>, expected: &'static str) -> Parsed<Span> {
        if self.token == token { Ok(self.take()) } else { Err(self.expected(expected)) }
    }

    fn take_name(&mut self, expected: &'static str) -> Parsed<(Name, Span)> {
        match self.token.name() {
            Some(name) => Ok((Name::from(name), self.take())),
            None => Err(self.expected(expected)),
        }
    }

    fn expected(&mut self, expected: &'static str) -> Diagnostic {
        if let Some(error) = self.lexical_error.clone() {
            return error;
        }
        let found = match self.token {
            Token::End => "the end".to_owned(),
            Token::Def => "`def`".to_owned(),
            Token::Extern => "`extern`".to_owned(),
            Token::If => "`if`".to_owned(),
            Token::Then => "`then`".to_owned(),
            Token::Else => "`else`".to_owned(),
            Token::For => "`for`".to_owned(),
            Token::In => "`in`".to_owned(),
            Token::Var => "`var`".to_owned(),
            Token::Throw => "`throw`".to_owned(),
            Token::Try => "`try`".to_owned(),
            Token::Catch => "`catch`".to_owned(),
            Token::Unary => "`unary`".to_owned(),
            Token::Binary => "`binary`".to_owned(),
            Token::Identifier(_) => "a name".to_owned(),
            Token::Number(_) => "a number".to_owned(),
            Token::Character(c) => format!("`{}`", char::from(c)),
        };
        let at_end = self.token == Token::End;
        Diagnostic { at_end, ..Diagnostic::new(Problem::Expected { expected, found }, self.span) }
    }
}

/// The descent into one item: the parser, with the operators that steer it.
struct Descent<'p, 's> {
    parser: &'p mut Parser<'s>,
    operators: &'p mut Operators,
    /// The names that parameters and variables of the item have.
    names: Names,
}

impl Descent<'_, '_> {
    fn definition(&mut self) -> Parsed<Item> {
        self.parser.advance();
        let prototype = self.prototype()?;
        self.operators.define(&prototype);
        let body = self.expression()?;
        Ok(Item::Definition(Arc::new(Function { prototype, body })))
    }

    fn external(&mut self) -> Parsed<Item> {
        self.parser.advance();
        let prototype = self.prototype()?;
        self.operators.define(&prototype);
        Ok(Item::Extern(prototype))
    }

    fn prototype(&mut self) -> Parsed<Prototype> {
        let (name, span, kind) = match self.parser.token {
            Token::Unary => self.operator_name("unary", 1)?,
            Token::Binary => self.operator_name("binary", 2)?,
            _ => {
                let (name, span) = self.parser.take_name("a function's name")?;
                (name, span, None)
            }
        };
        let precedence = match kind {
            Some(("binary", _)) => Some(self.precedence()?),
            _ => None,
        };
        let open = self.parser.take_or(Token::Character(b'('), "`(` before the parameters")?;
        let mut parameters: Vec<Parameter> = Vec::new();
        while self.parser.token != Token::Character(b')') {
            let (name, span) = self.variable_name("a parameter's name or `)` (blanks separate parameters)")?;
            if parameters.iter().any(|other| other.name == name) {
                return Err(Diagnostic::new(Problem::DuplicateParameter(name), span));
            }
            if parameters.len() == MAX_PARAMETERS {
                return Err(Diagnostic::new(Problem::TooManyParameters, span));
            }
            parameters.push(Parameter { name, span });
        }
        let close = self.parser.take();
        match kind {
            Some((kind, expected)) if parameters.len() != expected => {
                let problem = Problem::OperandCount { kind, expected, found: parameters.len() };
                Err(Diagnostic::new(problem, open.to(close)))
            }
            _ => Ok(Prototype { name, span, parameters, precedence }),
        }
    }

    /// The name of an operator's function, and how many operands its kind has.
    #[expect(clippy::type_complexity, reason = "the parts of a prototype, taken apart at once by its only caller")]
    fn operator_name(
        &mut self,
        kind: &'static str,
        operands: usize,
    ) -> Parsed<(Name, Span, Option<(&'static str, usize)>)> {
        let word = self.parser.take();
        let Token::Character(operator) = self.parser.token else {
            return Err(self.parser.expected("an operator's character"));
        };
        let problem = if !is_operator(operator) {
            Problem::NotAnOperator(char::from(operator))
        } else if kind == "binary" && b"=<+-*/".contains(&operator) {
            Problem::BuiltInOperator(char::from(operator))
        } else {
            let span = word.to(self.parser.take());
            return Ok((Name::from(format!("{kind}{}", char::from(operator))), span, Some((kind, operands))));
        };
        Err(Diagnostic::new(problem, self.parser.span))
    }

    fn precedence(&mut self) -> Parsed<u8> {
        let Token::Number(number) = self.parser.token else { return Ok(DEFAULT_PRECEDENCE) };
        let span = self.parser.take();
        if (1.0..=100.0).contains(&number) && number.fract() == 0.0 {
            Ok(number as u8)
        } else {
            Err(Diagnostic::new(Problem::InvalidPrecedence, span))
        }
    }

    fn expression(&mut self) -> Parsed<Expr> {
        self.operand_of(1)
    }

    /// Runs one level deeper, for whatever encloses an expression.
    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.parser.depth == MAX_DEPTH {
            return Err(Diagnostic::new(Problem::TooDeep, self.parser.span));
        }
        self.parser.depth += 1;
        let result = parse(self);
        self.parser.depth -= 1;
        result
    }

    /// An expression of the operators that bind at least as tightly as `least`.
    fn operand_of(&mut self, least: u8) -> Parsed<Expr> {
        let mut left = self.deeper(Self::unary)?;
        loop {
            let Token::Character(operator) = self.parser.token else { return Ok(left) };
            if !is_operator(operator) {
                return Ok(left);
            }
            let Some(precedence) = self.operators.precedence(operator) else {
                // A unary operator here begins the next item.
                if self.operators.unary[usize::from(operator)] {
                    return Ok(left);
                }
                let problem = Problem::UnknownOperator { kind: "binary", operator: char::from(operator) };
                return Err(Diagnostic::new(problem, self.parser.span));
            };
            if precedence < least {
                return Ok(left);
            }
            let place = self.parser.take();
            let right = self.deeper(|descent| descent.operand_of(precedence + 1))?;
            left = combine(left, operator, place, right)?;
        }
    }

    fn unary(&mut self) -> Parsed<Expr> {
        match self.parser.token {
            Token::Character(operator) if is_operator(operator) => {
                let place = self.parser.take();
                let operand = Box::new(self.deeper(Self::unary)?);
                let span = place.to(operand.span);
                let operator = Operator { function: Name::from(format!("unary{}", char::from(operator))), span: place };
                Ok(Expr { kind: ExprKind::Unary { operator, operand }, span })
            }
            Token::Character(b'(') => self.parenthesised(),
            Token::Number(number) => Ok(Expr { kind: ExprKind::Number(number), span: self.parser.take() }),
            Token::If => self.conditional(),
            Token::For => self.repetition(),
            Token::Var => self.variables(),
            Token::Throw if !self.operators.names.throw && !self.names.throw => self.throw(),
            Token::Try if !self.operators.names.r#try && !self.names.r#try => self.attempt(),
            token => match token.name() {
                Some(name) => self.variable_or_call(name.into()),
                None => Err(self.parser.expected("an expression")),
            },
        }
    }

    /// The name of a parameter or variable, which it is from here to the end of the item.
    fn variable_name(&mut self, expected: &'static str) -> Parsed<(Name, Span)> {
        let (name, span) = self.parser.take_name(expected)?;
        self.names.add(&name);
        Ok((name, span))
    }

    fn parenthesised(&mut self) -> Parsed<Expr> {
        let open = self.parser.take();
        let inner = self.expression()?;
        let close = self.parser.take_or(Token::Character(b')'), "`)`")?;
        Ok(Expr { span: open.to(close), ..inner })
    }

    fn variable_or_call(&mut self, name: Name) -> Parsed<Expr> {
        let place = self.parser.take();
        if !self.parser.take_if(Token::Character(b'(')) {
            return Ok(Expr { kind: ExprKind::Variable(name), span: place });
        }
        let mut arguments = Vec::new();
        if self.parser.token != Token::Character(b')') {
            arguments.push(self.expression()?);
            while self.parser.take_if(Token::Character(b',')) {
                arguments.push(self.expression()?);
            }
        }
        let close = self.parser.take_or(Token::Character(b')'), "`,` or `)` after an argument")?;
        let kind = ExprKind::Call { callee: name, callee_span: place, arguments };
        Ok(Expr { kind, span: place.to(close) })
    }

    fn conditional(&mut self) -> Parsed<Expr> {
        let start = self.parser.take();
        let condition = Box::new(self.expression()?);
        self.parser.take_or(Token::Then, "`then`")?;
        let consequent = Box::new(self.expression()?);
        self.parser.take_or(Token::Else, "`else`")?;
        let alternative = Box::new(self.expression()?);
        let span = start.to(alternative.span);
        Ok(Expr { kind: ExprKind::If { condition, consequent, alternative }, span })
    }

    fn repetition(&mut self) -> Parsed<Expr> {
        let place = self.parser.take();
        let (variable, _) = self.variable_name("the loop variable's name")?;
        self.parser.take_or(Token::Character(b'='), "`=` after the loop variable")?;
        let start = self.expression()?;
        self.parser.take_or(Token::Character(b','), "`,` after the loop's first value")?;
        let end = self.expression()?;
        let step = if self.parser.take_if(Token::Character(b',')) { Some(self.expression()?) } else { None };
        self.parser.take_or(Token::In, "`in` before the loop's body")?;
        let body = self.expression()?;
        let span = place.to(body.span);
        Ok(Expr { kind: ExprKind::For(Box::new(For { variable, start, end, step, body })), span })
    }

    fn variables(&mut self) -> Parsed<Expr> {
        let place = self.parser.take();
        let mut bindings = Vec::new();
        loop {
            let (name, _) = self.variable_name("a variable's name")?;
            let has_initialiser = self.parser.take_if(Token::Character(b'='));
            let initialiser = if has_initialiser { Some(self.expression()?) } else { None };
            bindings.push(Binding { name, initialiser });
            if !self.parser.take_if(Token::Character(b',')) {
                break;
            }
        }
        self.parser.take_or(Token::In, "`,` or `in` after a variable")?;
        let body = Box::new(self.expression()?);
        let span = place.to(body.span);
        Ok(Expr { kind: ExprKind::Var { bindings, body }, span })
    }

    fn throw(&mut self) -> Parsed<Expr> {
        let place = self.parser.take();
        let value = Box::new(self.expression()?);
        let span = place.to(value.span);
        Ok(Expr { kind: ExprKind::Throw(value), span })
    }

    fn attempt(&mut self) -> Parsed<Expr> {
        let place = self.parser.take();
        let body = Box::new(self.expression()?);
        self.parser.take_or(Token::Catch, "`catch`")?;
        let (name, _) = self.variable_name("a name for what is caught")?;
        let handler = Box::new(self.expression()?);
        let span = place.to(handler.span);
        Ok(Expr { kind: ExprKind::Try { body, name, handler }, span })
    }
}

fn combine(left: Expr, operator: u8, place: Span, right: Expr) -> Parsed<Expr> {
    let span = left.span.to(right.span);
    let operator = match operator {
        b'=' => {
            let ExprKind::Variable(name) = left.kind else {
                return Err(Diagnostic::new(Problem::NotAssignable, left.span));
            };
            let kind = ExprKind::Assign { name, target: left.span, value: Box::new(right) };
            return Ok(Expr { kind, span });
        }
        b'+' => Infix::Add,
        b'-' => Infix::Subtract,
        b'*' => Infix::Multiply,
        b'/' => Infix::Divide,
        b'<' => Infix::Less,
        other => Infix::User(Operator { function: Name::from(format!("binary{}", char::from(other))), span: place }),
    };
    let link = Link { operator, operand: right };
    let kind = match left.kind {
        ExprKind::Chain { first, mut rest } => {
            rest.push(link);
            ExprKind::Chain { first, rest }
        }
        kind => ExprKind::Chain { first: Box::new(Expr { kind, span: left.span }), rest: vec![link] },
    };
    Ok(Expr { kind, span })
}
