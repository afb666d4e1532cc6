//! What Cranelift says of a function's frame, as DWARF call frame instructions.

use std::ops::RangeInclusive;

use cranelift_codegen::Reg;
use cranelift_codegen::binemit::CodeOffset;
use cranelift_codegen::isa::TargetIsa;
use cranelift_codegen::isa::unwind::UnwindInst;
use gimli::leb128::write::Leb128;
use smallvec::SmallVec;

use super::machine_code::push_number;

/// Instructions of one function; most take less than twenty bytes.
pub(crate) type Instructions = SmallVec<[u8; 32]>;

const ADVANCE: u8 = 0x40;
const ADVANCE_2: u8 = 0x03;
const ADVANCE_4: u8 = 0x04;
const OFFSET: u8 = 0x80;
const OFFSET_EXTENDED: u8 = 0x05;
const RESTORE: u8 = 0xc0;
const RESTORE_EXTENDED: u8 = 0x06;
const REMEMBER_STATE: u8 = 0x0a;
const RESTORE_STATE: u8 = 0x0b;
const DEF_CFA: u8 = 0x0c;
const DEF_CFA_REGISTER: u8 = 0x0d;
const DEF_CFA_OFFSET: u8 = 0x0e;
const VAL_OFFSET: u8 = 0x14;
const AARCH64_NEGATE_RA_STATE: u8 = 0x2d;

/// A saved register's distance from the frame's beginning counts in words.
const WORD: u32 = 8;

/// The instructions of a function, whose code is not relocated.
pub(crate) fn instructions(isa: &dyn TargetIsa, code: &[u8], unwind: &[(CodeOffset, UnwindInst)]) -> Instructions {
    let machine = Machine::of(isa);
    let mut out = Instructions::new();
    let mut kept = SmallVec::<[u8; 12]>::new();
    let (mut at, mut clobbers, mut signed) = (0, 0, false);
    for (offset, inst) in unwind {
        if matches!(inst, UnwindInst::StackAlloc { .. }) {
            // The frame is found by the frame pointer.
            continue;
        }
        advance(&mut out, (offset - at) / machine.code_alignment);
        at = *offset;
        match *inst {
            UnwindInst::PushFrameRegs { offset_upward_to_caller_sp: frame } => {
                out.push(DEF_CFA_OFFSET);
                push_number(&mut out, Leb128::unsigned(frame.into()));
                saved(&mut out, OFFSET, machine.frame_pointer, frame);
                kept.push(machine.frame_pointer);
                if let Some(link) = machine.link_register {
                    saved(&mut out, OFFSET, link, frame - WORD);
                    kept.push(link);
                }
            }
            UnwindInst::DefineNewFrame { offset_upward_to_caller_sp, offset_downward_to_clobbers } => {
                out.extend_from_slice(&[DEF_CFA_REGISTER, machine.frame_pointer]);
                clobbers = offset_upward_to_caller_sp + offset_downward_to_clobbers;
            }
            UnwindInst::SaveReg { clobber_offset, reg } => {
                let number = machine.number(reg.class(), reg.hw_enc());
                saved(&mut out, OFFSET, number, clobbers - clobber_offset);
                kept.push(number);
            }
            UnwindInst::RegStackOffset { clobber_offset, reg } => {
                let number = machine.number(reg.class(), reg.hw_enc());
                saved(&mut out, VAL_OFFSET, number, clobbers - clobber_offset);
                kept.push(number);
            }
            // The instruction switches; return addresses are not signed at entry.
            UnwindInst::Aarch64SetPointerAuth { return_addresses } => {
                if return_addresses != std::mem::replace(&mut signed, return_addresses) {
                    out.push(AARCH64_NEGATE_RA_STATE);
                }
            }
            UnwindInst::StackAlloc { .. } => {}
        }
    }
    if !kept.is_empty() {
        returns(&mut out, &machine, code, at, &kept);
    }
    out
}

/// At a return instruction the frame is gone, which Cranelift does not say: a profiler's signal that found the thread
/// there would follow the caller's frame pointer instead of this function's.
fn returns(out: &mut Instructions, machine: &Machine, code: &[u8], mut at: CodeOffset, kept: &[u8]) {
    let unit = machine.code_alignment;
    let mut rest = code.get(at as usize..).unwrap_or_default();
    while let Some(distance) = machine.to_return(rest) {
        advance(out, distance / unit);
        out.extend_from_slice(&[REMEMBER_STATE, DEF_CFA, machine.stack_pointer, machine.return_address_size]);
        for register in kept {
            match register {
                0..0x40 => out.push(RESTORE | register),
                _ => out.extend_from_slice(&[RESTORE_EXTENDED, *register]),
            }
        }
        at += distance + unit;
        rest = code.get(at as usize..).unwrap_or_default();
        if rest.is_empty() {
            return;
        }
        advance(out, 1);
        out.push(RESTORE_STATE);
    }
}

/// `units` of code alignment further on.
fn advance(out: &mut Instructions, units: u32) {
    match units {
        0 => {}
        1..0x40 => out.push(ADVANCE | units as u8),
        0x40..0x1_0000 => {
            out.push(ADVANCE_2);
            out.extend_from_slice(&(units as u16).to_le_bytes());
        }
        _ => {
            out.push(ADVANCE_4);
            out.extend_from_slice(&units.to_le_bytes());
        }
    }
}

