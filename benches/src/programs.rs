//! The programs whose run time is compared: built once, as CLIF, and translated for LLVM by [`to_llvm`](crate::to_llvm).
//!
//! Each has a function `main` that takes a size and the address of [`MEMORY`] bytes, and gives 64 bits that depend on
//! all that was computed.

use std::collections::HashMap;

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{
    AbiParam, ExtFuncData, ExternalName, Function, InstBuilder, MemFlagsData, Signature, Type, UserExternalName,
    UserFuncName, Value, types,
};
use cranelift_codegen::isa::{CallConv, TargetFrontendConfig};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use cranelift_module::{FuncId, Linkage, Module};

use crate::Result;

/// Bytes of memory that a program may use.
pub const MEMORY: usize = 4 << 20;

/// A program.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// What it is called.
    pub name: &'static str,
    /// The size that it is given.
    pub size: i64,
    build: fn(&mut Code<'_>),
    helper: Option<fn(&mut Code<'_>)>,
}

/// All of them.
pub const PROGRAMS: [Program; 7] = [
    Program { name: "fib", size: 32, build: fib_main, helper: Some(fib) },
    Program { name: "mandelbrot", size: 200, build: mandelbrot, helper: None },
    Program { name: "n-body", size: 100_000, build: n_body, helper: None },
    Program { name: "spectral-norm", size: 300, build: spectral_norm, helper: Some(spectral_element) },
    Program { name: "matrix-product", size: 180, build: matrix_product, helper: None },
    Program { name: "sieve", size: 4_000_000, build: sieve, helper: None },
    Program { name: "string-hash", size: 4_000_000, build: string_hash, helper: None },
];

/// The symbol of the function that a program starts with.
pub const MAIN: &str = "main";
/// The symbol of the function that it calls, if there is one.
pub const HELPER: &str = "helper";

impl Program {
    /// The program of a name.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn named(name: &str) -> Result<Self> {
        Ok(*PROGRAMS.iter().find(|program| program.name == name).ok_or_else(|| format!("no program {name}"))?)
    }

    /// The functions with their symbols, callees first. They call each other by external names of namespace 0, whose
    /// index is the place in this list.
    #[must_use]
    pub fn functions(&self, config: TargetFrontendConfig) -> Vec<(&'static str, Function)> {
        let mut functions = Vec::new();
        for (symbol, build) in self.helper.map(|build| (HELPER, build)).into_iter().chain([(MAIN, self.build)]) {
            let mut signature = Signature::new(CallConv::SystemV);
            let result = if symbol == HELPER && self.name == "spectral-norm" { types::F64 } else { types::I64 };
            let parameters = if self.name == "fib" && symbol == HELPER { 1 } else { 2 };
            signature.params.resize(parameters, AbiParam::new(types::I64));
            signature.returns.push(AbiParam::new(result));
            let mut function = Function::with_name_signature(UserFuncName::user(0, functions.len() as u32), signature);
            let mut scratch = FunctionBuilderContext::new();
            let mut builder = FunctionBuilder::new(&mut function, &mut scratch);
            let entry = builder.create_block();
            builder.append_block_params_for_function_params(entry);
            builder.switch_to_block(entry);
            let parameters = builder.block_params(entry).to_vec();
            let mut code = Code { builder, parameters };
            build(&mut code);
            code.builder.seal_all_blocks();
            code.builder.finalize(config);
            functions.push((symbol, function));
        }
        functions
    }

    /// Defines the functions in a module, and gives `main`.
    ///
    /// # Errors
    ///
    /// The module's.
    pub fn define<M: Module>(&self, module: &mut M) -> Result<FuncId> {
        let functions = self.functions(module.target_config());
        let mut ids = HashMap::new();
        let mut context = module.make_context();
        for (index, (symbol, mut function)) in functions.into_iter().enumerate() {
            let linkage = if symbol == MAIN { Linkage::Export } else { Linkage::Local };
            let id = module.declare_function(symbol, linkage, &function.signature)?;
            ids.insert(index as u32, id);
            let names: Vec<_> =
                function.params.user_named_funcs().iter().map(|(name, of)| (name, of.clone())).collect();
            for (name, of) in names {
                let id = ids.get(&of.index).ok_or("callees come first")?;
                function.params.reset_user_func_name(name, UserExternalName::new(0, id.as_u32()));
            }
            context.clear();
            context.func = function;
            module.define_function(id, &mut context)?;
        }
        Ok(ids[&(ids.len() as u32 - 1)])
    }
}

