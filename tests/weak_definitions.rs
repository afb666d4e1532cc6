//! Definitions of which there may be several: of C++ (inline variables, functions and type information, in COMDAT
//! groups), and weak ones of C; in the program, and in a library of the process.
#![cfg(feature = "programs")]

#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use std::path::Path;

use toolchain::{C, CXX, GCC, GXX, compile, directory, orcane, same_as_native, told, tool};

/// What the library and the program both have.
const HEADER: &str = r#"
#pragma once
#include <cstdio>
struct Base { virtual ~Base() = default; virtual int number() { return 1; } };
template <class T> struct Failure : Base { T value; explicit Failure(T value) : value(value) {} };
int begin(const char *who);
inline int counter = begin("the counter");
inline int &local() { static int number = 100; return number; }
struct Statics { static inline int total = 10; };
extern "C" { int *library_counter(); int *library_local(); int *library_total(); void library_throw(int); int library_type(Base *); }
"#;

const LIBRARY: &str = r#"
#include "header.h"
int begin(const char *who) { std::printf("%s begins\n", who); return 1; }
int *library_counter() { return &counter; }
int *library_local() { return &local(); }
int *library_total() { return &Statics::total; }
void library_throw(int value) { throw Failure<int>(value); }
int library_type(Base *base) { return dynamic_cast<Failure<int> *>(base) != nullptr; }
"#;

/// Says what is one with the library's.
const PROGRAM: &str = r#"
#include "header.h"
int main() {
    std::printf("counter %d\n", &counter == library_counter());
    std::printf("local %d\n", &local() == library_local());
    std::printf("total %d\n", &Statics::total == library_total());
    Failure<int> failure(2);
    std::printf("type %d\n", library_type(&failure));
    try {
        library_throw(3);
    } catch (Failure<int> &caught) {
        std::printf("caught %d\n", caught.value);
    }
    return counter + local() + Statics::total;
}
"#;

fn library(directory: &Path) {
    std::fs::write(directory.join("header.h"), HEADER).unwrap();
    std::fs::write(directory.join("library.cc"), LIBRARY).unwrap();
    tool(directory, &[GXX, "-std=c++17", "-O1", "-fPIC", "-shared", "library.cc", "-o", "libshared.so"]);
}

#[test]
fn weak_definitions_of_the_process_are_taken() {
    for compiler in CXX {
        for model in ["-fPIC", "-fPIE"] {
            let directory = directory(&format!("weak-{}{}{model}", compiler[0], compiler[2]));
            library(&directory);
            let object = compile(&directory, &[compiler, &[model]].concat(), "main.cc", PROGRAM);
            let output = told(&orcane(&directory, &["run", &object, "-L", ".", "-l", "shared"]));
            let expected = "the counter begins\ncounter 1\nlocal 1\ntotal 1\ntype 1\ncaught 3\n";
            assert_eq!(output, (expected.to_owned(), String::new(), Some(111)), "{compiler:?} {model}");
        }
    }
}

#[test]
fn a_program_may_keep_its_own_weak_definitions() {
    let directory = directory("weak-own");
    library(&directory);
    let object = compile(&directory, &[GXX, "-std=c++17", "-O1", "-fPIC"], "main.cc", PROGRAM);
    let run = ["run", "--weak", "own", &object, "-L", ".", "-l", "shared"];
    let output = told(&orcane(&directory, &run));
    // The type is known by its name where its addresses differ.
    let expected = "the counter begins\nthe counter begins\ncounter 0\nlocal 0\ntotal 0\ntype 1\ncaught 3\n";
    assert_eq!(output, (expected.to_owned(), String::new(), Some(111)));
}

#[test]
#[cfg(target_arch = "x86_64")] // All of AArch64's code is position-independent.
fn code_that_cannot_reach_the_process_keeps_its_own() {
    let directory = directory("weak-low");
    library(&directory);
    let text = "#include \"header.h\"\nint main() { return Statics::total + (&Statics::total == library_total()); }";
    let object = compile(&directory, &[GXX, "-std=c++17", "-O1", "-fno-pic", "-fno-exceptions"], "main.cc", text);
    let output = told(&orcane(&directory, &["run", &object, "-L", ".", "-l", "shared"]));
    // `counter` is the program's own as well.
    assert_eq!(output, ("the counter begins\nthe counter begins\n".to_owned(), String::new(), Some(10)));
}

