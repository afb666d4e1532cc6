//! `orcane run`: links files as one program and runs it.

mod clif;
mod inputs;
mod libraries;
mod outermost;
mod search;

use std::error::Error;
use std::ffi::{CString, c_char, c_int};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgMatches, Args, ValueEnum};
use orcane::{
    AbsoluteSymbol, Alias, Debugger, DylibLookup, Jit, JitDylib, OptLevel, ProcessAccess, Profiler, Program,
    ProgramOptions, SymbolDef, SymbolFlags, WeakDefinitions,
};

use self::clif::ClifFiles;
use self::inputs::{Input, Kind};
use self::libraries::{CompilersArchives, RuntimeLibraries};
use crate::Result;

/// Links objects, archives, shared libraries and CLIF files as one program, and runs it
#[derive(Args)]
pub(crate) struct Run {
    /// Objects, archives, shared libraries and files of CLIF functions named `%name`
    #[arg(required_unless_present = "libraries")]
    files: Vec<PathBuf>,
    /// Links with libNAME.so or libNAME.a
    #[arg(short = 'l', value_name = "NAME")]
    libraries: Vec<String>,
    /// Adds an archive, of which other dylibs see nothing
    #[arg(long = "load-hidden", value_name = "FILE")]
    hidden_archives: Vec<PathBuf>,
    /// Links with libNAME.a, of which other dylibs see nothing
    #[arg(long = "hidden-l", value_name = "NAME")]
    hidden_libraries: Vec<String>,
    /// Looks for libraries in DIR before the system's directories
    #[arg(short = 'L', value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// The function to call
    #[arg(long, value_name = "SYM", default_value = "main")]
    entry: String,
    /// Puts the files after it into a dylib of that name
    #[arg(long = "dylib", value_name = "NAME")]
    dylibs: Vec<String>,
    /// Defines a symbol at an address
    #[arg(long = "define", value_name = "SYM=ADDR")]
    definitions: Vec<String>,
    /// Defines a symbol that is another one
    #[arg(long = "alias", value_name = "NEW=OLD")]
    aliases: Vec<String>,
    /// Compiles functions of CLIF files, and links objects, when functions of theirs are first called
    #[arg(long)]
    lazy: bool,
    /// Hides the symbols of this process and its libraries from the program
    #[arg(long)]
    no_process_symbols: bool,
    /// Whose definition the program takes of what C++ has in every object (an inline variable, an exception's type), if
    /// the process has one too
    #[arg(long = "weak", value_name = "WHOSE", default_value = "process")]
    weak_definitions: Weak,
    /// How hard Cranelift tries
    #[arg(short = 'O', long, default_value = "speed")]
    opt_level: Level,
    /// Threads that compile and link; 0 does it on the thread that needs the code
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Tells debuggers of the program's objects, though none is attached yet
    #[arg(long)]
    debugger: bool,
    /// Says on standard error what was compiled and linked, before the program starts
    #[arg(long)]
    stats: bool,
    /// Says on standard error what is added
    #[arg(short, long)]
    verbose: bool,
    /// The program's arguments. Those of a function from a CLIF file are integers, or numbers with a point for floats
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Level {
    None,
    Speed,
}

#[derive(Clone, Copy, ValueEnum)]
enum Weak {
    Process,
    Own,
}

/// Runs the program, and exits as it does. What is given back is why it could not be run.
pub(crate) fn run(options: &Run, matches: &ArgMatches) -> Box<dyn Error> {
    outermost::call(|| match Loaded::load(options, matches).and_then(|loaded| loaded.call(options)) {
        Ok(status) => exit(status),
        Err(error) => error,
    })
}

/// As if `main` had returned: finalizers and what is registered for exit are called.
fn exit(status: i32) -> ! {
    unsafe extern "C-unwind" {
        /// The C library's, which unwinds where what it calls does.
        fn exit(status: c_int) -> !;
    }
    // SAFETY: the program is in memory still. Nothing of ours is destroyed before its finalizers ran.
    unsafe { exit(status) }
}

/// A program that is in memory and not linked yet.
struct Loaded {
    jit: Jit,
    program: Arc<Program>,
    clif: ClifFiles,
}

impl Loaded {
    fn load(options: &Run, matches: &ArgMatches) -> Result<Self> {
        let inputs = inputs::gather(options, matches)?;
        let jit = build(options, &inputs)?;
        let mut program = ProgramOptions::default().weak_definitions(match options.weak_definitions {
            Weak::Process => WeakDefinitions::OfProcess,
            Weak::Own => WeakDefinitions::Own,
        });
        program = program.debugger(debugger(options)).profiler(&Profiler::Environment)?;
        if let Some(objects) = jit.lazy_objects() {
            program = program.lazy(objects);
        }
        let program = Arc::new(Program::with_options(jit.session().clone(), program));
        let mut this = Self { jit, program, clif: ClifFiles::default() };
        let dylibs = this.create_dylibs(options, &inputs)?;
        let main = this.jit.main().clone();
        for (symbol, address) in pairs(&options.definitions)? {
            let address = parse_address(address).ok_or_else(|| format!("'{address}' is no address"))?;
            main.define_absolute(vec![AbsoluteSymbol {
                name: this.jit.session().intern(symbol),
                definition: SymbolDef::at(address),
                flags: SymbolFlags::EXPORTED,
                signature: None,
            }])?;
        }
        for (name, aliasee) in pairs(&options.aliases)? {
            let [name, aliasee] = [name, aliasee].map(|symbol| this.jit.session().intern(symbol));
            let alias = Alias { name, aliasee, flags: SymbolFlags::EXPORTED };
            main.default_tracker()?.define_aliases(&main.link_order(), vec![alias])?;
        }
        for input in &inputs {
            if options.verbose {
                eprintln!(
                    "orcane: {} into {}: {}",
                    input.kind,
                    input.dylib.as_deref().unwrap_or("main"),
                    input.path.display()
                );
            }
        }
        // What is searched comes first: an object is added with an eye to what libraries define.
        let (searched, defined): (Vec<_>, Vec<_>) = inputs.iter().partition(|input| input.kind.is_searched());
        for input in searched.into_iter().chain(defined) {
            let dylib = input.dylib.as_ref().and_then(|name| dylibs.iter().find(|(known, _)| known == name));
            this.add(input, dylib.map_or(&main, |(_, dylib)| dylib), options)?;
        }
        Ok(this)
    }

