//! What a call costs in a loop.

use std::hint::black_box;
use std::time::Instant;

/// A loop that calls something as often as its argument says.
pub type Loop = unsafe extern "C" fn(i64) -> i64;

const TURNS: usize = 15;
const CALLS: i64 = 10_000_000;

/// Nanoseconds of a call in each of several loops. They take turns, and the least counts: what else the machine does only
/// makes it longer.
///
/// # Safety
///
/// The loops are what their type says, only compute, and stay.
#[must_use]
pub unsafe fn calls<const N: usize>(loops: [Loop; N]) -> [f64; N] {
    let mut least = [f64::INFINITY; N];
    for _ in 0..TURNS {
        for (least, function) in least.iter_mut().zip(loops) {
            let start = Instant::now();
            // SAFETY: as the caller says.
            black_box(unsafe { function(black_box(CALLS)) });
            *least = least.min(start.elapsed().as_secs_f64() * 1e9 / CALLS as f64);
        }
    }
    least
}
