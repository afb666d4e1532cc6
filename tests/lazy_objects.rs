//! Objects of real compilers that are linked when one of their functions is first called.
#![cfg(feature = "programs")]

#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use std::path::Path;
use std::sync::{Arc, Mutex};

use cranelift_codegen::ir::{AbiParam, InstBuilder, Signature, Value, types};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{Linkage, Module, default_libcall_names};
use cranelift_object::{ObjectBuilder, ObjectModule};
use orcane::lazy::{LazyJit, LazyJitBuilder};
use orcane::linker::format::open;
use orcane::linker::graph::{LinkGraph, ObjectBytes};
use orcane::linker::memory::{MemoryManager, PageManager};
use orcane::{Alias, DylibLookup, Jit, JitDylib, Link, LinkPlugin, ResourceTracker, SymbolFlags};
use toolchain::{C, CXX, GCC, compile, directory, orcane, runtime, same_as_native, told};

type Function = unsafe extern "C" fn(i32) -> i32;

/// What was linked, in this order.
#[derive(Default)]
struct Links(Mutex<Vec<String>>);

impl LinkPlugin for Links {
    fn loaded(&self, link: &Link, _: &LinkGraph) {
        self.0.lock().unwrap().push(link.graph().to_owned());
    }
}

impl Links {
    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A lazy JIT, and what it links.
fn jit(builder: LazyJitBuilder) -> (LazyJit, Arc<Links>) {
    let jit = builder.build().unwrap();
    let links = Arc::new(Links::default());
    jit.object_layer().add_plugin(Arc::clone(&links) as Arc<dyn LinkPlugin>);
    (jit, links)
}

struct Sources<'a> {
    directory: &'a Path,
    compiler: &'a [&'a str],
}

impl Sources<'_> {
    fn add(&self, jit: &Jit, dylib: &JitDylib, file: &str, text: &str) -> ResourceTracker {
        let object = compile(self.directory, self.compiler, file, text);
        let bytes = open(&self.directory.join(&object)).unwrap();
        jit.add_object_to(dylib, file, bytes).unwrap()
    }
}