    /// The dylibs that files are grouped in. All search all: themselves first, then `main`, then
    /// the others in their order, the process, and last what compilers link with everything.
    fn create_dylibs(&self, options: &Run, inputs: &[Input]) -> Result<Vec<(String, JitDylib)>> {
        let session = self.jit.session();
        let main = self.jit.main();
        let process = session.dylib("process");
        let mut dylibs: Vec<(String, JitDylib)> = Vec::new();
        for name in inputs.iter().filter_map(|input| input.dylib.as_ref()) {
            if !dylibs.iter().any(|(known, _)| known == name) {
                dylibs.push((name.clone(), session.create_dylib(name)?));
            }
        }
        if let Some(process) = &process {
            main.remove_from_link_order(process)?;
        }
        for dylib in std::iter::once(main).chain(dylibs.iter().map(|(_, dylib)| dylib)) {
            for other in std::iter::once(main).chain(dylibs.iter().map(|(_, dylib)| dylib)) {
                if dylib != other {
                    dylib.add_to_link_order(other, DylibLookup::Exported)?;
                }
            }
            if let Some(process) = &process {
                dylib.add_to_link_order(process, DylibLookup::Exported)?;
            }
        }
        if let Some(process) = process.filter(|_| !options.no_process_symbols) {
            process.add_generator(Arc::new(RuntimeLibraries::default()))?;
            let compiler = session.create_dylib("archives of the compiler")?;
            compiler.add_to_link_order(&process, DylibLookup::Exported)?;
            compiler.add_generator(Arc::new(CompilersArchives::new(Arc::clone(&self.program))))?;
            for dylib in std::iter::once(main).chain(dylibs.iter().map(|(_, dylib)| dylib)) {
                // What is linked into each program is hidden from other libraries, not from it.
                dylib.add_to_link_order(&compiler, DylibLookup::All)?;
            }
        }
        Ok(dylibs)
    }