/// A group that another object folds into its own, with a strong member.
const STRONG_MEMBER: &str = r#"
.section .text.shared,"axG",@progbits,shared_group,comdat
.globl strong_member, weak_member
.weak weak_member
strong_member: NUMBER
weak_member: NUMBER
"#;

#[test]
fn elf_19_elf_35_e2e_11_e2e_16_groups_fold_as_a_whole_with_strong_members() {
    let directory = directory("groups");
    let number = |number: i32| {
        let code = if cfg!(target_arch = "x86_64") {
            format!("movl ${number}, %eax\n ret\n")
        } else {
            format!("mov w0, #{number}\n ret\n")
        };
        STRONG_MEMBER.replace("NUMBER", &code)
    };
    let cc = GCC;
    let first = compile(&directory, &[cc], "first.s", &number(1));
    let second = compile(&directory, &[cc], "second.s", &number(2));
    let main =
        "int strong_member(void), weak_member(void); int main(void) { return 10 * strong_member() + weak_member(); }";
    let main = compile(&directory, &[cc], "main.c", main);
    for (objects, status) in [([&main, &first, &second], 11), ([&main, &second, &first], 22)] {
        let output = told(&orcane(&directory, &["run", objects[0], objects[1], objects[2]]));
        assert_eq!(output, (String::new(), String::new(), Some(status)));
    }
}

#[test]
fn elf_19_e2e_34_e2e_35_the_first_weak_definition_is_taken_whichever_object_is_needed_first() {
    let directory = directory("weak-first");
    let cc = GCC;
    let object = |name: &str, number: i32| {
        let text = format!(
            "__attribute__((weak)) int number(void) {{ return {number}; }}
             void *of_{name}(void) {{ return number; }} int from_{name}(void) {{ return number(); }}"
        );
        compile(&directory, &[cc, "-O0", "-fPIC"], &format!("{name}.c"), &text)
    };
    let (first, second) = (object("first", 1), object("second", 2));
    // Initializers are linked before anything else: it is the second object that is materialized first.
    let main = "void *of_first(void), *of_second(void); int from_first(void), from_second(void); static int early;
        __attribute__((constructor)) static void begin(void) { early = from_second(); }
        int main(void) { return 100 * (of_first() == of_second()) + 10 * early + from_first(); }";
    let main = compile(&directory, &[cc], "main.c", main);
    let output = told(&orcane(&directory, &["run", &main, &first, &second]));
    assert_eq!(output, (String::new(), String::new(), Some(111)));
    let output = told(&orcane(&directory, &["run", &main, &second, &first]));
    assert_eq!(output, (String::new(), String::new(), Some(122)));
}

#[test]
fn e2e_23_what_is_hidden_is_for_its_own_dylib() {
    let directory = directory("hidden");
    let cc = GCC;
    let hidden =
        "__attribute__((visibility(\"hidden\"))) int secret(void) { return 7; } int known(void) { return secret(); }";
    let hidden = compile(&directory, &[cc], "hidden.c", hidden);
    let main = compile(&directory, &[cc], "main.c", "int secret(void); int main(void) { return secret(); }");
    let output = told(&orcane(&directory, &["run", &main, &hidden]));
    assert_eq!(output, (String::new(), String::new(), Some(7)));
    let (_, error, status) = told(&orcane(&directory, &["run", &main, "--dylib", "other", &hidden]));
    assert!(status == Some(127) && error.contains("secret"), "{error}");
    let main = compile(&directory, &[cc], "main.c", "int known(void); int main(void) { return known(); }");
    let output = told(&orcane(&directory, &["run", &main, "--dylib", "other", &hidden]));
    assert_eq!(output, (String::new(), String::new(), Some(7)));
}

#[test]
fn a_weak_definition_that_need_not_be_like_the_processs_is_the_programs_own() {
    // The C library has a function of that name, which a program of its own goes before.
    let text = "#include <stdio.h>
        __attribute__((weak)) int strverscmp(const char *a, const char *b) { return 42; }
        int (*volatile compare)(const char *, const char *) = strverscmp;
        int main(void) { printf(\"%d\\n\", compare(\"a\", \"b\")); return 0; }";
    for compiler in C {
        for model in ["-fPIC", "-fPIE"] {
            let directory = directory(&format!("weak-c-{}{}{model}", compiler[0], compiler[1]));
            let main = compile(&directory, &[compiler, &[model]].concat(), "main.c", text);
            same_as_native(&directory, &[&main], &[], &[]);
        }
    }
}