fn each_compiler(test: &str, run: impl Fn(&Sources<'_>)) {
    for options in [&[][..], &["-fPIC"], &["-fPIC", "-fno-plt"]] {
        for compiler in C {
            let directory = directory(&format!("{test}-{}", [compiler, options].concat().concat()));
            let compiler = [compiler, options].concat();
            run(&Sources { directory: &directory, compiler: &compiler });
        }
    }
}

fn call(jit: &Jit, name: &str, argument: i32) -> i32 {
    call_at(jit.lookup_address(name).unwrap(), argument)
}

fn call_at(address: u64, argument: i32) -> i32 {
    // SAFETY: the functions of these tests have this type and only compute.
    let function = unsafe { std::mem::transmute::<usize, Function>(address as usize) };
    // SAFETY: as above.
    unsafe { function(argument) }
}

#[test]
fn lazy_01_an_object_is_linked_at_the_first_call_into_it() {
    each_compiler("linked-at-first-call", |sources| {
        let (jit, links) = jit(LazyJit::builder());
        let main = jit.main();
        sources.add(&jit, main, "one.c", "int two(int); int one(int n) { return n > 10 ? n : two(n) + 1; }");
        sources.add(
            &jit,
            main,
            "two.c",
            "int counter = 5; int two(int n) { return ++counter + n; } int other(int n) { return n; }",
        );
        let [one, two, other] = ["one", "two", "other"].map(|name| jit.lookup_address(name).unwrap());
        assert_eq!(links.told(), [""; 0]);
        assert_eq!(call_at(one, 11), 11);
        assert_eq!(links.told(), ["one.c"]);
        assert_eq!(call_at(one, 1), 8);
        assert_eq!(links.told(), ["two.c"]);
        assert_eq!((call_at(one, 1), call_at(two, 1), call_at(other, 4)), (9, 9, 4));
        assert_eq!(links.told(), [""; 0]);
    });
}

/// The target of clang whose code runs here.
const MACHO: &str =
    if cfg!(target_arch = "aarch64") { "--target=arm64-apple-macos11" } else { "--target=x86_64-apple-macos11" };

#[test]
fn lazy_01_a_mach_o_object_is_linked_at_the_first_call_into_it() {
    for level in ["-O0", "-O2"] {
        let directory = directory(&format!("lazy-macho{level}"));
        let sources = Sources { directory: &directory, compiler: &["clang-22", MACHO, "-fno-stack-protector", level] };
        let (jit, links) = jit(LazyJit::builder());
        let main = jit.main();
        sources.add(&jit, main, "one.c", "int two(int); int one(int n) { return n > 10 ? n : two(n) + 1; }");
        sources.add(
            &jit,
            main,
            "two.c",
            "int counter = 5; static int inner(int n) { return ++counter + n; } int two(int n) { return inner(n); }",
        );
        // One of the other format calls, and is called.
        let elf = Sources { directory: &directory, compiler: &[GCC, "-fPIC", level] };
        elf.add(&jit, main, "three.c", "int one(int); int three(int n) { return one(n) * 2; }");
        let [one, three] = ["one", "three"].map(|name| jit.lookup_address(name).unwrap());
        assert_eq!(links.told(), [""; 0]);
        assert_eq!(call_at(one, 11), 11);
        assert_eq!(links.told(), ["one.c"]);
        assert_eq!(call_at(three, 1), 16);
        assert_eq!(links.told(), ["three.c", "two.c"]);
        assert_eq!((call_at(three, 1), call(&jit, "two", 1)), (18, 9));
        assert_eq!(links.told(), [""; 0]);
    }
}

/// Defines `int NAME(int n)`, whose result `body` makes.
fn define<M: Module>(module: &mut M, name: &str, body: impl FnOnce(&mut M, &mut FunctionBuilder<'_>, Value) -> Value) {
    let mut context = module.make_context();
    context.func.signature = unary(module);
    let function = module.declare_function(name, Linkage::Export, &context.func.signature).unwrap();
    let mut scratch = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut scratch);
    let block = builder.create_block();
    builder.append_block_params_for_function_params(block);
    builder.switch_to_block(block);
    builder.seal_block(block);
    let argument = builder.block_params(block)[0];
    let result = body(module, &mut builder, argument);
    builder.ins().return_(&[result]);
    builder.finalize(module.target_config());
    module.define_function(function, &mut context).unwrap();
}

fn unary(module: &impl Module) -> Signature {
    let mut signature = module.make_signature();
    signature.params.push(AbiParam::new(types::I32));
    signature.returns.push(AbiParam::new(types::I32));
    signature
}

/// `int NAME(int n)` is `callee(n) + 1`, as `cranelift-object` writes it.
fn cranelift_object(triple: &str, name: &str, callee: &str) -> Vec<u8> {
    let mut flags = settings::builder();
    flags.set("is_pic", "true").unwrap();
    let isa = cranelift_codegen::isa::lookup_by_name(triple).unwrap().finish(settings::Flags::new(flags)).unwrap();
    let mut module = ObjectModule::new(ObjectBuilder::new(isa, name, default_libcall_names()).unwrap());
    define(&mut module, name, |module, builder, argument| {
        let callee = module.declare_function(callee, Linkage::Import, &unary(module)).unwrap();
        let callee = module.declare_func_in_func(callee, builder.func);
        let call = builder.ins().call(callee, &[argument]);
        let result = builder.inst_results(call)[0];
        builder.ins().iadd_imm_s(result, 1)
    });
    module.finish().emit().unwrap()
}

#[test]
fn lazy_01_an_object_of_cranelift_is_linked_at_the_first_call_into_it() {
    let triples = if cfg!(target_arch = "aarch64") {
        ["aarch64-unknown-linux-gnu", "aarch64-apple-darwin"]
    } else {
        ["x86_64-unknown-linux-gnu", "x86_64-apple-darwin"]
    };
    for triple in triples {
        let (jit, links) = jit(LazyJit::builder());
        for (name, callee) in [("first", "second"), ("second", "third"), ("third", "abs")] {
            let bytes = ObjectBytes::from(cranelift_object(triple, name, callee));
            jit.add_object_to(jit.main(), name, bytes).unwrap();
        }
        let [first, second] = ["first", "second"].map(|name| jit.lookup_address(name).unwrap());
        assert_eq!(links.told(), [""; 0]);
        assert_eq!(call_at(second, -5), 7);
        assert_eq!(links.told(), ["second", "third"]);
        assert_eq!(call_at(first, -5), 8);
        assert_eq!(links.told(), ["first"]);
    }
}

#[test]
fn an_object_whose_data_is_asked_for_is_linked() {
    each_compiler("data", |sources| {
        let (jit, links) = jit(LazyJit::builder());
        sources.add(&jit, jit.main(), "data.c", "int variable = 7; int read(int n) { return variable + n; }");
        sources.add(&jit, jit.main(), "user.c", "extern int variable; int user(int n) { return (variable += n); }");
        let variable = jit.lookup_address("variable").unwrap();
        assert_eq!(links.told(), ["data.c"]);
        assert_eq!((call(&jit, "user", 3), call(&jit, "read", 1)), (10, 11));
        // SAFETY: the address of an initialized `int` that nobody else uses now.
        assert_eq!(unsafe { *std::ptr::with_exposed_provenance::<i32>(variable as usize) }, 10);
    });
}

const ADDRESSES: &str = "typedef int (*function)(int);
    int f(int n) { return n + 1; }
    function table[2] = { f, 0 };
    function own(int n) { return f; }
    function from_table(int n) { return table[n]; }
    int is_own(function other) { return other == f; }";
const OTHER_ADDRESSES: &str = "typedef int (*function)(int);
    int f(int);
    int is_own(function);
    function others[] = { f };
    function other(int n) { return f; }
    function from_others(int n) { return others[n]; }
    int compare(int n) { return is_own(f) + is_own(others[n]); }";

#[test]
fn lazy_02_a_functions_address_is_the_same_from_every_object_and_dylib() {
    type Give = unsafe extern "C" fn(i32) -> u64;
    each_compiler("addresses", |sources| {
        let (jit, links) = jit(LazyJit::builder());
        let elsewhere = jit.session().create_dylib("elsewhere").unwrap();
        let again = jit.session().intern("again");
        let alias = Alias { name: again, aliasee: jit.session().intern("f"), flags: SymbolFlags::FUNCTION };
        sources.add(&jit, jit.main(), "own.c", ADDRESSES);
        elsewhere.re_export(jit.main(), DylibLookup::Exported, vec![alias]).unwrap();
        elsewhere.add_to_link_order(jit.main(), DylibLookup::Exported).unwrap();
        sources.add(&jit, &elsewhere, "other.c", OTHER_ADDRESSES);
        let f = jit.lookup_address("f").unwrap();
        let reexported = jit.session().lookup(&elsewhere.link_order(), vec![jit.session().intern("again")]).unwrap();
        assert_eq!(reexported[0].definition.address, f);
        assert_eq!(links.told(), [""; 0]);
        let give = |dylib: &JitDylib, name: &str| {
            let function = jit.lookup_in::<Give>(dylib, name).unwrap();
            // SAFETY: a function that gives a pointer.
            unsafe { function.call(0) }
        };
        // As soon as there is a body, and after a call too.
        for round in 0..2 {
            assert_eq!([give(jit.main(), "own"), give(jit.main(), "from_table")], [f; 2], "{round}");
            assert_eq!([give(&elsewhere, "other"), give(&elsewhere, "from_others")], [f; 2], "{round}");
            assert_eq!(call_at(f, 1), 2);
            assert_eq!(jit.lookup_address("f").unwrap(), f);
        }
        let compare = jit.lookup_in::<Function>(&elsewhere, "compare").unwrap();
        // SAFETY: the function only computes.
        assert_eq!(unsafe { compare.call(0) }, 2);
    });
}

#[test]
fn of_weak_functions_one_is_everybodys() {
    each_compiler("weak", |sources| {
        let (jit, _) = jit(LazyJit::builder());
        let weak = |value: i32, user: &str| {
            format!(
                "__attribute__((weak, noinline)) int f(int n) {{ return n + {value}; }}
                int {user}(int n) {{ return f(n); }} __attribute__((weak)) int {user}_too(int n) {{ return n; }}"
            )
        };
        sources.add(&jit, jit.main(), "first.c", &weak(1, "first"));
        sources.add(&jit, jit.main(), "second.c", &weak(2, "second"));
        assert_eq!((call(&jit, "second", 0), call(&jit, "first", 0), call(&jit, "f", 0)), (1, 1, 1));
        assert_eq!((call(&jit, "first_too", 8), call(&jit, "second_too", 9)), (8, 9));
        // A strong one wins over those that nobody has searched for.
        let other = jit.session().create_dylib("other").unwrap();
        sources.add(&jit, &other, "third.c", &weak(3, "third"));
        sources.add(&jit, &other, "strong.c", "int f(int n) { return n + 4; }");
        let [third, too] = ["third", "third_too"].map(|name| jit.lookup_in::<Function>(&other, name).unwrap());
        // SAFETY: the functions only compute.
        assert_eq!(unsafe { (third.call(0), too.call(7)) }, (4, 7));
    });
}

#[test]
fn a_strong_function_twice_is_an_error_and_changes_nothing() {
    let directory = directory("twice");
    let sources = Sources { directory: &directory, compiler: &[GCC] };
    let (jit, _) = jit(LazyJit::builder());
    sources.add(&jit, jit.main(), "first.c", "int f(int n) { return n + 1; }");
    let second = compile(&directory, &[GCC], "second.c", "int f(int n) { return n; } int g(int n) { return n; }");
    let error = jit.add_object("second.c", open(&directory.join(second)).unwrap()).unwrap_err();
    assert!(error.to_string().contains("'f'") || error.to_string().contains("f "), "{error}");
    assert!(jit.lookup_address("g").is_err());
    assert_eq!(call(&jit, "f", 1), 2);
}

extern "C" fn substitute(n: i32) -> i32 {
    -n
}

#[test]
fn lazy_05_calls_into_an_object_that_cant_be_linked_go_where_the_handler_says() {
    each_compiler("unlinkable", |sources| {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        let handler = move |function: &orcane::SymbolName, error: &orcane::LookupError| {
            tell.lock().unwrap().push((function.to_string(), error.to_string()));
            substitute as *const () as u64
        };
        let (jit, _) = jit(LazyJit::builder().failure_handler(handler));
        sources.add(&jit, jit.main(), "bad.c", "int nowhere(int); int bad(int n) { return nowhere(n); }");
        sources.add(&jit, jit.main(), "good.c", "int bad(int); int good(int n) { return bad(n) - 1; }");
        for _ in 0..2 {
            assert_eq!((call(&jit, "good", 5), call(&jit, "bad", 3)), (-6, -3));
        }
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 4);
        assert!(told.iter().all(|(function, why)| function == "bad" && why.contains("nowhere")), "{told:?}");
    });
}

