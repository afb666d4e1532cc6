//! Files as Cranelift's own tests are written: functions, followed by `; run:` and `; print:` lines.
//!
//! ```text
//! test run
//! set opt_level=speed
//! target x86_64
//! target aarch64
//! function %add(i32, i32) -> i32 {
//! block0(v0: i32, v1: i32):
//!     v2 = iadd v0, v1
//!     return v2
//! }
//! ; run: %add(1, 2) == 3
//! ; print: %add(4, 5)
//! ```

use std::path::Path;

use cranelift_reader::{Comparison, IsaSpec, ParseOptions, RunCommand, TestFile, parse_run_command, parse_test};
use orcane::cranelift::codegen::data_value::{DataValue, DisplayDataValues};
use orcane::cranelift::codegen::ir::Signature;
use orcane::cranelift::codegen::isa::{self, CallConv, TargetIsa};
use orcane::cranelift::codegen::settings::{self, Flags};
use orcane::lazy::LazyJitBuilder;
use orcane::{Jit, JitBuilder, OptLevel};

use crate::{Result, clif_module};

/// What became of a file.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// All went as the file says; so many commands were run.
    Passed(usize),
    /// Nothing was run, for this reason.
    Skipped(String),
}

/// A command of a file.
struct Command {
    line: usize,
    /// The symbol of the function that the command stands after: it is called, whatever name the command says.
    callee: String,
    run: RunCommand,
    signature: Signature,
}

/// Runs a file's commands with each of its targets that this host is, first eagerly, then lazily.
pub(crate) fn run(path: &Path) -> Result<Outcome> {
    let text = std::fs::read_to_string(path)?;
    let convention = CallConv::triple_default(&isa_of_host()?.triple().clone());
    let options = ParseOptions { default_calling_convention: convention, ..ParseOptions::default() };
    let file = parse_test(&text, options)?;
    let Some(test) = file.commands.iter().find(|command| command.command == "run") else {
        return Ok(Outcome::Skipped("it has no `test run`".to_owned()));
    };
    if !test.options.is_empty() {
        return Err(format!("`test run` has no options: {}", test.to_string().trim_end()).into());
    }
    let commands = commands(&text, &file)?;
    let ways: Vec<Settings> = match &file.isa_spec {
        // Targets that Cranelift was built without are left out.
        IsaSpec::None(_) if text.lines().any(|line| line.split_whitespace().next() == Some("target")) => Vec::new(),
        IsaSpec::None(flags) => vec![Settings::of_flags(flags)],
        IsaSpec::Some(targets) => {
            let host = isa_of_host()?;
            targets.iter().filter(|target| fits(&***target, &*host)).map(|target| Settings::of_isa(&**target)).collect()
        }
    };
    if ways.is_empty() {
        return Ok(Outcome::Skipped("it is for other targets".to_owned()));
    }
    if commands.is_empty() {
        return Err("nothing to run: no function is followed by a line `; run:` or `; print:`".into());
    }
    for (number, way) in ways.iter().enumerate() {
        for lazy in [false, true] {
            let how = if lazy { "lazy" } else { "eager" };
            let is_first = number == 0 && !lazy;
            run_with(&file, &commands, way, lazy, is_first).map_err(|error| format!("{how}: {error}"))?;
        }
    }
    Ok(Outcome::Passed(commands.len()))
}

fn isa_of_host() -> Result<isa::OwnedTargetIsa> {
    Ok(Jit::new()?.isa().clone())
}

/// The commands in the comments after each function.
fn commands(text: &str, file: &TestFile<'_>) -> Result<Vec<Command>> {
    let mut commands = Vec::new();
    for (function, details) in &file.functions {
        for comment in &details.comments {
            // Comments are parts of the text.
            let before = comment.text.as_ptr().addr() - text.as_ptr().addr();
            let line = 1 + text[..before].matches('\n').count();
            let command = parse_run_command(comment.text, &function.signature);
            if let Some(mut run) = command.map_err(|error| format!("line {line}: {}", error.message))? {
                expect_own_type(&mut run, &function.signature);
                let (callee, signature) = (clif_module::function_name(&function.name), function.signature.clone());
                commands.push(Command { line, callee, run, signature });
            }
        }
    }
    Ok(commands)
}

