//! Objects of real compilers, as `orcane run` links them.
#![cfg(feature = "programs")]

#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use std::path::Path;

use toolchain::{C, CXX, GCC, compile, directory, orcane, same_as_native, told, tool};

/// The C library's way to write whatever the program says.
const OUTPUT: &str = "#include <stdio.h>\n#include <stdlib.h>\n";

fn c(directory: &Path, options: &[&str], file: &str, text: &str) -> String {
    compile(directory, &[&[GCC], options].concat(), file, &format!("{OUTPUT}{text}"))
}

/// Which end they have is the C++ library's matter, and what it does then the program's.
#[test]
fn an_exception_that_nobody_catches_ends_the_program_as_it_says_itself() {
    let ending = "#include <cstdio>\n#include <cstdlib>\n#include <exception>
        struct Last { ~Last() { std::puts(\"unwound\"); } };
        static void down(int n) { Last last; if (n == 0) throw 7; down(n - 1); }
        static int end() {
            std::set_terminate([] {
                try { std::rethrow_exception(std::current_exception()); } catch (int number) { std::printf(\"%d\\n\", number); }
                std::fflush(stdout);
                std::_Exit(9);
            });
            down(3);
            return 0;
        }";
    let programs = [
        ("main", "int main() { return end(); }"),
        ("initializer", "static int ended = end(); int main() { return ended; }"),
        ("finalizer", "static struct Ending { ~Ending() noexcept(false) { end(); } } ending; int main() {}"),
        ("destructor", "__attribute__((destructor)) static void last() { end(); } int main() {}"),
    ];
    for compiler in CXX {
        for (when, main) in programs {
            let directory = directory(&format!("uncaught-{}{}-{when}", compiler[0], compiler[2]));
            let main = compile(&directory, compiler, "main.cc", &format!("{ending}\n{main}"));
            same_as_native(&directory, &[&main], &[], &[]);
        }
    }
}

const INITIALIZERS: &str = r#"
static int ended;
__attribute__((constructor(200))) static void second(void) { printf("200\n"); }
__attribute__((constructor)) static void fourth(int argc, char **argv) { printf("default, %d arguments, %s\n", argc, argv[1]); }
__attribute__((constructor)) static void fifth(void) { printf("default, later\n"); }
__attribute__((constructor(100 + 50))) static void first(void) { printf("150\n"); }
__attribute__((destructor)) static void last(void) { printf("destructor %d\n", ended); }
__attribute__((destructor(150))) static void very_last(void) { printf("destructor 150\n"); }
static void at_exit(void) { printf("at exit\n"); ended = 1; }
static void at_exit_too(void) { printf("at exit, registered later\n"); }
int main(int argc, char **argv) {
    atexit(at_exit);
    atexit(at_exit_too);
    printf("main %d %s %s %d\n", argc, argv[1], argv[2], argv[3] == NULL);
    return 42;
}"#;

#[test]
fn elf_32_e2e_02_e2e_10_e2e_21_e2e_29_ort_02_ort_03_ort_04_ort_06_initializers_main_and_finalizers_in_order() {
    for compiler in C {
        let directory = directory(&format!("initializers-{}{}", compiler[0], compiler[1]));
        let object = compile(&directory, compiler, "main.c", &format!("{OUTPUT}{INITIALIZERS}"));
        let output = told(&orcane(&directory, &["run", &object, "--", "a", "b"]));
        let expected = "150\n200\ndefault, 3 arguments, a\ndefault, later\nmain 3 a b 1\nat exit, registered later\n\
                        at exit\ndestructor 1\ndestructor 150\n";
        assert_eq!(output, (expected.to_owned(), String::new(), Some(42)), "{compiler:?}");
        same_as_native(&directory, &[&object], &[], &["a", "b"]);
    }
}

#[test]
fn e2e_21_dylibs_are_initialized_before_those_that_search_them_and_once() {
    let directory = directory("dylibs");
    let library = "int shared = 5; __attribute__((constructor)) static void begin(void) { printf(\"library\\n\"); }
        __attribute__((destructor)) static void end(void) { printf(\"library ends\\n\"); }";
    let main =
        "extern int shared; __attribute__((constructor)) static void begin(void) { printf(\"main, %d\\n\", shared); }
        __attribute__((destructor)) static void end(void) { printf(\"main ends\\n\"); }
        int main(void) { return shared; }";
    let (library, main) = (c(&directory, &[], "library.c", library), c(&directory, &[], "main.c", main));
    let output = told(&orcane(&directory, &["run", &main, "--dylib", "library", &library]));
    assert_eq!(output, ("library\nmain, 5\nmain ends\nlibrary ends\n".to_owned(), String::new(), Some(5)));
}

#[test]
fn elf_36_ort_07_every_model_of_thread_local_variables() {
    let variables = "_Thread_local int data = 41; _Thread_local int zero; _Thread_local char aligned[3] __attribute__((aligned(32))) = {1, 2, 3};
        static _Thread_local int own = 7; int *address_of_own(void) { own++; return &own; }";
    let main = "#include <pthread.h>\n#include <stdint.h>\nextern _Thread_local int data, zero; extern _Thread_local char aligned[3];
        static _Thread_local int here = 3, there = 4; int *address_of_own(void);
        static void *run(void *unused) { data++; zero += here + there; here++; there--;
            printf(\"%d %d %d %d %d %d %d\\n\", data, zero, here, there, aligned[2], *address_of_own(), (int)((uintptr_t)aligned % 32));
            return NULL; }
        int main(void) { pthread_t t; run(NULL); for (int i = 0; i < 2; i++) { pthread_create(&t, NULL, run, NULL); pthread_join(t, NULL); } run(NULL); return 0; }";
    let dialects: &[&str] = if cfg!(target_arch = "x86_64") { &["gnu", "gnu2"] } else { &["trad", "desc"] };
    let mut ways: Vec<Vec<String>> = ["global-dynamic", "local-dynamic", "initial-exec", "local-exec"]
        .iter()
        .map(|model| vec![format!("-ftls-model={model}"), "-fPIE".to_owned()])
        .collect();
    ways.extend(dialects.iter().map(|dialect| vec![format!("-mtls-dialect={dialect}"), "-fPIC".to_owned()]));
    for way in &ways {
        for level in ["-O0", "-O2"] {
            let directory = directory(&format!("tls{}{level}", way.concat()));
            let options: Vec<&str> = way.iter().map(String::as_str).chain([level]).collect();
            let variables = c(&directory, &options, "variables.c", variables);
            let main = c(&directory, &options, "main.c", main);
            same_as_native(&directory, &[&main, &variables], &["-lpthread"], &[]);
        }
    }
}

#[test]
fn elf_36_storage_beyond_the_static_block() {
    let text = "_Thread_local char large[1 << 20] = {1}; int main(void) { large[(1 << 20) - 1] = 2; return large[0] + large[(1 << 20) - 1]; }";
    let directory = directory("large");
    let [call, descriptor] = if cfg!(target_arch = "x86_64") {
        ["-mtls-dialect=gnu", "-mtls-dialect=gnu2"]
    } else {
        ["-mtls-dialect=trad", "-mtls-dialect=desc"]
    };
    let dynamic = c(&directory, &["-fPIC", "-ftls-model=global-dynamic", call], "dynamic.c", text);
    let described = c(&directory, &["-fPIC", "-ftls-model=global-dynamic", descriptor], "described.c", text);
    for object in [dynamic, described] {
        assert_eq!(told(&orcane(&directory, &["run", &object])), (String::new(), String::new(), Some(3)));
    }
    let fixed = c(&directory, &["-fPIE", "-ftls-model=local-exec"], "fixed.c", text);
    let (_, error, status) = told(&orcane(&directory, &["run", &fixed]));
    assert!(status == Some(127) && error.contains("static block") && error.contains("large"), "{error}");
}

#[test]
fn elf_36_descriptors_beyond_the_static_block_keep_what_is_in_registers() {
    // The variable is found in the middle of a computation that has values in vector registers.
    let text = "#include <pthread.h>
        static _Thread_local double large[1 << 16] = {1.5};
        __attribute__((noinline)) static double sum(const double *v, int n) {
            double a = 0, b = 1, c = 2, d = 3;
            for (int i = 0; i < n; i += 4) { a += v[i]; b += v[i + 1] * large[0]; c += v[i + 2]; d += v[i + 3] * a; large[1]++; }
            return a + b + c + d; }
        static void *run(void *unused) { double v[16]; for (int i = 0; i < 16; i++) v[i] = i;
            printf(\"%g %g\\n\", sum(v, 16), large[1]); large[0] *= 2; return NULL; }
        int main(void) { pthread_t t; run(NULL); run(NULL);
            for (int i = 0; i < 2; i++) { pthread_create(&t, NULL, run, NULL); pthread_join(t, NULL); } return 0; }";
    let dialect = if cfg!(target_arch = "x86_64") { "-mtls-dialect=gnu2" } else { "-mtls-dialect=desc" };
    for level in ["-O0", "-O2", "-O3"] {
        let directory = directory(&format!("descriptors{level}"));
        let object = c(&directory, &["-fPIC", dialect, level], "main.c", text);
        same_as_native(&directory, &[&object], &["-lpthread"], &[]);
    }
}

#[test]
fn e2e_33_members_of_archives_are_linked_on_demand_and_transitively() {
    let directory = directory("archives");
    let member = |name: &str, needs: &str| {
        let text = format!(
            "int {needs}(int); int {name}(int n) {{ return {needs}(n) + 1; }}
             __attribute__((constructor)) static void begin(void) {{ printf(\"{name}\\n\"); }}"
        );
        c(&directory, &[], &format!("{name}.c"), &text)
    };
    let (first, second, unused) = (member("first", "second"), member("second", "abs"), member("unused", "missing"));
    let main = c(&directory, &[], "main.c", "int first(int); int main(void) { return first(-5); }");
    for (archive, options) in [("plain.a", "rcs"), ("thin.a", "rcsT"), ("no-index.a", "rcS")] {
        tool(&directory, &["ar", options, archive, &unused, &second, &first]);
        let (output, error, status) = told(&orcane(&directory, &["run", &main, archive]));
        let mut lines: Vec<_> = output.lines().collect();
        lines.sort_unstable();
        assert_eq!((lines, &*error, status), (vec!["first", "second"], "", Some(7)), "{archive}");
    }
}

#[test]
fn e2e_11_e2e_16_e2e_34_weak_and_comdat_functions_and_variables_are_one() {
    let text = "#include <cstdio>\ninline int counter = 0; template <class T> int *place() { static int value = 3; return &value; }
        inline int once() { static int calls = 0; return ++calls; } ";
    for compiler in CXX {
        let directory = directory(&format!("comdat-{}{}", compiler[0], compiler[2]));
        let other = format!(
            "{text} int *other() {{ counter++; once(); return place<int>(); }} int (*address())() {{ return once; }}"
        );
        let main = format!(
            "{text} int *other(); int (*address())(); int main() {{ counter++; bool same = other() == place<int>() && address() == &once;
             std::printf(\"%d %d %d\\n\", same, counter, once()); }}"
        );
        let (other, main) =
            (compile(&directory, compiler, "other.cc", &other), compile(&directory, compiler, "main.cc", &main));
        let output = told(&orcane(&directory, &["run", &main, &other]));
        assert_eq!(output, ("1 2 2\n".to_owned(), String::new(), Some(0)), "{compiler:?}");
    }
}

#[test]
fn elf_39_e2e_17_what_is_weak_common_or_chosen_at_load() {
    let main = "extern int missing __attribute__((weak)); int absent(void) __attribute__((weak)); int common; int fill(void);
        static int one(void) { return 1; } static int (*choose(void))(void) { return one; }
        int chosen(void) __attribute__((ifunc(\"choose\"))); int (*pointer)(void) = chosen;
        __attribute__((weak)) int replaced(void) { return 100; }
        int main(void) { return (&missing == 0) + 2 * (absent == 0) + 4 * fill() + 8 * common + 16 * chosen() + 32 * pointer() + replaced(); }";
    let other = "int common; int fill(void) { common = 1; return 1; } int replaced(void) { return 64; }";
    for options in [&["-fPIC", "-fcommon"][..], &["-fPIE", "-O2", "-fcommon"]] {
        let directory = directory("weak");
        let (main, other) = (c(&directory, options, "main.c", main), c(&directory, options, "other.c", other));
        assert_eq!(told(&orcane(&directory, &["run", &main, &other])), (String::new(), String::new(), Some(127)));
    }
}

#[test]
fn e2e_25_ort_01_exceptions_cross_objects_and_host_frames() {
    let throws = "#include <stdexcept>\nextern \"C\" int compare(const void *a, const void *b) {
        if (*(const int *)a == 3) throw std::runtime_error(\"three\"); return *(const int *)a - *(const int *)b; }";
    let main = "#include <cstdio>\n#include <cstdlib>\n#include <exception>\nextern \"C\" int compare(const void *, const void *);
        struct Guard { ~Guard() { std::puts(\"guard\"); } };
        int main() { int values[] = {3, 2, 1};
            try { Guard guard; std::qsort(values, 3, sizeof(int), compare); } catch (const std::exception &error) { std::puts(error.what()); } return 0; }";
    for compiler in CXX {
        let directory = directory(&format!("throw-{}{}", compiler[0], compiler[2]));
        let (throws, main) =
            (compile(&directory, compiler, "throws.cc", throws), compile(&directory, compiler, "main.cc", main));
        let output = told(&orcane(&directory, &["run", &main, &throws]));
        assert_eq!(output, ("guard\nthree\n".to_owned(), String::new(), Some(0)), "{compiler:?}");
    }
}

#[test]
fn e2e_13_e2e_01_what_can_not_be_linked_is_an_error() {
    let directory = directory("errors");
    std::fs::write(directory.join("bad.o"), "nonsense").unwrap();
    let needs = c(&directory, &[], "needs.c", "int nobody(void); int main(void) { return nobody(); }");
    let twice = c(&directory, &[], "twice.c", "int main(void) { return 0; }");
    for (arguments, expected) in [
        (vec!["run", "bad.o"], "bad.o is not an object file"),
        (vec!["run", &needs], "'nobody'"),
        (vec!["run", &needs, &twice], "duplicate definition of 'main'"),
        (vec!["run", &twice, "--entry", "start"], "'start'"),
        (vec!["run", &twice, "--entry", ""], "entry"),
        (vec!["run", &twice, "-l", "nowhere"], "no library 'nowhere'"),
        (vec!["run", &needs, "--define", "nobody"], "has no '='"),
    ] {
        let (output, error, status) = told(&orcane(&directory, &arguments));
        assert!(output.is_empty() && error.contains(expected) && status == Some(127), "{arguments:?}: {error}");
    }
}

#[test]
fn symbols_of_the_command_line_and_libraries() {
    let directory = directory("symbols");
    // The address is out of reach of the 32-bit distances of code for an executable.
    let main = c(
        &directory,
        &["-fPIC"],
        "main.c",
        "extern char place[]; int other(void); double cosh(double);
        int main(void) { return (int)(long)place + other() + (int)cosh(0); }",
    );
    let real = c(&directory, &["-fPIC"], "real.c", "int real(void) { return 30; }");
    let arguments = ["run", &main, &real, "--define", "place=0x4", "--alias", "other=real", "-lm"];
    assert_eq!(told(&orcane(&directory, &arguments)), (String::new(), String::new(), Some(35)));
    tool(&directory, &[GCC, "-shared", "-o", "libreal.so", &real]);
    let arguments = ["run", &main, "--define=place=4", "--alias=other=real", "-L.", "-lreal", "--threads", "2"];
    assert_eq!(told(&orcane(&directory, &arguments)), (String::new(), String::new(), Some(35)));
    let (_, error, status) = told(&orcane(&directory, &["run", &main, "--define=place=4", "--no-process-symbols"]));
    assert!(error.contains("not found") && status == Some(127), "{error}");
}

/// Code for a fixed address has 32-bit addresses of its own data, and calls the C library.
#[test]
#[cfg(target_arch = "x86_64")]
fn code_that_is_not_position_independent_runs_below_2_gib() {
    let directory = directory("no-pie");
    let text = "static int numbers[3] = {1, 2, 3}; int *pointer = &numbers[1];
        int main(void) { printf(\"%d %d\\n\", *pointer, numbers[2]); return 0; }";
    for level in ["-O0", "-O2"] {
        let main = c(&directory, &["-fno-pie", level], "main.c", text);
        assert_eq!(told(&orcane(&directory, &["run", &main])), ("2 3\n".to_owned(), String::new(), Some(0)));
    }
    let main = c(&directory, &["-fno-pie"], "main.c", "int main(void) { fputs(\"text\", stdout); return 0; }");
    let (_, error, status) = told(&orcane(&directory, &["run", &main]));
    assert!(error.contains("'stdout'") && error.contains("-fPIC") && status == Some(127), "{error}");
}

/// A program of two objects: what one has of the other's, and each of its own.
#[test]
fn e2e_04_e2e_05_e2e_06_e2e_07_e2e_08_e2e_09_e2e_14_calls_and_variables_across_objects() {
    let other =
        "int shared = 3; _Alignas(4096) char page[3] = {1}; _Alignas(64) static long own; static int counted = 40;
        static int inner(int n) { return n + ++own + counted++; } int outer(int n) { return inner(n); }
        int own_is_aligned(void) { return (unsigned long)&own % 64 == 0; }";
    let main =
        "extern int shared; extern char page[3]; int outer(int), own_is_aligned(void); static int zero, seven = 7;
        static int internal(int n) { return n * seven + zero++; }
        int main(void) { shared += internal(2);
            printf(\"%d %d %d %d\\n\", shared, outer(1), outer(1), internal(1));
            printf(\"%d %d\\n\", (unsigned long)page % 4096 == 0, own_is_aligned()); return 0; }";
    for compiler in C {
        let directory = directory(&format!("calls-{}{}", compiler[0], compiler[1]));
        let other = compile(&directory, compiler, "other.c", &format!("{OUTPUT}{other}"));
        let main = compile(&directory, compiler, "main.c", &format!("{OUTPUT}{main}"));
        same_as_native(&directory, &[&main, &other], &[], &[]);
    }
}

#[test]
fn e2e_03_a_constructor_by_a_pointer_to_something_else() {
    let directory = directory("constructor-cast");
    let text = "static int begun; static int begin(int argc, char **argv) { begun = argc; return 5; }
        __attribute__((used, section(\".init_array\"))) static void *const entry = (void *)begin;
        int main(void) { printf(\"%d\\n\", begun); return begun; }";
    let main = c(&directory, &["-fPIC"], "main.c", text);
    let output = told(&orcane(&directory, &["run", &main, "--", "a", "b"]));
    assert_eq!(output, ("3\n".to_owned(), String::new(), Some(3)));
}

#[test]
fn the_c_library_is_found_through_its_script() {
    let directory = directory("c-library");
    let main = c(&directory, &[], "main.c", "int main(int c, char **v) { printf(\"%f\\n\", c / 2.0); return 0; }");
    let expected = ("0.500000\n".to_owned(), String::new(), Some(0));
    assert_eq!(told(&orcane(&directory, &["run", &main, "-l", "c"])), expected);
    // One of our own, which leads to a library in another directory and one that is not there.
    let other = c(&directory, &["-fPIC"], "other.c", "int other(void) { return 4; }");
    tool(&directory, &["mkdir", "elsewhere"]);
    tool(&directory, &[GCC, "-shared", "-o", "elsewhere/libreal.so", &other]);
    let script = "/* one */ OUTPUT_FORMAT(elf) GROUP ( -lreal AS_NEEDED ( nowhere.so ) )";
    std::fs::write(directory.join("libscript.so"), script).unwrap();
    let main = c(&directory, &["-fPIC"], "calls.c", "int other(void); int main(void) { return other(); }");
    let arguments = ["run", &main, "-L.", "-Lelsewhere", "-lscript"];
    assert_eq!(told(&orcane(&directory, &arguments)), (String::new(), String::new(), Some(4)));
}

/// What no shared library has: functions and variables that compilers link into each program.
#[test]
fn what_compilers_link_with_everything_is_there() {
    let directory = directory("compiler-archives");
    let text = "#include <pthread.h>\nint all;
        #if defined(__x86_64__)\n#define KNOWN __builtin_cpu_supports(\"sse2\")\n#else\n#define KNOWN 1\n#endif
        static void before(void) { puts(\"before\"); }
        static void quick(void) { puts(\"quick\"); fflush(stdout); }
        int main(void) { __builtin_cpu_init(); __atomic_fetch_add(&all, 3, __ATOMIC_SEQ_CST);
            printf(\"%d %d\\n\", all, KNOWN != 0); pthread_atfork(before, NULL, NULL); at_quick_exit(quick); quick_exit(7); }";
    let text = if cfg!(target_arch = "x86_64") { text.to_owned() } else { text.replace("__builtin_cpu_init();", "") };
    for option in ["-fPIC", "-fPIE"] {
        let main = c(&directory, &["-O2", option], "main.c", &text);
        let expected = ("3 1\nquick\n".to_owned(), String::new(), Some(7));
        assert_eq!(told(&orcane(&directory, &["run", &main])), expected, "{option}");
    }
}

/// Each thread has its own of a library's variables, whether it is older or younger than the program's use of them.
#[test]
fn elf_36_thread_local_variables_of_a_library_of_the_command_line() {
    let library = "_Thread_local int theirs = 5, unused[3]; int *there(void) { return &theirs; }";
    let main = "#include <pthread.h>\nextern _Thread_local int theirs; int *there(void);
        static void *run(void *one) { theirs += 3; printf(\"%d %d\\n\", theirs, there() == &theirs); return one; }
        int main(void) { pthread_t t; run(NULL); pthread_create(&t, NULL, run, NULL); pthread_join(t, NULL); run(NULL); return 0; }";
    let dialects: &[&str] =
        if cfg!(target_arch = "x86_64") { &["-mtls-dialect=gnu2"] } else { &["-mtls-dialect=trad"] };
    let ways = [&["-fPIC"][..], &["-fPIE"], &["-fPIC", "-ftls-model=initial-exec"]];
    for compiler in C {
        for way in ways.into_iter().map(<[_]>::to_vec).chain(dialects.iter().map(|dialect| vec!["-fPIC", *dialect])) {
            if compiler[0] != GCC && way.concat().contains("trad") {
                continue;
            }
            let directory = directory(&format!("tls-library-{}{}{}", compiler[0], compiler[1], way.concat()));
            std::fs::write(directory.join("library.c"), library).unwrap();
            tool(&directory, &[GCC, "-O1", "-fPIC", "-shared", "library.c", "-o", "libvariables.so"]);
            let main = compile(&directory, &[compiler, &way[..]].concat(), "main.c", &format!("{OUTPUT}{main}"));
            let (output, error, status) = told(&orcane(&directory, &["run", &main, "./libvariables.so"]));
            assert_eq!((&*output, &*error, status), ("8 1\n8 1\n11 1\n", "", Some(0)), "{compiler:?} {way:?}");
        }
    }
}

#[test]
fn elf_36_call_once_finds_the_variables_of_the_cxx_library() {
    let text = "#include <mutex>\n#include <thread>\n#include <cstdio>
        std::once_flag flag; int count;
        int main() { auto run = [] { std::call_once(flag, [] { count++; }); };
            std::thread other(run); run(); other.join(); std::printf(\"%d\\n\", count); }";
    let models: &[&str] =
        if cfg!(target_arch = "x86_64") { &["-fPIC", "-fPIE", "-fno-pic"] } else { &["-fPIC", "-fPIE"] };
    for compiler in CXX {
        for model in models {
            let directory = directory(&format!("once-{}{}{model}", compiler[0], compiler[2]));
            let main = compile(&directory, &[compiler, &[*model]].concat(), "main.cc", text);
            let (output, error, status) = told(&orcane(&directory, &["run", &main]));
            assert_eq!((&*output, &*error, status), ("1\n", "", Some(0)), "{compiler:?} {model}");
        }
    }
}

/// The base that local-dynamic code counts from is right for the object's own large variables, though it uses another
/// object's, too, by another model.
#[test]
fn elf_36_local_dynamic_code_with_variables_of_other_objects() {
    let main = "#include <pthread.h>\nstatic _Thread_local int own[2000] = {1, 2}; extern _Thread_local int other;
        int *address(int n) { return &own[n]; } int *of_other(void) { return &other; }
        static void *run(void *unused) { (*address(0))++; own[1999] += own[1]; other++;
            printf(\"%d %d %d\\n\", own[0], own[1999], *of_other()); return unused; }
        int main(void) { pthread_t t; run(NULL); pthread_create(&t, NULL, run, NULL); return pthread_join(t, NULL); }";
    let small = "_Thread_local int other = 30;";
    for compiler in C {
        let directory = directory(&format!("local-dynamic-{}{}", compiler[0], compiler[1]));
        let object = |file: &str, text: &str| {
            compile(&directory, &[compiler, &["-fPIC", "-pthread"]].concat(), file, &format!("{OUTPUT}{text}"))
        };
        let other = object("other.c", small);
        let main = object("main.c", main);
        same_as_native(&directory, &[&main, &other], &["-lpthread"], &[]);
    }
    // Where two storages are apart, no one base is right. AArch64's compilers ask for each variable by a descriptor.
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let directory = directory("local-dynamic-apart");
    let options = ["-fPIC", "-O0", "-ftls-model=local-dynamic"];
    let other = c(&directory, &options, "other.c", small);
    let main = c(&directory, &options, "main.c", main);
    let (_, error, status) = told(&orcane(&directory, &["run", &main, &other]));
    assert!(status == Some(127) && error.contains("local-dynamic") && error.contains("-ftls-model="), "{error}");
}

/// Exceptions whose types and functions the C++ library has, and functions whose addresses are taken.
#[test]
#[cfg(target_arch = "x86_64")]
fn code_below_2_gib_reaches_functions_and_types_above() {
    let text = "#include <cstdio>\n#include <cstdlib>\n#include <stdexcept>
        int (*table[])(const char *) = {std::puts};
        int main() {
            try { throw std::runtime_error(\"an error\"); } catch (std::exception &e) { std::puts(e.what()); }
            try { throw 5; } catch (int number) { std::printf(\"%d\\n\", number); }
            int (*volatile put)(const char *) = &std::puts; put(\"through a pointer\");
            void (*volatile release)(void *) = &std::free; release(std::malloc(3));
            std::printf(\"%d\\n\", table[0] == put && table[0] == &std::puts);
        }";
    for compiler in CXX {
        let directory = directory(&format!("low-{}{}", compiler[0], compiler[2]));
        let main = compile(&directory, &[compiler, &["-fno-pic"]].concat(), "main.cc", text);
        same_as_native(&directory, &[&main], &["-no-pie"], &[]);
    }
}