#[test]
fn a_removed_object_goes_and_calls_into_it_go_where_the_handler_says() {
    each_compiler("removed", |sources| {
        let memory: Arc<dyn MemoryManager> = Arc::new(PageManager::new());
        let builder = LazyJitBuilder::new(Jit::builder().memory_manager(Arc::clone(&memory)));
        let (jit, links) = jit(builder.failure_handler(|_, _| substitute as *const () as u64));
        sources.add(&jit, jit.main(), "user.c", "int f(int); int user(int n) { return f(n) * 2; }");
        let text = "int data = 1; int f(int n) { return n + data; } int g(int n) { return n; }";
        let called = sources.add(&jit, jit.main(), "called.c", text);
        let user = jit.lookup::<Function>("user").unwrap();
        // SAFETY: the functions only compute.
        assert_eq!(unsafe { user.call(4) }, 10);
        called.remove().unwrap();
        // What runs already gets the handler's function in place of the one that is gone; what
        // depends on that can't be called anew.
        // SAFETY: as above.
        assert_eq!(unsafe { user.call(4) }, -8);
        assert_eq!(call(&jit, "user", 4), -4);
        assert!(["f", "g", "data"].iter().all(|name| jit.lookup_address(name).is_err()));
        // Not the place of the one that `user` still calls.
        sources.add(&jit, jit.main(), "h.c", "int h(int n) { return 100; }");
        // SAFETY: as above.
        assert_eq!((call(&jit, "h", 0), unsafe { user.call(4) }), (100, -8));
        links.told();
        let never_called = sources.add(&jit, jit.main(), "never.c", text);
        let before = memory.statistics();
        never_called.remove().unwrap();
        assert_eq!((links.told(), memory.statistics().allocations), (Vec::new(), before.allocations));
        drop((user, called, never_called));
        drop(jit);
        assert_eq!(memory.statistics().allocations, 0);
    });
}