/// A function under construction, with the words that the programs below need.
struct Code<'b> {
    builder: FunctionBuilder<'b>,
    parameters: Vec<Value>,
}

impl Code<'_> {
    fn int(&mut self, value: i64) -> Value {
        self.builder.ins().iconst(types::I64, value)
    }

    fn float(&mut self, value: f64) -> Value {
        self.builder.ins().f64const(value)
    }

    fn variable(&mut self, initial: Value) -> Variable {
        let of = self.builder.func.dfg.value_type(initial);
        let variable = self.builder.declare_var(of);
        self.builder.def_var(variable, initial);
        variable
    }

    fn get(&mut self, variable: Variable) -> Value {
        self.builder.use_var(variable)
    }

    fn set(&mut self, variable: Variable, value: Value) {
        self.builder.def_var(variable, value);
    }

    fn add(&mut self, x: Value, y: Value) -> Value {
        self.builder.ins().iadd(x, y)
    }

    fn mul(&mut self, x: Value, y: Value) -> Value {
        self.builder.ins().imul(x, y)
    }

    fn fadd(&mut self, x: Value, y: Value) -> Value {
        self.builder.ins().fadd(x, y)
    }

    fn fsub(&mut self, x: Value, y: Value) -> Value {
        self.builder.ins().fsub(x, y)
    }

    fn fmul(&mut self, x: Value, y: Value) -> Value {
        self.builder.ins().fmul(x, y)
    }

    fn fdiv(&mut self, x: Value, y: Value) -> Value {
        self.builder.ins().fdiv(x, y)
    }

    fn floated(&mut self, x: Value) -> Value {
        self.builder.ins().fcvt_from_sint(types::F64, x)
    }

    fn less(&mut self, x: Value, y: Value) -> Value {
        self.builder.ins().icmp(IntCC::SignedLessThan, x, y)
    }

    /// The address of an element of 8 bytes.
    fn element(&mut self, base: Value, index: Value) -> Value {
        let eight = self.int(8);
        let offset = self.mul(index, eight);
        self.add(base, offset)
    }

    fn load(&mut self, of: Type, address: Value, offset: i32) -> Value {
        self.builder.ins().load(of, MemFlagsData::trusted(), address, offset)
    }

    fn store(&mut self, value: Value, address: Value, offset: i32) {
        self.builder.ins().store(MemFlagsData::trusted(), value, address, offset);
    }

    /// Runs `body` as long as `condition` gives what is not zero.
    fn repeat(&mut self, condition: impl FnOnce(&mut Self) -> Value, body: impl FnOnce(&mut Self)) {
        let [header, inside, after] = [(); 3].map(|()| self.builder.create_block());
        self.builder.ins().jump(header, &[]);
        self.builder.switch_to_block(header);
        let condition = condition(self);
        self.builder.ins().brif(condition, inside, &[], after, &[]);
        self.builder.switch_to_block(inside);
        body(self);
        self.builder.ins().jump(header, &[]);
        self.builder.switch_to_block(after);
    }

    /// Runs `body` with every number from `from` to below `to`, by steps.
    fn count(&mut self, from: Value, to: Value, step: Value, body: impl FnOnce(&mut Self, Value)) {
        let variable = self.variable(from);
        let condition = |code: &mut Self| {
            let value = code.get(variable);
            code.less(value, to)
        };
        self.repeat(condition, |code| {
            let value = code.get(variable);
            body(code, value);
            let next = code.add(value, step);
            code.set(variable, next);
        });
    }

    /// As [`count`](Self::count), from zero by ones.
    fn times(&mut self, to: Value, body: impl FnOnce(&mut Self, Value)) {
        let [zero, one] = [0, 1].map(|value| self.int(value));
        self.count(zero, to, one, body);
    }

    fn when(&mut self, condition: Value, body: impl FnOnce(&mut Self)) {
        let [inside, after] = [(); 2].map(|()| self.builder.create_block());
        self.builder.ins().brif(condition, inside, &[], after, &[]);
        self.builder.switch_to_block(inside);
        body(self);
        self.builder.ins().jump(after, &[]);
        self.builder.switch_to_block(after);
    }

    /// Calls the helper, whose signature is `parameters` integers to `result`.
    fn call_helper(&mut self, arguments: &[Value], result: Type) -> Value {
        let mut signature = Signature::new(CallConv::SystemV);
        signature.params.resize(arguments.len(), AbiParam::new(types::I64));
        signature.returns.push(AbiParam::new(result));
        let signature = self.builder.import_signature(signature);
        let name = self.builder.func.declare_imported_user_function(UserExternalName::new(0, 0));
        let data = ExtFuncData { name: ExternalName::user(name), signature, colocated: true, patchable: false };
        let function = self.builder.import_function(data);
        let call = self.builder.ins().call(function, arguments);
        self.builder.inst_results(call)[0]
    }

    fn give(&mut self, value: Value) {
        self.builder.ins().return_(&[value]);
    }

    fn give_bits(&mut self, value: Value) {
        let bits = self.builder.ins().bitcast(types::I64, MemFlagsData::new(), value);
        self.give(bits);
    }
}

