//! Definitions that are made when they are asked for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use jit_core::{
    AbsoluteSymbol, DefinitionGenerator, DylibLookup, DynamicLibrarySymbols, GeneratorError, JitDylib, LookupSet,
    LookupState, Mangling, MaterializationResponsibility, ProcessSymbols, ReExports, SearchOrder, SymbolDef,
    SymbolFilter, SymbolFlags, SymbolLookup, SymbolName, SymbolState, ThreadPoolDispatcher,
};

use crate::stage::{Custom, Stage, answered, failed, ok};

/// Keeps every lookup until the test continues it.
#[derive(Clone, Default)]
struct Suspending {
    kept: Arc<Mutex<Vec<LookupState>>>,
}

impl DefinitionGenerator for Suspending {
    fn try_to_generate(&self, lookup: LookupState) {
        self.kept.lock().unwrap().push(lookup);
    }
}

impl Suspending {
    fn take(&self) -> LookupState {
        let mut kept = self.kept.lock().unwrap();
        assert_eq!(kept.len(), 1, "one lookup at a time");
        kept.remove(0)
    }

    fn asked(&self) -> Vec<String> {
        self.kept.lock().unwrap().iter().flat_map(LookupState::names).map(ToString::to_string).collect()
    }
}

fn suspending() -> (Stage, Suspending) {
    let stage = Stage::new();
    let generator = Suspending::default();
    stage.dylib.add_generator(Arc::new(generator.clone())).unwrap();
    (stage, generator)
}

#[test]
fn core_29_missing_names_are_generated_and_hidden_ones_left_alone() {
    let stage = Stage::new();
    stage.dylib.define_absolute(vec![stage.absolute("hidden", 1, SymbolFlags::HIDDEN)]).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&asked);
    let generator = move |dylib: &JitDylib, names: &[SymbolName]| -> Result<(), GeneratorError> {
        to.lock().unwrap().extend_from_slice(names);
        let symbols = names.iter().map(|name| jit_core::AbsoluteSymbol {
            name: name.clone(),
            definition: jit_core::SymbolDef::at(2),
            flags: SymbolFlags::EXPORTED,
            signature: None,
        });
        Ok(dylib.define_absolute(symbols.collect())?)
    };
    stage.dylib.add_generator(Arc::new(generator)).unwrap();
    let set = LookupSet::new()
        .with(stage.name("foo"), SymbolLookup::Required)
        .with(stage.name("hidden"), SymbolLookup::WeaklyReferenced);
    let order = SearchOrder::new().then(&stage.dylib, DylibLookup::Exported);
    let found = stage.session.lookup(&order, set).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].definition.address, 2);
    assert_eq!(*asked.lock().unwrap(), stage.names(&["foo"]));
    assert_eq!(stage.address("hidden"), Ok(1));
}

#[test]
fn core_30_a_suspended_lookup_goes_on_once_it_is_continued() {
    let (stage, generator) = suspending();
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    assert_eq!(answered(&answer), None);
    let lookup = generator.take();
    assert_eq!(lookup.names(), stage.names(&["foo"]));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lookup.dylib().define_absolute(vec![stage.absolute("foo", 1, SymbolFlags::EXPORTED)]).unwrap();
            lookup.continue_lookup(Ok(()));
        });
    });
    assert_eq!(answered(&answer), ok(&["foo"]));
}

#[test]
fn core_31_a_suspended_lookup_that_is_continued_with_an_error_fails() {
    let (stage, generator) = suspending();
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    generator.take().continue_lookup(Err("no luck".into()));
    assert_eq!(answered(&answer), failed("symbol 'foo' in dylib 'main': generator failed: no luck"));
}

