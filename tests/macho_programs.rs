//! Mach-O objects in programs, beside ELF ones, as `orcane run` and `orcane link` take them.
#![cfg(feature = "programs")]

#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use std::path::Path;

use toolchain::{GCC, GXX, compile, directory, orcane, told, tool};

/// The target of clang whose code runs here.
const HOST: &str = if cfg!(target_arch = "aarch64") { ARM64 } else { X86_64 };
const X86_64: &str = "--target=x86_64-apple-macos11";
const ARM64: &str = "--target=arm64-apple-macos11";

/// What the programs write with. Variadic functions are called differently on Apple's arm64, so
/// Mach-O code leaves `printf` to this ELF object.
const SAY: &str = r#"#include <stdio.h>
void say(const char *text, long number) { printf("%s %ld\n", text, number); fflush(stdout); }"#;
const SAYS: &str = "extern \"C\" { void say(const char *, long); }\n";

fn elf(directory: &Path, file: &str, text: &str) -> String {
    let compiler: &[&str] = if file.ends_with(".cc") { &[GXX, "-O1", "-fPIC"] } else { &[GCC, "-O1", "-fPIC"] };
    compile(directory, compiler, file, text)
}

fn macho(directory: &Path, options: &[&str], file: &str, text: &str) -> String {
    macho_for(HOST, directory, options, file, text)
}

fn macho_for(target: &str, directory: &Path, options: &[&str], file: &str, text: &str) -> String {
    compile(directory, &[&["clang-22", target, "-fno-stack-protector"], options].concat(), file, text)
}

fn runs(directory: &Path, arguments: &[&str], output: &str, status: i32) {
    let expected = (output.to_owned(), String::new(), Some(status));
    assert_eq!(told(&orcane(directory, &[&["run"], arguments].concat())), expected, "{arguments:?}");
}

fn fails(directory: &Path, arguments: &[&str], expected: &str) {
    let (output, error, status) = told(&orcane(directory, &[&["run"], arguments].concat()));
    assert!(error.contains(expected) && status == Some(127), "{arguments:?}: {output} {error}");
}

