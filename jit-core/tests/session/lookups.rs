//! What lookups find, and the ways to wait for them.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use jit_core::{
    DylibLookup, GeneratorError, JitDylib, LookupFuture, LookupKind, LookupSet, SearchOrder, SymbolFlags, SymbolLookup,
    SymbolName, SymbolState, ThreadPoolDispatcher,
};

use crate::stage::{SIDE_EFFECTS, Stage, answered, because, failed, logged, ok};

#[test]
fn core_05_a_unit_defines_what_was_not_asked_for_and_the_answer_does_not_hold_it() {
    let stage = Stage::new();
    stage.define_unit(&[("foo", SymbolFlags::EXPORTED), ("bar", SymbolFlags::EXPORTED)]).unwrap();
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    stage.finish("foo");
    assert_eq!(answered(&answer), ok(&["foo"]));
    assert_eq!(stage.state("bar"), Some(SymbolState::Ready));
}

#[test]
fn core_06_a_side_effect_is_emitted_without_an_address_and_left_out_of_the_answer() {
    let stage = Stage::new();
    stage.define_unit(&[("init", SIDE_EFFECTS)]).unwrap();
    let answer = stage.lookup_weakly(&["init"], SymbolState::Ready);
    let unit = stage.take("init");
    assert_eq!(answered(&answer), None);
    unit.emit(&[]).unwrap();
    assert_eq!(answered(&answer), ok(&[]));
    let required = stage.lookup(&["init"], SymbolState::Ready);
    assert_eq!(answered(&required), failed("symbol 'init' in dylib 'main': it has side effects only, and no address"));
}

#[test]
fn core_07_a_side_effect_that_failed_fails_every_lookup() {
    let stage = Stage::new();
    stage.define_unit(&[("init", SIDE_EFFECTS)]).unwrap();
    let first = stage.lookup_weakly(&["init"], SymbolState::Ready);
    stage.take("init").fail(because("no effect"));
    let expected = failed("symbol 'init' in dylib 'main': no effect");
    assert_eq!(answered(&first), expected);
    assert_eq!(answered(&stage.lookup_weakly(&["init"], SymbolState::Ready)), expected);
}

#[test]
fn core_10_a_hidden_definition_is_passed_over_for_an_exported_one_further_on() {
    let stage = Stage::new();
    let other = stage.session.create_dylib("other").unwrap();
    stage
        .dylib
        .define_absolute(vec![
            stage.absolute("foo", 1, SymbolFlags::HIDDEN),
            stage.absolute("bar", 2, SymbolFlags::EXPORTED),
        ])
        .unwrap();
    other
        .define_absolute(vec![
            stage.absolute("foo", 3, SymbolFlags::EXPORTED),
            stage.absolute("bar", 4, SymbolFlags::EXPORTED),
        ])
        .unwrap();
    let addresses = |visibility| {
        let order = SearchOrder::new().then(&stage.dylib, visibility).then(&other, DylibLookup::Exported);
        let found = stage.session.lookup(&order, stage.names(&["foo", "bar"])).unwrap();
        found.iter().map(|symbol| symbol.definition.address).collect::<Vec<_>>()
    };
    assert_eq!(addresses(DylibLookup::Exported), [3, 2]);
    assert_eq!(addresses(DylibLookup::All), [1, 2]);
}

#[test]
fn core_11_a_lookup_of_flags_materializes_nothing() {
    let stage = Stage::new();
    stage.define_unit(&[("foo", SymbolFlags::FUNCTION)]).unwrap();
    stage.define_unit(&[("bar", SymbolFlags::WEAK)]).unwrap();
    let set: LookupSet =
        ["foo", "bar", "missing"].into_iter().map(|name| (stage.name(name), SymbolLookup::WeaklyReferenced)).collect();
    let flags = stage.session.lookup_flags(LookupKind::Static, &stage.order(), set).unwrap();
    let expected = vec![(stage.name("foo"), SymbolFlags::FUNCTION), (stage.name("bar"), SymbolFlags::WEAK)];
    assert_eq!(flags, expected);
    assert_eq!(stage.state("foo"), Some(SymbolState::NeverSearched));
    let error = stage.session.lookup_flags(LookupKind::Static, &stage.order(), stage.names(&["missing"]));
    assert_eq!(error.unwrap_err().to_string(), "symbol 'missing' in dylib 'main': not found");
}

#[test]
fn core_12_a_generator_that_fails_fails_both_kinds_of_lookup() {
    let stage = Stage::new();
    let failing = |_: &JitDylib, _: &[SymbolName]| -> Result<(), GeneratorError> { Err("out of symbols".into()) };
    stage.dylib.add_generator(Arc::new(failing)).unwrap();
    let expected = "symbol 'foo' in dylib 'main': generator failed: out of symbols";
    assert_eq!(stage.address("foo"), Err(expected.into()));
    let flags = stage.session.lookup_flags(LookupKind::Static, &stage.order(), stage.names(&["foo"]));
    assert_eq!(flags.unwrap_err().to_string(), expected);
}

