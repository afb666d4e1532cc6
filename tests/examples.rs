//! Every program in `examples/` says what it should.

use std::path::{Path, PathBuf};
use std::process::Command;

use cranelift_codegen::ir::{AbiParam, InstBuilder, types};
use cranelift_codegen::{isa, settings, settings::Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{Linkage, Module};
use cranelift_object::{ObjectBuilder, ObjectModule};

/// Cargo builds examples before it runs tests, beside them.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(path.exists(), "{}: `cargo build --examples` makes it", path.display());
    path
}

/// What an example prints. Where programs of the target need an emulator, Cargo's own setting names it.
fn output(name: &str, arguments: &[&Path]) -> String {
    let runner = std::env::var("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER").unwrap_or_default();
    let runner = if cfg!(target_arch = "aarch64") { runner } else { String::new() };
    let mut words: Vec<_> = runner.split_whitespace().map(PathBuf::from).collect();
    words.push(example(name));
    let output = Command::new(&words[0]).args(&words[1..]).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{name}: {}: {}", output.status, text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "{name}");
    text(&output.stdout)
}

#[test]
fn minimal() {
    assert_eq!(output("minimal", &[]), "20 + 22 = 42\n");
}

#[test]
fn custom_ast() {
    let expected = "compiling polynomial\ncompiling square\npolynomial(9) = 82\ncompiling unused\n\
                    error: symbol 'unused' in dylib 'main': depends on 'nobody' in dylib 'main': not found\n";
    assert_eq!(output("custom_ast", &[]), expected);
}

#[test]
fn hot_reload() {
    assert_eq!(output("hot_reload", &[]), "the loop sees 1\nthe loop sees 2\nthe loop sees 3\n");
}

#[test]
fn parallel_batch() {
    let expected = "25 % are ready\n50 % are ready\n75 % are ready\n100 % are ready\n\
                    1000 functions were compiled; the sum is 1000000\n";
    assert_eq!(output("parallel_batch", &[]), expected);
}

#[test]
fn expression_server() {
    let answers = "x*x + 1 at 0, 3, 0.5  ->  1 10 1.25\n(x + 1) * (x - 1) / 2 at 9  ->  40\n\
                   2 * at 1  ->  error: no number at ''\n(x at 1  ->  error: no ')' before ''\n";
    assert_eq!(output("expression_server", &[]), format!("{answers}{answers}code in memory: 0 bytes\n"));
}

/// An object with `plugin(n)`, which tells the host of `n` and gives `n * factor`.
fn plugin(path: &Path, tell: &str, factor: i64) {
    let mut flags = settings::builder();
    flags.set("is_pic", "true").unwrap();
    let isa = isa::lookup_by_name(&format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .unwrap()
        .finish(settings::Flags::new(flags))
        .unwrap();
    let builder = ObjectBuilder::new(isa, "plugin", cranelift_module::default_libcall_names()).unwrap();
    let mut module = ObjectModule::new(builder);
    let mut context = module.make_context();
    context.func.signature.params.push(AbiParam::new(types::I64));
    let tell = module.declare_function(tell, Linkage::Import, &context.func.signature).unwrap();
    context.func.signature.returns.push(AbiParam::new(types::I64));
    let id = module.declare_function("plugin", Linkage::Export, &context.func.signature).unwrap();
    let mut frontend = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
    let block = builder.create_block();
    builder.append_block_params_for_function_params(block);
    builder.switch_to_block(block);
    builder.seal_block(block);
    let number = builder.block_params(block)[0];
    let tell = module.declare_func_in_func(tell, builder.func);
    builder.ins().call(tell, &[number]);
    let factor = builder.ins().iconst(types::I64, factor);
    let product = builder.ins().imul(number, factor);
    builder.ins().return_(&[product]);
    builder.finalize(module.target_config());
    module.define_function(id, &mut context).unwrap();
    std::fs::write(path, module.finish().emit().unwrap()).unwrap();
}

#[test]
fn plugin_host() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins");
    std::fs::create_dir_all(&directory).unwrap();
    let [double, triple, broken, wrong] =
        ["double.o", "triple.o", "broken.o", "wrong.o"].map(|name| directory.join(name));
    plugin(&double, "tell", 2);
    plugin(&triple, "tell", 3);
    plugin(&wrong, "nobody", 3);
    std::fs::write(&broken, "nonsense").unwrap();
    let expected = format!(
        "  a plugin tells 20\ndouble.o gives 40\nbroken.o is no plugin\n\
         wrong.o can't be used: symbol 'plugin' in dylib '{0}': depends on 'nobody' in dylib '{0}': not found\n  \
         a plugin tells 20\ntriple.o gives 60\n",
        wrong.display()
    );
    assert_eq!(output("plugin_host", &[&double, &broken, &wrong, &triple]), expected);
}
