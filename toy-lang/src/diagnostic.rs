//! What can be wrong with a program, where, and how that is shown.

use std::io::{self, Write};
use std::ops::Range;

use ariadne::{Config, IndexType, Label, Report, ReportKind};

use crate::ast::Name;
use crate::parser::{MAX_DEPTH, MAX_PARAMETERS};
use crate::runtime;

/// A place in a source: a range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// The bytes from `start` up to `end`.
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// From the beginning of this to the end of `other`.
    pub fn to(self, other: Span) -> Self {
        Self { start: self.start, end: other.end }
    }
}

/// Text to compile, and what to call it in messages.
#[derive(Clone, Debug)]
pub struct Source {
    /// A file's path, or a name such as `<stdin>`.
    pub name: String,
    /// The program, or a part of it that starts at the beginning of a line.
    pub text: String,
    /// How many lines come before the text.
    pub lines_before: usize,
}

impl Source {
    /// A source of text.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), lines_before: 0 }
    }

    /// A source of bytes, which must be UTF-8.
    ///
    /// # Errors
    /// The bytes aren't UTF-8. The source beside the diagnostic is a legible stand-in to show it with.
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Result<Self, (Self, Diagnostic)> {
        let name = name.into();
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::new(name, text)),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let end = at + char::REPLACEMENT_CHARACTER.len_utf8();
                Err((Self::new(name, text), Diagnostic::new(Problem::NotUtf8, Span::new(at, end))))
            }
        }
    }

    /// Line and column, counted from one, of byte `position`.
    pub fn line_and_column(&self, position: usize) -> (usize, usize) {
        let before = &self.text.as_bytes()[..position.min(self.text.len())];
        let line_start = before.iter().rposition(|&b| b == b'\n').map_or(0, |newline| newline + 1);
        let line = self.lines_before + before.iter().filter(|&&b| b == b'\n').count() + 1;
        (line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The source has bytes that aren't UTF-8.
    #[error("the source is not UTF-8 text")]
    NotUtf8,
    /// A character that means nothing.
    #[error("unexpected character {0:?}")]
    UnexpectedCharacter(char),
    /// Digits and points that are no number.
    #[error("malformed number: one decimal point at most, and a digit at least")]
    MalformedNumber,
    /// `1e5`, `2px`.
    #[error("malformed number: only digits and a decimal point make a number")]
    NumberSuffix,
    /// The grammar asks for something else.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What the grammar asks for.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// Nesting beyond [`MAX_DEPTH`].
    #[error("nested too deeply: more than {MAX_DEPTH} levels")]
    TooDeep,
    /// A function beyond [`MAX_PARAMETERS`].
    #[error("too many parameters: more than {MAX_PARAMETERS}")]
    TooManyParameters,
    /// A character that can't be an operator.
    #[error("{0:?} can't be an operator")]
    NotAnOperator(char),
    /// `def binary+ …`
    #[error("`{0}` is built in: its meaning as a binary operator can't be changed")]
    BuiltInOperator(char),
    /// A precedence that isn't a whole number from 1 to 100.
    #[error("a precedence is a whole number from 1 to 100")]
    InvalidPrecedence,
    /// An operator with the wrong number of operands.
    #[error("a {kind} operator has {expected} operand{}, this one has {found}", plural(*.expected))]
    OperandCount {
        /// `unary` or `binary`.
        kind: &'static str,
        /// How many operands this kind has.
        expected: usize,
        /// How many parameters are given.
        found: usize,
    },
    /// `def f(x x) …`
    #[error("parameter `{0}` is there twice")]
    DuplicateParameter(Name),
    /// `1 = 2`
    #[error("the left side of `=` must be a variable")]
    NotAssignable,
    /// An operator that is neither built in nor defined.
    #[error("{kind} operator `{operator}` is not defined")]
    UnknownOperator {
        /// `unary` or `binary`.
        kind: &'static str,
        /// The operator's character.
        operator: char,
    },
    /// A variable that isn't in scope.
    #[error("unknown variable `{0}`")]
    UnknownVariable(Name),
    /// A function that isn't declared before its use.
    #[error("unknown function `{0}`")]
    UnknownFunction(Name),
    /// A call with the wrong number of arguments.
    #[error("`{name}` takes {expected} argument{}, but {found} {} given", plural(*.expected), is_are(*.found))]
    WrongArity {
        /// The function.
        name: Name,
        /// How many it takes.
        expected: usize,
        /// How many it is given.
        found: usize,
    },
    /// A function that is there already with another arity.
    #[error("`{name}` is declared with {previous} parameter{} already, and can't change to {found}", plural(*.previous))]
    ArityChanged {
        /// The function.
        name: Name,
        /// How many parameters it has.
        previous: usize,
        /// How many it is given now.
        found: usize,
    },
    /// A function that is needed now, and is declared but nowhere defined.
    #[error("`{0}` is declared, but neither this program nor the process defines it")]
    Undefined(Name),
    /// A function of the runtime that is declared with another arity and not defined.
    #[error(
        "`{name}` is declared with {found} parameter{}, but the runtime's, which is meant, takes {expected}",
        plural(*.found)
    )]
    WrongDeclaration {
        /// The function.
        name: Name,
        /// How many arguments it takes.
        expected: usize,
        /// How many parameters it is declared with.
        found: usize,
    },
    /// A function that is expected of a library and that every emitted program has itself.
    #[error("`{0}` is the emitted program's own: no function of a library can be called by this name")]
    OwnOfImage(Name),
    /// An exception in a program that is not for the JIT.
    #[error("`throw` and `try` need the JIT: only a program that runs here can have them")]
    NeedsJit,
}

