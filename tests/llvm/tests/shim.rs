//! The judge itself: what the binding gives is LLVM's.

use llvm_tests::session::Session;
use llvm_tests::{Level, Llvm, Module, Options};

const SQUARE: &str = "declare double @host(double)
define double @square(double %x) {
  %r = fmul double %x, %x
  %h = call double @host(double %r)
  ret double %h
}";

extern "C" fn half(value: f64) -> f64 {
    value / 2.0
}

#[test]
fn every_kind_of_jit_runs_a_function() {
    for level in [Level::O0, Level::Default, Level::O2, Level::O2Scalar] {
        for lazy in [false, true] {
            for threads in [0, 2] {
                let options = Options { level, lazy, threads };
                let jit = Llvm::new(options).unwrap();
                jit.define("host", half as *const () as u64).unwrap();
                jit.add(Module::parse(SQUARE).unwrap()).unwrap();
                let address = jit.lookup("square").unwrap();
                // SAFETY: `square` has this signature, and its JIT lives.
                let square = unsafe { std::mem::transmute::<u64, extern "C" fn(f64) -> f64>(address) };
                assert_eq!(square(3.0), 4.5, "{options:?}");
            }
        }
    }
}

#[test]
fn errors_are_llvms_own_words() {
    let options = Options { level: Level::O0, lazy: false, threads: 0 };
    let jit = Llvm::new(options).unwrap();
    assert!(jit.lookup("nowhere").unwrap_err().to_string().contains("nowhere"));
    assert!(Module::parse("define").unwrap_err().to_string().contains("expected"));
    jit.define("twice", 1).unwrap();
    assert!(jit.define("twice", 2).unwrap_err().to_string().contains("twice"));
}

#[test]
fn a_session_finds_what_it_defines() {
    let mut session = Session::new().unwrap();
    session.intern("a");
    session.intern("b");
    session.define_all(0x1000).unwrap();
    assert_eq!([session.lookup(0), session.lookup(1), session.lookup_text("b")], [0x1000, 0x1001, 0x1001]);
    assert_eq!(session.lookup_text("c"), 0);
    session.cycle("c", 7).unwrap();
    session.cycle("c", 7).unwrap();
    assert!(session.cycle("a", 7).is_err());
}