#[test]
fn mach_o_and_elf_objects_call_each_other_in_one_program() {
    let down = "void say(const char *, long); int up(int); int shared = 5; extern int *where;
        int down(int n) { say(\"down\", n); return n <= 0 ? shared : 1 + up(n - 1); }
        int main(int argc, char **argv) { say(argv[1], argc); say(\"same\", where == &shared); return down(3); }";
    let up = "void say(const char *, long); int down(int); extern int shared; int *where = &shared;
        int up(int n) { say(\"up\", n); shared += 10; return 1 + down(n - 1); }";
    let expected = "x 2\nsame 1\ndown 3\nup 2\ndown 1\nup 0\ndown -1\n";
    for level in ["-O0", "-O2", "-Oz"] {
        let directory = directory(&format!("macho-mixed{level}"));
        let say = elf(&directory, "say.c", SAY);
        let (elf_up, elf_down) = (elf(&directory, "eup.c", up), elf(&directory, "edown.c", down));
        let (up, down) = (macho(&directory, &[level], "up.c", up), macho(&directory, &[level], "down.c", down));
        for objects in [[&down, &elf_up], [&elf_down, &up], [&down, &up]] {
            runs(&directory, &[objects[0], objects[1], &say, "--", "x"], expected, 29);
        }
    }
}

#[test]
fn macho_15_initializers_and_finalizers_of_both_formats_run_in_order() {
    let text = "void say(const char *, long); int atexit(void (*)(void));
        static void end(void) { say(\"at exit\", WHICH); }
        __attribute__((constructor)) static void first(void) { say(\"first\", WHICH); atexit(end); }
        __attribute__((constructor)) static void second(void) { say(\"second\", WHICH); }
        __attribute__((destructor)) static void last(void) { say(\"last\", WHICH); }\n";
    let main = format!("{text} int main(void) {{ return 3; }}");
    let directory = directory("macho-initializers");
    let say = elf(&directory, "say.c", SAY);
    let main = macho(&directory, &["-DWHICH=1"], "main.c", &main);
    let other = elf(&directory, "other.c", &text.replace("WHICH", "2"));
    // For Apple, clang makes a destructor what its last constructor registers for exit.
    let expected = "first 1\nsecond 1\nfirst 2\nsecond 2\nat exit 2\nlast 1\nat exit 1\nlast 2\n";
    runs(&directory, &[&main, &other, &say], expected, 3);
    // A list of finalizers, as older compilers write it.
    let lists = "void say(const char *, long); static void end(void) { say(\"end\", 0); }
        __attribute__((used, section(\"__DATA,__mod_term_func,mod_term_funcs\"))) static void (*list)(void) = end;
        int main(void) { say(\"main\", 0); return 0; }";
    let lists = macho(&directory, &[], "lists.c", lists);
    runs(&directory, &[&lists, &say], "main 0\nend 0\n", 0);
}

/// Constructors of objects with static storage, and their destructors, which know `__dso_handle`.
#[test]
fn objects_with_static_storage_are_constructed_and_destroyed() {
    let text = format!(
        "{SAYS} struct Noisy {{ int n; Noisy(int n) : n(n) {{ say(\"make\", n); }} ~Noisy() {{ say(\"break\", n); }} }};
        static Noisy one(1); Noisy two(2); Noisy &local() {{ static Noisy three(3); return three; }}
        int main() {{ return local().n + two.n; }}"
    );
    let directory = directory("macho-statics");
    let say = elf(&directory, "say.c", SAY);
    let main = macho(&directory, &["-O1"], "main.cc", &text);
    runs(&directory, &[&main, &say], "make 1\nmake 2\nmake 3\nbreak 3\nbreak 2\nbreak 1\n", 5);
}

#[test]
fn macho_52_exceptions_unwind_through_frames_of_both_formats() {
    let throws = format!(
        "{SAYS} struct Guard {{ long n; ~Guard() {{ say(\"guard\", n); }} }}; extern \"C\" void back(int);
        void through(int n) {{ Guard guard{{n}}; if (n == 0) throw 42; back(n - 1); }}"
    );
    let back = "void through(int); extern \"C\" void back(int n) { through(n); }";
    let main = format!(
        "{SAYS} void through(int); struct Base {{ virtual ~Base(); int n = 7; }}; struct Derived : Base {{}}; Base::~Base() {{}}
        int main() {{
            try {{ through(2); }} catch (int value) {{ say(\"caught\", value); }}
            try {{ try {{ throw Derived(); }} catch (int) {{ say(\"wrong\", 0); }} }} catch (Base &base) {{ say(\"base\", base.n); }}
            return 0;
        }}"
    );
    // Compact information stands alone, or beside DWARF; all of both is asked for.
    for unwind in ["no-compact-unwind", "always", "default"] {
        for level in ["-O0", "-O2"] {
            let directory = directory(&format!("macho-throw-{unwind}{level}"));
            let say = elf(&directory, "say.c", SAY);
            let options = [level, &format!("-femit-dwarf-unwind={unwind}"), "-fexceptions"];
            let throws = macho(&directory, &options, "throws.cc", &throws);
            let main = macho(&directory, &options, "main.cc", &main);
            let expected = "guard 0\nguard 1\nguard 2\ncaught 42\nbase 7\n";
            for back in [elf(&directory, "back.cc", back), macho(&directory, &options, "back.cc", back)] {
                runs(&directory, &[&main, &throws, &back, &say], expected, 0);
            }
        }
    }
}

#[test]
fn macho_51_each_thread_has_its_thread_local_variables() {
    let variables =
        "__thread int data = 41; __thread int zero; __thread char text[20] __attribute__((aligned(32))) = \"abc\";";
    let main = "extern __thread int data, zero; extern __thread char text[20]; static __thread long own = 1;
        void say(const char *, long); int run(void (*)(void));
        static void thread(void) { data++; zero += data; own *= 3; text[0]++;
            say(text, data * 10000 + zero * 10 + own); say(\"aligned\", (unsigned long)text % 32); }
        int main(void) { thread(); int status = run(thread); thread(); return status; }";
    let run = "#include <pthread.h>\nstatic void *enter(void *f) { ((void (*)(void))f)(); return 0; }
        int run(void (*f)(void)) { for (int i = 0; i < 2; i++) { pthread_t t; if (pthread_create(&t, 0, enter, (void *)f) || pthread_join(t, 0)) return 1; } return 0; }";
    let directory = directory("macho-threads");
    let (say, run) = (elf(&directory, "say.c", SAY), elf(&directory, "run.c", run));
    let thread = "bbc 420423\naligned 0\n";
    let expected = format!("{thread}{thread}{thread}cbc 430859\naligned 0\n");
    for level in ["-O0", "-O2"] {
        let (variables, main) =
            (macho(&directory, &[level], "variables.c", variables), macho(&directory, &[level], "main.c", main));
        runs(&directory, &[&main, &variables, &say, &run], &expected, 0);
    }
}

#[test]
fn macho_33_sections_are_enumerated_between_their_bounds() {
    let entry = "struct entry { const char *text; long number; };\n#define ENTRY(name, n) __attribute__((used, section(\"__DATA,registry\"))) static struct entry name = {#name, n};\n";
    let main = format!(
        "{entry} ENTRY(one, 1) ENTRY(two, 2) void say(const char *, long);
        extern struct entry start __asm(\"section$start$__DATA$registry\"), end __asm(\"section$end$__DATA$registry\");
        int main(void) {{ for (struct entry *at = &start; at < &end; at++) say(at->text, at->number); return (int)(&end - &start); }}"
    );
    let directory = directory("macho-bounds");
    let (say, main) = (elf(&directory, "say.c", SAY), macho(&directory, &["-O2"], "main.c", &main));
    runs(&directory, &[&main, &say], "one 1\ntwo 2\n", 2);
}

#[test]
fn macho_33_bounds_are_those_of_what_all_objects_have() {
    let registered = |names: &str| {
        let entry = "struct entry { const char *text; long number; };\n";
        let register = |name: char| {
            format!(
                "__attribute__((used, section(\"__DATA,registry\"))) static struct entry {name} = {{\"{name}\", 1}};\n"
            )
        };
        entry.to_owned() + &names.chars().map(register).collect::<String>()
    };
    let main = "void say(const char *, long); extern struct entry start __asm(\"section$start$__DATA$registry\");
        extern struct entry end __asm(\"section$end$__DATA$registry\"); int touch(void);
        int main(void) { long sum = touch(); for (struct entry *at = &start; at < &end; at++) say(at->text, sum += at->number); return 0; }";
    let other = |names| registered(names) + "int touch(void) { return 0; }";
    let directory = directory("macho-gathered");
    let say = elf(&directory, "say.c", SAY);
    for level in ["-O0", "-O2"] {
        let object = |file: &str, text: &str| macho(&directory, &[level], file, text);
        let two = object("two.c", &(registered("ab") + main));
        let none = object("none.c", &(registered("") + main));
        let (one, three) = (object("one.c", &other("c")), object("three.c", &registered("def")));
        runs(&directory, &[&two, &one, &say], "a 1\nb 2\nc 3\n", 0);
        runs(&directory, &[&three, &one, &two, &say], "d 1\ne 2\nf 3\nc 4\na 5\nb 6\n", 0);
        // The one that asks need not have any.
        runs(&directory, &["--lazy", &none, &three, &one, &say], "d 1\ne 2\nf 3\nc 4\n", 0);
    }
}

#[test]
fn macho_33_bounds_of_what_stays_with_several_objects_are_an_error() {
    let directory = directory("macho-apart");
    let asks = |bound: &str| {
        let text = format!(
            "extern char start __asm(\"{bound}\"); void touch(void); char *volatile at;
             __attribute__((used, section(\"OWN,one\"))) long one = 1; int main(void) {{ touch(); at = &start; return 0; }}"
        );
        macho(&directory, &[], "asks.c", &text)
    };
    let other = "__attribute__((used, section(\"OWN,two\"))) long two = 2; void touch(void) {}";
    let other = macho(&directory, &[], "other.c", other);
    for (bound, refused) in [
        ("segment$start$OWN", "what several have in segment 'OWN'"),
        ("section$end$__TEXT$__text", "what several have in section '__TEXT$__text'"),
    ] {
        fails(&directory, &[&asks(bound), &other], refused);
        fails(&directory, &[&other, &asks(bound)], refused);
    }
    for target in [X86_64, ARM64] {
        let asks = |bound: &str| format!(".section OWN,one\n.quad 1\n.data\n.globl _bound\n_bound: .quad {bound}");
        let other = ".section OWN,two\n.quad 2\n.data\n.quad 3";
        for (bound, refused) in [("segment$end$OWN", "'OWN'"), ("section$start$__DATA$__data", "'__DATA$__data'")] {
            let error = linked_data(target, &directory, &[&asks(bound), other]).unwrap_err();
            assert!(error.contains("the bounds of what several files have") && error.contains(refused), "{error}");
            linked_data(target, &directory, &[&asks(bound)]).unwrap();
        }
    }
    // One section of the segment is one object's.
    runs(&directory, &[&asks("section$start$OWN$one"), &other], "", 0);
}

#[test]
fn macho_33_segments_lie_between_their_bounds_in_both_architectures() {
    let directory = directory("macho-segments");
    // The sections of the segments come in turn.
    let segments = "
        .section OWN,__one\n.p2align 3\n_one: .quad 1, 2\n.data\n.quad 100\n.section OTHER,__one\n.quad 50
        .section OWN,__two\n.p2align 4\n.quad 3\n.zerofill OWN,__zero,_zero,8,3\n.section OTHER,__two\n.quad 60
        .data\n.globl _bounds\n.p2align 3\n_bounds: .quad segment$start$OWN, segment$end$OWN, segment$start$OTHER, segment$end$OTHER
        .quad section$start$OWN$__two, section$end$OWN$__zero, _one, 0x1616";
    for target in [X86_64, ARM64] {
        let data = linked_data(target, &directory, &[segments]).unwrap().remove(0);
        let at = |words: &[u64]| data.windows(words.len()).position(|window| window == words).unwrap() as u64 * 8;
        let (own, other) = (at(&[1, 2, 3, 0]), at(&[50, 60]));
        let first = data[at(&[0x1616]) as usize / 8 - 1];
        let address = |offset: u64| first - own + offset;
        let expected = [own, own + 32, other, other + 16, own + 16, own + 32, own].map(address);
        assert!(data.windows(8).any(|words| words[..7] == expected && words[7] == 0x1616), "{target}: {data:x?}");
    }
    let main = "void say(const char *, long);
        __attribute__((used, section(\"OWN,one\"))) static long one = 1; long other = 7;
        __attribute__((used, section(\"OWN,two\"))) static long two = 2;
        extern long start __asm(\"segment$start$OWN\"), end __asm(\"segment$end$OWN\");
        int main(void) { for (long *at = &start; at < &end; at++) say(\"number\", *at); return (int)other; }";
    let say = elf(&directory, "say.c", SAY);
    for level in ["-O0", "-O2"] {
        let main = macho(&directory, &[level], "main.c", main);
        runs(&directory, &[&main, &say], "number 1\nnumber 2\n", 7);
    }
    let whole =
        "extern char start __asm(\"segment$start$__TEXT\"); const int number = 3; int main(void) { return start; }";
    fails(&directory, &[&macho(&directory, &[], "whole.c", whole)], "whose bounds are referred to");
    let absent = "extern char start __asm(\"segment$start$NONE\"); int main(void) { return start; }";
    fails(&directory, &[&macho(&directory, &[], "absent.c", absent)], "segment$start$NONE");
    let absent = "extern char start __asm(\"section$start$__DATA$none\"); int main(void) { return start; }";
    fails(&directory, &[&macho(&directory, &[], "none.c", absent)], "section$start$__DATA$none");
}

/// Two archives with a member of the same name, each with an initializer, and what uses both.
fn archives(directory: &Path) -> (String, String) {
    let say = elf(directory, "say.c", SAY);
    for name in ["one", "two"] {
        let folder = directory.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let text = format!(
            "void say(const char *, long); __attribute__((constructor)) static void begin(void) {{ say(\"{name}\", 0); }}
             int {name}(void) {{ return sizeof \"{name}\"; }}"
        );
        macho(&folder, &[], "same.c", &text);
        macho(&folder, &[], "unused.c", "int missing(void); int unused(void) { return missing(); }");
        tool(&folder, &["llvm-ar-22", "rcs", &format!("../lib{name}.a"), "unused.o", "same.o"]);
    }
    let main = "int one(void), two(void); int main(void) { return one() * 10 + two(); }";
    (macho(directory, &[], "main.c", main), say)
}

#[test]
fn macho_06_macho_07_members_of_archives_are_linked_on_demand() {
    let directory = directory("macho-archives");
    let (main, say) = archives(&directory);
    let sorted = |arguments: &[&str]| {
        let (output, error, status) = told(&orcane(&directory, &[&["run", &main, &say], arguments].concat()));
        let mut lines: Vec<_> = output.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        assert_eq!((lines.join("\n"), error, status), ("one 0\ntwo 0".to_owned(), String::new(), Some(44)));
    };
    sorted(&["libone.a", "libtwo.a"]);
    sorted(&["-L.", "-lone", "-ltwo"]);
    // By a path into a second dylib, and by a name.
    sorted(&["libone.a", "--dylib", "second", "./libtwo.a"]);
    sorted(&["-L", ".", "--dylib=second", "-lone", "--dylib=third", "-ltwo"]);
    // Beside an ELF archive, and in one with ELF members.
    elf(&directory, "three.c", "int three(void) { return 3; }");
    let more = "int one(void), two(void), three(void); int main(void) { return one() + two() + three(); }";
    let more = elf(&directory, "more.c", more);
    tool(&directory, &["llvm-ar-22", "rcs", "mixed.a", "three.o", "one/same.o"]);
    let (_, error, status) = told(&orcane(&directory, &["run", &more, "mixed.a", "libtwo.a", &say]));
    assert_eq!((error, status), (String::new(), Some(11)));
}

#[test]
fn macho_05_what_a_hidden_archive_defines_is_seen_in_its_dylib_only() {
    let directory = directory("macho-hidden");
    let (main, say) = archives(&directory);
    let user = macho(&directory, &[], "user.c", "int two(void); int one(void) { return two() + 1; }");
    for hidden in [&["--load-hidden", "libtwo.a"][..], &["-L.", "--hidden-l", "two"]] {
        // Visible in the dylib.
        runs(&directory, &[&[&*main, "libone.a", &say], hidden].concat(), "one 0\ntwo 0\n", 44);
        let inner = macho(&directory, &[], "inner.c", "int one(void); int main(void) { return one(); }");
        runs(&directory, &[&[&*inner, &say, "--dylib", "second", &user], hidden].concat(), "two 0\n", 5);
        // Invisible outside.
        let outside = [&[&*main, "libone.a", &say, "--dylib", "second"], hidden].concat();
        fails(&directory, &outside, "'two'");
    }
    fails(&directory, &[&main, "--load-hidden", &say], "say.o is no archive");
}

#[test]
fn macho_17_symbols_of_the_command_line_go_by_their_names_in_the_source() {
    let directory = directory("macho-alias");
    let main = "int other(void); extern char place[]; int main(void) { return other() + (int)(long)place; }";
    let main = macho(&directory, &[], "main.c", main);
    let real = macho(&directory, &[], "real.c", "int real(void) { return 30; }");
    runs(&directory, &[&main, &real, "--alias", "other=real", "--define", "place=0x4"], "", 34);
    fails(&directory, &[&main, &real, "--alias", "other=_real", "--define", "place=0x4"], "'_real'");
}

#[test]
fn e2e_24_universal_objects_and_archives_are_read_for_this_machine() {
    let directory = directory("macho-universal");
    let parts = |name: &str, text: &str| {
        for (target, suffix) in [(X86_64, "x86"), (ARM64, "arm")] {
            let own = if target == HOST { "" } else { "_on_another_machine" };
            let text = format!("{}\n", text.replace("$", own));
            macho_for(target, &directory, &[], &format!("{name}-{suffix}.c"), &text);
        }
    };
    parts("main", "int one(void); int main$(void) { return one() + 1; }");
    parts("one", "int one$(void) { return 1; }");
    for (first, second) in [("x86", "arm"), ("arm", "x86")] {
        let main = [&*format!("main-{first}.o"), &format!("main-{second}.o")].map(str::to_owned);
        tool(&directory, &["llvm-lipo-22", "-create", &main[0], &main[1], "-output", "main.o"]);
        for suffix in [first, second] {
            tool(&directory, &["llvm-ar-22", "rcs", &format!("{suffix}.a"), &format!("one-{suffix}.o")]);
        }
        tool(&directory, &["llvm-lipo-22", "-create", "x86.a", "arm.a", "-output", "libone.a"]);
        runs(&directory, &["main.o", "libone.a"], "", 2);
        runs(&directory, &["main.o", "-L.", "-lone"], "", 2);
    }
    // One that has no part for this machine.
    let other = if HOST == X86_64 { "main-arm.o" } else { "main-x86.o" };
    tool(&directory, &["llvm-lipo-22", "-create", other, "-output", "other.o"]);
    fails(&directory, &["other.o"], "none of its parts is for");
    fails(&directory, &[other], "the session for");
}

#[test]
fn macho_29_a_weak_reference_is_null_unless_somebody_defines_it() {
    let directory = directory("macho-weak");
    let main = "extern int value __attribute__((weak_import)); int function(void) __attribute__((weak_import));
        static int *volatile pointer = &value;
        int main(void) { return (pointer ? *pointer : 1) + 10 * (function ? function() : 1) + 100 * (&value == pointer); }";
    let main = macho(&directory, &["-O1"], "main.c", main);
    let both = "int value = 2; int function(void) { return 3; }";
    let both = [macho(&directory, &[], "both.c", both), elf(&directory, "elf.c", both)];
    runs(&directory, &[&main], "", 111);
    for object in &both {
        runs(&directory, &[&main, object], "", 132);
    }
}

/// `_other = _target` where the target is in another object (`N_INDR`), and pointers and stubs as older assemblers'.
#[test]
#[cfg(target_arch = "x86_64")]
fn indirect_symbols_pointers_and_stubs_lead_to_what_they_stand_for() {
    let directory = directory("macho-indirect");
    let target = "int target(void) { return 7; } int here(void) { return 50; }";
    let (target, elf_target) = (macho(&directory, &[], "target.c", target), elf(&directory, "elf.c", target));
    let names = ".globl _other, _again\n_other = _target\n_again = _other\n.subsections_via_symbols\n";
    let names = macho(&directory, &[], "names.s", names);
    let stubs = "
        .text\n.globl _main\n_main: pushq %rbx\ncall L_stub\nmovl %eax, %ebx\ncall *L_pointer(%rip)\naddl %eax, %ebx
        call _again\naddl %ebx, %eax\npopq %rbx\nret
        .section __TEXT,__symbol_stub1,symbol_stubs,pure_instructions,6\nL_stub: .indirect_symbol _other\njmpq *L_lazy(%rip)
        .section __DATA,__la_symbol_ptr,lazy_symbol_pointers\nL_lazy: .indirect_symbol _other\n.quad _nowhere
        .section __DATA,__nl_symbol_ptr,non_lazy_symbol_pointers\nL_pointer: .indirect_symbol _here\n.quad 0
        .data\n_nowhere: .quad 0\n.subsections_via_symbols\n";
    let stubs = macho(&directory, &[], "stubs.s", stubs);
    for target in [&target, &elf_target] {
        runs(&directory, &[&stubs, &names, target], "", 64);
    }
    fails(&directory, &[&stubs, &names], "'target'");
}

#[test]
fn objects_archives_and_aliases_for_arm64_are_linked_at_an_address() {
    let directory = directory("macho-link");
    let source = "int two(void), other(void); int main(void) { return two() + other(); }";
    macho_for(ARM64, &directory, &["-O1"], "main.c", source);
    macho_for(ARM64, &directory, &["-O1"], "two.c", "int two(void) { return 2; }");
    macho_for(ARM64, &directory, &[], "names.s", ".globl _other\n_other = _two\n.subsections_via_symbols\n");
    tool(&directory, &["llvm-ar-22", "rcs", "libtwo.a", "two.o"]);
    let link = ["link", "--no-exec", "--triple", "arm64-apple-macos11", "--map", "map.json", "main.o", "names.o"];
    let (_, error, status) = told(&orcane(&directory, &link));
    assert!(status == Some(127) && error.contains("two is undefined"), "{error}");
    assert_eq!(told(&orcane(&directory, &[&link[..], &["libtwo.a"]].concat())).2, Some(0));
    let map = std::fs::read_to_string(directory.join("map.json")).unwrap();
    assert!(map.contains("{\"name\":\"main\",") && map.contains("{\"name\":\"two\","), "{map}");
}

#[test]
fn offsets_of_initializers_run_as_pointers_to_them_do() {
    let directory = directory("macho-init-offsets");
    let say = elf(&directory, "say.c", SAY);
    let text = "void say(const char *, long); static int order;
        void first(void) { say(\"first\", ++order); } void second(void) { say(\"second\", ++order); }
        int main(void) { say(\"main\", order); return order; }";
    let lists = ".section __TEXT,__init_offsets\n.long _first\n.long _second\n.subsections_via_symbols\n";
    let main = macho(&directory, &[], "main.c", text);
    let lists = macho(&directory, &[], "lists.s", lists);
    // Assemblers have no name for the section's type, which is in its flags.
    let path = directory.join(&lists);
    let mut object = std::fs::read(&path).unwrap();
    let at = object.windows(15).position(|name| name == b"__init_offsets\0").unwrap();
    object[at + 64] = 0x16;
    std::fs::write(&path, object).unwrap();
    runs(&directory, &[&main, &lists, &say], "first 1\nsecond 2\nmain 2\n", 2);
}

/// Runs a function in a new thread and waits for its end.
const RUN: &str = "#include <pthread.h>\nstatic void *enter(void *f) { ((void (*)(void))f)(); return 0; }
    int run(void (*f)(void)) { pthread_t t; return pthread_create(&t, 0, enter, (void *)f) || pthread_join(t, 0); }";

#[test]
fn macho_51_thread_local_variables_are_shared_between_objects_of_both_formats() {
    // The values are told apart by the thread, the addresses by who took them.
    let variables =
        "__thread long pad = 1; __thread int variable = 5; __thread char text[40] = \"abc\"; __thread int zero;
        int *elsewhere(void) { zero++; return &variable; }";
    let main = "extern __thread int variable, zero; extern __thread char text[40]; int *elsewhere(void);
        void say(const char *, long); int run(void (*)(void));
        static void thread(void) { say(text, variable + zero); variable += 10; text[0]++;
            say(\"same\", elsewhere() == &variable); say(text, variable + zero); }
        int main(void) { thread(); int status = run(thread); thread(); return status; }";
    let directory = directory("macho-tls-of-both");
    let (say, run) = (elf(&directory, "say.c", SAY), elf(&directory, "run.c", RUN));
    let begin = "abc 5\nsame 1\nbbc 16\n";
    let expected = format!("{begin}{begin}bbc 16\nsame 1\ncbc 27\n");
    for level in ["-O0", "-O2"] {
        let (variables, elf_variables) =
            (macho(&directory, &[level], "variables.c", variables), elf(&directory, "evariables.c", variables));
        let (main, elf_main) = (macho(&directory, &[level], "main.c", main), elf(&directory, "emain.c", main));
        for [main, variables] in [[&main, &elf_variables], [&elf_main, &variables], [&main, &variables]] {
            runs(&directory, &[main, variables, &say, &run], &expected, 0);
            runs(&directory, &[main, &say, &run, "--dylib", "second", variables], &expected, 0);
        }
    }
}

#[test]
fn macho_51_thread_local_variables_of_libraries_are_those_of_the_library() {
    let library =
        "__thread int first = 1; __thread int variable = 5; int *elsewhere(void) { return &variable; } int common = 3;";
    let main = "extern __thread int variable; int *elsewhere(void); void say(const char *, long); int run(void (*)(void));
        static void thread(void) { variable += 10; say(\"variable\", variable); say(\"same\", elsewhere() == &variable); }
        int main(void) { thread(); int status = run(thread); thread(); return status; }";
    let directory = directory("macho-tls-of-library");
    let (say, run) = (elf(&directory, "say.c", SAY), elf(&directory, "run.c", RUN));
    for (name, text) in [("own", library), ("other", "__thread int variable = 900;")] {
        elf(&directory, &format!("{name}.c"), text);
        tool(&directory, &[GCC, "-shared", &format!("{name}.o"), "-o", &format!("lib{name}.so")]);
    }
    let begin = "variable 15\nsame 1\n";
    let expected = format!("{begin}{begin}variable 25\nsame 1\n");
    for main in [macho(&directory, &["-O1"], "main.c", main), elf(&directory, "emain.c", main)] {
        runs(&directory, &[&main, &say, &run, "./libown.so"], &expected, 0);
        runs(&directory, &[&main, &say, &run, "./libown.so", "./libother.so"], &expected, 0);
    }
    // One of the C library's, which is in the static block.
    let main = "extern __thread int errno; int *__errno_location(void);
        int main(void) { errno = 34; return *__errno_location() + (&errno == __errno_location()); }";
    for main in [macho(&directory, &["-O1"], "main.c", main), elf(&directory, "emain.c", main)] {
        runs(&directory, &[&main], "", 35);
    }
}

/// The C library has a variable of that name, too.
#[test]
fn macho_51_a_variable_of_the_program_goes_before_one_of_the_process() {
    let directory = directory("macho-tls-names");
    let (variable, user) = ("__thread int errno = 5;", "extern __thread int errno; int main(void) { return errno; }");
    let variables = [macho(&directory, &[], "variable.c", variable), elf(&directory, "evariable.c", variable)];
    let users = [macho(&directory, &[], "user.c", user), elf(&directory, "euser.c", user)];
    for (user, variable) in users.iter().flat_map(|user| variables.iter().map(move |variable| (user, variable))) {
        runs(&directory, &[user, variable], "", 5);
    }
}

#[test]
fn macho_51_what_is_no_thread_local_variable_is_not_taken_for_one() {
    let directory = directory("macho-tls-refused");
    let (variable, user) = ("int errno = 5;", "extern __thread int errno; int main(void) { return errno; }");
    let variables = [macho(&directory, &[], "variable.c", variable), elf(&directory, "evariable.c", variable)];
    let users = [macho(&directory, &[], "user.c", user), elf(&directory, "euser.c", user)];
    tool(&directory, &[GCC, "-shared", "evariable.o", "-o", "libvariable.so"]);
    for user in &users {
        for variable in &variables {
            fails(&directory, &[user, variable], "'errno' is no thread-local variable of an object");
        }
        fails(&directory, &[user, "./libvariable.so"], "no library has a thread-local variable 'errno'");
    }
    // The address of a thread's copy says nothing about the others'.
    let alias = "extern __thread int other; int main(void) { return other; }";
    for user in [macho(&directory, &[], "alias.c", alias), elf(&directory, "ealias.c", alias)] {
        fails(&directory, &[&user, "--alias", "other=errno"], "no library has a thread-local variable 'other'");
    }
    let missing = "extern __thread int missing; int main(void) { return missing; }";
    fails(&directory, &[&macho(&directory, &[], "missing.c", missing)], "'missing'");
}

/// Compilers write no such values: where a variable is depends on what threads are given.
#[test]
fn variables_whose_initial_values_are_each_others_addresses_are_refused_and_not_waited_for() {
    let directory = directory("macho-tls-ring");
    let objects = |own: &str, other: &str| {
        let elf_text =
            format!(".section .tdata,\"awT\",%progbits\n.globl {own}\n.type {own}, %object\n{own}: .quad {other}\n");
        let text = format!(
            ".section __DATA,__thread_data,thread_local_regular\n_{own}$tlv$init: .quad _{other}
            .section __DATA,__thread_vars,thread_local_variables\n.globl _{own}
            _{own}: .quad __tlv_bootstrap, 0, _{own}$tlv$init\n.subsections_via_symbols\n"
        );
        [elf(&directory, &format!("e{own}.s"), &elf_text), macho(&directory, &[], &format!("{own}.s"), &text)]
    };
    let (first, second, third) = (objects("first", "second"), objects("second", "third"), objects("third", "first"));
    let user = "extern __thread long first; int main(void) { return first != 0; }";
    let users = [elf(&directory, "euser.c", user), macho(&directory, &["-O1"], "user.c", user)];
    for (user, format) in [(0, 0), (1, 1), (0, 1), (1, 0)] {
        let ring = [&users[user], &first[format], &second[format], &third[format]].map(String::as_str);
        fails(&directory, &ring, "depends on where it is itself");
    }
    // An address of what does not wait is there.
    let second = macho(&directory, &[], "end.c", "__thread long second = 5;");
    runs(&directory, &[&users[1], &first[1], &second], "", 1);
}

/// What each object registers is called in one order, whatever its format.
#[test]
fn destructors_of_thread_local_objects_run_backwards_when_their_thread_ends() {
    let noisy = format!(
        "{SAYS} struct Noisy {{ long n; Noisy(long n) : n(n) {{ say(\"make\", n); }} ~Noisy() {{ say(\"break\", n); }} }};\n"
    );
    let main = format!(
        "{noisy} extern \"C\" int run(void (*)()), shared();
        thread_local Noisy one(1); static thread_local Noisy two(2); static Noisy three(3);
        struct Last {{ ~Last() {{ static thread_local Noisy late(5); say(\"last\", late.n); }} }};
        static void thread() {{
            static thread_local Last last; static thread_local Noisy four(4);
            one.n += 10; two.n += shared(); static thread_local Noisy six(6);
        }}
        int main() {{ thread(); run(thread); say(\"main\", one.n); return 0; }}"
    );
    let shared = format!("{noisy} extern \"C\" int shared() {{ static thread_local Noisy own(20); return own.n++; }}");
    let directory = directory("macho-tls-destructors");
    let (say, run) = (elf(&directory, "say.c", SAY), elf(&directory, "run.c", RUN));
    let thread = "make 4\nmake 1\nmake 2\nmake 20\nmake 6\n";
    let ends = "break 6\nbreak 21\nbreak 22\nbreak 11\nbreak 4\nmake 5\nlast 5\nbreak 5\n";
    let expected = format!("make 3\n{thread}{thread}{ends}main 11\n{ends}break 3\n");
    let (elf_main, elf_shared) = (elf(&directory, "emain.cc", &main), elf(&directory, "eshared.cc", &shared));
    for level in ["-O0", "-O2"] {
        let (main, shared) =
            (macho(&directory, &[level], "main.cc", &main), macho(&directory, &[level], "shared.cc", &shared));
        for [main, shared] in [[&main, &shared], [&main, &elf_shared], [&elf_main, &shared], [&elf_main, &elf_shared]] {
            runs(&directory, &[main, shared, &say, &run], &expected, 0);
        }
    }
}

/// Compilers for macOS protect stacks unless they are told otherwise.
#[test]
fn stacks_are_protected_as_compilers_for_macos_do_it() {
    let directory = directory("macho-stack");
    let text = "void *memset(void *, int, unsigned long); void say(const char *, long);
        __attribute__((noinline)) static void fill(char *text, int size) { memset(text, 'x', size); text[size - 1] = 0; }
        int main(int count, char **arguments) { char text[16]; volatile int size = count == 1 ? 4 : 40; fill(text, size); say(text, 1); return 3; }";
    let say = elf(&directory, "say.c", SAY);
    let main = compile(&directory, &["clang-22", HOST, "-O1", "-fstack-protector-all"], "main.c", text);
    runs(&directory, &[&main, &say], "xxx 1\n", 3);
    let (_, error, status) = told(&orcane(&directory, &["run", &main, &say, "--", "more"]));
    assert!(error.contains("stack smashing detected") && status.is_none(), "{error} {status:?}");
}

/// Links assembled objects for an architecture, and gives the data of each, or what was said.
fn linked_data(target: &str, directory: &Path, texts: &[&str]) -> Result<Vec<Vec<u64>>, String> {
    let file = |(number, text): (usize, &&str)| {
        macho_for(target, directory, &[], &format!("linked{number}.s"), &format!("{text}\n.subsections_via_symbols\n"))
    };
    let files: Vec<String> = texts.iter().enumerate().map(file).collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let triple = target.strip_prefix("--target=").unwrap();
    let words = [&["link", "--no-exec", "--triple", triple, "--dump", "linked"], &files[..]].concat();
    let (_, error, status) = told(&orcane(directory, &words));
    if status != Some(0) {
        return Err(error);
    }
    let words = |bytes: Vec<u8>| bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let data = |number| std::fs::read(directory.join(format!("linked/{number}.Data"))).unwrap();
    Ok((0..files.len()).map(|number| words(data(number))).collect())
}

#[test]
fn macho_04_global_absolute_symbols_are_seen_by_others_and_local_ones_are_not() {
    let directory = directory("macho-absolute");
    let values =
        ".globl _everybody\n_everybody = 0x1234\n_own = 0x5678\n.data\n.globl _both\n_both: .quad _everybody, _own";
    for target in [X86_64, ARM64] {
        let user = ".data\n.globl _value\n_value: .quad _everybody, _everybody + 1";
        let data = linked_data(target, &directory, &[user, values]).unwrap();
        assert_eq!(data, [[0x1234, 0x1235], [0x1234, 0x5678]], "{target}");
        let error = linked_data(target, &directory, &[".data\n.globl _value\n_value: .quad _own", values]).unwrap_err();
        assert!(error.contains("own is undefined"), "{target}: {error}");
    }
    // As a program, also in another dylib.
    let values = macho(&directory, &[], "values.s", &format!("{values}\n.subsections_via_symbols\n"));
    let user = "extern char NAME[]; char *volatile value = NAME; int main(void) { return (long)value == 0x1234; }";
    let user = |name: &str| macho(&directory, &[&format!("-DNAME={name}")], &format!("{name}.c"), user);
    runs(&directory, &[&user("everybody"), &values], "", 1);
    runs(&directory, &[&user("everybody"), "--dylib", "second", &values], "", 1);
    fails(&directory, &[&user("own"), &values], "'own'");
}

#[test]
fn macho_16_linker_private_names_are_for_the_objects_of_a_dylib_and_internal_ones_for_their_own() {
    let directory = directory("macho-private");
    let names = ".data\n.globl l_shared\nl_shared: .quad l_shared, l_internal\nl_internal: .quad 7";
    for target in [X86_64, ARM64] {
        let user = |name: &str| format!(".data\n.globl _user\n_user: .quad {name}");
        let data = linked_data(target, &directory, &[&user("l_shared"), names]).unwrap();
        assert_eq!(data[0][0], data[1][0], "{target}");
        assert_eq!(data[1], [data[1][0], data[1][0] + 16, 7], "{target}");
        let error = linked_data(target, &directory, &[&user("l_internal"), names]).unwrap_err();
        assert!(error.contains("l_internal is undefined"), "{target}: {error}");
        // One of each in two objects are two.
        let data =
            linked_data(target, &directory, &[names, ".data\nl_internal: .quad 8\n.globl _p\n_p: .quad l_internal"]);
        let data = data.unwrap();
        assert_ne!(data[0][1], data[1][1], "{target}");
    }
    let names = "int shared __asm(\"l_shared\") = 42; static int internal __asm(\"l_internal\") = 3;
        int *volatile own = &internal;";
    let names = macho(&directory, &[], "names.c", names);
    let user = |name: &str| {
        let text = format!("extern int shared __asm(\"{name}\"); int main(void) {{ return shared; }}");
        macho(&directory, &[], &format!("{name}.c"), &text)
    };
    runs(&directory, &[&user("l_shared"), &names], "", 42);
    fails(&directory, &[&user("l_shared"), "--dylib", "second", &names], "l_shared");
    fails(&directory, &[&user("l_internal"), &names], "l_internal");
}

#[test]
fn macho_28_objects_agree_on_one_of_their_weak_definitions() {
    let directory = directory("macho-weak-definitions");
    let weak = |number: u32| {
        format!(
            ".data\n.globl _weak\n.weak_definition _weak\n_weak: .quad {number}\n.globl _user{number}\n_user{number}: .quad _weak"
        )
    };
    let strong = ".data\n.globl _weak\n_weak: .quad _weak\n";
    for target in [X86_64, ARM64] {
        let data = linked_data(target, &directory, &[&weak(1), &weak(2)]).unwrap();
        let address = |data: &[u64]| data.last().copied().unwrap();
        assert_eq!(address(&data[0]), address(&data[1]), "{target}");
        let data = linked_data(target, &directory, &[&weak(1), strong, &weak(2)]).unwrap();
        assert_eq!([&data[0], &data[2]].map(|data| address(data)), [data[1][0]; 2], "{target}");
    }
    let text = "__attribute__((weak)) int weak(void) { return N; } int (*NAME(void))(void) { return weak; }
        int NAME2(void) { return weak(); }";
    let main = "int (*one(void))(void), (*two(void))(void); int one2(void), two2(void);
        int main(void) { return one2() + 10 * two2() + 100 * (one() == two()); }";
    let main = macho(&directory, &[], "main.c", main);
    let options = |name: &str, number: u32| {
        [format!("-DN={number}"), format!("-DNAME={name}"), format!("-DNAME2={name}2"), "-O1".to_owned()]
    };
    let macho_with = |name: &str, number| {
        let options = options(name, number);
        macho(&directory, &options.each_ref().map(String::as_str), &format!("{name}.c"), text)
    };
    let (one, two) = (macho_with("one", 1), macho_with("two", 2));
    let defines = format!("#define N 2\n#define NAME two\n#define NAME2 two2\n{text}");
    let elf_two = elf(&directory, "etwo.c", &defines);
    runs(&directory, &[&main, &one, &two], "", 111);
    runs(&directory, &[&main, &two, &one], "", 122);
    runs(&directory, &[&main, &one, &elf_two], "", 111);
    runs(&directory, &[&main, &elf_two, &one], "", 122);
    let strong = macho(&directory, &[], "strong.c", "int weak(void) { return 3; }");
    runs(&directory, &[&main, &one, &two, &strong], "", 133);
}
