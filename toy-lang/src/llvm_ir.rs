//! A program as the text of LLVM 22's IR, of the same meaning bit for bit, except in which NaN an operation gives.
//!
//! Numbers are written as their bits, calls are `nobuiltin` so that no optimiser evaluates them by its own libm, and
//! no instruction has a fast-math flag. Variables are memory, which LLVM promotes.

use std::collections::HashMap;
use std::fmt::Write;

use crate::ast::{Expr, ExprKind, For, Infix, Item, Link, Name};
use crate::image::{Body, Image, Import, PRINT, Step};

/// The runtime as IR: what prints, as `runtime.c` does.
const RUNTIME: &str = include_str!("../runtime/runtime.ll");

/// The functions that [`RUNTIME`] defines.
const RUNTIME_FUNCTIONS: [&str; 3] = ["printd", "putchard", PRINT];

/// Writes a program, whose items have been admitted in this order, as a module of its own. LLVM accepts it if
/// [`image::check`](crate::image::check) does.
///
/// If there are top-level expressions, it has a `main` that prints their values: `lli` runs it as it is, and it links
/// with nothing but the C library.
///
/// Exceptions are the JIT's. Here nothing catches: a `throw` ends the program.
pub fn emit(items: &[Item]) -> String {
    let image = Image::new(items);
    let mut text = String::new();
    if items.iter().any(|item| item.exception().is_some()) {
        text.push_str("declare void @llvm.trap()\n");
    }
    let declared_by_runtime = |name: &str| image.is_program() && RUNTIME.contains(&format!("@{name}("));
    for Import { name, arity, is_weak } in &image.imports {
        if !declared_by_runtime(name) {
            let linkage = if *is_weak { "extern_weak " } else { "" };
            let parameters = vec!["double"; *arity].join(", ");
            put(&mut text, format_args!("declare {linkage}double {}({parameters})\n", symbol(name)));
        }
    }
    for slot in &image.slots {
        let initial = symbol(slot.initial.map_or(&*slot.name, |body| &*image.bodies[body].symbol));
        put(&mut text, format_args!("{} = internal global ptr {initial}\n", symbol(&slot.symbol)));
    }
    let slots: HashMap<&Name, String> = image.slots.iter().map(|slot| (&slot.name, symbol(&slot.symbol))).collect();
    for body in &image.bodies {
        let function = Function::new(&slots, &image.renamed).write(body, image.is_program());
        text.push_str(&function);
    }
    if image.is_program() {
        main(&mut text, &image);
        // What the program defines itself takes the runtime's place.
        let defined = |name: &str| image.bodies.iter().any(|body| body.symbol == name);
        for part in RUNTIME.split("\n\n") {
            if !RUNTIME_FUNCTIONS.iter().any(|name| defined(name) && part.contains(&format!("@{name}("))) {
                put(&mut text, format_args!("\n{}\n", part.trim_end()));
            }
        }
    }
    text
}

fn main(text: &mut String, image: &Image<'_>) {
    text.push_str("\ndefine i32 @main() {\n");
    for (number, step) in image.steps.iter().enumerate() {
        match *step {
            Step::Evaluate(body) => {
                let body = symbol(&image.bodies[body].symbol);
                put(text, format_args!("  %v{number} = call double {body}()\n"));
                put(text, format_args!("  call void @{PRINT}(double %v{number})\n"));
            }
            Step::Redefine { slot, body } => {
                let (slot, body) = (symbol(&image.slots[slot].symbol), symbol(&image.bodies[body].symbol));
                put(text, format_args!("  store ptr {body}, ptr {slot}\n"));
            }
        }
    }
    text.push_str("  ret i32 0\n}\n");
}

/// A global's name, quoted, since operators are in it.
fn symbol(name: &str) -> String {
    let mut text = String::from("@\"");
    for byte in name.bytes() {
        match byte {
            b'"' | b'\\' => put(&mut text, format_args!("\\{byte:02X}")),
            byte => text.push(char::from(byte)),
        }
    }
    text.push('"');
    text
}

