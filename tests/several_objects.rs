//! What is one of several objects and archives: as the system's linker has it.
#![cfg(feature = "programs")]

#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use std::path::Path;

use toolchain::{C, GCC, GXX, compile, directory, orcane, same_as_native, told, tool};

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

/// A library's user adds objects whenever it wants.
#[test]
fn a_common_that_is_in_memory_and_too_small_is_an_error_until_it_is_removed() -> Result<(), orcane::Error> {
    let directory = directory("late-common");
    let object = |file: &str, text: &str| {
        let object = compile(&directory, &[GCC, "-fPIC", "-fcommon"], file, text);
        orcane::linker::graph::ObjectBytes::from(std::fs::read(directory.join(object)).unwrap())
    };
    let (small, large) =
        (object("small.c", "int x[1];"), object("large.c", "int x[16]; int *of_large(void) { return x; }"));
    let jit = orcane::Jit::new()?;
    let program = orcane::Program::new(jit.session().clone());
    let tracker = program.add_object(jit.main(), "small.o", small.clone())?;
    program.lookup(jit.main(), "x")?;
    program.add_object(jit.main(), "small again.o", small)?;
    let error = program.add_object(jit.main(), "large.o", large.clone()).unwrap_err().to_string();
    assert!(error.contains("large.o") && error.contains("smaller") && error.contains("'x'"), "{error}");
    tracker.remove()?;
    program.add_object(jit.main(), "large.o", large)?;
    assert_ne!(program.lookup(jit.main(), "of_large")?, 0);
    Ok(())
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

#[test]
fn initializers_of_archives_and_objects_run_in_one_order() {
    let directory = directory("priorities");
    let object =
        c(&directory, &[], "object.c", "__attribute__((constructor)) static void begin(void) { puts(\"default\"); }");
    let main = c(&directory, &[], "main.c", "int member(void); int main(void) { return member(); }");
    let member = "__attribute__((constructor(101))) static void begin(void) { puts(\"101\"); }
        __attribute__((destructor(101))) static void end(void) { puts(\"ends\"); } int member(void) { return 3; }";
    let member = c(&directory, &[], "member.c", member);
    tool(&directory, &["ar", "rcs", "members.a", &member]);
    same_as_native(&directory, &[&object, &main, "members.a"], &[], &[]);
}

#[test]
fn a_common_brings_in_the_member_with_its_value_and_no_other() {
    let directory = directory("common-members");
    let object = |file: &str, text: &str| c(&directory, &["-fcommon"], file, text);
    let main = "int values[4], blank[1], called; int main(void) { printf(\"%d %d %d\\n\", values[1], blank[0], called); return 0; }";
    let main = object("main.c", main);
    let begin = "__attribute__((constructor)) static void begin(void)";
    let value = object("value.c", &format!("int values[4] = {{1, 2, 3, 4}}; {begin} {{ puts(\"value\"); }}"));
    let blank = object("blank.c", &format!("int blank[8]; {begin} {{ puts(\"blank\"); }}"));
    let function = object("function.c", &format!("int called(void) {{ return 1; }} {begin} {{ puts(\"function\"); }}"));
    tool(&directory, &["ar", "rcs", "members.a", &value, &blank, &function]);
    same_as_native(&directory, &[&main, "members.a"], &[], &[]);
}

#[test]
fn a_member_grows_the_common_of_an_object() {
    let directory = directory("member-common");
    let main = "int x[1], y[4], z[4]; void fill(void); int main(void) { fill(); printf(\"%d %d %d\\n\", x[0], y[0], z[0]); return 0; }";
    let main = c(&directory, &["-fcommon"], "main.c", main);
    let member = "int x[64]; void fill(void) { for (int i = 0; i < 64; i++) x[i] = i + 1; }";
    let member = c(&directory, &["-fcommon"], "member.c", member);
    tool(&directory, &["ar", "rcs", "members.a", &member]);
    same_as_native(&directory, &[&main, "members.a"], &[], &[]);
}

#[test]
fn what_is_only_weakly_referred_to_brings_in_no_member() {
    let directory = directory("weak-references");
    let main = "void option(void) __attribute__((weak)); void other(void);
        int main(void) { if (option) option(); else puts(\"none\"); other(); return 0; }";
    let main = c(&directory, &[], "main.c", main);
    let option = c(&directory, &[], "option.c", "void option(void) { puts(\"option\"); }");
    let other = c(&directory, &[], "other.c", "void other(void) { puts(\"other\"); }");
    let needs = c(&directory, &[], "needs.c", "void option(void); void other(void) { option(); }");
    for other in [other, needs] {
        _ = std::fs::remove_file(directory.join("members.a"));
        tool(&directory, &["ar", "rcs", "members.a", &option, &other]);
        same_as_native(&directory, &[&main, "members.a"], &[], &[]);
    }
}

/// Objects that are one already: what LLD folds leaves records of unwinding that describe nothing, and without its local
/// symbols a group may have lost the one that it is known by.
#[test]
fn objects_that_lld_has_made_one_are_linked() {
    let directory = directory("relocatable");
    let header = "#include <cstdio>\n#include <stdexcept>\ntemplate <class T> struct Thrower { virtual ~Thrower() { std::puts(\"gone\"); }
        [[gnu::noinline]] T run(T n) { if (n > 2) throw std::runtime_error(\"more\"); return n; } };\n";
    let other = format!("{header}int other(int n) {{ Thrower<int> t; return t.run(n); }}");
    let main = format!(
        "{header}int other(int); int main() {{ for (int n = 1; n < 4; n++) try {{ Thrower<int> t; std::printf(\"%d\\n\", t.run(n) + other(n)); }}
         catch (const std::exception &e) {{ std::puts(e.what()); }} return 0; }}"
    );
    for level in ["-O0", "-O2"] {
        let other = compile(&directory, &[GXX, level], "other.cc", &other);
        let main = compile(&directory, &[GXX, level], "main.cc", &main);
        for options in [&["-r"][..], &["-r", "-x"]] {
            tool(&directory, &[&["ld.lld-22"], options, &["-o", "whole.o", &main, &other]].concat());
            same_as_native(&directory, &["whole.o"], &[], &[]);
        }
    }
}

#[test]
fn records_of_unwinding_for_what_is_no_code_are_left_out() {
    let directory = directory("data-code");
    let text = ".globl get\nget: .cfi_startproc\nnop\n.cfi_endproc\n.long in_data - .\n
        .section .data.code, \"aw\", @progbits\n.globl in_data\nin_data: .cfi_startproc\nnop\n.cfi_endproc\n";
    let data = compile(&directory, &[GCC], "data.s", text);
    let main = "extern char in_data[], get[]; int main(void) { printf(\"%d\\n\", in_data != get); return 0; }";
    let main = c(&directory, &[], "main.c", main);
    same_as_native(&directory, &[&main, &data], &[], &[]);
}

/// Code for a fixed address may be in an archive; what of it is no part of the program says nothing of the memory.
#[test]
#[cfg(target_arch = "x86_64")]
fn members_that_are_not_position_independent_run_below_2_gib() {
    let directory = directory("no-pie-members");
    let main = c(
        &directory,
        &[],
        "main.c",
        "int get(int); int main(int c, char **v) { printf(\"%d\\n\", get(c)); return 0; }",
    );
    let text = "static int table[] = {1, 2, 3, 4}; int get(int i) { return table[i]; }";
    let low = c(&directory, &["-fno-pie", "-O2"], "low.c", text);
    tool(&directory, &["ar", "rcs", "low.a", &low]);
    assert_eq!(told(&orcane(&directory, &["run", &main, "low.a"])), ("2\n".to_owned(), String::new(), Some(0)));
    // A direct reference to a variable of the C library can be far from low memory, but not from the default.
    let own = "int get(int i) { fprintf(stdout, \"own\\n\"); return i; }";
    let own = c(&directory, &["-fPIE"], "own.c", own);
    assert_eq!(told(&orcane(&directory, &["run", &main, &own, "low.a"])).0, "own\n1\n");
}

#[test]
fn a_note_that_code_refers_to_is_in_memory() {
    let directory = directory("notes");
    let main = "__attribute__((section(\".note.mine\"), used, aligned(4))) static const int note[4] = {4, 4, 1, 7};
        __attribute__((section(\".note.other\"), aligned(4))) const int other[4] = {4, 4, 1, 9}; const int *volatile at = note;
        int main(void) { printf(\"%d %d %d\\n\", at[3], note[2], other[3]); return 0; }";
    let main = c(&directory, &[], "main.c", main);
    same_as_native(&directory, &[&main], &[], &[]);
    // It comes before other sections, and has relocations as they have.
    let text = ".section .note.pointers, \"aw\", %note\n.globl first\nfirst: .quad x\n\
        .data\nx: .quad 5\n.globl second\nsecond: .quad first\n";
    let notes = compile(&directory, &[GCC], "pointers.s", text);
    let main = "extern long *first, **second; int main(void) { printf(\"%ld %ld\\n\", *first, **second); return 0; }";
    let main = c(&directory, &[], "pointed.c", main);
    same_as_native(&directory, &[&main, &notes], &[], &[]);
}

#[test]
fn a_symbol_outside_its_section_that_nobody_refers_to_is_no_error() {
    let directory = directory("outside");
    let text = ".data\nx: .long 1\n.globl beyond, before\n.set beyond, x + 100\n.set before, x - 8\n";
    let outside = compile(&directory, &[GCC], "outside.s", text);
    let main = c(&directory, &[], "main.c", "int main(void) { puts(\"main\"); return 0; }");
    same_as_native(&directory, &[&main, &outside], &[], &[]);
}

#[test]
fn symbols_with_versions_are_found_by_their_names() {
    let directory = directory("versions");
    let version = if cfg!(target_arch = "x86_64") { "GLIBC_2.2.5" } else { "GLIBC_2.17" };
    let main = format!(
        "__asm__(\".symver strlen, strlen@{version}\"); unsigned long strlen(const char *); int f(void);
         int main(int c, char **v) {{ printf(\"%d %d\\n\", f(), strlen(v[0]) > 0); return 0; }}"
    );
    let main = c(&directory, &["-fno-builtin"], "main.c", &main);
    let versions = "int f1(void) { return 1; } int f2(void) { return 2; }
        __asm__(\".symver f1, f@V1\"); __asm__(\".symver f2, f@@V2\");";
    let versions = c(&directory, &[], "versions.c", versions);
    let (output, error, status) = told(&orcane(&directory, &["run", &main, &versions]));
    assert_eq!((&*output, &*error, status), ("2 1\n", "", Some(0)));
}

/// Puts what a number is about into a section of all numbers.
fn registering(number: i32, kind: &str) -> String {
    format!(
        "static int number = {number}; int known_{number} = {number};
         static int *{kind} entry __attribute__((section(\"registered\"), used)) = &number;"
    )
}

/// Counts and adds what is registered, whoever has done that.
const REGISTERED: &str = "extern int *__start_registered[], *__stop_registered[];
    extern char __start_nothing[] __attribute__((weak));
    int main(void) { int sum = 0; for (int **p = __start_registered; p < __stop_registered; p++) sum += **p;
        printf(\"%d %d %d\\n\", (int)(__stop_registered - __start_registered), sum, __start_nothing != 0); return 0; }";

#[test]
fn elf_33_start_and_stop_are_the_bounds_of_what_all_objects_have() {
    let models: &[&str] =
        if cfg!(target_arch = "x86_64") { &["-fPIC", "-fPIE", "-fno-pic"] } else { &["-fPIC", "-fPIE"] };
    for compiler in C {
        for model in models {
            let directory = directory(&format!("registered-{}{}{model}", compiler[0], compiler[1]));
            let object = |file: &str, text: &str| compile(&directory, &[compiler, &[*model]].concat(), file, text);
            let one = object("one.c", &registering(1, ""));
            let twenty = object("twenty.c", &registering(20, "const"));
            let main = object("main.c", &format!("#include <stdio.h>\n{REGISTERED}"));
            let own = object("own.c", &format!("#include <stdio.h>\n{}{REGISTERED}", registering(300, "")));
            // The one that asks need not have any.
            for objects in
                [vec![&*main, &*one, &*twenty], vec![&*twenty, &*own, &*one], vec![&*own], vec![&*main, &*one]]
            {
                let link = if *model == "-fno-pic" { &["-no-pie"][..] } else { &[] };
                same_as_native(&directory, &objects, link, &[]);
            }
            let (output, error, _) = told(&orcane(&directory, &["run", "--lazy", &own, &twenty]));
            assert_eq!((&*output, &*error), ("2 320 0\n", ""));
            // A member that is part of the program counts, another doesn't.
            tool(&directory, &["ar", "rcs", "libmembers.a", &one, &twenty]);
            let needs = object("needs.c", "extern int known_20; int *needed(void) { return &known_20; }");
            let (output, error, _) = told(&orcane(&directory, &["run", &main, &needs, &one, "libmembers.a"]));
            assert_eq!((&*output, &*error), ("2 21 0\n", ""));
        }
    }
}

#[test]
fn elf_33_what_is_added_too_late_to_be_between_bounds_is_an_error_until_they_are_removed() -> Result<(), orcane::Error>
{
    let directory = directory("registered-late");
    let object = |file: &str, text: &str| {
        let object = compile(&directory, &[GCC, "-fPIC"], file, text);
        orcane::linker::graph::ObjectBytes::from(std::fs::read(directory.join(object)).unwrap())
    };
    let count = "extern int *__start_registered[], *__stop_registered[];
        long count(void) { return __stop_registered - __start_registered; }";
    let count = object("count.c", &format!("{}{count}", registering(1, "")));
    let two = object("two.c", &registering(2, ""));
    let jit = orcane::Jit::new()?;
    let program = orcane::Program::new(jit.session().clone());
    let first = program.add_object(jit.main(), "count.o", count.clone())?;
    let counted = |program: &orcane::Program| -> Result<i64, orcane::Error> {
        program.lookup(jit.main(), "count")?;
        let function = jit.lookup::<unsafe extern "C" fn() -> i64>("count")?;
        // SAFETY: a function of this type, which only computes.
        Ok(unsafe { function.call() })
    };
    assert_eq!(counted(&program)?, 1);
    let late = program.add_object(jit.main(), "two.o", two.clone()).unwrap_err().to_string();
    assert!(late.contains("'registered'") && late.contains("two.o"), "{late}");
    first.remove()?;
    program.add_object(jit.main(), "two.o", two)?;
    program.add_object(jit.main(), "count.o", count)?;
    assert_eq!(counted(&program)?, 2);
    Ok(())
}

#[test]
fn elf_33_bounds_of_code_that_several_objects_have_are_an_error() {
    let directory = directory("registered-code");
    let code = |name: &str| format!("__attribute__((section(\"code\"))) int {name}(void) {{ return 1; }}\n");
    let main = "extern char __start_code[]; void *volatile start = __start_code, *volatile first = f;
        int main(void) { printf(\"%d\\n\", start == first); return 0; }";
    let main = c(&directory, &["-fPIC"], "main.c", &(code("f") + main));
    let other = c(&directory, &["-fPIC"], "other.c", &code("g"));
    same_as_native(&directory, &[&main], &[], &[]);
    let (_, error, status) = told(&orcane(&directory, &["run", &main, &other]));
    assert!(status == Some(127) && error.contains("'code'") && error.contains("main.o"), "{error}");
}

#[test]
fn a_reference_to_a_symbol_outside_its_section_is_an_error_with_its_name() {
    let directory = directory("outside-used");
    let text = ".data\nx: .quad 1\n.globl beyond\n.set beyond, x + 100\n.quad beyond\n";
    let outside = compile(&directory, &[GCC], "outside.s", text);
    let (_, error, status) = told(&orcane(&directory, &["run", &outside]));
    assert!(status == Some(127) && error.contains("'beyond'") && error.contains("'.data'"), "{error}");
}

#[test]
fn functions_in_functions_run_on_the_stack() {
    let text = "static int sum(int (*f)(int), int n) { int sum = 0; for (int i = 0; i < n; i++) sum += f(i); return sum; }
        int (*volatile hidden)(int (*)(int), int) = sum;
        static void *run(void *unused) { int k = 4; int add(int x) { return x + k; } printf(\"%d\\n\", hidden(add, 3)); return unused; }
        int main(void) { pthread_t t; run(NULL); pthread_create(&t, NULL, run, NULL); return pthread_join(t, NULL); }";
    for level in ["-O0", "-O2"] {
        let directory = directory(&format!("nested{level}"));
        let main = c(&directory, &["-fPIC", level], "main.c", &format!("#include <pthread.h>\n{text}"));
        same_as_native(&directory, &[&main], &["-lpthread", "-z", "execstack"], &[]);
    }
}

#[test]
fn intermediate_code_is_refused_as_what_it_is() {
    let directory = directory("intermediate");
    let main = "int main(void) { return puts(\"main\") < 0; }";
    let fat = c(&directory, &["-flto", "-ffat-lto-objects"], "fat.c", main);
    same_as_native(&directory, &[&fat], &[], &[]);
    let slim = c(&directory, &["-flto", "-fno-fat-lto-objects"], "slim.c", main);
    let bitcode = ["--target=x86_64-linux-gnu", "--target=arm64-apple-macos11"].map(|target| {
        let file = if target.contains("apple") { "darwin.c" } else { "linux.c" };
        compile(&directory, &["clang-22", target, "-flto"], file, &format!("int puts(const char *);\n{main}"))
    });
    for (object, whose) in [(&slim, "GCC's"), (&bitcode[0], "LLVM's"), (&bitcode[1], "LLVM's")] {
        let (_, error, status) = told(&orcane(&directory, &["run", object]));
        let expected = [object, "not a relocatable object", whose, "intermediate code"];
        assert!(expected.iter().all(|part| error.contains(part)) && status == Some(127), "{error}");
    }
}