#[test]
fn a_lazy_function_of_an_object_can_be_redefined() {
    each_compiler("redefined", |sources| {
        let (jit, links) = jit(LazyJit::builder());
        sources.add(
            &jit,
            jit.main(),
            "object.c",
            "__attribute__((noinline, noclone, optimize(\"O1\"))) int f(int n) { return n + 1; } int data = 3;
            int inside(int n) { return f(n) * 10; } int (*pointer)(int) = f;
            int through(int n) { return pointer(n); }",
        );
        sources.add(&jit, jit.main(), "user.c", "int f(int); int user(int n) { return f(n) * 10; }");
        let address = jit.lookup_address("f").unwrap();
        assert_eq!((call(&jit, "user", 1), call(&jit, "inside", 1)), (20, 20));
        sources.redefine(&jit, "f", 7);
        assert_eq!((call(&jit, "user", 1), call_at(address, 1), call(&jit, "through", 1)), (70, 7, 7));
        // Inside the object calls are bound when it is linked. What AArch64 loads to call it might be for anything.
        let loads =
            cfg!(target_arch = "aarch64") && sources.compiler[0] == GCC && sources.compiler.contains(&"-fno-plt");
        assert_eq!(call(&jit, "inside", 1), if loads { 70 } else { 20 }, "{:?}", sources.compiler);
        assert_eq!(links.told().iter().filter(|name| *name == "object.c").count(), 1);
        assert_eq!(jit.lookup_address("f").unwrap(), address);
    });
}

