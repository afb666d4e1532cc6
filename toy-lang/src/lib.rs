//! Kaleidoscope, the language of LLVM's tutorial, on Orcane. The command is `kaleidoscope`.
//!
//! It shows what a language needs of a JIT, and uses nothing that a stranger could not use: all that touches Orcane
//! is in [`engine`]. A source becomes tokens ([`lexer`]), a tree ([`parser`], [`ast`]), is checked ([`check`]), and is
//! lowered to CLIF ([`lower`]) for the JIT ([`session`]) or for an object file ([`object`]), or written as LLVM's IR
//! ([`llvm_ir`]).
//!
//! # Features
//!
//! None changes the library. `llvm` and `debuggers` add tests that need LLVM 22, GDB and LLDB.
//!
//! # The language
//!
//! Every value is a double. A program is a list of items; a `;` between them may be left out.
//!
//! ```text
//! extern sin(x);                                # a function of the process, or one that is defined later
//! def average(a b) (a + b) / 2;                 # parameters are separated by blanks, arguments by commas
//! def unary!(v) if v then 0 else 1;             # operators are functions: this one is called `unary!`
//! def binary| 5 (a b) if a then 1 else b;       # precedence 5, between `=` and `<`; 30 if not given
//! def binary: 1 (a b) b;
//! def sum(n) var total in                       # variables start with zero
//!   (for i = 1, i < n in total = total + i) : total;
//! average(sum(10), sin(1));                     # a top-level expression: its value is printed
//! ```
//!
//! It is the tutorial's language, with `/` built in. Where the tutorial leaves something open, or people differ:
//!
//! - Precedences are `=` 2, `<` 10, `+` and `-` 20, `*` and `/` 40. All operators associate to the left, `=` too:
//!   `a = b = 1` assigns to `a = b`, which is an error. The built-in ones can't be defined as binary operators; any is
//!   free as a unary one, and none is built in: `-1` needs `def unary-(v) 0-v`.
//! - An operator is one character of ASCII punctuation other than `( ) , ; # . _`. It can be used from its prototype
//!   on, in its own body too. A unary operator may begin the next item: after an expression, a character that is only
//!   a unary operator does.
//! - `<` gives one if its left side is less or if either is a NaN, otherwise zero. A condition is true unless it is
//!   zero or a NaN.
//! - A loop evaluates its body, its step and its end, in this order, then adds the step, then goes on if the end, which
//!   has seen the variable before the step, was true. Its value is zero. The body runs at least once.
//! - In `var a = x, b = y in …`, `y` sees `a`, and `x` sees what `a` was outside.
//! - Names are of letters, digits and `_`; numbers of digits and one point, without exponent or sign.
//! - A later `def` of the same name and arity replaces the earlier one for all its callers, or the process's function
//!   that callers were bound to. With another arity it is an error.
//! - A function may call what is declared `extern` and defined nowhere yet. Until the program defines it, it is the
//!   process's function of that name. If there is none, to run what calls it is an error of the expression that needs
//!   it; ahead of time, it is the linker that misses the function, if an expression can reach it.
//! - Which NaN an operation gives is not specified, nor its sign: `copysign(1, 0/0)` is `-1` where an x86-64 processor
//!   divides, and `1` where LLVM does. No other result differs between the JIT, an object file and LLVM's IR.
//! - `printd(x)` prints `x` as `%f`, `putchard(x)` the byte; both write to standard output and give zero.
//! - Values print in the [shortest form](number::shortest) that reads back to the same double.
//! - Expressions nest [400](parser::MAX_DEPTH) deep at most, functions have [255](parser::MAX_PARAMETERS) parameters at
//!   most. How many operators follow each other is not limited.
//!
//! # Exceptions
//!
//! An extension, for programs that run here; `--emit llvm-ir` and `--emit obj` refuse it.
//!
//! ```text
//! def inverse(x) if x < 0 then throw x else 1 / x;
//! try inverse(0-2) catch thrown 100 + thrown;       # 98
//! ```
//!
//! `throw x` ends the evaluation of everything up to the innermost `try` that is being evaluated, in whichever function
//! that is. Its handler sees what was thrown, and gives the value of the `try`. What nobody catches is an error of the
//! top-level expression, and the next item is executed as if nothing had been. Both reach as far to the right as they
//! can, as `if` does.
//!
//! The tutorial has no such words. A program that has names of its own for them keeps them: `throw` or `try` is a name,
//! and nothing else, from the `def` or `extern` of a function on that is called so, and from a parameter or variable
//! that is called so to the end of the item. `catch` is a name wherever it doesn't follow what is tried.
//!
//! What runs without end, or recurses until the stack is full, does so as a native program does.

pub mod ast;
mod body;
pub mod check;
pub mod command;
pub mod diagnostic;
pub mod engine;
pub mod image;
pub mod lexer;
pub mod listing;
pub mod llvm_ir;
pub mod lower;
pub mod number;
pub mod object;
pub mod options;
pub mod parser;
pub mod program;
pub mod repl;
pub mod runtime;
pub mod session;
pub mod terminal;