fn fib(code: &mut Code<'_>) {
    let n = code.parameters[0];
    let [one, two] = [1, 2].map(|value| code.int(value));
    let small = code.less(n, two);
    let [inside, after] = [(); 2].map(|()| code.builder.create_block());
    code.builder.ins().brif(small, inside, &[], after, &[]);
    code.builder.switch_to_block(inside);
    code.give(n);
    code.builder.switch_to_block(after);
    let before = code.builder.ins().isub(n, one);
    let first = code.call_helper(&[before], types::I64);
    let before = code.builder.ins().isub(n, two);
    let second = code.call_helper(&[before], types::I64);
    let sum = code.add(first, second);
    code.give(sum);
}

fn fib_main(code: &mut Code<'_>) {
    let result = code.call_helper(&[code.parameters[0]], types::I64);
    code.give(result);
}

/// How many points of a square of `size` by `size` stay near for 50 steps.
fn mandelbrot(code: &mut Code<'_>) {
    const STEPS: i64 = 50;
    let size = code.parameters[0];
    let zero = code.int(0);
    let inside = code.variable(zero);
    code.times(size, |code, row| {
        code.times(size, |code, column| {
            let scaled = |code: &mut Code<'_>, place: Value, shift: f64| {
                let [place, size] = [place, size].map(|value| code.floated(value));
                let three = code.float(3.0);
                let shift = code.float(shift);
                let part = code.fdiv(place, size);
                let wide = code.fmul(part, three);
                code.fsub(wide, shift)
            };
            let (c_real, c_imaginary) = (scaled(code, column, 2.0), scaled(code, row, 1.5));
            let [four, nothing] = [4.0, 0.0].map(|value| code.float(value));
            let (real, imaginary) = (code.variable(nothing), code.variable(nothing));
            let steps = code.variable(zero);
            let condition = |code: &mut Code<'_>| {
                let (x, y, step) = (code.get(real), code.get(imaginary), code.get(steps));
                let (xx, yy) = (code.fmul(x, x), code.fmul(y, y));
                let square = code.fadd(xx, yy);
                let near = code.builder.ins().fcmp(FloatCC::LessThan, square, four);
                let limit = code.int(STEPS);
                let limit = code.builder.ins().select(near, limit, zero);
                code.less(step, limit)
            };
            code.repeat(condition, |code| {
                let (x, y, step) = (code.get(real), code.get(imaginary), code.get(steps));
                let (xx, yy, xy) = (code.fmul(x, x), code.fmul(y, y), code.fmul(x, y));
                let difference = code.fsub(xx, yy);
                let x = code.fadd(difference, c_real);
                let double = code.fadd(xy, xy);
                let y = code.fadd(double, c_imaginary);
                code.set(real, x);
                code.set(imaginary, y);
                let one = code.int(1);
                let step = code.add(step, one);
                code.set(steps, step);
            });
            let (total, steps) = (code.get(inside), code.get(steps));
            let total = code.add(total, steps);
            code.set(inside, total);
        });
    });
    let result = code.get(inside);
    code.give(result);
}

