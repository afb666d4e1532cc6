//! What the command line asks for, done: run, emit or converse.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable, SetError};
use cranelift_module::{ModuleError, default_libcall_names};
use cranelift_object::{ObjectBuilder, ObjectModule};
use orcane::OptLevel;

use crate::ast::Item;
use crate::check::Environment;
use crate::diagnostic::{Diagnostic, Problem, Source};
use crate::engine::{Compile, EngineError, EngineOptions};
use crate::lower::LowerError;
use crate::number::shortest;
use crate::object::ObjectError;
use crate::options::{Emit, Optimise, Options};
use crate::parser::Operators;
use crate::repl::Repl;
use crate::session::{Failure, Session};
use crate::terminal::{Plain, Terminal};
use crate::{image, listing, llvm_ir, object, program};

/// Why the command ends early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The program is wrong, which has been said already.
    #[error("the program is wrong")]
    Program,
    /// A file can't be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// The result can't be written.
    #[error("cannot write {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// The terminal or a pipe failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The JIT failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A function can't be lowered.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// There is no object file.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// No object file format can be written for the host.
    #[error(transparent)]
    Module(#[from] Box<ModuleError>),
    /// No code can be generated for the host.
    #[error("unsupported host: {0}")]
    Host(String),
}

/// Does what the options say.
pub fn run(options: &Options) -> ExitCode {
    let result = match options.emit {
        Some(emit) => emit_program(options, emit),
        None => execute(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let is_told = match &error {
                CommandError::Program => true,
                // Whoever was to read has gone.
                CommandError::Io(error) => error.kind() == io::ErrorKind::BrokenPipe,
                _ => false,
            };
            if !is_told {
                // There is nobody else to tell.
                _ = writeln!(io::stderr(), "Error: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

fn execute(options: &Options) -> Result<(), CommandError> {
    let mut session = Session::new(EngineOptions {
        opt_level: match options.optimise() {
            Optimise::None => OptLevel::None,
            Optimise::Speed => OptLevel::Speed,
        },
        compile: match options {
            Options { tiered: true, .. } => Compile::Tiered,
            Options { lazy: true, .. } => Compile::Lazily,
            _ => Compile::Eagerly,
        },
        threads: usize::from(options.threads),
        debug: options.debug,
    })?;
    let result = if options.files.is_empty() && options.expressions.is_empty() {
        converse(&mut session)
    } else {
        execute_sources(&mut session, &sources(options)?)
    };
    if options.stats {
        write!(io::stderr(), "{}", session.statistics())?;
    }
    result
}

fn converse(session: &mut Session) -> Result<(), CommandError> {
    let colour = io::stderr().is_terminal();
    if !io::stdin().is_terminal() {
        return Ok(Repl::new(session, colour).run(&mut Plain(io::stdin().lock()))?);
    }
    writeln!(io::stdout(), "Kaleidoscope. :help lists the commands.")?;
    Ok(Repl::new(session, colour).run(&mut Terminal::open()?)?)
}

fn execute_sources(session: &mut Session, sources: &[Source]) -> Result<(), CommandError> {
    let mut programs = Vec::new();
    for source in sources {
        programs.push((source, session.read(source).map_err(|diagnostics| show(source, &diagnostics))?));
    }
    for (source, items) in programs {
        session.set_source(source);
        let fail = |failure| match failure {
            Failure::Program(diagnostics) => show(source, &diagnostics),
            Failure::Engine(error) => error.into(),
        };
        for item in &items {
            if let Some(value) = session.execute(item).map_err(fail)? {
                writeln!(io::stdout(), "{}", shortest(value))?;
            }
        }
        session.settle().map_err(fail)?;
    }
    Ok(())
}

fn emit_program(options: &Options, emit: Emit) -> Result<(), CommandError> {
    let items = read_program(options, emit)?;
    let bytes = match emit {
        Emit::LlvmIr => llvm_ir::emit(&items).into_bytes(),
        Emit::Obj => object::emit(host(options.optimise())?, &items)?,
        Emit::Clif => {
            let builder = ObjectBuilder::new(host(options.optimise())?, "kaleidoscope", default_libcall_names());
            let mut module = ObjectModule::new(builder.map_err(Box::new)?);
            listing::program_clif(&mut module, &items)?.into_bytes()
        }
    };
    match &options.output {
        Some(path) if path != Path::new("-") => write_file(path, &bytes),
        None if emit == Emit::Obj => write_file(&default_object(options), &bytes),
        _ => {
            let mut out = io::stdout();
            out.write_all(&bytes)?;
            Ok(out.flush()?)
        }
    }
}

fn read_program(options: &Options, emit: Emit) -> Result<Vec<Item>, CommandError> {
    let sources = if options.files.is_empty() && options.expressions.is_empty() {
        vec![read_source(Path::new("-"))?]
    } else {
        sources(options)?
    };
    let mut operators = Operators::default();
    let mut environment = Environment::default();
    let mut all = Vec::new();
    // Where the items of each source end.
    let mut ends = Vec::new();
    for source in &sources {
        let items = program::parse(source, &mut operators)
            .and_then(|items| program::check(&items, &mut environment).map(|()| items))
            .and_then(|items| without_exceptions(items, emit))
            .map_err(|diagnostics| show(source, &diagnostics))?;
        all.extend(items);
        ends.push(all.len());
    }
    if emit != Emit::Clif
        && let Err(refused) = image::check(&all)
    {
        let mut told = CommandError::Program;
        for (item, diagnostic) in refused {
            told = show(&sources[ends.partition_point(|&end| end <= item)], &[diagnostic]);
        }
        return Err(told);
    }
    Ok(all)
}

/// Refuses what a program can't be emitted with.
fn without_exceptions(items: Vec<Item>, emit: Emit) -> Result<Vec<Item>, Vec<Diagnostic>> {
    match items.iter().find_map(Item::exception) {
        Some(span) if emit != Emit::Clif => Err(vec![Diagnostic::new(Problem::NeedsJit, span)]),
        _ => Ok(items),
    }
}

fn sources(options: &Options) -> Result<Vec<Source>, CommandError> {
    let mut sources = Vec::new();
    for path in &options.files {
        sources.push(read_source(path)?);
    }
    sources.extend(options.expressions.iter().map(|text| Source::new("<expression>", text)));
    Ok(sources)
}

fn read_source(path: &Path) -> Result<Source, CommandError> {
    let (name, bytes) = if path == Path::new("-") {
        let mut bytes = Vec::new();
        ("<stdin>".to_owned(), io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes))
    } else {
        (path.display().to_string(), fs::read(path))
    };
    let bytes = bytes.map_err(|error| CommandError::Read { path: path.to_owned(), error })?;
    Source::from_bytes(name, bytes).map_err(|(source, diagnostic)| show(&source, &[diagnostic]))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CommandError> {
    fs::write(path, bytes).map_err(|error| CommandError::Write { path: path.to_owned(), error })
}

/// The first file's name with another extension, in the current folder.
fn default_object(options: &Options) -> PathBuf {
    let stem = options.files.first().and_then(|path| path.file_stem()).filter(|&stem| stem != "-");
    let mut name = stem.unwrap_or("program".as_ref()).to_owned();
    // `with_extension` would take off what follows another point of the name.
    name.push(".o");
    name.into()
}

fn show(source: &Source, diagnostics: &[Diagnostic]) -> CommandError {
    let colour = io::stderr().is_terminal();
    for diagnostic in diagnostics {
        if let Err(error) = diagnostic.write(source, colour, &mut io::stderr().lock()) {
            return error.into();
        }
    }
    CommandError::Program
}

fn host(optimise: Optimise) -> Result<OwnedTargetIsa, CommandError> {
    let unsupported = |error: &dyn std::fmt::Display| CommandError::Host(error.to_string());
    let builder = cranelift_native::builder().map_err(|error| unsupported(&error))?;
    let flags = host_flags(optimise).map_err(|error| unsupported(&error))?;
    builder.finish(flags).map_err(|error| unsupported(&error))
}

fn host_flags(optimise: Optimise) -> Result<settings::Flags, SetError> {
    let mut flags = settings::builder();
    flags.set("opt_level", optimise.flag())?;
    // What linkers make by default are position-independent executables.
    flags.set("is_pic", "true")?;
    Ok(settings::Flags::new(flags))
}
