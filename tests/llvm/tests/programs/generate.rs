//! Random programs: well-typed, and sure to end.
//!
//! A program is operators, functions in several modules, and entries that call them. A function either recurses by
//! itself, with fuel that it counts down and at one place only, or asks the host at every call and in every loop whether
//! there is time left; then it may call any function, also one that is defined in a later module.

use std::fmt::Write;

use toy_lang::ast::Item;
use toy_lang::check::Environment;
use toy_lang::diagnostic::Source;
use toy_lang::parser::Operators;
use toy_lang::program;

use crate::choices::Choices;
use crate::host;

/// What stands before the number of the module that a definition is in.
const MODULE: &str = "# module ";
/// What the functions are called that a program starts with, but for the number.
const ENTRY: &str = "entry";
/// How deep expressions nest.
const DEPTH: usize = 5;
const NUMBERS: [&str; 16] = [
    "0",
    "1",
    "2",
    "0.5",
    "3",
    "10",
    "0.1",
    "7.25",
    "100000000000000000",
    "(0-1)",
    "(1/0)",
    "(0/0)",
    "42",
    "1.5",
    "0.75",
    "(0-2.5)",
];
const BINARY: [char; 4] = ['|', '%', '&', '>'];
const UNARY: [char; 3] = ['!', '~', '-'];

/// A function or an operator.
#[derive(Clone, Debug)]
struct Function {
    /// What stands after `def`: the name or operator, without parameters.
    head: String,
    parameters: Vec<String>,
    body: String,
    module: usize,
}

/// A program as text in parts.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    functions: Vec<Function>,
    entries: usize,
}

/// A program that was read and checked: the items of each module, external declarations included.
pub(crate) struct Parsed {
    pub(crate) modules: Vec<Vec<Item>>,
    pub(crate) entries: usize,
}

/// What an expression may use.
struct Scope {
    variables: Vec<String>,
    /// Those of the variables that may be assigned to: not a loop's, which would never end.
    assignable: Vec<String>,
    /// What may be called: names with the fuel argument, if they take one, and their arity without it.
    calls: Vec<(String, Option<&'static str>, usize)>,
    binary: Vec<char>,
    unary: Vec<char>,
    /// Whether loops and calls of other functions ask the host for time.
    ticks: bool,
    loops: usize,
    /// How many calls of functions of the program may still be written.
    calls_left: usize,
    names: usize,
}

impl Program {
    pub(crate) fn generate(bytes: &[u8]) -> Self {
        let mut choices = Choices::new(bytes);
        let choices = &mut choices;
        let modules = 1 + choices.below(3);
        let mut functions = Vec::new();
        let binary: Vec<char> = BINARY[..choices.below(BINARY.len() + 1)].to_vec();
        let unary: Vec<char> = UNARY[..choices.below(UNARY.len() + 1)].to_vec();
        for (index, operator) in binary.iter().enumerate() {
            let precedence = [3, 5, 15, 30, 50][choices.below(5)];
            let mut scope = Scope::new(&["a", "b"], &[], &binary[..index], &[], false);
            scope.calls_left = 0;
            functions.push(Function {
                head: format!("binary{operator} {precedence} "),
                parameters: vec!["a".to_owned(), "b".to_owned()],
                body: expression(choices, &mut scope, 2),
                module: choices.below(modules),
            });
        }
        for (index, operator) in unary.iter().enumerate() {
            let mut scope = Scope::new(&["a"], &[], &binary, &unary[..index], false);
            scope.calls_left = 0;
            functions.push(Function {
                head: format!("unary{operator}"),
                parameters: vec!["a".to_owned()],
                body: expression(choices, &mut scope, 2),
                module: choices.below(modules),
            });
        }

        let pure = 1 + choices.below(3);
        let asking = 1 + choices.below(4);
        let arities: Vec<usize> = (0..pure + asking).map(|_| *choices.of(&[1, 2, 0, 3, 9, 12])).collect();
        for index in 0..pure {
            functions.push(pure_function(choices, index, &arities, [&binary, &unary], modules));
        }
        for index in pure..pure + asking {
            functions.push(asking_function(choices, index, pure, &arities, [&binary, &unary], modules));
        }
        let entries = 1 + choices.below(3);
        for entry in 0..entries {
            let mut scope = Scope::new(&[], &callable(&arities, 0..pure + asking, pure), &binary, &unary, true);
            functions.push(Function {
                head: format!("{ENTRY}{entry}"),
                parameters: Vec::new(),
                body: entry_body(choices, &mut scope),
                module: choices.below(modules),
            });
        }
        Self { functions, entries }
    }

    /// The program as one source that `kaleidoscope` runs, given the host's functions.
    pub(crate) fn source(&self) -> String {
        let mut text = self.declarations();
        for function in &self.functions {
            let Function { head, parameters, body, module } = function;
            put(&mut text, format_args!("{MODULE}{module}\ndef {head}({}) {body};\n", parameters.join(" ")));
        }
        for entry in 0..self.entries {
            put(&mut text, format_args!("{ENTRY}{entry}();\n"));
        }
        text
    }

