//! A host of plugins that are object files: `plugin_host FILE.o...`
//!
//! A plugin exports `plugin(n)`, and may call the host's `tell(n)`. Each is in a dylib of its own,
//! so that all can use the same names. From C:
//!
//! ```c
//! void tell(long); long plugin(long n) { tell(n); return n * 2; }
//! ```

use std::path::Path;

use orcane::linker::graph::ObjectBytes;
use orcane::{DylibLookup, Jit, JitDylib, Program};

extern "C" fn tell(number: i64) {
    println!("  a plugin tells {number}");
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
type Plugin = unsafe extern "C" fn(i64) -> i64;

fn load(jit: &Jit, program: &Program, path: &Path) -> Result<JitDylib> {
    let name = path.display().to_string();
    let object = ObjectBytes::from(std::fs::read(path)?);
    let dylib = jit.session().create_dylib(&name)?;
    // It sees itself, then what the host has in `main`, then what `main` sees: the process.
    for (other, visibility) in [("main", DylibLookup::Exported), ("process", DylibLookup::Exported)] {
        if let Some(other) = jit.session().dylib(other) {
            dylib.add_to_link_order(&other, visibility)?;
        }
    }
    program.add_object(&dylib, &name, object)?;
    Ok(dylib)
}

/// Links the plugin, runs its initializers, and calls it.
fn call(jit: &Jit, program: &Program, dylib: &JitDylib) -> Result<i64> {
    program.lookup(dylib, "plugin")?;
    let plugin = jit.lookup_in::<Plugin>(dylib, "plugin")?;
    // SAFETY: plugins are trusted to define the function as the host's documentation says.
    Ok(unsafe { plugin.call(20) })
}

fn main() -> Result<()> {
    if std::env::args().len() < 2 {
        return Err("usage: plugin_host FILE.o...".into());
    }
    let jit = Jit::new()?;
    jit.define_function("tell", tell as extern "C" fn(i64))?;
    let program = Program::new(jit.session().clone());
    for path in std::env::args().skip(1) {
        let name = Path::new(&path).file_name().unwrap_or_default().display();
        let dylib = match load(&jit, &program, Path::new(&path)) {
            Ok(dylib) => dylib,
            Err(_) => {
                println!("{name} is no plugin");
                continue;
            }
        };
        match call(&jit, &program, &dylib) {
            Ok(result) => println!("{name} gives {result}"),
            Err(error) => println!("{name} can't be used: {error}"),
        }
        // Unloads it: its finalizers run, its names are free, and its memory goes back.
        program.finalize(&dylib)?;
        dylib.remove()?;
    }
    Ok(())
}