fn number(value: f64) -> String {
    format!("0x{:016X}", value.to_bits())
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // A string never refuses.
    _ = text.write_fmt(arguments);
}

/// The function under construction.
struct Function<'a> {
    slots: &'a HashMap<&'a Name, String>,
    renamed: &'a HashMap<Name, String>,
    /// The `alloca`s, which belong at the beginning.
    variables: String,
    code: String,
    values: usize,
    blocks: usize,
    /// The block that is being filled: what a `phi` calls it.
    block: String,
    /// The places of each name's bindings, innermost last.
    scope: HashMap<&'a Name, Vec<String>>,
}

impl<'a> Function<'a> {
    fn new(slots: &'a HashMap<&'a Name, String>, renamed: &'a HashMap<Name, String>) -> Self {
        Self {
            slots,
            renamed,
            variables: String::new(),
            code: String::new(),
            values: 0,
            blocks: 0,
            block: "start".to_owned(),
            scope: HashMap::new(),
        }
    }

    fn write(mut self, body: &Body<'a>, is_local: bool) -> String {
        let parameters: Vec<_> = (0..body.parameters.len()).map(|i| format!("double %p{i}")).collect();
        for (i, parameter) in body.parameters.iter().enumerate() {
            self.bind(&parameter.name, &format!("%p{i}"));
        }
        let value = self.expression(body.expression);
        let linkage = if is_local { "internal " } else { "" };
        let (symbol, parameters) = (symbol(&body.symbol), parameters.join(", "));
        let Self { variables, code, .. } = self;
        format!(
            "\ndefine {linkage}double {symbol}({parameters}) {{\nentry:\n{variables}  br label %start\nstart:\n\
             {code}  ret double {value}\n}}\n"
        )
    }

    fn value(&mut self, instruction: std::fmt::Arguments<'_>) -> String {
        let name = format!("%t{}", self.values);
        self.values += 1;
        put(&mut self.code, format_args!("  {name} = {instruction}\n"));
        name
    }

    fn effect(&mut self, instruction: std::fmt::Arguments<'_>) {
        put(&mut self.code, format_args!("  {instruction}\n"));
    }

    fn new_block(&mut self) -> String {
        self.blocks += 1;
        format!("b{}", self.blocks)
    }

    fn begin(&mut self, block: &str) {
        put(&mut self.code, format_args!("{block}:\n"));
        block.clone_into(&mut self.block);
    }

    fn bind(&mut self, name: &'a Name, value: &str) {
        let place = format!("%v{}", self.values);
        self.values += 1;
        put(&mut self.variables, format_args!("  {place} = alloca double\n"));
        self.effect(format_args!("store double {value}, ptr {place}"));
        self.scope.entry(name).or_default().push(place);
    }

    fn unbind(&mut self, name: &Name) {
        self.scope.get_mut(name).and_then(Vec::pop);
    }

    fn place(&self, name: &Name) -> String {
        // A checked tree binds every name; `poison` is what LLVM calls the value of anything else.
        self.scope.get(name).and_then(|places| places.last()).cloned().unwrap_or_else(|| "poison".to_owned())
    }

