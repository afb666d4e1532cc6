//! Read, evaluate, print, again: items are executed as their lines come in.
//!
//! An item may span lines: while what is there could go on, the next line is read. A line that is complete is not kept
//! waiting: an operator at the beginning of the next line starts a new item.

use std::io::{self, Write};
use std::time::Instant;

use crate::diagnostic::{Diagnostic, Source};
use crate::number::shortest;
use crate::parser::Parser;
use crate::session::{Failure, Session};

/// A line of input.
#[derive(Debug)]
pub enum Line {
    /// Its text, without the newline.
    Text(Vec<u8>),
    /// The user wants to forget what he has begun.
    Interrupted,
    /// There is none.
    End,
}

/// Where lines come from.
pub trait Lines {
    /// The next line; `is_continued` if it is to complete an item.
    ///
    /// # Errors
    /// Those of the terminal or file.
    fn next_line(&mut self, is_continued: bool) -> io::Result<Line>;
}

const HELP: &str = "\
Definitions and expressions are executed as they are complete; the value of an expression is printed.
  :help         shows this
  :defs         lists what is defined and declared
  :type NAME    shows the prototype of a function; :type binary| that of an operator
  :clif NAME    shows the CLIF of a function
  :asm NAME     shows the machine code of a function
  :time on|off  says how long each expression takes
  :stats        shows what was compiled so far, and how long it took
  :quit         ends
";

/// The state of a conversation.
#[derive(Debug)]
pub struct Repl<'s> {
    session: &'s mut Session,
    /// The lines that aren't done with.
    pending: Source,
    /// Where in them the next item begins.
    start: usize,
    /// Whether times are shown.
    timed: bool,
    /// Whether diagnostics are in colour.
    colour: bool,
}

impl<'s> Repl<'s> {
    /// A conversation about a session.
    pub fn new(session: &'s mut Session, colour: bool) -> Self {
        Self { session, pending: Source::new("<stdin>", ""), start: 0, timed: false, colour }
    }

    /// Executes lines until they end.
    ///
    /// # Errors
    /// Those of the lines and of standard output. A program's errors are shown, and the conversation goes on.
    pub fn run(&mut self, lines: &mut dyn Lines) -> io::Result<()> {
        loop {
            match lines.next_line(self.is_continued())? {
                Line::End => break,
                Line::Interrupted => self.forget(),
                Line::Text(bytes) => {
                    if !self.line(bytes)? {
                        return Ok(());
                    }
                }
            }
        }
        if self.is_continued() { self.execute(true) } else { Ok(()) }
    }

    fn is_continued(&self) -> bool {
        self.start < self.pending.text.len()
    }

    /// Whether to go on.
    fn line(&mut self, bytes: Vec<u8>) -> io::Result<bool> {
        let text = match Source::from_bytes(&*self.pending.name, bytes) {
            Ok(source) => source.text,
            Err((mut source, diagnostic)) => {
                source.lines_before = self.pending.lines_before + self.pending.text.lines().count();
                self.show(&source, &diagnostic)?;
                self.pending.text.push('\n');
                self.forget();
                return Ok(true);
            }
        };
        let command = text.trim();
        if !self.is_continued() && command.starts_with(':') {
            self.pending.text.push('\n');
            self.forget();
            return self.command(command);
        }
        self.pending.text.push_str(&text);
        self.pending.text.push('\n');
        self.execute(false)?;
        Ok(true)
    }

    /// Gives up what is pending.
    fn forget(&mut self) {
        self.start = self.pending.text.len();
        self.drop_lines();
    }

    /// Drops the lines that are done with.
    fn drop_lines(&mut self) {
        let end = self.pending.text[..self.start].rfind('\n').map_or(0, |newline| newline + 1);
        self.pending.lines_before += self.pending.text[..end].matches('\n').count();
        self.pending.text.drain(..end);
        self.start -= end;
    }

