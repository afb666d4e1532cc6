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
    assert_eq!(jit.stats().compile.functions, 0);
    (jit, address as usize)
}

#[test]
fn lazy_03_integers_in_registers_and_on_the_stack() {
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
fn lazy_03_floats_in_registers_and_on_the_stack() {
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
fn lazy_03_both_mixed_in_registers_and_on_the_stack() {
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
    assert_eq!(jit.stats().compile.functions, 0);
    (jit, address)
}

/// A lazy function whose first call, and every later one, goes on at `host`: all that the caller
/// passed is as it was, what is on the stack too.
fn goes_on_at(host: *const ()) -> (jit_lazy::LazyJit, usize) {
    let host = host as u64;
    let jit = builder().failure_handler(move |_, _| host).build().unwrap();
    redefine(&jit, &caller("f", "missing")).unwrap();
    let address = jit.lookup_address("f").unwrap() as usize;
    (jit, address)
}

/// Too large for registers: passed on the stack, or by a pointer to a copy, and returned where a
/// hidden pointer says.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Large {
    words: [u64; 5],
    byte: u8,
}

/// In one register of each kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mixed {
    integer: i64,
    float: f64,
}

/// In up to four vector registers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Floats([f32; 4]);

type Aggregates = extern "C" fn(u8, Large, Mixed, f64, Floats, Large) -> Large;

extern "C" fn combine(first: u8, large: Large, mixed: Mixed, factor: f64, floats: Floats, last: Large) -> Large {
    let Floats([a, b, c, d]) = floats;
    let sum = [a, b, c, d].map(f64::from).iter().sum::<f64>() * factor + mixed.float;
    Large {
        words: [large.words[4], last.words[0], mixed.integer as u64, sum.to_bits(), last.words[4]],
        byte: first + large.byte + last.byte,
    }
}

#[test]
fn lazy_03_aggregates_by_value_and_a_hidden_return_pointer() {
    let (_jit, address) = goes_on_at(combine as *const ());
    // SAFETY: calls go on at a function of this type.
    let function = unsafe { std::mem::transmute::<usize, Aggregates>(address) };
    let large = Large { words: [1, 2, 3, 4, 5], byte: 20 };
    let last = Large { words: [6, 7, 8, 9, u64::MAX], byte: 100 };
    let (mixed, floats) = (Mixed { integer: -9, float: 0.25 }, Floats([1.5, -2.0, 3.0, 1e6]));
    let expected = combine(3, large, mixed, -4.0, floats, last);
    assert_eq!(expected.byte, 123);
    for _ in 0..2 {
        assert_eq!(function(3, large, mixed, -4.0, floats, last), expected);
    }
}

