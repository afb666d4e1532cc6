//! The re-entry routine: from compiled code into the compiler and on, as if nothing had happened.
//!
//! A trampoline jumps to it with the trampoline's index, and an entry whose counter has run out with the
//! counter. It saves every register that can carry an argument or that a callee may have to preserve, sets
//! the usual floating-point environment, in which compilers compute constants, calls
//! [`resolve`](crate::registry::resolve), restores everything, and jumps to the address that gave. It is
//! entered and left by jumps, so that the processor's return stack, and a shadow stack, match the calls
//! that were made. It knows nothing of sessions.

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
#[path = "aarch64.rs"]
mod machine;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
#[path = "x86_64.rs"]
mod machine;

/// The routine's address; `None` on a machine that it was not written for.
#[cfg(any(
    all(target_arch = "x86_64", target_pointer_width = "64"),
    all(target_arch = "aarch64", target_endian = "little")
))]
pub(crate) fn address() -> Option<u64> {
    Some(machine::address())
}

/// The routine's address; `None` on a machine that it was not written for.
#[cfg(not(any(
    all(target_arch = "x86_64", target_pointer_width = "64"),
    all(target_arch = "aarch64", target_endian = "little")
)))]
pub(crate) fn address() -> Option<u64> {
    None
}

#[cfg(all(
    test,
    any(
        all(target_arch = "x86_64", target_pointer_width = "64"),
        all(target_arch = "aarch64", target_endian = "little")
    )
))]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use jit_core::{LookupError, MaterializationResponsibility, MaterializationUnit, RedirectableFunction, SymbolName};

    use super::machine;
    use crate::LazyJit;

    /// A function whose calls all come through the routine, because it can't be had, and the JIT that it is of.
    fn broken(go_on: impl Fn(&SymbolName, &LookupError) -> u64 + Send + Sync + 'static) -> (LazyJit, u64) {
        struct Missing;
        impl MaterializationUnit for Missing {
            fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
                drop(responsibility);
            }

            fn discard(&mut self, _: &SymbolName) {}
        }
        let jit = LazyJit::builder().failure_handler(go_on).build().unwrap();
        let name = jit.session().intern("f");
        let body = Box::new(|_: &SymbolName| Box::new(Missing) as Box<dyn MaterializationUnit>);
        jit.redefine_with(vec![RedirectableFunction { name, signature: None, body }]).unwrap();
        let address = jit.lookup_address("f").unwrap();
        (jit, address)
    }

    /// Leaves everything as it is.
    extern "C" fn nothing() {}

    #[test]
    fn lazy_03_arguments_are_restored_in_each_way_that_they_are_saved() {
        type Function = extern "C" fn(f64, f64, f64, f64, f64, f64, f64, f64, i64) -> f64;
        extern "C" fn host(a: f64, b: f64, c: f64, d: f64, e: f64, f: f64, g: f64, h: f64, i: i64) -> f64 {
            [a, b, c, d, e, f, g, h, i as f64].iter().fold(0.0, |sum, value| sum * 10.0 + value)
        }
        let (_jit, address) = broken(|_, _| host as *const () as u64);
        // SAFETY: calls go on at a function of this type.
        let function = unsafe { std::mem::transmute::<usize, Function>(address as usize) };
        machine::in_each_way(|| {
            // What is in the registers meanwhile is not what is passed.
            assert_eq!(function(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9), 123_456_789.0);
            assert_eq!(function(9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1), 987_654_321.0);
        });
    }

    #[test]
    fn all_vector_registers_are_kept_as_a_caller_may_expect() {
        let (_jit, address) = broken(|_, _| {
            machine::clear_vectors();
            nothing as *const () as u64
        });
        machine::in_each_way(|| {
            // SAFETY: calls go on at a function without arguments and results.
            let lost = unsafe { machine::vectors_lost_by(address) };
            assert!(lost.is_empty(), "{lost:?}");
        });
    }

    #[test]
    fn it_compiles_in_the_usual_floating_point_environment_and_leaves_the_callers() {
        let inside = Arc::new(Mutex::new(None));
        let sum = Arc::new(AtomicU64::new(0));
        let (seen, computed) = (Arc::clone(&inside), Arc::clone(&sum));
        let (_jit, address) = broken(move |_, _| {
            *seen.lock().unwrap() = Some(machine::environment());
            let sum = std::hint::black_box(1.0) + std::hint::black_box(1e-20_f64);
            computed.store(sum.to_bits(), Ordering::Relaxed);
            nothing as *const () as u64
        });
        machine::in_each_way(|| {
            // SAFETY: calls go on at a function without arguments and results.
            let after = unsafe { machine::environment_after(address, machine::UNUSUAL) };
            assert_eq!(after, machine::UNUSUAL);
            assert_eq!(inside.lock().unwrap().take(), Some(machine::environment()));
            assert_ne!(machine::environment(), machine::UNUSUAL);
            assert_eq!(f64::from_bits(sum.swap(0, Ordering::Relaxed)), 1.0);
        });
    }
}
