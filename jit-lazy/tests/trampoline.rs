//! What is in memory before and after a first call.

#![cfg(target_arch = "x86_64")]

mod common;

use common::{call, constant, jit, redefine};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};

/// The first `count` instructions at an address.
fn disassemble(address: u64, count: usize) -> Vec<Instruction> {
    // SAFETY: stubs and trampolines are at least that long and followed by their block's data.
    let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, 16) };
    Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).into_iter().take(count).collect()
}

fn word(address: u64) -> u64 {
    // SAFETY: a slot, which nobody writes now.
    unsafe { *(address as *const u64) }
}

#[test]
fn a_slot_leads_to_its_trampoline_before_the_first_call_and_to_the_body_after() {
    let jit = jit();
    redefine(&jit, &format!("{}{}", constant("f", 1), constant("g", 2))).unwrap();
    let mut routines = Vec::new();
    let mut indices = Vec::new();
    for name in ["f", "g"] {
        let stub = disassemble(jit.lookup_address(name).unwrap(), 2);
        assert_eq!([stub[0].code(), stub[1].code()], [Code::Endbr64, Code::Jmp_rm64]);
        let slot = stub[1].ip_rel_memory_address();

        let trampoline = disassemble(word(slot), 3);
        let codes: Vec<_> = trampoline.iter().map(Instruction::code).collect();
        assert_eq!(codes, [Code::Endbr64, Code::Pushq_imm32, Code::Jmp_rel32_64]);
        let tail = disassemble(trampoline[2].near_branch_target(), 1)[0];
        assert_eq!((tail.code(), tail.memory_base()), (Code::Jmp_rm64, Register::RIP));
        indices.push(trampoline[1].immediate32to64());
        routines.push(word(tail.ip_rel_memory_address()));

        call(&jit, name);
        let body = jit.lookup::<common::Nullary>(name).unwrap();
        assert_eq!(word(slot), body.address());
    }
    assert_eq!(routines[0], routines[1]);
    assert_ne!(indices[0], indices[1]);
}