/// Five bodies that attract each other, for `size` steps. A body is its place, its velocity and its mass.
fn n_body(code: &mut Code<'_>) {
    const BODY: i64 = 56;
    const BODIES: i64 = 5;
    let (size, memory) = (code.parameters[0], code.parameters[1]);
    let [one, count, body] = [1, BODIES, BODY].map(|value| code.int(value));
    let end = code.int(BODY * BODIES);
    code.times(count, |code, index| {
        let offset = code.mul(index, body);
        let address = code.add(memory, offset);
        let number = code.floated(index);
        for (field, factor, start) in [
            (0, 1.5, 0.5),
            (1, -2.25, 1.0),
            (2, 0.75, -3.0),
            (3, 0.125, 0.0),
            (4, -0.0625, 0.25),
            (5, 0.03125, 0.0),
            (6, 0.25, 1.0),
        ] {
            let (factor, start) = (code.float(factor), code.float(start));
            let product = code.fmul(number, factor);
            let value = code.fadd(product, start);
            code.store(value, address, 8 * field);
        }
    });
    code.times(size, |code, _| {
        code.times(count, |code, index| {
            let offset = code.mul(index, body);
            let this = code.add(memory, offset);
            let next = code.add(index, one);
            let start = code.mul(next, body);
            code.count(start, end, body, |code, offset| {
                let other = code.add(memory, offset);
                let mut distance = [0, 8, 16].map(|field| {
                    let (mine, its) = (code.load(types::F64, this, field), code.load(types::F64, other, field));
                    code.fsub(mine, its)
                });
                let squares = distance.map(|part| code.fmul(part, part));
                let square = code.fadd(squares[0], squares[1]);
                let square = code.fadd(square, squares[2]);
                let root = code.builder.ins().sqrt(square);
                let cube = code.fmul(square, root);
                let time = code.float(0.001);
                let magnitude = code.fdiv(time, cube);
                distance = distance.map(|part| code.fmul(part, magnitude));
                let (mass, its_mass) = (code.load(types::F64, this, 48), code.load(types::F64, other, 48));
                for (part, field) in distance.into_iter().zip([24, 32, 40]) {
                    let velocity = code.load(types::F64, this, field);
                    let change = code.fmul(part, its_mass);
                    let velocity = code.fsub(velocity, change);
                    code.store(velocity, this, field);
                    let velocity = code.load(types::F64, other, field);
                    let change = code.fmul(part, mass);
                    let velocity = code.fadd(velocity, change);
                    code.store(velocity, other, field);
                }
            });
        });
        code.times(count, |code, index| {
            let offset = code.mul(index, body);
            let this = code.add(memory, offset);
            let time = code.float(0.001);
            for field in [0, 8, 16] {
                let velocity = code.load(types::F64, this, field + 24);
                let way = code.fmul(velocity, time);
                let place = code.load(types::F64, this, field);
                let place = code.fadd(place, way);
                code.store(place, this, field);
            }
        });
    });
    let result = code.load(types::F64, memory, 0);
    code.give_bits(result);
}

/// The element of a row and a column of the matrix.
fn spectral_element(code: &mut Code<'_>) {
    let (row, column) = (code.parameters[0], code.parameters[1]);
    let one = code.int(1);
    let sum = code.add(row, column);
    let next = code.add(sum, one);
    let product = code.mul(sum, next);
    let half = code.builder.ins().ushr(product, one);
    let place = code.add(half, row);
    let place = code.add(place, one);
    let place = code.floated(place);
    let unit = code.float(1.0);
    let element = code.fdiv(unit, place);
    code.give(element);
}

