//! ELF objects of the system's compilers, linked and run.

use crate::compiler::build;
use crate::support::{CC, link, parse};

const PROGRAM: &str = r"
extern int outside(int);
extern int shared;
static int own = 5;
int common[4];
static int table(int n) {
    switch (n) {
    case 0: return 10;
    case 1: return own;
    case 2: return outside(1);
    case 3: return shared;
    case 4: return common[3];
    case 5: return 77;
    default: return -1;
    }
}
int (*volatile pointer)(int) = table;
int entry(int n) { return pointer(n) + (own += 1); }
";

extern "C" fn outside(argument: i32) -> i32 {
    argument + 100
}

static SHARED: i32 = 1234;

#[test]
fn a_compiled_object_runs() {
    for level in ["-O0", "-O2"] {
        let object = build(&[CC, "-c", "-g", "-fPIC", level], "c", PROGRAM);
        let externals = |name: &str| match name {
            "outside" => Some(outside as *const () as u64),
            "shared" => Some(&raw const SHARED as u64),
            _ => None,
        };
        let linked = link(parse(object), &externals).expect("it links");
        let results: Vec<_> = (0..7).map(|n| linked.call("entry", n)).collect();
        assert_eq!(results, [16, 13, 109, 1243, 10, 88, 11], "{level}");
    }
}
