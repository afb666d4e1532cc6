//! LLVM's subjects, as `benches` starts them: `llvm-peer child SUBJECT LEVEL COUNT`, `llvm-peer table COUNT`,
//! `llvm-peer child-link OBJECT ROUNDS`, and `llvm-peer quality PROGRAM GENERATOR`; and as `lazy` does:
//! `llvm-peer program SHAPE COUNT`, `llvm-peer calls COUNT`.

mod chain;
mod lazy;
mod quality;
mod table;

use workloads::Result;
use workloads::child::{is_child, report};
use workloads::link;
use workloads::quality::QUALITY;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [mode, "llvm-nothing", _, _] if is_child(mode) => {
            println!("{}", report(mode, || Ok(chain::nothing()))?);
        }
        // The level is in the subject's name.
        [mode, subject, _, count] if is_child(mode) => {
            let (subject, count) = (subject.parse::<workloads::llvm::LlvmSubject>()?, count.parse()?);
            println!("{}", report(mode, || chain::run(subject, count))?);
        }
        _ if link::is_link(&arguments) => {
            let link = |object: &Vec<u8>| Ok(llvm_tests::link::link(object, link::external())?);
            println!("{}", workloads::link::run(&arguments, |bytes| bytes, link)?);
        }
        [QUALITY, program, generator] => println!("{}", quality::run(program, generator)?),
        [lazy::PROGRAM, shape, count] => println!("{}", lazy::program(shape, count.parse()?)?),
        [lazy::CALLS, count] => println!("{}", lazy::calls(count.parse()?)?),
        ["table", count] => {
            let [mut table, mut other] = [table::Llvm::new()?, table::Llvm::new()?];
            println!("{}", workloads::table::measure(&mut table, &mut other, count.parse()?)?);
        }
        _ => return Err("expected arguments as src/llvm/main.rs says".into()),
    }
    Ok(())
}