#[test]
fn core_38_a_lookup_in_place_gives_address_and_flags() {
    let stage = Stage::new();
    let unit = crate::stage::Custom(|responsibility: jit_core::MaterializationResponsibility| {
        let own = responsibility.symbols()[0].name.clone();
        responsibility.resolve(&[(own, jit_core::SymbolDef::at(0x42))]).unwrap();
        responsibility.emit(&[]).unwrap();
    });
    let definition = stage.definition(&[("foo", SymbolFlags::FUNCTION)], unit);
    stage.dylib.default_tracker().unwrap().define(vec![definition]).unwrap();
    let found = stage.session.lookup(&stage.order(), stage.names(&["foo"])).unwrap();
    assert_eq!((found[0].definition.address, found[0].flags), (0x42, SymbolFlags::FUNCTION));
    assert_eq!(stage.session.ready_address(&stage.order(), &stage.name("foo")), Some(0x42));
}

/// The table's index grows from pages that are given back to longer ones.
#[test]
fn ready_symbols_are_found_while_their_table_grows() {
    const SYMBOLS: u64 = 100_000;
    const PART: u64 = 1_000;
    let stage = Stage::new();
    let names: Vec<_> = (0..SYMBOLS).map(|number| stage.name(&format!("symbol{number}"))).collect();
    let defined = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (order, mut lookups) = (stage.order(), 0);
            loop {
                let there = defined.load(Ordering::Acquire);
                for number in (0..there).step_by(97) {
                    let address = stage.session.ready_address(&order, &names[number as usize]);
                    assert_eq!(address, Some(0x1000 + number));
                    lookups += 1;
                }
                if there == SYMBOLS {
                    return lookups;
                }
            }
        });
        for first in (0..SYMBOLS).step_by(PART as usize) {
            let symbol = |number: u64| stage.absolute(&names[number as usize], 0x1000 + number, SymbolFlags::EXPORTED);
            stage.dylib.define_absolute((first..first + PART).map(symbol).collect()).unwrap();
            defined.store(first + PART, Ordering::Release);
        }
        assert!(reader.join().unwrap() > 0);
    });
}

/// Looks up one name that is there and one that is not.
fn record(stage: &Stage, lookup: SymbolLookup, names: [&str; 2]) -> (Result<(), String>, [u64; 2]) {
    let mut places = [u64::MAX; 2];
    let [first, second] = &mut places;
    let mut wanted = [(stage.name(names[0]), SymbolLookup::Required, first), (stage.name(names[1]), lookup, second)];
    let result = stage.session.lookup_and_record(LookupKind::Static, &stage.order(), &mut wanted);
    (result.map_err(|error| error.to_string()), places)
}

fn record_async(stage: &Stage, lookup: SymbolLookup, names: [&str; 2]) -> (Result<(), String>, [u64; 2]) {
    let places = [(); 2].map(|()| Arc::new(AtomicU64::new(u64::MAX)));
    let wanted = vec![
        (stage.name(names[0]), SymbolLookup::Required, Arc::clone(&places[0])),
        (stage.name(names[1]), lookup, Arc::clone(&places[1])),
    ];
    let (send, receive) = mpsc::channel();
    stage.session.lookup_and_record_async(&stage.order(), wanted, move |result| send.send(result).unwrap());
    let result = receive.recv().unwrap();
    (result.map_err(|error| error.to_string()), places.map(|place| place.load(Ordering::Acquire)))
}

fn recording() -> Stage {
    let stage = Stage::new();
    stage.define_absolute("foo", 1);
    stage.define_absolute("bar", 2);
    stage
}

const MISSING: &str = "symbol 'baz' in dylib 'main': not found";

#[test]
fn lra_01_required_symbols_are_recorded() {
    assert_eq!(record_async(&recording(), SymbolLookup::Required, ["foo", "bar"]), (Ok(()), [1, 2]));
}

#[test]
fn lra_02_a_missing_required_symbol_fails_the_recording() {
    let untouched = [u64::MAX; 2];
    let result = record_async(&recording(), SymbolLookup::Required, ["foo", "baz"]);
    assert_eq!(result, (Err(MISSING.into()), untouched));
}

#[test]
fn lra_03_a_missing_weak_symbol_is_recorded_as_null() {
    assert_eq!(record_async(&recording(), SymbolLookup::WeaklyReferenced, ["foo", "baz"]), (Ok(()), [1, 0]));
}

#[test]
fn lra_04_required_symbols_are_recorded_while_the_caller_waits() {
    assert_eq!(record(&recording(), SymbolLookup::Required, ["foo", "bar"]), (Ok(()), [1, 2]));
}

#[test]
fn lra_05_a_missing_required_symbol_fails_the_recording_that_is_waited_for() {
    assert_eq!(record(&recording(), SymbolLookup::Required, ["foo", "baz"]), (Err(MISSING.into()), [u64::MAX; 2]));
}

