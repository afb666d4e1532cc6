//! Mach-O objects that nobody wrote on purpose.

#![cfg(target_os = "linux")]

#[path = "elf/compiler.rs"]
mod compiler;
mod mutants;

use compiler::build;
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

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for target in ["x86_64-apple-macos11", "arm64-apple-macos11"] {
        for options in [&["-O2", "-femit-dwarf-unwind=always"][..], &["-O0", "-g", "-funwind-tables"]] {
            let command = [&["clang-22", "-w", "-target", target, "-ffreestanding", "-c"][..], options].concat();
            seeds.push(build(&command, "c", PROGRAM));
        }
        seeds.push(build(&["clang-22", "-target", target, "-c"], "s", DIFFERENCES));
    }
    seeds
}

/// Changes fields of headers, load commands, sections, symbols and relocations, and bytes anywhere.
fn mutate(object: &mut Vec<u8>, random: &mut Random) {
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
    if random.below(16) == 0 {
        object.truncate(random.below(length));
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
