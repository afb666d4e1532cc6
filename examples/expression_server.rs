//! A server that compiles expressions over `x` and evaluates them: each line of a client is
//! `EXPRESSION at X, X...`, and is answered by the values, or by what is wrong.
//!
//! What a line needed is gone from memory before the next one is read. This program is also its
//! own client; a server would not be.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use orcane::Jit;
use orcane::cranelift::codegen::ir::{AbiParam, InstBuilder, Value, types};
use orcane::cranelift::frontend::{FunctionBuilder, FunctionBuilderContext};
use orcane::cranelift::module::{Linkage, Module};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How deep parentheses may be: what a client sends must not exhaust the stack.
const MAX_DEPTH: usize = 100;

/// Reads an expression and builds its code at the same time.
struct Compiler<'t, 'f> {
    rest: &'t str,
    builder: FunctionBuilder<'f>,
    x: Value,
    depth: usize,
}

impl Compiler<'_, '_> {
    fn take(&mut self, character: char) -> bool {
        let rest = self.rest.trim_start();
        let taken = rest.strip_prefix(character);
        self.rest = taken.unwrap_or(rest);
        taken.is_some()
    }

    /// `term + term - term`
    fn sum(&mut self) -> Result<Value> {
        let mut left = self.product()?;
        loop {
            if self.take('+') {
                let right = self.product()?;
                left = self.builder.ins().fadd(left, right);
            } else if self.take('-') {
                let right = self.product()?;
                left = self.builder.ins().fsub(left, right);
            } else {
                return Ok(left);
            }
        }
    }

    /// `factor * factor / factor`
    fn product(&mut self) -> Result<Value> {
        let mut left = self.factor()?;
        loop {
            if self.take('*') {
                let right = self.factor()?;
                left = self.builder.ins().fmul(left, right);
            } else if self.take('/') {
                let right = self.factor()?;
                left = self.builder.ins().fdiv(left, right);
            } else {
                return Ok(left);
            }
        }
    }

    fn factor(&mut self) -> Result<Value> {
        if self.take('x') {
            return Ok(self.x);
        }
        if self.take('(') {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err("too many parentheses".into());
            }
            let value = self.sum()?;
            self.depth -= 1;
            return if self.take(')') { Ok(value) } else { Err(format!("no ')' before '{}'", self.rest).into()) };
        }
        let end = self.rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        let number: f64 = number.parse().map_err(|_| format!("no number at '{}'", self.rest))?;
        self.rest = rest;
        Ok(self.builder.ins().f64const(number))
    }
}

/// Compiles an expression and gives its value at each point.
fn evaluate(jit: &Jit, expression: &str, points: &[f64]) -> Result<Vec<f64>> {
    let mut module = jit.module("expression");
    let mut context = module.make_context();
    context.func.signature.params.push(AbiParam::new(types::F64));
    context.func.signature.returns.push(AbiParam::new(types::F64));
    let id = module.declare_function("expression", Linkage::Export, &context.func.signature)?;
    let mut frontend = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
    let block = builder.create_block();
    builder.append_block_params_for_function_params(block);
    builder.switch_to_block(block);
    builder.seal_block(block);
    let x = builder.block_params(block)[0];
    let mut compiler = Compiler { rest: expression, builder, x, depth: 0 };
    let value = compiler.sum()?;
    if !compiler.rest.trim().is_empty() {
        return Err(format!("'{}' is left over", compiler.rest).into());
    }
    let mut builder = compiler.builder;
    builder.ins().return_(&[value]);
    builder.finalize(module.target_config());
    module.define_function(id, &mut context)?;

    // A dylib of its own: clients don't see each other's names.
    let dylib = jit.session().create_dylib(&format!("{:?}", std::thread::current().id()))?;
    let values = (|| {
        jit.clif_layer().add(&dylib.default_tracker()?, module)?;
        let function = jit.lookup_in::<unsafe extern "C" fn(f64) -> f64>(&dylib, "expression")?;
        // SAFETY: the function computes with doubles, and does nothing else.
        Ok(points.iter().map(|point| unsafe { function.call(*point) }).collect())
    })();
    dylib.remove()?;
    values
}

fn answer(jit: &Jit, line: &str) -> Result<String> {
    let (expression, points) = line.split_once(" at ").ok_or("no ' at '")?;
    let points = points.split(',').map(|point| point.trim().parse()).collect::<std::result::Result<Vec<f64>, _>>()?;
    let values = evaluate(jit, expression.trim(), &points)?;
    Ok(values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
}

/// Answers a client, line by line, until it hangs up.
fn serve(jit: &Jit, mut client: TcpStream) -> io::Result<()> {
    for line in BufReader::new(client.try_clone()?).lines() {
        let text = answer(jit, &line?).unwrap_or_else(|error| format!("error: {error}"));
        writeln!(client, "{text}")?;
    }
    Ok(())
}

fn ask(server: std::net::SocketAddr, lines: &[&str]) -> io::Result<Vec<String>> {
    let mut stream = TcpStream::connect(server)?;
    for line in lines {
        writeln!(stream, "{line}")?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    BufReader::new(stream).lines().collect()
}

fn main() -> Result<()> {
    const LINES: [&str; 4] = ["x*x + 1 at 0, 3, 0.5", "(x + 1) * (x - 1) / 2 at 9", "2 * at 1", "(x at 1"];
    let jit = Jit::new()?;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let jit = &jit;
        scope.spawn(move || {
            // A server would accept for ever.
            for client in listener.incoming().flatten().take(2) {
                scope.spawn(move || serve(jit, client));
            }
        });
        let clients = [(); 2].map(|()| scope.spawn(move || ask(address, &LINES)));
        for client in clients {
            let answers = client.join().map_err(|_| "a client panicked")??;
            for (line, answer) in LINES.iter().zip(answers) {
                println!("{line}  ->  {answer}");
            }
        }
        Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    })?;
    println!("code in memory: {} bytes", jit.memory_statistics().bytes[0]);
    Ok(())
}