    fn add(&mut self, input: &Input, dylib: &JitDylib, options: &Run) -> Result<()> {
        let name = input.path.display().to_string();
        match &input.kind {
            Kind::Object(bytes) => _ = self.program.add_object(dylib, &name, bytes.clone())?,
            Kind::Archive(scope) => self.program.add_archive(dylib, &input.path, *scope)?,
            Kind::Library => libraries::add(dylib, &input.path)?,
            Kind::Clif(text) => self.clif.add(&self.jit, dylib, &name, text, options.lazy)?,
        }
        Ok(())
    }

    /// Calls the entry function, and gives the program's exit status.
    fn call(self, options: &Run) -> Result<i32> {
        let Self { jit, program, clif } = self;
        // They live as long as the process.
        let (jit, program) = (Box::leak(Box::new(jit)), Box::leak(Box::new(program)));
        let main = jit.main().clone();
        if let Some(signature) = clif.signature(&options.entry) {
            program.lookup(&main, &options.entry)?;
            tell_statistics(options, jit);
            let results = clif::call(jit, &options.entry, signature, &options.arguments)?;
            results.iter().for_each(|result| println!("{result}"));
            return Ok(0);
        }
        let name = options.files.first().map(|file| file.display().to_string()).unwrap_or_default();
        let arguments = std::iter::once(name).chain(options.arguments.iter().cloned());
        let arguments = arguments.map(CString::new).collect::<std::result::Result<Vec<_>, _>>()?;
        program.set_arguments(arguments.clone());
        if options.entry.is_empty() {
            return Err("the entry function has no name".into());
        }
        let entry = program.lookup(&main, &options.entry)?;
        tell_statistics(options, jit);
        Ok(call_main(entry, arguments))
    }
}

/// What a program begins with.
type Main = unsafe extern "C-unwind" fn(c_int, *const *const c_char, *const *const c_char) -> c_int;

fn call_main(entry: u64, arguments: Vec<CString>) -> i32 {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    let count = arguments.len() as i32;
    let mut pointers: Vec<*const c_char> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let pointers = std::mem::ManuallyDrop::new(pointers);
    // A program may keep its arguments until it exits.
    std::mem::forget(arguments);
    // SAFETY: the entry is a function of the program's; whoever has it run vouches for it. The
    // environment is the C library's.
    unsafe {
        let main = std::mem::transmute::<*const (), Main>(entry as *const ());
        main(count, pointers.as_ptr(), environ)
    }
}

fn debugger(options: &Run) -> Debugger {
    if options.debugger { Debugger::On } else { Debugger::IfAttached }
}

fn build(options: &Run, inputs: &[Input]) -> Result<Jit> {
    let level = match options.opt_level {
        Level::None => OptLevel::None,
        Level::Speed => OptLevel::Speed,
    };
    let access = if options.no_process_symbols { ProcessAccess::None } else { ProcessAccess::All };
    let builder =
        Jit::builder().opt_level(level).verifier(true).compile_threads(options.threads).process_symbols(access);
    let builder = builder.debugger(debugger(options));
    let builder = match inputs::memory(inputs, &options.entry)? {
        Some(memory) => builder.memory_manager(memory),
        None => builder,
    };
    if options.lazy {
        return Ok(orcane::lazy::LazyJitBuilder::new(builder).build()?.into());
    }
    Ok(builder.build()?)
}

fn tell_statistics(options: &Run, jit: &Jit) {
    if options.stats {
        eprintln!("orcane: {:?}\norcane: {:?}", jit.stats().compile, jit.memory_statistics());
    }
}

/// The halves of options like `NEW=OLD`.
fn pairs(options: &[String]) -> Result<Vec<(&str, &str)>> {
    let pairs =
        options.iter().map(|option| option.split_once('=').ok_or_else(|| format!("'{option}' has no '='").into()));
    pairs.collect()
}

fn parse_address(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
