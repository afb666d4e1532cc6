//! Arguments pass unchanged through a first call.

mod common;

use std::fmt::Write;
use std::sync::Mutex;

use common::{builder, caller, jit, redefine};

/// A function of `kinds` (`i` an i64, `f` an f64) that gives a number in which each argument
/// counts, at its place.
fn digest(name: &str, kinds: &str) -> String {
    let types: Vec<_> = kinds.chars().map(|kind| if kind == 'i' { "i64" } else { "f64" }).collect();
    let params: Vec<_> = types.iter().enumerate().map(|(index, ty)| format!("v{index}: {ty}")).collect();
    let mut text = format!("function %{name}({}) -> i64 system_v {{ block0({}):", types.join(", "), params.join(", "));
    let mut next = types.len();
    let mut step = |operation: String| {
        writeln!(text, "v{next} = {operation}").unwrap();
        next += 1;
        next - 1
    };
    let factor = step("iconst.i64 31".to_owned());
    let mut sum = step("iconst.i64 0".to_owned());
    for (index, ty) in types.iter().enumerate() {
        let scaled = step(format!("imul v{sum}, v{factor}"));
        let value = if *ty == "i64" { index } else { step(format!("bitcast.i64 v{index}")) };
        sum = step(format!("iadd v{scaled}, v{value}"));
    }
    writeln!(text, "return v{sum} }}").unwrap();
    text
}

fn expected(arguments: &[u64]) -> i64 {
    arguments.iter().fold(0_u64, |sum, argument| sum.wrapping_mul(31).wrapping_add(*argument)).cast_signed()
}

const INTEGERS: [i64; 10] = [-1, 2, i64::MIN, 4, -5, 6, i64::MAX, 8, 9, -10];
const FLOATS: [f64; 10] = [0.5, -1.5, f64::MAX, 3.25, f64::INFINITY, 5.0, -6.0, f64::MIN_POSITIVE, 8.0, -9.75];

fn address(kinds: &str) -> (jit_lazy::LazyJit, usize) {
    let jit = jit();
    redefine(&jit, &digest("f", kinds)).unwrap();
    let address = jit.lookup_address("f").unwrap();
    assert_eq!(jit.statistics().functions, 0);
    (jit, address as usize)
}