#[test]
fn core_32_a_parked_lookup_comes_to_the_generator_after_the_first_one_failed() {
    let (stage, generator) = suspending();
    let first = stage.lookup(&["foo"], SymbolState::Ready);
    let second = stage.lookup(&["bar"], SymbolState::Ready);
    assert_eq!(generator.asked(), ["foo"]);
    generator.take().continue_lookup(Err("first".into()));
    assert_eq!(answered(&first), failed("symbol 'foo' in dylib 'main': generator failed: first"));
    assert_eq!(answered(&second), None);
    assert_eq!(generator.asked(), ["bar"]);
    generator.take().continue_lookup(Err("second".into()));
    assert_eq!(answered(&second), failed("symbol 'bar' in dylib 'main': generator failed: second"));
}

#[test]
fn core_33_parked_lookups_go_on_in_their_order_until_one_needs_the_generator() {
    let (stage, generator) = suspending();
    let [first, second, third, fourth] =
        [&["foo"][..], &["bar"], &["foo", "bar"], &["baz"]].map(|names| stage.lookup(names, SymbolState::Ready));
    let after = stage.lookup(&["qux"], SymbolState::Ready);
    stage.define_absolute("bar", 2);
    let lookup = generator.take();
    stage.define_absolute("foo", 1);
    lookup.continue_lookup(Ok(()));
    assert_eq!(answered(&first), ok(&["foo"]));
    assert_eq!(answered(&second), ok(&["bar"]));
    assert_eq!(answered(&third), ok(&["foo", "bar"]));
    assert_eq!((answered(&fourth), answered(&after)), (None, None));
    assert_eq!(generator.asked(), ["baz"]);
    generator.take().continue_lookup(Ok(()));
    assert_eq!(answered(&fourth), failed("symbol 'baz' in dylib 'main': not found"));
    assert_eq!(generator.asked(), ["qux"]);
    drop(generator.take());
    let expected = "symbol 'qux' in dylib 'main': generator failed: it dropped the lookup";
    assert_eq!(answered(&after), failed(expected));
}

#[test]
fn gap_9_a_removed_generator_lets_go_of_its_lookups() {
    let stage = Stage::new();
    let other = stage.session.create_dylib("other").unwrap();
    let suspending = Suspending::default();
    let generator: Arc<dyn DefinitionGenerator> = Arc::new(suspending.clone());
    other.add_generator(Arc::clone(&generator)).unwrap();
    let order = other.link_order();
    let first = stage.lookup_in(&order, stage.names(&["foo"]), SymbolState::Ready);
    let second = stage.lookup_in(&order, stage.names(&["bar"]), SymbolState::Ready);
    other.remove_generator(&generator).unwrap();
    assert_eq!(answered(&first), failed("symbol 'foo': its generator was removed"));
    assert_eq!(answered(&second), failed("symbol 'bar' in dylib 'other': not found"));
    // Too late to matter.
    suspending.take().continue_lookup(Ok(()));
    assert_eq!(stage.session.statistics().lookups, 0);
}

#[test]
fn gap_8_lookups_from_a_generator_work() {
    for threads in [0, 1] {
        let stage = match threads {
            0 => Stage::new(),
            threads => Stage::with(Box::new(ThreadPoolDispatcher::new(threads).unwrap())),
        };
        stage.define_absolute("base", 40);
        let generator = |dylib: &JitDylib, names: &[SymbolName]| -> Result<(), GeneratorError> {
            let session = dylib.session();
            // One name that is there, and one that only this generator could define.
            let found = session.lookup(&dylib.link_order(), vec![session.intern("base")])?;
            assert!(session.lookup(&dylib.link_order(), vec![session.intern("nowhere")]).is_err());
            let symbols = names.iter().map(|name| jit_core::AbsoluteSymbol {
                name: name.clone(),
                definition: jit_core::SymbolDef::at(found[0].definition.address + 2),
                flags: SymbolFlags::EXPORTED,
                signature: None,
            });
            Ok(dylib.define_absolute(symbols.collect())?)
        };
        stage.dylib.add_generator(Arc::new(generator)).unwrap();
        assert_eq!(stage.address("foo"), Ok(42));
    }
}

