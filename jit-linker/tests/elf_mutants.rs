//! ELF objects that nobody wrote on purpose.

#![cfg(target_os = "linux")]

#[path = "elf/compiler.rs"]
mod compiler;
mod mutants;

use compiler::build;
use mutants::Random;

const PROGRAM: &str = r#"
extern int outside(int), shared; extern void maybe(void) __attribute__((weak));
__thread int own_tls = 7; static __thread char local_tls[9]; extern __thread int their_tls;
int common[4]; const char *const names[] = {"one", "two", "three"};
__attribute__((section("set"), used)) static int member = 3; extern int __start_set[], __stop_set[];
__attribute__((constructor(200))) static void early(void) { common[0] = 1; }
__attribute__((destructor)) static void late(void) { common[0] = 2; }
static int (*choose(void))(int) { return outside; }
int chosen(int) __attribute__((ifunc("choose")));
__attribute__((section(".text.group,\"axG\",%progbits,group,comdat#"), weak)) int grouped(int n) { return n * 2; }
int entry(int n) {
    switch (n) {
    case 0: return own_tls; case 1: return local_tls[3]++; case 2: return their_tls; case 3: return outside(shared);
    case 4: return names[common[1]][0]; case 5: return __stop_set - __start_set; case 6: return chosen(grouped(n));
    default: if (maybe) maybe(); return member;
    }
}
"#;

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for target in ["x86_64-linux-gnu", "aarch64-linux-gnu"] {
        for options in [&["-O2", "-fPIC", "-ffunction-sections"], &["-O0", "-fno-pic", "-g"]] {
            let command = [&["clang-22", "-w", "-target", target, "-c"][..], options].concat();
            seeds.push(build(&command, "c", PROGRAM));
        }
    }
    seeds
}

/// Changes fields of headers, symbols, relocations, groups and unwinding records, and bytes anywhere.
fn mutate(object: &mut Vec<u8>, random: &mut Random) {
    let length = object.len();
    let word = |object: &[u8], at: usize| {
        object.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes) as usize
    };
    let headers = word(object, 0x28);
    let count = object.get(0x3c..0x3e).map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
    for _ in 0..=random.below(4) {
        let value = random.interesting(length);
        let header = headers.wrapping_add(64 * random.below(count));
        let (at, size) = match random.below(6) {
            // A field of the file's header.
            0 => [(0x10, 2), (0x12, 2), (0x28, 8), (0x3a, 2), (0x3c, 2), (0x3e, 2)][random.below(6)],
            // A field of a section's header.
            1 | 2 => {
                let fields = [(0, 4), (4, 4), (8, 8), (24, 8), (32, 8), (40, 4), (44, 4), (48, 8), (56, 8)];
                let (field, size) = fields[random.below(fields.len())];
                (header.wrapping_add(field), size)
            }
            // A part of a table's entry.
            3 | 4 => {
                let start = word(object, header.wrapping_add(24));
                let entries = word(object, header.wrapping_add(32)) / 24;
                let fields = [(0, 4), (4, 1), (5, 1), (6, 2), (8, 8), (8, 4), (12, 4), (16, 8)];
                let (field, size) = fields[random.below(fields.len())];
                (start.wrapping_add(24 * random.below(entries)).wrapping_add(field), size)
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