    fn declarations(&self) -> String {
        let mut text = String::new();
        let host = host::functions().map(|(name, arity, _)| (name, arity));
        for (name, arity) in host.into_iter().chain(host::LIBM) {
            let parameters: Vec<_> = (0..arity).map(|index| format!("x{index}")).collect();
            put(&mut text, format_args!("extern {name}({});\n", parameters.join(" ")));
        }
        for function in &self.functions {
            put(&mut text, format_args!("extern {}({});\n", function.head, function.parameters.join(" ")));
        }
        text
    }
}

impl Parsed {
    /// Reads and checks a source as [`Program::source`] writes it, a module at a time.
    pub(crate) fn read(source: &str) -> Result<Self, String> {
        let mut parts = source.split(MODULE);
        let declarations = parts.next().unwrap_or_default();
        let mut texts = Vec::<String>::new();
        let mut entries = 0;
        for part in parts {
            let (number, text) = part.split_once('\n').ok_or("a module has no number")?;
            let number: usize = number.parse().map_err(|_| format!("{number} is no module"))?;
            texts.resize(texts.len().max(number + 1), declarations.to_owned());
            let (calls, definition) = text.lines().partition::<Vec<_>, _>(|line| line.starts_with(ENTRY));
            entries += calls.len();
            texts[number] += &definition.join("\n");
            texts[number].push('\n');
        }
        let modules = texts.into_iter().enumerate().map(|(number, text)| {
            let source = Source::new(format!("module {number}"), text);
            program::parse(&source, &mut Operators::default())
                .and_then(|items| program::check(&items, &mut Environment::default()).map(|()| items))
                .map_err(|errors| format!("{errors:?}\n{}", source.text))
        });
        Ok(Self { modules: modules.collect::<Result<_, _>>()?, entries })
    }
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).unwrap();
}

fn parameters(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("p{index}")).collect()
}

/// The functions of a range as what can be called: a function without a host's word on time needs fuel.
fn callable(
    arities: &[usize],
    range: std::ops::Range<usize>,
    pure: usize,
) -> Vec<(String, Option<&'static str>, usize)> {
    range.map(|index| (format!("f{index}"), (index < pure).then_some("4"), arities[index])).collect()
}

/// Recurses at one place, with one less fuel; calls only such functions that came before.
fn pure_function(
    choices: &mut Choices<'_>,
    index: usize,
    arities: &[usize],
    [binary, unary]: [&[char]; 2],
    modules: usize,
) -> Function {
    let names = parameters(arities[index]);
    let variables: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut scope = Scope::new(&variables, &[], binary, unary, false);
    let last = expression(choices, &mut scope, 2);
    // No loop around a recursion: each level would multiply.
    let arguments: Vec<_> = (0..arities[index]).map(|_| expression(choices, &mut scope, 2)).collect();
    let arguments: String = arguments.iter().map(|argument| format!(", {argument}")).collect();
    let earlier = callable(arities, 0..index, arities.len());
    let mut around = Scope::new(&["r", "fuel"], &earlier, binary, unary, false);
    around.assignable = vec!["r".to_owned()];
    around.variables.extend(names.iter().cloned());
    around.calls_left = 2;
    around.loops = 2;
    let rest = expression(choices, &mut around, DEPTH - 1);
    let body = format!("if fuel < 1 then {last} else (var r = f{index}(fuel - 1{arguments}) in {rest})");
    let parameters = std::iter::once("fuel".to_owned()).chain(names).collect();
    Function { head: format!("f{index}"), parameters, body, module: choices.below(modules) }
}

/// Calls whatever it likes as long as the host says that there is time.
fn asking_function(
    choices: &mut Choices<'_>,
    index: usize,
    pure: usize,
    arities: &[usize],
    [binary, unary]: [&[char]; 2],
    modules: usize,
) -> Function {
    let names = parameters(arities[index]);
    let variables: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut scope = Scope::new(&variables, &callable(arities, 0..arities.len(), pure), binary, unary, true);
    scope.assignable.clone_from(&names);
    let body = expression(choices, &mut scope, DEPTH);
    let body = format!("if tick() then {body} else {}", choices.of(&NUMBERS));
    Function { head: format!("f{index}"), parameters: names, body, module: choices.below(modules) }
}

/// Calls a few functions, and tells the host what they gave.
fn entry_body(choices: &mut Choices<'_>, scope: &mut Scope) -> String {
    let mut text = String::from("0");
    for _ in 0..=choices.below(4) {
        let (name, fuel, arity) = choices.of(&scope.calls).clone();
        let result = call(choices, scope, DEPTH - 2, &name, fuel, arity);
        let other = expression(choices, scope, DEPTH - 1);
        put(&mut text, format_args!(" + host2({result}, {other})"));
    }
    text
}