#[test]
fn generators_are_asked_in_order_for_what_is_still_missing() {
    let stage = Stage::new();
    let log = Arc::new(Mutex::new(Vec::new()));
    for (index, answers) in [(1, "foo"), (2, "bar")] {
        let log = Arc::clone(&log);
        let generator = move |dylib: &JitDylib, names: &[SymbolName]| -> Result<(), GeneratorError> {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            log.lock().unwrap().push(format!("{index}: {}", names.join(" ")));
            let symbol = jit_core::AbsoluteSymbol {
                name: dylib.session().intern(answers),
                definition: jit_core::SymbolDef::at(index),
                flags: SymbolFlags::EXPORTED,
                signature: None,
            };
            Ok(dylib.define_absolute(vec![symbol])?)
        };
        stage.dylib.add_generator(Arc::new(generator)).unwrap();
    }
    let answer = stage.lookup(&["foo", "bar"], SymbolState::Ready);
    assert_eq!(answered(&answer), ok(&["foo", "bar"]));
    assert_eq!(*log.lock().unwrap(), ["1: foo bar", "2: bar"]);
}

#[test]
fn a_name_that_is_asked_for_twice_is_generated_once() {
    let (stage, generator) = suspending();
    let answer = stage.lookup(&["foo", "foo"], SymbolState::Ready);
    assert_eq!(generator.asked(), ["foo"]);
    stage.define_absolute("foo", 1);
    generator.take().continue_lookup(Ok(()));
    assert_eq!(answered(&answer), ok(&["foo", "foo"]));
}

#[test]
fn a_panic_in_a_generator_fails_its_lookup() {
    let stage = Stage::new();
    let generator = |_: &JitDylib, names: &[SymbolName]| -> Result<(), GeneratorError> { panic!("no {}", names[0]) };
    stage.dylib.add_generator(Arc::new(generator)).unwrap();
    assert_eq!(stage.address("foo"), Err("symbol 'foo' in dylib 'main': generator failed: no foo".into()));
    stage.define_absolute("foo", 1);
    assert_eq!(stage.address("foo"), Ok(1));
}

#[test]
fn the_symbols_of_the_process_are_found_by_their_mangled_names() {
    let stage = Stage::new();
    let filter = Arc::new(|name: &str| name != "_free");
    let generator = ProcessSymbols::new(Some(filter)).mangling(Mangling::Underscore);
    stage.dylib.add_generator(Arc::new(generator)).unwrap();
    assert_eq!(Mangling::Underscore.mangle("malloc"), "_malloc");
    assert_eq!(stage.address("_malloc"), Ok(libc_address("malloc")));
    assert!(stage.address("_free").is_err());
    assert!(stage.address("malloc").is_err());
}

