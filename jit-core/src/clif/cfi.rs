//! What Cranelift says of a function's frame, as DWARF call frame instructions.

use cranelift_codegen::Reg;
use cranelift_codegen::binemit::CodeOffset;
use cranelift_codegen::isa::TargetIsa;
use cranelift_codegen::isa::unwind::UnwindInst;
use gimli::leb128::write::Leb128;
use smallvec::SmallVec;

/// Instructions of one function; most take eight bytes.
pub(crate) type Instructions = SmallVec<[u8; 32]>;

const ADVANCE: u8 = 0x40;
const ADVANCE_2: u8 = 0x03;
const ADVANCE_4: u8 = 0x04;
const OFFSET: u8 = 0x80;
const OFFSET_EXTENDED: u8 = 0x05;
const DEF_CFA_REGISTER: u8 = 0x0d;
const DEF_CFA_OFFSET: u8 = 0x0e;
const VAL_OFFSET: u8 = 0x14;
const AARCH64_NEGATE_RA_STATE: u8 = 0x2d;

/// A saved register's distance from the frame's beginning counts in words.
const WORD: u32 = 8;

/// The instructions of a function.
pub(crate) fn instructions(isa: &dyn TargetIsa, unwind: &[(CodeOffset, UnwindInst)]) -> Instructions {
    let machine = Machine::of(isa);
    let mut out = Instructions::new();
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
                out.extend_from_slice(Leb128::unsigned(frame.into()).bytes());
                saved(&mut out, OFFSET, machine.frame_pointer, frame);
                if let Some(link) = machine.link_register {
                    saved(&mut out, OFFSET, link, frame - WORD);
                }
            }
            UnwindInst::DefineNewFrame { offset_upward_to_caller_sp, offset_downward_to_clobbers } => {
                out.extend_from_slice(&[DEF_CFA_REGISTER, machine.frame_pointer]);
                clobbers = offset_upward_to_caller_sp + offset_downward_to_clobbers;
            }
            UnwindInst::SaveReg { clobber_offset, reg } => {
                let number = machine.number(reg.class(), reg.hw_enc());
                saved(&mut out, OFFSET, number, clobbers - clobber_offset);
            }
            UnwindInst::RegStackOffset { clobber_offset, reg } => {
                let number = machine.number(reg.class(), reg.hw_enc());
                saved(&mut out, VAL_OFFSET, number, clobbers - clobber_offset);
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
    out
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
    out.extend_from_slice(Leb128::unsigned((below / WORD).into()).bytes());
}

/// DWARF's number of a register.
pub(crate) fn register(isa: &dyn TargetIsa, register: Reg) -> Option<u16> {
    let register = register.to_real_reg()?;
    Some(u16::from(Machine::of(isa).number(register.class(), register.hw_enc())))
}

/// DWARF's numbers of an architecture's registers.
struct Machine {
    code_alignment: u32,
    frame_pointer: u8,
    link_register: Option<u8>,
    /// DWARF's number of each integer register, where it is not the machine's.
    integer: Option<[u8; 16]>,
    vector: u8,
}

impl Machine {
    fn of(isa: &dyn TargetIsa) -> Self {
        match isa.triple().architecture {
            target_lexicon::Architecture::X86_64 => Self {
                code_alignment: 1,
                frame_pointer: 6,
                link_register: None,
                integer: Some([0, 2, 1, 3, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15]),
                vector: 17,
            },
            _ => Self { code_alignment: 4, frame_pointer: 29, link_register: Some(30), integer: None, vector: 64 },
        }
    }

    fn number(&self, class: cranelift_codegen::RegClass, encoding: u8) -> u8 {
        match (class, self.integer) {
            (cranelift_codegen::RegClass::Int, Some(numbers)) => numbers[usize::from(encoding & 15)],
            (cranelift_codegen::RegClass::Int, None) => encoding,
            _ => self.vector + encoding,
        }
    }
}
