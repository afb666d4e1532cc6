//! Links LLVM 22, shared, and compiles the shim over the parts of its C++ API that the C API lacks.

use std::process::Command;

const CONFIG: &str = "llvm-config-22";
const MISSING: &str = "LLVM 22 is missing: install llvm-22-dev, as scripts/install-test-tools does";

fn main() {
    println!("cargo::rerun-if-changed=shim");
    let (Some(include), Some(libraries)) = (ask("--includedir"), ask("--libdir")) else {
        println!("cargo::error={MISSING}");
        return;
    };
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .flags(["-fno-exceptions", "-fno-rtti"])
        .flag("-isystem")
        .flag(include)
        .opt_level(2)
        .files(["shim/jit.cpp", "shim/session.cpp", "shim/history.cpp", "shim/link.cpp"])
        .compile("orcane_llvm_shim");
    println!("cargo::rustc-link-search=native={libraries}");
    println!("cargo::rustc-link-lib=dylib=LLVM-22");
}

fn ask(what: &str) -> Option<String> {
    let output = Command::new(CONFIG).arg(what).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
