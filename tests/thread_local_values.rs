//! Initial values of thread-local variables that are addresses of other objects' functions, in threads of any age.
#![cfg(feature = "programs")]

#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use std::sync::mpsc;
use std::thread;

use orcane::linker::graph::ObjectBytes;
use orcane::{Jit, Program};
use toolchain::{GCC, compile, directory};

type Function = extern "C" fn() -> i64;

/// Each has the other's function in the initial value of a variable that the other has, too.
const ONE: &str = "
    long two(void); extern __thread long (*of_two)(void);
    long one(void) { return 1; }
    __thread long (*of_one)(void) = two;
    long both(void) { return of_one() * 100 + of_two(); }";
const TWO: &str = "
    extern int missing __attribute__((weak)); long one(void);
    long two(void) { return 2; }
    __thread long (*of_two)(void) = one; __thread int *of_nobody = &missing;
    long none(void) { return (long)of_nobody; }";

#[test]
fn elf_36_values_that_depend_on_externals_are_in_threads_that_began_before_and_after() {
    for model in ["-ftls-model=global-dynamic", "-ftls-model=initial-exec"] {
        let (ask, asked) = mpsc::channel::<Vec<Function>>();
        let older = thread::spawn(move || asked.recv().unwrap().iter().map(|function| function()).collect::<Vec<_>>());
        let directory = directory(&format!("thread-local-values{model}"));
        let jit = Jit::new().unwrap();
        let program = Program::new(jit.session().clone());
        for (file, text) in [("one.c", ONE), ("two.c", TWO)] {
            let object = compile(&directory, &[GCC, "-fPIC", "-O1", model], file, text);
            let bytes = ObjectBytes::from(std::fs::read(directory.join(&object)).unwrap());
            program.add_object(jit.main(), &object, bytes).unwrap();
        }
        let functions: Vec<Function> = ["both", "none"]
            .map(|name| program.lookup(jit.main(), name).unwrap())
            // SAFETY: functions of this type, which only compute.
            .map(|address| unsafe { std::mem::transmute::<usize, Function>(address as usize) })
            .to_vec();
        let call = |functions: &[Function]| functions.iter().map(|function| function()).collect::<Vec<_>>();
        assert_eq!(call(&functions), [201, 0], "{model}");
        ask.send(functions.clone()).unwrap();
        assert_eq!(older.join().unwrap(), [201, 0], "{model}");
        assert_eq!(thread::spawn(move || call(&functions)).join().unwrap(), [201, 0], "{model}");
    }
}