fn libc_address(name: &str) -> u64 {
    let stage = Stage::new();
    let name = std::ffi::CString::new(name).unwrap();
    stage.session.executor().find_symbol(&name).unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_dynamic_library_defines_its_symbols() {
    let stage = Stage::new();
    let load = |path: &str| DynamicLibrarySymbols::load(stage.session.executor(), path.as_ref(), None);
    stage.dylib.add_generator(Arc::new(load("libm.so.6").unwrap())).unwrap();
    assert!(stage.address("cos").unwrap() != 0);
    assert!(stage.address("no_such_function").is_err());
    let error = load("/no/such/library.so").err().unwrap().to_string();
    assert!(error.starts_with("cannot load /no/such/library.so: "), "{error}");
}

#[test]
fn a_generator_is_asked_before_later_dylibs_whether_or_not_those_are_ready() {
    for ready in [false, true] {
        let stage = Stage::new();
        let library = stage.session.create_dylib("library").unwrap();
        library.define_absolute(vec![stage.absolute("foo", 2, SymbolFlags::EXPORTED)]).unwrap();
        if ready {
            let order = SearchOrder::new().then(&library, DylibLookup::All);
            assert!(stage.session.lookup(&order, stage.names(&["foo"])).is_ok());
        }
        stage.dylib.add_to_link_order(&library, DylibLookup::Exported).unwrap();
        assert_eq!(stage.session.ready_address(&stage.order(), &stage.name("foo")), Some(2));
        let makes = |dylib: &JitDylib, names: &[SymbolName]| -> Result<(), GeneratorError> {
            let symbols = names.iter().map(|name| AbsoluteSymbol {
                name: name.clone(),
                definition: SymbolDef::at(1),
                flags: SymbolFlags::EXPORTED,
                signature: None,
            });
            Ok(dylib.define_absolute(symbols.collect())?)
        };
        let generator: Arc<dyn DefinitionGenerator> = Arc::new(makes);
        stage.dylib.add_generator(Arc::clone(&generator)).unwrap();
        assert_eq!(stage.session.ready_address(&stage.order(), &stage.name("foo")), None);
        assert_eq!(stage.address("foo"), Ok(1));
        stage.dylib.clear().unwrap();
        stage.dylib.remove_generator(&generator).unwrap();
        assert_eq!(stage.address("foo"), Ok(2));
    }
}

/// As many threads as said, or none.
fn stage_with_threads(threads: usize) -> Stage {
    match threads {
        0 => Stage::new(),
        count => Stage::with(Box::new(ThreadPoolDispatcher::new(count).unwrap())),
    }
}

#[test]
fn dylibs_that_re_export_each_other_do_not_wait_for_each_other() {
    for threads in [0, 2] {
        let stage = stage_with_threads(threads);
        let other = stage.session.create_dylib("other").unwrap();
        other.define_absolute(vec![stage.absolute("there", 3, SymbolFlags::EXPORTED)]).unwrap();
        // Both are inside of their generators before either goes on.
        let (both, count) = (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(0)));
        let filter = || -> SymbolFilter {
            let (both, count) = (Arc::clone(&both), Arc::clone(&count));
            Arc::new(move |_: &str| {
                if count.fetch_add(1, Ordering::SeqCst) < 2 {
                    both.wait();
                }
                true
            })
        };
        let re_export = |from: &JitDylib, to: &JitDylib| {
            to.add_generator(Arc::new(ReExports::new(from, DylibLookup::All, Some(filter())))).unwrap();
        };
        re_export(&other, &stage.dylib);
        re_export(&stage.dylib, &other);
        let session = stage.session.clone();
        let (order, names) = (other.link_order(), stage.names(&["nowhere"]));
        let second = std::thread::spawn(move || session.lookup(&order, names).unwrap_err().to_string());
        assert_eq!(stage.address("there"), Ok(3));
        assert_eq!(second.join().unwrap(), "symbol 'nowhere' in dylib 'other': not found");
    }
}

#[test]
fn a_unit_that_a_generator_waits_for_may_need_the_generator() {
    for threads in [0, 1, 2] {
        let stage = stage_with_threads(threads);
        let helper = Custom(|responsibility: MaterializationResponsibility| {
            let session = responsibility.session().clone();
            let (order, names) = (responsibility.link_order(), vec![session.intern("made")]);
            session.lookup_async(&order, names, SymbolState::Ready, move |found| {
                let address = found.unwrap()[0].definition.address;
                let own = responsibility.symbols()[0].name.clone();
                responsibility.resolve(&[(own, SymbolDef::at(10 * address))]).unwrap();
                responsibility.emit(&[]).unwrap();
            });
        });
        let unit = stage.definition(&[("helper", SymbolFlags::EXPORTED)], helper);
        stage.dylib.default_tracker().unwrap().define(vec![unit]).unwrap();
        let makes = |dylib: &JitDylib, names: &[SymbolName]| -> Result<(), GeneratorError> {
            for name in names {
                let session = dylib.session();
                let address = match name.as_str() {
                    "made" => 7,
                    _ => {
                        let found = session.lookup(&dylib.link_order(), vec![session.intern("helper")])?;
                        found[0].definition.address + 1
                    }
                };
                dylib.define_absolute(vec![AbsoluteSymbol {
                    name: name.clone(),
                    definition: SymbolDef::at(address),
                    flags: SymbolFlags::EXPORTED,
                    signature: None,
                }])?;
            }
            Ok(())
        };
        stage.dylib.add_generator(Arc::new(makes)).unwrap();
        assert_eq!(stage.address("foo"), Ok(71));
    }
}