impl Scope {
    fn new(
        variables: &[&str],
        calls: &[(String, Option<&'static str>, usize)],
        binary: &[char],
        unary: &[char],
        ticks: bool,
    ) -> Self {
        Self {
            variables: variables.iter().map(|&name| name.to_owned()).collect(),
            assignable: Vec::new(),
            calls: calls.to_vec(),
            binary: binary.to_vec(),
            unary: unary.to_vec(),
            ticks,
            loops: 0,
            calls_left: 6,
            names: 0,
        }
    }

    fn fresh(&mut self, choices: &mut Choices<'_>) -> String {
        // Sometimes a name that there is: the inner one hides it.
        if choices.below(4) == 3 && !self.assignable.is_empty() {
            return choices.of(&self.assignable).clone();
        }
        self.names += 1;
        format!("v{}", self.names)
    }
}

fn leaf(choices: &mut Choices<'_>, scope: &Scope) -> String {
    if scope.variables.is_empty() || choices.below(3) == 0 {
        (*choices.of(&NUMBERS)).to_owned()
    } else {
        choices.of(&scope.variables).clone()
    }
}

/// An expression in parentheses, or one that needs none.
fn expression(choices: &mut Choices<'_>, scope: &mut Scope, depth: usize) -> String {
    if depth == 0 || choices.is_empty() {
        return leaf(choices, scope);
    }
    match choices.below(16) {
        0 | 1 => leaf(choices, scope),
        2..=5 => chain(choices, scope, depth),
        6 => {
            let [a, b, c] = [(); 3].map(|()| expression(choices, scope, depth - 1));
            format!("(if {a} then {b} else {c})")
        }
        7 => binding(choices, scope, depth),
        8 if scope.loops < 2 => repetition(choices, scope, depth),
        9 if !scope.assignable.is_empty() => {
            let name = choices.of(&scope.assignable).clone();
            format!("({name} = {})", expression(choices, scope, depth - 1))
        }
        10 if !scope.unary.is_empty() => {
            let operator = *choices.of(&scope.unary);
            format!("({operator}{})", expression(choices, scope, depth - 1))
        }
        11 => {
            let (name, arity) = *choices.of(&host::LIBM);
            call(choices, scope, depth, name, None, arity)
        }
        12 => {
            let (name, arity, _) = *choices.of(&host::functions()[1..]);
            call(choices, scope, depth, name, None, arity)
        }
        13..=15 if scope.calls_left > 0 && !scope.calls.is_empty() => {
            scope.calls_left -= 1;
            let (name, fuel, arity) = choices.of(&scope.calls).clone();
            call(choices, scope, depth, &name, fuel, arity)
        }
        _ => leaf(choices, scope),
    }
}

fn call(
    choices: &mut Choices<'_>,
    scope: &mut Scope,
    depth: usize,
    name: &str,
    fuel: Option<&str>,
    arity: usize,
) -> String {
    // Many arguments are simple ones.
    let depth = if arity > 4 { 1 } else { depth - 1 };
    let fuel = fuel.map(str::to_owned);
    let arguments: Vec<_> = fuel.into_iter().chain((0..arity).map(|_| expression(choices, scope, depth))).collect();
    format!("{name}({})", arguments.join(", "))
}

fn chain(choices: &mut Choices<'_>, scope: &mut Scope, depth: usize) -> String {
    let mut text = format!("({}", expression(choices, scope, depth - 1));
    for _ in 0..=choices.below(3) {
        let built_in = ['+', '-', '*', '/', '<'];
        let which = choices.below(built_in.len() + scope.binary.len());
        let operator = built_in.iter().chain(&scope.binary).nth(which).copied().unwrap_or('+');
        put(&mut text, format_args!(" {operator} {}", expression(choices, scope, depth - 1)));
    }
    text.push(')');
    text
}

fn binding(choices: &mut Choices<'_>, scope: &mut Scope, depth: usize) -> String {
    let outer = (scope.variables.len(), scope.assignable.len());
    let mut parts = Vec::new();
    for _ in 0..=choices.below(2) {
        let initialiser =
            if choices.below(4) == 3 { String::new() } else { format!(" = {}", expression(choices, scope, depth - 1)) };
        let name = scope.fresh(choices);
        parts.push(format!("{name}{initialiser}"));
        scope.variables.push(name.clone());
        scope.assignable.push(name);
    }
    let body = expression(choices, scope, depth - 1);
    scope.variables.truncate(outer.0);
    scope.assignable.truncate(outer.1);
    format!("(var {} in {body})", parts.join(", "))
}

fn repetition(choices: &mut Choices<'_>, scope: &mut Scope, depth: usize) -> String {
    // A name of its own, so that nothing can assign to it.
    scope.names += 1;
    let name = format!("i{}", scope.names);
    let start = choices.of(&["0", "1", "2.5"]);
    let limit = choices.of(&["3", "1", "5", "4.5"]);
    let step = choices.of(&["", ", 1", ", 2", ", 0.75"]);
    scope.loops += 1;
    let outer = scope.variables.len();
    scope.variables.push(name.clone());
    let body = expression(choices, scope, depth - 1);
    scope.variables.truncate(outer);
    scope.loops -= 1;
    let end = format!("{name} < {limit}");
    let end = if scope.ticks { format!("if {end} then tick() else 0") } else { end };
    format!("(for {name} = {start}, ({end}){step} in {body})")
}
