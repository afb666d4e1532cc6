//! Code that reaches thread-local variables, by every model and both dialects of two compilers, for both architectures.
//!
//! What lld rewrites in a program, it links into a library here, where it leaves the models as they are, and so do we
//! everywhere; code for the local-executable model is in a program. What is not compared with lld:
//!
//! - AArch64's general-dynamic model in the traditional dialect, its local-dynamic model, entries reached without their
//!   page, and offsets whose range is checked: lld knows none of their relocations. Our image alone is decoded.
//! - `R_X86_64_DTPMOD64`, which is in no object.
//! - Variables of other objects: `orcane link` gives each object the storage that it has as a program of its own. Those
//!   run, in the tests of whole programs.

use object::elf::*;
use object::{Object, ObjectSection, RelocationFlags};

use crate::choices::Choices;
use crate::decode;
use crate::image::{Image, Linked};
use crate::toolchain::{compile, directory};
use crate::{Kinds, add, count_and_seed, covers, decisions, same_targets_as};

/// C that reaches random variables in random ways.
fn source(bytes: &[u8]) -> String {
    let mut choices = Choices::new(bytes);
    let choices = &mut choices;
    let types = ["char", "short", "int", "long", "double"];
    let mut variables = Vec::new();
    let mut text = String::from("static int order[4] = {3, 1, 2, 0};\n");
    for index in 0..2 + choices.below(6) {
        let of = *choices.of(&types);
        let linkage = *choices.of(&["static ", "", "__attribute__((visibility(\"hidden\"))) "]);
        let align = *choices.of(&["", "", "_Alignas(64) "]);
        let count = 1 + choices.below(9);
        let value = *choices.of(&["", " = {1}", " = {7, 3}"]);
        let value = if count == 1 && value.len() > 6 { " = {5}" } else { value };
        text += &format!("{linkage}_Thread_local {align}{of} v{index}[{count}]{value};\n");
        variables.push(count);
    }
    text += "_Thread_local int *points = &order[1];\n";
    for function in 0..1 + choices.below(4) {
        text += &format!("long f{function}(int i) {{\n    long sum = *points;\n");
        for _ in 0..1 + choices.below(6) {
            let variable = choices.below(variables.len());
            let place = choices.below(variables[variable]);
            text += &match choices.below(4) {
                0 => format!("    sum += (long)v{variable}[{place}];\n"),
                1 => format!("    v{variable}[{place}]++;\n"),
                2 => format!("    sum += (long)v{variable}[i];\n"),
                _ => format!("    sum ^= (long)&v{variable}[{place}];\n"),
            };
        }
        text += "    return sum;\n}\n";
    }
    text + "int main(void) { return (int)f0(0); }\n"
}

/// Compares what compilers make of random C by each model, for a quarter of the objects, and of assembler's files.
fn compilers(
    test: &str,
    commands: &[&[&str]],
    (hand, assembler): (&[&str], &[(Option<Linked>, &str)]),
    expected: &[u32],
) {
    let (count, seed) = count_and_seed();
    let directory = directory(test);
    let mut kinds = Kinds::new();
    for (number, bytes) in decisions(count.div_ceil(4), seed).enumerate() {
        let command = commands[number % commands.len()];
        let level = ["-O1", "-O0", "-O2"][number / commands.len() % 3];
        for (model, linked) in [
            ("local-exec", Linked::Program),
            ("initial-exec", Linked::Library),
            ("local-dynamic", Linked::Library),
            ("global-dynamic", Linked::Library),
        ] {
            let is_unknown = model.ends_with("dynamic") && command.contains(&"-mtls-dialect=trad");
            let linked = (!is_unknown).then_some(linked);
            let model = format!("-ftls-model={model}");
            let object = compile(&directory, &[command, &[level, &model]].concat(), "random.c", &source(&bytes));
            add(&mut kinds, same_targets_as(linked, &directory, &[&object]));
        }
    }
    for (linked, text) in assembler {
        let object = compile(&directory, hand, "hand.s", text);
        add(&mut kinds, same_targets_as(*linked, &directory, &[&object]));
    }
    println!("fixups by kind: {kinds:?}");
    covers(&kinds, expected);
}