impl Sources<'_> {
    /// Gives a function another body, which gives a constant.
    fn redefine(&self, jit: &Jit, name: &str, value: i32) {
        let mut module = jit.module(name).redirectable();
        define(&mut module, name, |_, builder, _| builder.ins().iconst(types::I32, i64::from(value)));
        jit.redefine(module).unwrap();
    }
}

#[test]
fn functions_of_one_name_in_two_dylibs_are_two() {
    each_compiler("dylibs", |sources| {
        let (jit, _) = jit(LazyJit::builder());
        let other = jit.session().create_dylib("other").unwrap();
        sources.add(&jit, jit.main(), "here.c", "int f(int n) { return n + 1; }");
        sources.add(&jit, &other, "there.c", "int f(int n) { return n + 2; } int g(int n) { return f(n); }");
        let there = jit.lookup_in::<Function>(&other, "f").unwrap();
        // SAFETY: the function only computes.
        assert_eq!((call(&jit, "f", 0), unsafe { there.call(0) }), (1, 2));
        sources.redefine(&jit, "f", 50);
        let there = jit.lookup_in::<Function>(&other, "f").unwrap();
        // SAFETY: as above.
        assert_eq!((call(&jit, "f", 0), unsafe { there.call(0) }), (50, 2));
    });
}

#[test]
fn gap_13_of_threads_that_call_into_an_object_at_once_one_links_it() {
    let directory = directory("threads");
    let sources = Sources { directory: &directory, compiler: &[GCC, "-O2"] };
    let (jit, links) = jit(LazyJit::builder());
    let text: String = (0..300).map(|index| format!("int f{index}(int n) {{ return n + {index}; }}\n")).collect();
    sources.add(&jit, jit.main(), "many.c", &text);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let jit = &jit;
            scope.spawn(move || {
                for index in 0..300 {
                    let index = (index * 7 + thread * 19) % 300;
                    assert_eq!(call(jit, &format!("f{index}"), 1), index + 1);
                }
            });
        }
    });
    assert_eq!(links.told(), ["many.c"]);
}

