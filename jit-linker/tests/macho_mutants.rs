//! Mach-O objects that nobody wrote on purpose.

#![cfg(target_os = "linux")]

#[path = "elf/compiler.rs"]
mod compiler;
mod mutants;

use std::process::Command;

use compiler::{build, run};
use mutants::Random;

const PROGRAM: &str = r#"
extern int outside(int), shared; extern void maybe(void) __attribute__((weak_import));
__thread int own_tls = 7; static __thread char local_tls[9];
int common[4]; const char *const names[] = {"one", "two", "three"};
__attribute__((section("__DATA,set"), used)) static int member = 3;
extern int start[] __asm("section$start$__DATA$set"), stop[] __asm("section$end$__DATA$set");
__attribute__((constructor)) static void early(void) { common[0] = 1; }
__attribute__((weak)) double weak(double n) { return n * 2.75; }
int entry(int n) {
    switch (n) {
    case 0: return own_tls; case 1: return local_tls[3]++; case 3: return outside(shared);
    case 4: return names[common[1]][0]; case 5: return stop - start; case 6: return (int)weak(n);
    default: if (maybe) maybe(); return member;
    }
}
"#;

const DIFFERENCES: &str = ".text\n_a: .long _b - _a\n.quad _c - _b\n.quad _b + 4\n.data\n_b: .quad 1\n.quad _b - _a
    .section __TEXT,__const\n_c: .quad _a - _c\n.zerofill __DATA,__bss,_zeros,64,5\n.subsections_via_symbols\n";

const NAMED: &str =
    ".text\n.globl _one, _alias, _chain\n_one: .quad 1\nL_two: .quad 2\n_chain = _alias\n_alias = _outside
    .section __TEXT,__init_offsets\n.long _one\n.long L_two\n.data\n.quad _chain\n.subsections_via_symbols\n";

/// With symbols that stand for others, and with offsets of initializers, a type that assemblers have no name for.
fn named(target: &str) -> Vec<u8> {
    let mut object = build(&["clang-22", "-target", target, "-c"], "s", NAMED);
    let at = object.windows(15).position(|name| name == b"__init_offsets\0").expect("it is there");
    object[at + 64] = 0x16;
    object
}

/// What a command makes of files with such contents, which are its last arguments.
fn combine(command: &[&str], output: &[&str], contents: &[Vec<u8>]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("output");
    let mut combine = Command::new(command[0]);
    combine.args(&command[1..]).args(output).arg(&path);
    for (content, number) in contents.iter().zip(0..) {
        let input = folder.path().join(format!("{number}.o"));
        std::fs::write(&input, content).expect("it can be written");
        combine.arg(input);
    }
    run(&mut combine);
    std::fs::read(path).expect("the command wrote it")
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let named = ["x86_64-apple-macos11", "arm64-apple-macos11"].map(named);
    for width in [&[][..], &["-fat64"]] {
        seeds.push(combine(&[&["llvm-lipo-22", "-create"], width].concat(), &["-output"], &named));
    }
    let [with_index, without] = ["rcs", "rcS"].map(|operation| combine(&["llvm-ar-22", operation], &[], &named[..1]));
    let other = combine(&["llvm-ar-22", "rcs"], &[], &named[1..]);
    seeds.push(combine(&["llvm-lipo-22", "-create"], &["-output"], &[with_index.clone(), other]));
    seeds.extend([with_index, without]);
    seeds.extend(named);
    for target in ["x86_64-apple-macos11", "arm64-apple-macos11"] {
        for options in [&["-O2", "-femit-dwarf-unwind=always"][..], &["-O0", "-g", "-funwind-tables"]] {
            let command = [&["clang-22", "-w", "-target", target, "-ffreestanding", "-c"][..], options].concat();
            seeds.push(build(&command, "c", PROGRAM));
        }
        seeds.push(build(&["clang-22", "-target", target, "-c"], "s", DIFFERENCES));
    }
    seeds
}

/// Changes an object, or where a universal file or an archive says that its objects are.
fn mutate(file: &mut Vec<u8>, random: &mut Random) {
    let length = file.len();
    const OBJECT: [u8; 4] = 0xfeed_facf_u32.to_le_bytes();
    let starts: Vec<_> = file.windows(4).enumerate().filter(|(_, word)| *word == OBJECT).map(|(at, _)| at).collect();
    let start = starts[random.below(starts.len())];
    if start > 0 && random.below(2) == 0 {
        let at = match random.below(3) {
            0 => 4 * random.below(16),
            1 => random.below(starts[0]),
            _ => random.below(length),
        };
        let value = random.interesting(length) as u32;
        let word = if random.below(2) == 0 { value.to_be_bytes() } else { value.to_le_bytes() };
        let end = (at + 1 + random.below(4)).min(length);
        file[at..end].copy_from_slice(&word[4 - (end - at)..]);
    } else {
        mutate_object(&mut file[start..], random);
    }
    if random.below(16) == 0 {
        file.truncate(random.below(length));
    }
}

/// Changes fields of headers, load commands, sections, symbols and relocations, and bytes anywhere.
fn mutate_object(object: &mut [u8], random: &mut Random) {
    let length = object.len();
    let word = |object: &[u8], at: usize| {
        object.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes)) as usize
    };
    // The header is followed by the one segment and its sections; the symbol table's command is behind.
    const SECTIONS: usize = 32 + 72;
    let sections = word(object, 32 + 64).min(255);
    let commands = word(object, 20);
    let symtab =
        (32..(32 + commands).min(length)).step_by(4).find(|at| word(object, *at) == 2 && word(object, at + 4) == 24);
    for _ in 0..=random.below(4) {
        let value = random.interesting(length);
        let section = SECTIONS + 80 * random.below(sections);
        let (at, size) = match random.below(6) {
            // The header, or a command.
            0 => (4 * random.below(8 + 18), 4),
            1 | 2 => {
                let fields = [(0, 8), (16, 8), (32, 8), (40, 8), (48, 4), (52, 4), (56, 4), (60, 4), (64, 4), (68, 4)];
                let (field, size) = fields[random.below(fields.len())];
                (section + field, size)
            }
            3 => {
                let (start, count) = (word(object, section + 56), word(object, section + 60));
                let (field, size) = [(0, 4), (4, 3), (7, 1), (4, 4)][random.below(4)];
                (start.wrapping_add(8 * random.below(count)).wrapping_add(field), size)
            }
            4 => {
                let (start, count) = symtab.map_or((0, 0), |at| (word(object, at + 8), word(object, at + 12)));
                let (field, size) = [(0, 4), (4, 1), (5, 1), (6, 2), (8, 8), (8, 4)][random.below(6)];
                (start.wrapping_add(16 * random.below(count)).wrapping_add(field), size)
            }
            _ => (random.below(length), 1),
        };
        if let Some(field) = at.checked_add(size).and_then(|end| object.get_mut(at..end)) {
            field.copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }
}

#[test]
fn an_object_that_ends_early_is_an_error_or_a_program() {
    mutants::truncate(&seeds());
}

#[test]
fn a_mutant_is_an_error_or_a_program() {
    mutants::link_mutants(&seeds(), mutate);
}
