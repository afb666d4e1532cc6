//! A program through Orcane.

use cranelift_codegen::Context;
use cranelift_frontend::FunctionBuilderContext;
use cranelift_module::{Linkage, Module};
use orcane::lazy::{LazyJit, LazyJitBuilder, Tiering};
use orcane::{AbsoluteSymbol, Alias, ClifModule, DylibLookup, Jit, OptLevel, SearchOrder, SymbolDef, SymbolFlags};
use toy_lang::ast::Item;
use toy_lang::lower::{Symbols, lower, signature};

use crate::generate::Parsed;
use crate::{Outcome, host};

/// When functions are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Lookup,
    FirstCall,
    /// At the first call, and again after a few more.
    Tiers,
}

/// How Orcane compiles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    level: OptLevel,
    when: When,
    threads: usize,
    /// Whether every other module is in a dylib of its own, which is compiled when it is looked up.
    apart: bool,
}

impl Way {
    /// How often a program is run: with tiers, what was compiled again runs, too.
    pub(crate) fn runs(self) -> usize {
        if self.when == When::Tiers { 2 } else { 1 }
    }
}

const fn way(level: OptLevel, when: When, threads: usize) -> Way {
    Way { level, when, threads, apart: matches!(when, When::Lookup) }
}

const fn apart(level: OptLevel, when: When, threads: usize) -> Way {
    Way { level, when, threads, apart: true }
}

pub(crate) const TIERED: Way = way(OptLevel::Speed, When::Tiers, 0);

pub(crate) const WAYS: [Way; 14] = [
    way(OptLevel::None, When::Lookup, 0),
    way(OptLevel::Speed, When::Lookup, 0),
    way(OptLevel::None, When::FirstCall, 0),
    way(OptLevel::Speed, When::FirstCall, 0),
    TIERED,
    apart(OptLevel::None, When::Tiers, 0),
    way(OptLevel::Speed, When::Lookup, 1),
    apart(OptLevel::None, When::FirstCall, 1),
    apart(OptLevel::Speed, When::Tiers, 1),
    way(OptLevel::None, When::Lookup, 2),
    way(OptLevel::Speed, When::Lookup, 2),
    way(OptLevel::None, When::FirstCall, 2),
    way(OptLevel::Speed, When::FirstCall, 2),
    way(OptLevel::Speed, When::Tiers, 2),
];

/// Calls and iterations after which a function is hot.
const HOT: u32 = 3;

/// A program that Orcane was given.
pub(crate) struct Compiled {
    jit: LazyJit,
    way: Way,
    entries: usize,
}

impl Compiled {
    pub(crate) fn new(parsed: &Parsed, way: Way) -> Result<Self, String> {
        let told = |error: orcane::Error| format!("{way:?}: {error}");
        let mut builder = LazyJitBuilder::new(Jit::builder().opt_level(way.level).compile_threads(way.threads));
        if way.when == When::Tiers {
            builder = builder.tiers(Tiering::default().threshold(HOT));
        }
        let jit = builder.build().map_err(told)?;
        define_host(&jit).map_err(told)?;
        if way.when == When::Lookup {
            add_to_two_dylibs(&jit, parsed).map_err(|error| format!("{way:?}: {error}"))?;
        } else {
            redefine(&jit, parsed, way.apart).map_err(|error| format!("{way:?}: {error}"))?;
        }
        Ok(Self { jit, way, entries: parsed.entries })
    }

    /// Calls the entries in turn.
    pub(crate) fn run(&mut self) -> Result<Outcome, String> {
        (0..self.entries)
            .map(|entry| {
                let name = format!("entry{entry}");
                let found = self.jit.lookup::<unsafe extern "C" fn() -> f64>(&name);
                let entry = found.map_err(|error| format!("{:?}: {error}", self.way))?;
                // SAFETY: an entry takes nothing and gives a double.
                Ok(host::record(|| unsafe { entry.call() }))
            })
            .collect()
    }

    /// How many functions were compiled again.
    pub(crate) fn promotions(&self) -> usize {
        self.jit.tier_statistics().promotions.len()
    }
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

/// Puts redirectable modules into `main`. Others are `apart` in a dylib that needs `main`, which has lazy re-exports of
/// what is there.
fn redefine(jit: &Jit, parsed: &Parsed, apart: bool) -> Result<(), String> {
    let told = |error: orcane::Error| error.to_string();
    let other = jit.session().create_dylib("other").map_err(told)?;
    other.add_to_link_order(jit.main(), DylibLookup::Exported).map_err(told)?;
    other.add_generator(std::sync::Arc::new(orcane::ProcessSymbols::new(None))).map_err(told)?;
    for (number, items) in parsed.modules.iter().enumerate() {
        let module = jit.module(&format!("module {number}"));
        if !apart || number % 2 == 0 {
            jit.redefine(fill(module.redirectable(), items)?).map_err(told)?;
            continue;
        }
        jit.clif_layer().add(&other.default_tracker().map_err(told)?, fill(module, items)?).map_err(told)?;
        let names = items.iter().filter_map(|item| match item {
            Item::Definition(function) => Some(jit.session().intern(&function.prototype.name)),
            _ => None,
        });
        let aliases = names.map(|name| Alias { name: name.clone(), aliasee: name, flags: SymbolFlags::FUNCTION });
        let order = SearchOrder::new().then(&other, DylibLookup::Exported);
        jit.lazy_re_exports(jit.main(), &order, aliases.collect()).map_err(told)?;
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