const PROGRAM: [&str; 3] = [
    r#"#include <cstdio>
    #include <cstdlib>
    #include <stdexcept>
    #include "shared.h"
    static Logger logger("main");
    int missing(int);
    int main(int argc, char **argv) {
        if (argc > 9) return broken(argc);
        Shape *shapes[] = { make_square(3), make_circle(2) };
        double sum = 0;
        for (Shape *shape : shapes) { sum += shape->area(); printf("%s\n", shape->name()); }
        int numbers[] = { 5, 3, 9 };
        qsort(numbers, 3, sizeof(int), compare);
        printf("%g %d %d %d %d\n", sum, numbers[0], numbers[1], numbers[2], compare == comparer());
        try { fail(argc); } catch (const std::runtime_error &error) { printf("caught %s\n", error.what()); }
        try { shapes[0]->scale(-1); } catch (int code) { printf("caught %d\n", code); }
        printf("%d %d %d\n", twice<int>(4), twice_elsewhere(5), ++counter + count());
        return 3;
    }"#,
    r#"#include <cstdio>
    #include <stdexcept>
    #include "shared.h"
    static Logger logger("shapes");
    struct Square : Shape { double side; Square(double s) : side(s) {} double area() override { return side * side; }
        const char *name() override { return "square"; } };
    struct Circle : Shape { double r; Circle(double r) : r(r) {} double area() override { return 3 * r * r; }
        const char *name() override { return "circle"; } };
    void Shape::scale(int by) { if (by < 0) throw by; }
    Shape *make_square(double side) { return new Square(side); }
    Shape *make_circle(double r) { return new Circle(r); }
    int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
    thread_local int counter = 10;
    int count() { return ++counter; }"#,
    r#"#include <cstdio>
    #include <stdexcept>
    #include "shared.h"
    static Logger logger("rest");
    int (*comparer())(const void *, const void *) { return compare; }
    void fail(int n) { if (n) throw std::runtime_error("failed"); }
    int twice_elsewhere(int n) { return twice<int>(n); }"#,
];

const SHARED: &str = r#"#include <cstdio>
    struct Logger { const char *name; Logger(const char *n) : name(n) { printf("begin %s\n", n); } ~Logger() { printf("end %s\n", name); } };
    struct Shape { virtual double area() = 0; virtual const char *name() = 0; virtual void scale(int by); virtual ~Shape() {} };
    Shape *make_square(double); Shape *make_circle(double); int compare(const void *, const void *);
    int (*comparer())(const void *, const void *); void fail(int); int broken(int);
    template <class T> __attribute__((noinline)) T twice(T n) { static T calls; return n * 2 + ++calls; }
    int twice_elsewhere(int); extern thread_local int counter; int count();"#;

#[test]
fn lazy_07_a_program_in_cpp_runs_as_it_does_linked_by_the_system() {
    for options in [&[][..], &["-fPIC"], &["-fPIC", "-fno-plt"]] {
        for compiler in CXX {
            let directory = directory(&format!("program-{}", [compiler, options].concat().concat()));
            std::fs::write(directory.join("shared.h"), SHARED).unwrap();
            let compiler = [compiler, options].concat();
            let files = PROGRAM.iter().zip(["main.cpp", "shapes.cpp", "rest.cpp"]);
            let mut objects: Vec<_> = files.map(|(text, file)| compile(&directory, &compiler, file, text)).collect();
            let broken = compile(
                &directory,
                &compiler,
                "broken.cpp",
                "int missing(int); int broken(int n) { return missing(n); }",
            );
            let stub = compile(&directory, &compiler, "whole.cpp", "int broken(int n) { return n; }");
            objects.push(stub);
            let names: Vec<_> = objects.iter().map(String::as_str).collect();
            same_as_native(&directory, &names, &[], &["a"]);
            let runtime = runtime();
            let runtime: Vec<&str> = runtime.iter().map(String::as_str).collect();
            let eager = told(&orcane(&directory, &[&["run"], &names[..], &runtime, &["--", "a"]].concat()));
            // In place of the whole one: what it lacks is not missed as long as nobody calls it.
            let lazy = [&["run", "--lazy"], &names[..3], &[&broken], &runtime, &["--", "a"]].concat();
            assert_eq!(told(&orcane(&directory, &lazy)), eager, "{compiler:?}");
            let calls = [
                &["run", "--lazy"],
                &names[..3],
                &[&broken],
                &runtime,
                &["--", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
            ];
            let (_, error, status) = told(&orcane(&directory, &calls.concat()));
            assert!(error.contains("broken") && error.contains("missing") && status.is_none(), "{error} {status:?}");
        }
    }
}
