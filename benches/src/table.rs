//! A table of symbols under lookup: what is asked of Orcane's session and of LLVM's alike.

use std::fmt;
use std::hint::black_box;
use std::str::FromStr;
use std::time::Instant;

use crate::{Result, median};

/// A session with one dylib, as the benchmark needs it. Names go by the order in which they were interned.
pub trait SymbolTable: Sync {
    /// Makes room for so many handles of names, which are the caller's and not the table's.
    fn reserve(&mut self, count: usize);
    /// Interns a name.
    fn intern(&mut self, name: &str);
    /// Defines all interned names, at `address` and the next ones.
    ///
    /// # Errors
    ///
    /// The session's.
    fn define_all(&mut self, address: u64) -> Result<()>;
    /// The address of a ready symbol, or 0: Orcane's `ExecutionSession::ready_address`, LLVM's
    /// `ExecutionSession::lookup` of one name.
    fn lookup(&self, index: usize) -> u64;
    /// The address of a ready symbol by the text of its name, or 0: the name is interned and looked up.
    fn lookup_text(&self, name: &str) -> u64;
    /// Defines one symbol with a tracker of its own, looks it up and removes it.
    ///
    /// # Errors
    ///
    /// The session's.
    fn cycle(&self, name: &str) -> Result<()>;
}

/// What was measured, in nanoseconds and bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// To intern a name.
    pub intern: f64,
    /// To define a symbol.
    pub define: f64,
    /// Of heap, a symbol, beside the text of its name.
    pub bytes: f64,
    /// To look up a ready symbol, in random order over all.
    pub random: f64,
    /// To look up one of the hot ones.
    pub hot: f64,
    /// To look up one of the hot ones by text.
    pub hot_text: f64,
    /// Lookups that two threads do in the time of one's, over two.
    pub two_threads: f64,
    /// The same if each has a table of its own: what the machine allows.
    pub two_tables: f64,
    /// To define, look up and remove a symbol.
    pub cycle: f64,
}

/// How many names are hot.
const HOT: usize = 10_000;
const LOOKUPS: usize = 1_000_000;
const CYCLES: usize = 10_000;
/// How often lookups are measured.
const ROUNDS: usize = 3;
const ADDRESS: u64 = 0x10_0000;

/// Measures a table of `count` symbols. The other one, empty too, is for a second thread.
///
/// # Errors
///
/// The session's, or when a lookup gives a wrong address.
pub fn measure<T: SymbolTable>(table: &mut T, other: &mut T, count: usize) -> Result<Figures> {
    let names: Vec<String> = (0..count).map(|index| format!("symbol_{index}")).collect();
    let text: usize = names.iter().map(String::len).sum();
    table.reserve(count);
    let before = heap();
    let intern = nanoseconds(count, || names.iter().for_each(|name| table.intern(name)));
    let mut defined = Ok(());
    let define = nanoseconds(count, || defined = table.define_all(ADDRESS));
    defined?;
    let bytes = (heap() - before - text as f64) / count as f64;

    other.reserve(HOT);
    names.iter().take(HOT).for_each(|name| other.intern(name));
    other.define_all(ADDRESS)?;

    let (table, other) = (&*table, &*other);
    let all = shuffled(count, LOOKUPS);
    let hot = shuffled(HOT.min(count), LOOKUPS);
    for &index in all.iter().take(HOT) {
        if table.lookup(index) != ADDRESS + index as u64 || table.lookup_text(&names[index]) != ADDRESS + index as u64 {
            return Err(format!("symbol {index} is not where it was defined").into());
        }
    }
    let look_up = |table: &T, order: &[usize]| {
        nanoseconds(LOOKUPS, || order.iter().for_each(|&index| _ = black_box(table.lookup(index))))
    };
    let random = best(|| look_up(table, &all));
    let by_text = || hot.iter().for_each(|&index| _ = black_box(table.lookup_text(&names[index])));
    let hot_text = best(|| nanoseconds(LOOKUPS, by_text));
    let with = |other: &T| {
        std::thread::scope(|scope| {
            let second = scope.spawn(|| look_up(other, &hot));
            let first = look_up(table, &hot);
            second.join().map_or(f64::INFINITY, |second| first.max(second))
        })
    };
    // In turns.
    let rounds: Vec<_> = (0..ROUNDS).map(|_| [look_up(table, &hot), with(table), with(other)]).collect();
    let hot_time = rounds.iter().map(|round| round[0]).fold(f64::INFINITY, f64::min);
    let [two_threads, two_tables] = [1, 2].map(|both| median(rounds.iter().map(|round| round[0] / round[both])));
    let mut cycled = Ok(());
    let cycle = nanoseconds(CYCLES, || {
        cycled = (0..CYCLES).try_for_each(|index| table.cycle(&format!("cycle_{}", index % 100)));
    });
    cycled?;
    Ok(Figures { intern, define, bytes, random, hot: hot_time, hot_text, two_threads, two_tables, cycle })
}

/// The least of some measurements: what disturbs one makes it longer.
fn best(measure: impl Fn() -> f64) -> f64 {
    (0..ROUNDS).map(|_| measure()).fold(f64::INFINITY, f64::min)
}

fn nanoseconds(count: usize, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / count as f64
}

/// `length` random indices below `below`.
fn shuffled(below: usize, length: usize) -> Vec<usize> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Bytes that the process has of the C library's heap, which is Rust's and LLVM's.
fn heap() -> f64 {
    // SAFETY: reads counters of the C library's.
    let heap = unsafe { libc::mallinfo2() };
    (heap.uordblks + heap.hblkhd) as f64
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { intern, define, bytes, random, hot, hot_text, two_threads, two_tables, cycle } = self;
        write!(f, "{intern} {define} {bytes} {random} {hot} {hot_text} {two_threads} {two_tables} {cycle}")
    }
}

impl FromStr for Figures {
    type Err = Box<dyn std::error::Error>;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_whitespace().map(f64::from_str).collect::<std::result::Result<Vec<_>, _>>()?;
        let [intern, define, bytes, random, hot, hot_text, two_threads, two_tables, cycle] = numbers[..] else {
            return Err(format!("expected nine numbers: {text}").into());
        };
        Ok(Self { intern, define, bytes, random, hot, hot_text, two_threads, two_tables, cycle })
    }
}