#[test]
fn thread_local_variables_of_x86_64() {
    compilers(
        "thread-local",
        &[
            &["gcc", "-fPIC", "-mtls-dialect=gnu"],
            &["clang-22", "--target=x86_64-linux-gnu", "-fPIC", "-mtls-dialect=gnu2"],
            &["gcc", "-fPIC", "-mtls-dialect=gnu2", "-fdata-sections"],
            &["clang-22", "--target=x86_64-linux-gnu", "-fPIC", "-mtls-dialect=gnu", "-fno-plt"],
        ],
        (
            &["clang-22", "--target=x86_64-linux-gnu"],
            &[(Some(Linked::Program), OFFSETS), (Some(Linked::Library), FAR_REGISTERS)],
        ),
        &[
            R_X86_64_TPOFF32,
            R_X86_64_TPOFF64,
            R_X86_64_GOTTPOFF,
            R_X86_64_CODE_4_GOTTPOFF,
            R_X86_64_CODE_6_GOTTPOFF,
            R_X86_64_TLSLD,
            R_X86_64_DTPOFF32,
            R_X86_64_DTPOFF64,
            R_X86_64_TLSGD,
            R_X86_64_GOTPC32_TLSDESC,
            R_X86_64_CODE_4_GOTPC32_TLSDESC,
            R_X86_64_TLSDESC_CALL,
        ],
    );
}

#[test]
fn thread_local_variables_of_aarch64() {
    compilers(
        "thread-local-aarch64",
        &[
            &["aarch64-linux-gnu-gcc", "-fPIC", "-mtls-dialect=trad"],
            &["clang-22", "--target=aarch64-linux-gnu", "-fPIC"],
            &["aarch64-linux-gnu-gcc", "-fPIC", "-mtls-dialect=desc", "-mtls-size=32"],
        ],
        (&["aarch64-linux-gnu-gcc"], &[(Some(Linked::Program), LOADS), (None, UNKNOWN_TO_LLD)]),
        &[
            R_AARCH64_TLSLE_ADD_TPREL_HI12,
            R_AARCH64_TLSLE_ADD_TPREL_LO12_NC,
            R_AARCH64_TLSLE_LDST8_TPREL_LO12_NC,
            R_AARCH64_TLSLE_LDST16_TPREL_LO12_NC,
            R_AARCH64_TLSLE_LDST32_TPREL_LO12_NC,
            R_AARCH64_TLSLE_LDST64_TPREL_LO12_NC,
            R_AARCH64_TLSLE_MOVW_TPREL_G1,
            R_AARCH64_TLSLE_MOVW_TPREL_G0_NC,
            R_AARCH64_TLSIE_ADR_GOTTPREL_PAGE21,
            R_AARCH64_TLSIE_LD64_GOTTPREL_LO12_NC,
            R_AARCH64_TLSGD_ADR_PAGE21,
            R_AARCH64_TLSGD_ADD_LO12_NC,
            R_AARCH64_TLSGD_ADR_PREL21,
            R_AARCH64_TLSLD_ADR_PAGE21,
            R_AARCH64_TLSLD_ADD_LO12_NC,
            R_AARCH64_TLSLD_ADR_PREL21,
            R_AARCH64_TLSLD_ADD_DTPREL_HI12,
            R_AARCH64_TLSLD_ADD_DTPREL_LO12_NC,
            R_AARCH64_TLSLD_LDST32_DTPREL_LO12_NC,
            R_AARCH64_TLSLD_MOVW_DTPREL_G0,
            R_AARCH64_TLSIE_LD_GOTTPREL_PREL19,
            R_AARCH64_TLSLE_ADD_TPREL_LO12,
            R_AARCH64_TLSLE_LDST32_TPREL_LO12,
            R_AARCH64_TLSDESC_ADR_PAGE21,
            R_AARCH64_TLSDESC_LD64_LO12,
            R_AARCH64_TLSDESC_ADD_LO12,
            R_AARCH64_TLSDESC_CALL,
        ],
    );
}

