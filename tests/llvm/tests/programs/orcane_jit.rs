//! A program through Orcane.

use cranelift_codegen::Context;
use cranelift_frontend::FunctionBuilderContext;
use cranelift_module::{Linkage, Module};
use orcane::lazy::LazyJitBuilder;
use orcane::{AbsoluteSymbol, ClifModule, DylibLookup, Jit, OptLevel, SymbolDef, SymbolFlags};
use toy_lang::ast::Item;
use toy_lang::lower::{Symbols, lower, signature};

use crate::generate::Parsed;
use crate::{Outcome, host};

/// How Orcane compiles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    level: OptLevel,
    lazy: bool,
    threads: usize,
}

const fn way(level: OptLevel, lazy: bool, threads: usize) -> Way {
    Way { level, lazy, threads }
}

pub(crate) const WAYS: [Way; 8] = [
    way(OptLevel::None, false, 0),
    way(OptLevel::Speed, false, 0),
    way(OptLevel::None, true, 0),
    way(OptLevel::Speed, true, 0),
    way(OptLevel::None, false, 2),
    way(OptLevel::Speed, false, 2),
    way(OptLevel::None, true, 2),
    way(OptLevel::Speed, true, 2),
];

pub(crate) fn run(parsed: &Parsed, way: Way) -> Result<Outcome, String> {
    let told = |error: orcane::Error| format!("{way:?}: {error}");
    let builder = Jit::builder().opt_level(way.level).compile_threads(way.threads);
    let jit: Jit = if way.lazy {
        LazyJitBuilder::new(builder).build().map_err(told)?.into()
    } else {
        builder.build().map_err(told)?
    };
    define_host(&jit).map_err(told)?;
    if way.lazy {
        for (number, items) in parsed.modules.iter().enumerate() {
            let module = fill(jit.module(&format!("module {number}")).redirectable(), items)?;
            jit.redefine(module).map_err(told)?;
        }
    } else {
        add_to_two_dylibs(&jit, parsed).map_err(|error| format!("{way:?}: {error}"))?;
    }
    (0..parsed.entries)
        .map(|entry| {
            let name = format!("entry{entry}");
            let entry = jit.lookup::<unsafe extern "C" fn() -> f64>(&name).map_err(told)?;
            // SAFETY: an entry takes nothing and gives a double.
            Ok(host::record(|| unsafe { entry.call() }))
        })
        .collect()
}

fn define_host(jit: &Jit) -> Result<(), orcane::Error> {
    let symbols = host::functions().map(|(name, _, address)| AbsoluteSymbol {
        name: jit.session().intern(name),
        definition: SymbolDef::at(address),
        flags: SymbolFlags::FUNCTION,
        signature: None,
    });
    jit.main().define_absolute(symbols.into())
}

/// Puts modules alternately into `main` and into a dylib that needs it and is needed by it.
fn add_to_two_dylibs(jit: &Jit, parsed: &Parsed) -> Result<(), String> {
    let told = |error: orcane::Error| error.to_string();
    let other = jit.session().create_dylib("other").map_err(told)?;
    jit.main().add_to_link_order(&other, DylibLookup::Exported).map_err(told)?;
    other.add_to_link_order(jit.main(), DylibLookup::Exported).map_err(told)?;
    other.add_generator(std::sync::Arc::new(orcane::ProcessSymbols::new(None))).map_err(told)?;
    for (number, items) in parsed.modules.iter().enumerate() {
        let module = fill(jit.module(&format!("module {number}")), items)?;
        let dylib = if number % 2 == 0 { jit.main() } else { &other };
        jit.clif_layer().add(&dylib.default_tracker().map_err(told)?, module).map_err(told)?;
    }
    Ok(())
}

fn fill(mut module: ClifModule, items: &[Item]) -> Result<ClifModule, String> {
    let (mut scratch, mut context) = (FunctionBuilderContext::new(), Context::new());
    for item in items {
        let Item::Definition(function) = item else { continue };
        let (prototype, body) = (&function.prototype, &function.body);
        let signature = signature(&module, prototype.parameters.len());
        let id =
            module.declare_function(&prototype.name, Linkage::Export, &signature).map_err(|error| error.to_string())?;
        module.clear_context(&mut context);
        lower(&mut module, &Symbols::default(), &mut scratch, &mut context, &prototype.parameters, body)
            .map_err(|error| error.to_string())?;
        module.define_function(id, &mut context).map_err(|error| error.to_string())?;
    }
    Ok(module)
}