    fn expression(&mut self, expression: &'a Expr) -> String {
        match &expression.kind {
            ExprKind::Number(value) => number(*value),
            ExprKind::Variable(name) => {
                let place = self.place(name);
                self.value(format_args!("load double, ptr {place}"))
            }
            ExprKind::Assign { name, value, .. } => {
                let value = self.expression(value);
                let place = self.place(name);
                self.effect(format_args!("store double {value}, ptr {place}"));
                value
            }
            ExprKind::Chain { first, rest } => self.chain(first, rest),
            ExprKind::Unary { operator, operand } => {
                let operand = self.expression(operand);
                self.call(&operator.function, &[operand])
            }
            ExprKind::Call { callee, arguments, .. } => {
                let arguments: Vec<_> = arguments.iter().map(|argument| self.expression(argument)).collect();
                self.call(callee, &arguments)
            }
            ExprKind::If { condition, consequent, alternative } => self.conditional(condition, consequent, alternative),
            ExprKind::For(parts) => self.repetition(parts),
            ExprKind::Var { bindings, body } => {
                for binding in bindings {
                    let value = match &binding.initialiser {
                        Some(initialiser) => self.expression(initialiser),
                        None => number(0.0),
                    };
                    self.bind(&binding.name, &value);
                }
                let value = self.expression(body);
                bindings.iter().for_each(|binding| self.unbind(&binding.name));
                value
            }
            ExprKind::Throw(value) => {
                let value = self.expression(value);
                self.effect(format_args!("call void @llvm.trap()"));
                value
            }
            ExprKind::Try { body, .. } => self.expression(body),
        }
    }

    fn chain(&mut self, first: &'a Expr, rest: &'a [Link]) -> String {
        let mut left = self.expression(first);
        for link in rest {
            let right = self.expression(&link.operand);
            left = match &link.operator {
                Infix::Add => self.value(format_args!("fadd double {left}, {right}")),
                Infix::Subtract => self.value(format_args!("fsub double {left}, {right}")),
                Infix::Multiply => self.value(format_args!("fmul double {left}, {right}")),
                Infix::Divide => self.value(format_args!("fdiv double {left}, {right}")),
                Infix::Less => {
                    let less = self.value(format_args!("fcmp ult double {left}, {right}"));
                    self.value(format_args!("uitofp i1 {less} to double"))
                }
                Infix::User(operator) => self.call(&operator.function, &[left, right]),
            };
        }
        left
    }

    fn condition(&mut self, expression: &'a Expr) -> String {
        let value = self.expression(expression);
        self.value(format_args!("fcmp one double {value}, 0.0"))
    }

    fn conditional(&mut self, condition: &'a Expr, consequent: &'a Expr, alternative: &'a Expr) -> String {
        let condition = self.condition(condition);
        let [on_true, on_false, join] = [(); 3].map(|()| self.new_block());
        self.effect(format_args!("br i1 {condition}, label %{on_true}, label %{on_false}"));
        let mut incoming = Vec::new();
        for (block, branch) in [(on_true, consequent), (on_false, alternative)] {
            self.begin(&block);
            let value = self.expression(branch);
            self.effect(format_args!("br label %{join}"));
            incoming.push(format!("[ {value}, %{} ]", self.block));
        }
        self.begin(&join);
        let incoming = incoming.join(", ");
        self.value(format_args!("phi double {incoming}"))
    }

    fn repetition(&mut self, parts: &'a For) -> String {
        let start = self.expression(&parts.start);
        self.bind(&parts.variable, &start);
        let [repeat, after] = [(); 2].map(|()| self.new_block());
        self.effect(format_args!("br label %{repeat}"));
        self.begin(&repeat);
        self.expression(&parts.body);
        let step = match &parts.step {
            Some(step) => self.expression(step),
            None => number(1.0),
        };
        let again = self.condition(&parts.end);
        let place = self.place(&parts.variable);
        let current = self.value(format_args!("load double, ptr {place}"));
        let next = self.value(format_args!("fadd double {current}, {step}"));
        self.effect(format_args!("store double {next}, ptr {place}"));
        self.effect(format_args!("br i1 {again}, label %{repeat}, label %{after}"));
        self.begin(&after);
        self.unbind(&parts.variable);
        number(0.0)
    }

    fn call(&mut self, name: &Name, arguments: &[String]) -> String {
        let arguments: Vec<_> = arguments.iter().map(|argument| format!("double {argument}")).collect();
        let arguments = arguments.join(", ");
        let callee = match self.slots.get(name) {
            Some(slot) => self.value(format_args!("load ptr, ptr {slot}")),
            None => symbol(self.renamed.get(name).map_or(name, String::as_str)),
        };
        self.value(format_args!("call double {callee}({arguments}) nobuiltin"))
    }
}