/// Four multiplications of a vector by the matrix and its transpose.
fn spectral_norm(code: &mut Code<'_>) {
    let (size, first) = (code.parameters[0], code.parameters[1]);
    let second = code.element(first, size);
    code.times(size, |code, index| {
        let unit = code.float(1.0);
        let address = code.element(first, index);
        code.store(unit, address, 0);
    });
    for round in 0..8 {
        let (from, to) = if round % 2 == 0 { (first, second) } else { (second, first) };
        code.times(size, |code, row| {
            let nothing = code.float(0.0);
            let sum = code.variable(nothing);
            code.times(size, |code, column| {
                let place = if round % 2 == 0 { [row, column] } else { [column, row] };
                let element = code.call_helper(&place, types::F64);
                let address = code.element(from, column);
                let factor = code.load(types::F64, address, 0);
                let product = code.fmul(element, factor);
                let total = code.get(sum);
                let total = code.fadd(total, product);
                code.set(sum, total);
            });
            let address = code.element(to, row);
            let total = code.get(sum);
            code.store(total, address, 0);
        });
    }
    let result = code.load(types::F64, first, 8);
    let result = code.builder.ins().sqrt(result);
    code.give_bits(result);
}

/// The product of two matrices of `size` by `size`.
fn matrix_product(code: &mut Code<'_>) {
    let (size, left) = (code.parameters[0], code.parameters[1]);
    let elements = code.mul(size, size);
    let right = code.element(left, elements);
    let product = code.element(right, elements);
    code.times(elements, |code, index| {
        let number = code.floated(index);
        let (half, third) = (code.float(0.5), code.float(-0.375));
        for (matrix, factor) in [(left, half), (right, third)] {
            let value = code.fmul(number, factor);
            let address = code.element(matrix, index);
            code.store(value, address, 0);
        }
    });
    code.times(size, |code, row| {
        let start = code.mul(row, size);
        code.times(size, |code, column| {
            let nothing = code.float(0.0);
            let sum = code.variable(nothing);
            code.times(size, |code, index| {
                let place = code.add(start, index);
                let address = code.element(left, place);
                let x = code.load(types::F64, address, 0);
                let other_row = code.mul(index, size);
                let place = code.add(other_row, column);
                let address = code.element(right, place);
                let y = code.load(types::F64, address, 0);
                let part = code.fmul(x, y);
                let total = code.get(sum);
                let total = code.fadd(total, part);
                code.set(sum, total);
            });
            let place = code.add(start, column);
            let address = code.element(product, place);
            let total = code.get(sum);
            code.store(total, address, 0);
        });
    });
    let result = code.load(types::F64, product, 8);
    code.give_bits(result);
}

/// How many primes there are below `size`.
fn sieve(code: &mut Code<'_>) {
    let (size, memory) = (code.parameters[0], code.parameters[1]);
    let [zero, one, two] = [0, 1, 2].map(|value| code.int(value));
    let [clear, mark] = [0, 1].map(|value| code.builder.ins().iconst(types::I8, value));
    code.times(size, |code, index| {
        let address = code.add(memory, index);
        code.store(clear, address, 0);
    });
    let primes = code.variable(zero);
    code.count(two, size, one, |code, number| {
        let address = code.add(memory, number);
        let flag = code.load(types::I8, address, 0);
        let is_prime = code.builder.ins().icmp(IntCC::Equal, flag, clear);
        code.when(is_prime, |code| {
            let total = code.get(primes);
            let total = code.add(total, one);
            code.set(primes, total);
            let square = code.mul(number, number);
            code.count(square, size, number, |code, multiple| {
                let address = code.add(memory, multiple);
                code.store(mark, address, 0);
            });
        });
    });
    let result = code.get(primes);
    code.give(result);
}

/// FNV-1a over `size` bytes.
fn string_hash(code: &mut Code<'_>) {
    let (size, memory) = (code.parameters[0], code.parameters[1]);
    let factor = code.int(31);
    code.times(size, |code, index| {
        let value = code.mul(index, factor);
        let byte = code.builder.ins().ireduce(types::I8, value);
        let address = code.add(memory, index);
        code.store(byte, address, 0);
    });
    let basis = code.int(0xCBF2_9CE4_8422_2325u64.cast_signed());
    let prime = code.int(0x100_0000_01B3);
    let hash = code.variable(basis);
    code.times(size, |code, index| {
        let address = code.add(memory, index);
        let byte = code.load(types::I8, address, 0);
        let byte = code.builder.ins().uextend(types::I64, byte);
        let value = code.get(hash);
        let value = code.builder.ins().bxor(value, byte);
        let value = code.mul(value, prime);
        code.set(hash, value);
    });
    let result = code.get(hash);
    code.give(result);
}