#[test]
fn lazy_03_a_variadic_call() {
    type Printf = unsafe extern "C" fn(*mut libc::c_char, usize, *const libc::c_char, ...) -> libc::c_int;
    let (_jit, address) = goes_on_at(libc::snprintf as *const ());
    // SAFETY: calls go on at a function of this type.
    let function = unsafe { std::mem::transmute::<usize, Printf>(address) };
    for _ in 0..2 {
        let mut buffer = [0_u8; 128];
        let format = c"%d %.2f %s %.1f %lld %.1f %.1f %.1f %.1f %.1f %.1f %d";
        // SAFETY: the arguments are what the format says, and fit.
        let length = unsafe {
            let text = c"text".as_ptr();
            let to = buffer.as_mut_ptr().cast();
            function(to, 128, format.as_ptr(), -1, 2.5, text, 3.5, i64::MIN, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5, 10)
        };
        let text = std::str::from_utf8(&buffer[..length as usize]).unwrap();
        assert_eq!(text, "-1 2.50 text 3.5 -9223372036854775808 4.5 5.5 6.5 7.5 8.5 9.5 10");
    }
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
    fn lazy_03_vectors_of_256_bits() {
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

    type Wide = extern "C" fn(__m512i, __m512i, __m512i, __m512i, __m512i, __m512i, __m512i, __m512i) -> i64;

    #[target_feature(enable = "avx512f")]
    extern "C" fn see_wide(
        a: __m512i,
        b: __m512i,
        c: __m512i,
        d: __m512i,
        e: __m512i,
        f: __m512i,
        g: __m512i,
        h: __m512i,
    ) -> i64 {
        // SAFETY: any bits are integers.
        let lanes = [a, b, c, d, e, f, g, h].map(|v| unsafe { std::mem::transmute::<__m512i, [u64; 8]>(v) });
        i64::from(lanes.concat().into_iter().eq(0..64))
    }

    #[target_feature(enable = "avx512f")]
    fn call_wide(address: usize) -> i64 {
        // SAFETY: calls go on at `see_wide`, which is of this type.
        let function = unsafe { std::mem::transmute::<usize, Wide>(address) };
        // SAFETY: any bits are a vector.
        let vector = |n: u64| unsafe {
            std::mem::transmute::<[u64; 8], __m512i>(std::array::from_fn(|lane| n * 8 + lane as u64))
        };
        function(vector(0), vector(1), vector(2), vector(3), vector(4), vector(5), vector(6), vector(7))
    }

    #[test]
    fn lazy_03_vectors_of_512_bits() {
        if !std::is_x86_feature_detected!("avx512f") {
            return;
        }
        let (_jit, address) = goes_on_at(see_wide as *const ());
        for _ in 0..2 {
            // SAFETY: the processor has AVX-512.
            assert_eq!(unsafe { call_wide(address) }, 1);
        }
    }

    type Narrow = extern "C" fn(__m128i, __m128i, __m128i, __m128i, __m128i, __m128i, __m128i, __m128i) -> i64;

    extern "C" fn see_narrow(
        a: __m128i,
        b: __m128i,
        c: __m128i,
        d: __m128i,
        e: __m128i,
        f: __m128i,
        g: __m128i,
        h: __m128i,
    ) -> i64 {
        // SAFETY: any bits are integers.
        let lanes = [a, b, c, d, e, f, g, h].map(|v| unsafe { std::mem::transmute::<__m128i, [u64; 2]>(v) });
        i64::from(lanes.concat().into_iter().eq(0..16))
    }

    #[test]
    fn lazy_03_vectors_of_128_bits() {
        let (_jit, address) = goes_on_at(see_narrow as *const ());
        // SAFETY: calls go on at a function of this type.
        let function = unsafe { std::mem::transmute::<usize, Narrow>(address) };
        // SAFETY: any bits are a vector.
        let vector = |n: u64| unsafe { std::mem::transmute::<[u64; 2], __m128i>([n * 2, n * 2 + 1]) };
        let v: Vec<_> = (0..8).map(vector).collect();
        for _ in 0..2 {
            assert_eq!(function(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]), 1);
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
    fn lazy_03_the_vector_count_and_the_static_chain() {
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
    fn lazy_03_vectors_of_128_bits() {
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

    /// Whether the arguments are what [`call_scalable`] passes, in vectors and predicates of any length; and what a
    /// function with such arguments has to preserve.
    #[unsafe(naked)]
    extern "C" fn see_scalable() -> u64 {
        std::arch::naked_asm!(
            ".arch_extension sve",
            "ptrue p4.b",
            "index z31.b, #0, #1",
            "cmpne p5.b, p4/z, z0.b, z31.b",
            "b.ne 2f",
            "index z31.b, #1, #1",
            "cmpne p5.b, p4/z, z1.b, z31.b",
            "b.ne 2f",
            "index z31.b, #2, #1",
            "cmpne p5.b, p4/z, z2.b, z31.b",
            "b.ne 2f",
            "index z31.b, #3, #1",
            "cmpne p5.b, p4/z, z3.b, z31.b",
            "b.ne 2f",
            "index z31.b, #4, #1",
            "cmpne p5.b, p4/z, z4.b, z31.b",
            "b.ne 2f",
            "index z31.b, #5, #1",
            "cmpne p5.b, p4/z, z5.b, z31.b",
            "b.ne 2f",
            "index z31.b, #6, #1",
            "cmpne p5.b, p4/z, z6.b, z31.b",
            "b.ne 2f",
            "index z31.b, #7, #1",
            "cmpne p5.b, p4/z, z7.b, z31.b",
            "b.ne 2f",
            "index z31.b, #-1, #3",
            "cmpne p5.b, p4/z, z8.b, z31.b",
            "b.ne 2f",
            "index z31.b, #-8, #3",
            "cmpne p5.b, p4/z, z15.b, z31.b",
            "b.ne 2f",
            "index z31.b, #-9, #3",
            "cmpne p5.b, p4/z, z16.b, z31.b",
            "b.ne 2f",
            "index z31.b, #-16, #3",
            "cmpne p5.b, p4/z, z23.b, z31.b",
            "b.ne 2f",
            "ptrue p5.b",
            "eors p5.b, p4/z, p0.b, p5.b",
            "b.ne 2f",
            "ptrue p5.h",
            "eors p5.b, p4/z, p1.b, p5.b",
            "b.ne 2f",
            "ptrue p5.s",
            "eors p5.b, p4/z, p2.b, p5.b",
            "b.ne 2f",
            "ptrue p5.d",
            "eors p5.b, p4/z, p3.b, p5.b",
            "b.ne 2f",
            "mov x0, #1",
            "ret",
            "2:",
            "mov x0, #0",
            "ret",
        )
    }

    /// Calls the function at an address with scalable arguments, and what they leave to the callee to preserve.
    #[unsafe(naked)]
    extern "C" fn call_scalable(function: usize) -> u64 {
        std::arch::naked_asm!(
            ".arch_extension sve",
            "stp x29, x30, [sp, #-80]!",
            "stp d8, d9, [sp, #16]",
            "stp d10, d11, [sp, #32]",
            "stp d12, d13, [sp, #48]",
            "stp d14, d15, [sp, #64]",
            "index z0.b, #0, #1",
            "index z1.b, #1, #1",
            "index z2.b, #2, #1",
            "index z3.b, #3, #1",
            "index z4.b, #4, #1",
            "index z5.b, #5, #1",
            "index z6.b, #6, #1",
            "index z7.b, #7, #1",
            "index z8.b, #-1, #3",
            "index z9.b, #-2, #3",
            "index z10.b, #-3, #3",
            "index z11.b, #-4, #3",
            "index z12.b, #-5, #3",
            "index z13.b, #-6, #3",
            "index z14.b, #-7, #3",
            "index z15.b, #-8, #3",
            "index z16.b, #-9, #3",
            "index z17.b, #-10, #3",
            "index z18.b, #-11, #3",
            "index z19.b, #-12, #3",
            "index z20.b, #-13, #3",
            "index z21.b, #-14, #3",
            "index z22.b, #-15, #3",
            "index z23.b, #-16, #3",
            "ptrue p0.b",
            "ptrue p1.h",
            "ptrue p2.s",
            "ptrue p3.d",
            "blr x0",
            "ldp d14, d15, [sp, #64]",
            "ldp d12, d13, [sp, #48]",
            "ldp d10, d11, [sp, #32]",
            "ldp d8, d9, [sp, #16]",
            "ldp x29, x30, [sp], #80",
            "ret",
        )
    }

    #[test]
    fn lazy_03_vectors_and_predicates_of_any_length() {
        if !std::arch::is_aarch64_feature_detected!("sve") {
            return;
        }
        assert_eq!(call_scalable(see_scalable as *const () as usize), 1);
        let (_jit, address) = goes_on_at(see_scalable as *const ());
        for _ in 0..2 {
            assert_eq!(call_scalable(address), 1);
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
    fn lazy_03_where_the_result_goes_and_the_static_chain() {
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