/// Of `; run` alone the reader expects that the result is not an `i8` of 0, whatever type it has: not its type's 0.
fn expect_own_type(run: &mut RunCommand, signature: &Signature) {
    if let (RunCommand::Run(_, Comparison::NotEquals, expected), [returned]) = (run, &signature.returns[..])
        && *expected == [DataValue::I8(0)]
    {
        *expected = vec![DataValue::read_from_slice_ne(&[0; clif_module::WIDTH], returned.value_type)];
    }
}

/// Whether the host has all that a target asks for.
fn fits(target: &dyn TargetIsa, host: &dyn TargetIsa) -> bool {
    let available = host.isa_flags();
    let has = |name| available.iter().any(|flag| flag.name == name && flag.as_bool() == Some(true));
    target.triple().architecture == host.triple().architecture
        && target.isa_flags().iter().all(|flag| flag.as_bool() != Some(true) || has(flag.name))
}

/// What a file sets.
struct Settings {
    level: OptLevel,
    settings: Vec<(String, String)>,
    /// Whether the file names the instruction set extensions.
    is_exact: bool,
}

impl Settings {
    fn of_flags(flags: &Flags) -> Self {
        let defaults = Flags::new(settings::builder());
        let changed =
            flags.iter().zip(defaults.iter()).filter(|(flag, default)| flag.value_string() != default.value_string());
        let settings = changed.map(|(flag, _)| (flag.name.to_owned(), flag.value_string())).collect();
        let level = if flags.opt_level() == settings::OptLevel::None { OptLevel::None } else { OptLevel::Speed };
        Self { level, settings, is_exact: false }
    }

    fn of_isa(isa: &dyn TargetIsa) -> Self {
        let mut settings = Self::of_flags(isa.flags());
        let features = isa.isa_flags().into_iter().filter(|flag| flag.as_bool().is_some());
        settings.settings.extend(features.map(|flag| (flag.name.to_owned(), flag.value_string())));
        settings.is_exact = true;
        settings
    }

    fn builder(&self) -> Result<JitBuilder> {
        let mut builder = Jit::builder().opt_level(self.level).verifier(true).traps(true);
        if self.is_exact {
            builder = builder.target(isa_of_host()?.triple().clone());
        }
        Ok(self.settings.iter().fold(builder, |builder, (name, value)| builder.setting(name, value)))
    }
}

fn run_with(file: &TestFile<'_>, commands: &[Command], way: &Settings, lazy: bool, prints: bool) -> Result<()> {
    let builder = way.builder()?;
    let jit: Jit = if lazy { LazyJitBuilder::new(builder).build()?.into() } else { builder.build()? };
    let functions = file.functions.iter().map(|(function, _)| function.clone()).collect();
    let mut module = jit.module("file");
    if lazy {
        module = module.redirectable();
    }
    clif_module::define(&mut module, functions)?;
    if lazy {
        jit.redefine(module)?;
    } else {
        jit.add_module(module)?;
    }
    // Also those that no command reaches.
    for (function, _) in &file.functions {
        jit.lookup_address(&clif_module::function_name(&function.name))
            .map_err(|error| format!("{}: {error}", function.name))?;
    }
    commands.iter().try_for_each(|command| {
        command.check(&jit, prints).map_err(|error| format!("line {}: {error}", command.line).into())
    })
}

impl Command {
    /// Calls the function, and compares or prints what it returns.
    fn check(&self, jit: &Jit, prints: bool) -> Result<()> {
        let (RunCommand::Print(invocation) | RunCommand::Run(invocation, ..)) = &self.run;
        let caller = format!("caller of {}", self.callee);
        let results = clif_module::call(jit, &caller, &self.callee, &self.signature, &invocation.args)?;
        match &self.run {
            RunCommand::Print(_) if !prints => Ok(()),
            RunCommand::Print(_) => {
                println!("{invocation} -> {}", DisplayDataValues(&results));
                Ok(())
            }
            run => Ok(run.run(|_, _| Ok(results))?),
        }
    }
}