/// A register's value is `below` the frame's beginning, or is that address.
fn saved(out: &mut Instructions, how: u8, register: u8, below: u32) {
    match how {
        OFFSET if register < 0x40 => out.push(OFFSET | register),
        OFFSET => out.extend_from_slice(&[OFFSET_EXTENDED, register]),
        other => out.extend_from_slice(&[other, register]),
    }
    push_number(out, Leb128::unsigned((below / WORD).into()));
}

/// DWARF's number of a register.
pub(crate) fn register(isa: &dyn TargetIsa, register: Reg) -> Option<u16> {
    let register = register.to_real_reg()?;
    Some(u16::from(Machine::of(isa).number(register.class(), register.hw_enc())))
}

/// Whether a call leaves a register, by DWARF's number, as it was.
pub(super) fn is_preserved(isa: &dyn TargetIsa, register: u16) -> bool {
    Machine::of(isa).preserved.iter().any(|registers| registers.contains(&register))
}

/// DWARF's numbers of an architecture's registers.
struct Machine {
    code_alignment: u32,
    stack_pointer: u8,
    /// Bytes on the stack when a function has been called.
    return_address_size: u8,
    frame_pointer: u8,
    link_register: Option<u8>,
    /// DWARF's number of each integer register, where it is not the machine's.
    integer: Option<[u8; 16]>,
    vector: u8,
    /// What functions of the C convention leave as it was, by DWARF's numbers.
    preserved: [RangeInclusive<u16>; 3],
}

impl Machine {
    fn of(isa: &dyn TargetIsa) -> Self {
        Self::of_architecture(isa.triple().architecture)
    }

    fn of_architecture(architecture: target_lexicon::Architecture) -> Self {
        match architecture {
            target_lexicon::Architecture::X86_64 => Self {
                code_alignment: 1,
                stack_pointer: 7,
                return_address_size: 8,
                frame_pointer: 6,
                link_register: None,
                integer: Some([0, 2, 1, 3, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15]),
                vector: 17,
                // rbx, rbp, and from r12 on.
                preserved: [3..=3, 6..=6, 12..=15],
            },
            _ => Self {
                code_alignment: 4,
                stack_pointer: 31,
                return_address_size: 0,
                frame_pointer: 29,
                link_register: Some(30),
                integer: None,
                vector: 64,
                // From x19 on, x29, and of v8 to v15 the lower halves.
                preserved: [19..=28, 29..=29, 72..=79],
            },
        }
    }

    /// How far it is to the next return instruction that follows the end of a frame.
    ///
    /// Where the same bytes are something else, nothing begins at the last: no thread is ever found there.
    fn to_return(&self, code: &[u8]) -> Option<CodeOffset> {
        let found = match self.link_register {
            None => {
                const POP_RBP: u8 = 0x5d;
                const RET: u8 = 0xc3;
                const RET_AND_DROP: u8 = 0xc2;
                let is_it = |at: &usize| matches!(code.get(at + 1), Some(&(RET | RET_AND_DROP)));
                memchr::memchr_iter(POP_RBP, code).find(is_it)? + 1
            }
            Some(_) => {
                // ldp x29, x30, [sp], #16; ret
                const END: [u8; 8] = [0xfd, 0x7b, 0xc1, 0xa8, 0xc0, 0x03, 0x5f, 0xd6];
                let words = code.len() / 4;
                (1..words).find(|word| code[word * 4 - 4..][..8] == END)? * 4
            }
        };
        Some(found as CodeOffset)
    }

    fn number(&self, class: cranelift_codegen::RegClass, encoding: u8) -> u8 {
        match (class, self.integer) {
            (cranelift_codegen::RegClass::Int, Some(numbers)) => numbers[usize::from(encoding & 15)],
            (cranelift_codegen::RegClass::Int, None) => encoding,
            _ => self.vector + encoding,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returns_of(architecture: target_lexicon::Architecture, code: &[u8], kept: &[u8]) -> Vec<u8> {
        let mut out = Instructions::new();
        returns(&mut out, &Machine::of_architecture(architecture), code, 0, kept);
        out.to_vec()
    }

    #[test]
    fn at_each_return_the_frame_is_gone() {
        // nop; pop rbp; ret; nop; pop rbp; ret 8
        let code = [0x90, 0x5d, 0xc3, 0x90, 0x5d, 0xc2, 8, 0];
        let gone = [REMEMBER_STATE, DEF_CFA, 7, 8, RESTORE | 6];
        let expected = [
            &[ADVANCE | 2][..],
            &gone,
            &[ADVANCE | 1, RESTORE_STATE, ADVANCE | 2],
            &gone,
            &[ADVANCE | 1, RESTORE_STATE],
        ];
        assert_eq!(returns_of(target_lexicon::Architecture::X86_64, &code, &[6]), expected.concat());

        // mov x0, x1; ldp x29, x30, [sp], #16; ret
        let code = [0xaa01_03e0_u32, 0xa8c1_7bfd, 0xd65f_03c0].map(u32::to_le_bytes);
        let aarch64 = target_lexicon::Architecture::Aarch64(target_lexicon::Aarch64Architecture::Aarch64);
        let expected = [ADVANCE | 2, REMEMBER_STATE, DEF_CFA, 31, 0, RESTORE | 29, RESTORE | 30, RESTORE_EXTENDED, 72];
        assert_eq!(returns_of(aarch64, code.as_flattened(), &[29, 30, 72]), expected);
    }
}