/// Offsets of 64 bits.
const OFFSETS: &str = "
    .text
    .globl main
main:
    movabsq $value@tpoff, %rax
    ret
    .data
    .quad value@tpoff + 2
    .section .tdata,\"awT\",@progbits
    .quad 0
value:
    .long 3
";

/// Instructions with the registers of APX, whose prefixes are longer, and offsets of 64 bits in a module.
const FAR_REGISTERS: &str = "
    .text
    .globl main
main:
    addq value@gottpoff(%rip), %r16
    movq value@gottpoff(%rip), %r16
    addq value@gottpoff(%rip), %rax, %r17
    leaq value@tlsdesc(%rip), %r16
    call *value@tlscall(%rax)
    ret
    .data
    .quad value@dtpoff
    .section .tdata,\"awT\",@progbits
    .quad 0
value:
    .long 3
";

/// Loads of each size, with the variable's offset in them.
const LOADS: &str = "
    .text
    .globl main
main:
    mrs x1, tpidr_el0
    movz x0, #:tprel_g1:value
    movk x0, #:tprel_g0_nc:value
    add x2, x1, :tprel_hi12:value
    ldrb w3, [x2, :tprel_lo12_nc:value]
    ldrh w3, [x2, :tprel_lo12_nc:value]
    ldr w3, [x2, :tprel_lo12_nc:value]
    ldr x3, [x2, :tprel_lo12_nc:wide]
    ret
    .section .tdata,\"awT\",@progbits
    .balign 16
wide:
    .quad 3, 4
value:
    .word 3
";

/// The local-dynamic model, entries without their page, and offsets whose range is checked.
const UNKNOWN_TO_LLD: &str = "
    .text
    .globl main
main:
    adrp x0, :tlsldm:value
    add x0, x0, :tlsldm_lo12_nc:value
    bl __tls_get_addr
    add x1, x0, :dtprel_hi12:value
    add x1, x1, :dtprel_lo12_nc:value
    ldr w1, [x0, :dtprel_lo12_nc:value]
    movz x1, #:dtprel_g0:value
    adr x0, :tlsldm:value
    bl __tls_get_addr
    adr x0, :tlsgd:value
    bl __tls_get_addr
    ldr x1, :gottprel:value
    mrs x1, tpidr_el0
    add x2, x1, :tprel_lo12:value
    ldr w2, [x1, :tprel_lo12:value]
    ret
    .section .tdata,\"awT\",%progbits
    .quad 7
value:
    .word 3
";

/// The comparison would see an offset or an entry of the GOT that is another variable's.
#[test]
fn a_variable_that_is_elsewhere_is_seen() {
    let directory = directory("thread-local-elsewhere");
    let text = "_Thread_local int a[2] = {1, 2};\nint main(void) { return a[1]++; }\n";
    for (model, linked) in [("local-exec", Linked::Program), ("global-dynamic", Linked::Library)] {
        let model = format!("-ftls-model={model}");
        let file = compile(&directory, &["gcc", "-O1", "-fPIC", &model], "main.c", text);
        let bytes = std::fs::read(directory.join(&file)).unwrap();
        let objects = [object::File::parse(&*bytes).unwrap()];
        let mut ours = Image::ours(&directory, &[&file], &objects);
        let lld = Image::lld(&directory, &[&file], &objects, linked);
        decode::compare(&objects, &[&ours, &lld]).unwrap();
        let text = objects[0].section_by_name(".text").unwrap();
        let is_offset = |relocation: &object::Relocation| {
            matches!(relocation.flags(), RelocationFlags::Elf { r_type: R_X86_64_TPOFF32 })
        };
        match text.relocations().find(|(_, relocation)| is_offset(relocation)) {
            Some((offset, _)) => ours.sections.get_mut(&(0, text.index())).unwrap().1[offset as usize] ^= 4,
            None => ours.variables.values_mut().for_each(|(_, variable)| *variable += 4),
        }
        let error = decode::compare(&objects, &[&ours, &lld]).unwrap_err();
        assert!(error.contains("orcane link leads to"), "{error}");
    }
}