#[test]
fn lra_06_a_missing_weak_symbol_is_recorded_as_null_while_the_caller_waits() {
    assert_eq!(record(&recording(), SymbolLookup::WeaklyReferenced, ["foo", "baz"]), (Ok(()), [1, 0]));
}

/// Counts how often it is woken.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn poll(future: &mut LookupFuture, waker: &Waker) -> Option<Result<usize, String>> {
    match Pin::new(future).poll(&mut Context::from_waker(waker)) {
        Poll::Ready(result) => Some(result.map(|found| found.len()).map_err(|error| error.to_string())),
        Poll::Pending => None,
    }
}

#[test]
fn a_lookup_is_a_future_that_wakes_whoever_polled_it_last() {
    let stage = Stage::new();
    stage.define("foo");
    let mut future = stage.session.lookup_future(&stage.order(), stage.names(&["foo"]), SymbolState::Ready);
    let bells: [Arc<Bell>; 2] = Default::default();
    for bell in &bells {
        assert_eq!(poll(&mut future, &Waker::from(Arc::clone(bell))), None);
    }
    stage.finish("foo");
    assert_eq!(bells.each_ref().map(|bell| bell.0.load(Ordering::SeqCst)), [0, 1]);
    assert_eq!(poll(&mut future, Waker::noop()), Some(Ok(1)));
}

#[test]
fn a_future_that_is_dropped_cancels_its_lookup() {
    let stage = Stage::new();
    stage.define("foo");
    drop(stage.session.lookup_future(&stage.order(), stage.names(&["foo"]), SymbolState::Ready));
    assert_eq!(stage.session.statistics().lookups, 0);
    stage.finish("foo");
    assert_eq!(stage.state("foo"), Some(SymbolState::Ready));
}

#[test]
fn a_cancelled_lookup_says_so_and_its_unit_goes_on() {
    let stage = Stage::new();
    stage.define("foo");
    let (send, receive) = mpsc::channel();
    let handle = stage.session.lookup_async(&stage.order(), stage.names(&["foo"]), SymbolState::Ready, move |result| {
        send.send(result.map(|_| ()).map_err(|error| error.to_string())).unwrap();
    });
    handle.cancel();
    handle.cancel();
    let expected = "symbol 'foo' in dylib 'main': the lookup was cancelled";
    assert_eq!(receive.try_recv().unwrap(), Err(expected.to_owned()));
    stage.finish("foo");
    assert!(receive.try_recv().is_err());
    assert_eq!(stage.state("foo"), Some(SymbolState::Ready));
}

#[test]
fn a_lookup_ends_with_its_deadline() {
    for pool in [false, true] {
        let stage = match pool {
            true => Stage::with(Box::new(ThreadPoolDispatcher::new(1).unwrap())),
            false => Stage::new(),
        };
        stage.define("foo");
        stage.define_absolute("there", 1);
        let deadline = Instant::now() + Duration::from_millis(5);
        let error = stage.session.lookup_until(&stage.order(), stage.names(&["there", "foo"]), deadline).unwrap_err();
        assert_eq!(error.to_string(), "symbol 'foo' in dylib 'main': the deadline is over");
        assert!(Instant::now() >= deadline);
        assert_eq!(stage.session.lookup_until(&stage.order(), stage.names(&["there"]), deadline).unwrap().len(), 1);
        assert_eq!(stage.session.statistics().lookups, 0);
    }
}

#[test]
fn an_answer_names_symbols_in_the_order_they_were_asked_for() {
    let stage = Stage::new();
    ["c", "a", "b"].iter().for_each(|name| stage.define(name));
    let answer = stage.lookup(&["b", "c", "a", "b"], SymbolState::Ready);
    ["a", "b", "c"].iter().for_each(|name| stage.finish(name));
    assert_eq!(answered(&answer), ok(&["b", "c", "a", "b"]));
    assert_eq!(logged(&stage.log), ["b dropped", "c dropped", "a dropped"]);
}

#[test]
fn gap_5_a_lookup_that_fails_half_way_starts_nothing() {
    let stage = Stage::new();
    stage.define("foo");
    let answer = stage.lookup(&["foo", "missing"], SymbolState::Ready);
    assert_eq!(answered(&answer), failed("symbol 'missing' in dylib 'main': not found"));
    assert_eq!(stage.state("foo"), Some(SymbolState::NeverSearched));
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    stage.finish("foo");
    assert_eq!(answered(&answer), ok(&["foo"]));
}

#[test]
fn absolute_symbols_of_one_unit_and_one_name_twice_are_found_together() {
    let stage = Stage::new();
    let symbols = [("foo", 1), ("bar", 2)].map(|(name, at)| stage.absolute(name, at, SymbolFlags::EXPORTED));
    stage.dylib.define_absolute(symbols.into()).unwrap();
    let answer = stage.lookup(&["foo", "bar", "foo"], SymbolState::Resolved);
    assert_eq!(answered(&answer), ok(&["foo", "bar", "foo"]));
}