#[test]
fn integers_in_registers_and_on_the_stack() {
    type Function = extern "C" fn(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> i64;
    let (_jit, address) = address("iiiiiiiiii");
    // SAFETY: a function of this type is there.
    let function = unsafe { std::mem::transmute::<usize, Function>(address) };
    let [a, b, c, d, e, f, g, h, i, j] = INTEGERS;
    for _ in 0..2 {
        assert_eq!(function(a, b, c, d, e, f, g, h, i, j), expected(&INTEGERS.map(i64::cast_unsigned)));
    }
}

#[test]
fn floats_in_registers_and_on_the_stack() {
    type Function = extern "C" fn(f64, f64, f64, f64, f64, f64, f64, f64, f64, f64) -> i64;
    let (_jit, address) = address("ffffffffff");
    // SAFETY: a function of this type is there.
    let function = unsafe { std::mem::transmute::<usize, Function>(address) };
    let [a, b, c, d, e, f, g, h, i, j] = FLOATS;
    for _ in 0..2 {
        assert_eq!(function(a, b, c, d, e, f, g, h, i, j), expected(&FLOATS.map(f64::to_bits)));
    }
}

#[test]
fn both_mixed_in_registers_and_on_the_stack() {
    type I = i64;
    type F = f64;
    type Function = extern "C" fn(I, F, I, F, I, F, I, F, I, F, I, F, I, F, I, F, I, F, I, F) -> i64;
    let (_jit, address) = address(&"if".repeat(10));
    // SAFETY: a function of this type is there.
    let function = unsafe { std::mem::transmute::<usize, Function>(address) };
    let ([a, b, c, d, e, f, g, h, i, j], [k, l, m, n, o, p, q, r, s, t]) = (INTEGERS, FLOATS);
    let all: Vec<_> = INTEGERS.iter().zip(FLOATS).flat_map(|(i, f)| [i.cast_unsigned(), f.to_bits()]).collect();
    for _ in 0..2 {
        let result = function(a, k, b, l, c, m, d, n, e, o, f, p, g, q, h, r, i, s, j, t);
        assert_eq!(result, expected(&all));
    }
}

/// What a host function was called with.
static SEEN: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// A function that passes its vector arguments on to `host` by not touching them.
fn pass_on_to(host: u64) -> (jit_lazy::LazyJit, usize) {
    let jit = jit();
    // SAFETY: the bare address only; `host` is called with what the test passes.
    let host = unsafe { std::mem::transmute::<usize, extern "C" fn() -> i64>(host as usize) };
    jit.define_function("host", host).unwrap();
    redefine(&jit, &caller("f", "host")).unwrap();
    let address = jit.lookup_address("f").unwrap() as usize;
    assert_eq!(jit.statistics().functions, 0);
    (jit, address)
}

#[cfg(target_arch = "x86_64")]
#[allow(improper_ctypes_definitions, reason = "the C calling convention of vectors is what is tested")]
mod x86_64 {
    use super::*;
    use std::arch::asm;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx")]
    extern "C" fn see(
        a: __m256i,
        b: __m256i,
        c: __m256i,
        d: __m256i,
        e: __m256i,
        f: __m256i,
        g: __m256i,
        h: __m256i,
    ) -> i64 {
        // SAFETY: any bits are integers.
        let lanes = [a, b, c, d, e, f, g, h].map(|v| unsafe { std::mem::transmute::<__m256i, [u64; 4]>(v) });
        *SEEN.lock().unwrap() = lanes.concat();
        5
    }

    type Function = extern "C" fn(__m256i, __m256i, __m256i, __m256i, __m256i, __m256i, __m256i, __m256i) -> i64;

    #[target_feature(enable = "avx")]
    fn call(address: usize) -> i64 {
        // SAFETY: the function hands its arguments to `see`, which is of this type.
        let function = unsafe { std::mem::transmute::<usize, Function>(address) };
        let vector = |n: i64| _mm256_set_epi64x(n * 4 + 3, n * 4 + 2, n * 4 + 1, n * 4);
        function(vector(0), vector(1), vector(2), vector(3), vector(4), vector(5), vector(6), vector(7))
    }

    #[test]
    fn vectors_of_256_bits() {
        if !std::is_x86_feature_detected!("avx") {
            return;
        }
        let (_jit, address) = pass_on_to(see as *const () as u64);
        for _ in 0..2 {
            // SAFETY: the processor has AVX.
            assert_eq!(unsafe { call(address) }, 105);
            assert_eq!(SEEN.lock().unwrap().drain(..).collect::<Vec<_>>(), (0..32).collect::<Vec<_>>());
        }
    }

    /// Gives rax + 3 · r10 + 5 · r11 + 7 · r9.
    #[unsafe(naked)]
    extern "C" fn weigh() -> i64 {
        std::arch::naked_asm!(
            "lea r10, [r10 + 2 * r10]",
            "lea r11, [r11 + 4 * r11]",
            "imul r9, r9, 7",
            "add rax, r10",
            "add rax, r11",
            "add rax, r9",
            "ret"
        )
    }

    #[test]
    fn the_vector_count_and_the_static_chain() {
        let jit = builder().failure_handler(|_, _| weigh as *const () as u64).build().unwrap();
        redefine(&jit, &caller("f", "missing")).unwrap();
        let address = jit.lookup_address("f").unwrap();
        let mut result = 1_u64;
        // SAFETY: a call of a function that changes what it may, and pops nothing.
        unsafe {
            asm!(
                "call {address}",
                address = in(reg) address,
                inout("rax") result,
                inout("r10") 10_u64 => _,
                inout("r11") 100_u64 => _,
                inout("r9") 1000_u64 => _,
                clobber_abi("C"),
            );
        }
        assert_eq!(result, 1 + 30 + 500 + 7000);
    }
}

#[cfg(target_arch = "aarch64")]
#[allow(improper_ctypes_definitions, reason = "the C calling convention of vectors is what is tested")]
mod aarch64 {
    use super::*;
    use std::arch::aarch64::*;
    use std::arch::asm;

    type V = uint64x2_t;
    type Function = extern "C" fn(V, V, V, V, V, V, V, V) -> i64;

    extern "C" fn see(a: V, b: V, c: V, d: V, e: V, f: V, g: V, h: V) -> i64 {
        // SAFETY: any bits are integers.
        let lanes = [a, b, c, d, e, f, g, h].map(|v| unsafe { std::mem::transmute::<V, [u64; 2]>(v) });
        *SEEN.lock().unwrap() = lanes.concat();
        5
    }

    #[test]
    fn vectors_of_128_bits() {
        let (_jit, address) = pass_on_to(see as *const () as u64);
        // SAFETY: the function hands its arguments to `see`, which is of this type.
        let function = unsafe { std::mem::transmute::<usize, Function>(address) };
        // SAFETY: any bits are a vector.
        let vector = |n: u64| unsafe { std::mem::transmute::<[u64; 2], V>([n * 2, n * 2 + 1]) };
        let v: Vec<_> = (0..8).map(vector).collect();
        for _ in 0..2 {
            assert_eq!(function(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]), 105);
            assert_eq!(SEEN.lock().unwrap().drain(..).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
        }
    }

    /// Gives x8 + 3 · x9 + 5 · x15.
    #[unsafe(naked)]
    extern "C" fn weigh() -> i64 {
        std::arch::naked_asm!(
            "add x9, x9, x9, lsl #1",
            "add x15, x15, x15, lsl #2",
            "add x0, x8, x9",
            "add x0, x0, x15",
            "ret"
        )
    }

    #[test]
    fn where_the_result_goes_and_the_static_chain() {
        let jit = builder().failure_handler(|_, _| weigh as *const () as u64).build().unwrap();
        redefine(&jit, &caller("f", "missing")).unwrap();
        let address = jit.lookup_address("f").unwrap();
        let result: u64;
        // SAFETY: a call of a function that changes what it may.
        unsafe {
            asm!(
                "blr {address}",
                address = in(reg) address,
                out("x0") result,
                inout("x8") 1_u64 => _,
                inout("x9") 10_u64 => _,
                inout("x15") 100_u64 => _,
                clobber_abi("C"),
            );
        }
        assert_eq!(result, 1 + 30 + 500);
    }
}
