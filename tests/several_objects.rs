//! What is one of several objects and archives: as the system's linker has it.
#![cfg(feature = "programs")]

#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use std::path::Path;

use toolchain::{GCC, compile, directory, orcane, same_as_native, told, tool};

/// An object of C that may print.
fn c(directory: &Path, options: &[&str], file: &str, text: &str) -> String {
    compile(directory, &[&[GCC], options].concat(), file, &format!("#include <stdio.h>\n{text}"))
}

#[test]
fn the_largest_of_several_commons_is_the_one() {
    let directory = directory("commons");
    let small = "int a[4], b[4], x[1], y[4], z[4]; void fill(void); int main(void) { fill();
        printf(\"%d %d %d %d %d\\n\", a[0], b[0], x[0], y[0], z[0]); return 0; }";
    let large = "_Alignas(256) int x[16]; void fill(void) { for (int i = 0; i < 16; i++) x[i] = i + 1;
        printf(\"%d\\n\", (int)((unsigned long)x % 256)); }";
    let (small, large) =
        (c(&directory, &["-fcommon"], "small.c", small), c(&directory, &["-fcommon"], "large.c", large));
    same_as_native(&directory, &[&small, &large], &[], &[]);
    same_as_native(&directory, &[&large, &small], &[], &[]);
}

#[test]
fn a_common_takes_the_place_of_a_weak_variable_and_not_of_a_strong_one() {
    let directory = directory("weak-common");
    let weak = "__attribute__((weak)) int w = 5, other = 6; int of_weak(void) { return w; }";
    let common = "int w, other; int of_common(void) { return w; }";
    let strong = "int other = 7;";
    let main = "extern int w, other; int of_weak(void), of_common(void);
        int main(void) { printf(\"%d %d %d %d\\n\", w, of_weak(), of_common(), other); return 0; }";
    let object = |file: &str, text: &str| c(&directory, &["-fcommon"], file, text);
    let (weak, common) = (object("weak.c", weak), object("common.c", common));
    let (strong, main) = (object("strong.c", strong), object("main.c", main));
    same_as_native(&directory, &[&weak, &common, &strong, &main], &[], &[]);
    same_as_native(&directory, &[&strong, &common, &weak, &main], &[], &[]);
}
