//! Everything at once, from a seed: eight threads define, look up, call, fail, panic, redefine and
//! remove over fifty dylibs. `ORCANE_STRESS_SEED` repeats a run as far as threads allow, and
//! `ORCANE_STRESS_OPERATIONS` says how long it is.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use jit_core::{
    Cause, DylibLookup, ExecutionSession, InProcess, JitDylib, MaterializationResponsibility, MaterializationUnit,
    RemovalPolicy, ResourceTracker, SymbolDeclaration, SymbolDef, SymbolFlags, SymbolName, SymbolState,
    ThreadPoolDispatcher, UnitDefinition,
};

const DYLIBS: usize = 50;
const SYMBOLS: usize = 12;
const THREADS: usize = 8;
const GONE: u64 = 0xdead_dead_dead_dead;

/// A small generator of numbers, good enough to mix operations.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

static ALIVE: AtomicI64 = AtomicI64::new(0);

/// What stands for code: a word that says what it was defined as, until it is freed.
struct Code(Box<AtomicU64>);

impl Code {
    fn new(value: u64) -> Self {
        ALIVE.fetch_add(1, Ordering::Relaxed);
        Self(Box::new(AtomicU64::new(value)))
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        self.0.store(GONE, Ordering::Relaxed);
        ALIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy)]
enum Fate {
    Defined,
    Fails,
    Panics,
    Forgets,
}

struct Unit {
    value: u64,
    fate: Fate,
    needs: Vec<SymbolName>,
}

impl MaterializationUnit for Unit {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        match self.fate {
            Fate::Defined => {}
            Fate::Fails => return responsibility.fail(Cause::Other("it was to fail".into())),
            Fate::Panics => panic!("it was to panic"),
            Fate::Forgets => return,
        }
        let code = Code::new(self.value);
        let address = std::ptr::from_ref(&*code.0) as u64;
        let Some(own) = responsibility.symbols().pop().map(|own| own.name) else { return };
        if responsibility.hold(Box::new(code)).is_err()
            || responsibility.resolve(&[(own.clone(), SymbolDef::at(address))]).is_err()
        {
            return;
        }
        responsibility.session().clone().lookup_async(
            &responsibility.link_order(),
            self.needs,
            SymbolState::Resolved,
            move |found| {
                let needs = found.unwrap_or_default().into_iter().map(|found| (own.clone(), found));
                _ = responsibility.emit(&needs.collect::<Vec<_>>());
            },
        );
    }

    fn discard(&mut self, _: &SymbolName) {}
}

struct World {
    session: ExecutionSession,
    dylibs: Vec<JitDylib>,
    names: Vec<SymbolName>,
    trackers: Vec<Mutex<Option<ResourceTracker>>>,
    calls: AtomicU64,
}

impl World {
    fn new() -> Self {
        let architecture = jit_linker::arch::Architecture::host().unwrap();
        let memory = Arc::new(jit_linker::memory::PageManager::new());
        let executor = Box::new(InProcess::new(architecture, memory));
        let session = ExecutionSession::new(executor, Box::new(ThreadPoolDispatcher::new(2).unwrap()), None);
        let dylibs: Vec<_> = (0..DYLIBS).map(|index| session.create_dylib(&format!("d{index}")).unwrap()).collect();
        for (dylib, next) in dylibs.iter().zip(dylibs.iter().cycle().skip(1)) {
            dylib.add_to_link_order(next, DylibLookup::Exported).unwrap();
        }
        let names = (0..SYMBOLS).map(|index| session.intern(&format!("s{index}"))).collect();
        let trackers = (0..DYLIBS * SYMBOLS).map(|_| Mutex::default()).collect();
        Self { session, dylibs, names, trackers, calls: AtomicU64::new(0) }
    }

    fn define(&self, random: &mut Random, dylib: usize, symbol: usize) {
        let fate = match random.below(20) {
            0 => Fate::Fails,
            1 => Fate::Panics,
            2 => Fate::Forgets,
            _ => Fate::Defined,
        };
        let needs = (0..random.below(3)).map(|_| self.names[random.below(SYMBOLS)].clone()).collect();
        let flags = if random.below(4) == 0 { SymbolFlags::WEAK } else { SymbolFlags::EXPORTED };
        let tracker = self.dylibs[dylib].create_tracker().unwrap();
        let declaration = SymbolDeclaration { name: self.names[symbol].clone(), flags, signature: None };
        let unit = UnitDefinition {
            symbols: [declaration].into_iter().collect(),
            unit: Box::new(Unit { value: (dylib * SYMBOLS + symbol) as u64, fate, needs }),
            name: Arc::from("stress"),
        };
        if tracker.define(vec![unit]).is_ok() {
            let old = self.trackers[dylib * SYMBOLS + symbol].lock().unwrap().replace(tracker);
            drop(old);
        }
    }

    fn remove(&self, random: &mut Random, dylib: usize, symbol: usize) {
        let policy = [RemovalPolicy::Poison, RemovalPolicy::Cascade, RemovalPolicy::Refuse][random.below(3)];
        let tracker = self.trackers[dylib * SYMBOLS + symbol].lock().unwrap().take();
        if let Some(tracker) = tracker {
            _ = tracker.remove_with(policy);
        }
    }

    fn call(&self, dylib: usize, symbol: usize) {
        let order = self.dylibs[dylib].link_order();
        let scope = self.session.enter();
        let Ok(found) = self.session.lookup(&order, vec![self.names[symbol].clone()]) else { return };
        // SAFETY: the scope was open when the symbol was found: what is there stays there.
        let value = unsafe { (*(found[0].definition.address as *const AtomicU64)).load(Ordering::Relaxed) } as usize;
        drop(scope);
        let expected = [dylib, (dylib + 1) % DYLIBS].map(|dylib| dylib * SYMBOLS + symbol);
        assert!(expected.contains(&value), "s{symbol} from d{dylib} is {value:#x}");
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    fn operate(&self, random: &mut Random) {
        let (dylib, symbol) = (random.below(DYLIBS), random.below(SYMBOLS));
        match random.below(100) {
            0..30 => self.define(random, dylib, symbol),
            30..75 => self.call(dylib, symbol),
            75..88 => self.remove(random, dylib, symbol),
            88..93 => {
                self.remove(random, dylib, symbol);
                self.define(random, dylib, symbol);
            }
            93..96 => {
                let names = vec![self.names[symbol].clone()];
                let order = self.dylibs[dylib].link_order();
                self.session.lookup_async(&order, names, SymbolState::Ready, |_| {}).cancel();
            }
            96..99 => {
                _ = self.dylibs[dylib].remove_symbols(&[self.names[symbol].clone()]);
            }
            _ => self.dylibs[dylib].clear().unwrap(),
        }
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn everything_at_once() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = from_environment("ORCANE_STRESS_SEED", now.as_nanos() as u64);
    let operations = from_environment("ORCANE_STRESS_OPERATIONS", 200_000) as usize;
    println!("ORCANE_STRESS_SEED={seed}");
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload_as_str() != Some("it was to panic") {
            hook(info);
        }
    }));
    let world = World::new();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let world = &world;
            scope.spawn(move || {
                let mut random = Random(seed ^ (thread as u64) << 32);
                (0..operations / THREADS).for_each(|_| world.operate(&mut random));
            });
        }
    });
    assert!(world.calls.load(Ordering::Relaxed) > operations as u64 / 20, "{:?} calls", world.calls);
    world.session.end();
    assert_eq!(world.session.statistics(), jit_core::SessionStatistics::default());
    drop(world);
    assert_eq!(ALIVE.load(Ordering::Relaxed), 0, "code was leaked");
}