    /// Executes the pending items that are complete; all of them, be they complete or not, if there is nothing to come.
    fn execute(&mut self, is_end: bool) -> io::Result<()> {
        let source = self.pending.clone();
        let mut parser = Parser::new(&source.text, self.start);
        loop {
            let operators = self.session.operators;
            let item = match parser.next_item(&mut self.session.operators) {
                Ok(Some(item)) => item,
                Ok(None) => {
                    self.settle(&source)?;
                    self.forget();
                    return Ok(());
                }
                Err(diagnostic) => {
                    self.session.operators = operators;
                    self.settle(&source)?;
                    if diagnostic.at_end && !is_end {
                        self.drop_lines();
                    } else {
                        self.show(&source, &diagnostic)?;
                        self.forget();
                    }
                    return Ok(());
                }
            };
            self.start = parser.position();
            if let Err(diagnostics) = self.session.environment.admit(&item) {
                self.session.operators = operators;
                self.settle(&source)?;
                for diagnostic in &diagnostics {
                    self.show(&source, diagnostic)?;
                }
                continue;
            }
            let (before, start) = (self.session.statistics(), Instant::now());
            let result = self.session.execute(&item);
            let total = start.elapsed();
            match result {
                Ok(None) => {}
                Ok(Some(value)) => {
                    let mut out = io::stdout().lock();
                    writeln!(out, "{}", shortest(value))?;
                    if self.timed {
                        let run = self.session.statistics().run - before.run;
                        let [total, run] = [total, run].map(|time| time.as_secs_f64() * 1e3);
                        writeln!(out, "# {total:.3} ms, of which {run:.3} ms running")?;
                    }
                }
                Err(failure) => self.show_failure(&source, failure)?,
            }
        }
    }

    fn settle(&mut self, source: &Source) -> io::Result<()> {
        match self.session.settle() {
            Ok(()) => Ok(()),
            Err(failure) => self.show_failure(source, failure),
        }
    }

    fn show(&self, source: &Source, diagnostic: &Diagnostic) -> io::Result<()> {
        diagnostic.write(source, self.colour, &mut io::stderr().lock())
    }

    fn show_failure(&self, source: &Source, failure: Failure) -> io::Result<()> {
        match failure {
            Failure::Program(diagnostics) => {
                diagnostics.iter().try_for_each(|diagnostic| self.show(source, diagnostic))
            }
            Failure::Engine(error) => writeln!(io::stderr(), "Error: {error}"),
        }
    }

    /// Whether to go on.
    fn command(&mut self, command: &str) -> io::Result<bool> {
        let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let argument = rest.trim();
        let mut out = io::stdout().lock();
        match (word, argument) {
            (":help" | ":h" | ":?", _) => out.write_all(HELP.as_bytes())?,
            (":quit" | ":q", _) => return Ok(false),
            (":time", "on") => self.timed = true,
            (":time", "off") => self.timed = false,
            (":time", _) => writeln!(io::stderr(), "Error: `:time on` or `:time off`")?,
            (":stats", _) => write!(out, "{}", self.session.statistics())?,
            (":defs" | ":type", "") => {
                for declared in self.session.environment.functions() {
                    let word = if declared.defined { "def" } else { "extern" };
                    writeln!(out, "{word} {}", declared.prototype)?;
                }
            }
            (":type", name) => match self.session.environment.function(&self.function_name(name)) {
                Some(declared) => {
                    let word = if declared.defined { "def" } else { "extern" };
                    writeln!(out, "{word} {}", declared.prototype)?;
                }
                None => writeln!(io::stderr(), "Error: unknown function `{name}`")?,
            },
            (":clif" | ":asm", "") => writeln!(io::stderr(), "Error: `{word}` needs the name of a function")?,
            (":clif" | ":asm", name) => match self.session.definition(&self.function_name(name)) {
                Some(function) => {
                    let engine = self.session.engine();
                    let text = if word == ":clif" { engine.clif(function) } else { engine.assembly(function) };
                    match text {
                        Ok(text) => write!(out, "{text}")?,
                        Err(error) => writeln!(io::stderr(), "Error: {error}")?,
                    }
                }
                None => writeln!(io::stderr(), "Error: `{name}` is not defined")?,
            },
            _ => writeln!(io::stderr(), "Error: unknown command `{word}`; `:help` lists them")?,
        }
        Ok(true)
    }

    /// The function that is meant: an operator may be called by its character alone.
    fn function_name(&self, name: &str) -> String {
        // `binary |` is how a definition may spell it.
        let name: String = name.split_whitespace().collect();
        ["", "binary", "unary"]
            .into_iter()
            .map(|kind| format!("{kind}{name}"))
            .find(|name| self.session.environment.function(name).is_some())
            .unwrap_or(name)
    }
}
