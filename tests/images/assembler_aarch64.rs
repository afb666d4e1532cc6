//! Programs of two files for AArch64's assembler, which use each other by every form of reference.

use crate::choices::Choices;

/// Bytes of a data object.
const DATA: usize = 64;

/// A random program: two files that the assembler reads, LLVM's or GNU's, which has no words for stubs and entries.
pub(crate) fn program(bytes: &[u8], is_llvm: bool) -> [(&'static str, String); 2] {
    let mut choices = Choices::new(bytes);
    let choices = &mut choices;
    let mut files = [String::new(), String::new()];
    let data = 2 + choices.below(5);
    for index in 0..data {
        let section = choices.of(&[".data,\"aw\"", ".rodata,\"a\"", ".data.own,\"aw\"", ".rodata.own,\"a\""]);
        files[choices.below(2)] += &format!(
            "    .section {section}\n    .balign 16\n    .globl data{index}\ndata{index}:\n    .fill {}, 8, {index}\n",
            DATA / 8
        );
    }
    let functions = 2 + choices.below(7);
    for index in 0..functions {
        let file = choices.below(2);
        let section = choices.of(&[".text,\"ax\"", ".text.cold,\"ax\"", ".text.own,\"ax\""]);
        let name = if index == 0 { "main".to_owned() } else { format!("f{index}") };
        // What `adr` and loads with a label reach is in the same file.
        let mut text = format!("    .section {section}\n    .globl {name}\n{name}:\n");
        let mut tables = String::from("    .section .data.rel,\"aw\"\n    .balign 8\n");
        for _ in 0..1 + choices.below(8) {
            let callee = format!("f{}", 1 + choices.below(functions - 1));
            let place = (choices.below(data + 2), 16 * choices.below(DATA / 16));
            let place = (&*named(place.0, data), place.1);
            match choices.below(6) {
                0 | 1 => rare_reference(choices, &name, place, &mut text, &mut tables),
                2 if is_llvm => tables += &llvms_word(choices, &callee, place.0),
                _ => reference(choices, &callee, place, &mut text, &mut tables),
            }
        }
        files[file] += &format!("{text}    ret\n{tables}");
    }
    for (number, file) in files.iter_mut().enumerate() {
        // Both have it: the first one's is used.
        *file += &format!(
            "    .comm common, {DATA}, 16\n    .weak missing\n    .section .data.weak,\"aw\"\n    .balign 16\n    .weak shared\n\
             shared:\n    .fill {}, 8, {number}\n",
            DATA / 8
        );
    }
    files[1] += "    .globl small\n    small = 77\n";
    let [first, second] = files;
    [("first.s", first), ("second.s", second)]
}

fn named(index: usize, data: usize) -> String {
    match index {
        index if index == data => "common".to_owned(),
        index if index > data => "shared".to_owned(),
        // `d0` is a register.
        index => format!("data{index}"),
    }
}

/// One use of a function or of a place in data, which may need words in memory.
fn reference(
    choices: &mut Choices<'_>,
    callee: &str,
    (name, offset): (&str, usize),
    text: &mut String,
    tables: &mut String,
) {
    let page = format!("    adrp x1, {name}+{offset}\n");
    let used = match choices.below(24) {
        0 => format!("    bl {callee}\n"),
        1 => format!("    b {callee}\n"),
        2 => format!("    cbz x0, {callee}\n"),
        3 => format!("    b.ne {callee}\n"),
        4 => format!("    tbnz x0, #3, {callee}\n"),
        5 => format!("    adrp x1, :got:{callee}\n    ldr x1, [x1, :got_lo12:{callee}]\n    blr x1\n"),
        6 => format!("    adrp x1, :got:{name}\n    ldr x1, [x1, :got_lo12:{name}]\n"),
        7 => "    adrp x1, :got:missing\n    ldr x1, [x1, :got_lo12:missing]\n".to_owned(),
        8 => format!("    adrp x1, {callee}\n    add x1, x1, :lo12:{callee}\n    blr x1\n"),
        9 => format!("{page}    add x1, x1, :lo12:{name}+{offset}\n"),
        10 => format!("{page}    ldrb w0, [x1, :lo12:{name}+{offset}]\n"),
        11 => format!("{page}    strh w0, [x1, :lo12:{name}+{offset}]\n"),
        12 => format!("{page}    ldr w0, [x1, :lo12:{name}+{offset}]\n"),
        13 => format!("{page}    ldr x0, [x1, :lo12:{name}+{offset}]\n"),
        14 => format!("{page}    ldr q0, [x1, :lo12:{name}+{offset}]\n"),
        15 | 16 => format!(
            "    movz x1, #:abs_g3:{name}+{offset}\n    movk x1, #:abs_g2_nc:{name}+{offset}\n    \
             movk x1, #:abs_g1_nc:{name}+{offset}\n    movk x1, #:abs_g0_nc:{name}+{offset}\n"
        ),
        17 => format!("    adr x1, {callee}\n    blr x1\n"),
        18 => format!("    ldr x1, {name}+{offset}\n"),
        19 => format!("    adr x1, {name}+{offset}\n"),
        other => {
            *tables += &match other {
                20 => format!("    .quad {name}+{offset}\n"),
                21 => format!("    .word {name}+{offset}\n    .word 0\n"),
                22 => format!("    .quad {callee} - .\n"),
                _ => format!("    .word {name}+{offset} - .\n    .word 0\n"),
            };
            String::new()
        }
    };
    *text += &used;
}

/// A use as compilers have none, or only for another code model: parts of distances, numbers, entries reached without their
/// page or counted from the table's.
fn rare_reference(
    choices: &mut Choices<'_>,
    function: &str,
    (name, offset): (&str, usize),
    text: &mut String,
    tables: &mut String,
) {
    let used = match choices.below(14) {
        0 => "    movz x1, #:abs_g0:small\n".to_owned(),
        1 => "    movz x1, #:abs_g0_s:small\n".to_owned(),
        2 => format!("    movz x1, #:abs_g1:{name}+{offset}\n    movk x1, #:abs_g0_nc:{name}+{offset}\n"),
        3 => format!("    movz x1, #:abs_g2:{name}+{offset}\n    movk x1, #:abs_g1_nc:{name}+{offset}\n"),
        4 => format!("    movz x1, #:abs_g1_s:{name}+{offset}\n"),
        5 => format!("    movz x1, #:abs_g2_s:{name}+{offset}\n"),
        6 => format!(
            "    movz x1, #:prel_g3:{name}+{offset}\n    movk x1, #:prel_g2_nc:{name}+{offset}\n    \
             movk x1, #:prel_g1_nc:{name}+{offset}\n    movk x1, #:prel_g0_nc:{name}+{offset}\n"
        ),
        7 => format!("    movz x1, #:prel_g2:{name}+{offset}\n"),
        8 => format!("    movz x1, #:prel_g1:{name}+{offset}\n"),
        9 => format!("    movz x1, #:prel_g0:{function}\n"),
        10 => format!("    adrp x1, :pg_hi21_nc:{name}+{offset}\n"),
        11 => format!("    ldr x1, :got:{name}\n"),
        12 => format!("    adrp x1, _GLOBAL_OFFSET_TABLE_\n    ldr x1, [x1, :gotpage_lo15:{name}]\n"),
        _ => {
            *tables += &format!("    .hword small, {name} - ., 0, 0\n");
            String::new()
        }
    };
    *text += &used;
}

/// A word that leads to a stub or to an entry.
fn llvms_word(choices: &mut Choices<'_>, callee: &str, name: &str) -> String {
    match choices.below(2) {
        0 => format!("    .word {callee}@plt - .\n    .word 0\n"),
        _ => format!("    .word {name}@gotpcrel\n    .word 0\n"),
    }
}