impl Problem {
    /// What is wrong with the declaration of a function that the program doesn't define, if it is one of the runtime's.
    pub fn wrong_declaration(name: &Name, found: usize) -> Option<Self> {
        let expected = runtime::arity(name).filter(|&expected| expected != found)?;
        Some(Self::WrongDeclaration { name: name.clone(), expected, found })
    }

    fn help(&self) -> Option<&'static str> {
        match self {
            Self::UnknownFunction(_) => Some("`def` it first, or declare it with `extern`"),
            Self::UnknownOperator { kind: "unary", .. } => {
                Some("define it, as in `def unary-(v) 0-v`; no unary operator is built in")
            }
            Self::UnknownOperator { .. } => {
                Some("define it, as in `def binary| 5 (a b) if a then 1 else if b then 1 else 0`")
            }
            Self::ArityChanged { .. } => Some("a function is replaced by one of the same arity only"),
            _ => None,
        }
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn is_are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// Something wrong, at a place of a source.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    /// What is wrong.
    pub problem: Problem,
    /// Where.
    pub span: Span,
    /// Whether more text could put it right: the source ends too early.
    pub at_end: bool,
}

/// A line longer than this isn't drawn: the picture would hide the message.
const LONGEST_DRAWN_LINE: usize = 500;

impl Diagnostic {
    /// A problem at a place.
    pub fn new(problem: Problem, span: Span) -> Self {
        Self { problem, span, at_end: false }
    }

    /// Draws the diagnostic and the lines of `source` it is about.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, source: &Source, colour: bool, out: &mut dyn Write) -> io::Result<()> {
        let Range { start, end } = self.drawn_range(&source.text);
        let line_start = source.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = source.text[end..].find('\n').map_or(source.text.len(), |length| end + length);
        if source.text[line_start..line_end].split('\n').any(|line| line.len() > LONGEST_DRAWN_LINE) {
            let (line, column) = source.line_and_column(self.span.start);
            writeln!(out, "Error: {}\n   at {}:{line}:{column}", self.problem, source.name)?;
            return match self.problem.help() {
                Some(help) => writeln!(out, "   help: {help}"),
                None => Ok(()),
            };
        }
        let config = Config::default().with_index_type(IndexType::Byte).with_color(colour).with_compact(false);
        let name = source.name.as_str();
        // ariadne's own line offset doesn't reach the margin.
        let text = "\n".repeat(source.lines_before) + &source.text;
        let range = start + source.lines_before..end + source.lines_before;
        let label = Label::new((name, range.clone())).with_message(self.problem.to_string());
        let mut report = Report::build(ReportKind::Error, (name, range))
            .with_config(config)
            .with_message(&self.problem)
            .with_label(if colour { label.with_color(ariadne::Color::Red) } else { label });
        if let Some(help) = self.problem.help() {
            report = report.with_help(help);
        }
        report.finish().write((name, ariadne::Source::from(text)), out)
    }

    /// The span, moved onto whole characters inside the text: what ends too early is shown at its last character.
    fn drawn_range(&self, text: &str) -> Range<usize> {
        let inked = text.trim_end().len();
        let start = text.floor_char_boundary(self.span.start.min(inked.saturating_sub(1)));
        let end = text.floor_char_boundary(self.span.end.min(text.len()));
        if end > start { start..end } else { start..text.ceil_char_boundary((start + 1).min(text.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(text: &str, span: Span) -> String {
        let mut out = Vec::new();
        Diagnostic::new(Problem::NotAssignable, span).write(&Source::new("t.ks", text), false, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_diagnostic_shows_place_and_line() {
        let text = drawn("def f(x)\n  x + (1 = 2)", Span::new(16, 17));
        assert!(text.contains("t.ks:2:8"), "{text}");
        assert!(text.contains("x + (1 = 2)"), "{text}");
    }

    #[test]
    fn spans_at_the_end_of_any_text_can_be_drawn() {
        for text in ["", "\n", "a", "é", "a\n\n", "\u{7f}\t"] {
            for start in 0..=text.len() {
                assert!(drawn(text, Span::new(start, text.len())).contains("must be a variable"));
            }
        }
    }

    #[test]
    fn a_huge_line_is_not_drawn() {
        let text = drawn(&"(".repeat(100_000), Span::new(300, 301));
        assert_eq!(text, "Error: the left side of `=` must be a variable\n   at t.ks:1:301\n");
    }
}
