//! Sixteen threads call, while another one redefines and removes.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{at, builder, constant, redefine, scaled};

/// Numbers from a seed, the same at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// A function that calls another with one less, if it was given more than zero, and adds one.
fn link(name: &str, callee: &str) -> String {
    format!(
        "function %{name}(i64) -> i64 system_v {{
            sig0 = (i64) -> i64 system_v
            fn0 = %{callee} sig0
        block0(v0: i64):
            v1 = iconst.i64 1
            brif v0, block1, block2
        block1:
            v2 = isub v0, v1
            v3 = call fn0(v2)
            v4 = iadd v3, v1
            return v4
        block2:
            return v0
        }}"
    )
}

#[test]
fn first_calls_redefinitions_and_removals_at_once() {
    const THREADS: usize = 16;
    let functions = scaled(20_000, 500);
    let operations = scaled(500_000, 5_000);
    let jit = builder().build().unwrap();
    let mut random = Random(7);
    let text: Vec<_> =
        (0..functions).map(|index| link(&format!("f{index}"), &format!("f{}", random.below(functions)))).collect();
    for module in text.chunks(1000) {
        redefine(&jit, &module.concat()).unwrap();
    }
    let addresses: Vec<_> =
        (0..functions).map(|index| jit.lookup_address(&format!("f{index}")).unwrap() as usize).collect();
    assert_eq!(jit.statistics().functions, 0);
    let (calls, redefined, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (jit, addresses, calls) = (&jit, &addresses, &calls);
        let callers: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let mut random = Random(thread as u64 + 100);
                    for _ in 0..operations / THREADS {
                        // What was redefined meanwhile stays until the call has left it.
                        let _scope = jit.session().enter();
                        let address = addresses[random.below(addresses.len())];
                        // SAFETY: a function of this type is there, which only computes.
                        let function: unsafe extern "C" fn(i64) -> i64 = unsafe { std::mem::transmute(address) };
                        let depth = random.below(4) as i64;
                        // SAFETY: as above.
                        assert_eq!(unsafe { function(depth) }, depth);
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut random = Random(3);
            while !done.load(Ordering::Relaxed) {
                let name = format!("f{}", random.below(functions));
                redefine(jit, &link(&name, &format!("f{}", random.below(functions)))).unwrap();
                redefined.fetch_add(1, Ordering::Relaxed);
                let other = redefine(jit, &constant("other", 5)).unwrap();
                // SAFETY: the function only computes, and is removed after it was called.
                assert_eq!(unsafe { at(jit.lookup_address("other").unwrap())() }, 5);
                other.remove().unwrap();
            }
        });
        let results: Vec<_> = callers.into_iter().map(|caller| caller.join()).collect();
        done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
    assert_eq!(calls.into_inner() as usize, operations / THREADS * THREADS);
    // Nothing twice: each of the functions once, each new body once, and the one that was removed.
    let most = functions as u64 + 2 * redefined.into_inner();
    assert!(jit.statistics().functions <= most, "{:?}", jit.statistics());
}
