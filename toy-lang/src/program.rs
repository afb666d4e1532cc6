//! A source as a whole: all its items, or all that is wrong with it.

use crate::ast::Item;
use crate::check::Environment;
use crate::diagnostic::{Diagnostic, Source};
use crate::parser::{Operators, Parser};

/// After so many diagnostics the rest is left unsaid.
const MOST_DIAGNOSTICS: usize = 20;

/// Reads all items of a source. The operators that it defines are added to `operators`.
///
/// # Errors
/// What is malformed, in order.
pub fn parse(source: &Source, operators: &mut Operators) -> Result<Vec<Item>, Vec<Diagnostic>> {
    let mut parser = Parser::new(&source.text, 0);
    let (mut items, mut diagnostics) = (Vec::new(), Vec::new());
    while diagnostics.len() < MOST_DIAGNOSTICS {
        match parser.next_item(operators) {
            Ok(Some(item)) => items.push(item),
            Ok(None) => break,
            Err(diagnostic) => {
                diagnostics.push(diagnostic);
                parser.recover();
            }
        }
    }
    if diagnostics.is_empty() { Ok(items) } else { Err(diagnostics) }
}

/// Admits items to an environment, in order.
///
/// # Errors
/// What is wrong with their names. A function whose body is wrong is declared all the same, so that its callers aren't
/// reported as well: the environment is then good for nothing else.
pub fn check(items: &[Item], environment: &mut Environment) -> Result<(), Vec<Diagnostic>> {
    let mut diagnostics = Vec::new();
    for item in items {
        let Err(found) = environment.admit(item) else { continue };
        diagnostics.extend(found);
        if let Item::Definition(function) = item {
            // If this is what is wrong, it has been said.
            _ = environment.admit(&Item::Extern(function.prototype.clone()));
        }
        if diagnostics.len() >= MOST_DIAGNOSTICS {
            diagnostics.truncate(MOST_DIAGNOSTICS);
            break;
        }
    }
    if diagnostics.is_empty() { Ok(()) } else { Err(diagnostics) }
}
